"""Errors of Azure's default chain of credentials when a token service fails, and without a login."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("azure.keyvault.secrets", reason="needs the extra azure")

from azure.core.pipeline.policies import AsyncRetryPolicy

from goatherd.errors import ProviderAccessDeniedError, SecretNotFoundError, UnavailableError
from goatherd.plugins import open_provider
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.base import RetryPolicy
from tests.contract.signers.faulty_http import unreachable
from tests.fakes.azure_fake import FakeKeyVault

VARIABLES = (
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_POD_IDENTITY_AUTHORITY_HOST",
    "AZURE_TENANT_ID",
    "IDENTITY_ENDPOINT",
    "IDENTITY_HEADER",
    "MSI_ENDPOINT",
)


@pytest.fixture
def vault() -> Iterator[FakeKeyVault]:
    with FakeKeyVault() as running:
        yield running


@pytest.fixture(autouse=True)
def only_machines_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the chain from using logins of this machine's user, or services on other machines."""

    async def sleep(*_: Any, **__: Any) -> None:
        """Let the SDK retry at once."""

    monkeypatch.setattr(AsyncRetryPolicy, "sleep", sleep)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "prod")


def put_metadata_service_at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the chain ask a port of this machine in place of the metadata service of virtual machines."""
    monkeypatch.setattr("azure.identity._credentials.imds.IMDS_AUTHORITY", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("goatherd.providers.azure.credential._METADATA_SERVICE", "127.0.0.1")


def opened(vault: FakeKeyVault) -> AzureSecretProvider:
    provider, _ = open_provider(vault.uri("herd"))
    assert isinstance(provider, AzureSecretProvider)
    provider.retry = RetryPolicy(attempts=1)
    return provider


async def test_a_token_service_that_does_not_answer_is_unavailable(
    vault: FakeKeyVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unreachable() as port:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{port}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "x")
        async with opened(vault) as provider:
            with pytest.raises(UnavailableError, match=r"no token, because 127\.0\.0\.1 did not answer"):
                await provider.read("herd")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_token_service_that_reports_an_error_is_unavailable(
    vault: FakeKeyVault, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vault.environment.items():
        monkeypatch.setenv(name, value)
    vault.identity_failure = status
    async with opened(vault) as provider:
        with pytest.raises(UnavailableError, match=f"answered with HTTP {status}") as caught:
            await provider.read("herd")
        shown = "".join(traceback.format_exception(caught.value))
        assert vault.environment["IDENTITY_HEADER"] not in shown, "the service's answer is not quoted"
        vault.identity_failure = None
        with pytest.raises(SecretNotFoundError):
            await provider.read("herd")


async def test_a_token_service_that_refuses_is_a_denial(vault: FakeKeyVault, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in vault.environment.items():
        monkeypatch.setenv(name, value)
    vault.identity_failure = 401
    async with opened(vault) as provider:
        with pytest.raises(ProviderAccessDeniedError):
            await provider.read("herd")


async def test_a_token_service_that_refuses_later_is_not_taken_for_the_vault(
    vault: FakeKeyVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vault.environment.items():
        monkeypatch.setenv(name, value)
    vault.token_seconds = 0
    async with opened(vault) as provider:
        with pytest.raises(SecretNotFoundError):
            await provider.read("herd")
        for status in (400, 401, 404):
            vault.identity_failure = status
            with pytest.raises(ProviderAccessDeniedError, match="no credential of Azure's default chain"):
                await provider.read("herd")


async def test_after_a_refused_login_the_next_call_reads_the_credentials_again(
    vault: FakeKeyVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vault.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IDENTITY_HEADER", "former")
    async with opened(vault) as provider:
        with pytest.raises(ProviderAccessDeniedError):
            await provider.read("herd")
        monkeypatch.setenv("IDENTITY_HEADER", vault.environment["IDENTITY_HEADER"])
        with suppress(ProviderAccessDeniedError):
            await provider.read("herd")
        with pytest.raises(SecretNotFoundError):
            await provider.read("herd")


async def test_no_login_outside_of_azure_is_a_denial(vault: FakeKeyVault, monkeypatch: pytest.MonkeyPatch) -> None:
    with unreachable() as port:
        put_metadata_service_at(port, monkeypatch)
        async with opened(vault) as provider:
            with pytest.raises(ProviderAccessDeniedError, match="no credential of Azure's default chain") as caught:
                await provider.read("herd")
    assert "az login" in caught.value.hint


async def test_a_metadata_service_that_has_given_a_token_before_is_unavailable(
    vault: FakeKeyVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_metadata_service_at(vault.identity_port, monkeypatch)
    vault.token_seconds = 0
    async with opened(vault) as provider:
        with pytest.raises(SecretNotFoundError):
            await provider.read("herd")
        vault.identity_failure = 500
        with pytest.raises(UnavailableError, match="answered with HTTP 500"):
            await provider.read("herd")
