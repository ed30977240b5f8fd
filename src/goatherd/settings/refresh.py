"""Decide when to read the store: at intervals, less often while it fails, and at once when it reports a change.

`StoreRefresher` reads the store through a circuit breaker (`goatherd.providers.breaker`), in a loop.

Rules:
- A poll (a read at an interval) makes at most two attempts, since another poll follows.
- After a failed read the breaker is open: the next poll is delayed, and each read makes only one attempt.
- While the breaker is open, a read that a caller requests is not delayed, but made at most once every few seconds.
- A watch (the store's notifications) only reports that the value has changed; the value is then read as in a poll. If
  the watch fails, the next poll detects the change.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.errors import ProviderError, UnavailableError
from goatherd.providers.base import SecretProvider
from goatherd.providers.breaker import Breaker, new_breaker
from goatherd.providers.capabilities import WatchableSecretProvider
from goatherd.providers.values import CURRENT, SecretValue
from goatherd.telemetry import Event, event_text

POLL_ATTEMPTS: Final = 2
SAFETY_FACTOR: Final = 10
"""While a watch is active, the store is polled only at every tenth interval, in case a notification was lost."""
PUSH_SPREAD: Final = timedelta(milliseconds=500)
"""All servers are notified at once; each reads after a random delay of at most this."""

_log = logging.getLogger("goatherd.settings")
_RANDOM = secrets.SystemRandom()


class StoreRefresher:
    """Reads one secret of a store, at intervals and whenever the store reports a change.

    Args:
        provider: The store.
        secret_id: Id of the secret.
        interval: Time between two polls.
        jitter: By which fraction of the interval a pause may be shorter or longer, from 0 to 1.
        breaker: The circuit breaker of this secret.
        clock: Supplies the current time.
    """

    def __init__(
        self,
        *,
        provider: SecretProvider,
        secret_id: str,
        interval: timedelta,
        jitter: float,
        breaker: Breaker,
        clock: Clock,
    ) -> None:
        self._provider = provider
        self._secret_id = secret_id
        self._name = f"{provider.scheme} secret {secret_id}"
        self._interval = interval
        self._jitter = jitter
        self._breaker = breaker
        self._clock = clock
        self._is_outdated = asyncio.Event()
        self.is_watching = False

    @property
    def is_open(self) -> bool:
        """Whether the circuit breaker of the store is open, which means that the last call to the store failed."""
        return self._breaker.is_open

    @property
    def longest_pause(self) -> timedelta:
        """Maximum time between two polls of a store that answers; ten times as long while the store reports changes."""
        return self._interval * (1 + self._jitter) * (SAFETY_FACTOR if self.is_watching else 1)

    def admits_call(self) -> bool:
        """Return whether the circuit breaker allows a call to the store now."""
        return self._breaker.admits_call(self._clock.monotonic())

    async def read_store(self, *, is_requested: bool) -> SecretValue:
        """Read the current version of the secret from the store.

        If it is too early for another call after a failure, raise the last call's error again.

        Args:
            is_requested: Whether a caller waits for the answer; otherwise the call is a poll, and another one follows.

        Raises:
            ProviderError: The store did not answer or refused, now or at the last call.
        """
        breaker = self._breaker
        now = self._clock.monotonic()
        was_open = breaker.error
        if was_open is not None and not breaker.admits_call(now):
            raise was_open.with_traceback(None)
        breaker.record_call(now)
        attempts = 1 if was_open else None if is_requested else POLL_ATTEMPTS
        try:
            found = await self._provider.read(self._secret_id, CURRENT, attempts=attempts)
        except ProviderError as error:
            breaker.record_failure(self._clock.monotonic(), error)
            if not was_open:
                wait = breaker.time_to_probe(self._clock.monotonic())
                self._report_change(
                    Event.SETTINGS_BREAKER_OPENED, code=error.code, probe_in=f"{wait.total_seconds():.0f}s"
                )
            raise
        breaker.record_success()
        if was_open:
            self._report_change(Event.SETTINGS_BREAKER_CLOSED)
        return found

    async def run(self, poll: Callable[[], Awaitable[object]]) -> None:
        """Call `poll` at every interval and whenever the store reports a change, until cancelled.

        `poll` must not raise.
        """
        async with asyncio.TaskGroup() as group:
            if isinstance(self._provider, WatchableSecretProvider):
                provider, secret_id = self._provider, self._secret_id
                group.create_task(
                    self._keep_watching(lambda: provider.watch(secret_id), poll), name=f"watch {self._name}"
                )
            while True:
                if await self._wait_or_wake(self._next_pause()) and not self._breaker.time_to_probe(
                    self._clock.monotonic()
                ):
                    await poll()

    def _next_pause(self) -> timedelta:
        if self._breaker.is_open:
            return self._breaker.time_to_probe(self._clock.monotonic())
        # Random, so that servers that started together do not keep polling together.
        spread = _RANDOM.uniform(1 - self._jitter, 1 + self._jitter)
        return self._interval * spread * (SAFETY_FACTOR if self.is_watching else 1)

    async def _wait_or_wake(self, pause: timedelta) -> bool:
        """Wait for `pause` and return True; return False early if an event has changed how long to wait."""
        self._is_outdated.clear()
        sleep = asyncio.ensure_future(self._clock.sleep(pause))
        change = asyncio.ensure_future(self._is_outdated.wait())
        try:
            await asyncio.wait({sleep, change}, return_when=asyncio.FIRST_COMPLETED)
            return sleep.done()
        finally:
            sleep.cancel()
            change.cancel()

    async def _keep_watching(
        self, watch: Callable[[], AsyncIterator[None]], poll: Callable[[], Awaitable[object]]
    ) -> None:
        # A watch that breaks immediately each time must not flood the store with requests.
        backoff = new_breaker(self._interval)
        while True:
            began = self._clock.monotonic()
            error = await self._watch_store(watch, poll)
            if self._clock.monotonic() - began >= self._interval.total_seconds():
                backoff.record_success()
                if error is None:
                    continue  # stores end a watch every few minutes
            is_news = not backoff.is_open
            error = error or self._watch_error("the watch ended immediately")
            backoff.record_failure(self._clock.monotonic(), error)
            self.is_watching = False
            self._is_outdated.set()
            if is_news:
                self._report_change(Event.SETTINGS_WATCH_LOST, code=error.code, message=error)
            await self._clock.sleep(backoff.time_to_probe(self._clock.monotonic()))

    async def _watch_store(
        self, watch: Callable[[], AsyncIterator[None]], poll: Callable[[], Awaitable[object]]
    ) -> ProviderError | None:
        """Call `poll` at each change that the store reports, until the watch ends.

        Return the error that ended it, if any.
        """
        hints: AsyncIterator[None] | None = None
        try:
            hints = watch()  # a method that is no generator may fail here
            async for _ in hints:
                if not self.is_watching:
                    self.is_watching = True
                    self._report_change(Event.SETTINGS_WATCHING)
                await self._clock.sleep(PUSH_SPREAD * _RANDOM.random())
                await poll()
        except ProviderError as error:
            return error
        except Exception as error:  # noqa: BLE001 - without the watch there are the polls; without this task, neither
            # SECURITY: the message of a plugin's exception is not shown, because it may quote the value
            # (tests/unit/settings/test_watching.py).
            return self._watch_error(f"the plugin failed with {type(error).__name__}")
        finally:
            if isinstance(hints, AsyncGenerator):
                await hints.aclose()
        return None

    def _watch_error(self, message: str) -> UnavailableError:
        return UnavailableError(message, provider=self._provider.scheme, secret_id=self._secret_id, operation="watch")

    def _report_change(self, event: Event, **fields: object) -> None:
        self._is_outdated.set()
        level = logging.WARNING if event in (Event.SETTINGS_BREAKER_OPENED, Event.SETTINGS_WATCH_LOST) else logging.INFO
        _log.log(level, event_text(event, source=self._name, **fields))
