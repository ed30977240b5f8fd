"""When a store that failed may be asked again.

What it is: a circuit breaker over one secret, with backoff, and the memory of the answer while it is open. Pure: the
time and the dice are handed in. What it is not: a retry. It repeats nothing; whoever asks, asks through it, and the
repeats of one call stay in `goatherd.providers.base`.

Rules: one failed call opens it, since that call has been repeated in vain already; "not found" and "denied" are kept as
well as "unavailable"; every pause is drawn anew from nothing to twice the last longest one, up to the cap, so that many
nodes that failed together do not come back together; a word from outside gets through an open breaker, but no more than
once in a short while.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from goatherd.errors import ProviderError, ThrottledError

CAP: Final = timedelta(minutes=5)
GAP: Final = timedelta(seconds=5)


class Breaker:
    """Closed while the store answers; open after a failure, with a time for the next probe.

    Args:
        first: The longest first pause.
        cap: The longest pause.
        gap: The shortest time between two calls while open, whoever asks.
        roll: Returns a number from 0 to 1.
    """

    def __init__(self, *, first: timedelta, cap: timedelta, gap: timedelta, roll: Callable[[], float]) -> None:
        self._first, self._cap, self._gap = first.total_seconds(), cap.total_seconds(), gap.total_seconds()
        self._roll = roll
        self._failures = 0
        self._asked_at = 0.0
        self._due_at = 0.0
        self._error: ProviderError | None = None

    @property
    def error(self) -> ProviderError | None:
        """The last failure, while open."""
        return self._error

    @property
    def is_open(self) -> bool:
        """Whether the last call failed."""
        return self._error is not None

    def admits(self, now: float) -> bool:
        """Whether the store may be asked at `now` (seconds on a monotonic clock)."""
        return self._error is None or now >= self._due_at or now - self._asked_at >= self._gap

    def wait(self, now: float) -> timedelta:
        """Return how long until the next probe; nothing while closed. After that, `admits` is true."""
        if not self.is_open:
            return timedelta(0)
        # Up to the next microsecond: rounded down to nothing, it would have its caller ask again and again in vain.
        return timedelta(microseconds=max(0, math.ceil((self._due_at - now) * 1e6)))

    def asked(self, now: float) -> None:
        """Remember that a call begins."""
        self._asked_at = now

    def succeeded(self) -> None:
        """Close: the store has answered with a value."""
        self._failures, self._error = 0, None

    def failed(self, now: float, error: ProviderError) -> None:
        """Open, or stay open for longer.

        Args:
            now: When the call had ended.
            error: What came of it. Where the store said how long to wait, no probe comes earlier, and not all of them
                at that moment.
        """
        longest = min(self._cap, self._first * 2.0 ** min(self._failures, 30))
        pause = longest * self._roll()
        if isinstance(error, ThrottledError) and error.retry_after is not None:
            pause += min(error.retry_after, self._cap)
        self._failures += 1
        self._asked_at, self._due_at, self._error = now, now + pause, error
