"""Format the output of `goatherd rotate --replace-expired`: the new root, and how far each server has followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goatherd.cli.output import Output
from goatherd.cluster.node import NodeView
from goatherd.identity.key_age import REPLACE_EXPIRED
from goatherd.rotation.events import Event, ExpiredRootReplaced
from goatherd.rotation.replacement import ReplacementReport
from goatherd.times import iso


def replaced_event(out: Output, event: Event) -> None:
    """Write a line of progress when the identity is written with the new root."""
    if isinstance(event, ExpiredRootReplaced):
        data = {"from": event.from_id, "to": event.to_id, "at": iso(event.at_ms)}
        text = f"root {event.to_id} signs in place of {event.from_id}, generation {event.generation}"
        out.event("replaced", data, text)


def replacement_data(report: ReplacementReport) -> dict[str, Any]:
    """Return the result of a replacement, as data for ``--json``."""
    return {
        "expired": report.expired_id,
        "current": report.current_id,
        "generation": report.generation,
        "written": report.is_written,
        "complete": report.is_complete,
        "introducible": report.can_introduce,
        "nodes": [_node_data(report, node) for node in report.nodes],
    }


def _node_data(report: ReplacementReport, node: NodeView) -> Mapping[str, Any]:
    return {
        "url": node.url,
        "followed": report.has_followed(node),
        "unmodified": node.is_unmodified,
        "trustsCurrent": node.trusts_next,
        "signsWith": node.signs_with,
        "introduction": node.holds_introduction,
        "crossSignature": node.holds_cross_signature,
        "problem": node.problem,
    }


def replacement_lines(report: ReplacementReport) -> list[str]:
    """Return the result of a replacement as lines, with what is left to do at each server."""
    when = "replaced" if report.is_written else "an earlier run has replaced"
    lines = [f"{when} expired root {report.expired_id}: root {report.current_id} signs in its place"]
    if not report.can_introduce:
        lines.append(
            "the store no longer holds the expired root's private key: existing clients cannot learn of the new root"
            " until they are set up again"
        )
    lines += [f"{node.url}: {_describe_node(report, node)}" for node in report.nodes]
    if not report.nodes:
        lines.append(
            f"no server is listed, so no client learns of the new root: run `{REPLACE_EXPIRED}` again with --node URL"
            " for each server"
        )
    elif report.is_complete:
        lines.append("finished: what the expired root has signed stays valid; keep its clients as they are")
    else:
        lines.append(f"NOT FINISHED: start or restart the servers named above, and run `{REPLACE_EXPIRED}` again")
    return lines


def _describe_node(report: ReplacementReport, node: NodeView) -> str:
    if report.has_followed(node):
        return "signs with the new root"
    if node.trusts_next is None:
        return f"did not answer{f': {node.problem}' if node.problem else ''}"
    if node.signs_with not in (None, report.current_id):
        return f"still signs with root {node.signs_with}; {_advise_remedy(node)}"
    if node.trusts_next is False:
        return f"does not trust the new root yet; {_advise_remedy(node)}"
    if node.problem is not None:
        return node.problem
    return "has not stored the introductions yet"


def _advise_remedy(node: NodeView) -> str:
    if node.is_unmodified:
        return (
            "an unmodified GoatDB server: `goatherd run` restarts it; without it, stop the server, run `goatherd run"
            " --once` there, and start it"
        )
    return "check in its log whether it can read the store"
