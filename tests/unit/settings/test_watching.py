"""A store that reports changes: it is not polled constantly, and its reports are not trusted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from goatherd.errors import ProviderAccessDeniedError, ProviderError, UnavailableError
from goatherd.identity.document import encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document, prepare_rotation
from goatherd.providers.breaker import CAP
from goatherd.providers.capabilities import WatchableSecretProvider
from goatherd.settings.refresh import PUSH_SPREAD
from goatherd.settings.store import CloudSecretSettings

from .make import NOW, SECRET, CountingProvider, HandClock, settle

EVERY = timedelta(seconds=30)
A = OwnedSession.generate(session_id="a" * 24, owner="root", now_ms=NOW)
B = OwnedSession.generate(session_id="b" * 24, owner="root", now_ms=NOW)
FIRST = create_document(A, NOW)
PREPARED = prepare_rotation(FIRST, B, now_ms=NOW, rotation_id="r1", started_by="alice", stable_version="1")


class Telling(CountingProvider):
    """A store whose hints come from `queue`: None ends the watch, an error breaks it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self.watches = 0
        self.open = 0
        self.refusal: BaseException | None = None
        self.made: list[AsyncIterator[None]] = []  # kept, so that only the watcher can close them

    def watch(self, secret_id: str) -> AsyncIterator[None]:
        self.made.append(self._watch())
        return self.made[-1]

    async def _watch(self) -> AsyncIterator[None]:
        self.watches += 1
        if self.refusal is not None:
            raise self.refusal
        self.open += 1
        try:
            yield
            while (hint := await self.queue.get()) is not None:
                if isinstance(hint, BaseException):
                    raise hint
                yield
        finally:
            self.open -= 1


def error(kind: type[ProviderError] = UnavailableError) -> ProviderError:
    return kind("the watch broke", provider="memory", secret_id=SECRET, operation="watch")


@pytest.fixture
async def provider() -> Telling:
    provider = Telling()
    await provider.create(SECRET, encode_document(FIRST))
    return provider


@pytest.fixture
async def settings(provider: Telling, clock: HandClock) -> AsyncIterator[CloudSecretSettings]:
    async with CloudSecretSettings(provider, SECRET, clock=clock, jitter=0) as settings:
        await settings.load()
        await settle()
        await clock.turn(PUSH_SPREAD)
        provider.reads = 0
        yield settings
    assert provider.open == 0, "leaving closes the watch"


async def test_a_change_is_taken_over_when_the_store_tells_of_it(
    settings: CloudSecretSettings, provider: Telling, clock: HandClock
) -> None:
    assert isinstance(provider, WatchableSecretProvider)
    assert settings.status.is_watching
    await provider.put(PREPARED)
    provider.queue.put_nowait("changed")
    await settle()
    assert provider.reads == 0, "servers that got the same report do not all read at once"
    await clock.turn(PUSH_SPREAD)
    assert settings.settings.document == PREPARED
    assert provider.reads == 1


async def test_a_watch_is_closed_if_the_server_stops_before_it_has_read_what_was_reported(
    provider: Telling, clock: HandClock
) -> None:
    async with CloudSecretSettings(provider, SECRET, clock=clock, jitter=0) as settings:
        await settings.load()
        await settle()
        assert provider.open == 1
    assert provider.open == 0


async def test_the_store_is_not_read_for_settings_that_were_not_loaded_and_that_is_no_failure(
    provider: Telling, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with CloudSecretSettings(provider, SECRET, clock=clock, jitter=0):
        await settle()
        await clock.turn(PUSH_SPREAD)
        await clock.turn(10 * EVERY)
    assert "settings.unreachable" not in caplog.text
    assert provider.reads == 0


async def test_while_the_watch_stands_the_store_is_polled_seldom_but_polled(
    settings: CloudSecretSettings, provider: Telling, clock: HandClock
) -> None:
    for _ in range(9):
        await clock.turn(EVERY)
    assert provider.reads == 0
    assert settings.status.view_interval == 10 * EVERY, "by which `goatherd doctor` knows that this view is not stale"
    await provider.put(PREPARED)  # of which the store forgets to tell
    await clock.turn(EVERY)
    assert provider.reads == 1
    assert settings.settings.document == PREPARED


@pytest.mark.parametrize("kind", [UnavailableError, ProviderAccessDeniedError])
async def test_a_store_without_its_watch_is_polled_as_any_other(
    settings: CloudSecretSettings,
    provider: Telling,
    clock: HandClock,
    kind: type[ProviderError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.refusal = error(kind)
    provider.queue.put_nowait(provider.refusal)
    await settle()
    assert not settings.status.is_watching
    assert settings.status.view_interval == EVERY
    assert "settings.watch_lost" in caplog.text
    assert kind.code in caplog.text
    assert "the watch broke" in caplog.text
    for _ in range(10):
        await clock.turn(EVERY)
    assert provider.reads == 10
    assert provider.watches <= 8, "and the watch is not begun again and again"
    assert not settings.status.is_degraded
    provider.refusal = None
    await clock.turn(CAP)
    await clock.turn(CAP)
    assert settings.status.is_watching


async def test_a_watch_that_ends_is_begun_again_and_what_was_missed_is_seen(
    settings: CloudSecretSettings, provider: Telling, clock: HandClock
) -> None:
    await clock.turn(EVERY)
    await provider.put(PREPARED)
    provider.queue.put_nowait(None)
    await settle()
    assert provider.watches == 2
    await clock.turn(PUSH_SPREAD)
    assert settings.settings.document == PREPARED
    assert settings.status.is_watching


@pytest.mark.slow
async def test_a_watch_that_ends_at_once_every_time_is_no_storm(
    settings: CloudSecretSettings, provider: Telling, clock: HandClock
) -> None:
    for _ in range(1000):
        provider.queue.put_nowait(None)
    began = provider.watches
    for _ in range(3600):
        await clock.turn(timedelta(seconds=1))
    assert provider.watches - began < 80
    assert provider.reads < 300


async def test_a_plugin_whose_watch_breaks_its_contract_does_not_stop_the_refresh(
    settings: CloudSecretSettings, provider: Telling, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    provider.refusal = ValueError("the value is hunter2")
    provider.queue.put_nowait(provider.refusal)
    await settle()
    await provider.put(PREPARED)
    await clock.turn(EVERY)
    assert settings.settings.document == PREPARED
    assert "failed with ValueError" in caplog.text
    assert "hunter2" not in caplog.text


class Refusing(CountingProvider):
    """A store whose `watch` is no generator, and fails at once."""

    refusal: Exception

    def watch(self, secret_id: str) -> AsyncIterator[None]:
        raise self.refusal


@pytest.mark.parametrize("refusal", [error(), ValueError("the value is hunter2")])
async def test_a_watch_that_fails_before_it_has_begun_does_not_stop_the_refresh(
    clock: HandClock, refusal: Exception
) -> None:
    provider = Refusing()
    provider.refusal = refusal
    assert isinstance(provider, WatchableSecretProvider)
    await provider.create(SECRET, encode_document(FIRST))
    async with CloudSecretSettings(provider, SECRET, clock=clock, jitter=0) as settings:
        await settings.load()
        await settle()
        await provider.put(PREPARED)
        await clock.turn(EVERY)
        assert settings.settings.document == PREPARED


async def test_a_failing_store_is_asked_ever_more_seldom_although_it_tells_of_changes(
    settings: CloudSecretSettings, provider: Telling, clock: HandClock
) -> None:
    provider.failures = [UnavailableError] * 10_000
    for _ in range(600):
        provider.queue.put_nowait("changed")
        await clock.turn(timedelta(seconds=1))
    assert provider.reads < 130, "once in the gap, and the probes"
