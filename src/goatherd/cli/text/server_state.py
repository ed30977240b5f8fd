"""Format what `goatherd status` shows about each server: a row in the table, or an object in the JSON output."""

from __future__ import annotations

from goatherd.cluster.node import NodeView
from goatherd.cluster.server_answers import AgentReport
from goatherd.times import format_duration, iso


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
        "keyOnDisk": report.has_key_on_disk,
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
