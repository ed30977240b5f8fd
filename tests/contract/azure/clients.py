"""Providers on a faked Azure Key Vault, as its tests make them."""

from __future__ import annotations

from datetime import timedelta

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.providers.azure.address import AzureAddress
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.base import RetryPolicy
from tests.deadlines import HANG
from tests.fakes.azure_fake import TOKEN, FakeCredential, FakeKeyVault, FastClock, SteppedClock

SPEED = 50.0
ONCE = RetryPolicy(attempts=1)


def made(
    vault: FakeKeyVault,
    *,
    token: str = TOKEN,
    retry: RetryPolicy | None = None,
    clock: SteppedClock | None = None,
    port: int = 0,
    seconds: float = HANG,
) -> AzureSecretProvider:
    """Return a provider for the vault, or for a proxy in front of it."""
    url = f"https://localhost:{port or vault.port}"
    return AzureSecretProvider(
        AzureAddress(vault="fake", url=url, ca=str(vault.ca), check_challenge=False),
        credential=FakeCredential(token),
        clock=clock or FastClock(SPEED),
        retry=retry,
        timeout=timedelta(seconds=seconds),
    )
