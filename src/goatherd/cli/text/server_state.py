"""Format what `goatherd status` shows about each server: a row in the table, or an object in the JSON output."""

from __future__ import annotations

from datetime import timedelta

from goatherd.cluster.node import NodeView
from goatherd.cluster.server_answers import AgentReport
from goatherd.cluster.server_problems import describe_problems
from goatherd.identity.document import IdentityDocument
from goatherd.rotation.clocks import describe_span
from goatherd.times import format_duration, iso, milliseconds


def server_row(node: NodeView, document: IdentityDocument) -> tuple[str, ...]:
    """Return the row of one server in the table of `goatherd status`: a cell for each column."""
    report = node.report
    trusts = {True: "yes", False: "NO", None: "?"}[node.trusts_current]
    generation = "?" if node.generation is None else str(node.generation)
    age = "?" if report.view_age is None else _format_age(report.view_age)
    if (node.is_unmodified and report.agent is None) or report.is_from_file:
        generation, age = "-", "-"
    kind = "an unmodified GoatDB server" if node.is_unmodified else ""
    if report.is_from_file:
        kind = "its identity is from a settings.json"
    if report.agent is not None:
        kind = f"{kind} under an agent{f', restarts: {report.agent.restarts}' if report.agent.restarts else ''}"
    problems = describe_problems(node, {root.id for root in document.roots})
    problem = "; ".join(filter(None, ["" if node.find_problem() else kind, problems]))
    version = "-" if node.version == "" else node.version or "?"
    return (node.url, node.signs_with or "?", trusts, generation, report.phase or "?", age, version, problem)


def _format_age(age: timedelta) -> str:
    if age < timedelta(minutes=2):
        return f"{age.total_seconds():.1f} s ago"
    return f"{describe_span(milliseconds(age))} ago"


def region_cells(node: NodeView) -> tuple[str, str]:
    """Return the cells of one server for its region, and for the store that it read last."""
    report = node.report
    return report.region or "?", "?" if report.store_region is None else report.store_region


def server_data(node: NodeView) -> dict[str, object]:
    """Return the entry of one server in ``goatherd status --json``."""
    report = node.report
    return {
        "url": node.url,
        "unmodified": node.is_unmodified,
        "trustsCurrent": node.trusts_current,
        "trustsNext": node.trusts_next,
        "holdsIntroduction": node.holds_introduction,
        "holdsCrossSignature": node.holds_cross_signature,
        "signsWith": node.signs_with,
        "generation": node.generation,
        "phase": report.phase,
        "viewAge": None if report.view_age is None else format_duration(report.view_age),
        "degraded": report.is_degraded,
        "source": report.source,
        "roots": list(node.roots or ()),
        "viewInterval": None if report.view_interval is None else format_duration(report.view_interval),
        "watching": report.is_watching,
        "data": None if report.data is None else report.data.to_json(),
        "agent": None if report.agent is None else _data_of_agent(report.agent),
        "clockAheadMs": node.clock_ahead_ms,
        "version": report.version,
        "region": node.region,
        "storeRegion": report.store_region,
        "storeVersion": report.store_version,
        "storesNotFollowed": list(report.stores_not_followed),
        "problem": node.find_problem(),
    }


def _data_of_agent(agent: AgentReport) -> dict[str, object]:
    door = agent.door
    return {
        "state": agent.state,
        "started": agent.started,
        "restarts": agent.restarts,
        "leakCheck": None if agent.checked_ms is None else iso(agent.checked_ms),
        "pending": list(agent.pending),
        "door": None
        if door is None
        else {"passedOn": door.passed_on, "exposed": door.is_exposed, "stopped": door.stopped},
    }
