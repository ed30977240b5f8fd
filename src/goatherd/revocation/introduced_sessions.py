"""Find the sessions that a revoked root had introduced, and make the commits by which the new root reissues them.

Pure. Rules: a commit counts only with a valid signature of the revoked root. Only user sessions are reissued, never a
root that the revoked root has introduced. A commit depends only on the identity document and on the introduced session
(including its id and time), so every process makes the same commit, and pushing it twice has the effect of pushing it
once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from goatherd.derived_ids import derived_id
from goatherd.errors import DecodeError, VerificationError
from goatherd.identity.revocations import FrozenList, commit_digest
from goatherd.identity.session import SESSION_LIFETIME, OwnedSession, Session
from goatherd.identity.session_commits import preferred_session, session_from_commit, verify_commit_by
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.trust import map_in_threads
from goatherd.wire.commit import Commit

_SLACK: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduced:
    """A session that the revoked root had introduced.

    Attributes:
        session: The session, as the best of the root's words about it says.
        commit_id: The commit that introduces it again.
        parents: The commits of its key that nothing follows; the new one follows all of them.
        is_long: It lives longer than any session that GoatDB makes.
    """

    session: Session
    commit_id: str
    parents: tuple[str, ...]
    is_long: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroducedSessions:
    """What a revoked root had introduced.

    Attributes:
        sessions: User sessions, in the order of the log.
        rogue_roots: Roots that it introduced and that the identity does not list.
        forged: Commits that claim to be its own and are not.
        left_out: Sessions that the operator does not want introduced again.
    """

    sessions: tuple[Introduced, ...]
    rogue_roots: tuple[str, ...]
    forged: int
    left_out: tuple[str, ...]


def survey(
    commits: Iterable[Commit],
    revoked: Session,
    *,
    successor_id: str,
    roots: Collection[str],
    frozen: FrozenList | None = None,
    leave_out: Collection[str] = (),
    executor: Executor | None = None,
) -> IntroducedSessions:
    """Look through ``/sys/sessions``.

    Args:
        commits: All that any node holds, in any order.
        revoked: The revoked root.
        successor_id: Who introduces again.
        roots: Ids of the identity's roots.
        frozen: What counts of the revoked root's commits; None counts all of them, which is good for a look only.
        leave_out: Ids of sessions not to be introduced again.
        executor: Spreads the signatures.
    """
    by_key: dict[str, list[Commit]] = {}
    parents: set[str] = set()
    claimed: list[Commit] = []
    for commit in commits:
        by_key.setdefault(commit.key, []).append(commit)
        parents.update(commit.parents)
        if commit.session == revoked.id:
            claimed.append(commit)
    found: dict[str, tuple[Session, bool]] = {}
    rogue: dict[str, None] = {}
    forged = 0
    verdicts = map_in_threads(lambda commit: _introduced_by(revoked, commit), claimed, executor)
    for commit, session in zip(claimed, verdicts, strict=True):
        if session is None:
            forged += 1
        elif session.is_root:
            if session.id not in roots:
                rogue[session.id] = None
        # SECURITY: what a thief got into a server that had not heard yet must not get the successor's signature
        # (tests/cluster/test_revocation.py).
        elif frozen is None or commit_digest(commit) in frozen.digests:
            known = found.get(session.id)
            longest = commit.ts + (SESSION_LIFETIME + _SLACK).total_seconds() * 1000
            is_long = session.expiration_ms > longest or (known is not None and known[1])
            found[session.id] = (preferred_session(known[0] if known else None, session), is_long)
    sessions = []
    for session, is_long in found.values():
        if session.id in leave_out:
            continue
        commit_id = derived_id(
            "introduction-again",
            f"{revoked.id}/{successor_id}/{session.id}/{session.owner or ''}/{session.expiration_ms}",
        )
        leaves = [one.id for one in by_key[session.id] if one.id not in parents and one.id != commit_id]
        sessions.append(
            Introduced(session=session, commit_id=commit_id, parents=tuple(sorted(leaves)), is_long=is_long)
        )
    return IntroducedSessions(
        sessions=tuple(sessions),
        rogue_roots=tuple(rogue),
        forged=forged,
        left_out=tuple(sorted(found.keys() & set(leave_out))),
    )


def introduce_again(
    introduced: Sequence[Introduced], *, signer: OwnedSession, at: int, org: str, executor: Executor | None = None
) -> list[dict[str, Any]]:
    """Return the commits, signed.

    Args:
        introduced: What to introduce.
        signer: The root that signs now.
        at: When the other one was revoked, in milliseconds since 1970: the commits' time.
        org: The organization; it is part of what is signed.
        executor: Spreads the signatures.
    """

    def make(one: Introduced) -> dict[str, Any]:
        return make_session_commit(
            one.session, signer=signer, commit_id=one.commit_id, ts=at, org=org, parents=one.parents
        )

    return map_in_threads(make, introduced, executor)


def decode_commits(raw: Iterable[Any], org: str) -> list[Commit]:
    """Return the commits that can be read."""
    commits = []
    for one in raw:
        try:
            commits.append(Commit.from_json(one, org=org))
        except DecodeError:
            continue
    return commits


def _introduced_by(root: Session, commit: Commit) -> Session | None:
    try:
        session = session_from_commit(commit)
        verify_commit_by(root, commit)
    except (DecodeError, VerificationError):
        return None
    return session
