"""Convert timestamps (milliseconds since 1970) and durations to text and back.

Pure: `goatherd.clock` reads the time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

LONGEST: Final = timedelta(days=36_525)
"""The longest duration that an option or a policy may have: a hundred years."""
_MILLISECOND: Final = timedelta(milliseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(duration: timedelta) -> int:
    """Return a duration in whole milliseconds."""
    return duration // _MILLISECOND


def format_duration(duration: timedelta) -> str:
    """Return a duration as a short string such as ``1h30m``, exact to the millisecond, as options accept it."""
    left = round(duration.total_seconds() * 1000)
    if left == 0:
        return "0s"
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def iso(ms: int) -> str:
    """Return a timestamp as JavaScript's ``toISOString`` writes it, such as ``2026-11-24T12:00:00.000Z``.

    Args:
        ms: Milliseconds since 1970. Years after 9999 and before 0 get a sign and six digits.
    """
    days, rest = divmod(ms, 86_400_000)
    cycles, day = divmod(days + 719_468, 146_097)  # 400-year cycles since 0000-03-01
    moment = datetime(2000, 3, 1, tzinfo=UTC) + timedelta(days=day, milliseconds=rest)
    year = moment.year - 2000 + 400 * cycles
    shown = f"{year:04d}" if 0 <= year <= 9999 else f"{'-' if year < 0 else '+'}{abs(year):06d}"
    return f"{shown}-{moment:%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def format_utc(ms: int) -> str:
    """Return a time in milliseconds since 1970 in the form ``2027-01-12 02:00:00 UTC``."""
    text = iso(ms)
    return f"{text[:10]} {text[11:19]} UTC" if len(text) == 24 else text


def format_age(ms: int) -> str:
    """Return an age in milliseconds (negative: in the future) in one unit, rounded down: ``3 s ago``, ``in 5 days``."""
    seconds = abs(ms) / 1000
    if seconds < 1:
        return "now"
    for size, unit, least in ((86_400, "days", 2 * 86_400), (3600, "h", 3600), (60, "min", 60), (1, "s", 1)):
        if seconds >= least:
            text = f"{int(seconds // size)} {unit}"
            return f"in {text}" if ms < 0 else f"{text} ago"
    raise AssertionError


def read_iso(text: str) -> int:
    """Parse an ISO 8601 timestamp with a time zone, as `iso` writes it, into milliseconds since 1970.

    Raises:
        ValueError: The string is no timestamp, or has no time zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("the timestamp must have a time zone")
    return milliseconds(moment - _EPOCH)
