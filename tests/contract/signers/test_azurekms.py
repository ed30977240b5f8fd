"""The signer of Azure Key Vault keeps the contract, through the official client over a server of our own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from goatherd.errors import (
    SignerConfigurationError,
    SignerError,
    SignerUnavailableError,
    UnsupportedKeyError,
)
from goatherd.signers import Signer
from goatherd.testing.signer_checks import SignerContract, SignerWorld
from tests.contract.signers.faulty_http import answering, unreachable

pytest.importorskip("azure.keyvault.keys", reason="NO AZURE-KEYVAULT-KEYS, SO NO SIGNER OF IT IS TESTED")
from goatherd.signers.azurekms.address import parse_uri
from goatherd.signers.azurekms.signer import AzureKMSSigner
from tests.fakes.azure_fake import FakeCredential
from tests.fakes.azurekms_fake import FakeKeys


@pytest.fixture(scope="module")
def server() -> Iterator[FakeKeys]:
    with FakeKeys() as running:
        yield running


@pytest.fixture
def vault(server: FakeKeys) -> Iterator[FakeKeys]:
    yield server
    server.refusal, server.damage, server.is_cut, server.kind = None, None, False, "EC"


def opened(vault: FakeKeys, key: str, version: str = "") -> AzureKMSSigner:
    return AzureKMSSigner(parse_uri(vault.uri(f"{key}{version}")), credential=FakeCredential())


class VaultWorld(SignerWorld):
    def __init__(self, vault: FakeKeys) -> None:
        self._vault = vault
        self._key = f"key-{secrets.token_hex(4)}"

        async def make() -> None:
            async with opened(vault, self._key) as plugin:
                await plugin.create_key()

        asyncio.run(make())

    def signer(self) -> Signer:
        return opened(self._vault, self._key)

    def missing_key(self) -> Signer:
        return opened(self._vault, "missing")

    @contextmanager
    def disabled(self) -> Iterator[Signer]:
        self._vault.disabled.add(self._key)
        yield self.signer()
        self._vault.disabled.discard(self._key)

    @contextmanager
    def denied(self) -> Iterator[Signer]:
        self._vault.refusal = (403, "Forbidden", "ForbiddenByRbac", ())
        yield self.signer()
        self._vault.refusal = None

    @contextmanager
    def throttled(self) -> Iterator[float | None]:
        self._vault.refusal = (429, "Throttled", None, (("Retry-After", "7"),))
        yield 7
        self._vault.refusal = None

    @contextmanager
    def unavailable(self) -> Iterator[Signer | None]:
        with unreachable() as port:
            yield self._at(port)

    def _at(self, port: int) -> Signer:
        uri = self._vault.uri(self._key).replace(f":{self._vault.port}", f":{port}")
        return AzureKMSSigner(parse_uri(uri), credential=FakeCredential())

    @contextmanager
    def slow(self) -> Iterator[Signer | None]:
        with answering(None) as port:
            yield self._at(port)

    @contextmanager
    def cut(self) -> Iterator[Signer | None]:
        self._vault.is_cut = True
        yield None
        self._vault.is_cut = False


class TestVaultContract(SignerContract):
    @pytest.fixture(autouse=True)
    def _world(self, vault: FakeKeys) -> None:
        self._made = VaultWorld(vault)

    def world(self) -> SignerWorld:
        return self._made


async def test_a_version_is_one_of_the_key(vault: FakeKeys) -> None:
    async with opened(vault, "versioned") as plugin:
        await plugin.create_key()
        key = (await plugin.public_key()).public_key
    async with opened(vault, "versioned", f"/{vault._keys['versioned'][0]}") as plugin:
        key.verify(await plugin.sign(b"text"), b"text")
    async with opened(vault, "versioned", f"/{'0' * 32}") as plugin:
        with pytest.raises(SignerError, match="no such key or version"):
            await plugin.public_key()


async def test_a_key_in_a_managed_hsm_is_created_as_one_that_the_hsm_protects(vault: FakeKeys) -> None:
    vault.kind = "EC-HSM"
    uri = vault.uri("in-hsm") + "&suffix=managedhsm.azure.net"
    async with AzureKMSSigner(parse_uri(uri), credential=FakeCredential()) as plugin:
        await plugin.create_key()
        (await plugin.public_key()).public_key.verify(await plugin.sign(b"text"), b"text")


async def test_a_token_service_that_reports_an_error_is_unavailable(
    vault: FakeKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    async def sleep(*_: Any, **__: Any) -> None:
        """Let the SDK retry at once."""

    monkeypatch.setattr("azure.core.pipeline.policies.AsyncRetryPolicy.sleep", sleep)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    monkeypatch.setenv("IDENTITY_HEADER", "x")
    with answering(failing) as port:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{port}/msi/token")
        async with AzureKMSSigner(parse_uri(vault.uri("key"))) as plugin:
            with pytest.raises(SignerUnavailableError, match=r"127\.0\.0\.1 answered with HTTP 503") as caught:
                await plugin.public_key()
            assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_other_kinds_of_keys_and_exportable_ones_are_refused(vault: FakeKeys) -> None:
    vault.add_key("p256", ec.SECP256R1())
    vault.add_key("loose", ec.SECP384R1())
    async with opened(vault, "p256") as plugin:
        with pytest.raises(UnsupportedKeyError, match="the key must be EC over P-384"):
            await plugin.public_key()

    def exportable(told: dict[str, Any]) -> dict[str, Any]:
        return {**told, "attributes": {"enabled": True, "exportable": True}}

    vault.damage = exportable
    async with opened(vault, "loose") as plugin:
        with pytest.raises(SignerConfigurationError, match="the key can be exported"):
            await plugin.public_key()


@pytest.mark.parametrize(
    ("change", "is_of_signature"),
    [
        ({"value": None}, True),
        ({"value": "AAAA"}, True),
        ({"key": None}, False),
        ({"key": {"kty": "EC", "crv": "P-384"}}, False),
        ({"key": {"kid": "https://localhost/keys/another/" + "0" * 32, "kty": "EC", "crv": "P-384"}}, False),
    ],
    ids=["none", "short", "no key", "no coordinates", "another key"],
)
async def test_an_answer_of_another_shape_is_damaged(
    vault: FakeKeys, change: dict[str, Any], is_of_signature: bool
) -> None:
    async with opened(vault, "shape") as plugin:
        vault.add_key("shape", ec.SECP384R1())
        await plugin.sign(b"before")
        vault.damage = lambda told: {**told, **change}
        with pytest.raises(SignerUnavailableError, match=r"the answer .*is damaged"):
            await (plugin.sign(b"text") if is_of_signature else plugin.public_key())
