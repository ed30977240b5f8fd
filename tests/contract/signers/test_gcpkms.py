"""The signer of Google Cloud KMS keeps the contract, through the official client over a gRPC server of our own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from goatherd.errors import (
    SignerConfigurationError,
    SignerKeyNotFoundError,
    SignerUnavailableError,
    UnsupportedKeyError,
)
from goatherd.signers import Signer, VerifiedSigner
from goatherd.testing.signer_checks import SignerContract, SignerWorld
from tests.contract.signers.faulty_http import silent, unreachable

pytest.importorskip("google.cloud.kms_v1", reason="NO GOOGLE-CLOUD-KMS, SO ITS SIGNER IS NOT TESTED: make .venv/.dev")
from google.auth.credentials import AnonymousCredentials

from goatherd.signers.gcpkms.address import parse_uri
from goatherd.signers.gcpkms.signer import GCPKMSSigner
from tests.fakes.gcp_fake.server import Failure
from tests.fakes.gcpkms_fake import ENABLED, FakeKeyManagement
from tests.fakes.herd import FakeClock


@pytest.fixture(scope="module")
def server() -> Iterator[FakeKeyManagement]:
    with FakeKeyManagement() as running:
        yield running


@pytest.fixture
def fake(server: FakeKeyManagement) -> Iterator[FakeKeyManagement]:
    yield server
    server.failure, server.damage, server.silence, server.algorithm = None, None, None, "EC_SIGN_P384_SHA384"
    server.pending_reads = 0


def opened(endpoint: str, key: str, version: int = 1) -> GCPKMSSigner:
    address = parse_uri(f"gcpkms://goatherd-testing/europe-west1/ring/{key}/{version}?endpoint={endpoint}")
    return GCPKMSSigner(address, credentials=AnonymousCredentials())


class KMSWorld(SignerWorld):
    def __init__(self, fake: FakeKeyManagement) -> None:
        self._fake = fake
        self._key = f"key-{secrets.token_hex(4)}"

        async def make() -> None:
            async with opened(fake.endpoint, self._key) as plugin:
                await plugin.create_key()

        asyncio.run(make())

    def signer(self) -> Signer:
        return opened(self._fake.endpoint, self._key)

    def missing_key(self) -> Signer:
        return opened(self._fake.endpoint, "missing")

    @contextmanager
    def disabled(self) -> Iterator[Signer]:
        name = self.signer().name
        self._fake.states[name] = "DISABLED"
        yield self.signer()
        self._fake.states[name] = ENABLED

    @contextmanager
    def failing(self, failure: Failure) -> Iterator[None]:
        self._fake.failure = failure
        yield
        self._fake.failure = None

    @contextmanager
    def denied(self) -> Iterator[Signer]:
        with self.failing(Failure("PERMISSION_DENIED")):
            yield self.signer()

    @contextmanager
    def throttled(self) -> Iterator[float | None]:
        with self.failing(Failure("RESOURCE_EXHAUSTED", retry_after=7)):
            yield 7

    @contextmanager
    def unavailable(self) -> Iterator[Signer | None]:
        with unreachable() as port:
            yield opened(f"127.0.0.1:{port}", self._key)

    @contextmanager
    def slow(self) -> Iterator[Signer | None]:
        with silent(self._fake):
            yield None

    @contextmanager
    def cut(self) -> Iterator[Signer | None]:
        self._fake.damage = lambda name, answer: type(answer).serialize(answer)[:-9]
        yield None
        self._fake.damage = None


class TestKMSContract(SignerContract):
    @pytest.fixture(autouse=True)
    def _world(self, fake: FakeKeyManagement) -> None:
        self._made = KMSWorld(fake)

    def world(self) -> SignerWorld:
        return self._made


@pytest.mark.parametrize(
    "field", ["name", "signature_crc32c", "verified_digest_crc32c", "signature", "pem", "pem_crc32c", "everything"]
)
async def test_an_answer_without_its_checksums_or_about_another_key_is_damaged(
    fake: FakeKeyManagement, field: str
) -> None:
    def damage(name: str, answer: Any) -> Any:
        if field == "everything":
            return b""
        if field in answer:
            setattr(answer, field, type(getattr(answer, field))())
        return answer

    async with opened(fake.endpoint, f"damaged-{field.replace('_', '-')}") as plugin:
        await plugin.create_key()
        fake.damage = damage
        with pytest.raises(SignerUnavailableError, match="the answer is damaged"):
            await (plugin.public_key() if field.startswith("pem") else plugin.sign(b"text"))


async def test_other_kinds_of_keys_are_refused(fake: FakeKeyManagement) -> None:
    async with opened(fake.endpoint, "other-kind") as plugin:
        await plugin.create_key()
        fake.algorithm = "EC_SIGN_ED25519"
        with pytest.raises(UnsupportedKeyError, match="must be EC_SIGN_P384_SHA384; it is EC_SIGN_ED25519"):
            await plugin.public_key()


async def test_a_key_that_is_still_being_generated_is_unavailable(fake: FakeKeyManagement) -> None:
    async with opened(fake.endpoint, "pending") as plugin:
        await plugin.create_key()
        fake.states[plugin.name] = "PENDING_GENERATION"
        with pytest.raises(SignerUnavailableError, match="still being generated"):
            await plugin.sign(b"text")


async def test_a_new_key_is_used_as_soon_as_the_hsm_has_generated_it(fake: FakeKeyManagement) -> None:
    fake.pending_reads = 100
    waits: list[timedelta] = []
    async with VerifiedSigner(opened(fake.endpoint, "slow-hsm"), clock=FakeClock()) as signer:
        key = (await signer.create_key(waits.append)).public_key
        key.verify(await signer.sign(b"text"), b"text")
    assert waits == [timedelta(minutes=10)]


async def test_a_key_is_created_only_for_a_uri_that_names_its_first_version(fake: FakeKeyManagement) -> None:
    async with opened(fake.endpoint, "second-version", 2) as plugin:
        with pytest.raises(SignerConfigurationError, match="the first version of a new key is 1, not 2"):
            await plugin.create_key()
    async with opened(fake.endpoint, "second-version") as plugin:
        with pytest.raises(SignerKeyNotFoundError):
            await plugin.public_key()
