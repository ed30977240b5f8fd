"""Read the store, and find out which roots each server trusts, which root it signs with, and what it last read.

The result is what ``goatherd status`` shows. Nothing is changed in the store or on a server. A value that a server does
not report is None, never a guess. Modules for servers are imported only if there are servers, so that the status of a
store alone starts quickly (tests/unit/cli/test_start_up.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from goatherd.clock import SystemClock
from goatherd.errors import DiscoveryError, NodeError, NodeRefusedError, ProviderAccessDeniedError
from goatherd.identity.document import HistoryEntry, IdentityDocument
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.identity.redaction import find_warnings
from goatherd.key_inventory import KeyInventory, take_key_inventory
from goatherd.operations.identity_store import Store
from goatherd.providers.values import Label, SecretVersion, VersionId
from goatherd.times import milliseconds

if TYPE_CHECKING:
    from goatherd.cluster.client import NodeClient
    from goatherd.cluster.discovery import NodeDirectory
    from goatherd.cluster.node import NodeView
    from goatherd.operations.opening import StoreName
    from goatherd.operations.stores import RegionState
    from goatherd.rotation.machine import PhaseProgress
    from goatherd.rotation.obstacles import Obstacle, Survey
    from goatherd.rotation.policy import Policy
    from goatherd.schedule.due import DueDecision, Schedule

_ENDINGS: Final = ("rotated", "restored", "cancelled", "rolled-back", "revoked")

SKEW_WARNING: Final = timedelta(seconds=30)
SEARCH_AGAIN: Final = timedelta(minutes=10)
"""Pause before the stored versions are read again after a store did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The state of the store, of the identity in it, and of every server.

    Attributes:
        store: The name of the store.
        version: The id of the stored version with the label `current`.
        labels: For each label, the id of the version that it points at; if `versions` is empty, only the labels that a
            read of the current version reports.
        document: The identity.
        keys: Which stored version holds whose private key.
        last_rotation: How the last rotation ended; None if the identity records none.
        servers: Each server, as it was observed.
        obstacles: What prevents a rotation from starting, or the rotation in progress from continuing.
        progress: What the rotation in progress waits for; None if there is none.
        notes: Remarks about the identity and the clocks.
        store_ahead_ms: How far the clock of the store is ahead of this machine's, in milliseconds; None if unknown.
        at_ms: When this was read, in milliseconds since 1970.
        written_ms: When the current version was written, by the store's clock, in milliseconds since 1970; None if the
            credentials may not read that.
        versions: The stored versions, newest first; empty if the credentials may not list them.
        regions: The store of each region; empty with a single store.
        keys_ms: When `keys` was read, in milliseconds since 1970.
    """

    store: str
    version: VersionId
    labels: Mapping[Label, VersionId]
    document: IdentityDocument
    keys: KeyInventory
    last_rotation: HistoryEntry | None
    servers: tuple[NodeView, ...]
    obstacles: tuple[Obstacle, ...]
    progress: PhaseProgress | None
    notes: tuple[str, ...]
    store_ahead_ms: int | None
    at_ms: int
    written_ms: int | None
    versions: tuple[SecretVersion, ...]
    regions: tuple[RegionState, ...] = ()
    keys_ms: int = 0

    @property
    def is_in_step(self) -> bool:
        """Whether every server trusts the current root and signs with it."""
        return all(server.is_in_step(self.document.current.id) for server in self.servers)

    @property
    def unlisted_roots(self) -> tuple[str, ...]:
        """Ids of the roots that servers trust although the identity document does not list them."""
        listed = {root.id for root in self.document.roots} | ({self.document.next.id} if self.document.next else set())
        return tuple(sorted({one for server in self.servers for one in server.roots or ()} - listed))


async def status(
    store: StoreName, nodes: str | Iterable[str] = (), policy: Policy | None = None, *, org: str | None = None
) -> ClusterStatus:
    """Read the store, and ask every server which roots it trusts and which one it signs with. Changes nothing.

    Args:
        store: See `open_store`.
        nodes: The URLs of the servers, or URLs that discover them.
        policy: The policy of a rotation, and how long a private key is kept.
        org: The organization.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    from goatherd.operations.opening import open_cluster, read_addresses

    async with open_cluster(store, read_addresses(nodes), policy, org) as (opened, servers, policy):
        return await read_status(opened, cast("NodeDirectory", servers), policy)


async def read_status(
    store: Store,
    nodes: NodeDirectory | None = None,
    policy: Policy | None = None,
    *,
    grace: timedelta | None = None,
    hidden: Collection[str] = (),
    known: ClusterStatus | None = None,
    check: Callable[[IdentityDocument], None] = lambda _: None,
) -> ClusterStatus:
    """Read the status of an open store and its servers, as `status` does.

    Args:
        store: The open store.
        nodes: The servers; None for the store alone.
        policy: The rotation policy, which decides what counts as an obstacle; None for the default.
        grace: How long a private key is kept after a rotation; the policy's grace period by default.
        hidden: URLs of servers to leave out of `ClusterStatus.servers`. Their problems can still be among its
            `obstacles` to a rotation.
        known: An earlier status of the same store. While the store lists the same versions, their values are not read
            again to find out which private keys they hold, unless a store did not answer then.
        check: Called with the identity before the servers are asked, for which its current root signs. An exception
            that this function raises ends the call.

    Raises:
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    version, document = await store.read()
    check(document)
    versions: tuple[SecretVersion, ...] = ()
    try:
        versions = tuple(await store.versions())
    except ProviderAccessDeniedError:
        # A server's credentials may not list versions; the inventory reports it.
        labels = dict.fromkeys(version.labels, version.id)
    else:
        labels = {label: one.id for one in versions for label in one.labels}
    if grace is None:
        from goatherd.rotation.policy import Policy

        grace = (policy or Policy()).grace
    keys_ms = SystemClock().now_ms()
    if (
        known is not None
        and (known.versions, known.version) == (versions, version.id)
        and (_is_lasting(known.keys) or abs(keys_ms - known.keys_ms) < milliseconds(SEARCH_AGAIN))
    ):
        keys, keys_ms = known.keys, known.keys_ms
    else:
        keys = await take_key_inventory(store.provider, store.secret_id, document, grace)
    store_ahead_ms = store.provider.store_clock.ahead_ms(SystemClock().now_ms())
    servers: Sequence[NodeView] = ()
    obstacles: tuple[Obstacle, ...] = ()
    progress: PhaseProgress | None = None
    if nodes is not None:
        survey = await _survey_without_probing(store, nodes, policy)
        obstacles, progress = survey.obstacles, survey.progress
        servers = [one for one in survey.nodes if one.url not in hidden]
        if nodes.addresses and not survey.nodes:  # discovery has failed
            servers = (_describe_unknown(nodes, "; ".join(one.text for one in obstacles)),)
    regions: tuple[RegionState, ...] = ()
    if store.provider.scheme == "stores":
        from goatherd.operations.stores import read_regions

        regions = await read_regions(store)
    now_ms = SystemClock().now_ms()
    return ClusterStatus(
        store=store.name,
        version=version.id,
        labels=labels,
        document=document,
        keys=keys,
        keys_ms=keys_ms,
        last_rotation=find_last_rotation(document),
        servers=tuple(servers),
        obstacles=obstacles,
        progress=progress,
        notes=(*find_warnings(document, now_ms), *clock_notes(document, store_ahead_ms, servers, now_ms)),
        store_ahead_ms=store_ahead_ms,
        at_ms=now_ms,
        written_ms=version.created_ms or None,
        versions=versions,
        regions=regions,
    )


def _describe_unknown(nodes: NodeDirectory, problem: str) -> NodeView:
    from goatherd.cluster.node import NodeView

    return NodeView(url=", ".join(nodes.addresses), reachable=False, problem=problem)


async def read_reports(nodes: NodeDirectory) -> tuple[NodeView, ...]:
    """Return what each server reports about itself, for a caller without a root to sign requests.

    Args:
        nodes: The servers.
    """
    import asyncio

    from goatherd.cluster.node import NodeView
    from goatherd.cluster.server_answers import ServerIdentity

    async def read_report(client: NodeClient) -> NodeView:
        try:
            report = await client.identity()
        except NodeError as error:
            return NodeView(url=client.base_url, reachable=isinstance(error, NodeRefusedError), problem=str(error))
        found = report or ServerIdentity()
        return NodeView(
            url=client.base_url,
            reachable=True,
            is_unmodified=report is None or found.agent is not None,
            report=found,
            signs_with=found.signer if found.agent is None else None,
            generation=found.generation,
            activity=None if found.agent is None else found.agent.activity,
        )

    try:
        return tuple(await asyncio.gather(*(read_report(client) for client in await nodes())))
    except DiscoveryError as error:
        return (_describe_unknown(nodes, str(error)),)


def _is_lasting(keys: KeyInventory) -> bool:
    """Return whether another read of the same versions would find the same keys."""
    denied = ProviderAccessDeniedError.code
    return keys.problem in (None, denied) and all(f"({denied})" in (one.problem or "") for one in keys.unsearched)


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

    rotator = make_rotator(store, await resolve_nodes(nodes), policy)
    return await rotator.survey(is_probing=False, has_remarks=False, is_reader=True)


def find_last_rotation(document: IdentityDocument) -> HistoryEntry | None:
    """Return the history entry that records how the last rotation ended; None if there is no such entry."""
    return next((entry for entry in reversed(document.history) if entry.event in _ENDINGS), None)


def decide_next_rotation(status: ClusterStatus, schedule: Schedule) -> DueDecision:
    """Return when a schedule starts the next rotation, and why.

    Args:
        status: The state of the store and the identity.
        schedule: When to rotate.
    """
    from goatherd.schedule.due import next_rotation, order_actions, read_facts

    tolerance = schedule.policy.clock_tolerance
    written_ms = status.at_ms if status.written_ms is None else status.written_ms
    facts = read_facts(status.document, status.at_ms, written_ms=written_ms, tolerance=tolerance)
    return next_rotation(order_actions(facts, schedule, status.at_ms))


def clock_notes(
    document: IdentityDocument, store_ahead_ms: int | None, nodes: Sequence[NodeView], now_ms: int
) -> list[str]:
    """Return a line for each clock that differs from this machine's, and a line if the document records future times.

    Args:
        document: The identity.
        store_ahead_ms: How far the store's clock is ahead; None if the store does not report it.
        nodes: The servers, as they were observed.
        now_ms: This machine's time, in milliseconds since 1970.
    """
    recorded_ms = recorded_ahead_ms(document, now_ms)
    clocks = (recorded_ms, store_ahead_ms, *(node.clock_ahead_ms for node in nodes))
    if not any(_is_skewed(ahead_ms) for ahead_ms in clocks):
        return []
    # Imported here, since usually there is no difference to describe.
    from goatherd.rotation.clocks import THE_STORE, describe_difference, describe_span

    seen = [(THE_STORE, store_ahead_ms), *((node.url, node.clock_ahead_ms) for node in nodes)]
    found = [
        describe_difference(name, ahead_ms) for name, ahead_ms in seen if ahead_ms is not None and _is_skewed(ahead_ms)
    ]
    if _is_skewed(recorded_ms):
        found.append(
            f"the identity contains timestamps up to {describe_span(recorded_ms)} in the future: a machine "
            "with a wrong clock wrote them, or this machine's clock is behind"
        )
    return found


def _is_skewed(ahead_ms: int | None) -> bool:
    return ahead_ms is not None and timedelta(milliseconds=abs(ahead_ms)) > SKEW_WARNING
