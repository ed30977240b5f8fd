"""The circuit breaker alone, and the load that one server puts on a failing store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from goatherd.errors import (
    ProviderAccessDeniedError,
    ProviderError,
    SecretNotFoundError,
    ThrottledError,
    UnavailableError,
)
from goatherd.identity.document import encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document, prepare_rotation
from goatherd.providers.base import Call, RetryPolicy
from goatherd.providers.breaker import CAP, GAP, Breaker
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import Label, SecretValue, VersionId
from goatherd.settings.store import CloudSecretSettings

from .make import NOW, SECRET, CountingProvider, HandClock, settle, store_with

EVERY = timedelta(seconds=30)
A = OwnedSession.generate(session_id="a" * 24, owner="root", now_ms=NOW)
B = OwnedSession.generate(session_id="b" * 24, owner="root", now_ms=NOW)
FIRST = create_document(A, NOW)
PREPARED = prepare_rotation(FIRST, B, now_ms=NOW, rotation_id="r1", started_by="alice", stable_version="1")


def error(kind: type[ProviderError] = UnavailableError) -> ProviderError:
    return kind("away", provider="memory", secret_id=SECRET, operation="read")


def breaker(roll: float = 1.0, *, gap: float = 5) -> Breaker:
    return Breaker(first=timedelta(seconds=60), cap=timedelta(minutes=5), gap=timedelta(seconds=gap), roll=lambda: roll)


def test_pauses_double_up_to_the_cap_and_begin_anew_after_a_success() -> None:
    one = breaker()
    pauses = []
    for _ in range(5):
        one.record_failure(1000, error())
        pauses.append(one.time_to_probe(1000).total_seconds())
    assert pauses == [60, 120, 240, 300, 300]
    one.record_success()
    assert not one.is_open
    assert one.time_to_probe(1000) == timedelta(0)
    one.record_failure(1000, error())
    assert one.time_to_probe(1000) == timedelta(seconds=60)


def test_the_jitter_is_full_from_nothing_to_the_longest_pause() -> None:
    for roll in (0.0, 0.25, 1.0):
        one = breaker(roll)
        one.record_failure(1000, error())
        assert one.time_to_probe(1000) == timedelta(seconds=60 * roll)


def test_a_store_that_fails_for_weeks_does_not_overflow_the_pause() -> None:
    one = breaker()
    for _ in range(5000):
        one.record_failure(1000, error())
    assert one.time_to_probe(1000) == timedelta(minutes=5)


def test_a_word_from_outside_gets_through_once_in_a_short_while() -> None:
    one = breaker()
    one.record_failure(1000, error())
    assert [one.admits_call(1000 + later) for later in (0, 4.9, 5, 59)] == [False, False, True, True]
    one.record_call(1005)
    assert [one.admits_call(1005 + later) for later in (0, 4.9, 5)] == [False, False, True]
    assert one.admits_call(1060), "the probe is due"


@pytest.mark.parametrize(("hint", "least"), [(90.0, 90), (None, 0), (1e9, 300)])
def test_no_probe_comes_before_the_store_wants_it_and_not_all_of_them_at_that_moment(
    hint: float | None, least: float
) -> None:
    throttled = error(ThrottledError)
    assert isinstance(throttled, ThrottledError)
    throttled.retry_after = hint
    waits = []
    for roll in (0.0, 1.0):
        one = breaker(roll)
        one.record_failure(1000, throttled)
        waits.append(one.time_to_probe(1000).total_seconds())
    assert waits == [least, least + 60]


# --- in front of a store --------------------------------------------------------------------------------------------


@pytest.fixture
async def provider() -> CountingProvider:
    return await store_with(FIRST)


@pytest.fixture
async def settings(provider: CountingProvider, clock: HandClock) -> AsyncIterator[CloudSecretSettings]:
    async with CloudSecretSettings(provider, SECRET, clock=clock, jitter=0) as settings:
        await settings.load()
        await settle()
        provider.reads = 0
        yield settings


@pytest.mark.parametrize("kind", [UnavailableError, SecretNotFoundError, ProviderAccessDeniedError])
async def test_however_often_it_is_told_a_failing_store_is_asked_once_in_a_short_while(
    settings: CloudSecretSettings, provider: CountingProvider, clock: HandClock, kind: type[ProviderError]
) -> None:
    provider.failures = [kind] * 100
    for _ in range(50):
        assert await settings.refresh() is False
    assert provider.reads == 1
    status = settings.status
    assert status.is_backing_off
    assert status.failures == 1, "what did not reach the store did not fail there"
    assert status.is_degraded
    assert status.last_refusal is not None
    assert status.last_refusal.code == kind.code
    for _ in range(10):
        await clock.turn(GAP)
        await settings.refresh()
        await settings.refresh()
    assert provider.reads <= 21, "once a gap, and the probes of its own"


async def test_told_at_once_after_the_stores_return_is_seen_at_once_and_the_usual_interval_is_back(
    settings: CloudSecretSettings, provider: CountingProvider, clock: HandClock
) -> None:
    provider.failures = [UnavailableError] * 6
    await clock.turn(EVERY)
    for _ in range(5):
        await clock.turn(CAP)
    assert provider.failures == []
    provider.reads = 0
    await provider.put(PREPARED)
    await clock.turn(GAP)
    await settings.refresh()
    assert settings.settings.document == PREPARED
    assert not settings.status.is_backing_off
    await settle()
    provider.reads = 0
    await clock.turn(EVERY)
    assert provider.reads == 1


async def test_a_poll_makes_two_attempts_a_probe_one_and_who_waits_for_an_answer_gets_them_all(
    clock: HandClock,
) -> None:
    attempts: list[int] = []

    class Away(MemorySecretProvider):
        is_away = False

        async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
            attempts.append(call.attempt)
            if self.is_away:
                raise call.error(UnavailableError, "away")
            return await super()._read(call, at)

    moment = timedelta(milliseconds=1)
    provider = Away(retry=RetryPolicy(base=moment, cap=moment))
    await provider.create(SECRET, encode_document(FIRST))
    async with CloudSecretSettings(provider, SECRET, clock=clock, jitter=0) as settings:
        await settings.load()
        await settle()
        provider.is_away = True
        attempts.clear()
        await settings.refresh()
        assert attempts == [1, 2, 3, 4, 5]
        attempts.clear()
        await clock.turn(GAP)
        await settings.refresh()
        assert attempts == [1]
        provider.is_away = False
        await clock.turn(GAP)
        await settings.refresh()
        provider.is_away = True
        attempts.clear()
        await settle()
        await clock.turn(EVERY)
        while not settings.status.is_backing_off:
            await provider.clock.sleep(moment)
        assert attempts == [1, 2]


async def test_an_organization_that_cannot_be_read_is_not_asked_for_at_every_request(clock: HandClock) -> None:
    """A server opens an organization again at each request until that succeeds."""
    provider = CountingProvider()
    cluster = CloudSecretSettings(provider, "goatdb/{org}/root", clock=clock)
    for _ in range(100):
        async with cluster.for_org("nobody") as settings:
            with pytest.raises(SecretNotFoundError):
                await settings.load()
    assert provider.reads == 1
    await provider.create("goatdb/nobody/root", encode_document(FIRST))
    await clock.turn(GAP)
    async with cluster.for_org("nobody") as settings:
        assert (await settings.load()).current == A


async def test_the_memory_of_organizations_is_bounded_and_one_does_not_stand_in_for_another(clock: HandClock) -> None:
    provider = CountingProvider()
    cluster = CloudSecretSettings(provider, "goatdb/{org}/root", clock=clock)
    for number in range(1100):
        cluster.for_org(f"org{number}")
    assert len(cluster._breakers) <= 1000
    with pytest.raises(SecretNotFoundError):
        await cluster.for_org("north").load()
    await provider.create("goatdb/south/root", encode_document(FIRST))
    assert (await cluster.for_org("south").load()).current == A
