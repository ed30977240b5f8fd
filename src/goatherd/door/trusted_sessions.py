"""Keep the sessions that the door trusts in one organization: the identity's roots, and those in the server's log.

`goatherd.trust.TrustPool` decides which sessions are trusted. This module reads the server's ``/sys/sessions`` as a
peer that signs with the root, gives the sessions to the pool, and reads again when a request has an unknown signer.

Rules: a session is trusted when a trusted root has signed its commit, even if the server does not trust it. While the
server cannot be read, a commit by an unknown signer causes an error that the client retries. It is not rejected,
because GoatDB's clients offer a rejected commit only ten times.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from typing import Any, Final

from goatherd.clock import Clock, SystemClock
from goatherd.crypto import PublicKey
from goatherd.door.received_commits import KnownCommits, ReceivedCommit
from goatherd.door.repository_reader import Ask, RepositoryReader, SharedRounds
from goatherd.errors import (
    DecodeError,
    NodeRefusedError,
    NodeUnreachableError,
    RevokedSessionError,
    UnknownSignerError,
    UntrustedRootError,
    VerificationError,
)
from goatherd.identity.introductions_for_clients import RootIntroductions
from goatherd.identity.session import Session
from goatherd.identity.session_commits import claims_root
from goatherd.trust import TrustPool, TrustSource
from goatherd.wire.commit import Commit
from goatherd.wire.paths import SESSIONS_PATH

FEW: Final = 2
"""Up to this many signatures are verified in the event loop; more go to threads."""
PORTION: Final = 128
"""Maximum number of session commits that are verified at once."""
PAUSE: Final = timedelta(milliseconds=200)
"""Minimum interval between two reads for an unknown signer."""
LONGEST_PAUSE: Final = timedelta(seconds=2)
"""Maximum interval, however long the last read took: a client waits ten seconds for an answer, and the server needs
some of them."""
PATIENCE: Final = timedelta(seconds=7)
"""How long a request waits until the session of its signer is found; then the answer is 503."""
REMEMBER: Final = timedelta(seconds=5)

VERDICTS: Final = 100_000
"""Maximum number of remembered valid signatures: a client that got no answer in time sends all commits again."""

_ERROR_RATE: Final = 1e-6


class TrustedSessions:
    """Hold the trusted sessions of one organization, and update them from the sessions that the server stores.

    Args:
        org: The organization's id.
        identity: The identity document: current root, trusted roots and revocations.
        clock: Supplies the current time.
    """

    def __init__(self, *, org: str, identity: TrustSource, clock: Clock | None = None) -> None:
        self.org = org
        self.clock: Clock = clock or SystemClock()
        self.pool = TrustPool.from_identity(identity, org=org)
        self._reader: RepositoryReader | None = None
        self._rounds = SharedRounds(self._read_sessions, f"sessions of {org}")
        self._read_at: float | None = None
        self._took = self._took_before = timedelta(0)
        self._coordinates: tuple[float, frozenset[bytes]] | None = None
        self.known_commits = KnownCommits(VERDICTS)
        self._introductions = RootIntroductions()
        self._raw_introductions: dict[str, dict[str, Any]] = {}
        self._introducers: dict[str, tuple[tuple[str, float], ...]] = {}
        self.failure: NodeUnreachableError | NodeRefusedError | None = None
        """Why the last attempt to read the server's sessions failed."""

    def adopt_identity(self, identity: TrustSource) -> None:
        """Adopt a new identity document; known sessions stay known, and revocations take effect immediately."""
        self.pool.adopt_document(identity)
        self._coordinates = None

    def set_sender(self, ask: Ask) -> None:
        """Set the function that sends requests to the server."""
        self._reader = RepositoryReader(
            SESSIONS_PATH, ask=ask, signer=lambda: self.pool.current, clock=self.clock, error_rate=_ERROR_RATE
        )

    async def aclose(self) -> None:
        """Stop reading sessions from the server."""
        await self._rounds.aclose()

    @property
    def pause(self) -> timedelta:
        """How long to wait between two reads: five times as long as a read takes, up to `LONGEST_PAUSE`.

        The shorter of the last two reads counts, because the server may have stalled during the longer one.
        """
        return min(max(PAUSE, 5 * min(self._took, self._took_before)), LONGEST_PAUSE)

    @property
    def session_count(self) -> int:
        """Number of sessions that were read from the server."""
        return 0 if self._reader is None else len(self._reader.ids)

    def holds_commit(self, commit_id: str) -> bool:
        """Return whether a commit with this id was read from the server's ``/sys/sessions``."""
        return self._reader is not None and commit_id in self._reader.ids

    def refresh_soon(self) -> None:
        """Start reading the server's sessions, without waiting for the result."""
        self._rounds.start()

    async def refresh(self) -> None:
        """Read the sessions from the server now, and update the trusted sessions.

        Raises:
            NodeUnreachableError, NodeRefusedError: The sessions cannot be read.
        """
        await self._rounds.run()

    async def look_up(self) -> None:
        """Read the server's sessions for a request that waits; give up after the time for which a client waits.

        Raises:
            NodeUnreachableError, NodeRefusedError: The sessions cannot be read, or not in time. The read continues.
        """
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                await self._rounds.run()
        except TimeoutError:
            raise NodeUnreachableError(
                f"the server did not list the sessions of {self.org} within {PATIENCE.total_seconds():g} s"
            ) from None

    async def _read_sessions(self) -> None:
        assert self._reader is not None
        if self._read_at is not None:
            wait = self.pause.total_seconds() - (self.clock.monotonic() - self._read_at)
            if wait > 0:
                await asyncio.sleep(wait)
        began = self.clock.monotonic()
        try:
            raws = await self._reader.read_new()
        except (NodeUnreachableError, NodeRefusedError) as error:
            # A failed read does not show how many sessions the server has.
            self.failure = error
            self._read_at = self.clock.monotonic()
            raise
        self._read_at = self.clock.monotonic()
        self._took_before, self._took = self._took, timedelta(seconds=self._read_at - began)
        self.failure = None
        commits: list[Commit] = []
        for raw in raws:
            try:
                commit = Commit.from_json(raw, org=self.org)
            except DecodeError:
                continue
            commits.append(commit)
            self._note_session(commit, raw)
        if commits:
            self.pool.offer_session_commits(commits)
            self._coordinates = None

    def _note_session(self, commit: Commit, raw: dict[str, Any]) -> None:
        introducers = self._introducers.get(commit.key, ())
        if all(root_id != commit.session for root_id, _ in introducers):
            self._introducers[commit.key] = (*introducers, (sys.intern(commit.session), commit.ts))
        if claims_root(commit) and commit.id not in self._raw_introductions:
            self._raw_introductions[commit.id] = raw
            self._introductions.extend([commit])

    def root_coordinates(self) -> frozenset[bytes]:
        """Return the base64url coordinate ``x`` of each root's public key. The result is cached for a few seconds."""
        now = self.clock.monotonic()
        if self._coordinates is None or now - self._coordinates[0] > REMEMBER.total_seconds():
            found = frozenset(root.public_key.to_jwk()["x"].encode() for root in self.pool.roots)
            self._coordinates = (now, found)
        return self._coordinates[1]

    # --- questions ----------------------------------------------------------------------------------------------------

    def find_session(self, session_id: str) -> Session | None:
        """Return the session with this id; None if the door does not know it yet. Nothing is read from the server.

        Raises:
            RevokedSessionError: The session is revoked.
        """
        try:
            return self.pool.get_session(session_id)
        except RevokedSessionError:
            raise
        except UnknownSignerError:
            return None

    def is_root(self, session_id: str, public_key: PublicKey) -> bool:
        """Return whether the door may name this root to clients: it is trusted, not revoked, and has this key."""
        try:
            return self.pool.get_root(session_id).public_key == public_key
        except VerificationError:
            return False

    def knows_introductions(self, raws: Iterable[Mapping[str, Any]]) -> bool:
        """Return whether these introductions of roots, as far as they are commits, were read from the server."""
        return all(self._knows_introduction(raw) for raw in raws)

    def _knows_introduction(self, raw: Mapping[str, Any]) -> bool:
        commit_id = raw.get("id")
        if isinstance(commit_id, str) and commit_id in self._raw_introductions:
            return True
        try:
            return not claims_root(Commit.from_json(raw, org=self.org))
        except DecodeError:
            return True  # a record that is no commit: no read of the server's sessions returns it

    def introductions_for(self, session: Session | None, raws: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the introductions of roots to send to a client (`goatherd.identity.introductions_for_clients`).

        Args:
            session: The client's session; None if it is unknown.
            raws: The introductions that the server sends.
        """
        missing: list[Commit] = []
        for raw in raws:
            try:
                commit = Commit.from_json(raw, org=self.org)
            except DecodeError:
                continue
            if claims_root(commit):
                self._note_session(commit, raw)
                missing.append(commit)
        born_under: dict[str, float] = {self.pool.current.id: self.clock.now_ms()}
        if session is not None:
            born_under = dict(self._introducers.get(session.id, ()))
        chosen = self._introductions.for_client(
            missing, born_under=born_under, find_root=self.pool.find_root, anchors=self.pool.anchor_ids
        )
        return [self._raw_introductions[commit.id] for commit in chosen]

    async def verify_commits(
        self,
        path: str,
        commits: Sequence[tuple[ReceivedCommit, Commit]],
        executor: Executor | None,
        may_look_up: bool = True,
        *,
        are_large: bool = False,
    ) -> list[VerificationError | None]:
        """Verify the commits of one repository; return one verdict per commit, None for a good one.

        If a signer is unknown and `may_look_up` is true, the server's sessions are read once. Session commits are
        verified in their order, and each good one counts for those after it. If the other commits may be large
        (`are_large`), even a few of them are verified in a thread.

        Raises:
            NodeUnreachableError, NodeRefusedError: A signer is unknown, and the server cannot be read.
        """
        verdicts = await self._judge_commits(path, commits, executor, are_large)
        early = [index for index, verdict in enumerate(verdicts) if isinstance(verdict, UnknownSignerError)]
        if early and may_look_up:
            await self.look_up()
            again = await self._judge_commits(path, [commits[index] for index in early], executor, are_large)
            for index, verdict in zip(early, again, strict=True):
                verdicts[index] = verdict
        return verdicts

    async def _judge_commits(
        self, path: str, commits: Sequence[tuple[ReceivedCommit, Commit]], executor: Executor | None, are_large: bool
    ) -> list[VerificationError | None]:
        if path == SESSIONS_PATH:
            return await self._judge_introductions([commit for _, commit in commits], executor, are_large)
        # Others are verified in a thread, as the commits are.
        knows = self.pool.knows_session
        signers = [self._signer_of(commit) if knows(commit.session) else None for _, commit in commits]
        unknown = (
            await asyncio.to_thread(self._find_unknown, commits, signers)
            if are_large
            else self._find_unknown(commits, signers)
        )
        verdicts: list[VerificationError | None] = [None] * len(commits)
        judged = await self._verify_signatures([commits[index][1] for index in unknown], executor, are_large)
        for index, verdict in zip(unknown, judged, strict=True):
            verdicts[index] = verdict
            received, commit = commits[index]
            if verdict is None and (signer := signers[index] or self._signer_of(commit)) is not None:
                self.known_commits.add(received, signer)
        return verdicts

    async def _verify_signatures(
        self, commits: Sequence[Commit], executor: Executor | None, are_large: bool
    ) -> list[VerificationError | None]:
        verification = self.pool.prepare_verification(commits)
        if not are_large and (len(commits) <= FEW or executor is None):
            verification.run()
        else:
            # In a thread of its own, which spreads the work over the executor's.
            await asyncio.to_thread(verification.run, executor)
        return self.pool.conclude_verification(verification)

    def _find_unknown(
        self, commits: Sequence[tuple[ReceivedCommit, Commit]], signers: Sequence[Session | None]
    ) -> list[int]:
        """Return the positions of the commits whose bytes were not verified before with the session that they name."""
        is_valid = self.known_commits.is_valid
        pairs = zip(commits, signers, strict=True)
        return [index for index, ((received, _), signer) in enumerate(pairs) if not is_valid(received, signer)]

    def _signer_of(self, commit: Commit) -> Session | None:
        """Return the session that a commit names as its signer; None if it is unknown or revoked."""
        try:
            return self.find_session(commit.session)
        except RevokedSessionError:
            return None

    async def _judge_introductions(
        self, commits: Sequence[Commit], executor: Executor | None, are_large: bool
    ) -> list[VerificationError | None]:
        """Verify session commits in their order: only a trusted root may introduce sessions and roots.

        SECURITY: any caller can copy thousands of introductions under other ids, so their signatures are verified in
        threads, too (tests/unit/door/test_trusted_sessions.py).
        """
        verdicts: list[VerificationError | None] = []
        while len(verdicts) < len(commits):
            portion = _until_next_root(commits[len(verdicts) : len(verdicts) + PORTION])
            judged = await self._verify_signatures(portion, executor, are_large)
            verdicts += [self._admit_introduction(*pair) for pair in zip(portion, judged, strict=True)]
        return verdicts

    def _admit_introduction(self, commit: Commit, verdict: VerificationError | None) -> VerificationError | None:
        """Add the session in a session commit to the pool if its signature is valid and its signer a trusted root."""
        signer = self._signer_of(commit)
        if signer is not None and not signer.is_root:
            return UntrustedRootError(f"session {commit.session!r} is not a root and cannot introduce sessions")
        if verdict is not None:
            return verdict
        try:
            self.pool.get_root(commit.session)
        except UntrustedRootError:
            return UntrustedRootError(f"session {commit.session!r} is not a root and cannot introduce sessions")
        except VerificationError as error:
            return error
        self.pool.add_verified_session_commit_unsafe(commit)
        return None


def _until_next_root(commits: Sequence[Commit]) -> Sequence[Commit]:
    """Return the first commits up to the first that introduces a root, which may have signed those after it."""
    end = next((index for index, commit in enumerate(commits, 1) if claims_root(commit)), len(commits))
    return commits[:end]
