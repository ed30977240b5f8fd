"""The transit signer keeps the contract, over a real OpenBao and under exactly the policy that `goatherd policy`
prints."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from goatherd.errors import (
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerKeyDisabledError,
    SignerKeyNotFoundError,
    SignerUnavailableError,
    SignerWrongKeyError,
    UnsupportedKeyError,
)
from goatherd.plugins import policy_text
from goatherd.signers import KeyCreator, Signer, VerifiedSigner
from goatherd.signers.transit.address import parse_uri
from goatherd.signers.transit.signer import TransitSigner
from goatherd.testing.signer_checks import SignerContract, SignerWorld
from tests.contract.signers.faulty_http import CUT_JSON, answering, unreachable
from tests.docs.reference import DOCS
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

BAO = find_bao()
OTHER = policy_text("transit", "signer", "transit://127.0.0.1/transit/another-key")
PAGE = " ".join((DOCS / "how-to/signer-transit.md").read_text().split())
pytestmark = pytest.mark.skipif(BAO is None, reason=WHY_SKIPPED)


@pytest.fixture(scope="module")
def server() -> Iterator[BaoServer]:
    assert BAO is not None
    with BaoServer(BAO) as running:
        running.ask("POST", "sys/mounts/transit", {"type": "transit"})
        running.ask("POST", "sys/quotas/config", {"enable_rate_limit_response_headers": True})
        yield running


def opened(port: int, key: str, token: str, options: str = "") -> TransitSigner:
    uri = f"transit://127.0.0.1:{port}/transit/{key}?tls=off{options}"
    return TransitSigner(parse_uri(uri), environment={"VAULT_TOKEN": token})


class TransitWorld(SignerWorld):
    """A key of the server, and a token that may sign with it and nothing else."""

    def __init__(self, server: BaoServer) -> None:
        self._server = server
        self._key = f"key-{secrets.token_hex(4)}"
        server.ask("POST", f"transit/keys/{self._key}", {"type": "ecdsa-p384"})
        uri = f"transit://127.0.0.1:{server.port}/transit/{self._key}"
        self.token = server.token(policy_text("transit", "signer", uri))

    def signer(self) -> Signer:
        return opened(self._server.port, self._key, self.token)

    def administrator(self) -> Signer:
        return opened(self._server.port, self._key, ROOT_TOKEN)

    def missing_key(self) -> Signer:
        return opened(self._server.port, "missing", ROOT_TOKEN)

    @contextmanager
    def disabled(self) -> Iterator[Signer]:
        path = f"transit/keys/{self._key}"
        self._server.ask("POST", f"{path}/rotate", {})
        self._server.ask("POST", f"{path}/config", {"min_encryption_version": 2})
        yield self.signer()
        self._server.ask("POST", f"{path}/config", {"min_encryption_version": 0})

    @contextmanager
    def denied(self) -> Iterator[Signer]:
        yield opened(self._server.port, self._key, self._server.token(OTHER))

    @contextmanager
    def throttled(self) -> Iterator[float | None]:
        quota = f"sys/quotas/rate-limit/{self._key}"
        self._server.ask("POST", quota, {"path": f"transit/sign/{self._key}", "rate": 0.001, "interval": "7s"})
        with_token = {"input": "AA==", "prehashed": True}
        for _ in range(2):
            try:
                self._server.ask("POST", f"transit/sign/{self._key}", with_token)
            except AssertionError as refused:
                assert "429" in str(refused)  # noqa: PT017 - the first of the two, if it is refused
                break
        yield 7
        self._server.ask("DELETE", quota)

    @contextmanager
    def unavailable(self) -> Iterator[Signer | None]:
        with unreachable() as port:
            yield opened(port, self._key, self.token)

    @contextmanager
    def slow(self) -> Iterator[Signer | None]:
        with answering(None) as port:
            yield opened(port, self._key, self.token)

    @contextmanager
    def cut(self) -> Iterator[Signer | None]:
        with answering(CUT_JSON) as port:
            yield opened(port, self._key, self.token)


class TestTransitContract(SignerContract):
    @pytest.fixture(autouse=True)
    def _world(self, server: BaoServer) -> None:
        self._made = TransitWorld(server)

    def world(self) -> SignerWorld:
        return self._made


def admin(server: BaoServer, key: str, options: str = "") -> TransitSigner:
    return opened(server.port, key, ROOT_TOKEN, options)


async def test_a_new_key_cannot_be_exported(server: BaoServer) -> None:
    async with admin(server, "made-here") as plugin:
        assert isinstance(plugin, KeyCreator)
        await plugin.create_key()
        async with VerifiedSigner(plugin) as signer:
            key = (await signer.public_key()).public_key
            key.verify(await signer.sign(b"text"), b"text")
    assert server.ask("GET", "transit/keys/made-here")["data"]["exportable"] is False


async def test_a_key_is_created_with_the_rights_that_the_page_names(server: BaoServer) -> None:
    policy = policy_text("transit", "signer", f"transit://127.0.0.1:{server.port}/transit/by-creator")
    async with opened(server.port, "by-creator", server.token(policy)) as plugin:
        with pytest.raises(SignerAccessDeniedError):
            await plugin.create_key()
    (capability, path) = re.findall(r"Besides the policy, the command needs `(\w+)` on `([\w/-]+)`", PAGE)[0]
    path = path.replace("goatdb-anchor", "by-creator")
    policy = policy.replace(granted := f'path "{path}" {{\n  capabilities = [', f'{granted}"{capability}", ')
    async with VerifiedSigner(opened(server.port, "by-creator", server.token(policy))) as signer:
        await signer.create_key()
        key = (await signer.check_key()).public_key
        key.verify(await signer.sign(b"text"), b"text")


async def test_a_key_is_created_only_for_a_uri_that_names_its_first_version(server: BaoServer) -> None:
    async with admin(server, "second-version", "&version=2") as plugin:
        with pytest.raises(SignerConfigurationError, match="the first version of a new key is 1, not 2"):
            await plugin.create_key()
    async with admin(server, "second-version") as plugin:
        with pytest.raises(SignerKeyNotFoundError):
            await plugin.public_key()


async def test_a_key_that_was_rotated_signs_with_the_version_that_the_address_names(server: BaoServer) -> None:
    server.ask("POST", "transit/keys/rotated", {"type": "ecdsa-p384"})
    async with VerifiedSigner(admin(server, "rotated")) as first:
        old = (await first.check_key()).public_key
        server.ask("POST", "transit/keys/rotated/rotate", {})
        old.verify(await first.sign(b"text"), b"text")
    async with VerifiedSigner(admin(server, "rotated", "&version=2")) as second:
        new = (await second.check_key()).public_key
        assert new != old
        new.verify(await second.sign(b"text"), b"text")
    async with VerifiedSigner(admin(server, "rotated", "&version=2"), pinned=old) as wrong:
        with pytest.raises(SignerWrongKeyError):
            await wrong.sign(b"text")
    async with VerifiedSigner(admin(server, "rotated", "&version=3"), pinned=old) as missing:
        for call in (missing.check_key(), missing.sign(b"text")):
            with pytest.raises(SignerKeyNotFoundError, match="the key has no such version"):
                await call
    server.ask("POST", "transit/keys/rotated/config", {"min_encryption_version": 2, "min_decryption_version": 2})
    async with VerifiedSigner(admin(server, "rotated"), pinned=old) as below:
        for call in (below.check_key(), below.sign(b"text")):
            with pytest.raises(SignerKeyDisabledError):
                await call


async def test_other_kinds_of_keys_and_exportable_ones_are_refused(server: BaoServer) -> None:
    for kind in ("ed25519", "ecdsa-p256", "rsa-2048", "aes256-gcm96"):
        server.ask("POST", f"transit/keys/of-{kind}", {"type": kind})
        async with VerifiedSigner(admin(server, f"of-{kind}")) as signer:
            with pytest.raises(UnsupportedKeyError, match=f"the key's type must be ecdsa-p384; it is '{kind}'"):
                await signer.check_key()
    server.ask("POST", "transit/keys/free", {"type": "ecdsa-p384", "exportable": True})
    async with VerifiedSigner(admin(server, "free")) as signer:
        with pytest.raises(SignerConfigurationError, match="the key can be exported"):
            await signer.check_key()


async def test_a_wrong_mount_is_a_mistake_in_the_address(server: BaoServer) -> None:
    address = parse_uri(f"transit://127.0.0.1:{server.port}/elsewhere/key?tls=off")
    async with VerifiedSigner(TransitSigner(address, environment={"VAULT_TOKEN": ROOT_TOKEN})) as signer:
        with pytest.raises(SignerConfigurationError, match="nothing is mounted at elsewhere") as caught:
            await signer.check_key()
        assert "transit engine" in caught.value.hint


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"data": 7}',
        b'{"data": {"signature": "vault:v2:AAAA"}}',
        b'{"data": {"signature": "vault:v1:AAAA"}}',
        b'{"data": {"signature": "vault:v1:!!!!"}}',
        b"<html>",
    ],
)
async def test_an_answer_that_is_no_signature_is_damaged(server: BaoServer, body: bytes) -> None:
    async with VerifiedSigner(admin(server, "shape")) as whole:
        server.ask("POST", "transit/keys/shape", {"type": "ecdsa-p384"})
        pinned = (await whole.check_key()).public_key
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with answering(head.encode() + body) as port:
        async with VerifiedSigner(opened(port, "shape", ROOT_TOKEN), pinned=pinned) as signer:
            with pytest.raises(SignerUnavailableError, match="damaged") as caught:
                await signer.plugin.sign(b"text")
            assert ROOT_TOKEN not in str(caught.value)
