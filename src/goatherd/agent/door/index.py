"""What the child's repositories hold, as far as a new commit's fate depends on it (T7, T37, T39).

The child ends its process when it has to merge two births of one key, or leaves without a common ancestor; it never
comes back from deltas that build on each other. Whether a commit does that depends on what is there already, so for
each repository that is written to, the door knows the ids, which of them are deltas, and the keys with their schemas.
And the child decodes an id once: a commit that comes under the id of another is that other one to it, in any
repository, whatever was judged here. So an id stays with the repository in which it was seen first.

Rules: a repository is read before the first push to it is judged, and again, in the background or before a judgement
that would be a refusal, when what is known is old: the child's own application and its peers write past the door.
What was let through counts at once, and for good when the child has shown it: it may have left it out, by a rule of the
application's. Where the child may have been started again, it is read before the next push is judged; if it has lost
commits, all is read anew. The least used repositories are forgotten beyond `capacity` commits.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from goatherd.agent.door.replica import Ask, Replica, Rounds
from goatherd.agent.door.rules import DroppedError, Rule
from goatherd.clock import Clock
from goatherd.identity.session import OwnedSession
from goatherd.wire.commit import Commit

OLD_SECONDS: Final = 5.0
STALE_SECONDS: Final = 0.5

_ERROR_RATE: Final = 1e-3
_UNCONFIRMED: Final = 100
"""So many commits are believed to be stored, at most, before the child is asked."""
_RENEWALS: Final = 3


class Homes:
    """In which repository an id was seen first.

    Args:
        capacity: How many ids are remembered; the oldest are forgotten.
        is_session: Whether an id is one of ``/sys/sessions``, which has no index.
    """

    def __init__(self, capacity: int, is_session: Callable[[str], bool] = lambda _: False) -> None:
        self._capacity = capacity
        self._is_session = is_session
        self._path_of: dict[str, str] = {}

    def note(self, commit_id: str, path: str) -> None:
        """Note where an id is, unless it is somewhere else already."""
        if self._path_of.setdefault(commit_id, path) is path and len(self._path_of) > self._capacity:
            del self._path_of[next(iter(self._path_of))]

    def is_elsewhere(self, commit_id: str, path: str) -> bool:
        """Whether the child knows the id from another repository."""
        return self._path_of.get(commit_id, path) != path or self._is_session(commit_id)


class RepositoryIndex:
    """One repository of the child.

    Args:
        path: The repository.
        ask: How the child is reached.
        signer: Who signs; a root.
        clock: The time.
        homes: Where ids were seen first.
        era: Returns another number once the child may be another process.
    """

    def __init__(
        self,
        path: str,
        *,
        ask: Ask,
        signer: Callable[[], OwnedSession],
        clock: Clock,
        homes: Homes | None = None,
        era: Callable[[], int] = lambda: 0,
    ) -> None:
        self.path = path
        self._era = era
        self._read_in = -1
        self._homes = homes or Homes(0)
        self._read_at: float | None = None
        self._clock = clock
        self._replica = Replica(path, ask=ask, signer=signer, clock=clock, error_rate=_ERROR_RATE)
        self._rounds = Rounds(self._read, f"index of {path}")
        self._key_of: dict[str, str] = {}
        self._deltas: set[str] = set()
        self._schemas: dict[str, str | None] = {}
        self._pending: dict[str, Commit] = {}
        self._unconfirmed: set[str] = set()
        self._wanted: set[str] = set()

    def __len__(self) -> int:
        return len(self._key_of)

    @property
    def is_read(self) -> bool:
        """Whether the repository has been read at least once."""
        return self._read_at is not None

    @property
    def age(self) -> float:
        """Seconds since it was last read."""
        return math.inf if self._read_at is None else self._clock.monotonic() - self._read_at

    async def refresh(self) -> None:
        """Read what is new.

        Raises:
            NodeUnreachableError, NodeRefusedError: The child cannot be asked.
        """
        await self._rounds.run()

    async def aclose(self) -> None:
        """Stop reading."""
        await self._rounds.aclose()

    async def _read(self) -> None:
        answered, era = set(self._unconfirmed), self._era()
        await self._take()
        if self._replica.is_short:
            # SECURITY: it crashed before it had written down what it acknowledged; what builds on that would be an
            # orphan, and two of those end it (tests/cluster/test_door.py).
            self._forget()
            await self._take()
        for _ in range(_RENEWALS):
            if not any(self._replica.hides(each) for each in answered):
                break
            self._replica.renew()
            await self._take()
        answered = {each for each in answered if not self._replica.hides(each)}
        # SECURITY: what the child did not store must not keep a key from others (tests/unit/agent/test_door_rules.py).
        for commit_id in answered:
            self._unconfirmed.discard(commit_id)
            self._pending.pop(commit_id, None)
        self._read_at, self._read_in = self._clock.monotonic(), era

    def _forget(self) -> None:
        # Until all is read, nothing is judged by it: what seems to be a birth has to wait for the next reading.
        self._read_at = None
        self._replica.forget()
        self._key_of.clear()
        self._deltas.clear()
        self._schemas.clear()
        self._wanted.clear()

    async def _take(self) -> None:
        for raw in await self._replica.read():
            contents, key = raw.get("c"), raw.get("k")
            record = contents.get("r") if isinstance(contents, dict) else None
            marker = record.get("s") if isinstance(record, dict) else None
            if isinstance(key, str):
                namespace = marker.partition("/")[0] if isinstance(marker, str) else None
                parents = raw.get("p")
                if isinstance(parents, list):
                    self._wanted.update(each for each in parents if isinstance(each, str) and each not in self._key_of)
                self._know(raw["id"], key, namespace, is_delta=not isinstance(record, dict))

    def _know(self, commit_id: str, key: str, namespace: str | None, *, is_delta: bool) -> None:
        self._key_of[commit_id] = key
        self._homes.note(commit_id, self.path)
        self._wanted.discard(commit_id)
        if is_delta:
            self._deltas.add(commit_id)
        if self._schemas.get(key) is None:
            self._schemas[key] = namespace

    # --- one push -----------------------------------------------------------------------------------------------------

    async def admit(self, commits: Sequence[Commit]) -> list[DroppedError | None]:
        """Say which commits the child survives, and hold those until `settle`.

        Raises:
            NodeUnreachableError, NodeRefusedError: What is known is too old, and the child cannot be asked.
        """
        is_other = self._read_in != self._era()
        if is_other or (self.age > OLD_SECONDS and any(self._is_birth(commit) for commit in commits)):
            await self.refresh()
        problems = self._judge(commits)
        if any(problems) and self.age > STALE_SECONDS:
            await self.refresh()
            problems = self._judge(commits)
        for commit, problem in zip(commits, problems, strict=True):
            if problem is None and commit.id not in self._key_of:
                self._pending[commit.id] = commit
                self._homes.note(commit.id, self.path)
        return problems

    def settle(self, commits: Iterable[Commit], *, is_stored: bool) -> None:
        """Take held commits as stored, or not; in doubt not, and the next push reads again."""
        for commit in commits:
            if commit.id not in self._pending:
                continue
            if is_stored and commit.id not in self._key_of:
                self._unconfirmed.add(commit.id)
                continue
            del self._pending[commit.id]
            self._unconfirmed.discard(commit.id)
            if not is_stored:
                self._read_at = min(self._read_at or 0.0, self._clock.monotonic() - 2 * OLD_SECONDS)
        if len(self._unconfirmed) > _UNCONFIRMED:
            self._rounds.start()

    def _is_birth(self, commit: Commit) -> bool:
        return not any(self._has(parent, commit.key) for parent in commit.parents)

    def _has(self, commit_id: str, key: str) -> bool:
        if commit_id in self._pending:
            return self._pending[commit_id].key == key
        return self._key_of.get(commit_id) == key

    def _judge(self, commits: Sequence[Commit]) -> list[DroppedError | None]:
        """Judge commits together: a parent may come with its child, in any order, but must itself be good."""
        problems: list[DroppedError | None] = [
            DroppedError(Rule.BIRTH, f"commit {commit.id!r} has no ancestor among the commits of {commit.key!r}")
            for commit in commits
        ]
        beside = {commit.id for commit in commits}
        after: dict[str, list[int]] = {}
        ready: deque[int] = deque()
        for index, commit in enumerate(commits):
            waits_for = [each for each in _needed(commit) if each in beside and not self._has(each, commit.key)]
            for each in waits_for:
                after.setdefault(each, []).append(index)
            if not waits_for or commit.id in self._key_of or not self._is_birth(commit):
                ready.append(index)
        keys = {commit.key for commit in commits}
        on_the_way = {each.key: each.namespace for each in self._pending.values() if each.key in keys}
        batch = _Batch(keys=on_the_way, ids={}, deltas=set())
        while ready:
            index = ready.popleft()
            commit = commits[index]
            if problems[index] is None:
                continue
            if commit.id in self._key_of:
                problems[index] = None  # the child has it and will not look
                continue
            problem = problems[index] = self._problem(commit, batch)
            if problem is None:
                batch.take(commit)
                ready.extend(after.pop(commit.id, ()))
        return problems

    def _problem(self, commit: Commit, batch: _Batch) -> DroppedError | None:
        key = commit.key
        if commit.id in batch.ids or self._pending.get(commit.id, commit) != commit:
            return DroppedError(Rule.COMMIT, f"commit {commit.id!r} comes twice")
        if self._homes.is_elsewhere(commit.id, self.path):
            # SECURITY: the child would take it for the other one (T39, tests/cluster/test_door.py).
            return DroppedError(Rule.COMMIT, f"commit {commit.id!r} has the id of one in another repository")
        if commit.is_delta:
            base = commit.base or ""
            if base in self._deltas or base in batch.deltas or (base in self._pending and self._pending[base].is_delta):
                return DroppedError(Rule.DELTA, f"commit {commit.id!r} builds on a delta")
            if not self._has(base, key) and batch.ids.get(base) != key:
                return DroppedError(Rule.DELTA, f"commit {commit.id!r} builds on a commit that is not there")
        else:
            known = self._schemas.get(key) or batch.keys.get(key)
            if known is not None and known != commit.namespace:
                return DroppedError(Rule.SCHEMA, f"commit {commit.id!r} changes the schema of {key!r}")
        if any(self._has(parent, key) or batch.ids.get(parent) == key for parent in commit.parents):
            return None
        if commit.parents:
            # A client offers it again with them: its next message has another filter.
            return DroppedError(Rule.BIRTH, f"commit {commit.id!r} comes before its parents")
        is_other_there = key in self._schemas or (key in batch.keys and commit.id not in self._pending)
        if is_other_there and commit.id not in self._wanted:
            return DroppedError(Rule.BIRTH, f"commit {commit.id!r} is a second birth of {key!r}")
        return None


@dataclass(slots=True)
class _Batch:
    """What comes with a commit: keys with their schemas, ids with their keys, ids of deltas."""

    keys: dict[str, str | None]
    ids: dict[str, str]
    deltas: set[str]

    def take(self, commit: Commit) -> None:
        self.ids[commit.id] = commit.key
        if self.keys.get(commit.key) is None:
            self.keys[commit.key] = commit.namespace
        if commit.is_delta:
            self.deltas.add(commit.id)


def _needed(commit: Commit) -> tuple[str, ...]:
    return commit.parents if commit.base is None else (*commit.parents, commit.base)


class Indexes:
    """The repositories that are written to.

    Args:
        ask: How the child is reached.
        signer: Who signs; a root.
        clock: The time.
        capacity: How many commits are known at most, all together.
        is_session: Whether an id is one of ``/sys/sessions``.
        era: Returns another number once the child may be another process.
    """

    def __init__(
        self,
        *,
        ask: Ask,
        signer: Callable[[], OwnedSession],
        clock: Clock,
        capacity: int,
        is_session: Callable[[str], bool],
        era: Callable[[], int],
    ) -> None:
        self._era = era
        self._homes = Homes(2 * capacity, is_session)
        self._ask = ask
        self._signer = signer
        self._clock = clock
        self._capacity = capacity
        self._indexes: OrderedDict[str, RepositoryIndex] = OrderedDict()

    async def of(self, path: str) -> RepositoryIndex:
        """Return a repository's index, read at least once.

        Raises:
            NodeUnreachableError, NodeRefusedError: The child cannot be asked.
        """
        index = self._indexes.get(path)
        if index is None:
            index = RepositoryIndex(
                path, ask=self._ask, signer=self._signer, clock=self._clock, homes=self._homes, era=self._era
            )
            self._indexes[path] = index
        self._indexes.move_to_end(path)
        if not index.is_read:
            await index.refresh()
            self._forget()
        return index

    def _forget(self) -> None:
        total = sum(len(index) for index in self._indexes.values())
        while total > self._capacity and len(self._indexes) > 1:
            _, oldest = self._indexes.popitem(last=False)
            total -= len(oldest)

    async def aclose(self) -> None:
        """Stop reading."""
        for index in self._indexes.values():
            await index.aclose()
        self._indexes.clear()
