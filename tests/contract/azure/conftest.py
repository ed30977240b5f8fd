"""A faked key vault, and a provider on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.providers.azure.provider import AzureSecretProvider
from tests.fakes.azure_fake import FakeKeyVault

from .clients import ONCE, SPEED, made

READER = "token-of-an-ordinary-reader"


@pytest.fixture
def vault() -> Iterator[FakeKeyVault]:
    with FakeKeyVault(speed=SPEED) as running:
        # What the page says that such a reader needs, and nothing more.
        running.allow(READER, ["Microsoft.KeyVault/vaults/secrets/getSecret/action"], ["goatdb-root"])
        yield running


@pytest.fixture
async def provider(vault: FakeKeyVault) -> AsyncIterator[AzureSecretProvider]:
    async with made(vault) as opened:
        yield opened


@pytest.fixture
async def once(vault: FakeKeyVault) -> AsyncIterator[AzureSecretProvider]:
    """Return a provider that does not retry."""
    async with made(vault, retry=ONCE) as opened:
        yield opened
