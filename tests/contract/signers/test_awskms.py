"""The AWS KMS signer keeps the contract, through the real SDK: over a fake for every fault, and over moto."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from goatherd.errors import (
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerKeyDisabledError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerUnavailableError,
    UnsupportedKeyError,
)
from goatherd.signers import Signer, VerifiedSigner
from goatherd.signers.awskms.address import parse_uri
from goatherd.signers.awskms.signer import AWSKMSSigner
from goatherd.testing.signer_checks import SignerContract, SignerWorld
from tests.contract.signers.faulty_http import silent, unreachable
from tests.fakes.awskms_fake import ACCESS_KEY, DENIED_KEY, FakeKMS, RefusedError
from tests.fakes.herd import FakeClock
from tests.fakes.instance_metadata import InstanceMetadata
from tests.fakes.moto import WHY_SKIPPED, MotoServer, find_moto

REGION = "eu-west-1"
MOTO = find_moto()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/no/such/file")


@pytest.fixture(scope="module")
def service() -> Iterator[FakeKMS]:
    with FakeKMS() as running:
        yield running


@pytest.fixture
def fake(service: FakeKMS) -> Iterator[FakeKMS]:
    yield service
    service.refusal, service.refusals, service.lost, service.late_keys, service.late_aliases = None, {}, None, 0, 0


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoServer]:
    if MOTO is None:
        pytest.skip(WHY_SKIPPED)
    with MotoServer(MOTO) as running:
        yield running


def opened(url: str, key: str = "alias/anchor") -> AWSKMSSigner:
    return AWSKMSSigner.from_uri(f"awskms://{REGION}/{key}?endpoint={quote(url, safe='')}")


def key_at(url: str) -> str:
    """Return the alias of a new key."""
    alias = f"alias/key-{secrets.token_hex(4)}"

    async def make() -> None:
        async with opened(url, alias) as plugin:
            await plugin.create_key()

    asyncio.run(make())
    return alias


class KMSWorld(SignerWorld):
    def __init__(self, fake: FakeKMS, monkeypatch: pytest.MonkeyPatch) -> None:
        self._fake = fake
        self._patch = monkeypatch
        self._alias = key_at(fake.url)

    def signer(self) -> Signer:
        return opened(self._fake.url, self._alias)

    def missing_key(self) -> Signer:
        return opened(self._fake.url, "alias/missing")

    @contextmanager
    def disabled(self) -> Iterator[Signer]:
        self._fake.set_state(self._alias, "Disabled")
        yield self.signer()
        self._fake.set_state(self._alias, "Enabled")

    @contextmanager
    def denied(self) -> Iterator[Signer]:
        self._patch.setenv("AWS_ACCESS_KEY_ID", DENIED_KEY)
        yield self.signer()
        self._patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)

    @contextmanager
    def throttled(self) -> Iterator[float | None]:
        self._fake.refusal = RefusedError("ThrottlingException", headers={"Retry-After": "7"})
        yield 7
        self._fake.refusal = None

    @contextmanager
    def unavailable(self) -> Iterator[Signer | None]:
        with unreachable() as port:
            yield opened(f"http://127.0.0.1:{port}", self._alias)

    @contextmanager
    def slow(self) -> Iterator[Signer | None]:
        with silent(self._fake):
            yield None

    @contextmanager
    def cut(self) -> Iterator[Signer | None]:
        self._fake.is_cut = True
        yield None
        self._fake.is_cut = False


class TestKMSContract(SignerContract):
    @pytest.fixture(autouse=True)
    def _world(self, fake: FakeKMS, monkeypatch: pytest.MonkeyPatch, credentials: None) -> None:
        self._made = KMSWorld(fake, monkeypatch)

    def world(self) -> SignerWorld:
        return self._made


async def test_moto_s_signatures_are_right_too(moto: MotoServer) -> None:
    async with opened(moto.url, "alias/of-moto") as plugin:
        await plugin.create_key()
        with pytest.raises(SignerKeyExistsError):
            await plugin.create_key()
        async with VerifiedSigner(plugin) as signer:
            key = (await signer.check_key()).public_key
            for text in (b"a", b"b" * 4096):  # moto hashes a digest once more, so longer texts are the fake's
                key.verify(await signer.sign(text), text)


async def test_a_key_that_is_scheduled_for_deletion_does_not_sign(fake: FakeKMS) -> None:
    async with opened(fake.url, "alias/scheduled") as plugin:
        await plugin.create_key()
        fake.set_state("alias/scheduled", "PendingDeletion")
        with pytest.raises(SignerKeyDisabledError):
            await plugin.sign(b"text")


async def test_credentials_that_were_missing_at_the_first_call_are_found_at_the_next_one(
    fake: FakeKMS, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InstanceMetadata(ACCESS_KEY) as metadata:
        metadata.be_only_source(monkeypatch)
        metadata.is_up = False
        async with opened(fake.url, "alias/first-call") as plugin:
            with pytest.raises(SignerAccessDeniedError, match="no credentials"):
                await plugin.create_key()
            metadata.is_up = True
            await plugin.create_key()
            await plugin.sign(b"text")


def patient(url: str, key: str, clock: FakeClock | None = None) -> VerifiedSigner:
    """A signer whose clock moves only while it waits."""
    clock = clock or FakeClock()
    address = parse_uri(f"awskms://{REGION}/{key}?endpoint={quote(url, safe='')}")
    return VerifiedSigner(AWSKMSSigner(address, clock=clock), clock=clock)


def last_key(fake: FakeKMS) -> Any:
    """Return the key that was created last."""
    return list(fake._keys.values())[-1]


async def test_a_key_whose_alias_was_taken_meanwhile_is_given_up(fake: FakeKMS) -> None:
    async with opened(fake.url, "alias/taken") as plugin:
        fake._aliases["alias/taken"] = "gone"  # found by no description, as in a race
        with pytest.raises(SignerKeyExistsError):
            await plugin.create_key()
        made = [key for key in fake._keys.values() if key.state == "PendingDeletion"]
        assert made
        del fake._aliases["alias/taken"]


async def test_a_new_key_is_used_although_kms_knows_key_and_alias_only_later(fake: FakeKMS) -> None:
    fake.late_keys, fake.late_aliases = 3, 3
    async with patient(fake.url, "alias/late") as signer:
        key = (await signer.create_key()).public_key
        key.verify(await signer.sign(b"text"), b"text")
    assert last_key(fake).state == "Enabled"


async def test_an_alias_whose_creation_was_not_confirmed_is_found_again(fake: FakeKMS) -> None:
    fake.lost, fake.late_aliases, before = "CreateAlias", 2, len(fake._keys)
    async with patient(fake.url, "alias/unconfirmed") as signer:
        await signer.create_key()
    assert len(fake._keys) == before + 1
    assert fake._aliases["alias/unconfirmed"] == last_key(fake).id
    assert last_key(fake).state == "Enabled"


async def test_an_alias_that_another_key_got_while_kms_did_not_answer_stays_that_key_s(fake: FakeKMS) -> None:
    other = fake._do_CreateKey({"KeySpec": "ECC_NIST_P384", "KeyUsage": "SIGN_VERIFY"})["KeyMetadata"]["KeyId"]
    fake.refusals["CreateAlias"] = RefusedError("KMSInternalException", 500)
    clock = FakeClock()

    async def give_alias_to_other() -> None:
        fake._aliases["alias/contested"] = other
        fake.refusals.clear()

    clock.on_tick = give_alias_to_other
    async with patient(fake.url, "alias/contested", clock) as signer:
        with pytest.raises(SignerKeyExistsError):
            await signer.create_key()
    assert last_key(fake).state == "PendingDeletion"
    assert fake.state_of("alias/contested") == "Enabled"


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_the_reason_why_a_key_got_no_alias_is_reported_even_if_it_cannot_be_deleted(
    fake: FakeKMS, *, is_deleted: bool
) -> None:
    fake.late_keys = 1000
    if not is_deleted:
        fake.refusals["ScheduleKeyDeletion"] = RefusedError("AccessDeniedException")
    async with patient(fake.url, "alias/never") as signer:
        with pytest.raises(SignerKeyNotFoundError, match="there is no such key") as caught:
            await signer.create_key()
    made = last_key(fake)
    assert made.state == ("PendingDeletion" if is_deleted else "Enabled")
    assert (made.id in caught.value.hint) is not is_deleted


async def test_a_quota_of_kms_is_not_one_of_secrets_manager(fake: FakeKMS) -> None:
    fake.refusals["CreateKey"] = RefusedError("LimitExceededException")
    async with opened(fake.url, "alias/one-too-many") as plugin:
        with pytest.raises(SignerConfigurationError, match="a quota of KMS is reached") as caught:
            await plugin.create_key()
    assert "aliases of a key" in caught.value.hint


async def test_other_kinds_of_keys_are_refused_and_key_ids_cannot_be_chosen(fake: FakeKMS) -> None:
    made = fake._do_CreateKey({"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
    async with opened(fake.url, made["KeyMetadata"]["KeyId"]) as plugin:
        with pytest.raises(UnsupportedKeyError, match="the key must be ECC_NIST_P384"):
            await plugin.public_key()
        with pytest.raises(UnsupportedKeyError, match="cannot sign with ECDSA_SHA_384"):
            await plugin.sign(b"text")
        with pytest.raises(SignerConfigurationError, match="KMS chooses key ids"):
            await plugin.create_key()


@pytest.mark.parametrize("code", ["KMSInternalException", "KeyUnavailableException", "DependencyTimeoutException"])
async def test_an_error_of_the_service_is_unavailable(fake: FakeKMS, code: str) -> None:
    fake.refusal = RefusedError(code, 500)
    async with opened(fake.url) as plugin:
        with pytest.raises(SignerUnavailableError, match=code) as caught:
            await plugin.sign(b"text")
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)
