"""Whose clock is wrong: this machine's is compared with the store's and the servers' before anything is written.

Pure. What it is not: it asks nobody; it is given what the answers that are in hand have shown.

Rules:
1. The store is trusted, so its clock decides where it tells the time. Where it does not (a file), the servers' decide,
   and this machine's counts as one: it must be in the majority. So one server that lies stops nobody.
2. A clock that is not known says nothing. With none to compare with, this machine's is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from goatherd.errors import WrongClockError
from goatherd.rotation.action import Obstacle, ObstacleKind

THE_STORE: Final = "the store"
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """What other clocks show, each compared with this machine's.

    Attributes:
        store_ahead_ms: How far the store's clock is ahead of this machine's, below 0 behind; None where it tells none.
        servers_ahead_ms: The same for each server that tells its time, by URL.
        tolerance: Clocks that differ by more than this are not the same.
    """

    store_ahead_ms: int | None
    servers_ahead_ms: Mapping[str, int]
    tolerance: timedelta

    @property
    def is_ours_wrong(self) -> bool:
        """Whether this machine's clock is the one that is wrong, as far as can be told."""
        if self.store_ahead_ms is not None:
            return self._differs(self.store_ahead_ms)
        differing = sum(map(self._differs, self.servers_ahead_ms.values()))
        return 2 * differing >= len(self.servers_ahead_ms) + 1

    @property
    def is_ours_confirmed(self) -> bool:
        """Whether another clock shows that this machine's is right."""
        return (self.store_ahead_ms is not None or bool(self.servers_ahead_ms)) and not self.is_ours_wrong

    def describe_differences(self) -> tuple[str, ...]:
        """Return a line for each clock that differs from this machine's."""
        seen = [(THE_STORE, self.store_ahead_ms), *self.servers_ahead_ms.items()]
        return tuple(
            describe_difference(name, ahead_ms)
            for name, ahead_ms in seen
            if ahead_ms is not None and self._differs(ahead_ms)
        )

    def find_obstacle(self) -> Obstacle | None:
        """Return why nothing may be written with this machine's clock; None where it may."""
        if not self.is_ours_wrong:
            return None
        lines = self.describe_differences()
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        return Obstacle(
            kind=ObstacleKind.OWN_CLOCK,
            text=f"this machine's clock is wrong, or the others are: {'; '.join(lines[:_SHOWN])}{more}",
            hint="Set this machine's clock by NTP. If it is right, set the others'; or, to write in spite of the "
            "difference, raise rotation.clock_tolerance (GOATHERD_ROTATION_CLOCK_TOLERANCE).",
            nodes=tuple(url for url, ahead_ms in self.servers_ahead_ms.items() if self._differs(ahead_ms)),
        )

    def _differs(self, ahead_ms: int) -> bool:
        return timedelta(milliseconds=abs(ahead_ms)) > self.tolerance


def check_own_clock(
    store_ahead_ms: int | None, servers: Iterable[tuple[str, int | None]], tolerance: timedelta
) -> Clocks:
    """Check this machine's clock before something is written, by what is in hand, and return what that is.

    Args:
        store_ahead_ms: How far the store's clock is ahead of this machine's; None where it tells none.
        servers: The same for each server, with its URL.
        tolerance: `Policy.clock_tolerance`.

    Raises:
        WrongClockError: This machine's clock is wrong, as far as can be told. Nothing was written.
    """
    known = {url: ahead_ms for url, ahead_ms in servers if ahead_ms is not None}
    clocks = Clocks(store_ahead_ms=store_ahead_ms, servers_ahead_ms=known, tolerance=tolerance)
    obstacle = clocks.find_obstacle()
    if obstacle is not None:
        raise wrong_clock((obstacle,))
    return clocks


def wrong_clock(obstacles: Collection[Obstacle]) -> WrongClockError:
    """Return the error for a command that may not write with this machine's clock."""
    # What else stands in the way may only seem so because of the clock.
    hint = next(one.hint for one in obstacles if one.kind is ObstacleKind.OWN_CLOCK)
    text = "; ".join(one.text for one in obstacles)
    return WrongClockError(f"nothing was written: {text}", obstacles=tuple(obstacles), hint=hint)


def describe_difference(name: str, ahead_ms: int) -> str:
    """Return in words how far a clock is ahead of this machine's, or behind."""
    where = "ahead of" if ahead_ms > 0 else "behind"
    return f"the clock of {name} is {describe_span(abs(ahead_ms))} {where} this machine's"


def describe_span(milliseconds: int) -> str:
    """Return a duration, for humans."""
    for unit, size in (("days", 86_400_000), ("hours", 3_600_000)):
        if milliseconds >= 2 * size:
            return f"{milliseconds / size:.1f} {unit}"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
