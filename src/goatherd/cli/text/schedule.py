"""Format the output of `goatherd controller`: the schedule, the next action, and what a run with ``--once`` did."""

from __future__ import annotations

from typing import Any

from goatherd.cli.text.rotation import report_data
from goatherd.operations.controller import ScheduleExplanation
from goatherd.schedule.controller import Turn
from goatherd.schedule.due import DueDecision, Schedule
from goatherd.times import format_duration, format_utc, iso


def explanation_data(store: str, schedule: Schedule, found: ScheduleExplanation) -> dict[str, Any]:
    """Return what a controller would do, as data for ``--json``."""
    return {
        "store": store,
        "current": found.facts.current_id,
        "expires": iso(found.facts.expires_ms),
        "now": iso(found.at_ms),
        "isDue": found.verdict.is_due(found.at_ms),
        "next": verdict_data(found.verdict),
        "rotations": [iso(begin) for begin in found.begins],
        "schedule": schedule_data(schedule),
        "obstacles": [one.text for one in found.obstacles],
    }


def explanation_lines(store: str, schedule: Schedule, found: ScheduleExplanation) -> list[str]:
    """Return what a controller would do, as lines."""
    facts, verdict = found.facts, found.verdict
    lines = [
        f"identity    {store}: {facts.current_id} signs, and expires at {format_utc(facts.expires_ms)}",
        f"schedule    {schedule_line(schedule)}",
        next_line(verdict, found.at_ms),
        f"            {verdict.why}",
    ]
    if found.begins:
        lines.append("rotations   if each succeeds at once: " + ", ".join(format_utc(begin) for begin in found.begins))
    if verdict.urgent:
        lines.append("urgent      the root is near its expiration, or past it")
    return [*lines, *(f"obstacle    {one.text}" for one in found.obstacles)]


def turn_data(store: str, turn: Turn) -> dict[str, Any]:
    """Return what a controller did after reading the store once, as data for ``--json``."""
    assert turn.verdict is not None
    return {
        "store": store,
        "done": "nothing" if turn.report is None else turn.verdict.act.value,
        "yielded": turn.has_yielded,
        "why": turn.verdict.why,
        "next": verdict_data(turn.verdict),
        "report": None if turn.report is None else report_data(turn.report),
    }


def turn_lines(turn: Turn, now_ms: int) -> list[str]:
    """Return what a controller did after reading the store once, as lines."""
    assert turn.verdict is not None
    if turn.report is not None:
        done = f"{turn.verdict.act.value}: {turn.verdict.why}"
        return [done, f"{turn.report.summary}: {turn.report.current_id} signs"]
    if turn.has_yielded:
        return [f"another process was first: {turn.error}"]
    return ["nothing is due", next_line(turn.verdict, now_ms)]


def verdict_data(verdict: DueDecision) -> dict[str, Any]:
    """Return the next action of a controller, as data for ``--json``."""
    return {
        "act": verdict.act.value,
        "at": None if verdict.at_ms is None else iso(verdict.at_ms),
        "why": verdict.why,
        "due": None if verdict.due_ms is None else iso(verdict.due_ms),
        "urgent": verdict.urgent,
    }


def next_line(verdict: DueDecision, now_ms: int) -> str:
    """Return the next action of a controller, as a line."""
    if verdict.at_ms is None:
        return "next        nothing"
    when = "now" if verdict.is_due(now_ms) else f"at {format_utc(verdict.at_ms)}"
    return f"next        {verdict.act.value} {when}"


def schedule_data(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule, as data for ``--json``."""
    return {
        "controller": schedule.controller,
        "maxAge": None if schedule.max_age is None else format_duration(schedule.max_age),
        "cron": schedule.cron,
        "timezone": schedule.zone.key,
    }


def schedule_line(schedule: Schedule) -> str:
    """Return the schedule of a controller as a line."""
    age = (
        "by the age of the key" if schedule.max_age is None else f"keys older than {format_duration(schedule.max_age)}"
    )
    return age if schedule.cron is None else f"{age}, in the minutes of `{schedule.cron}` in {schedule.zone.key}"
