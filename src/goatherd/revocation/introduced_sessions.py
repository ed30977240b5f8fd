"""Find the sessions that a revoked root had introduced, and make the commits by which the new root reissues them.

Pure. Rules: an old commit is used only if the revoked root's signature on it is valid. Only user sessions are reissued,
never a root that the revoked root has introduced. A new commit, including its id and time, depends only on the identity
document and on the session. So every process makes the same commit, and it does no harm to push it twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from goatherd.crypto.keys import SignatureCheck
from goatherd.errors import DecodeError, VerificationError
from goatherd.identity.revocations import FrozenList, commit_digest
from goatherd.identity.session import SESSION_LIFETIME, OwnedSession, Session, sign_commit
from goatherd.identity.session_commits import (
    draft_session_commit,
    preferred_session,
    read_signature_by,
    session_from_commit,
)
from goatherd.trust import map_in_threads, verify_in_threads
from goatherd.wire.commit import Commit
from goatherd.wire.derived_ids import derived_id

_SLACK: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduced:
    """A session that the revoked root had introduced.

    Attributes:
        session: The session, merged from the root's commits about it.
        commit_id: Id of the commit that reissues the session.
        parents: Ids of the commits of the session that have no child; they become the parents of the new commit.
        is_long: Whether the session's lifetime is longer than that of any session that GoatDB makes.
    """

    session: Session
    commit_id: str
    parents: tuple[str, ...]
    is_long: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroducedSessions:
    """The sessions that a revoked root had introduced.

    Attributes:
        sessions: User sessions, in the order of the commits in which they were found.
        rogue_roots: Ids of roots that the revoked root had introduced and that the identity does not list.
        forged: Number of commits that claim to be signed by the revoked root and are not.
        left_out: Ids of the sessions that the operator does not want to be reissued.
        cannot_leave: Ids of sessions that the operator wants to leave out and that stay trusted nevertheless, because
            the revoked root has not introduced them, or an earlier run has reissued them.
    """

    sessions: tuple[Introduced, ...]
    rogue_roots: tuple[str, ...]
    forged: int
    left_out: tuple[str, ...]
    cannot_leave: tuple[str, ...] = ()


def find_introduced_sessions(
    commits: Iterable[Commit],
    revoked: Session,
    *,
    successor_id: str,
    roots: Collection[str],
    frozen: FrozenList | None = None,
    leave_out: Collection[str] = (),
    executor: Executor | None = None,
) -> IntroducedSessions:
    """Find the sessions in ``/sys/sessions`` that a revoked root had introduced.

    Args:
        commits: All commits that any server holds, in any order. Servers may send different commits under one id.
        revoked: The revoked root.
        successor_id: Id of the root that reissues the sessions.
        roots: Ids of the identity's roots.
        frozen: The list of the revoked root's valid commits; None to accept all of them, for a preview.
        leave_out: Ids of sessions not to be reissued.
        executor: Verifies signatures in parallel.
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
    claimed_sessions: dict[int, Session] = {}

    def read_signature(index: int) -> SignatureCheck | DecodeError | VerificationError:
        try:
            claimed_sessions[index] = session_from_commit(claimed[index])
            return read_signature_by(revoked, claimed[index])
        except (DecodeError, VerificationError) as error:
            return error

    verdicts = verify_in_threads(read_signature, range(len(claimed)), executor)
    for index, (commit, verdict) in enumerate(zip(claimed, verdicts, strict=True)):
        session = claimed_sessions[index] if verdict is None else None
        if session is None:
            forged += 1
        elif session.is_root:
            if session.id not in roots:
                rogue[session.id] = None
        # SECURITY: the new current root must not sign sessions that a thief introduced at a server that did not know
        # the revocation yet. Only frozen commits count (tests/cluster/test_revocation.py).
        elif frozen is None or commit_digest(commit) in frozen.digests:
            known = found.get(session.id)
            longest = commit.ts + (SESSION_LIFETIME + _SLACK).total_seconds() * 1000
            is_long = session.expiration_ms > longest or (known is not None and known[1])
            found[session.id] = (preferred_session(known[0] if known else None, session), is_long)
    sessions, left_out = [], []
    staying = set(leave_out) - {commit.key for commit in claimed}
    for session, is_long in found.values():
        commit_id = derived_id(
            "introduction-again",
            f"{revoked.id}/{successor_id}/{session.id}/{session.owner or ''}/{session.expiration_ms}",
        )
        if session.id in leave_out:
            left_out.append(session.id)
            if any((one.id, one.session) == (commit_id, successor_id) for one in by_key[session.id]):
                staying.add(session.id)
            continue
        leaves = {one.id for one in by_key[session.id] if one.id not in parents and one.id != commit_id}
        sessions.append(
            Introduced(session=session, commit_id=commit_id, parents=tuple(sorted(leaves)), is_long=is_long)
        )
    return IntroducedSessions(
        sessions=tuple(sessions),
        rogue_roots=tuple(rogue),
        forged=forged,
        left_out=tuple(sorted(left_out)),
        cannot_leave=tuple(sorted(staying)),
    )


def find_reissued(
    commits: Iterable[Commit], introduced: Iterable[Introduced], signer: Session, executor: Executor | None = None
) -> set[str]:
    """Return the ids of the commits that reissue sessions and have a valid signature of the new root `signer`."""
    wanted = {one.commit_id for one in introduced}
    claimed = [one for one in commits if one.id in wanted and one.session == signer.id]

    def read_signature(commit: Commit) -> SignatureCheck | VerificationError:
        try:
            return read_signature_by(signer, commit)
        except VerificationError as error:
            return error

    verdicts = verify_in_threads(read_signature, claimed, executor)
    return {commit.id for commit, verdict in zip(claimed, verdicts, strict=True) if verdict is None}


def introduce_again(
    introduced: Sequence[Introduced], *, signer: OwnedSession, at: int, org: str, executor: Executor | None = None
) -> list[Commit]:
    """Return the signed commits that reissue sessions.

    Args:
        introduced: The sessions to reissue.
        signer: The current root, which signs.
        at: When the root that had introduced the sessions was revoked, in milliseconds since 1970; this is the commits'
            time.
        org: The organization; it is part of the signed bytes.
        executor: Makes signatures in parallel.
    """

    def make(one: Introduced) -> Commit:
        draft = draft_session_commit(
            one.session, signer_id=signer.id, commit_id=one.commit_id, ts=at, org=org, parents=one.parents
        )
        commit = sign_commit(signer, draft, now_ms=at)
        commit.keep_encoded()  # each server gets the same bytes
        return commit

    return map_in_threads(make, introduced, executor)
