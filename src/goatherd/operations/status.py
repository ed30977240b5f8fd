"""Read the store, and ask a cluster's servers which roots they trust, which one they sign with, and what they read.

The result is what ``goatherd status`` shows. Nothing is changed in the store or on a server. A value that a server does
not report is None, never a guess. Modules for servers are imported only if there are servers, so that the status of a
store alone starts quickly (tests/unit/cli/test_start_up.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from goatherd.clock import SystemClock
from goatherd.errors import DiscoveryError
from goatherd.identity.document import HistoryEntry, IdentityDocument
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.identity.redaction import find_warnings
from goatherd.key_inventory import KeyInventory, take_key_inventory
from goatherd.operations.identity_store import Store
from goatherd.providers.values import Label, VersionId

if TYPE_CHECKING:
    from goatherd.cluster.discovery import NodeDirectory
    from goatherd.operations.server_state import NodeState
    from goatherd.rotation.machine import PhaseProgress
    from goatherd.rotation.obstacles import Obstacle, Survey
    from goatherd.rotation.policy import Policy

_ENDINGS: Final = ("rotated", "restored", "cancelled", "rolled-back", "revoked")

SKEW_WARNING: Final = timedelta(seconds=30)


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
    progress: PhaseProgress | None
    notes: tuple[str, ...]
    store_ahead_ms: int | None
    at_ms: int

    @property
    def is_in_step(self) -> bool:
        """Whether every server trusts the current root and signs with it."""
        return all(server.is_in_step(self.document.current.id) for server in self.servers)


async def read_status(
    store: Store,
    nodes: NodeDirectory | None = None,
    policy: Policy | None = None,
    *,
    grace: timedelta | None = None,
    hidden: Collection[str] = (),
) -> ClusterStatus:
    """Read the store, and ask every server which roots it trusts and which one it signs with. Changes nothing.

    Args:
        store: The open store.
        nodes: The servers; None for the store alone.
        policy: The policy of a rotation.
        grace: How long a private key is kept after a rotation; the policy's grace period by default.
        hidden: URLs of servers whose state is not reported. They still count as obstacles.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    version, document = await store.read()
    labels = {label: one.id for one in await store.versions() for label in one.labels}
    if grace is None:
        from goatherd.rotation.policy import Policy

        grace = (policy or Policy()).grace
    keys = await take_key_inventory(store.provider, store.secret_id, document, grace)
    store_ahead_ms = store.provider.store_clock.ahead_ms(SystemClock().now_ms())
    servers: Sequence[NodeState] = ()
    obstacles: tuple[Obstacle, ...] = ()
    progress: PhaseProgress | None = None
    if nodes is not None:
        from goatherd.operations.server_state import read_server_states

        servers = await read_server_states(nodes, document, org=store.org, hidden=hidden)
        if servers:
            survey = await _survey_without_probing(store, nodes, policy)
            obstacles, progress = survey.obstacles, survey.progress
    now_ms = SystemClock().now_ms()
    return ClusterStatus(
        store=store.name,
        version=version.id,
        labels=labels,
        document=document,
        keys=keys,
        last_rotation=find_last_rotation(document),
        servers=tuple(servers),
        obstacles=obstacles,
        progress=progress,
        notes=(*find_warnings(document, now_ms), *clock_notes(document, store_ahead_ms, servers, now_ms)),
        store_ahead_ms=store_ahead_ms,
        at_ms=now_ms,
    )


async def find_obstacles_now(store: Store, nodes: NodeDirectory, policy: Policy | None = None) -> tuple[Obstacle, ...]:
    """Return what prevents a rotation from starting, without running health checks or probing servers.

    Args:
        store: The open store.
        nodes: The servers.
        policy: The policy of a rotation.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    return (await _survey_without_probing(store, nodes, policy)).obstacles


async def _survey_without_probing(store: Store, nodes: NodeDirectory, policy: Policy | None) -> Survey:
    from goatherd.operations.rotate import make_rotator, resolve_nodes
    from goatherd.rotation.obstacles import Obstacle, ObstacleKind, Survey

    try:
        rotator = make_rotator(store, await resolve_nodes(nodes), policy)
        return await rotator.survey(is_probing=False, has_remarks=False)
    except DiscoveryError as error:
        unknown = Obstacle(kind=ObstacleKind.NODES_UNKNOWN, text=str(error), hint=error.hint)
        return Survey(obstacles=(unknown,), remarks=())


def find_last_rotation(document: IdentityDocument) -> HistoryEntry | None:
    """Return how the last rotation ended; None if the identity records none."""
    return next((entry for entry in reversed(document.history) if entry.event in _ENDINGS), None)


def clock_notes(
    document: IdentityDocument, store_ahead_ms: int | None, nodes: Sequence[NodeState], now_ms: int
) -> list[str]:
    """Return a line for each clock that differs from this machine's, and a line if the document records future times.

    Args:
        document: The identity.
        store_ahead_ms: How far the store's clock is ahead; None if the store does not report it.
        nodes: The servers, as they were observed.
        now_ms: This machine's time, in milliseconds since 1970.
    """
    # Imported here, since usually there is no difference to describe.
    from goatherd.rotation.clocks import THE_STORE, describe_difference, describe_span

    seen = [(THE_STORE, store_ahead_ms), *((node.url, node.clock_ahead_ms) for node in nodes)]
    found = [
        describe_difference(name, ahead_ms)
        for name, ahead_ms in seen
        if ahead_ms is not None and timedelta(milliseconds=abs(ahead_ms)) > SKEW_WARNING
    ]
    recorded_ms = recorded_ahead_ms(document, now_ms)
    if timedelta(milliseconds=recorded_ms) > SKEW_WARNING:
        found.append(
            f"the identity contains timestamps up to {describe_span(recorded_ms)} in the future: a machine "
            "with a wrong clock wrote them, or this machine's clock is behind"
        )
    return found
