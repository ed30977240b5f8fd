"""A client that trusts as GoatDB's does (docs/reference/goatdb-protocol.md#trust): each session commit once,
by the roots that it knows when the commit arrives, and only if it holds no child of that commit.

Unlike GoatDB's client, it verifies signatures, as a careful client could.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from goatherd.clock import Clock
from goatherd.cluster.client import NodeClient
from goatherd.errors import DecodeError, VerificationError
from goatherd.identity.session import OwnedSession, Session, sign_commit
from goatherd.identity.session_commits import session_from_commit, verify_commit_by
from goatherd.ids import new_id, new_seeds
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.messages import VERSION, SyncMessage
from tests.deadlines import ANSWER

SESSIONS = "/sys/sessions"
NOTES = "/data/notes"


@dataclass
class GoatClient:
    """One client: its session, its trust pool, and the commits that it holds.

    Attributes:
        url: The server that it talks to.
        clock: Its time.
        owned: Its own session, which never changes.
        roots: The roots that it trusts, by id.
        sessions: The sessions that it knows, by id.
        held: Everything that it has pulled, by repository and id.
    """

    url: str
    clock: Clock
    owned: OwnedSession
    roots: dict[str, Session] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    held: dict[str, dict[str, Commit]] = field(default_factory=dict)

    @classmethod
    async def born(cls, url: str, clock: Clock) -> GoatClient:
        """Create a session, and trust the roots that come with it."""
        async with NodeClient(url, clock=clock, timeout=ANSWER) as node:
            owned, roots = await node.create_session()
        client = cls(url, clock, owned)
        for root in roots:
            client._add(root)
        client._add(owned.session)
        return client

    async def sync(self) -> None:
        """Pull both repositories; each session commit is looked at once, when it arrives."""
        async with NodeClient(self.url, clock=self.clock, timeout=ANSWER) as node:
            for path in (SESSIONS, NOTES):
                known = self.held.setdefault(path, {})
                while await self._pull(node, path, known):
                    pass

    async def _pull(self, node: NodeClient, path: str, known: dict[str, Commit]) -> bool:
        """Pull the commits that are missing; return whether there were any."""
        bloom = BloomFilter.for_size(max(1, len(known)), 1e-6, new_seeds(seed_count(max(1, len(known)), 1e-6)))
        bloom.update(list(known))
        message = SyncMessage(version=VERSION, filter=bloom, size=len(known)).to_json()
        (reply,) = await node.batch_sync([(path, message)], self.owned)
        fresh = []
        for raw in reply["c"]:
            commit = Commit.from_json(raw, org="localhost")
            if commit.id not in known:
                known[commit.id] = commit
                fresh.append(commit)
        parents = {parent for commit in known.values() for parent in commit.parents} if path == SESSIONS else set()
        for commit in fresh:
            if path == SESSIONS and commit.id not in parents:
                self._look(commit)
        return bool(fresh)

    async def write(self, title: str) -> Commit:
        """Write a note and push it; return the note once the server shows it."""
        now_ms = self.clock.now_ms()
        draft = new_commit(
            commit_id=new_id(),
            key=new_id(),
            session_id=self.owned.id,
            ts=now_ms,
            org="localhost",
            data={"title": title},
            schema_marker="note/1",
            connection=new_id(),
        )
        commit = sign_commit(self.owned, draft, now_ms=now_ms)
        async with NodeClient(self.url, clock=self.clock, timeout=ANSWER) as node:
            await node.push(NOTES, [commit], self.owned)
            assert commit.id in {raw["id"] for raw in await node.pull(NOTES, self.owned)}
        return commit

    def restart(self) -> None:
        """Start again: every session in ``/sys/sessions`` is trusted then, whichever root has signed it."""
        for commit in self.held.get(SESSIONS, {}).values():
            session = _session_of(commit)
            if session is not None:
                self._add(session)

    def verifies(self, commit: Commit) -> bool:
        """Return whether this client can verify a commit by the roots and sessions that it trusts."""
        session = self.sessions.get(commit.session)
        if session is None:
            return False
        try:
            verify_commit_by(session, commit)
        except VerificationError:
            return False
        return True

    def unverified(self, commits: Iterable[Commit]) -> list[str]:
        return [commit.id for commit in commits if not self.verifies(commit)]

    def _look(self, commit: Commit) -> None:
        root, session = self.roots.get(commit.session), _session_of(commit)
        if root is None or session is None:
            return
        try:
            verify_commit_by(root, commit)
        except VerificationError:
            return
        self._add(session)

    def _add(self, session: Session) -> None:
        known: Any = self.sessions.get(session.id)
        gains = known is not None and known.owner is None and session.owner is not None
        if known is None or session.expiration_ms > known.expiration_ms or gains:
            self.sessions[session.id] = session
        if session.is_root:
            self.roots.setdefault(session.id, session)


def _session_of(commit: Commit) -> Session | None:
    try:
        return session_from_commit(commit)
    except DecodeError:
        return None
