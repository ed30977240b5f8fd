"""Index the commits of the server's repositories, to detect new commits that would crash the server.

An unmodified GoatDB server has three defects that matter here (docs/reference/goatdb-protocol.md#defects). It crashes
when it merges several commits of one item key if no commit of the key has a child ("empty ancestors filter"). It loops
forever over deltas that build on each other. It reads a second commit with the same id, in any repository, as the first
one. Whether a commit triggers a defect depends on the commits already stored. So for each repository that clients write
to, the door (the proxy in front of the server) knows the ids, which of them are deltas, which keys have a commit with a
child, and the schema of each key. An id belongs to the repository in which the door saw it first.

Two clients may create one key at the same time. GoatDB can merge the two creations if some commit of the key has a
child. So before the door passes on a second creation, it gives the first one a child with the same contents, signed by
the root (`RepositoryIndex._continue_keys`), and waits until it has read that child back.

Rules: the door reads a repository before it checks the first push to it. The server's application and peers write
without the door, so the door reads the repository again when its index is old: in the background, and before it rejects
a commit. A commit that was passed on counts as stored at first, but the application may have rejected it; it stays in
the index only if a later read shows it. If the server may have been restarted, the door reads before it checks the next
push; if commits were lost, it reads everything again. Beyond `capacity` commits, the least used indexes are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from goatherd.clock import Clock
from goatherd.door.received_commits import ReceivedCommit
from goatherd.door.repository_reader import SLICE, Ask, RepositoryReader, SharedRounds
from goatherd.door.request_checks import DoorRule, DroppedError
from goatherd.errors import NodeUnreachableError, VerificationError, WireError
from goatherd.identity.session import OwnedSession, sign_commit
from goatherd.ids import new_id, new_seeds
from goatherd.telemetry import Event, event_text
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.commit import Commit
from goatherd.wire.messages import VERSION
from goatherd.wire.paths import DEFAULT_ORG

OLD_SECONDS: Final = 5.0
STALE_SECONDS: Final = 0.5

_ERROR_RATE: Final = 1e-3
_UNCONFIRMED: Final = 100
"""When more commits than these are assumed to be stored, the server is asked which ones it has stored. It is not
asked every time, because it sends every one of them back, and searches all its commits for them."""
_CONFIRM_SECONDS: Final = 3.0
"""Minimum seconds between two such reads, unless very many commits are assumed to be stored."""
_MANY_UNCONFIRMED: Final = 10_000
_RENEWALS: Final = 3
_CONTINUATIONS: Final = 4
"""How often one push is checked again at most, after the first creations of its keys got a child."""
_SETTLING_SECONDS: Final = 5.0
"""Seconds that a second creation of a key waits while another request delivers the first one."""

Verify = Callable[[str, Sequence[tuple[ReceivedCommit, Commit]]], Awaitable[list[VerificationError | None]]]
"""Verifies commits of the repository with this path; returns one verdict per commit, None for a good one."""

_log = logging.getLogger("goatherd.door")


class FirstSeen:
    """Remember for each commit id which repository of the server was the first to contain a commit with it.

    Args:
        capacity: Maximum number of ids; the oldest are dropped.
        is_session: Returns whether an id belongs to ``/sys/sessions``, which has no index.
    """

    def __init__(self, capacity: int, is_session: Callable[[str], bool] = lambda _: False) -> None:
        self._capacity = capacity
        self._is_session = is_session
        self._path_of: dict[str, str] = {}

    def record_commit(self, commit_id: str, path: str) -> None:
        """Record that a repository contains a commit with this id, unless another repository is recorded already."""
        if self._path_of.setdefault(commit_id, path) is path and len(self._path_of) > self._capacity:
            del self._path_of[next(iter(self._path_of))]

    def is_in_other_repository(self, commit_id: str, path: str) -> bool:
        """Return whether the server holds a commit with this id in another repository."""
        return self._path_of.get(commit_id, path) != path or self._is_session(commit_id)


class RepositoryIndex:
    """Index of the commit ids and item keys in one repository of the server, with which the door checks pushes.

    Args:
        path: The repository.
        ask: Sends a request to the server.
        signer: Returns the root that signs requests.
        verify: Verifies commits that the server holds.
        clock: Supplies the current time.
        first_seen: For each commit id, the repository that the door saw it in first.
        server_generation: Returns a number that changes whenever the server may have been restarted.
        org: The organization.
    """

    def __init__(
        self,
        path: str,
        *,
        ask: Ask,
        signer: Callable[[], OwnedSession],
        verify: Verify,
        clock: Clock,
        org: str = DEFAULT_ORG,
        first_seen: FirstSeen | None = None,
        server_generation: Callable[[], int] = lambda: 0,
    ) -> None:
        self.path = path
        self._verify = verify
        self._server_generation = server_generation
        self._read_in = -1
        self._first_seen = first_seen or FirstSeen(0)
        self._read_at: float | None = None
        self._clock = clock
        self._reader = RepositoryReader(path, ask=ask, signer=signer, clock=clock, error_rate=_ERROR_RATE)
        self._rounds = SharedRounds(self._read_repository, f"index of {path}")
        self._key_of: dict[str, str] = {}
        self._deltas: set[str] = set()
        self._schemas: dict[str, str | None] = {}
        self._pending: dict[str, Commit] = {}
        self._unconfirmed: set[str] = set()
        self._claims: dict[str, tuple[ReceivedCommit, object]] = {}
        self._wanted: set[str] = set()
        self._full_of: dict[str, str] = {}
        self._continued: set[str] = set()
        self._signer = signer
        self._org = org
        self._connection = new_id()
        self._continuing = asyncio.Lock()
        self._settled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._key_of)

    @property
    def is_read(self) -> bool:
        """Whether the repository has been read at least once."""
        return self._read_at is not None

    @property
    def is_busy(self) -> bool:
        """Whether the door is reading the repository, or checking or delivering a push to it.

        After a push, the index is busy until the result has been read back.
        """
        return bool(self._pending or self._claims or self._rounds.is_running)

    @property
    def held_count(self) -> int:
        """Number of commits in the repository that the server has, or is assumed to have until the next read."""
        return len(self._key_of) + len(self._unconfirmed)

    @property
    def age(self) -> float:
        """Seconds since the repository was last read."""
        return math.inf if self._read_at is None else self._clock.monotonic() - self._read_at

    async def refresh(self) -> None:
        """Read the commits from the server that are new in this repository, and add them to the index.

        Raises:
            NodeUnreachableError, NodeRefusedError: The server cannot be read.
        """
        await self._rounds.run()

    async def aclose(self) -> None:
        """Stop reading the repository from the server."""
        await self._rounds.aclose()

    async def _read_repository(self) -> None:
        answered, server_generation = set(self._unconfirmed), self._server_generation()
        await self._index_new_commits()
        if self._reader.is_short:
            # SECURITY: the server has crashed and lost commits that it had acknowledged. The door must not forward
            # commits that build on lost ones: they would be orphans, and two orphans of one key crash the server
            # (tests/cluster/test_door_commits.py).
            self._drop_commits()
            await self._index_new_commits()
        for _ in range(_RENEWALS):
            if not any(self._reader.hides_commit(each) for each in answered):
                break
            await self._reader.renew_filter()
            await self._index_new_commits()
        answered = {each for each in answered if not self._reader.hides_commit(each)}
        # SECURITY: a forwarded commit that the server did not store must not make the door reject later commits of the
        # same key (tests/unit/door/test_commit_index.py).
        for commit_id in answered:
            self._unconfirmed.discard(commit_id)
            self._pending.pop(commit_id, None)
        self._read_at, self._read_in = self._clock.monotonic(), server_generation

    def _drop_commits(self) -> None:
        # Until the repository is read again, the index is not used: a commit without parents waits for the next read.
        self._read_at = None
        self._reader.drop_all()
        self._key_of.clear()
        self._deltas.clear()
        self._schemas.clear()
        self._wanted.clear()
        self._full_of.clear()
        self._continued.clear()

    async def _index_new_commits(self) -> None:
        for number, raw in enumerate(await self._reader.read_new(), start=1):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            contents, key = raw.get("c"), raw.get("k")
            record = contents.get("r") if isinstance(contents, dict) else None
            marker = record.get("s") if isinstance(record, dict) else None
            if isinstance(key, str):
                namespace = marker.partition("/")[0] if isinstance(marker, str) else None
                parents = raw.get("p")
                for parent in parents if isinstance(parents, list) else ():
                    if self._key_of.get(parent) == key:
                        self._continued.add(key)
                    elif isinstance(parent, str) and parent not in self._key_of:
                        self._wanted.add(parent)
                self._index_commit(raw["id"], key, namespace, is_delta=not isinstance(record, dict))

    def _index_commit(self, commit_id: str, key: str, namespace: str | None, *, is_delta: bool) -> None:
        self._key_of[commit_id] = key
        self._first_seen.record_commit(commit_id, self.path)
        if commit_id in self._wanted:
            self._wanted.discard(commit_id)
            self._continued.add(key)
        if is_delta:
            self._deltas.add(commit_id)
        else:
            self._full_of.setdefault(key, commit_id)
        if self._schemas.get(key) is None:
            self._schemas[key] = namespace

    @property
    def _may_have_restarted(self) -> bool:
        """Whether the server may have been restarted since the last read of the repository."""
        return self._read_in != self._server_generation()

    async def read_after_restart(self) -> None:
        """Read the repository if the server may have been restarted, since it may have lost commits.

        Raises:
            NodeUnreachableError, NodeRefusedError: The server cannot be read.
        """
        if self._may_have_restarted:
            await self.refresh()

    def without_held(self, commits: Sequence[ReceivedCommit]) -> list[ReceivedCommit]:
        """Return the commits that the server lacks, as far as the index knows. It would ignore the others."""
        held, unconfirmed = self._key_of, self._unconfirmed
        return [each for each in commits if each.id not in held and not (each.is_known and each.id in unconfirmed)]

    # --- one push -----------------------------------------------------------------------------------------------------

    async def hold_accepted(self, commits: Sequence[Commit]) -> list[DroppedError | None]:
        """Check commits, and hold those that cannot crash the server until `settle_commits`.

        Return for each commit the reason for its rejection; None if it is accepted.

        Raises:
            NodeUnreachableError, NodeRefusedError: The index is too old, and the server cannot be read.
        """
        if self._may_have_restarted or (self.age > OLD_SECONDS and any(self._is_birth(commit) for commit in commits)):
            await self.refresh()
        problems = self._judge_commits(commits)
        if any(problems) and self.age > STALE_SECONDS:
            await self.refresh()
            problems = self._judge_commits(commits)
        for _ in range(_CONTINUATIONS):
            keys = {problem.key for problem in problems if isinstance(problem, _ConcurrentCreationError)}
            if not keys:
                break
            await self._continue_keys(keys, [each for each, why in zip(commits, problems, strict=True) if why is None])
            problems = self._judge_commits(commits)
        for commit, problem in zip(commits, problems, strict=True):
            if problem is None and commit.id not in self._key_of:
                self._pending[commit.id] = commit
                self._first_seen.record_commit(commit.id, self.path)
        return problems

    async def _continue_keys(self, keys: set[str], good: Sequence[Commit]) -> None:
        """Store the first creation of each key and give it a child, so that the server can merge a second creation.

        Args:
            keys: The keys.
            good: The accepted commits of the same push; the first creations may be among them.

        Raises:
            NodeUnreachableError, NodeRefusedError: The server cannot be read, or a first creation is still being sent.
        """
        async with self._continuing:
            await self._wait_until_settled(keys)
            await self.refresh()
            first = [each for each in good if each.key in keys - self._schemas.keys() and not each.parents]
            if first:
                # Both creations came in one message: the first goes ahead, under its own signature.
                await self._write_and_read_back([each.to_json() for each in first])
            wanted = {self._full_of[key] for key in keys - self._continued if key in self._full_of}
            originals = await self._reader.fetch_commits(wanted) if wanted else []
            children = [self._child_of(original) for original in await self._find_verified(originals)]
            if children:
                await self._write_and_read_back([child.to_json() for child in children])
                _log.info(event_text(Event.DOOR_CREATIONS_JOINED, path=self.path, keys=len(children)))

    def claim_commits(
        self, commits: Iterable[ReceivedCommit], claimant: object
    ) -> tuple[list[ReceivedCommit], list[ReceivedCommit]]:
        """Return the commits that `claimant` has to deliver from now on, and those that other deliveries have claimed.

        SECURITY: a commit counts as claimed by another delivery only if all its bytes are the same, not only its id
        (tests/unit/door/test_commit_index.py).
        """
        own: list[ReceivedCommit] = []
        claimed: list[ReceivedCommit] = []
        for commit in commits:
            if commit.id is None:
                own.append(commit)
                continue
            held, holder = self._claims.setdefault(commit.id, (commit, claimant))
            (claimed if holder is not claimant and held.text == commit.text else own).append(commit)
        return own, claimed

    def find_claimant(self, commit_id: str | None) -> object:
        """Return the delivery (a push being sent to the server) that has claimed a commit; None if there is none."""
        claim = self._claims.get(commit_id) if commit_id is not None else None
        return None if claim is None else claim[1]

    def release_claims(self, commit_ids: Iterable[str], claimant: object) -> None:
        """Release the commits that `claimant` has claimed, after they were delivered or their delivery has failed."""
        for commit_id in commit_ids:
            if self.find_claimant(commit_id) is claimant:
                del self._claims[commit_id]
        self._settled.set()

    async def wait_for_release(self) -> None:
        """Wait until a delivery has released or settled commits."""
        self._settled.clear()
        await self._settled.wait()

    def holds_id(self, commit_id: str | None) -> bool:
        """Return whether the server has a commit with this id, or is assumed to have it."""
        return commit_id in self._key_of or commit_id in self._unconfirmed

    def holds_commit(self, commit: Commit) -> bool:
        """Return whether the server has a commit, or is assumed to have it, so that it need not be delivered again."""
        return commit.id in self._key_of or (commit.id in self._unconfirmed and self._pending.get(commit.id) == commit)

    async def _wait_until_settled(self, keys: set[str]) -> None:
        try:
            async with asyncio.timeout(_SETTLING_SECONDS):
                while any(
                    each.key in keys and not self._is_settled(each) and each.key not in self._schemas
                    for each in self._pending.values()
                ):
                    await self.wait_for_release()
        except TimeoutError:
            raise NodeUnreachableError(
                f"{self.path}: two pushes create the same item, and the server did not answer the first one within"
                f" {_SETTLING_SECONDS:g} s, so the second one was not sent to it",
                hint="Send the second push again. If this happens repeatedly, check that the server answers.",
            ) from None

    def _is_settled(self, commit: Commit) -> bool:
        return commit.id in self._unconfirmed

    async def _find_verified(self, raws: Iterable[Mapping[str, Any]]) -> list[Commit]:
        """Decode commits that the server holds, and return those whose signatures are valid.

        SECURITY: the server stores commits that are forged in another session's name; the root must not sign their
        contents (tests/unit/door/test_commit_index.py).

        Raises:
            NodeUnreachableError, NodeRefusedError: A signer is unknown, and the server cannot be read.
        """
        decoded: list[tuple[ReceivedCommit, Commit]] = []
        problems: list[WireError | VerificationError] = []
        for raw in raws:
            try:
                decoded.append((ReceivedCommit(raw), Commit.from_json(raw, org=self._org)))
            except WireError as error:
                problems.append(error)
        good: list[Commit] = []
        for (_, commit), verdict in zip(decoded, await self._verify(self.path, decoded), strict=True):
            if verdict is None:
                good.append(commit)
            else:
                problems.append(verdict)
        for problem in problems:
            why = f"{self.path}: the first commit of an item: {problem}"
            _log.warning(event_text(Event.DOOR_STOPPED, rule=DoorRule.BIRTH.value, count=1, why=why))
        return good

    def _child_of(self, original: Commit) -> Commit:
        """Return a child of the given full commit with the same contents, signed by the root."""
        now_ms, signer = self._clock.now_ms(), self._signer()
        child = replace(
            original,
            id=new_id(),
            session=signer.id,
            ts=max(now_ms, math.floor(original.ts) + 1),
            version=VERSION,
            connection=self._connection,
            parents=(original.id,),
            ancestors_filter=BloomFilter.for_size(1, 0.25, new_seeds(seed_count(1, 0.25))),
            ancestors_count=0,
            merge_base=None,
            merge_leader=None,
            revert=False,
            signature=None,
        )
        return sign_commit(signer, child, now_ms=now_ms)

    async def _write_and_read_back(self, commits: Sequence[Mapping[str, Any]]) -> None:
        """Send commits to the server under the root's signature, and read them back."""
        await self._reader.write_commits(commits)
        for commit in commits:
            if self._reader.hides_commit(commit["id"]):
                await self._reader.renew_filter()
        await self.refresh()

    def settle_commits(self, commits: Iterable[Commit], *, is_stored: bool) -> None:
        """Record whether the server has stored accepted commits. A caller that does not know passes false."""
        self._settled.set()
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
        count = len(self._unconfirmed)
        if count > _MANY_UNCONFIRMED or (count > _UNCONFIRMED and self.age > _CONFIRM_SECONDS):
            self._rounds.start()

    def _is_birth(self, commit: Commit) -> bool:
        return not any(self._holds_in_key(parent, commit.key) for parent in commit.parents)

    def _holds_in_key(self, commit_id: str, key: str) -> bool:
        if commit_id in self._pending:
            return self._pending[commit_id].key == key
        return self._key_of.get(commit_id) == key

    def _judge_commits(self, commits: Sequence[Commit]) -> list[DroppedError | None]:
        """Check the commits of a push, in any order; return for each one the reason for its rejection, or None.

        The parent of a commit may be another commit of the push, but must itself be accepted.
        """
        problems: list[DroppedError | None] = [
            DroppedError(
                DoorRule.BIRTH, f"commit {commit.id!r} needs an accepted ancestor among the commits of {commit.key!r}"
            )
            for commit in commits
        ]
        beside = {commit.id for commit in commits}
        after: dict[str, list[int]] = {}
        ready: deque[int] = deque()
        for index, commit in enumerate(commits):
            waits_for = [
                each for each in _required_ids(commit) if each in beside and not self._holds_in_key(each, commit.key)
            ]
            for each in waits_for:
                after.setdefault(each, []).append(index)
            if not waits_for or commit.id in self._key_of or not self._is_birth(commit):
                ready.append(index)
        keys = {commit.key for commit in commits}
        batch = _Batch(keys={}, ids={}, deltas=set())
        for pending in self._pending.values():
            if pending.key in keys:
                batch.add_schema(pending)
        while ready:
            index = ready.popleft()
            commit = commits[index]
            if problems[index] is None:
                continue
            if commit.id in self._key_of:
                problems[index] = None  # the server has this commit, and ignores a second copy
                continue
            problem = problems[index] = self._find_problem(commit, batch)
            if problem is None:
                batch.add_commit(commit)
                ready.extend(after.pop(commit.id, ()))
        return problems

    def _find_problem(self, commit: Commit, batch: _Batch) -> DroppedError | None:
        key = commit.key
        if commit.id in batch.ids or self._pending.get(commit.id, commit) != commit:
            return DroppedError(DoorRule.COMMIT, f"the id of commit {commit.id!r} occurs more than once")
        if self._first_seen.is_in_other_repository(commit.id, self.path):
            # SECURITY: GoatDB caches commits by id over all repositories, so the server would use one of the two
            # commits in place of the other (tests/cluster/test_door_commits.py).
            return DroppedError(
                DoorRule.COMMIT, f"commit {commit.id!r} has the same id as a commit in another repository"
            )
        if commit.is_delta:
            base = commit.base or ""
            if base in self._deltas or base in batch.deltas or (base in self._pending and self._pending[base].is_delta):
                return DroppedError(DoorRule.DELTA, f"the base of delta commit {commit.id!r} must not be a delta")
            if not self._holds_in_key(base, key) and batch.ids.get(base) != key:
                return DroppedError(
                    DoorRule.DELTA, f"the base of delta commit {commit.id!r} is not among the commits of its item"
                )
        else:
            known = self._schemas.get(key)
            known = batch.keys.get(key) if known is None else known
            if known is not None and known != commit.namespace:
                return DroppedError(DoorRule.SCHEMA, f"commit {commit.id!r} must not change the schema of {key!r}")
        if any(self._holds_in_key(parent, key) or batch.ids.get(parent) == key for parent in commit.parents):
            return None
        if commit.parents:
            # A client offers it again with them: its next message has another filter.
            return DroppedError(DoorRule.BIRTH, f"commit {commit.id!r} arrived before its parents")
        is_other_there = key in self._schemas or (key in batch.keys and commit.id not in self._pending)
        if is_other_there and commit.id not in self._wanted:
            if key in self._continued:
                return None  # the server merges it
            return _ConcurrentCreationError(commit)
        return None


class _ConcurrentCreationError(DroppedError):
    """Two commits create the same item, and no other commit of the item follows them.

    An unmodified server would crash when it merges these two.
    """

    def __init__(self, commit: Commit) -> None:
        super().__init__(DoorRule.BIRTH, f"commit {commit.id!r} is a second creation of {commit.key!r}")
        self.key = commit.key


@dataclass(slots=True)
class _Batch:
    """The commits of a push that were accepted so far: keys with their schemas, ids with their keys, ids of deltas."""

    keys: dict[str, str | None]
    ids: dict[str, str]
    deltas: set[str]

    def add_commit(self, commit: Commit) -> None:
        self.ids[commit.id] = commit.key
        self.add_schema(commit)
        if commit.is_delta:
            self.deltas.add(commit.id)

    def add_schema(self, commit: Commit) -> None:
        """Record the schema of a commit's key. A delta names none, and leaves the one that is known."""
        if self.keys.get(commit.key) is None:
            self.keys[commit.key] = commit.namespace


def _required_ids(commit: Commit) -> tuple[str, ...]:
    return commit.parents if commit.base is None else (*commit.parents, commit.base)


class RepositoryIndexes:
    """Hold an index of the commits of each repository that clients write to.

    Args:
        make_index: Makes the index of a repository, given its path and `first_seen`.
        capacity: Maximum number of commits in all indexes.
        repositories: Maximum number of indexes.
        is_session: Returns whether an id is that of a session in ``/sys/sessions``.
    """

    def __init__(
        self,
        make_index: Callable[..., RepositoryIndex],
        *,
        capacity: int,
        repositories: int = 50_000,
        is_session: Callable[[str], bool],
    ) -> None:
        self._make_index = make_index
        self._first_seen = FirstSeen(2 * capacity, is_session)
        self._capacity = capacity
        self._repositories = repositories
        self._indexes: OrderedDict[str, RepositoryIndex] = OrderedDict()

    async def open_index(self, path: str) -> RepositoryIndex:
        """Return a repository's index, after it has been read at least once.

        Raises:
            NodeUnreachableError, NodeRefusedError: The server cannot be read.
        """
        index = self._indexes.get(path)
        if index is None:
            index = self._make_index(path, first_seen=self._first_seen)
            self._indexes[path] = index
        self._indexes.move_to_end(path)
        if not index.is_read:
            await index.refresh()
            self._drop_least_used()
        return index

    def _drop_least_used(self) -> None:
        total = sum(len(index) for index in self._indexes.values())
        for path, index in list(self._indexes.items())[:-1]:
            if total <= self._capacity and len(self._indexes) <= self._repositories:
                break
            if not index.is_busy:
                del self._indexes[path]
                total -= len(index)

    async def aclose(self) -> None:
        """Stop reading the repositories from the server."""
        for index in self._indexes.values():
            await index.aclose()
        self._indexes.clear()
