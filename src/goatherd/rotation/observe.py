"""What each node trusts, holds and signs with, seen from outside by plain GoatDB means.

What it is: one look at one node, and all nodes looked at side by side. What it is not: it decides nothing and changes
nothing, except that asking an unmodified server who signs there costs one anonymous session.

How the questions are put so that an unmodified GoatDB 0.5.1 answers them:
- *Do you trust B?* A ``/batch-sync`` signed by B: 200 or 403.
- *Do you hold this commit?* The request's Bloom filter claims to hold everything but a few ids. GoatDB answers with
  whatever that filter lacks: the commit that was asked for, and one in 8192 of all others. So the answer is exact (the
  filter that the server sends back would be wrong at its error rate) and stays small in front of 50 000 sessions.
- *Who signs?* ``GET /goatherd/v1/identity`` where there is one. Elsewhere an anonymous session is created and the
  signature of its commit in ``/sys/sessions`` looked at, seldom.
- *Has it restarted?* Both answers name the process: one as ``instance``, the other as the commit's connection id.

Rules: no answer, or one that is no answer, is "not known" (None), never "no" and never "yes". Nothing here outlasts
`Policy.node_timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Protocol

from goatherd.clock import Clock
from goatherd.errors import DecodeError, GenerationError, GoatherdError, NodeError, NodeRefusedError
from goatherd.identity.session import OwnedSession, Session
from goatherd.ids import new_seeds
from goatherd.rotation.machine import FlowProbe, NodeView
from goatherd.rotation.vouching import Sought, signer_of
from goatherd.settings.base import Origin
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from goatherd.wire.hashing import murmur3
from goatherd.wire.messages import VERSION

SESSIONS: Final = "/sys/sessions"

_REFUSED: Final = "identity."
_FILTER_BYTES: Final = 1024
_SMALL: Final = 1000
_EMPTY: Final[dict[str, Any]] = {"__t": "E", "__v": {"d": "AA==", "s": [1, 2]}}
_ASK_SIGNER_EVERY: Final = timedelta(seconds=5)
_PROCESS_TRIES: Final = 3
_SOUGHT_AT_ONCE: Final = 200
_STORE_FAILED: Final = "provider."
_PROBE_PAUSE: Final = timedelta(milliseconds=250)
_LONGEST_ID: Final = 64
_MANY_PEERS: Final = 256
_MANY_ROOTS: Final = 1000


class Node(Protocol):
    """What a rotation needs of a node; `goatherd.client.NodeClient` is one, the simulated herd has another."""

    @property
    def base_url(self) -> str: ...

    async def batch_sync(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], signer: OwnedSession, now_ms: int | None = None
    ) -> list[dict[str, Any]]: ...

    async def push(
        self, path: str, commits: Iterable[Mapping[str, Any]], signer: OwnedSession, now_ms: int | None = None
    ) -> dict[str, Any] | None: ...

    async def identity(self) -> dict[str, Any] | None: ...

    async def refresh(self, signer: OwnedSession, now_ms: int | None = None) -> dict[str, Any] | None: ...

    async def create_session(self) -> tuple[OwnedSession, list[Session]]: ...


NodeSource = Callable[[], Awaitable[Sequence[Node]]]
"""Who the nodes are now, asked again at each look; whoever makes them closes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to ask of every node in one round.

    Attributes:
        asker: A root that the nodes trust already; asks where `next_root` is refused.
        next_root: B, or None when there is none.
        introductions: The commits any of which introduces `next_root`.
        cross_signature: A's, signed by B.
        signer: Whether it matters who signs; asking an unmodified server costs a session.
        process: Whether to see which process serves at an unmodified server, so that a restart can be told later. It
            is asked until it is known, at most three times in a run, and costs a session each time.
        answers: Whether to see that it accepts a request signed by `asker`, where there is no `next_root`.
        earlier: The introductions of roots that are to leave the document. Asked for in phase steady only.
    """

    asker: OwnedSession
    next_root: OwnedSession | None = None
    introductions: tuple[Sought, ...] = ()
    cross_signature: Sought | None = None
    signer: bool = False
    process: bool = False
    answers: bool = False
    earlier: tuple[Sought, ...] = ()


@dataclass(slots=True)
class _Memory:
    """What is remembered of one node between two rounds: only how dear a question is, and when it was last put."""

    unmodified: bool = False
    signer: str | None = None
    asked_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a server of ours says of itself; each part is None, or empty, where it says nothing that can be used."""

    roots: tuple[str, ...] | None
    generation: int | None
    clock_ahead_ms: int | None
    instance: str | None
    partners: frozenset[str] | None
    is_partner_unknown: bool


@dataclass(slots=True)
class _Sight:
    """A `NodeView` in the making."""

    reachable: bool = False
    trusts_next: bool | None = None
    holds: dict[str, bool] = field(default_factory=dict)
    signs_with: str | None = None
    holds_earlier: frozenset[str] | None = None
    rejects: str | None = None
    without_store: bool = False
    answers: bool | None = None
    told: _Told | None = None
    problems: list[str] = field(default_factory=list)


class Observer:
    """Looks at nodes, all at once, each within its own time limit.

    Args:
        nodes: The nodes, each with a URL of its own; or what tells who they are. Nodes that have joined are looked at
            from then on, those that have left no more.
        clock: Signs the requests' time.
        timeout: Longest time for one look at one node, and for being told who the nodes are.
        bare: URLs of those that nobody restarts.
        org: The organization id, which is part of every signed commit.

    Attributes:
        nodes: Those that there are, by URL.
        unknown: Why it could not be told, last time, who the nodes are; `nodes` are those that were known before.
    """

    def __init__(
        self,
        nodes: Sequence[Node] | NodeSource,
        *,
        clock: Clock,
        timeout: timedelta,
        bare: Iterable[str] = (),
        org: str = "localhost",
    ) -> None:
        self._bare = frozenset(url.rstrip("/") for url in bare)
        self._source = nodes if callable(nodes) else None
        self.nodes: dict[str, Node] = {} if callable(nodes) else {node.base_url: node for node in nodes}
        self.unknown: str | None = None
        self._clock = clock
        self._org = org
        self._timeout = timeout.total_seconds()
        self._memory: dict[str, _Memory] = {}
        self._processes: dict[str, dict[str, None]] = {}
        self._asked_for_process: Counter[str] = Counter()

    @property
    def hint(self) -> str | None:
        """What to do about nodes that were seen to be unmodified and are not known to be bare; None without any."""
        found = [url for url, one in self._memory.items() if one.unmodified and url not in self._bare]
        if not found:
            return None
        return (
            f"{', '.join(found)}: unmodified GoatDB, which signs with another root only after a restart. Run it under"
            " `goatherd run`, or, if nobody restarts it, name it with --bare."
        )

    def forget_processes(self) -> None:
        """Count restarts from now on."""
        self._processes.clear()
        self._asked_for_process.clear()

    def count_restarts(self) -> dict[str, int | None]:
        """Return how often each server was seen to start again, by URL; None where its process is not known.

        A server that starts twice between two looks is counted once.
        """
        return {url: len(processes) - 1 if processes else None for url, processes in self._processes.items()}

    async def call_the_roll(self) -> None:
        """Ask again who the nodes are. Where that fails, those known before stay, and `unknown` says why.

        SECURITY: no answer, and an empty one, are not "nobody": a rotation would go on without waiting for anybody
        (tests/unit/rotation/test_joining.py).
        """
        if self._source is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                found = await self._source()
        except TimeoutError:
            self.unknown = f"no answer within {self._timeout:g} s"
            return
        except (GoatherdError, OSError) as error:
            self.unknown = str(error) or type(error).__name__
            return
        self.unknown = None if found else "no node was found"
        if found:
            self.nodes = {node.base_url: node for node in found}

    async def look(self, question: Question) -> tuple[NodeView, ...]:
        """Return one view per node that there is now, in the order of `nodes`. Never raises for what a node does."""
        await self.call_the_roll()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._look(url, question)) for url in self.nodes]
        return tuple([task.result() for task in tasks])

    async def held(self, url: str, commit_ids: Sequence[str], signer: OwnedSession) -> dict[str, dict[str, Any]]:
        """Return those of the commits of ``/sys/sessions`` that the node holds, by id; as it sent them, unverified.

        Raises:
            NodeUnreachableError, NodeRefusedError: As `goatherd.client.NodeClient.batch_sync`.
        """
        message = _message(all_but(commit_ids))
        (reply,) = await self.nodes[url].batch_sync([(SESSIONS, message)], signer, self._clock.now_ms())
        return {commit["id"]: dict(commit) for commit in _commits(reply) if commit.get("id") in commit_ids}

    async def gather(self, commit_ids: Sequence[str], signer: OwnedSession) -> AsyncIterator[list[Commit]]:
        """Yield those of the commits of ``/sys/sessions`` that each node holds, node by node; nothing is verified.

        A node that does not answer yields nothing.
        """
        await self.call_the_roll()
        for url in self.nodes:
            found: dict[str, dict[str, Any]] = {}
            try:
                async with asyncio.timeout(self._timeout):
                    for at in range(0, len(commit_ids), _SOUGHT_AT_ONCE):
                        found |= await self.held(url, commit_ids[at : at + _SOUGHT_AT_ONCE], signer)
            except (NodeError, TimeoutError):
                continue
            commits = []
            for raw in found.values():
                with contextlib.suppress(DecodeError):
                    commits.append(Commit.from_json(raw, org=self._org))
            yield commits

    @property
    def is_discovered(self) -> bool:
        """Whether the nodes are found by asking, rather than listed one by one."""
        return self._source is not None

    async def probe_flow(self, at: str, others: Sequence[str], *, patience: timedelta) -> FlowProbe:
        """Make an anonymous session at one server, and see which others know it within `patience`.

        It works with any GoatDB server: one that has received the session's commit accepts a request signed by that
        session. What it leaves behind is the session, as every visitor of the cluster leaves one; it expires by itself.

        Args:
            at: URL of the server that makes the session.
            others: URLs of the servers that shall learn of it.
            patience: How long they have for it.
        """
        try:
            async with asyncio.timeout(self._timeout):
                owned, _ = await self.nodes[at].create_session()
        except (NodeError, TimeoutError) as error:
            return FlowProbe(at=at, problem=str(error) or f"no answer within {self._timeout:g} s")
        until = self._clock.monotonic() + patience.total_seconds()
        left = list(others)
        while True:
            async with asyncio.TaskGroup() as group:
                asked = {url: group.create_task(self._is_accepted(url, owned)) for url in left}
            left = [url for url in left if not asked[url].result()]
            if not left or self._clock.monotonic() >= until:
                return FlowProbe(at=at, unreached=tuple(left))
            await self._clock.sleep(_PROBE_PAUSE)

    async def _is_accepted(self, url: str, signer: OwnedSession) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                await self.nodes[url].batch_sync([], signer, self._clock.now_ms())
        except (KeyError, NodeError, TimeoutError):
            return False
        return True

    async def unmodified(self) -> tuple[str, ...]:
        """Return the URLs of the servers that were seen to run unmodified GoatDB, and of those that nobody restarts."""
        await self._identities()
        return self.known_unmodified

    @property
    def known_unmodified(self) -> tuple[str, ...]:
        """As `unmodified`, by what earlier looks have shown; asks nothing."""
        found = {url for url, one in self._memory.items() if one.unmodified}
        return tuple(url for url in self.nodes if url in found | self._bare)

    async def highest_generation(self, root_id: str) -> int:
        """Return the highest generation that a node says it uses, of those that trust a root; 0 where none says."""
        told = [answer for answer in (await self._identities()).values() if root_id in _texts(answer.get("roots"))]
        numbers = [one for answer in told if type(one := answer.get("generation")) is int]
        return max(numbers, default=0)

    async def _identities(self) -> dict[str, Mapping[str, Any]]:
        """Return what the nodes of ours that answer say of themselves, by URL."""

        async def ask(url: str) -> Mapping[str, Any] | None:
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await self.nodes[url].identity()
            except (NodeError, TimeoutError):
                return None  # whether it takes part is for the rotation to see
            if answer is None:
                self._memory.setdefault(url, _Memory()).unmodified = True
            return answer

        await self.call_the_roll()
        async with asyncio.TaskGroup() as group:
            tasks = {url: group.create_task(ask(url)) for url in self.nodes}
        return {url: answer for url, task in tasks.items() if (answer := task.result()) is not None}

    async def _look(self, url: str, question: Question) -> NodeView:
        sight = _Sight()
        try:
            async with asyncio.timeout(self._timeout):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._see_identity(url, question, sight))
                    if question.next_root is not None:
                        group.create_task(self._see_trust(url, question, question.next_root, sight))
                    elif question.answers:
                        group.create_task(self._see_answer(url, question.asker, sight))
                    if question.next_root is None and question.earlier:
                        group.create_task(self._see_earlier(url, question, sight))
        except TimeoutError:
            sight.problems.append(f"no answer within {self._timeout:g} s")
        cross, told = question.cross_signature, sight.told
        if sight.reachable:
            self._processes.setdefault(url, {})
        introduced = [sight.holds.get(one.commit_id) for one in question.introductions]
        return NodeView(
            url=url,
            reachable=sight.reachable,
            is_unmodified=url in self._memory and self._memory[url].unmodified,
            answers=sight.answers,
            roots=None if told is None else told.roots,
            generation=None if told is None else told.generation,
            clock_ahead_ms=None if told is None else told.clock_ahead_ms,
            instance=None if told is None else told.instance,
            partners=None if told is None else told.partners,
            is_partner_unknown=told is not None and told.is_partner_unknown,
            trusts_next=sight.trusts_next,
            holds_introduction=None if not introduced or None in introduced else True in introduced,
            signs_with=sight.signs_with,
            holds_cross_signature=None if cross is None else sight.holds.get(cross.commit_id),
            rejects=sight.rejects,
            without_store=sight.without_store,
            is_bare=url in self._bare,
            holds_earlier=sight.holds_earlier,
            problem="; ".join(dict.fromkeys(sight.problems)) or None,
        )

    async def _see_identity(self, url: str, question: Question, sight: _Sight) -> None:
        memory = self._memory.setdefault(url, _Memory())
        try:
            if not memory.unmodified:
                before_ms = self._clock.now_ms()
                answer = await self.nodes[url].identity()
                after_ms = self._clock.now_ms()
                sight.reachable = True
                if answer is not None:
                    signer = answer.get("signer")
                    sight.signs_with = signer if isinstance(signer, str) else None
                    sight.rejects = _rejection(answer)
                    sight.without_store = _is_without_store(answer)
                    self._note_process(url, answer.get("instance"))
                    if question.answers:
                        # Only before a rotation: what changes at each look would be told anew at each look.
                        sight.told = read_told(answer, before_ms=before_ms, after_ms=after_ms)
                    return
                memory.unmodified = True
            if question.signer:
                sight.signs_with = await self._signer_of_a_new_session(url, question.asker, memory)
                sight.reachable = True
            elif question.process and not self._processes.get(url):
                await self._see_process(url, question.asker)
        except NodeError as error:
            _note(sight, error)

    async def _see_process(self, url: str, asker: OwnedSession) -> None:
        """Note which process serves at an unmodified server.

        A server that does not answer in time, or not with the commit, is asked three times in a run and no more: each
        time costs a session, and may hold up the other questions.
        """
        if self._asked_for_process[url] >= _PROCESS_TRIES:
            return
        self._asked_for_process[url] += 1
        try:
            await self._ask_signer(url, asker)
        except NodeError:
            self._asked_for_process[url] -= 1

    def _note_process(self, url: str, process: object) -> None:
        if isinstance(process, str) and 0 < len(process) <= _LONGEST_ID:
            self._processes.setdefault(url, {})[process] = None

    async def _see_answer(self, url: str, asker: OwnedSession, sight: _Sight) -> None:
        try:
            await self.nodes[url].batch_sync([], asker, self._clock.now_ms())
        except NodeRefusedError as error:
            if error.status != 403:
                _note(sight, error)
                return
            sight.answers = False
        except NodeError as error:
            _note(sight, error)
            return
        else:
            sight.answers = True
        sight.reachable = True

    async def _see_trust(self, url: str, question: Question, next_root: OwnedSession, sight: _Sight) -> None:
        sought = [*question.introductions, *(() if question.cross_signature is None else (question.cross_signature,))]
        ids = [one.commit_id for one in sought]
        try:
            try:
                held = await self.held(url, ids, next_root)
                sight.trusts_next = True
            except NodeRefusedError as error:
                if error.status != 403:
                    raise
                sight.reachable = True
                sight.trusts_next = False
                held = await self.held(url, ids, question.asker)
        except NodeError as error:
            _note(sight, error)
            return
        sight.reachable = True
        for one in sought:
            commit = held.get(one.commit_id)
            sight.holds[one.commit_id] = commit is not None and one.matches(commit)

    async def _see_earlier(self, url: str, question: Question, sight: _Sight) -> None:
        try:
            held = await self.held(url, [one.commit_id for one in question.earlier], question.asker)
        except NodeError as error:
            _note(sight, error)
            return
        sight.reachable = True
        sight.holds_earlier = frozenset(
            one.session_id
            for one in question.earlier
            if (commit := held.get(one.commit_id)) is not None and one.matches(commit)
        )

    async def _signer_of_a_new_session(self, url: str, asker: OwnedSession, memory: _Memory) -> str | None:
        now = self._clock.monotonic()
        if memory.asked_at is not None and now - memory.asked_at < _ASK_SIGNER_EVERY.total_seconds():
            return memory.signer
        memory.asked_at = now
        memory.signer = await self._ask_signer(url, asker) or memory.signer
        return memory.signer

    async def _ask_signer(self, url: str, asker: OwnedSession) -> str | None:
        """Return who signs, and note which process does.

        COMPAT: GoatDB says nowhere who signs, but it signs the session commit of every caller (protocol 2.3). The
        commit's connection id is that of the process, and a new one after each start (formats 6).
        """
        node = self.nodes[url]
        known: Any = _EMPTY
        try:
            (before,) = await node.batch_sync([(SESSIONS, _message(all_but(())))], asker, self._clock.now_ms())
            if isinstance(before.get("s"), int) and before["s"] > _SMALL:
                # Its own filter, from just before: what it lacks now is new. At this size its error rate is small.
                known = before.get("f")
        except NodeRefusedError:
            pass  # a server that does not trust the asker yet is asked for everything
        owned, _ = await node.create_session()
        (reply,) = await node.batch_sync([(SESSIONS, _message(known))], owned, self._clock.now_ms())
        made = next((commit for commit in _commits(reply) if commit.get("k") == owned.id), None)
        if made is None:
            return None
        self._note_process(url, made.get("cid"))
        return signer_of(made)


def all_but(commit_ids: Sequence[str]) -> dict[str, Any]:
    """Return the filter that claims to hold every commit except these."""
    (seed,) = new_seeds(1)
    bits = bytearray(b"\xff" * _FILTER_BYTES)
    for commit_id in commit_ids:
        index = murmur3(commit_id, seed) % (8 * _FILTER_BYTES)
        bits[index >> 3] &= ~(1 << (index & 7)) & 0xFF
    return {"__t": "E", "__v": BloomFilter(bits, (seed,)).to_json()}


def _rejection(identity: Mapping[str, Any]) -> str | None:
    """Return why a node will not take what the store holds, if it says so now.

    Not a refusal: a store that it cannot reach, and a replica of it that lags. Both pass, or the deadline does.
    """
    refusal = identity.get("refusal")
    if identity.get("degraded") is not True or not isinstance(refusal, Mapping):
        return None
    code = refusal.get("code")
    if not isinstance(code, str) or not code.startswith(_REFUSED) or code == GenerationError.code:
        return None
    return code


def _is_without_store(identity: Mapping[str, Any]) -> bool:
    """Return whether a node says that it cannot read the store now, whatever identity it serves meanwhile."""
    if identity.get("source") == Origin.LAST_KNOWN_GOOD:
        return True
    refusal = identity.get("refusal")
    code = refusal.get("code") if identity.get("degraded") is True and isinstance(refusal, Mapping) else None
    return isinstance(code, str) and code.startswith(_STORE_FAILED)


def read_told(identity: Mapping[str, Any], *, before_ms: int, after_ms: int) -> _Told:
    """Return what a server says of itself, as far as it can be used: one server's word, bounded.

    Args:
        identity: The answer to ``GET /goatherd/v1/identity``.
        before_ms, after_ms: Our time when the request was sent and when the answer was there.
    """
    generation, now_ms, instance = identity.get("generation"), identity.get("nowMs"), identity.get("instance")
    ahead_ms = None
    if type(now_ms) is int:
        ahead_ms = now_ms - after_ms if now_ms > after_ms else min(0, now_ms - before_ms)
    partners, is_unknown = _partners(identity.get("peers"))
    return _Told(
        roots=tuple(_texts(identity.get("roots"))[:_MANY_ROOTS]) if isinstance(identity.get("roots"), list) else None,
        generation=generation if type(generation) is int else None,
        clock_ahead_ms=ahead_ms,
        instance=instance if isinstance(instance, str) and 0 < len(instance) <= _LONGEST_ID else None,
        partners=partners,
        is_partner_unknown=is_unknown,
    )


def _partners(peers: object) -> tuple[frozenset[str] | None, bool]:
    """Return the processes that a server has synchronized with lately, and whether there is one that it cannot name."""
    if not isinstance(peers, list):
        return None, False
    found, is_unknown = set[str](), False
    for peer in peers[:_MANY_PEERS]:
        if not isinstance(peer, Mapping):
            continue
        instances = peer.get("instances")
        named = (
            [one for one in instances if isinstance(one, str) and len(one) <= _LONGEST_ID]
            if isinstance(instances, list)
            else []
        )
        found.update(named[:_MANY_PEERS])
        is_unknown = is_unknown or (not named and peer.get("online") is not False)
    return frozenset(found), is_unknown


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _message(sync_filter: Any) -> dict[str, Any]:
    return {"ver": VERSION, "f": sync_filter, "s": 0, "c": [], "ad": []}


def _commits(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    commits = reply.get("c")
    return [commit for commit in commits if isinstance(commit, Mapping)] if isinstance(commits, list) else []


def _note(sight: _Sight, error: NodeError) -> None:
    sight.reachable = sight.reachable or isinstance(error, NodeRefusedError)
    sight.problems.append(str(error))
