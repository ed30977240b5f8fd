"""Deliver one push to the server in portions. The next portion is verified while the server works on the last one.

`goatherd.door.proxy` decides what is verified and accepted. A small push is one portion, sent in the client's own
request.

Rules: commits go in the order of the batch's elements, parents before their children. Portions carry the client's own
headers, so that the server decides who may write. If another push that began earlier is already delivering the same
commit, identical in every member, this push waits for that delivery and does not send the commit again. Commits of a
large push that the server already holds are not decoded. A delivery continues even if its client has disconnected.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from goatherd.door.commit_index import RepositoryIndex
from goatherd.door.received_commits import ReceivedCommit
from goatherd.door.request_checks import DoorRule, Element
from goatherd.serving.caller_limits import RefusedError
from goatherd.serving.signals import cancel_tasks
from goatherd.wire.commit import Commit
from goatherd.wire.json import to_json_bytes
from goatherd.wire.paths import SESSIONS_PATH

FIRST: Final = 32
"""Number of commits to verify before the first portion is sent. A push of at most this size is one portion."""
STEP: Final = 128
"""Number of commits to verify at once after the first portion."""
AHEAD: Final = 1000
"""Maximum number of verified commits that wait for the server, which needs the processor as well."""
PORTION: Final = 500
"""Maximum size of a portion: half a second of work for the server."""
HELD_PER_COMMIT: Final = 60
"""A portion has at least one commit per this many in the server, so that answering costs less than storing."""
WINDOW: Final = 4
"""Maximum number of portions sent at one time: the server verifies one while it stores another."""

_HAS_EVERYTHING: Final = {"__t": "E", "__v": {"d": "AA==", "s": []}}
"""A filter that holds every id, so that the server sends no commits back."""
_NUMBERS: Final = itertools.count()


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """One commit whose signature is valid, as received and decoded."""

    element: Element
    received: ReceivedCommit
    commit: Commit


Judge = Callable[[Element, Sequence[ReceivedCommit]], Awaitable[list[Verified]]]
Admit = Callable[[RepositoryIndex, Sequence[Verified]], Awaitable[list[Verified]]]


class Delivery:
    """The delivery of the commits of one client's push to the server, in portions.

    Args:
        elements: The batch's elements.
        index_of: Returns the index of a repository, after it has been read at least once.
        judge: Returns the commits that are well-formed and have a valid signature.
        admit: Returns the commits that do not crash the server; their index holds them until they are settled.
        send: Sends a body to the server under the client's headers, and returns the status.

    Attributes:
        stored_count: How many commits the server has stored so far.
        answered_count: The value of `stored_count` at the last early answer.
        early_answers: How often a client was answered before its commits were delivered.
        is_alone: Whether the client's own request no longer carries the last portion, so that this delivery must.
    """

    def __init__(
        self,
        elements: Sequence[Element],
        *,
        index_of: Callable[[str], Awaitable[RepositoryIndex]],
        judge: Judge,
        admit: Admit,
        send: Callable[[bytes], Awaitable[int]],
    ) -> None:
        self._elements = elements
        self._index_of = index_of
        self._judge = judge
        self._admit = admit
        self._send = send
        self._indexes: dict[str, RepositoryIndex] = {}
        self._own: list[tuple[Element, list[ReceivedCommit]]] = []
        self._awaited: list[tuple[Element, list[ReceivedCommit]]] = []
        self._held: dict[Verified, None] = {}
        self.others: set[Delivery] = set()
        """Other deliveries that have claimed commits of this push."""
        self.stored_count = 0
        self.early_answers = 0
        self.answered_count = 0
        self.is_alone = False
        self._number = -1

    @property
    def own_count(self) -> int:
        """Number of commits of this push that no other push is delivering."""
        return sum(len(commits) for _, commits in self._own)

    @property
    def is_small(self) -> bool:
        """Whether the push is a single portion that waits for no other push."""
        return self.own_count <= FIRST and not self.others

    async def claim_commits(self) -> None:
        """Claim the commits of this push that no other push is delivering, so that each is sent only once.

        Of a large push, only commits that the server lacks are claimed.

        Raises:
            NodeUnreachableError, NodeRefusedError: The server's repositories cannot be read.
        """
        brought = [element for element in self._elements if element.commits]
        is_large = sum(len(element.commits) for element in brought) > FIRST
        for element in brought:
            if element.path != SESSIONS_PATH:
                self._indexes[element.path] = await self._index_of(element.path)
                if is_large:
                    await self._indexes[element.path].read_after_restart()
        # Without a pause between them, and with a number by which no two deliveries wait for each other.
        self._number = next(_NUMBERS)
        for element in brought:
            index = self._indexes.get(element.path)
            if index is None:
                self._own.append((element, element.commits))
                continue
            commits = index.without_held(element.commits) if is_large else element.commits
            own, awaited = index.claim_commits(commits, self)
            self._own.append((element, own))
            if awaited:
                self._awaited.append((element, awaited))
                self.others |= {
                    other for each in awaited if isinstance(other := index.find_claimant(each.id), Delivery)
                }

    async def run(self) -> list[Verified]:
        """Deliver the commits in portions, and return the last portion unsent; it is held until `settle_held`.

        The caller sends the last portion in the client's own request. If `is_alone`, all portions are delivered here.

        Raises:
            RefusedError: The server rejected a portion.
            LostError, TimeoutError, NodeUnreachableError, NodeRefusedError: The server did not answer, or cannot be
                read.
        """
        await self._wait_for_others()
        sending: dict[asyncio.Task[None], list[Verified]] = {}
        try:
            async with aclosing(_Ahead(self._own, self._judge)) as ahead:
                while True:
                    held = max((index.held_count for index in self._indexes.values()), default=0)
                    portion, is_last = await ahead.wait_for_commits(PORTION, least=smallest_portion(held))
                    on_their_way = [each for sent in sending.values() for each in sent]
                    await _wait_for_room(sending, 1 if is_last or _builds_on(portion, on_their_way) else WINDOW)
                    good = await self._hold_accepted(portion)
                    if is_last and not self.is_alone:
                        return good
                    if good:
                        sending[asyncio.create_task(self._deliver_portion(good), name="part of a push")] = good
                    if is_last:
                        await _wait_for_room(sending, 1)
                        return []
        finally:
            await _cancel_sending(sending)

    async def _wait_for_others(self) -> None:
        """Wait for the commits that earlier deliveries have claimed, and claim those whose delivery failed.

        A later delivery may claim such a commit first. This delivery does not wait for later ones, because they may
        wait for it.
        """
        for element, left in self._awaited:
            index = self._indexes[element.path]
            while True:
                if not self.is_alone:  # otherwise the client sends again what is missing
                    free = [one for one in left if not index.find_claimant(one.id) and not index.holds_id(one.id)]
                    self._add_own(element, index.claim_commits(free, self)[0])
                left = [each for each in left if self._is_after(index.find_claimant(each.id))]
                if not left:
                    break
                await index.wait_for_release()

    def _is_after(self, other: object) -> bool:
        """Return whether `other` is a delivery that claimed its commits before this delivery did."""
        return isinstance(other, Delivery) and other._number < self._number

    def _add_own(self, element: Element, commits: Sequence[ReceivedCommit]) -> None:
        """Add commits of an element to those that this delivery has claimed, so that all are sent in one order."""
        for other, own in self._own:
            if other is element:
                own.extend(commits)

    async def _hold_accepted(self, portion: Sequence[Verified]) -> list[Verified]:
        good: list[Verified] = []
        for element in dict.fromkeys(each.element for each in portion):
            admitted = [each for each in portion if each.element is element]
            index = self._indexes.get(element.path)
            if index is not None:
                if not self.is_small:
                    admitted = [each for each in admitted if not index.holds_commit(each.commit)]
                admitted = await self._admit(index, admitted)
            self._held.update(dict.fromkeys(admitted))
            good += admitted
        return good

    async def _deliver_portion(self, portion: Sequence[Verified]) -> None:
        status = await self._send(await encode_batch(_sync_messages(portion)))
        if status != 200:
            raise RefusedError(DoorRule.CHILD, status, f"the server answered {status} to a part of a push")
        self._settle_portion(portion, is_stored=True)

    def settle_held(self, *, is_stored: bool) -> None:
        """Record all accepted commits that are being delivered as stored by the server, or as not stored."""
        self._settle_portion(list(self._held), is_stored=is_stored)

    def _settle_portion(self, portion: Sequence[Verified], *, is_stored: bool) -> None:
        for path, index in self._indexes.items():
            commits = [each.commit for each in portion if each.element.path == path]
            if commits:
                index.settle_commits(commits, is_stored=is_stored)
                index.release_claims([each.id for each in commits], self)
        for each in portion:
            self._held.pop(each, None)
        if is_stored:
            self.stored_count += len(portion)

    def release_commits(self) -> None:
        """Release this delivery's claims on all commits that were not delivered. May be called twice."""
        self.settle_held(is_stored=False)
        for element, commits in self._own:
            index = self._indexes.get(element.path)
            if index is not None:
                index.release_claims([each.id for each in commits if each.id is not None], self)


def smallest_portion(held: int) -> int:
    """Return the minimum number of commits in a portion; it grows with the commits that the server holds.

    For each answer, the server builds a filter over all of these commits, so many small portions would be slow.

    Args:
        held: How many commits the server holds.
    """
    return min(max(FIRST, held // HELD_PER_COMMIT), PORTION)


def _builds_on(portion: Sequence[Verified], others: Sequence[Verified]) -> bool:
    """Return whether `others` must be stored before `portion` is sent, because the server may reorder requests."""
    if not others:
        return False
    if any(each.element.path == SESSIONS_PATH for each in (*portion, *others)):
        return True
    keys = {(each.element.path, each.commit.key) for each in others}
    return any((each.element.path, each.commit.key) in keys for each in portion)


async def _wait_for_room(sending: dict[asyncio.Task[None], list[Verified]], size: int) -> None:
    """Wait until fewer than `size` portions are being sent.

    Raises:
        RefusedError, LostError, TimeoutError, NodeUnreachableError, NodeRefusedError: A portion was not delivered.
    """
    while len(sending) >= size:
        done, _ = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            del sending[task]
            task.result()


async def _cancel_sending(sending: dict[asyncio.Task[None], list[Verified]]) -> None:
    for task in sending:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
    await cancel_tasks(*sending)


def _sync_messages(portion: Sequence[Verified]) -> list[tuple[Element, dict[str, Any], list[ReceivedCommit]]]:
    messages = []
    for element in dict.fromkeys(each.element for each in portion):
        commits = [each.received for each in portion if each.element is element]
        message = {"ver": element.raw["msg"].get("ver"), "f": _HAS_EVERYTHING, "s": 0, "ad": []}
        messages.append((element, {"path": element.raw["path"], "msg": message}, commits))
    return messages


async def encode_batch(parts: Sequence[tuple[Element, Mapping[str, Any], Sequence[ReceivedCommit]]]) -> bytes:
    """Return the body of a ``/batch-sync`` request; encode it in a thread if it may be large.

    Args:
        parts: For each element of the batch: the received element, the JSON to send, and the commits to send with it.
    """
    if any(element.is_large for element, _, _ in parts):
        return await asyncio.to_thread(_encode_elements, parts)
    return _encode_elements(parts)


def _encode_elements(parts: Sequence[tuple[Element, Mapping[str, Any], Sequence[ReceivedCommit]]]) -> bytes:
    """Return the elements of a batch as JSON; their commits are the bytes that were received."""
    texts = []
    for _, raw, commits in parts:
        rest = to_json_bytes({name: value for name, value in raw.items() if name != "msg"})
        message = to_json_bytes({name: value for name, value in raw["msg"].items() if name != "c"})
        # Neither object is empty: an element has a path, and a message a filter.
        texts.append(b'%b,"msg":%b,"c":[%b]}}' % (rest[:-1], message[:-1], b",".join([each.text for each in commits])))
    return b"[%b]" % b",".join(texts)


class _Ahead:
    """Verifies commits in the background, before the delivery needs them.

    Args:
        work: The commits of each element of the push.
        judge: Returns those commits that are well-formed and have a valid signature.
    """

    def __init__(self, work: Sequence[tuple[Element, list[ReceivedCommit]]], judge: Judge) -> None:
        self._judge = judge
        self._ready: deque[Verified] = deque()
        self._left = sum(len(commits) for _, commits in work)
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._task = asyncio.create_task(self._verify_all(work), name="verify a push")
        # Retrieve the task's exception here, so that asyncio does not log it. The delivery reports it later.
        self._task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task.add_done_callback(lambda _: self._changed.set())

    async def _verify_all(self, work: Sequence[tuple[Element, list[ReceivedCommit]]]) -> None:
        size = FIRST
        for element, commits in work:
            ordered = commits
            if element.path != SESSIONS_PATH:
                ordered = (
                    await asyncio.to_thread(parents_first, commits) if element.is_large else parents_first(commits)
                )
            begin = 0
            while begin < len(ordered):
                end = len(ordered) if element.path == SESSIONS_PATH else begin + size
                while len(self._ready) >= AHEAD:
                    self._room.clear()
                    await self._room.wait()
                chunk = ordered[begin:end]
                good = await self._judge(element, chunk)
                self._ready += good
                self._left -= len(chunk)
                self._changed.set()
                begin, size = end, STEP

    async def wait_for_commits(self, limit: int, *, least: int) -> tuple[list[Verified], bool]:
        """Wait for `least` verified commits, or all that are left; return up to `limit`, and whether they are the last.

        Raises:
            NodeUnreachableError, NodeRefusedError: The judge failed, and all commits verified before were returned.
        """
        while self._left and len(self._ready) < min(limit, least):
            if self._task.done():
                self._task.result()
            self._changed.clear()
            await self._changed.wait()
        taken = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        self._room.set()
        return taken, not self._left and not self._ready

    async def aclose(self) -> None:
        """Stop the verification."""
        await cancel_tasks(self._task)


def parents_first(commits: Sequence[ReceivedCommit]) -> list[ReceivedCommit]:
    """Return commits in an order in which each comes after its parents and its base; otherwise the order stays."""
    positions = {each.id: position for position, each in enumerate(commits) if each.id is not None}
    needed = [_required_positions(each, positions) for each in commits]
    if all(other < position for position, others in enumerate(needed) for other in others):
        return list(commits)
    waiting = [len(others) for others in needed]
    children: dict[int, list[int]] = {}
    for position, others in enumerate(needed):
        for other in others:
            children.setdefault(other, []).append(position)
    ready = deque(position for position, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        position = ready.popleft()
        order.append(position)
        for child in children.get(position, ()):
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    in_order = set(order)
    # The remaining commits are their own ancestors; the index rejects them.
    return [commits[position] for position in [*order, *(each for each in range(len(commits)) if each not in in_order)]]


def _required_positions(commit: ReceivedCommit, positions: Mapping[str, int]) -> set[int]:
    if commit.id is None:
        return set()
    raw = commit.raw
    parents, contents = raw.get("p"), raw.get("c")
    ids = list(parents) if isinstance(parents, list) else []
    if isinstance(contents, dict):
        ids.append(contents.get("b"))
    found = {positions[each] for each in ids if isinstance(each, str) and each in positions}
    found.discard(positions[commit.id])
    return found
