"""Format the output of `goatherd history`: a list of events, a timeline, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from goatherd.cli.output import Output
from goatherd.identity.root_names import shorten_id
from goatherd.times import format_duration, format_utc, iso
from goatherd.web.view import HistoryRow

_MARKS: Final = {"good": "●", "bad": "✕", "neutral": "○"}
_NONE: Final = "no event is recorded"


def history_data(store: str, rows: Sequence[HistoryRow]) -> dict[str, Any]:
    """Return the history of an identity, as data for ``--json``; oldest first."""
    return {
        "store": store,
        "events": [
            {
                "at": iso(row.at_ms),
                "event": row.event,
                "from": row.from_id,
                "to": row.to_id,
                "reason": row.reason or None,
                "rotation": row.rotation_id,
                "startedAt": None if row.started_ms is None else iso(row.started_ms),
                "startedBy": row.started_by or None,
            }
            for row in reversed(rows)
        ],
    }


def history_lines(rows: Sequence[HistoryRow], out: Output) -> list[str]:
    """Return the history of an identity as a table, newest first."""
    if not rows:
        return [_NONE]
    heads = ("END", "EVENT", "ROOTS", "STARTED BY", "REASON")
    cells = [
        (format_utc(row.at_ms), row.event, _describe_roots(row), row.started_by or "-", row.reason or "-")
        for row in rows
    ]
    return out.table(heads, cells)


def timeline_lines(rows: Sequence[HistoryRow], now_ms: int) -> list[str]:
    """Return the history of an identity as a timeline, oldest first, with the time between the events.

    Args:
        rows: The events, newest first.
        now_ms: Milliseconds since 1970.
    """
    if not rows:
        return [_NONE]
    lines: list[str] = []
    before: int | None = None
    for row in reversed(rows):
        if before is not None:
            lines.append(_gap_line(row.at_ms - before))
        took = "" if row.started_ms is None else f" after {_describe_span(row.at_ms - row.started_ms)}"
        by = f", started by {row.started_by}" if row.started_by else ""
        lines.append(f"{_format_time(row.at_ms)}  {_MARKS[row.outcome]} {row.event}{took}  {_describe_roots(row)}{by}")
        if row.reason:
            lines.append(f"{'':16}  │   {row.reason}")
        before = row.at_ms
    assert before is not None
    return [*lines, _gap_line(now_ms - before), f"{_format_time(now_ms)}  ▼ now"]


def _gap_line(ms: int) -> str:
    return f"{'':16}  │ {_describe_span(ms)}"


def _format_time(ms: int) -> str:
    return format_utc(ms)[:16]


def _describe_roots(row: HistoryRow) -> str:
    return " -> ".join(shorten_id(one) for one in (row.from_id, row.to_id) if one)


def _describe_span(ms: int) -> str:
    """Return a duration in whole days from two days on, in whole hours from two hours on, and so on."""
    seconds = max(0, ms) // 1000
    if not seconds:
        return "less than 1s"
    for unit in (86_400, 3600, 60):
        if seconds >= 2 * unit:
            return format_duration(timedelta(seconds=seconds // unit * unit))
    return format_duration(timedelta(seconds=seconds))
