"""Find out whether this machine's clock is wrong: compare it with the clocks of the store and of the servers.

Pure: the differences between the clocks are arguments. `goatherd.rotation.obstacles` stops a rotation if a clock is
wrong.

Rules:
1. The store is trusted: if it reports the time, its clock decides. If it does not (a file store), this machine's clock
   must agree with the majority of all clocks, its own included. So a single lying server cannot stop a rotation.
2. An unknown clock is ignored. If no other clock is known, this machine's clock is assumed to be right.
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
        servers_ahead_ms: How far the clock of each server that reports its time is ahead of this machine's, by URL.
        tolerance: Clocks that differ by more than this count as different.
    """

    store_ahead_ms: int | None
    servers_ahead_ms: Mapping[str, int]
    tolerance: timedelta

    @property
    def is_ours_wrong(self) -> bool:
        """Whether this machine's clock is wrong, judged by the clocks of the store and the servers."""
        if self.store_ahead_ms is not None:
            return self.differs(self.store_ahead_ms)
        differing = sum(map(self.differs, self.servers_ahead_ms.values()))
        return 2 * differing >= len(self.servers_ahead_ms) + 1

    @property
    def is_ours_confirmed(self) -> bool:
        """Whether the clock of the store or of a server confirms that this machine's clock is right."""
        return (self.store_ahead_ms is not None or bool(self.servers_ahead_ms)) and not self.is_ours_wrong

    def describe_differences(self) -> tuple[str, ...]:
        """Return a human-readable line for each clock that differs from this machine's clock."""
        seen = [(THE_STORE, self.store_ahead_ms), *self.servers_ahead_ms.items()]
        return tuple(
            describe_difference(name, ahead_ms)
            for name, ahead_ms in seen
            if ahead_ms is not None and self.differs(ahead_ms)
        )

    def differs(self, ahead_ms: int) -> bool:
        """Return whether a clock that is `ahead_ms` ahead of this machine's clock counts as different."""
        return timedelta(milliseconds=abs(ahead_ms)) > self.tolerance


def describe_difference(name: str, ahead_ms: int) -> str:
    """Return a sentence that states how far a clock is ahead of this machine's clock, or behind it."""
    where = "ahead of" if ahead_ms > 0 else "behind"
    return f"the clock of {name} is {describe_span(abs(ahead_ms))} {where} this machine's"


def describe_span(milliseconds: int) -> str:
    """Return a human-readable duration."""
    for unit, size in (("days", 86_400_000), ("hours", 3_600_000)):
        if milliseconds >= 2 * size:
            return f"{milliseconds / size:.1f} {unit}"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
