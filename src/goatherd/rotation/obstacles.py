"""Find everything that prevents a new rotation from starting, for the commands rotate, doctor, status and controller.

The functions are pure: they take what was observed, and return obstacles, each with a hint what to do about it.

What could not be observed is no obstacle, with one exception: a listed server that did not answer, because the first
step of a rotation needs its answer. A problem that does not stop a rotation is a remark (`find_remarks`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import goatherd
from goatherd.cluster.node import NodeView, group_by_version
from goatherd.errors import ConfigurationError, LifetimeError, StoreWentBackError, WrongClockError
from goatherd.identity.document import IdentityDocument, Phase, source_digest
from goatherd.identity.key_age import EXPIRED_HINT
from goatherd.identity.lineage import DIGEST_CHARACTERS, Lineage
from goatherd.identity.session import REQUEST_WINDOW
from goatherd.rotation.clocks import Clocks, describe_difference, describe_span
from goatherd.rotation.observation import Observation, StoreView
from goatherd.rotation.policy import Policy, check_lifetime, check_quorum

if TYPE_CHECKING:
    from goatherd.rotation.machine import PhaseProgress

CLOCK_TOLERANCE: Final = timedelta(minutes=2)
"""Maximum difference between two clocks at which a rotation may begin.

COMPAT: a GoatDB server rejects a request whose signing time differs from its own clock by more than three minutes.
"""

PEER_HINT: Final = (
    "Start each server with `--peer URL` for every other one (`goatherd serve`), or `peers` for an unmodified GoatDB "
    "server, and see that they reach each other."
)
ORGANIZATION_HINT: Final = (
    "If the application serves several organizations, give --node the host name of this organization."
)


_SHOWN: Final = 5
_WAYS_OUT: Final = (
    "The store holds an older or a different identity than before: a backup was restored, an older version was made"
    " current, or a replica lags. Either put the later state back into the store (if another region's store holds it,"
    " `goatherd stores status` states how); or accept what the store holds, by starting every server once with"
    " --accept-identity (how-to page: The store was restored from a backup)."
)


class ObstacleKind(StrEnum):
    """The kind of an obstacle, which prevents a new rotation from starting, such as a server that does not answer."""

    UNREACHABLE = "unreachable"
    OTHER_IDENTITY = "other identity"
    UNTRUSTED = "does not trust the current root"
    REJECTS = "rejects the identity"
    WITHOUT_STORE = "cannot read the store"
    STORE_BEHIND = "store is behind"
    FORKED = "another history"
    NO_FLOW = "no synchronization"
    NAMED_TWICE = "named twice"
    SHARED_URL = "several servers at one URL"
    UNLISTED_PEER = "server that is not listed"
    CLOCK = "clock"
    OWN_CLOCK = "clock of this machine"
    QUORUM = "quorum"
    LIFETIME = "lifetime"
    EXPIRED = "expired"
    UNHEALTHY = "unhealthy"
    NODES_UNKNOWN = "servers unknown"
    FOLLOWER_BEHIND = "store of a region is behind"
    FOLLOWER_DIFFERS = "store of a region cannot follow"
    ANCHOR = "anchor"
    CANNOT_SIGN = "cannot sign in direct mode"
    NO_ROOM = "no room in the identity document"


WENT_BACK: Final = frozenset({ObstacleKind.STORE_BEHIND, ObstacleKind.FORKED})
"""The obstacles which mean that the store holds an older identity than before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """One reason why a new rotation cannot begin now.

    Attributes:
        text: What is wrong and where, as a sentence without a full stop.
        hint: What the operator can do about the obstacle.
        nodes: URLs of the servers that the obstacle concerns.
    """

    kind: ObstacleKind
    text: str
    hint: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The result of the checks before a rotation.

    Attributes:
        obstacles: Why the rotation would be refused; empty if it would start.
        remarks: What the operator should know although it does not prevent the rotation.
        is_in_progress: Whether a rotation is in progress. If so, the obstacles are what prevents it from continuing.
        progress: The progress of the rotation; None if none is in progress.
        nodes: The servers, as they were observed for these checks.
    """

    obstacles: tuple[Obstacle, ...]
    remarks: tuple[str, ...]
    is_in_progress: bool = False
    progress: PhaseProgress | None = None
    nodes: tuple[NodeView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Which servers synchronize commits with each other, as far as they report it.

    Attributes:
        groups: URLs of the servers that answered and report their peers, in groups; a commit that one server accepts
            reaches all servers of its group.
        silent: URLs of the servers that answered and do not report their peers.
        is_vague: Whether a server has a peer that it cannot identify or has not reached yet, so that the groups may be
            larger than they seem.
    """

    groups: tuple[tuple[str, ...], ...]
    silent: tuple[str, ...]
    is_vague: bool

    @property
    def is_proven(self) -> bool:
        """Whether the servers' reports prove that every commit that a server accepts reaches all other servers."""
        return len(self.groups) + len(self.silent) <= 1

    @property
    def is_interrupted(self) -> bool:
        """Whether the servers' reports prove that some servers do not synchronize with the others."""
        return len(self.groups) > 1 and not self.silent and not self.is_vague


def find_flow(nodes: Sequence[NodeView]) -> Flow:
    """Return which servers synchronize commits with each other, according to their reports.

    A server both sends commits to a peer and fetches commits from it. So two servers synchronize if one of them reports
    the other as its peer.
    """
    telling = [node for node in nodes if node.instance is not None and node.partners is not None]
    known = {node.url for node in telling}
    parent: dict[str, str] = {}

    def find_top(instance: str) -> str:
        while parent.setdefault(instance, instance) != instance:
            instance = parent[instance]
        return instance

    for node in telling:
        for partner in node.partners or ():
            parent[find_top(partner)] = find_top(node.instance or "")
    groups: dict[str, list[str]] = {}
    for node in telling:
        groups.setdefault(find_top(node.instance or ""), []).append(node.url)
    return Flow(
        groups=tuple(tuple(urls) for urls in groups.values()),
        silent=tuple(node.url for node in nodes if node.reachable and node.url not in known),
        is_vague=any(node.is_partner_unknown for node in telling),
    )


def find_named_twice(nodes: Sequence[NodeView]) -> tuple[tuple[str, ...], ...]:
    """Return groups of URLs, each of which belongs to one server process: that server is listed more than once."""
    urls: dict[str, list[str]] = {}
    for node in nodes:
        if node.instance is not None:
            urls.setdefault(node.instance, []).append(node.url)
    return tuple(tuple(same) for same in urls.values() if len(same) > 1)


def compare_clocks(observation: Observation, policy: Policy) -> Clocks:
    """Return how the clocks of the store and the servers differ from this machine's clock."""
    return Clocks(
        store_ahead_ms=observation.store.clock_ahead_ms,
        servers_ahead_ms={node.url: node.clock_ahead_ms for node in observation.nodes},
        tolerance=policy.clock_tolerance,
    )


def find_clock_obstacle(clocks: Clocks) -> Obstacle | None:
    """Return an obstacle if this machine's clock is so wrong that nothing may be written; None if it is right."""
    if not clocks.is_ours_wrong:
        return None
    lines = clocks.describe_differences()
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return Obstacle(
        kind=ObstacleKind.OWN_CLOCK,
        text=f"this machine's clock is wrong, or the others are: {'; '.join(lines[:_SHOWN])}{more}",
        hint="Set this machine's clock by NTP. If it is right, set the others'; or, to write in spite of the "
        "difference, raise rotation.clock_tolerance (GOATHERD_ROTATION_CLOCK_TOLERANCE).",
        nodes=tuple(url for url, ahead_ms in clocks.servers_ahead_ms.items() if clocks.differs(ahead_ms)),
    )


def check_own_clock(store_ahead_ms: int | None, servers: Mapping[str, int | None], tolerance: timedelta) -> None:
    """Check that this machine's clock is right before a write.

    Args:
        store_ahead_ms: How far the store's clock is ahead of this machine's; None if it is unknown.
        servers: The same for each server, by URL.
        tolerance: `Policy.clock_tolerance`.

    Raises:
        WrongClockError: This machine's clock is wrong, judged by the other clocks. Nothing was written.
    """
    clocks = Clocks(store_ahead_ms=store_ahead_ms, servers_ahead_ms=servers, tolerance=tolerance)
    obstacle = find_clock_obstacle(clocks)
    if obstacle is not None:
        raise wrong_clock_error((obstacle,))


def wrong_clock_error(obstacles: Collection[Obstacle]) -> WrongClockError:
    """Return the error for a command that may not write, because one of its obstacles is this machine's wrong clock."""
    # Other obstacles may be mere effects of the wrong clock.
    hint = next(one.hint for one in obstacles if one.kind is ObstacleKind.OWN_CLOCK)
    text = "; ".join(one.text for one in obstacles)
    return WrongClockError(f"nothing was written: {text}", obstacles=tuple(obstacles), hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """The state of the identity in the store, to be compared with the identities that servers use.

    Attributes:
        generation: Number of the identity document; each write raises it by one.
        digest: SHA-256 of the document's text, hexadecimal.
        lineage: The digests of the document's predecessors, as far as the document names them.
    """

    generation: int
    digest: str
    lineage: Lineage | None = None

    @classmethod
    def from_document(cls, document: IdentityDocument) -> StoredState:
        return cls(generation=document.generation, digest=source_digest(document), lineage=document.lineage)

    def is_behind(self, generation: int) -> bool:
        """Return whether the store's identity is older than the one that a server uses, which has this generation."""
        return generation > self.generation

    def is_other(self, generation: int, digest: str | None) -> bool:
        """Return whether a server uses an identity document that the store neither holds now nor held before.

        Args:
            generation: Generation of the document that the server uses. If it is later than the store's, the result is
                False, because then the store is behind (`is_behind`).
            digest: SHA-256 of that document; None if it is unknown, and then the result is False.
        """
        if digest is None or generation > self.generation:
            return False
        if generation == self.generation:
            return self.digest[:DIGEST_CHARACTERS] != digest[:DIGEST_CHARACTERS]
        return self.lineage is not None and self.lineage.contradicts(generation, digest)


def find_contradiction(url: str, generation: int | None, digest: str | None, held: StoredState) -> Obstacle | None:
    """Return an obstacle if a server uses an identity that cannot have come from this store's history; else None.

    Args:
        url: URL of the server.
        generation: Generation of the identity that the server uses; None if it does not report one.
        digest: Digest of that identity's text; None if it does not report one.
        held: The state of the store.
    """
    if generation is None:
        return None
    if held.is_behind(generation):
        kind = ObstacleKind.STORE_BEHIND
        text = f"{url} has seen generation {generation} of the identity, and the store holds generation"
        text = f"{text} {held.generation}"
    elif held.is_other(generation, digest):
        kind = ObstacleKind.FORKED
        text = f"{url} uses another generation {generation} of the identity than the one"
        here = "that the store holds" if generation == held.generation else "that the store's identity has grown from"
        text = f"{text} {here}"
    else:
        return None
    return Obstacle(kind=kind, text=text, hint=_WAYS_OUT, nodes=(url,))


def went_back_error(obstacles: Iterable[Obstacle]) -> StoreWentBackError:
    """Return the error for a store that holds an older or a different identity than a server has used."""
    found = tuple(obstacles)
    urls = [url for one in found for url in one.nodes]
    return StoreWentBackError(
        f"nothing was written: {'; '.join(one.text for one in found)}",
        obstacles=found,
        hint=f"{_WAYS_OUT} If a server is wrong, overrule it with --distrust {urls[0]}.",
    )


def find_obstacles(
    observation: Observation, policy: Policy, now_ms: int, *, silent: frozenset[str], is_restore: bool = False
) -> tuple[Obstacle, ...]:
    """Return every obstacle that prevents a new rotation from starting: first the clock, then identity, then servers.

    Args:
        observation: The state of the store and the servers.
        policy: Timeouts and quorum of the rotation.
        now_ms: Milliseconds since 1970.
        silent: URLs of the servers that have not accepted a request signed by the current root, except those that a
            configured quorum leaves out.
        is_restore: Whether the next root is a previous one, which needs no introduction by the current root.
    """
    own_clock = find_clock_obstacle(compare_clocks(observation, policy))
    is_expired = now_ms > observation.store.current_expires_ms
    return (
        *(() if own_clock is None else (own_clock,)),
        *_of_the_store(observation, policy, now_ms, is_restore=is_restore),
        *_of_the_policy(observation, policy, is_restore=is_restore),
        *_of_the_anchor(observation),
        *_of_direct_mode(observation),
        *_of_the_list(observation, policy),
        *(
            one
            for node in observation.nodes
            for one in _of_a_node(
                node,
                observation.store,
                is_silent=node.url in silent,
                is_distrusted=node.url in policy.distrust,
            )
            # Every server rejects what an expired root signs; that is no fault of the server, nor of the peers that it
            # was given.
            if not (one.kind is ObstacleKind.UNTRUSTED and is_expired)
            and not (one.kind is ObstacleKind.CLOCK and own_clock is not None)
        ),
        *(() if is_expired else _of_the_flow(observation)),
        *find_follower_obstacles(observation),
    )


def find_follower_obstacles(observation: Observation) -> tuple[Obstacle, ...]:
    """Return one obstacle for each region whose store does not yet show what the primary store holds."""
    return tuple(
        Obstacle(
            kind=ObstacleKind.FOLLOWER_DIFFERS if one.is_lasting else ObstacleKind.FOLLOWER_BEHIND,
            text=f"the store of region {one.region} does not show what the primary store holds: {one.problem}",
            hint=one.hint
            if one.is_lasting
            else f"{one.hint} `goatherd stores status` shows each region. If region {one.region} is lost,"
            f" `--allow-lagging {one.region}` leaves its store out.".lstrip(),
        )
        for one in observation.holding
    )


def _of_the_anchor(observation: Observation) -> Iterator[Obstacle]:
    if observation.anchor_problem is not None:
        text, hint = observation.anchor_problem
        yield Obstacle(kind=ObstacleKind.ANCHOR, text=f"the anchor cannot sign: {text}", hint=hint)


def _of_direct_mode(observation: Observation) -> Iterator[Obstacle]:
    if observation.direct_key is None:
        return
    for node in observation.nodes:
        problem = node.why_cannot_sign(observation.direct_key) if node.reachable else None
        if problem is not None:
            yield Obstacle(
                kind=ObstacleKind.CANNOT_SIGN,
                text=f"{node.url} {problem}",
                hint="In direct mode each server signs with the key. Every server must be `goatherd serve` of this"
                " version, started with --root-signer URI, and have the rights that"
                " `goatherd policy SCHEME --role signer URI` prints.",
                nodes=(node.url,),
            )


def _of_the_store(observation: Observation, policy: Policy, now_ms: int, *, is_restore: bool) -> Iterator[Obstacle]:
    store = observation.store
    if store.phase is Phase.STEADY and not is_restore and now_ms > store.current_expires_ms:
        text = f"root {store.current_id} has expired: servers and clients reject what it signs now"
        yield Obstacle(kind=ObstacleKind.EXPIRED, text=text, hint=EXPIRED_HINT)
    clocks, ahead_ms = compare_clocks(observation, policy), store.recorded_ahead_ms
    is_unknown = not clocks.is_ours_wrong and not clocks.is_ours_confirmed
    if is_unknown and timedelta(milliseconds=ahead_ms) > policy.clock_tolerance:
        yield Obstacle(
            kind=ObstacleKind.CLOCK,
            text=f"the identity was last written {describe_span(ahead_ms)} after the time that this machine's clock "
            "shows, and no server or store tells which clock is right",
            hint="Set this machine's clock by NTP. If it is right, list the servers, or raise rotation.clock_tolerance "
            "(GOATHERD_ROTATION_CLOCK_TOLERANCE) for this one run.",
        )
    if observation.health is not None and observation.health.failures:
        text = f"the health check fails: {observation.health.problem}"
        yield Obstacle(kind=ObstacleKind.UNHEALTHY, text=text, hint="Repair the cluster, or the health check itself.")


def _of_the_policy(observation: Observation, policy: Policy, *, is_restore: bool) -> Iterator[Obstacle]:
    try:
        check_quorum(policy, 0 if observation.are_nodes_discovered else len(observation.nodes))
    except ConfigurationError as error:
        yield Obstacle(kind=ObstacleKind.QUORUM, text=str(error), hint=error.hint)
    if not policy.unlisted:
        yield from _of_unlisted_peers(observation, policy)
        for node in observation.nodes:
            if node.is_shared:
                yield Obstacle(
                    kind=ObstacleKind.SHARED_URL,
                    text=f"several servers answer at {node.url} in turn, so a rotation cannot wait for each of them",
                    hint="List the URL of each server, not that of a load balancer; dns:// and k8s-service:// URLs"
                    " discover servers. If they cannot be listed, give --unlisted TIME, such as 5m: how long they may"
                    " take to read the store.",
                    nodes=(node.url,),
                )
    if is_restore or observation.store.phase is not Phase.STEADY:
        return
    try:
        check_lifetime(policy, unmodified=[node.url for node in observation.nodes if node.is_unmodified])
    except LifetimeError as error:
        yield Obstacle(kind=ObstacleKind.LIFETIME, text=str(error), hint=error.hint)


def _of_unlisted_peers(observation: Observation, policy: Policy) -> Iterator[Obstacle]:
    if observation.are_nodes_discovered:
        return  # the next observation discovers a server that has just joined
    reporters: dict[str, list[str]] = {}
    for node in observation.nodes:
        if node.url not in policy.distrust:
            for peer in node.unlisted_peers:
                if peer not in policy.distrust:
                    reporters.setdefault(peer, []).append(node.url)
    for peer, urls in reporters.items():
        yield Obstacle(
            kind=ObstacleKind.UNLISTED_PEER,
            text=f"{peer}, a peer of {_join_names(urls)}, trusts the same root and is not listed: a rotation does not"
            " wait for it",
            hint=f"List it with --node {peer}. To leave it out, name it with --distrust {peer}. If servers cannot be"
            " reached from here, give --unlisted TIME, such as 5m: how long they may take to read the store.",
            nodes=tuple(urls),
        )


def _of_the_list(observation: Observation, policy: Policy) -> Iterator[Obstacle]:
    if observation.nodes_unknown is not None:
        text = f"the servers of the cluster are not known: {observation.nodes_unknown}"
        yield Obstacle(
            kind=ObstacleKind.NODES_UNKNOWN, text=text, hint="List them with --node URL, or repair the discovery."
        )
    total = len(observation.nodes)
    if observation.are_nodes_discovered or policy.quorum.needed(total) == total:
        return  # discovery may find a server twice; and a rotation that waits for every URL loses nothing by it
    for urls in find_named_twice(observation.nodes):
        yield Obstacle(
            kind=ObstacleKind.NAMED_TWICE,
            text=f"{_join_names(urls)} are the same server",
            hint="Name each server once: a server that is named twice counts twice in a quorum.",
            nodes=urls,
        )


def _of_a_node(node: NodeView, store: StoreView, *, is_silent: bool, is_distrusted: bool) -> Iterator[Obstacle]:
    url, urls = node.url, (node.url,)
    contradiction = None if is_distrusted else _find_contradiction(node, store)
    if contradiction is not None:
        yield contradiction
    if is_silent and contradiction is not None:
        return  # the contradiction explains why the server rejects requests of the store's root
    if is_silent:
        yield explain_silence(node, store.root_ids, current_id=store.current_id, generation=store.generation)
        return
    if node.rejects is not None:
        yield Obstacle(
            kind=ObstacleKind.REJECTS,
            text=f"{url} rejects the identity that the store holds: {node.rejects}",
            hint=f"The log of the server states the reason. Check that {url} belongs to this store.",
            nodes=urls,
        )
    if node.without_store:
        yield Obstacle(
            kind=ObstacleKind.WITHOUT_STORE,
            text=f"{url} cannot read the store, so it would not learn of a new root",
            hint="The log of the server states the reason; `goatherd doctor --as-server` on that machine checks its"
            " access to the store.",
            nodes=urls,
        )
    ahead_ms = node.clock_ahead_ms or 0
    if abs(ahead_ms) > CLOCK_TOLERANCE / timedelta(milliseconds=1):
        yield Obstacle(
            kind=ObstacleKind.CLOCK,
            text=describe_difference(url, ahead_ms),
            hint="Set the clocks of both machines by NTP.",
            nodes=urls,
        )


def _find_contradiction(node: NodeView, store: StoreView) -> Obstacle | None:
    if node.is_of_another_identity(store.root_ids):
        return None
    held = StoredState(generation=store.generation, digest=store.digest, lineage=store.lineage)
    return find_contradiction(node.url, node.generation, node.digest if store.digest else None, held)


def explain_silence(node: NodeView, root_ids: Set[str], *, current_id: str, generation: int) -> Obstacle:
    """Return why a server has not accepted a request signed by the current root.

    Args:
        node: The server.
        root_ids: The roots that the identity in the store lists.
        current_id: The current root.
        generation: Generation of the identity in the store.
    """
    url, urls, root = node.url, (node.url,), current_id
    if node.activity is not None and node.trusts_current is not False:
        return Obstacle(
            kind=ObstacleKind.UNREACHABLE,
            text=f"{url} {node.activity}",
            hint="Try again when the server is ready; `goatherd status` shows its state.",
            nodes=urls,
        )
    if not node.reachable:
        return Obstacle(
            kind=ObstacleKind.UNREACHABLE,
            text=f"{url} did not answer{_describe_problem(node)}",
            hint="Every listed server must accept a request signed by the current root before a rotation begins. Start"
            " the server, or remove it from the list if it no longer exists. If its agent has ended with exit status"
            f" 12, the server exposed the key: in place of the rotation, run goatherd revoke {root}.",
            nodes=urls,
        )
    if node.is_of_another_identity(root_ids):
        return Obstacle(
            kind=ObstacleKind.OTHER_IDENTITY,
            text=f"{url} belongs to another identity: it signs with root {node.signs_with} and trusts "
            f"{', '.join((node.roots or ())[:5])}, not root {root}",
            hint="Is --provider the store that this server starts from? Is --node the right server? (A server that was"
            " down for many rotations learns the current root when it reads the store.)",
            nodes=urls,
        )
    ahead_ms = node.clock_ahead_ms
    if node.trusts_current is False and ahead_ms is not None and timedelta(milliseconds=abs(ahead_ms)) > REQUEST_WINDOW:
        return Obstacle(
            kind=ObstacleKind.UNTRUSTED,
            text=f"{describe_difference(url, ahead_ms)}, so the server rejects this machine's requests",
            hint="Set the clocks of both machines by NTP.",
            nodes=urls,
        )
    if node.trusts_current is False and node.roots is not None:
        signs = (
            "with which root it signs is not known" if node.signs_with is None else f"it signs with {node.signs_with}"
        )
        more = "" if node.report.agent is None else f" {ORGANIZATION_HINT}"
        return Obstacle(
            kind=ObstacleKind.UNTRUSTED,
            text=f"{url} rejects a request signed by the current root {root}: {signs}, at generation {node.generation}"
            f" of {generation}, or its clock is wrong",
            hint="Check whether the server can read the store, and whether its clock is right (`goatherd doctor`"
            f" compares the clocks).{more}",
            nodes=urls,
        )
    if node.trusts_current is False:
        return Obstacle(
            kind=ObstacleKind.UNTRUSTED,
            text=f"{url} rejects a request signed by the current root {root}: it belongs to another identity, or its "
            "clock differs by more than three minutes",
            hint="Is --provider the store that this server starts from? Is its clock right (`goatherd doctor` compares"
            " the clocks)?",
            nodes=urls,
        )
    return Obstacle(
        kind=ObstacleKind.UNREACHABLE,
        text=f"{url} gave no usable answer to a request signed by the current root{_describe_problem(node)}",
        hint="Check that it is a GoatDB server and that it works.",
        nodes=urls,
    )


def _of_the_flow(observation: Observation) -> Iterator[Obstacle]:
    # A server of another cluster is an obstacle of its own, and must not become a peer of these servers.
    own = [node for node in observation.nodes if not node.is_of_another_identity(observation.store.root_ids)]
    flow, probe = find_flow(own), observation.flow
    if flow.is_interrupted:
        urls = tuple(url for group in flow.groups for url in group)
        between = "; ".join(f"{_join_names(group)}" for group in flow.groups)
        what = "each on its own: " if all(len(group) == 1 for group in flow.groups) else "in separate groups: "
        yield Obstacle(
            kind=ObstacleKind.NO_FLOW,
            text=f"the servers do not synchronize; they run {what}{between}",
            hint=PEER_HINT,
            nodes=urls,
        )
    elif probe is not None and probe.unreached:
        yield Obstacle(
            kind=ObstacleKind.NO_FLOW,
            text=f"a session at {probe.at} did not reach {_join_names(probe.unreached)}: the servers "
            "do not synchronize",
            hint=PEER_HINT,
            nodes=(probe.at, *probe.unreached),
        )
    elif probe is not None and probe.problem is not None:
        yield Obstacle(
            kind=ObstacleKind.NO_FLOW,
            text=f"{probe.at} could not create a session to check whether the servers synchronize: {probe.problem}",
            hint="Check that this server works.",
            nodes=(probe.at,),
        )


def find_remarks(
    observation: Observation,
    policy: Policy,
    *,
    foreign_labels: Mapping[str, str] | None = None,
    damaged: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return remarks for the operator before a rotation, about problems that do not prevent it.

    Args:
        observation: The state of the store and the servers.
        policy: The rotation's policy; it says by how much clocks may differ.
        foreign_labels: Labels that other tools have set, each with the version that it points at.
        damaged: Ids of stored versions that cannot be read, each with the reason.
    """
    store, found = observation.store, list[str]()
    if store.rotation_id is not None:
        found.append(
            f"rotation {store.rotation_id} is in progress, phase {store.phase}: `goatherd rotate` without --resume is "
            "refused"
        )
    found += [
        f"{node.url} signs with {node.signs_with} still, not with {store.current_id}"
        for node in observation.nodes
        if store.phase is Phase.STEADY and node.signs_with not in (None, store.current_id) and not node.is_bare
    ]
    ahead_ms = store.recorded_ahead_ms
    if (
        timedelta(milliseconds=ahead_ms) > policy.clock_tolerance
        and compare_clocks(observation, policy).is_ours_confirmed
    ):
        found.append(
            f"the identity contains timestamps up to {describe_span(ahead_ms)} in the future: a machine with a wrong "
            "clock wrote them; they count as the time of the write, and the next change corrects them"
        )
    found += [f"{_join_names(urls)} are the same server" for urls in find_named_twice(observation.nodes)]
    flow = find_flow(observation.nodes)
    if not flow.is_proven and not flow.is_interrupted and observation.flow is None:
        urls = (*flow.silent, *(url for group in flow.groups for url in group))
        found.append(
            f"{_join_names(urls)} do not report their peers: before it writes, `goatherd rotate` checks, "
            "like `goatherd doctor`, that today's sessions have reached all of them, and creates one if there are "
            "none"
        )
    found += [
        f"label {label!r} is on version {version}: `goatherd retire` does not destroy that version"
        for label, version in sorted((foreign_labels or {}).items())
    ]
    found += [
        f"version {version} cannot be read ({why}), so it is unknown which private keys it holds"
        for version, why in sorted((damaged or {}).items())
    ]
    return (*found, *_describe_versions(observation.nodes))


def _describe_versions(nodes: Sequence[NodeView]) -> list[str]:
    """Return a remark if the servers run different versions of Goatherd, or one that differs from this command's.

    The list is empty if there is nothing to remark.

    COMPAT: `goatherd revoke` does not finish if a server is newer than the command (how-to page: Upgrade Goatherd).
    """
    groups = group_by_version(nodes)
    if len(groups) > 1:
        parts = [f"{version or 'unknown'} at {_join_names([one.url for one in on])}" for version, on in groups.items()]
        versions = "; ".join(parts)
        return [f"the servers run different versions of Goatherd: {versions} (how-to page: Upgrade Goatherd)"]
    return [
        f"the servers run Goatherd {version}, and this command is Goatherd {goatherd.__version__}; `goatherd revoke` "
        "does not finish with servers that are newer than the command (how-to page: Upgrade Goatherd)"
        for version in groups
        if version not in (None, goatherd.__version__)
    ]


def _describe_problem(node: NodeView) -> str:
    """Return why a server could not be observed, in parentheses and without the request's name; empty if unknown."""
    if not node.problem:
        return ""
    return f" ({node.problem.split('; ')[0].rpartition(': ')[2]})"


def _join_names(urls: Sequence[str]) -> str:
    listed = [*urls[:5], *([f"{len(urls) - 5} more"] if len(urls) > 5 else [])]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
