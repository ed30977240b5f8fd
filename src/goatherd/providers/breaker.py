"""A circuit breaker for calls to one secret of a store.

It is pure: the time and random numbers are arguments. It does not retry calls (`goatherd.providers.base` does).

Rules: one failed call opens the breaker, since the call's own retries have failed already. "Not found" and "access
denied" open it, too. Each pause is random, from zero to a maximum that doubles after each failure, up to a cap: so
servers that failed together do not retry together.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from goatherd.errors import ProviderError, ThrottledError

_RANDOM = secrets.SystemRandom()
CAP: Final = timedelta(minutes=5)
GAP: Final = timedelta(seconds=5)


class Breaker:
    """A circuit breaker for calls to a store: closed while the store answers, and open after a failed call.

    Attributes:
        error: The error of the last call to the store, while the circuit breaker is open; None while it is closed.

    Args:
        first: Maximum of the random pause after the first failure; it doubles with each further one.
        cap: Upper limit of that maximum.
        gap: The time after which an open breaker admits another call even before the pause has ended.
        roll: Returns a random number from 0 to 1.
    """

    def __init__(self, *, first: timedelta, cap: timedelta, gap: timedelta, roll: Callable[[], float]) -> None:
        self._first, self._cap, self._gap = first.total_seconds(), cap.total_seconds(), gap.total_seconds()
        self._roll = roll
        self._failures = 0
        self._asked_at = 0.0
        self._due_at = 0.0
        self.error: ProviderError | None = None

    @property
    def is_open(self) -> bool:
        """Whether the circuit breaker is open, which means that the last call to the store failed."""
        return self.error is not None

    def admits_call(self, now: float) -> bool:
        """Return whether the circuit breaker allows a call to the store at `now` (seconds on a monotonic clock)."""
        return self.error is None or now >= self._due_at or now - self._asked_at >= self._gap

    def time_to_probe(self, now: float) -> timedelta:
        """Return how long until the pause after the last failure ends, so that a probe is due; zero while closed."""
        if not self.is_open:
            return timedelta(0)
        # Round up to a microsecond: if the result were rounded down to zero, the caller would retry without a pause.
        return timedelta(microseconds=max(0, math.ceil((self._due_at - now) * 1e6)))

    def record_call(self, now: float) -> None:
        """Record that a call to the store has started."""
        self._asked_at = now

    def record_success(self) -> None:
        """Close the circuit breaker, because the store has answered with a value."""
        self._failures, self.error = 0, None

    def record_failure(self, now: float, error: ProviderError) -> None:
        """Open the circuit breaker after a failed call to the store, or keep it open for longer.

        Args:
            now: When the call ended, in seconds on a monotonic clock.
            error: The call's error. If the store said how long to wait, the next probe comes after that time plus a
                random delay.
        """
        longest = min(self._cap, self._first * 2.0 ** min(self._failures, 30))
        pause = longest * self._roll()
        if isinstance(error, ThrottledError) and error.retry_after is not None:
            pause += min(error.retry_after, self._cap)
        self._failures += 1
        self._asked_at, self._due_at, self.error = now, now + pause, error


def new_breaker(interval: timedelta) -> Breaker:
    """Return a circuit breaker for a store that is polled at `interval`."""
    return Breaker(first=2 * interval, cap=max(CAP, interval), gap=min(GAP, interval), roll=_RANDOM.random)
