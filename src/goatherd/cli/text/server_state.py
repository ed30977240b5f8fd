"""Format the row that `goatherd status` prints for each server: its ids, times and address.

The state itself is read by `goatherd.operations.server_state`.
"""

from __future__ import annotations

from goatherd.cluster.server_answers import AgentReport
from goatherd.identity.document import IdentityDocument
from goatherd.operations.server_state import NodeState
from goatherd.rotation.obstacles import WENT_BACK
from goatherd.settings.base import Origin

__all__ = ["WENT_BACK", "server_row"]


def server_row(node: NodeState, document: IdentityDocument) -> tuple[str, ...]:
    """Return the row of one server in the table of `goatherd status`: a cell for each column."""
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
    """Describe what an agent reports about its server."""
    if agent.activity is not None:
        return agent.activity
    return "under an agent" if not agent.restarts else f"under an agent, restarts: {agent.restarts}"
