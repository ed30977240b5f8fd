"""Decide which sessions may sign what. Stricter than GoatDB's rules (docs/reference/goatdb-protocol.md#trust).

Each organization has one `TrustPool`. A session can come from three sources; a source earlier in this list wins:

1. The identity document: its roots, including the current root. They can sign session commits and any other commit
   (COMPAT: in GoatDB a root that is only in the list of roots can sign session commits only).
2. `trusted` sessions of a GoatDB ``settings.json``. They are accepted without a check, as GoatDB does, because the
   operator controls the file.
3. ``/sys/sessions``: a session is accepted once a root's signature over its commit has been verified, even if the
   commit comes from the server's own log. The commit's key must be the session's id.

A commit is checked in this order; the first broken rule is raised:

* the commit is signed, and the signature string is well formed: `InvalidSignatureError`;
* the session that the commit names is the signer: `AuthorMismatchError`;
* the session is not revoked: `RevokedSessionError`;
* the session is known: `UnknownSignerError`;
* the signature has a numeric timestamp, and neither this nor the commit's own timestamp is later than the session's
  expiration: `InvalidSignatureError`, `ExpiredSessionError`. The present time does not matter: what was signed before
  the expiration stays valid. Known limit: the timestamps are not proof, so the owner of an expired key can back-date a
  commit. Only a revocation prevents this;
* the signature matches: `InvalidSignatureError`.

Results are cached for session commits only. They are never cached by signature string, since one signature can be
written in many ways, and the result for a request depends on the time.

Revocation. New commits by a revoked root are rejected. Its older commits are accepted if they are in this server's own
log or in the list of frozen commits (`set_frozen_commits`), by which a server that is new or was offline can still
accept them. Its session commits still introduce user sessions, so that users stay signed in, until the identity
document records that these sessions were reissued. They never introduce roots: a root that only a revoked root has
introduced is not trusted, nor are the roots that this root has introduced.

Lazy verification. `offer_session_commits` only indexes commits. A session is verified when it is first needed;
`prepare_pending` returns the others. Roots are verified at once, repeatedly until nothing changes, so that the order in
the log does not matter. Of a verified session the pool keeps the commits, which the repository holds anyway, and
decodes them when the session is needed: few of a server's sessions are in use at the same time.

Threads. A pool belongs to one thread. Only `Verification.run` may run in another thread, because it works on its own
snapshot.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol, TypeVar

from goatherd.crypto.keys import SignatureCheck, is_verification_serial
from goatherd.errors import (
    AccessDeniedError,
    DecodeError,
    GoatherdError,
    InvalidSignatureError,
    RevokedSessionError,
    UnknownSignerError,
    UntrustedRootError,
    VerificationError,
)
from goatherd.identity.anchor import AnchoredTrust
from goatherd.identity.revocations import FrozenList, commit_digest
from goatherd.identity.session import (
    OwnedSession,
    Session,
    SignatureEnvelope,
    check_request_unsafe,
    parse_signature,
    verify_request,
)
from goatherd.identity.session_commits import (
    SESSIONS_NAMESPACE,
    claims_root,
    earlier_introduction_id,
    find_rejected_anchors,
    introduction_id,
    preferred_session,
    read_signature_by,
    session_from_commit,
    verify_commit_by,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from goatherd.wire.commit import Commit

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=GoatherdError)

MAX_DECODED = 10_000
"""How many sessions a pool keeps in decoded form. To decode one again takes a tenth of the time to verify a request."""

_CHUNK = 16
_SHRINK = 3
_FEW = 1_000


class _Revocation(Protocol):
    @property
    def id(self) -> str: ...


class TrustSource(Protocol):
    """The interface of an identity document, as far as a `TrustPool` reads it."""

    @property
    def current(self) -> OwnedSession: ...
    @property
    def roots(self) -> Sequence[Session]: ...
    @property
    def revoked(self) -> Sequence[_Revocation]: ...
    @property
    def anchored_trust(self) -> AnchoredTrust | None: ...


@dataclass(slots=True)
class _SessionCommitCheck:
    """One session commit still to be verified with the key of the root that the commit names as its signer."""

    session_id: str
    commit: Commit
    root: Session
    outcome: Session | GoatherdError | None = None
    _unverified: Session | None = None

    def verify(self) -> None:
        self.conclude(_find_fault(self.read_signature()))

    def read_signature(self) -> SignatureCheck | DecodeError | VerificationError:
        try:
            commit = self.commit.to_decoded()
            self._unverified = session_from_commit(commit)
            return read_signature_by(self.root, commit)
        except (DecodeError, VerificationError) as error:
            return error

    def conclude(self, verdict: GoatherdError | None) -> None:
        self.outcome = verdict or self._unverified


class Verification:
    """A batch of commits to verify in a thread.

    `TrustPool.prepare_verification` creates it, `run` verifies, and `TrustPool.conclude_verification` stores the
    results in the pool. `run` can be called in any thread while the pool is in use: it reads only its own snapshot.
    """

    __slots__ = ("_commits", "_jobs", "_running", "_signers", "verdicts")

    verdicts: list[VerificationError | None]
    """One verdict per commit after `run`: None for a good one, otherwise the error."""

    def __init__(
        self,
        commits: Sequence[Commit],
        signers: Sequence[Session | VerificationError | None],
        jobs: list[_SessionCommitCheck],
    ) -> None:
        self._commits = commits
        self._signers = signers
        self._jobs = jobs
        self._running: Iterator[Sequence[VerificationError | None]] = iter(())
        self.verdicts = []

    @property
    def signature_count(self) -> int:
        """How many signatures are to be verified: those of the commits, and of the sessions that signed them."""
        return len(self._commits) + len(self._jobs)

    def run(self, executor: Executor | None = None) -> None:
        """Verify every commit, in several threads of the executor if that is faster than in one.

        Args:
            executor: Verifies the signatures in parallel. It must not be the executor that runs this call.
        """
        self.start(executor)
        self.finish()

    def start(self, executor: Executor | None = None) -> None:
        """Begin to verify the commits in the executor's threads, and return before they have ended.

        `finish` must be called afterwards. Without an executor, or with few commits, this call verifies them itself. If
        several threads verify no faster than one, `finish` lets one thread verify them.

        Args:
            executor: As for `run`.
        """
        verdicts = verify_in_threads(_SessionCommitCheck.read_signature, self._jobs, executor)
        for job, verdict in zip(self._jobs, verdicts, strict=True):
            job.conclude(verdict)
        found: dict[str, Session] = {}
        for job in self._jobs:
            if isinstance(job.outcome, Session):
                found[job.session_id] = preferred_session(found.get(job.session_id), job.outcome)

        def read_signature(
            pair: tuple[Commit, Session | VerificationError | None],
        ) -> SignatureCheck | VerificationError:
            commit, signer = pair
            if isinstance(signer, VerificationError):
                return signer
            session = signer or found.get(commit.session)
            if session is None:
                return UnknownSignerError(f"commit {commit.id!r}: session {commit.session!r} is not known")
            try:
                return read_signature_by(session, commit)
            except VerificationError as error:
                return error

        pairs = list(zip(self._commits, self._signers, strict=True))
        self._running = _start_verification(read_signature, pairs, executor)

    def finish(self, _: object = None) -> None:
        """Wait for the verification that `start` began, and set `verdicts`.

        The argument is ignored; it lets the engine call `finish` with an executor, as it calls `run`.
        """
        self.verdicts = list(chain.from_iterable(self._running))


class _SessionCommits:
    """Session commits by the id of the session that they introduce, in the order in which they were added.

    There are many sessions, and most have one commit. So a tuple exists only for the others, and the dictionary is made
    anew after most sessions have been removed, since Python's dictionaries never shrink.
    """

    __slots__ = ("_commits", "_most")

    def __init__(self) -> None:
        self._commits: dict[str, Commit | tuple[Commit, ...]] = {}
        self._most = 0

    def __len__(self) -> int:
        return len(self._commits)

    def __iter__(self) -> Iterator[str]:
        return iter(self._commits)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._commits

    def get_commits(self, session_id: str) -> tuple[Commit, ...]:
        """Return the commits that introduce a session; an empty tuple if there is none."""
        found = self._commits.get(session_id, ())
        return found if isinstance(found, tuple) else (found,)

    def add_commit(self, session_id: str, commit: Commit) -> None:
        known = self.get_commits(session_id)
        self._commits[session_id] = (*known, commit) if known else commit

    def replace_commits(self, session_id: str, commits: Sequence[Commit]) -> None:
        """Replace the commits that introduce a session; without any, remove the session."""
        if commits:
            self._commits[session_id] = commits[0] if len(commits) == 1 else tuple(commits)
        else:
            self._most = max(self._most, len(self._commits))
            self._commits.pop(session_id, None)
            if self._most > _SHRINK * len(self._commits) + _FEW:
                self._commits, self._most = dict(self._commits), len(self._commits)


class TrustPool:
    """The sessions that a node trusts, and the roots among them.

    Args:
        org: The organization's id; signatures of commits cover it.
        current: The session that signs; for a server, its current root.
        roots: The document's roots.
        trusted: Sessions to trust without a check (``trustedSessions`` of a GoatDB ``settings.json``).
        revoked: Ids of revoked sessions.
        anchored: Which roots may introduce other roots, if the identity has an anchor; None if every root may.
    """

    def __init__(
        self,
        *,
        org: str,
        current: OwnedSession,
        roots: Iterable[Session],
        trusted: Iterable[Session] = (),
        revoked: Iterable[str] = (),
        anchored: AnchoredTrust | None = None,
    ) -> None:
        self.org = org
        self._given: dict[str, Session] = {}
        # The session commits whose signature by a root was verified, and those that are still to be verified.
        self._accepted = _SessionCommits()
        self._pending = _SessionCommits()
        self._learnt_roots: dict[str, Session] = {}
        self._decoded: dict[str, Session] = {}
        self._pending_roots: set[str] = set()
        self._waiting: set[str] = set()
        # What `prepare_pending` takes next, from the end; an entry may be there twice, or not be pending any more.
        self._queue: list[str] = []
        self._vouchers: dict[str, Session] = {}
        self._document: dict[str, Session] = {}
        self._revoked: frozenset[str] = frozenset()
        self._frozen: Mapping[str, FrozenList] = {}
        self._settled: frozenset[str] = frozenset()
        self._current = current
        self.replace_trusted(trusted)
        self._anchored: AnchoredTrust | None = None
        self.replace_roots(current=current, roots=roots, revoked=revoked, anchored=anchored)

    @classmethod
    def from_identity(cls, identity: TrustSource, *, org: str, trusted: Iterable[Session] = ()) -> TrustPool:
        """Return the trust pool of an identity: its roots, its revocations, and its anchor with the rules for roots.

        SECURITY: in a pool that is created without this method and without `anchored`, a working root could introduce
        roots (tests/unit/operations/test_data.py).

        Args:
            identity: An identity document.
            org: The organization's id.
            trusted: Sessions to trust without a check (``trustedSessions`` of a GoatDB ``settings.json``).
        """
        return cls(
            org=org,
            current=identity.current,
            roots=identity.roots,
            trusted=trusted,
            revoked=[revocation.id for revocation in identity.revoked],
            anchored=identity.anchored_trust,
        )

    # --- what it knows ------------------------------------------------------------------------------------------------

    @property
    def current(self) -> OwnedSession:
        """The current root, with which this server signs."""
        return self._current

    @property
    def roots(self) -> tuple[Session, ...]:
        """Every trusted root: the document's, then those learned from commits. Revoked ones are left out."""
        learnt = [root for id_, root in self._learnt_roots.items() if id_ not in self._document]
        roots = [one for one in (*self._document.values(), *learnt) if one.is_root]
        return tuple([root for root in roots if root.id not in self._revoked])

    @property
    def root_ids(self) -> tuple[str, ...]:
        """The ids of every trusted root."""
        return tuple([session.id for session in self.roots])

    @property
    def document_root_ids(self) -> tuple[str, ...]:
        """The ids of the roots that the identity document lists, without revoked ones."""
        return tuple([id_ for id_, root in self._document.items() if root.is_root and id_ not in self._revoked])

    @property
    def revoked(self) -> frozenset[str]:
        """The ids of revoked sessions."""
        return self._revoked

    @property
    def anchor_ids(self) -> frozenset[str]:
        """The ids of the roots that are, were, or will be the identity's anchor."""
        return frozenset() if self._anchored is None else self._anchored.anchors

    @property
    def known_count(self) -> int:
        """Number of sessions that are trusted now; those still to be verified do not count."""
        others = self._document.keys() | self._given.keys()
        return len(self._accepted) + sum(id_ not in self._accepted for id_ in others)

    def knows_session(self, session_id: str) -> bool:
        """Return whether a session is known to be trusted or revoked; verifies nothing."""
        return any(session_id in each for each in (self._document, self._given, self._accepted, self._revoked))

    @property
    def pending_count(self) -> int:
        """Number of session ids with a commit that has not been verified yet."""
        return len(self._pending)

    def get_session(self, session_id: str) -> Session:
        """Return a trusted session; verify its commit if that has not happened yet.

        Raises:
            RevokedSessionError: The session has been revoked.
            UnknownSignerError: The session is unknown, or no trusted root has introduced it.
        """
        session = self._find_session(session_id)
        if session is None and session_id in self._pending:
            verification = Verification((), (), self._checks_for(session_id))
            verification.run()
            self.conclude_verification(verification)
            session = self._find_session(session_id)
        if session is None:
            raise UnknownSignerError(f"session {session_id!r} is not known")
        return session

    def get_introductions(self, session_id: str) -> tuple[Commit, ...]:
        """Return the verified commits that introduce a session; verify those that have not been verified yet."""
        verification = Verification((), (), self._checks_for(session_id))
        verification.run()
        self.conclude_verification(verification)
        return self._introductions_of(session_id)

    def public_roots(self, now_ms: int) -> list[Session]:
        """Return the roots for a new client: trusted, not expired, the current root first, public halves only.

        SECURITY: a `Session` holds no private key (tests/unit/test_upstream_traps.py).
        """
        alive = [root for root in self.roots if not root.is_expired(now_ms)]
        return sorted(alive, key=lambda root: root.id != self._current.id)

    # --- live changes -------------------------------------------------------------------------------------------------

    def adopt_document(self, document: TrustSource) -> None:
        """Adopt the current root, the roots and the revocations of a checked identity document.

        The sessions that were learned from commits stay.
        """
        self.replace_roots(
            current=document.current,
            roots=document.roots,
            revoked=[revocation.id for revocation in document.revoked],
            anchored=document.anchored_trust,
        )

    def replace_trusted(self, trusted: Iterable[Session]) -> None:
        """Replace the sessions that are trusted without a check. Session commits may still introduce removed ones."""
        before, self._given = self._given, {}
        for session in trusted:
            self._given[session.id] = preferred_session(self._given.get(session.id), session)
        for session_id in before.keys() | self._given.keys():
            if before.get(session_id) != self._given.get(session_id):
                self._decoded.pop(session_id, None)
                self._note_root(session_id)

    def replace_roots(
        self,
        *,
        current: OwnedSession,
        roots: Iterable[Session],
        revoked: Iterable[str] = (),
        anchored: AnchoredTrust | None = None,
    ) -> None:
        """Replace the current root, the roots and the revocations of this pool; see `adopt_document`.

        A root with a known id is updated; one that is missing in `roots` no longer counts as a root of the document.

        Raises:
            RevokedSessionError: The current session is among the revoked ones. Nothing was changed.
        """
        revoked_ids = frozenset(revoked)
        if current.id in revoked_ids:
            raise RevokedSessionError(f"session {current.id!r} is revoked and cannot be the current root")
        # Commits of a former root that this server holds may still be verified; new commits of it are rejected.
        self._vouchers.update(self._document)
        self._document = {root.id: root for root in roots}
        self._document[current.id] = current.session
        self._vouchers.update(self._document)
        self._current = current
        self._anchored = anchored
        changed = revoked_ids != self._revoked
        self._revoked = revoked_ids
        if changed:
            self._reassess_introductions()
        self._settle_roots()

    def set_frozen_commits(self, lists: Mapping[str, FrozenList], settled: Iterable[str] = ()) -> None:
        """Set the frozen commits of revoked roots, by root id, and the roots whose sessions were reissued."""
        self._frozen = dict(lists)
        before, self._settled = self._settled, frozenset(settled)
        if before != self._settled:
            self._reassess_introductions()

    # --- learning from /sys/sessions ----------------------------------------------------------------------------------

    def offer_session_commits(self, commits: Iterable[Commit]) -> None:
        """Index session commits of this server's own log, in log order. Roots are verified now, other sessions later.

        A session is trusted only if a trusted root has signed its commit.
        """
        pending, queue = self._pending, self._queue
        schema, is_session = None, False
        for commit in commits:
            if commit.schema != schema:
                schema, is_session = commit.schema, commit.namespace == SESSIONS_NAMESPACE
            if not is_session:
                continue
            key = commit.key
            pending.add_commit(key, commit)
            queue.append(key)
            if claims_root(commit):
                self._pending_roots.add(key)
        self._settle_roots()

    def add_session_commit(self, commit: Commit) -> bool:
        """Learn a session from a commit that has just arrived, if a trusted root signed the commit.

        Returns:
            Whether a trusted root signed the commit, for the pool's organization. If not, nothing changes.
        """
        if commit.org != self.org:
            return False
        try:
            verify_commit_by(self.get_root(commit.session), commit)
        except VerificationError:
            return False
        return self.add_verified_session_commit_unsafe(commit)

    def add_verified_session_commit_unsafe(self, commit: Commit, *, is_session: bool = False) -> bool:
        """Learn a session from a commit whose signature by `commit.session` this pool has just verified.

        Return whether the session was learned: False if the signer may not introduce it, or the commit has none.

        Args:
            commit: The commit.
            is_session: Whether the caller has checked that `session_from_commit` can read the session, which takes
                longer than everything else here.
        """
        if self._find_introducer(commit) is None:
            return False
        if not is_session:
            try:
                session_from_commit(commit)
            except DecodeError:
                return False
        self._accept_introduction(commit)
        if claims_root(commit):
            self._settle_roots()
        return True

    def get_root(self, session_id: str) -> Session:
        """Return a trusted root session by its id. May be called in any thread, because it only reads dictionaries.

        Raises:
            RevokedSessionError: The root has been revoked.
            UntrustedRootError: The session is not a trusted root.
        """
        self._refuse_revoked(session_id)
        session = self._document.get(session_id) or self._learnt_roots.get(session_id)
        if session is None or not session.is_root:
            raise UntrustedRootError(f"session {session_id!r} is not a trusted root")
        return session

    def find_root(self, session_id: str) -> Session | None:
        """Return a root session by its id; None if it is not trusted. May be called in any thread, like `get_root`."""
        try:
            return self.get_root(session_id)
        except VerificationError:
            return None

    def may_introduce(self, commit: Commit) -> bool:
        """Return whether the anchor's rules let a commit's author introduce the session in it; True without an anchor.

        SECURITY: a working root introduces no root. It may repeat what the anchor has introduced, so that clients that
        know only a working root can follow (tests/unit/rotation/test_anchor.py).
        """
        if self._anchored is None or not claims_root(commit) or not self._is_working_root(commit.session):
            return True
        known = self._document.get(commit.key) or self._find_learnt(commit.key)
        try:
            return known is not None and session_from_commit(commit) == known
        except DecodeError:
            return False

    # --- verifying ----------------------------------------------------------------------------------------------------

    def verify_commit(self, commit: Commit) -> None:
        """Verify one commit that is not in this server's log yet.

        Raises:
            VerificationError: One of the subclasses that the module lists.
        """
        (verdict,) = self.verify_commits([commit])
        if verdict is not None:
            raise verdict

    def verify_commits(
        self, commits: Sequence[Commit], executor: Executor | None = None, *, held: bool = False
    ) -> list[VerificationError | None]:
        """Check many commits at once; one verdict per commit, None for a good one. Never raises for a bad commit.

        Args:
            commits: The commits to check.
            executor: See `Verification.run`.
            held: Whether the commits are from this server's own log, where a revoked root's commits count as well.
        """
        verification = self.prepare_verification(commits, held=held)
        verification.run(executor)
        return self.conclude_verification(verification)

    def get_author(self, commit: Commit) -> Session:
        """Return the author of a verified commit: a trusted session, or a revoked root whose commit is frozen.

        Raises:
            RevokedSessionError, UnknownSignerError: As `get_session`.
        """
        if commit.session in self._revoked and self._is_frozen(commit):
            return self._vouchers[commit.session]
        return self.get_session(commit.session)

    def prepare_verification(self, commits: Sequence[Commit], *, held: bool = False) -> Verification:
        """Take a snapshot of the data that verifying `commits` needs. Fast: only digests are computed."""
        signers: list[Session | VerificationError | None] = []
        jobs: dict[str, list[_SessionCommitCheck]] = {}
        for commit in commits:
            signer: Session | VerificationError | None
            # SECURITY: the signature of a commit that was read for another organization is valid there only
            # (tests/unit/api/test_sessions.py).
            if commit.org != self.org:
                signers.append(
                    VerificationError(f"commit {commit.id!r} is of organization {commit.org!r}, not {self.org!r}")
                )
                continue
            try:
                signer = self._find_session(commit.session)
            except RevokedSessionError as error:
                # SECURITY: only the frozen list, or this server's own log, shows that a commit of a revoked root was
                # signed before the revocation (tests/unit/test_trust_frozen.py).
                is_held = held or self._is_frozen(commit)
                signer = (self._vouchers.get(commit.session) if is_held else None) or error
            if self._anchored is not None and not held and not self.may_introduce(commit):
                signer = UntrustedRootError(
                    f"root {commit.session!r} is a working root and cannot introduce root {commit.key!r}"
                )
            if signer is None and commit.session in self._pending and commit.session not in jobs:
                jobs[commit.session] = self._checks_for(commit.session)
            signers.append(signer)
        return Verification(commits, signers, list(chain.from_iterable(jobs.values())))

    def conclude_verification(self, verification: Verification) -> list[VerificationError | None]:
        """Store a run's results for session commits in the pool, and return its verdicts."""
        settled = False
        for job in verification._jobs:
            if job.outcome is None:
                raise RuntimeError("call Verification.run() before TrustPool.conclude_verification()")
            if not self._settle_pending(job):
                continue  # another verification has settled it
            if isinstance(job.outcome, Session) and self._find_introducer(job.commit) is not None:
                self._accept_introduction(job.commit)
                settled = settled or job.outcome.is_root
        self._waiting.update(job.session_id for job in verification._jobs if job.session_id in self._pending)
        if settled:
            self._settle_roots()
        return verification.verdicts

    def verify_request(
        self,
        header: str | SignatureEnvelope,
        now_ms: int,
        *,
        unused: Session | None = None,
        verified_by: Session | None = None,
    ) -> Session:
        """Verify an ``x-goat-sig`` header, without a cache, and return the session that signed it.

        Args:
            header: The header.
            now_ms: The current time in milliseconds since 1970.
            unused: A session that this server has created and that no commit introduces yet; accepted if the header
                names it.
            verified_by: The session that an earlier call returned for the same header. If the session still has the
                same key, only the check of the signature is skipped.

        Raises:
            InvalidSignatureError: The header is malformed, forged, or no request signature (such as a login token).
            UnknownSignerError, RevokedSessionError, ExpiredSessionError: The session is unknown, revoked or expired.
            ClockSkewError: The signature's timestamp differs too much from `now_ms`.
        """
        envelope = parse_signature(header) if isinstance(header, str) else header
        session = self.get_session(envelope.session_id) if unused is None else unused
        if not isinstance(envelope.data, Mapping) or not isinstance(envelope.data.get("id"), str):
            # SECURITY: a login token in a user's mailbox is signed by the root and must not authenticate requests as
            # the root (tests/unit/test_trust.py).
            raise InvalidSignatureError("this is not a request signature: the signed data must be an object with an id")
        ts = envelope.ts
        if isinstance(ts, bool) or not isinstance(ts, int | float) or not math.isfinite(ts):
            raise InvalidSignatureError("a request signature must have a timestamp")
        if verified_by is not None and verified_by.public_key == session.public_key:
            check_request_unsafe(session, envelope, now_ms=now_ms)
        else:
            verify_request(session, envelope, now_ms=now_ms)
        return session

    def verify_root_request(self, header: str, now_ms: int) -> SignatureEnvelope:
        """Verify an ``x-goat-sig`` header of a request that only a root may make, and return its content.

        Raises:
            AccessDeniedError: The session that signed is not a root.
            VerificationError: As `verify_request`.
        """
        envelope = parse_signature(header)
        session = self.verify_request(envelope, now_ms)
        if not session.is_root:
            raise AccessDeniedError(f"session {session.id!r:.100} is not a root")
        return envelope

    def prepare_pending(self, limit: int | None = None) -> Verification:
        """Return a `Verification` of up to `limit` pending sessions (default: all), to run in a thread and conclude."""
        taken: dict[str, list[_SessionCommitCheck]] = {}
        while self._queue and (limit is None or len(taken) < limit):
            session_id = self._queue.pop()
            if session_id in taken:
                continue
            if found := self._checks_for(session_id):
                taken[session_id] = found
            elif session_id in self._pending:
                self._waiting.add(session_id)
        return Verification((), (), list(chain.from_iterable(taken.values())))

    def requeue(self, verification: Verification) -> None:
        """Put the sessions of a verification that could not run back at the end of the queue of pending sessions."""
        again = {job.session_id: None for job in verification._jobs if job.session_id in self._pending}
        self._queue[:0] = again

    @property
    def queued_count(self) -> int:
        """Number of session ids that `prepare_pending` has still to look at, without those that wait for a root."""
        return len(self._queue)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _find_session(self, session_id: str) -> Session | None:
        self._refuse_revoked(session_id)
        return self._document.get(session_id) or self._find_learnt(session_id)

    def _refuse_revoked(self, session_id: str) -> None:
        if session_id in self._revoked:
            raise RevokedSessionError(f"session {session_id!r} has been revoked")

    def _find_learnt(self, session_id: str) -> Session | None:
        """Return a session that `trusted` or accepted session commits introduce; None if there is none."""
        session = self._learnt_roots.get(session_id) or self._decoded.get(session_id)
        if session is None:
            session = self._decode_session(session_id)
            if session is not None:
                self._decoded[session_id] = session
                if len(self._decoded) > MAX_DECODED:
                    del self._decoded[next(iter(self._decoded))]
        return session

    def _decode_session(self, session_id: str) -> Session | None:
        session = self._given.get(session_id)
        for commit in self._introductions_of(session_id):
            session = preferred_session(session, session_from_commit(commit))
        return session

    def _note_root(self, session_id: str) -> None:
        """Note whether a learned session is a root now. Roots stay decoded: each new client gets them all."""
        session = self._decode_session(session_id)
        if session is not None and session.is_root:
            self._learnt_roots[session_id] = session
        else:
            self._learnt_roots.pop(session_id, None)

    def _introductions_of(self, session_id: str) -> tuple[Commit, ...]:
        """Return the accepted commits that introduce a session, in the order in which they were accepted."""
        return self._accepted.get_commits(session_id)

    def _is_frozen(self, commit: Commit) -> bool:
        frozen = self._frozen.get(commit.session)
        return frozen is not None and commit.session in self._vouchers and commit_digest(commit) in frozen.digests

    def _is_working_root(self, session_id: str) -> bool:
        """Return whether an anchor has introduced a root as a working root, not as one from before the anchor.

        The introduction by a rejected anchor counts as well. Before the identity document drops a working root of a
        rejected anchor, the present anchor introduces that root in the same form as a root from before the anchor.
        """
        anchored = self._anchored
        if anchored is None or session_id in anchored.anchors:
            return False
        introductions, first = self._introductions_of(session_id), introduction_id(session_id)
        by_anchor = {one.id for one in introductions if one.session in anchored.anchors}
        earlier = {earlier_introduction_id(session_id, anchor) for anchor in anchored.anchors}
        if not earlier & by_anchor:
            return session_id in anchored.working or first in by_anchor
        # SECURITY: an anchor has introduced this root as one that signed before there was an anchor. Its key was in the
        # store, and maybe on servers. So it counts as a working root only if a rejected anchor has introduced it as
        # one (tests/unit/rotation/test_anchor.py).
        of_anchors = chain.from_iterable(map(self._introductions_of, anchored.anchors))
        rejected = find_rejected_anchors(of_anchors, anchored.anchors)
        return any(one.id == first and one.session in rejected for one in introductions)

    def _find_introducer(self, commit: Commit) -> Session | None:
        """Return the root that signed a session commit of this server's log; None if it may not introduce sessions."""
        signer = commit.session
        if not self.may_introduce(commit):
            return None
        if signer in self._revoked:
            return None if claims_root(commit) or signer in self._settled else self._vouchers.get(signer)
        session = self._document.get(signer) or self._find_learnt(signer) or self._vouchers.get(signer)
        return session if session is not None and session.is_root else None

    def _checks_for(self, session_id: str) -> list[_SessionCommitCheck]:
        jobs = []
        for commit in self._pending.get_commits(session_id):
            root = self._find_introducer(commit)
            if root is not None:
                jobs.append(_SessionCommitCheck(session_id, commit, root))
        return jobs

    def _settle_pending(self, check: _SessionCommitCheck) -> bool:
        """Note that a commit is not pending any more; return False if it was not."""
        session_id, commits = check.session_id, self._pending.get_commits(check.session_id)
        others = [commit for commit in commits if commit is not check.commit]
        if len(others) == len(commits):
            return False
        self._pending.replace_commits(session_id, others)
        if not others:
            self._waiting.discard(session_id)
            self._pending_roots.discard(session_id)
        return True

    def _accept_introduction(self, commit: Commit) -> None:
        """Trust the session that a verified commit introduces."""
        session_id = commit.key
        if all(one.id != commit.id for one in self._introductions_of(session_id)):
            self._accepted.add_commit(session_id, commit)
            self._decoded.pop(session_id, None)
            if claims_root(commit) or session_id in self._learnt_roots:
                self._note_root(session_id)

    def _settle_roots(self) -> None:
        """Verify commits that introduce roots until nothing changes, then queue the sessions that waited for a root.

        After each accepted root, only the commits that it has signed are verified again: a chain of a thousand roots,
        in any order, costs a thousand signatures and no more.
        """
        signed_by: dict[str, set[str]] = {}
        for session_id in self._pending_roots:
            for commit in self._pending.get_commits(session_id):
                if claims_root(commit):
                    signed_by.setdefault(commit.session, set()).add(session_id)
        todo = deque(self._pending_roots)
        while todo:
            session_id = todo.popleft()
            is_accepted = False
            for job in [job for job in self._checks_for(session_id) if claims_root(job.commit)]:
                job.verify()
                self._settle_pending(job)
                if isinstance(job.outcome, Session):
                    self._accept_introduction(job.commit)
                    is_accepted = True
            if is_accepted:
                todo.extend(signed_by.get(session_id, ()))
                if self._anchored is not None and session_id in self._pending_roots:
                    todo.append(session_id)  # a working root may repeat what the anchor has introduced
        self._queue.extend(self._waiting)
        self._waiting.clear()

    def _find_ungrounded(self) -> set[str]:
        """Return the learned roots to which no chain of unrevoked introductions leads from a configured root.

        SECURITY: the search starts from the configured roots, so that two roots of an attacker that introduce each
        other do not count (tests/unit/test_trust.py).
        """
        introduced: dict[str, list[str]] = {}
        learnt = set()
        for session_id in self._accepted:
            for commit in self._introductions_of(session_id):
                if claims_root(commit):
                    introduced.setdefault(commit.session, []).append(session_id)
                    learnt.add(session_id)
        grounded = (self._vouchers.keys() | self._given.keys()) - self._revoked
        todo = list(grounded)
        while todo:
            for session_id in introduced.get(todo.pop(), ()):
                if session_id not in grounded and session_id not in self._revoked:
                    grounded.add(session_id)
                    todo.append(session_id)
        return learnt - grounded

    def _reassess_introductions(self) -> None:
        """Decide again, after a change of revocations, which accepted session commits count; verify no signature."""
        tainted = self._revoked | self._find_ungrounded()
        counting = self._revoked - self._settled
        for session_id in list(self._accepted):
            good: list[Commit] = []
            bad: list[Commit] = []
            for commit in self._introductions_of(session_id):
                signer = commit.session
                is_good = signer not in tainted or (signer in counting and not claims_root(commit))
                (good if is_good else bad).append(commit)
            if not bad:
                continue
            for commit in bad:
                # Kept for the day on which the operator takes the revocation back.
                self._pending.add_commit(session_id, commit)
                self._waiting.add(session_id)
                if claims_root(commit):
                    self._pending_roots.add(session_id)
            self._accepted.replace_commits(session_id, good)
            self._decoded.pop(session_id, None)
            if session_id in self._learnt_roots or any(map(claims_root, good)):
                self._note_root(session_id)
        self._queue.extend(self._waiting)
        self._waiting.clear()


def map_in_threads(function: Callable[[T], R], items: Sequence[T], executor: Executor | None) -> list[R]:
    """Call `function` for all items, in the executor's threads if one is given; return the results in order."""
    parts = _start_parts(lambda part: [function(item) for item in part], items, executor)
    return list(chain.from_iterable(parts))


def verify_in_threads(
    read: Callable[[T], SignatureCheck | E], items: Sequence[T], executor: Executor | None
) -> list[E | InvalidSignatureError | None]:
    """Verify the signatures of many items, maybe in threads; return a verdict for each, in order.

    Args:
        read: Returns the signature of an item, or an error that is its verdict.
        items: The items.
        executor: Its threads verify in parallel, if that is faster. Without it, the calling thread verifies.
    """
    return list(chain.from_iterable(_start_verification(read, items, executor)))


def _start_verification(
    read: Callable[[T], SignatureCheck | E], items: Sequence[T], executor: Executor | None
) -> Iterator[Sequence[E | InvalidSignatureError | None]]:
    """Begin to verify signatures as `verify_in_threads` does; return the verdicts part by part.

    If several threads verify no faster than one, one thread does the work, and only when the iterator is used: before
    that, it would compete with the caller for the GIL.
    """

    def judge(part: Sequence[T]) -> list[E | InvalidSignatureError | None]:
        return [_find_fault(read(item)) for item in part]

    if executor is not None and len(items) > _CHUNK and is_verification_serial():
        return (executor.submit(judge, items).result() for _ in range(1))
    return _start_parts(judge, items, executor)


def _find_fault(found: SignatureCheck | E) -> E | InvalidSignatureError | None:
    if not isinstance(found, SignatureCheck):
        return found
    try:
        found.verify()
    except InvalidSignatureError as error:
        return error
    return None


def _start_parts(
    function: Callable[[Sequence[T]], list[R]], items: Sequence[T], executor: Executor | None
) -> Iterator[Sequence[R]]:
    """Begin to call `function` for all items in parts; return the results in order, part by part.

    Without an executor, or with few items, they are processed before this function returns.
    """
    if executor is None or len(items) <= _CHUNK:
        return iter([function(items)])
    return executor.map(function, [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)])
