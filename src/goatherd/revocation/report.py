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
    """Commits of a revoked root that one server alone says it holds, of one item; all by that server's word.

    Attributes:
        path: The repository.
        key: The item; in ``/sys/sessions`` the session that is introduced.
        commits: How many.
        first_ms, last_ms: Earliest and latest time that they bear, which their author chose; None where none is a time.
    """

    path: str
    key: str
    commits: int
    first_ms: int | None
    last_ms: int | None


@dataclass(slots=True, kw_only=True)
class NodeOutcome:
    """How a revocation went at one node.

    Attributes:
        is_unmodified: It runs unmodified GoatDB, which goes on trusting the root.
        refuses: The server has the revocation.
        held: How many commits of the root it holds.
        in_flight: How many of the list it did not hold yet: they reach it from the others.
        late: How many it holds beyond a list that was closed without it; no other server accepts them.
        is_distrusted: Its list counts for nothing, as the operator has said.
        is_sole: It is the only server whose list counts, so there is no other list to compare it with.
        alone: How many commits of the root only it says it holds, and do not count for that.
        claims: What they are; `alone` may be more, where it does not tell or there are too many.
        counted_alone: How many commits that only it says it holds count, as the operator has said.
        introduced: How many sessions it was seen to hold from the successor.
        problem: What went wrong, for people.
    """

    url: str
    is_unmodified: bool = False
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
    """How a revocation stands at the end of a run.

    Attributes:
        revoked_id, current_id: The root, and who signs now.
        generation: Of the identity.
        has_proof: Nodes that know no other root follow by themselves.
        closed: What the cluster held is on record.
        frozen: How many commits that is.
        settled: The root's word counts for no session any more.
        sessions: How many sessions are to be introduced again.
        pushed: How many of them this run has pushed.
        long_lived: Sessions that live longer than GoatDB lets any live: look at them.
        rogue_roots: Roots that only the revoked root had introduced.
        forged: Commits that claim to be the root's and are not.
        left_out: Sessions that were not introduced again, as asked.
        destroyed, given_up: Versions whose value was destroyed; and those that the store may keep for longer.
        kept: Versions with a revoked key that were to be destroyed, and stay because of a label that is not Goatherd's.
        keys_left: Versions that still hold the revoked root's private key.
        unknown_left: Versions that an interrupted change has left and whose keys cannot be known.
        also_stored: Other roots whose private keys the store holds: what was stolen from the store is stolen with them.
        seconds: How long each part took.
        node_calls, store_calls: How many requests were made.
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
    forged: int = 0
    left_out: tuple[str, ...] = ()
    late_sessions: tuple[str, ...] = ()
    destroyed: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    keys_left: tuple[str, ...] = ()
    unknown_left: tuple[str, ...] = ()
    also_stored: tuple[str, ...] = ()
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
        """Whether nothing is left to do that `goatherd revoke` can do.

        Unmodified servers keep no frozen list. Where there are no others, the sessions must be reissued at each.
        """
        ours = [node for node in self.nodes if not node.is_unmodified and not node.is_distrusted]
        if self.kept:
            return False
        if self.has_only_unmodified:
            return all(node.problem is None and node.introduced == self.sessions for node in self.nodes)
        return self.closed and self.settled and all(node.refuses and node.problem is None for node in ours)


def count_claims(told: Iterable[HeldCommit]) -> tuple[Claim, ...]:
    """Return what a node says of the commits that it alone claims, an item each; sessions first."""
    by_item: dict[tuple[str, str], list[HeldCommit]] = {}
    for one in told:
        by_item.setdefault((one.path, one.key), []).append(one)
    claims = []
    for (path, key), commits in by_item.items():
        times = [one.ts for one in commits if one.ts is not None]
        first, last = min(times, default=None), max(times, default=None)
        claims.append(Claim(path=path, key=key, commits=len(commits), first_ms=first, last_ms=last))
    return tuple(sorted(claims, key=lambda one: (one.path != SESSIONS_PATH, one.path, one.last_ms or 0, one.key)))
