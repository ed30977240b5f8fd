"""Find out whether this machine's clock is wrong: compare it with the clocks of the store and of the servers.

This module reads no clock: the differences between the clocks are arguments. `goatherd.rotation.obstacles` stops a
rotation if this machine's clock is wrong.

Rules:
1. The store is trusted: if it reports the time, its clock decides. If it does not (a file store), this machine's clock
   must agree with more than half of the clocks of this machine and the servers. So among several servers, a single one
   that reports a wrong time cannot stop a rotation.
2. A clock whose time is unknown is ignored. If no other clock is known, this machine's clock is assumed to be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

THE_STORE: Final = "the store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """How the clocks of the store and the servers differ from this machine's clock.

    Attributes:
        store_ahead_ms: How far the store's clock is ahead of this machine's, negative if behind; None if it is unknown.
        servers_ahead_ms: The same for each server, by URL.
        tolerance: A clock that differs from this machine's by more than this counts as different.
    """

    store_ahead_ms: int | None
    servers_ahead_ms: Mapping[str, int | None]
    tolerance: timedelta

    @property
    def is_ours_wrong(self) -> bool:
        """Whether this machine's clock is wrong, judged by the store's clock, or by the servers' if that is unknown."""
        if self.store_ahead_ms is not None:
            return self.differs(self.store_ahead_ms)
        known = [ahead_ms for ahead_ms in self.servers_ahead_ms.values() if ahead_ms is not None]
        return 2 * sum(map(self.differs, known)) >= len(known) + 1

    @property
    def is_ours_confirmed(self) -> bool:
        """Whether another clock is known, and the known clocks show that this machine's clock is right."""
        is_known = any(ahead_ms is not None for ahead_ms in (self.store_ahead_ms, *self.servers_ahead_ms.values()))
        return is_known and not self.is_ours_wrong

    def describe_differences(self) -> tuple[str, ...]:
        """Return a human-readable line for each clock that differs from this machine's clock."""
        seen = [(THE_STORE, self.store_ahead_ms), *self.servers_ahead_ms.items()]
        return tuple(
            describe_difference(name, ahead_ms)
            for name, ahead_ms in seen
            if ahead_ms is not None and self.differs(ahead_ms)
        )

    def differs(self, ahead_ms: int | None) -> bool:
        """Return whether a clock counts as different: `ahead_ms`, positive or negative, is more than the tolerance."""
        return ahead_ms is not None and timedelta(milliseconds=abs(ahead_ms)) > self.tolerance


def describe_difference(name: str, ahead_ms: int) -> str:
    """Return a sentence that states how far the clock of `name` is ahead of this machine's clock, or behind it."""
    where = "ahead of" if ahead_ms > 0 else "behind"
    return f"the clock of {name} is {describe_span(abs(ahead_ms))} {where} this machine's"


def describe_span(milliseconds: int) -> str:
    """Return a human-readable duration."""
    for unit, size in (("days", 86_400_000), ("hours", 3_600_000)):
        if milliseconds >= 2 * size:
            return f"{milliseconds / size:.1f} {unit}"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
