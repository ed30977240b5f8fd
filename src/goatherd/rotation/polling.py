"""The pauses and the deadline of a loop that polls the servers or the store until they reach an expected state."""

from __future__ import annotations

from datetime import timedelta

from goatherd.clock import Clock
from goatherd.rotation.policy import Policy
from goatherd.times import milliseconds


class Polling:
    """One wait. Each pause is twice the one before, from `Policy.poll_min` to `Policy.poll_max`.

    Args:
        clock: Tells the time, and sleeps.
        policy: The shortest and the longest pause.
        patience: How long to wait.

    Attributes:
        until_ms: The first deadline, in milliseconds since 1970.
    """

    def __init__(self, clock: Clock, policy: Policy, patience: timedelta = timedelta.max) -> None:
        self._clock, self._policy, self._patience = clock, policy, patience
        self.until_ms = clock.now_ms() + milliseconds(patience)
        self.extend()
        self.shorten()

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock.monotonic() >= self._deadline

    def extend(self) -> None:
        """Set the deadline again, from now on."""
        self._deadline = self._clock.monotonic() + self._patience.total_seconds()

    def shorten(self) -> None:
        """Let the next pause be the shortest one."""
        self._next = self._policy.poll_min

    async def pause(self, at_most: timedelta = timedelta.max) -> None:
        """Sleep until the loop should check again, for `at_most` this long."""
        await self._clock.sleep(min(self._next, at_most))
        self._next = min(self._next * 2, self._policy.poll_max)
