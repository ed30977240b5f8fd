"""Read this machine's clock, and compare other machines' clocks with it. No other module reads the time.

Pure modules get the time as an argument; other modules get a `Clock`, which tests can replace.
"""

from __future__ import annotations

import time
from datetime import UTC, timedelta
from typing import Final, Protocol

from goatherd.event_loop import find_running_loop

_SECOND_MS: Final = 1000


class Clock(Protocol):
    """The interface of a clock: it returns the time, measures durations, and waits."""

    def now_ms(self) -> int:
        """Return the time in whole milliseconds since 1970, like JavaScript's ``Date.now()``."""
        ...

    def monotonic(self) -> float:
        """Return the seconds of a clock that never goes back; only differences are meaningful."""
        ...

    async def sleep(self, duration: timedelta) -> None:
        """Wait for `duration`."""
        ...


class SystemClock:
    """The clock of this machine's operating system."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, duration: timedelta) -> None:
        if find_running_loop() is None:
            time.sleep(duration.total_seconds())  # noqa: ASYNC251 - without a loop, nothing else can run meanwhile
            return
        import asyncio  # here, since a short command has no event loop and does not import it

        await asyncio.sleep(duration.total_seconds())


class SteadyClock:
    """A clock that setting the system clock does not affect: the time at its creation plus the monotonic time since.

    Args:
        clock: The underlying clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_ms = clock.now_ms()
        self._began = clock.monotonic()

    def now_ms(self) -> int:
        return self._began_ms + round((self._clock.monotonic() - self._began) * 1000)

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, duration: timedelta) -> None:
        await self._clock.sleep(duration)


class RemoteClock:
    """Another machine's clock, estimated from the ``Date`` header of its last answer.

    Args:
        clock: This machine's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: tuple[int, float, float] | None = None

    def note_date(self, date: str | None, *, began: float) -> None:
        """Record the ``Date`` header of an answer (RFC 9110, 6.6.1). A missing or unreadable header changes nothing.

        Args:
            date: The value of the header.
            began: Result of `Clock.monotonic` from before the request was sent.
        """
        told_ms = read_http_date(date)
        if told_ms is not None:
            self._seen = told_ms, began, self._clock.monotonic()

    def ahead_ms(self, now_ms: int) -> int | None:
        """Return by how many milliseconds the other machine's clock is at least ahead of `now_ms`, or behind it.

        The true difference may be larger by the header's rounding (a second) and the duration of the request.

        Args:
            now_ms: This machine's time, in milliseconds since 1970.

        Returns:
            Milliseconds: positive if the other clock is ahead, negative if it is behind; None if no answer had a date.
        """
        if self._seen is None:
            return None
        told_ms, began, ended = self._seen
        since_ms = round((self._clock.monotonic() - ended) * 1000)
        earliest_ms = told_ms + since_ms
        latest_ms = earliest_ms + _SECOND_MS + round((ended - began) * 1000)
        return max(0, earliest_ms - now_ms) or min(0, latest_ms - now_ms)


def read_http_date(header: str | None) -> int | None:
    """Parse an HTTP date into milliseconds since 1970; return None if the header is missing or no date."""
    if not header or len(header) > 64:
        return None
    from email.utils import parsedate_to_datetime  # here, since it takes long to import

    try:
        date = parsedate_to_datetime(header)
        return round(date.replace(tzinfo=date.tzinfo or UTC).timestamp() * 1000)
    except (TypeError, ValueError, OverflowError):
        return None
