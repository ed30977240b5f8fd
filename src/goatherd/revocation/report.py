"""The progress of a revocation, in total and at each server. Pure data: ids, counts and times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from goatherd.rotation.machine import Kept
from goatherd.wire.paths import SESSIONS_PATH

if TYPE_CHECKING:
    from goatherd.cluster.server_answers import HeldCommit


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Commits by a revoked root that change one item and that only one server reports to hold; not verified.

    Attributes:
        path: The repository of the item.
        key: The key of the item; in ``/sys/sessions``, the id of the session that is introduced.
        commits: Number of commits.
        first_ms, last_ms: Earliest and latest time of the commits, which their author chose; None if none has a valid
            time.
    """

    path: str
    key: str
    commits: int
    first_ms: int | None
    last_ms: int | None


@dataclass(slots=True, kw_only=True)
class NodeOutcome:
    """The result of a revocation at one server.

    Attributes:
        is_unmodified: Whether the server runs unmodified GoatDB, or is a Goatherd server with a settings.json. Either
            continues to trust the root.
        is_from_file: Whether the server is a Goatherd server with a settings.json.
        has_door: Whether an agent runs the server behind the door, which knows every revoked root of the identity, and
            clients cannot reach the server without the door.
        refuses: Whether the server has adopted the revocation, so that it rejects what the root signs.
        held: How many commits of the root the server holds; None if it has not reported that.
        in_flight: How many commits of the list of valid commits the server did not hold yet; it gets them from other
            servers.
        late: How many commits the server holds that are not in the list of valid commits, because the list was
            completed without this server; no other server accepts them.
        is_distrusted: Whether the server's list is ignored, because the operator distrusts the server.
        is_sole: Whether this is the only server whose list counts, so that there is no other list to compare it with.
        alone: How many commits of the root only this server reports, which are therefore not accepted.
        claims: The commits that `alone` counts, grouped by item; fewer if the server does not describe them or there
            are too many.
        counted_alone: How many commits that only this server reports are accepted, because the operator trusts it.
        introduced: How many of the reissued sessions the server holds; None if that is not known.
        problem: What went wrong at the server, human-readable; None if nothing did.
    """

    url: str
    is_unmodified: bool = False
    is_from_file: bool = False
    has_door: bool = False
    refuses: bool = False
    held: int | None = None
    in_flight: int = 0
    late: int = 0
    is_distrusted: bool = False
    is_sole: bool = False
    alone: int = 0
    claims: tuple[Claim, ...] = ()
    counted_alone: int = 0
    introduced: int | None = None
    problem: str | None = None


@dataclass(slots=True, kw_only=True)
class RevocationReport:
    """The state of a revocation at the end of a run.

    Attributes:
        revoked_id, current_id: The revoked root, and the current root.
        generation: Generation of the identity.
        has_proof: Whether servers that know only the revoked root accept its successor automatically.
        closed: Whether the list of the revoked root's valid commits is complete and recorded.
        frozen: How many commits that list has.
        settled: Whether the revoked root's signature no longer introduces any session.
        sessions: How many sessions are to be reissued.
        pushed: How many reissued sessions this run has pushed to servers.
        long_lived: Ids of sessions with a longer lifetime than GoatDB gives; the operator should check them.
        rogue_roots: Ids of roots that only the revoked root had introduced; servers no longer trust them.
        cancelled_roots: Those of them that were the next roots of cancelled rotations, by the identity's history.
        forged: Number of commits that claim to be signed by the root and are not.
        left_out: Ids of sessions that were not reissued, as requested.
        destroyed, given_up: Versions whose value was destroyed; and those whose value the store may keep for longer.
        kept: Versions with a revoked key that were not destroyed, because of a label that is not Goatherd's.
        keys_left: Versions that still hold the revoked root's private key.
        unknown_left: Versions that an interrupted change has left and whose keys cannot be known.
        also_stored: Other roots whose private keys the store holds; if the store was compromised, they were stolen,
            too.
        lagging_regions: Regions whose store lagged, so this run continued without them. Servers that read only such
            a store trust the root until the store shows the revocation.
        is_expired: In a plan: whether the current root has expired, so that the servers report neither commits nor
            sessions to the plan.
        anchor_problem: In a plan: why the anchor's signer cannot sign; None if it can, or there is no anchor.
        stable_problem: Why label ``stable`` could not be moved to the identity with the revocation; None if it was.
        seconds: How long each part of the run took, in seconds, by the name of the part.
        node_calls, store_calls: How many requests were made to servers, and to the store.
    """

    revoked_id: str
    current_id: str = ""
    generation: int = 0
    has_proof: bool = False
    closed: bool = False
    frozen: int = 0
    settled: bool = False
    sessions: int = 0
    pushed: int = 0
    long_lived: tuple[str, ...] = ()
    rogue_roots: tuple[str, ...] = ()
    cancelled_roots: tuple[str, ...] = ()
    forged: int = 0
    left_out: tuple[str, ...] = ()
    late_sessions: tuple[str, ...] = ()
    destroyed: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    keys_left: tuple[str, ...] = ()
    unknown_left: tuple[str, ...] = ()
    also_stored: tuple[str, ...] = ()
    lagging_regions: tuple[str, ...] = ()
    is_expired: bool = False
    anchor_problem: str | None = None
    stable_problem: str | None = None
    nodes: tuple[NodeOutcome, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    node_calls: int = 0
    store_calls: int = 0

    @property
    def has_only_unmodified(self) -> bool:
        """Whether servers are listed, and every one of them is an unmodified GoatDB server."""
        return bool(self.nodes) and all(node.is_unmodified for node in self.nodes)

    @property
    def is_complete(self) -> bool:
        """Whether `goatherd revoke` has nothing left to do.

        Unmodified servers keep no list of valid commits. If there are only such servers, the revocation is complete
        when each of them holds the reissued sessions.
        """
        ours = [node for node in self.nodes if not node.is_unmodified and not node.is_distrusted]
        if self.kept or self.stable_problem is not None:
            return False
        if self.has_only_unmodified:
            return all(node.problem is None and node.introduced == self.sessions for node in self.nodes)
        return self.closed and self.settled and all(node.refuses and node.problem is None for node in ours)


def count_claims(held: Iterable[HeldCommit]) -> tuple[Claim, ...]:
    """Group commits that only one server reports by the item that they change; ``/sys/sessions`` comes first."""
    by_item: dict[tuple[str, str], list[HeldCommit]] = {}
    for one in held:
        by_item.setdefault((one.path, one.key), []).append(one)
    claims = []
    for (path, key), commits in by_item.items():
        times = [one.ts for one in commits if one.ts is not None]
        first, last = min(times, default=None), max(times, default=None)
        claims.append(Claim(path=path, key=key, commits=len(commits), first_ms=first, last_ms=last))
    return tuple(sorted(claims, key=lambda one: (one.path != SESSIONS_PATH, one.path, one.last_ms or 0, one.key)))
