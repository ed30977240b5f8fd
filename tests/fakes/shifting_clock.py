"""The system's clock, moved ahead by a test."""

from __future__ import annotations

from goatherd.clock import SystemClock


class ShiftingClock(SystemClock):
    """A clock that is `seconds` ahead of the system's."""

    seconds = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.seconds

    def now_ms(self) -> int:
        return super().now_ms() + round(self.seconds * 1000)
