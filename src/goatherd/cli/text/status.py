"""What ``goatherd status`` prints: the store, the identity, and a row for each server.

What it is not: it asks no server (`goatherd.operations.status`). Rules: ids, times and addresses; the same facts as
data and as lines.
"""

from __future__ import annotations

from typing import Any

from goatherd.cli.output import Output
from goatherd.cli.text.identity import identity_lines
from goatherd.cli.text.key_inventory import inventory_data, inventory_lines
from goatherd.cli.text.rotation import ending_data, ending_line, progress_data, progress_lines
from goatherd.cluster.server_answers import AgentReport
from goatherd.identity.document import IdentityDocument
from goatherd.identity.redaction import redact_document
from goatherd.operations.status import ClusterStatus, NodeState
from goatherd.providers.values import shown_label
from goatherd.rotation.obstacles import WENT_BACK
from goatherd.settings.base import Origin


def status_data(status: ClusterStatus) -> dict[str, Any]:
    """Return the status of a cluster as data."""
    return {
        "store": status.store,
        "storeVersion": status.version,
        "labels": dict(status.labels),
        "identity": redact_document(status.document),
        "rotation": progress_data(status.progress),
        "lastRotation": ending_data(status.last_rotation),
        "privateKeys": inventory_data(status.keys, status.at_ms),
        "notes": list(status.notes),
        "obstacles": [one.text for one in status.obstacles],
        "storeClockAheadMs": status.store_ahead_ms,
        "nodes": [server.to_json() for server in status.servers],
    }


def status_lines(status: ClusterStatus, out: Output) -> list[str]:
    """Return the status of a cluster as lines."""
    lines = identity_lines(out, status.store, status.version, status.document)
    labels = ", ".join(f"{shown_label(label)} -> {status.labels[label]}" for label in sorted(status.labels))
    lines.insert(1, f"labels      {labels}")
    if status.last_rotation is not None:
        lines.insert(2, ending_line(status.last_rotation))
    if status.progress is not None:
        lines += ["", *progress_lines(status.progress)]
    lines += ["", *inventory_lines(status.keys, out, status.at_ms)]
    if status.servers:
        heads = ("SERVER", "SIGNS WITH", "TRUSTS CURRENT", "GENERATION", "PHASE", "LAST STORE READ", "")
        lines += ["", *out.table(heads, [_server_row(server, status.document) for server in status.servers])]
    went_back = [one for one in status.obstacles if one.kind in WENT_BACK]
    for one in status.obstacles:
        prefix = "THE STORE WENT BACK" if one in went_back else "obstacle to a rotation"
        lines.append(f"{prefix}: {one.text}")
    lines += dict.fromkeys(one.hint for one in went_back)
    return [*lines, *(f"note: {remark}" for remark in status.notes)]


def _server_row(node: NodeState, document: IdentityDocument) -> tuple[str, ...]:
    trusts = {True: "yes", False: "NO", None: "?"}[node.trusts_current]
    generation = "?" if node.generation is None else str(node.generation)
    age = "?" if node.view_age is None else f"{node.view_age.total_seconds():.1f} s ago"
    if node.is_unmodified and node.agent is None:
        generation, age = "-", "-"
    kind = "an unmodified GoatDB server" if node.is_unmodified else ""
    if node.agent is not None:
        kind = f"{kind}{':' if node.agent.activity else ''} {_describe_agent(node.agent)}"
    problem = node.problem or kind
    if node.is_of_another_identity(document):
        problem = "; ".join(filter(None, (f"another identity: trusts {', '.join(node.roots[:5])}", problem)))
    if node.source == Origin.LAST_KNOWN_GOOD:
        problem = "; ".join(filter(None, ("LAST KNOWN GOOD: cannot reach the store", problem)))
    elif node.is_degraded and not problem:
        problem = "degraded: cannot use what the store holds"
    if node.data is not None and node.data.unusable is not None:
        problem = "; ".join(filter(None, (problem, node.data.unusable)))
    if node.data is not None and node.data.cannot_write is not None:
        problem = "; ".join(filter(None, (problem, node.data.cannot_write)))
    return (node.url, node.signs_with or "?", trusts, generation, node.phase or "?", age, problem)


def _describe_agent(agent: AgentReport) -> str:
    """Describe what an agent reports of its server."""
    if agent.activity is not None:
        return agent.activity
    return "under an agent" if not agent.restarts else f"under an agent, restarts: {agent.restarts}"
