"""Every signature of a signer is verified before it is used; retries follow the policy and are counted."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from goatherd.clock import SystemClock
from goatherd.crypto import PrivateKey, raw_from_der
from goatherd.errors import (
    ConfigurationError,
    DecodeError,
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerError,
    SignerInvalidSignatureError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerMisuseError,
    SignerThrottledError,
    SignerUnavailableError,
    SignerWrongKeyError,
)
from goatherd.metrics import format_samples, signer_samples
from goatherd.providers.base import RetryPolicy
from goatherd.providers.call_metrics import possible_outcomes
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey
from goatherd.signers.verified import SigningPolicy, VerifiedSigner
from tests.fakes.herd import FakeClock

KEY = PrivateKey.generate()
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


class Instant(SystemClock):
    """A clock whose sleep ends at once; it records the requested durations."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, duration: timedelta) -> None:
        self.slept.append(duration.total_seconds())


class Scripted(Signer):
    """A signer that does what its script says, attempt by attempt; then it signs."""

    scheme = "scripted"

    def __init__(self, *script: BaseException | bytes, key: PrivateKey = KEY, longest: int | None = None) -> None:
        self.name = "key"
        self._script = list(script)
        self._key = key
        self._longest = longest
        self.attempts = 0
        self.reads = 0

    @classmethod
    def from_uri(cls, uri: str) -> Scripted:
        return cls()

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(exportable=False, latency=Latency.MEMORY, max_text_bytes=self._longest)

    async def public_key(self) -> SignerKey:
        self.reads += 1
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=self._key.public_key)

    async def sign(self, text: bytes) -> bytes:
        self.attempts += 1
        if self._script:
            step = self._script.pop(0)
            if isinstance(step, BaseException):
                raise step
            return step
        return self._key.sign(text)


def verified(plugin: Signer, **more: object) -> VerifiedSigner:
    return VerifiedSigner(plugin, clock=Instant(), **more)  # type: ignore[arg-type]


def of(plugin: Scripted, kind: type[SignerError], **more: object) -> SignerError:
    return plugin.error(kind, "sign", "scripted", **more)  # type: ignore[arg-type]


WRONG = KEY.sign(b"another text")


@pytest.mark.parametrize(
    "bad",
    [WRONG, b"", b"\x00" * 96, b"\xff" * 96, WRONG[:95], KEY.sign(b"text") + b"\x00"],
    ids=["of another text", "empty", "zeros", "ones", "short", "long"],
)
async def test_an_invalid_signature_is_never_returned(bad: bytes) -> None:
    plugin = Scripted(*[bad] * 9)
    signer = verified(plugin)
    with pytest.raises(SignerInvalidSignatureError, match="scripted: cannot sign with 'key'") as caught:
        await signer.sign(b"text")
    assert caught.value.code == "signer.invalid_signature"
    assert not caught.value.retryable
    assert plugin.attempts == 2
    assert signer.call_counts.invalid_signatures == 2


@pytest.mark.parametrize(("allowed", "attempts"), [(0, 1), (1, 2), (3, 4)])
async def test_an_invalid_signature_is_retried_as_often_as_the_policy_allows(allowed: int, attempts: int) -> None:
    plugin = Scripted(*[WRONG] * 9)
    signer = verified(plugin, policy=SigningPolicy(invalid_signatures=allowed))
    with pytest.raises(SignerInvalidSignatureError):
        await signer.sign(b"text")
    assert plugin.attempts == attempts


async def test_an_invalid_signature_before_a_valid_one_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    signer = verified(Scripted(WRONG))
    with caplog.at_level(logging.ERROR, logger="goatherd.signers"):
        KEY.public_key.verify(await signer.sign(b"text"), b"text")
    assert caplog.messages == ["signer.invalid_signature signer=scripted key=key"]
    text = format_samples(signer_samples(signer.call_counts)).decode()
    assert 'goatherd_signer_invalid_signatures_total{signer="scripted"} 1.0' in text
    assert 'goatherd_signer_calls_total{operation="sign",outcome="ok",signer="scripted"} 1.0' in text
    assert 'goatherd_signer_retries_total{operation="sign",signer="scripted"} 1.0' in text


async def test_the_pinned_key_decides_and_not_the_signer_s() -> None:
    signer = verified(Scripted(key=PrivateKey.generate()), pinned=KEY.public_key)
    with pytest.raises(SignerWrongKeyError):
        await signer.sign(b"text")
    with pytest.raises(SignerWrongKeyError):
        await signer.check_key()


async def test_a_pinned_key_is_not_asked_for() -> None:
    plugin = Scripted()
    await verified(plugin, pinned=KEY.public_key).sign(b"text")
    assert plugin.reads == 0


async def test_without_a_pinned_key_the_first_one_is_pinned_and_asked_for_once() -> None:
    plugin = Scripted()
    signer = verified(plugin)
    await signer.sign(b"one")
    await signer.sign(b"two")
    assert plugin.reads == 1
    plugin._key = PrivateKey.generate()
    with pytest.raises(SignerWrongKeyError):
        await signer.sign(b"three")


async def test_a_throttled_call_waits_as_long_as_the_platform_asks() -> None:
    plugin = Scripted()
    plugin._script = [of(plugin, SignerThrottledError, retry_after=2.5)]
    clock = Instant()
    await VerifiedSigner(plugin, clock=clock).sign(b"text")
    assert clock.slept == [2.5]


async def test_a_delay_past_the_deadline_ends_the_call_at_once() -> None:
    plugin = Scripted()
    plugin._script = [of(plugin, SignerThrottledError, retry_after=3600.0)]
    with pytest.raises(SignerThrottledError) as caught:
        await verified(plugin).sign(b"text")
    assert caught.value.retry_after == 3600.0
    assert plugin.attempts == 1


@pytest.mark.parametrize("kind", [SignerThrottledError, SignerUnavailableError])
async def test_what_may_pass_is_retried_and_then_reported(kind: type[SignerError]) -> None:
    plugin = Scripted()
    plugin._script = [of(plugin, kind) for _ in range(9)]
    with pytest.raises(kind):
        await verified(plugin, policy=SigningPolicy(retry=RetryPolicy(attempts=3))).sign(b"text")
    assert plugin.attempts == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda plugin: of(plugin, SignerAccessDeniedError),
        lambda plugin: of(plugin, SignerUnavailableError, final=True),
    ],
)
async def test_what_cannot_pass_is_not_retried(make: Callable[[Scripted], SignerError]) -> None:
    plugin = Scripted()
    plugin._script = [make(plugin)]
    with pytest.raises(SignerError):
        await verified(plugin).sign(b"text")
    assert plugin.attempts == 1


async def test_a_call_ends_at_its_deadline() -> None:
    class Hanging(Scripted):
        async def sign(self, text: bytes) -> bytes:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    policy = SigningPolicy(timeout=timedelta(milliseconds=20))
    with pytest.raises(SignerUnavailableError, match=r"no answer within 0\.02 s"):
        await verified(Hanging(), policy=policy).sign(b"text")


async def test_a_plugin_s_own_exception_is_named_and_not_quoted() -> None:
    signer = verified(Scripted(ValueError("PIN 1234")))
    with pytest.raises(SignerError, match="the plugin failed with ValueError at test_verified") as caught:
        await signer.sign(b"text")
    assert "1234" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert signer.call_counts.ended["sign", "signer.failed"] == 1


async def test_a_configuration_error_of_a_plugin_becomes_the_signer_s() -> None:
    with pytest.raises(SignerConfigurationError, match="no such file") as caught:
        await verified(Scripted(ConfigurationError("no such file", hint="Make it."))).sign(b"text")
    assert caught.value.hint == "Make it."


async def test_a_text_that_is_too_long_is_not_sent() -> None:
    plugin = Scripted(longest=4)
    with pytest.raises(SignerConfigurationError, match="the text has 5 bytes; the signer takes 4"):
        await verified(plugin).sign(b"12345")
    assert plugin.attempts == 0
    await verified(plugin).sign(b"1234")
    assert plugin.attempts == 1


def test_every_error_of_signers_is_an_outcome_that_is_counted() -> None:
    outcomes = possible_outcomes(SignerError)
    assert {"ok", "cancelled", "signer.failed", "signer.invalid_signature", "signer.throttled"} <= set(outcomes)
    assert not [outcome for outcome in outcomes if outcome.startswith("provider.")]


# --- the creation of a key --------------------------------------------------------------------------------------------


class Creating(Scripted):
    """A signer whose `create_key`, and then each read of its public key, does what the script says."""

    def __init__(self, *reads: SignerError, creation: BaseException | None = None, forever: bool = False) -> None:
        super().__init__()
        self._reads = list(reads)
        self._creation = creation
        self._forever = forever
        self.created = 0

    async def create_key(self) -> None:
        self.created += 1
        if self._creation is not None:
            raise self._creation

    async def public_key(self) -> SignerKey:
        if self._reads:
            self.reads += 1
            raise self._reads[0] if self._forever else self._reads.pop(0)
        return await super().public_key()


async def test_a_new_key_is_read_until_the_platform_has_it_ready() -> None:
    plugin, clock, waits = Creating(), FakeClock(), list[timedelta]()
    plugin._reads = [
        of(plugin, SignerKeyNotFoundError),
        of(plugin, SignerUnavailableError),
        of(plugin, SignerThrottledError, retry_after=7),
    ]
    signer = VerifiedSigner(plugin, clock=clock)
    assert (await signer.create_key(waits.append)).public_key == KEY.public_key
    assert (plugin.created, plugin.reads) == (1, 4)
    assert [pause.total_seconds() for pause in clock.slept] == [2, 2, 7]
    assert waits == [timedelta(seconds=30)]
    KEY.public_key.verify(await signer.sign(b"text"), b"text")
    assert plugin.reads == 4  # the key is pinned
    assert signer.call_counts.ended["create_key", "ok"] == 1


async def test_a_key_that_is_ready_at_once_is_not_waited_for() -> None:
    clock, waits = FakeClock(), list[timedelta]()
    await VerifiedSigner(Creating(), clock=clock).create_key(waits.append)
    assert (clock.slept, waits) == ([], [])


@pytest.mark.parametrize("kind", [SignerKeyNotFoundError, SignerUnavailableError, SignerThrottledError])
async def test_a_key_that_is_not_ready_in_time_is_reported_as_created(kind: type[SignerError]) -> None:
    plugin, clock = Creating(forever=True), FakeClock()
    plugin._reads = [of(plugin, kind)]
    with pytest.raises(kind, match="the key was created, but is not ready after 30s: scripted") as caught:
        await VerifiedSigner(plugin, clock=clock).create_key()
    assert "run the command again without --create-key" in caught.value.hint
    assert plugin.created == 1
    assert clock.monotonic() == pytest.approx(30)


async def test_a_new_key_that_may_not_be_read_is_reported_as_created_and_not_waited_for() -> None:
    plugin, clock = Creating(), FakeClock()
    plugin._reads = [of(plugin, SignerAccessDeniedError)]
    with pytest.raises(SignerAccessDeniedError, match="the key was created, but cannot be read: scripted") as caught:
        await VerifiedSigner(plugin, clock=clock).create_key()
    assert "goatherd policy" in caught.value.hint
    assert "leave out --create-key" in caught.value.hint
    assert clock.slept == []


@pytest.mark.parametrize("kind", [SignerKeyExistsError, SignerUnavailableError, SignerThrottledError])
async def test_the_creation_of_a_key_is_tried_once(kind: type[SignerError]) -> None:
    plugin = Creating()
    plugin._creation = of(plugin, kind)
    with pytest.raises(kind) as caught:
        await verified(plugin).create_key()
    assert "was created" not in str(caught.value)
    assert (plugin.created, plugin.reads) == (1, 0)


async def test_who_may_not_create_a_key_is_not_sent_to_the_policy_that_signs() -> None:
    plugin = Creating()
    plugin._creation = of(plugin, SignerAccessDeniedError)
    with pytest.raises(SignerAccessDeniedError) as caught:
        await verified(plugin).create_key()
    assert "goatherd policy" not in caught.value.hint
    assert "what --create-key needs" in caught.value.hint


async def test_what_a_plugin_raises_while_it_creates_a_key_is_not_quoted() -> None:
    with pytest.raises(SignerError, match="the plugin failed with ValueError") as caught:
        await verified(Creating(creation=ValueError("PIN 1234"))).create_key()
    assert "1234" not in str(caught.value)


async def test_a_closed_signer_and_one_that_cannot_create_keys_create_none() -> None:
    with pytest.raises(SignerMisuseError, match="this signer cannot create keys"):
        await verified(Scripted()).create_key()
    plugin = Creating()
    signer = verified(plugin)
    await signer.aclose()
    with pytest.raises(SignerMisuseError, match="the signer is closed"):
        await signer.create_key()
    assert plugin.created == 0


# --- the forms of a signature -----------------------------------------------------------------------------------------


def der_of(raw: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(raw[:48]), int.from_bytes(raw[48:]))


def test_der_becomes_raw_with_a_short_number_padded() -> None:
    text = next(t for t in (str(i).encode() for i in range(5000)) if KEY.sign(t)[0] == 0)
    raw = KEY.sign(text)
    assert len(der_of(raw)) < 104
    assert raw_from_der(der_of(raw)) == raw
    KEY.public_key.verify(raw_from_der(der_of(raw)), text)


async def test_a_high_s_is_accepted_as_webcrypto_accepts_it() -> None:
    raw = KEY.sign(b"text")
    s = int.from_bytes(raw[48:])
    other = raw[:48] + (ORDER - s).to_bytes(48)
    assert max(s, ORDER - s) > ORDER // 2
    for form in (raw, other):
        assert await verified(Scripted(form)).sign(b"text") == form
        assert raw_from_der(der_of(form)) == form


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"0",
        hashlib.sha384(b"x").digest(),
        der_of(WRONG)[:-1],
        der_of(WRONG) + b"\x00",
        encode_dss_signature(1, 1 << 400),
    ],
    ids=["empty", "a digit", "a digest", "cut", "longer", "a large number"],
)
def test_what_is_no_signature_in_der_is_refused(bad: bytes) -> None:
    with pytest.raises(DecodeError):
        raw_from_der(bad)


def test_the_order_that_the_tests_use_is_the_curve_s() -> None:
    r, s = decode_dss_signature(der_of(WRONG))
    assert 0 < r < ORDER
    assert 0 < s < ORDER
