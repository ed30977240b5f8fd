"""Read the commits of one repository of the server, by the sync protocol with which GoatDB peers read.

The reader remembers only the ids of commits. It parses the commits that the server sends, and does not verify them.

Rules: ids are added in slices, and large filters are built in a thread, so that the door answers other requests
meanwhile. One round of reading runs at a time. A caller that arrives during a round waits for the next round, since the
current one may miss the commits that the caller needs. If the server does not answer, the caller gets an error, never
an empty repository.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import orjson

from goatherd.clock import Clock
from goatherd.errors import DecodeError, NodeRefusedError
from goatherd.identity.session import OwnedSession, sign_request
from goatherd.ids import new_id, new_seeds
from goatherd.serving.signals import cancel_tasks
from goatherd.wire.batch import read_answer
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.messages import VERSION

ROUNDS: Final = 200
FETCHES: Final = 4
_SMALLEST: Final = 64
_BIG_ANSWER: Final = 64 * 1024
SLICE: Final = 500
"""Number of commits that are handled before other requests get their turn."""

Ask = Callable[[bytes, str], Awaitable[tuple[int, bytes]]]
"""Sends a ``/batch-sync`` request with a body and a signature, and returns the answer's status and body."""


class RepositoryReader:
    """Reads one repository of the server repeatedly; each read returns only new commits.

    Args:
        path: The repository.
        ask: Sends a request to the server.
        signer: Returns the root that signs requests, so that the server shows every commit.
        clock: Supplies the time for signatures.
        error_rate: False-positive rate of the Bloom filter that tells the server which commits are known. The server
            does not send a new commit that the filter contains by chance; the filter is built again whenever the number
            of commits has doubled.
    """

    def __init__(
        self,
        path: str,
        *,
        ask: Ask,
        signer: Callable[[], OwnedSession],
        clock: Clock,
        error_rate: float,
    ) -> None:
        self.path = path
        self.ids: set[str] = set()
        self._ask = ask
        self._signer = signer
        self._clock = clock
        self._error_rate = error_rate
        self._filter = self._new_filter(_SMALLEST)
        self._room = _SMALLEST
        self._unreturned: list[dict[str, Any]] = []
        self.is_short = False
        """Whether the server has lost commits: at the last read it had fewer than it has shown before."""

    def drop_all(self) -> None:
        """Forget all commit ids from earlier reads, so that the next read returns every commit."""
        self.ids.clear()
        self._unreturned.clear()
        self._room = _SMALLEST
        self._filter = self._new_filter(self._room)

    async def add_ids(self, commit_ids: Sequence[str]) -> None:
        """Remember commit ids, so that the server does not send these commits again."""
        for begin in range(0, len(commit_ids), SLICE):
            if begin:
                await asyncio.sleep(0)
            part = commit_ids[begin : begin + SLICE]
            self.ids.update(part)
            self._filter.update(part)
        if len(self.ids) > self._room:
            self._room = 2 * len(self.ids)
            await self.renew_filter()

    def hides_commit(self, commit_id: str) -> bool:
        """Return whether the filter contains an unread id by chance, so that the server would not send its commit."""
        return commit_id not in self.ids and commit_id in self._filter

    async def renew_filter(self) -> None:
        """Build the filter again with new seeds, so that other ids are false positives."""
        ids, renewed = list(self.ids), self._new_filter(self._room)
        if len(ids) <= SLICE:
            renewed.update(ids)
        else:
            await asyncio.to_thread(renewed.update, ids)
            renewed.update(self.ids.difference(ids))
        self._filter = renewed

    async def read_new(self) -> list[dict[str, Any]]:
        """Return the commits that are new since the last read, in the server's order.

        A read takes several rounds. If one fails, the next call also returns the commits of the rounds before it.

        Raises:
            NodeUnreachableError: The server did not answer.
            NodeRefusedError: The server does not trust the signer, or its answer is malformed.
        """
        for _ in range(ROUNDS):
            commits, size = await self._run_round()
            fresh = [commit for commit in commits if commit["id"] not in self.ids]
            self._unreturned += fresh
            await self.add_ids([commit["id"] for commit in fresh])
            if not fresh or size <= len(self.ids):
                break
        self.is_short = size < len(self.ids)
        found, self._unreturned = self._unreturned, []
        return found

    async def write_commits(self, commits: Sequence[Mapping[str, Any]]) -> None:
        """Send commits to the server; its answer is ignored.

        Raises:
            NodeUnreachableError: The server did not answer.
            NodeRefusedError: The server does not trust the signer.
        """
        await self._send_sync(self._filter if self.ids else None, commits)

    async def fetch_commits(self, ids: set[str]) -> list[dict[str, Any]]:
        """Fetch commits again by their ids, known from earlier reads; leave out those that the server no longer has.

        Raises:
            NodeUnreachableError, NodeRefusedError: As `read_new`.
        """
        found: dict[str, dict[str, Any]] = {}
        for _ in range(FETCHES):
            missing = ids - found.keys()
            if not missing:
                break
            # The filter holds some of them by mistake, others each time.
            others = await asyncio.to_thread(self._filter_without, missing)
            commits, _ = await self._send_sync(others, ())
            found.update((commit["id"], commit) for commit in commits if commit["id"] in missing)
        return list(found.values())

    def _filter_without(self, missing: set[str]) -> BloomFilter:
        others = self._new_filter(self._room)
        others.update(self.ids - missing)
        return others

    async def _run_round(self) -> tuple[list[dict[str, Any]], float]:
        return await self._send_sync(self._filter if self.ids else None, ())

    async def _send_sync(
        self, has: BloomFilter | None, commits: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], float]:
        empty = {"d": "AA==", "s": [1, 2]}
        held = empty if has is None else has.to_json()
        message = {"ver": VERSION, "f": {"__t": "E", "__v": held}, "s": len(self.ids), "c": list(commits), "ad": []}
        signer = self._signer()
        header = sign_request(signer, now_ms=self._clock.now_ms(), nonce=new_id())
        status, answer = await self._ask(to_json_bytes([{"path": self.path, "msg": message}]), header)
        if status == 403:
            why = f"the server does not trust root {signer.id} (403), or its clock differs from the door's"
            raise NodeRefusedError(f"cannot read {self.path}: {why}", status=status)
        if status != 200:
            raise NodeRefusedError(f"cannot read {self.path}: the server answered with status {status}", status=status)
        read = await asyncio.to_thread(_commits_of, answer) if len(answer) > _BIG_ANSWER else _commits_of(answer)
        if read is None:
            raise NodeRefusedError(f"cannot read {self.path}: the answer does not have GoatDB's format", status=status)
        return read

    def _new_filter(self, size: int) -> BloomFilter:
        return BloomFilter.for_size(size, self._error_rate, new_seeds(seed_count(size, self._error_rate)))


def _commits_of(answer: bytes) -> tuple[list[dict[str, Any]], float] | None:
    """Return the commits in an answer, and how many the server says it has; None if the answer is malformed."""
    try:
        decoded = orjson.loads(answer)
    except orjson.JSONDecodeError:
        try:
            decoded = parse_json(answer)
        except DecodeError:
            try:
                decoded = read_answer(answer, 1)
            except DecodeError:
                return None
    try:
        message = decoded[0]["res"]
        commits, size = message.get("c", []), message.get("s")
        good = [each for each in commits if isinstance(each, dict) and isinstance(each.get("id"), str)]
        return good, size if isinstance(size, int | float) else math.inf
    except (LookupError, TypeError, AttributeError):
        return None


class SharedRounds:
    """Share rounds of one task between callers: one round runs at a time, then one more for all that called meanwhile.

    Args:
        work: Runs one round.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._work = work
        self._name = name
        self._active: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a round of the shared task runs now."""
        return self._active is not None and not self._active.done()

    async def run(self) -> None:
        """Wait until a round of the shared task that began after this call has ended.

        Raises:
            NodeUnreachableError, NodeRefusedError: The round failed with this error.
        """
        # One caller that goes away must not take the round from the others.
        await asyncio.shield(self.start())

    def start(self) -> asyncio.Task[None]:
        """Start a round of the shared task, or schedule one after the running round; return it without waiting."""
        if self._next is not None:
            return self._next  # also if the running round has just ended: this one begins at once
        if self._active is None or self._active.done():
            self._active = self._start_task(self._work())
            return self._active
        self._next = self._start_task(self._run_after(self._active))
        return self._next

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=self._name)
        # A failure is no lost one when no caller waits for it.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _run_after(self, before: asyncio.Task[None]) -> None:
        await asyncio.wait({before})
        self._active, self._next = self._next, None
        await self._work()

    async def aclose(self) -> None:
        """Cancel the running and the scheduled round of the shared task."""
        following, self._next = self._next, None
        await cancel_tasks(following, self._active)
