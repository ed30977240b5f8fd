"""Secrets in a faked Azure Key Vault, as the tests of their readers and costs make them."""

from __future__ import annotations

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from goatherd.providers.azure.address import AzureAddress
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.base import RetryPolicy
from tests.fakes.azure_fake import FakeCredential, FakeKeyVault, FastClock, SteppedClock

SPEED = 50.0


def made(
    vault: FakeKeyVault,
    *,
    token: str | None = None,
    retry: RetryPolicy | None = None,
    clock: SteppedClock | None = None,
) -> AzureSecretProvider:
    address = AzureAddress(vault="fake", url=vault.url, ca=str(vault.ca), check_challenge=False)
    credential = FakeCredential() if token is None else FakeCredential(token)
    return AzureSecretProvider(address, credential=credential, clock=clock or FastClock(SPEED), retry=retry)
