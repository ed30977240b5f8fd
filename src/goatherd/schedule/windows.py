"""Maintenance windows: days and times of day, in a time zone, when a rotation may start.

This module parses windows and computes the periods of real time that they cover. It reads no clock. Timestamps are
milliseconds since 1970; a local time always has a time zone.

When clocks change to or from daylight saving time: local times that the clocks skip are in no window, so a window that
lies entirely in skipped times does not open on that day. If a window begins or ends in an hour that occurs twice, the
first occurrence counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from goatherd.errors import ConfigurationError

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY_MINUTES: Final = 24 * 60
_TIMES: Final = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")
# A weekly window may lie in an hour that the clocks skip, at most twice in a row.
_SEARCH_DAYS: Final = 22
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A maintenance window: open from `start` to `end`, in minutes after midnight, on each day of the week in `days`.

    Attributes:
        days: Days on which the window opens; 0 is Monday.
        end: End of the window, exclusive; 1440 is midnight. If it is not after `start`, the window ends on the next
            day.
    """

    days: frozenset[int]
    start: int
    end: int

    @classmethod
    def from_text(cls, text: str) -> Window:
        """Parse a maintenance window: ``Mon-Fri 02:00-04:00``, ``Sat,Sun 22:00-06:00`` or ``02:00-04:00`` (every day).

        Raises:
            ConfigurationError: The string has another form.
        """
        days_text, _, times_text = text.strip().rpartition(" ")
        times = _TIMES.fullmatch(times_text)
        if times is None:
            raise _syntax_error(text, "the times must look like 02:00-04:00")
        hours = [int(part) for part in times.groups()]
        start, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
        if hours[1] > 59 or hours[3] > 59 or start >= _DAY_MINUTES or end > _DAY_MINUTES:
            raise _syntax_error(text, "a day has 24 hours of 60 minutes")
        if start == end:
            raise _syntax_error(text, "it opens and closes at the same time; all day is 00:00-24:00")
        return cls(days=_parse_days(text, days_text.strip()), start=start, end=end)

    def __str__(self) -> str:
        days = "" if len(self.days) == 7 else ",".join(DAYS[day] for day in sorted(self.days)) + " "
        start, end = divmod(self.start, 60), divmod(self.end, 60)
        return f"{days}{start[0]:02}:{start[1]:02}-{end[0]:02}:{end[1]:02}"

    @property
    def length(self) -> int:
        """Length of the maintenance window in minutes, on a day on which the clocks do not change."""
        return self.end - self.start if self.end > self.start else self.end + _DAY_MINUTES - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One period in which a maintenance window is open: from `open_ms` until `close_ms`, in milliseconds since 1970.

    The window is no longer open at `close_ms` itself.
    """

    open_ms: int
    close_ms: int


def first_span(windows: Sequence[Window], zone: ZoneInfo, at_ms: int) -> Span | None:
    """Return the period in which a maintenance window is open at `at_ms`; if none is open, the next such period.

    Windows that touch or overlap count as one period. The result is None if no window opens again.

    Args:
        windows: At least one window.
        zone: The time zone of the windows.
        at_ms: Milliseconds since 1970.
    """
    chosen: Span | None = None
    today = datetime.fromtimestamp(at_ms / 1000, zone).date()
    for offset in range(-1, _SEARCH_DAYS):
        day = today + timedelta(days=offset)
        if chosen is not None and chosen.close_ms < _find_moment(day, 0, zone):
            break
        for span in sorted(_list_spans(windows, zone, day), key=lambda span: span.open_ms):
            if span.close_ms <= at_ms:
                continue
            if chosen is None:
                chosen = span
            elif span.open_ms <= chosen.close_ms:
                chosen = Span(open_ms=chosen.open_ms, close_ms=max(chosen.close_ms, span.close_ms))
    return chosen


def _list_spans(windows: Sequence[Window], zone: ZoneInfo, day: date) -> Iterator[Span]:
    for window in windows:
        if day.weekday() in window.days:
            open_ms = _find_moment(day, window.start, zone)
            close_ms = _find_moment(day, window.start + window.length, zone)
            if open_ms < close_ms:
                yield Span(open_ms=open_ms, close_ms=close_ms)


def _find_moment(day: date, minutes: int, zone: ZoneInfo) -> int:
    """Return when local clocks first show a time of a day, given in minutes after midnight.

    If the clocks skip that time, the result is when they show a later one for the first time.
    """
    wall = datetime(day.year, day.month, day.day) + minutes * _MINUTE  # noqa: DTZ001 - the zone comes next
    moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) != wall:
        # The clocks skip this time: search for the change between the times that the two offsets give.
        early = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
        while moment - early > timedelta(milliseconds=1):
            middle = early + (moment - early) / 2
            if middle.astimezone(zone).replace(tzinfo=None) < wall:
                early = middle
            else:
                moment = middle
        moment = moment.replace(microsecond=0)
    return round(moment.timestamp() * 1000)


def _parse_days(text: str, days_text: str) -> frozenset[int]:
    if not days_text:
        return frozenset(range(7))
    days: set[int] = set()
    for part in days_text.split(","):
        first, dash, last = (word.strip().capitalize() for word in part.partition("-"))
        if first not in DAYS or (dash and last not in DAYS):
            raise _syntax_error(text, "the days must be " + ", ".join(DAYS))
        begin = DAYS.index(first)
        days.update((begin + step) % 7 for step in range((DAYS.index(last) - begin) % 7 + 1 if dash else 1))
    return frozenset(days)


def _syntax_error(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{text!r} is not a maintenance window: {why}",
        hint="Write, for example, `Mon-Fri 02:00-04:00` or `Sat,Sun 22:00-06:00`.",
    )
