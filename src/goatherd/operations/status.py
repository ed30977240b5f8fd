"""Read the store, and ask the servers of a cluster what they trust, sign with and have read.

What it is: what ``goatherd status`` shows. What it is not: it changes nothing, in the store or on a
server. Rules: what a server does not report is None, never a guess.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.server_answers import AgentReport, DataReport, ServerIdentity
from goatherd.cluster.session_queries import prove_signer
from goatherd.errors import DiscoveryError, NodeError
from goatherd.identity.document import HistoryEntry, IdentityDocument
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.identity.redaction import find_warnings
from goatherd.key_inventory import KeyInventory, take_key_inventory
from goatherd.operations.identity_store import Store
from goatherd.operations.rotate import make_rotator, resolve_nodes
from goatherd.providers.values import Label, VersionId
from goatherd.rotation.clocks import THE_STORE, describe_difference, describe_span
from goatherd.rotation.machine import Progress
from goatherd.rotation.obstacles import Obstacle, ObstacleKind, Survey, is_of_another_identity
from goatherd.rotation.policy import Policy
from goatherd.times import format_duration, iso

_ENDINGS: Final = ("rotated", "restored", "cancelled", "rolled-back", "revoked")

SKEW_WARNING: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """The state of one server, as it was observed. None means unknown.

    Attributes:
        agent: What its agent reports, for an unmodified server that an agent runs.
        is_unmodified: Whether it is an unmodified GoatDB server.
        trusts_current: Whether it answers a request signed by the store's current root.
        view_age: How old its view of the store is.
        source: What its identity is from: ``store``, ``file`` or ``last known good``.
        view_interval: How often it reads the store, as it reports.
        is_telling_interval: Whether it reports how often it reads the store; None in `view_interval` then means never.
        is_watching: Whether the store notifies it of changes.
        data: What it has found in its own logs.
        clock_ahead_ms: How far its clock is ahead of this machine's, below 0 behind, by the date of its last answer.
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
        """Whether it trusts the current root and, as far as it reports, signs with it."""
        is_silent = self.is_unmodified and self.signs_with is None
        return self.trusts_current is True and (is_silent or self.signs_with == current_id)

    def is_of_another_identity(self, document: IdentityDocument) -> bool:
        """Whether it trusts none of the identity's roots, as far as it reports."""
        return is_of_another_identity((*self.roots, *self.revoked), frozenset(root.id for root in document.roots))

    def is_stale(self, usual: timedelta) -> bool:
        """Whether it has not read the store for three of its intervals.

        Args:
            usual: The interval of a server that does not report one.
        """
        interval = self.view_interval if self.is_telling_interval else usual
        return self.view_age is not None and interval is not None and self.view_age > 3 * interval

    def to_json(self) -> dict[str, object]:
        """Return it as data."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The state of the store, of the identity in it, and of every server.

    Attributes:
        store: The name of the store.
        version: The id of the stored version with the label `current`.
        labels: For each label, the id of the version that it points at.
        document: The identity.
        keys: Which stored version holds whose private key.
        last_rotation: How the last rotation ended; None if the identity records none.
        servers: The state of each server.
        obstacles: What prevents a rotation from starting, or the rotation in progress from continuing.
        progress: What the rotation in progress waits for; None if there is none.
        notes: Remarks about the identity and the clocks.
        store_ahead_ms: How far the clock of the store is ahead of this machine's, in milliseconds; None if unknown.
        at_ms: When this was read, in milliseconds since 1970.
    """

    store: str
    version: VersionId
    labels: Mapping[Label, VersionId]
    document: IdentityDocument
    keys: KeyInventory
    last_rotation: HistoryEntry | None
    servers: tuple[NodeState, ...]
    obstacles: tuple[Obstacle, ...]
    progress: Progress | None
    notes: tuple[str, ...]
    store_ahead_ms: int | None
    at_ms: int

    @property
    def is_in_step(self) -> bool:
        """Whether every server trusts the current root and signs with it."""
        return all(server.is_in_step(self.document.current.id) for server in self.servers)


async def read_status(
    store: Store, nodes: NodeDirectory, policy: Policy | None = None, *, hidden: Collection[str] = ()
) -> ClusterStatus:
    """Read the store, and ask every server what it trusts and signs with. Changes nothing.

    Args:
        store: The open store.
        nodes: The servers. No server need be listed.
        policy: How long a private key is kept, and what a rotation would wait for.
        hidden: URLs of servers whose state is not reported. They count as obstacles all the same.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or what it holds is not an identity.
    """
    policy = policy or Policy()
    version, document = await store.read()
    labels = {label: one.id for one in await store.versions() for label in one.labels}
    keys = await take_key_inventory(store.provider, store.secret_id, document, policy.grace)
    store_ahead_ms = store.provider.store_clock.ahead_ms(SystemClock().now_ms())
    servers = await read_server_states(nodes, document, org=store.org, hidden=hidden)
    now_ms = SystemClock().now_ms()
    survey = await _survey_without_probing(store, nodes, policy) if servers else Survey(obstacles=(), remarks=())
    return ClusterStatus(
        store=store.name,
        version=version.id,
        labels=labels,
        document=document,
        keys=keys,
        last_rotation=find_last_rotation(document),
        servers=tuple(servers),
        obstacles=survey.obstacles,
        progress=survey.progress,
        notes=(*find_warnings(document, now_ms), *clock_notes(document, store_ahead_ms, servers, now_ms)),
        store_ahead_ms=store_ahead_ms,
        at_ms=now_ms,
    )


async def find_obstacles_now(store: Store, nodes: NodeDirectory, policy: Policy | None = None) -> tuple[Obstacle, ...]:
    """Return what prevents a rotation from starting, without running health checks and without probing servers.

    Args:
        store: The open store.
        nodes: The servers.
        policy: What a rotation would wait for.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or what it holds is not an identity.
    """
    return (await _survey_without_probing(store, nodes, policy)).obstacles


async def _survey_without_probing(store: Store, nodes: NodeDirectory, policy: Policy | None) -> Survey:
    try:
        rotator = make_rotator(store, await resolve_nodes(nodes), policy)
        return await rotator.survey(is_probing=False, has_remarks=False)
    except DiscoveryError as error:
        unknown = Obstacle(kind=ObstacleKind.NODES_UNKNOWN, text=str(error), hint=error.hint)
        return Survey(obstacles=(unknown,), remarks=())


def find_last_rotation(document: IdentityDocument) -> HistoryEntry | None:
    """Return how the last rotation ended; None if the identity records none."""
    return next((entry for entry in reversed(document.history) if entry.event in _ENDINGS), None)


async def read_server_states(
    nodes: NodeDirectory, document: IdentityDocument, *, org: str, hidden: Collection[str] = ()
) -> list[NodeState]:
    """Ask every server what it does, all at once. If discovery fails, return one state with the problem.

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


def clock_notes(
    document: IdentityDocument, store_ahead_ms: int | None, nodes: Sequence[NodeState], now_ms: int
) -> list[str]:
    """Return a line for each clock that differs from this machine's, and one for times that are in the future.

    Args:
        document: The identity.
        store_ahead_ms: How far the store's clock is ahead; None where it reports none.
        nodes: The servers, as they were seen.
        now_ms: This machine's time, in milliseconds since 1970.
    """
    seen = [(THE_STORE, store_ahead_ms), *((node.url, node.clock_ahead_ms) for node in nodes)]
    found = [
        describe_difference(name, ahead_ms)
        for name, ahead_ms in seen
        if ahead_ms is not None and timedelta(milliseconds=abs(ahead_ms)) > SKEW_WARNING
    ]
    recorded_ms = recorded_ahead_ms(document, now_ms)
    if timedelta(milliseconds=recorded_ms) > SKEW_WARNING:
        found.append(
            f"the identity records times up to {describe_span(recorded_ms)} in the future: a machine with a wrong "
            "clock wrote it, or this machine's clock is behind"
        )
    return found


async def read_server_state(client: NodeClient, document: IdentityDocument, org: str) -> NodeState:
    """Ask one server what it does, and compare its clock with this machine's."""
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
        problem=f"refuses the store's identity: {code}" if code.startswith("identity.") else None,
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
