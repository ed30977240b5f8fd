"""Ask a cluster's servers which roots they trust, which one they sign with, and what they read from the store.

The answers are the rows of ``goatherd status``. Nothing is changed on a server. A value that a server does not report
is None, never a guess.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.server_answers import AgentReport, DataReport, ServerIdentity
from goatherd.cluster.session_queries import prove_signer
from goatherd.errors import DiscoveryError, NodeError
from goatherd.identity.document import IdentityDocument
from goatherd.rotation.obstacles import is_of_another_identity
from goatherd.times import format_duration, iso


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """The state of one server, as it was observed. None means unknown.

    Attributes:
        agent: The report of its agent, for an unmodified server that an agent runs.
        is_unmodified: Whether it is an unmodified GoatDB server.
        trusts_current: Whether it accepts a request signed by the store's current root.
        view_age: How long ago it last read the store.
        source: Where its identity comes from: ``store``, ``file`` or ``last known good``.
        view_interval: How often it reads the store, as it reports.
        is_telling_interval: Whether it reports how often it reads the store; None in `view_interval` then means never.
        is_watching: Whether the store notifies it of changes.
        data: The result of the check of its own logs.
        clock_ahead_ms: How far its clock is ahead of this machine's, negative if behind, by the date of its last
            answer.
    """

    url: str
    is_unmodified: bool = False
    trusts_current: bool | None = None
    signs_with: str | None = None
    generation: int | None = None
    phase: str | None = None
    view_age: timedelta | None = None
    is_degraded: bool | None = None
    source: str | None = None
    roots: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()
    view_interval: timedelta | None = None
    is_telling_interval: bool = False
    is_watching: bool = False
    data: DataReport | None = None
    agent: AgentReport | None = None
    problem: str | None = None
    clock_ahead_ms: int | None = None

    def is_in_step(self, current_id: str) -> bool:
        """Whether the server trusts the current root and, as far as it reports, signs with it."""
        is_silent = self.is_unmodified and self.signs_with is None
        return self.trusts_current is True and (is_silent or self.signs_with == current_id)

    def is_of_another_identity(self, document: IdentityDocument) -> bool:
        """Whether the server trusts none of the identity's roots, as far as it reports."""
        return is_of_another_identity((*self.roots, *self.revoked), frozenset(root.id for root in document.roots))

    def is_stale(self, usual: timedelta) -> bool:
        """Whether the server has not read the store for three of its intervals.

        Args:
            usual: The interval of a server that does not report one.
        """
        interval = self.view_interval if self.is_telling_interval else usual
        return self.view_age is not None and interval is not None and self.view_age > 3 * interval

    def to_json(self) -> dict[str, object]:
        """Return the state as JSON data."""
        return {
            "url": self.url,
            "unmodified": self.is_unmodified,
            "trustsCurrent": self.trusts_current,
            "signsWith": self.signs_with,
            "generation": self.generation,
            "phase": self.phase,
            "viewAge": None if self.view_age is None else format_duration(self.view_age),
            "degraded": self.is_degraded,
            "source": self.source,
            "roots": list(self.roots),
            "viewInterval": None if self.view_interval is None else format_duration(self.view_interval),
            "watching": self.is_watching,
            "data": None if self.data is None else _data_to_json(self.data),
            "agent": None if self.agent is None else _agent_to_json(self.agent),
            "clockAheadMs": self.clock_ahead_ms,
            "problem": self.problem,
        }


async def read_server_states(
    nodes: NodeDirectory, document: IdentityDocument, *, org: str, hidden: Collection[str] = ()
) -> list[NodeState]:
    """Ask all servers for their state at the same time. If discovery fails, return one state that has the problem.

    Args:
        nodes: The servers.
        document: The identity in the store.
        org: The organization.
        hidden: URLs of servers that are not asked.
    """
    try:
        clients = [client for client in await nodes() if client.base_url not in hidden]
    except DiscoveryError as error:
        return [NodeState(url=", ".join(nodes.addresses), problem=str(error))]
    return list(await asyncio.gather(*(read_server_state(client, document, org) for client in clients)))


async def read_server_state(client: NodeClient, document: IdentityDocument, org: str) -> NodeState:
    """Ask one server for its state, and compare its clock with this machine's."""
    state = await _observe_server(client, document, org)
    return replace(state, clock_ahead_ms=client.clock_ahead_ms(SystemClock().now_ms()))


async def _observe_server(client: NodeClient, document: IdentityDocument, org: str) -> NodeState:
    url = client.base_url
    try:
        answer = await client.identity()
    except NodeError as error:
        return NodeState(url=url, problem=str(error))
    agent = None if answer is None else answer.agent
    signer = None
    try:
        trusts = await client.answers(document.current)
        if answer is not None and agent is not None:
            now_ms = SystemClock().now_ms()
            signer = await prove_signer(client, answer, [document.current], org=org, now_ms=now_ms)
    except NodeError as error:
        if answer is None or agent is None:
            return NodeState(url=url, problem=str(error))
        state = _state_from_answer(url, None, answer)
        # While its agent restarts it, a server is not expected to answer.
        return state if agent.is_down else replace(state, problem=str(error))
    if answer is None:
        return NodeState(url=url, is_unmodified=True, trusts_current=trusts)
    state = _state_from_answer(url, trusts, answer)
    return replace(state, signs_with=signer) if agent is not None else state


def _state_from_answer(url: str, trusts: bool | None, answer: ServerIdentity) -> NodeState:
    code = answer.refusal or ""
    return NodeState(
        url=url,
        is_unmodified=answer.agent is not None,
        trusts_current=trusts,
        signs_with=None if answer.agent is not None else answer.signer,
        generation=answer.generation,
        phase=answer.phase,
        view_age=answer.view_age,
        is_degraded=answer.is_degraded is True,
        source=answer.source,
        roots=answer.roots or (),
        revoked=answer.revoked or (),
        view_interval=answer.view_interval,
        is_telling_interval=answer.says_interval,
        is_watching=answer.is_watching,
        data=answer.data,
        agent=answer.agent,
        problem=f"rejects the store's identity: {code}" if code.startswith("identity.") else None,
    )


def _data_to_json(data: DataReport) -> dict[str, object]:
    return {
        "complete": data.is_complete,
        "records": data.records,
        "damaged": data.damaged,
        "unverifiable": data.unverifiable,
        "unwritable": data.unwritable,
    }


def _agent_to_json(agent: AgentReport) -> dict[str, object]:
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
