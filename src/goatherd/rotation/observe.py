"""What each node trusts, holds and signs with, seen from outside by plain GoatDB means.

What it is: one look at one node, and all nodes looked at side by side. What it is not: it decides nothing and changes
nothing, except that asking an unmodified server who signs there costs one anonymous session.

How the questions are put so that an unmodified GoatDB 0.5.1 answers them:
- *Do you trust B?* A ``/batch-sync`` signed by B: 200 or 403.
- *Do you hold this commit?* The request's Bloom filter claims to hold everything but a few ids. GoatDB answers with
  whatever that filter lacks: the commit that was asked for, and one in 8192 of all others. So the answer is exact (the
  filter that the server sends back would be wrong at its error rate) and stays small in front of 50 000 sessions.
- *Who signs?* ``GET /goatherd/v1/identity`` where there is one. An agent answers it for its unmodified server, and
  names a commit by which the server shows it. Elsewhere an anonymous session is created and the signature of its commit
  in ``/sys/sessions`` looked at, once for each start: GoatDB keeps every session permanently.
- *Has it restarted?* Both answers name the process: one as ``instance``, the other as the commit's connection id. In
  between a mark in the memory of the process says that it is the same one (`goatherd.cluster.process_mark`).

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
from goatherd.cluster.process_mark import TOO_OLD_AFTER, MarkState, ProcessMark, find_mark, leave_mark
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import (
    DecodeError,
    GenerationError,
    GoatherdError,
    InvalidAnswerError,
    NodeError,
    NodeRefusedError,
    NodeUnreachableError,
    VerificationError,
)
from goatherd.identity.session import OwnedSession, Session, verify_commit
from goatherd.ids import new_seeds
from goatherd.rotation.cross_signing import Sought, signer_of
from goatherd.rotation.machine import FlowProbe, NodeView, Policy
from goatherd.settings.base import Origin
from goatherd.times import milliseconds
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from goatherd.wire.hashing import murmur3
from goatherd.wire.messages import VERSION
from goatherd.wire.paths import SESSIONS_PATH

_REFUSED: Final = "identity."
_FILTER_BYTES: Final = 1024
_SMALL: Final = 1000
_EMPTY: Final[dict[str, Any]] = {"__t": "E", "__v": {"d": "AA==", "s": [1, 2]}}
_ASK_SIGNER_EVERY: Final = timedelta(seconds=5)
_PROCESS_TRIES: Final = 3
_UNNAMED: Final = "unnamed"  # a process that has taken a mark and whose connection id was not seen
_SOUGHT_AT_ONCE: Final = 200
_ASK_SIGNER_AT_LEAST: Final = timedelta(minutes=5)
_STORE_FAILED: Final = "provider."
_RECENT: Final = timedelta(days=1)
_MANY_RECENT: Final = 16
_PROBE_PAUSE: Final = timedelta(milliseconds=250)
_LONGEST_ID: Final = 64


class Node(Protocol):
    """What a rotation needs of a node; `goatherd.cluster.client.NodeClient` is one, the simulated herd has another."""

    @property
    def base_url(self) -> str: ...

    async def batch_sync(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], signer: OwnedSession, now_ms: int | None = None
    ) -> list[dict[str, Any]]: ...

    async def push(
        self, path: str, commits: Iterable[Mapping[str, Any]], signer: OwnedSession, now_ms: int | None = None
    ) -> dict[str, Any] | None: ...

    async def identity(self) -> ServerIdentity | None: ...

    async def refresh(self, signer: OwnedSession, now_ms: int | None = None) -> dict[str, Any] | None: ...

    async def create_session(self) -> tuple[OwnedSession, list[Session]]: ...

    async def accepts_signature(self, signature: str) -> bool: ...

    async def time_ms(self) -> int | None: ...

    def clock_ahead_ms(self, now_ms: int) -> int | None: ...


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
        is_next_new: Whether no server can sign with `next_root` yet: it is new, and the store does not have it as the
            current root.
        signer: Whether it matters who signs; asking an unmodified server costs a session for each of its starts.
        process: Whether to see which process serves at an unmodified server, so that a restart can be told later. Where
            the server takes no mark, it is asked until it is known, at most three times in a run, and that costs a
            session each time.
        answers: Whether to see that it accepts a request signed by `asker`, where there is no `next_root`.
        earlier: The introductions of roots that are to leave the document. Asked for in phase steady only.
    """

    asker: OwnedSession
    next_root: OwnedSession | None = None
    is_next_new: bool = False
    introductions: tuple[Sought, ...] = ()
    cross_signature: Sought | None = None
    signer: bool = False
    process: bool = False
    answers: bool = False
    earlier: tuple[Sought, ...] = ()


@dataclass(slots=True)
class _Memory:
    """What is remembered of one node between two rounds, so that dear questions are put seldom.

    Attributes:
        mark: What the process that was last looked at has taken; None where it was not asked to, or takes none.
        marked_at: When it took the mark.
        forgets: Whether the server was seen to lose a mark while the same process served.
        process: Connection id of the process that was last looked at; None where no session of it was seen.
        signer: Who signs there; None where no session of it was seen.
        cannot_sign_with: Roots with which that process does not sign, as they are newer.
    """

    unmodified: bool = False
    has_agent: bool = False
    mark: ProcessMark | None = None
    marked_at: float = 0
    forgets: bool = False
    process: str | None = None
    signer: str | None = None
    cannot_sign_with: frozenset[str] = frozenset()
    asked_at: float | None = None
    pause: float = 0
    was_away: bool = False
    proven: tuple[str, str, str] | None = None

    def start_over(self, mark: ProcessMark | None, now: float) -> None:
        """Forget the process that was last looked at: another one may serve, which has taken this mark."""
        self.mark, self.marked_at, self.process, self.signer = mark, now, None, None
        self.cannot_sign_with = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a server of ours says of itself; each part is None, or empty, where it says nothing that can be used."""

    roots: tuple[str, ...] | None
    revoked: tuple[str, ...]
    generation: int | None
    digest: str | None
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
    activity: str | None = None
    is_down: bool = False
    is_away: bool = False
    is_invalid: bool = False
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
        on_failure: Called with the URL of a node that failed in `on_each`, and why; must not raise.

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
        on_failure: Callable[[str, str], None] | None = None,
    ) -> None:
        self._org = org
        self._on_failure = on_failure
        self._verified: dict[Sought, Mapping[str, Any]] = {}
        self._bare = frozenset(url.rstrip("/") for url in bare)
        self._source = nodes if callable(nodes) else None
        self.nodes: dict[str, Node] = {} if callable(nodes) else {node.base_url: node for node in nodes}
        self.unknown: str | None = None
        self._clock = clock
        self._timeout = timeout.total_seconds()
        self._memory: dict[str, _Memory] = {}
        self._processes: dict[str, dict[str, None]] = {}
        self._asked_for_process: Counter[str] = Counter()

    @classmethod
    def from_policy(
        cls,
        nodes: Sequence[Node] | NodeSource,
        policy: Policy,
        *,
        clock: Clock,
        org: str,
        on_failure: Callable[[str, str], None] | None = None,
    ) -> Observer:
        """Return an observer that is as patient as a policy says; the other arguments are those of the class."""
        return cls(nodes, clock=clock, timeout=policy.node_timeout, bare=policy.bare, org=org, on_failure=on_failure)

    @property
    def hint(self) -> str | None:
        """What to do about nodes that were seen to be unmodified and are not known to be bare; None without any."""
        found = [
            url for url, one in self._memory.items() if one.unmodified and not one.has_agent and url not in self._bare
        ]
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

    async def on_each(self, urls: Iterable[str], call: Callable[[Node], Awaitable[object]]) -> None:
        """Call nodes side by side, each within the time limit; one that has left is not called.

        A node that fails is reported to `on_failure`. What it has not done is seen at the next look.
        """

        async def one(node: Node) -> None:
            try:
                async with asyncio.timeout(self._timeout):
                    await call(node)
            except (NodeError, TimeoutError) as error:
                if self._on_failure is not None:
                    self._on_failure(node.base_url, str(error) or f"no answer within {self._timeout:g} s")

        async with asyncio.TaskGroup() as group:
            for node in [self.nodes[url] for url in urls if url in self.nodes]:
                group.create_task(one(node))

    async def held(self, url: str, commit_ids: Sequence[str], signer: OwnedSession) -> dict[str, dict[str, Any]]:
        """Return those of the commits of ``/sys/sessions`` that the node holds, by id; as it sent them, unverified.

        Raises:
            NodeUnreachableError, NodeRefusedError: As `goatherd.cluster.client.NodeClient.batch_sync`.
        """
        return await _read_held(self.nodes[url], commit_ids, signer, self._clock.now_ms())

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

    async def probe_flow(
        self, at: str, others: Sequence[str], *, asker: OwnedSession, patience: timedelta
    ) -> FlowProbe:
        """See whether the sessions that the servers have made lately reach all of them within `patience`.

        Only where none has made one, an anonymous session is made at one server, and the others are asked whether they
        know it. It works with any GoatDB server; what it leaves behind is the session, which GoatDB keeps permanently.

        Args:
            at: URL of the server that makes the session, if one is needed.
            others: URLs of the other servers.
            asker: A root that the servers trust; the sessions that it has introduced count.
            patience: How long a session may take to reach the others.
        """
        recent = await self._find_recent((at, *others), asker)
        if not recent:
            return await self._probe_by_session(at, others, patience)
        until = self._clock.monotonic() + patience.total_seconds()
        left = [at, *others]
        while True:
            async with asyncio.TaskGroup() as group:
                asked = {url: group.create_task(self._lacking(url, list(recent), asker)) for url in left}
            lacking = {url: found for url in left if (found := asked[url].result())}
            left = list(lacking)
            if not left:
                return FlowProbe(at=at)
            if self._clock.monotonic() >= until:
                missed = next(iter(lacking[left[0]]))
                return FlowProbe(at=recent[missed], unreached=tuple(url for url in left if missed in lacking[url]))
            await self._clock.sleep(_PROBE_PAUSE)

    async def _find_recent(self, urls: Sequence[str], asker: OwnedSession) -> dict[str, str]:
        """Return commits by which `asker` has introduced anonymous sessions lately, and a server that holds each.

        Of a server with many sessions, some are looked at.
        """

        async def find(url: str) -> list[tuple[float, str]]:
            node, now_ms = self.nodes[url], self._clock.now_ms()
            try:
                async with asyncio.timeout(self._timeout):
                    (counted,) = await node.batch_sync([(SESSIONS_PATH, _message(all_but(())))], asker, now_ms)
                    size = counted.get("s")
                    share = _SMALL / size if isinstance(size, int) and size > _SMALL else 1
                    (reply,) = await node.batch_sync([(SESSIONS_PATH, _message(_sample(share)))], asker, now_ms)
            except (NodeError, TimeoutError):
                return []
            oldest_ms = now_ms - milliseconds(_RECENT)
            found = [
                (commit["ts"], commit["id"])
                for commit in _commits(reply)
                if _introduces_a_user(commit) and commit["ts"] >= oldest_ms and signer_of(commit) == asker.id
            ]
            return sorted(found)[-_MANY_RECENT:]

        async with asyncio.TaskGroup() as group:
            tasks = {url: group.create_task(find(url)) for url in urls}
        return {commit_id: url for url, task in tasks.items() for _, commit_id in task.result()}

    async def _lacking(self, url: str, commit_ids: Sequence[str], asker: OwnedSession) -> list[str]:
        """Return those of the commits that a server does not show; all of them where it does not answer."""
        try:
            async with asyncio.timeout(self._timeout):
                held = await self.held(url, commit_ids, asker)
        except (KeyError, NodeError, TimeoutError):
            return list(commit_ids)
        return [one for one in commit_ids if one not in held]

    async def _probe_by_session(self, at: str, others: Sequence[str], patience: timedelta) -> FlowProbe:
        """COMPAT: a GoatDB server that holds a session's commit accepts a request that this session has signed."""
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
        await self.identities()
        return self.known_unmodified

    @property
    def known_unmodified(self) -> tuple[str, ...]:
        """As `unmodified`, by what earlier looks have shown; asks nothing."""
        found = {url for url, one in self._memory.items() if one.unmodified}
        return tuple(url for url in self.nodes if url in found | self._bare)

    async def identities(self) -> dict[str, ServerIdentity]:
        """Return what the nodes of ours that answer say of themselves, by URL."""

        async def ask(url: str) -> ServerIdentity | None:
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await self.nodes[url].identity()
            except (NodeError, TimeoutError):
                return None  # whether it takes part is for the rotation to see
            memory = self._memory.setdefault(url, _Memory())
            memory.has_agent = answer is not None and answer.agent is not None
            memory.unmodified = answer is None or memory.has_agent
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
            sight.is_away = True
        cross, told = question.cross_signature, sight.told
        if sight.is_away:
            self._memory.setdefault(url, _Memory()).was_away = True
        if sight.reachable:
            self._processes.setdefault(url, {})
        introduced = [sight.holds.get(one.commit_id) for one in question.introductions]
        return NodeView(
            url=url,
            # SECURITY: an answer that cannot be one counts as none, so that one broken server can be left out. A server
            # that was seen to reject the next root stays in (`excused`; tests/unit/rotation/test_quorum.py).
            reachable=sight.reachable and (not sight.is_invalid or sight.trusts_next is False),
            is_unmodified=url in self._memory and self._memory[url].unmodified,
            answers=sight.answers,
            roots=None if told is None else told.roots,
            revoked=() if told is None else told.revoked,
            generation=None if told is None else told.generation,
            digest=None if told is None else told.digest,
            clock_ahead_ms=self._clock_ahead_ms(url) if told is None else told.clock_ahead_ms,
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
            activity=sight.activity,
            # While its agent restarts it, a server is not expected to answer.
            problem=None if sight.is_down else "; ".join(dict.fromkeys(sight.problems)) or None,
        )

    def _clock_ahead_ms(self, url: str) -> int | None:
        """Return how far a node's clock is ahead of ours, by the date of its last answer."""
        node = self.nodes.get(url)
        return None if node is None else node.clock_ahead_ms(self._clock.now_ms())

    async def look_at_clocks(self) -> tuple[NodeView, ...]:
        """Ask each node for its time and nothing else; one that does not answer tells none."""
        await self.call_the_roll()

        async def ask(node: Node) -> None:
            with contextlib.suppress(NodeError, TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await node.time_ms()

        async with asyncio.TaskGroup() as group:
            for node in self.nodes.values():
                group.create_task(ask(node))
        ahead_ms = {url: self._clock_ahead_ms(url) for url in self.nodes}
        return tuple(NodeView(url=url, reachable=ms is not None, clock_ahead_ms=ms) for url, ms in ahead_ms.items())

    async def _see_identity(self, url: str, question: Question, sight: _Sight) -> None:
        memory = self._memory.setdefault(url, _Memory())
        try:
            if not memory.unmodified or memory.has_agent:
                before_ms = self._clock.now_ms()
                answer = await self.nodes[url].identity()
                after_ms = self._clock.now_ms()
                sight.reachable = True
                memory.has_agent = answer is not None and answer.agent is not None
                memory.unmodified = answer is None or memory.has_agent
                if answer is not None:
                    sight.rejects = _rejection(answer)
                    sight.without_store = _is_without_store(answer)
                    self._note_process(url, answer.instance)
                    if question.answers:
                        # Only before a rotation: what changes at each look would be told anew at each look.
                        sight.told = read_told(answer, before_ms=before_ms, after_ms=after_ms)
                    if not memory.has_agent:
                        sight.signs_with = answer.signer
                        return
                    if answer.agent is not None:
                        sight.activity, sight.is_down = answer.agent.activity, answer.agent.is_down
                    if question.signer or question.answers:
                        sight.signs_with = await self._prove_signer(url, answer, question, memory)
                    return
            if question.signer:
                sight.signs_with = await self._signer_of_a_new_session(url, question.asker, memory)
                sight.reachable = True
            elif question.process and not self._processes.get(url):
                await self._see_process(url, question)
        except NodeError as error:
            _note(sight, error)

    async def _see_process(self, url: str, question: Question) -> None:
        """Note which process serves at an unmodified server: by a mark that it takes, else by a session.

        A server that does not answer in time, or not with the commit, is asked three times in a run and no more: each
        time costs a session, and may hold up the other questions.
        """
        memory = self._memory.setdefault(url, _Memory())
        if question.is_next_new and await self._mark_process(url, question, memory):
            return
        if self._asked_for_process[url] >= _PROCESS_TRIES:
            return
        self._asked_for_process[url] += 1
        now = self._clock.monotonic()
        try:
            await self._ask_signer(url, question.asker, memory, None)
        except NodeError:
            self._asked_for_process[url] -= 1
            return
        # The same session has shown who signs.
        memory.asked_at, memory.pause, memory.was_away = now, _ASK_SIGNER_EVERY.total_seconds(), False

    async def _mark_process(self, url: str, question: Question, memory: _Memory) -> bool:
        """See that the process that serves has a mark, and that it cannot sign with the next root; False without one.

        Which process it is need not be known: one that signs with the next root is another one.
        """
        if memory.forgets or question.next_root is None:
            return False
        node = self.nodes[url]
        if memory.mark is None or await find_mark(node, memory.mark) is MarkState.LOST:
            mark = await leave_mark(node, question.asker, self._clock.now_ms())
            if mark is None:
                return False
            memory.start_over(mark, self._clock.monotonic())
        memory.cannot_sign_with |= {question.next_root.id}
        self._processes.setdefault(url, {})[memory.process or _UNNAMED] = None
        return True

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
            sight.holds[one.commit_id] = commit is not None and self._is_sought(one, commit)

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
            if (commit := held.get(one.commit_id)) is not None and self._is_sought(one, commit)
        )

    def _is_sought(self, sought: Sought, commit: Mapping[str, Any]) -> bool:
        """Return whether this is the commit that is looked for; what was verified once is compared from then on."""
        if self._verified.get(sought) == commit:
            return True
        is_it = sought.matches(commit, org=self._org)
        if is_it:
            self._verified[sought] = commit
        return is_it

    async def _signer_of_a_new_session(self, url: str, asker: OwnedSession, memory: _Memory) -> str | None:
        """Return who signs at a server that says it nowhere, by a new session, as seldom as can be.

        GoatDB keeps that session permanently. Another root signs only after a restart, so a server whose process has a
        mark is asked once for each start. One without is asked after it was seen to be away, and otherwise after pauses
        that grow; once the right root was seen to sign, after the longest one.
        """
        now = self._clock.monotonic()
        state = None if memory.mark is None or memory.forgets else await find_mark(self.nodes[url], memory.mark)
        if state is MarkState.FOUND:
            memory.was_away = False
            if memory.signer is not None or asker.id in memory.cannot_sign_with:
                return memory.signer
        elif state is MarkState.TOO_EARLY and not memory.was_away:
            if now - memory.marked_at < TOO_OLD_AFTER.total_seconds():
                return memory.signer
            memory.forgets = True  # it does not check times at all
        pause = _ASK_SIGNER_AT_LEAST.total_seconds() if memory.signer == asker.id else memory.pause
        if memory.asked_at is not None and not memory.was_away and now - memory.asked_at < pause:
            return memory.signer
        memory.pause = min(
            _ASK_SIGNER_EVERY.total_seconds() if memory.was_away or not memory.pause else 2 * memory.pause,
            _ASK_SIGNER_AT_LEAST.total_seconds(),
        )
        memory.asked_at, memory.was_away = now, False
        await self._ask_signer(url, asker, memory, state)
        return memory.signer

    async def _ask_signer(self, url: str, asker: OwnedSession, memory: _Memory, state: MarkState | None) -> None:
        """Note who signs, and which process does.

        COMPAT: GoatDB says nowhere who signs, but it signs the session commit of every caller. The
        commit's connection id is that of the process, and a new one after each start.

        Args:
            url: The server.
            asker: A root that it may trust.
            memory: What is remembered of the server.
            state: What it has just shown of the last mark; None where that was not looked for.
        """
        node, now = self.nodes[url], self._clock.monotonic()
        try:
            known = await read_sessions_filter(node, asker, self._clock.now_ms())
        except NodeRefusedError:
            known = None  # a server that does not trust the asker yet is asked for everything
        # First the mark: a process that loses it between the two is asked again.
        mark = None
        is_same = state is MarkState.FOUND
        if not is_same and not memory.forgets:
            mark = await leave_mark(node, asker, self._clock.now_ms())
        owned, _ = await node.create_session()
        made = await find_session_commit(node, owned, known, self._clock.now_ms())
        if made is None:
            return
        process, signer = made.get("cid"), signer_of(made)
        seen = self._processes.setdefault(url, {})
        if _UNNAMED in seen:
            del seen[_UNNAMED]
            if not is_same and signer in memory.cannot_sign_with:
                seen[f"{_UNNAMED} before {process}"] = None
            # Otherwise it is this one, or may be, with its mark lost.
        if not is_same:
            memory.forgets |= state is MarkState.LOST and process == memory.process
            memory.start_over(None if memory.forgets else mark, now)
        memory.signer = signer
        if isinstance(process, str):
            memory.process = process
        self._note_process(url, process)

    async def _prove_signer(
        self, url: str, identity: ServerIdentity, question: Question, memory: _Memory
    ) -> str | None:
        """Return who signs at a server under an agent, by the commit that the agent names; None if it proves nothing.

        The agent has asked its server for a session after the start, and names that session's commit. The server must
        hold it, and the root that is said to sign must have signed it.
        """
        claim = _claim_of(identity)
        if claim is None or memory.proven == claim:
            return None if claim is None else claim[2]
        roots = [one for one in (question.next_root, question.asker) if one is not None]
        signer = await prove_signer(self.nodes[url], identity, roots, org=self._org, now_ms=self._clock.now_ms())
        memory.proven = None if signer is None else claim
        return signer


async def prove_signer(
    node: Node, identity: ServerIdentity, roots: Sequence[OwnedSession], *, org: str, now_ms: int
) -> str | None:
    """Return the root that signs at a server under an agent, if the server shows what the agent claims; else None.

    Args:
        node: The server.
        identity: What its agent has answered.
        roots: Roots that the server may trust; they ask, and verify the commit that the agent names.
        org: The organization, which is part of what is signed.
        now_ms: Milliseconds since 1970.

    Raises:
        NodeUnreachableError, NodeRefusedError: As `goatherd.cluster.client.NodeClient.batch_sync`.
    """
    claim = _claim_of(identity)
    if claim is None:
        return None
    _, commit_id, signer = claim
    try:
        held = await _read_held(node, [commit_id], roots[0], now_ms)
    except NodeRefusedError as error:
        if error.status != 403 or len(roots) == 1:
            raise
        held = await _read_held(node, [commit_id], roots[1], now_ms)
    commit = held.get(commit_id)
    if commit is None or signer_of(commit) != signer:
        return None
    key = next((one.session for one in roots if one.id == signer), None)
    if key is not None and not _is_signed_by(key, commit, org):
        return None
    return signer


async def _read_held(
    node: Node, commit_ids: Sequence[str], signer: OwnedSession, now_ms: int
) -> dict[str, dict[str, Any]]:
    (reply,) = await node.batch_sync([(SESSIONS_PATH, _message(all_but(commit_ids)))], signer, now_ms)
    return {commit["id"]: dict(commit) for commit in _commits(reply) if commit.get("id") in commit_ids}


async def read_sessions_filter(node: Node, asker: OwnedSession, now_ms: int) -> Any:
    """Return a filter with which a server sends few of the sessions that it holds now, and those that come next.

    Raises:
        NodeUnreachableError, NodeRefusedError: As `goatherd.cluster.client.NodeClient.batch_sync`.
    """
    (before,) = await node.batch_sync([(SESSIONS_PATH, _message(all_but(())))], asker, now_ms)
    # Its own filter. At this size its error rate is small; below, everything may be sent.
    return before.get("f") if isinstance(before.get("s"), int) and before["s"] > _SMALL else _EMPTY


async def find_session_commit(node: Node, owned: OwnedSession, known: Any, now_ms: int) -> Mapping[str, Any] | None:
    """Return the commit by which a server has introduced a new session; None where it does not show it.

    Args:
        node: The server.
        owned: The session that it has just made.
        known: What `read_sessions_filter` returned before; None where it could not be read.
        now_ms: Milliseconds since 1970.

    Raises:
        NodeUnreachableError, NodeRefusedError: As `goatherd.cluster.client.NodeClient.batch_sync`.
    """
    for sync_filter in (_EMPTY,) if known in (None, _EMPTY) else (known, _EMPTY):
        (reply,) = await node.batch_sync([(SESSIONS_PATH, _message(sync_filter))], owned, now_ms)
        for commit in _commits(reply):
            if commit.get("k") == owned.id:
                return commit
    return None


def _introduces_a_user(commit: Mapping[str, Any]) -> bool:
    """Return whether this is the first commit of an anonymous session, as ``POST /auth/session`` makes it."""
    contents = commit.get("c")
    record = contents.get("r") if isinstance(contents, Mapping) else None
    fields = record.get("d") if isinstance(record, Mapping) else None
    is_whole = isinstance(commit.get("id"), str) and isinstance(commit.get("ts"), int | float) and not commit.get("p")
    return is_whole and isinstance(fields, Mapping) and fields.get("id") == commit.get("k") and not fields.get("owner")


def _is_signed_by(session: Session, raw: Mapping[str, Any], org: str) -> bool:
    try:
        verify_commit(session, Commit.from_json(dict(raw), org=org))
    except (DecodeError, VerificationError):
        return False
    return True


def _claim_of(identity: ServerIdentity) -> tuple[str, str, str] | None:
    """Return the process, the commit and the signer that an agent names; None where it has not asked its server."""
    commit_id = None if identity.agent is None else identity.agent.check_commit
    if identity.instance is None or commit_id is None or identity.signer is None:
        return None
    return identity.instance, commit_id, identity.signer


def all_but(commit_ids: Sequence[str]) -> dict[str, Any]:
    """Return the filter that claims to hold every commit except these."""
    (seed,) = new_seeds(1)
    bits = bytearray(b"\xff" * _FILTER_BYTES)
    for commit_id in commit_ids:
        index = murmur3(commit_id, seed) % (8 * _FILTER_BYTES)
        bits[index >> 3] &= ~(1 << (index & 7)) & 0xFF
    return {"__t": "E", "__v": BloomFilter(bits, (seed,)).to_json()}


def _sample(share: float) -> dict[str, Any]:
    """Return the filter that lacks about this share of all commits."""
    if share >= 1:
        return _EMPTY
    (seed,) = new_seeds(1)
    bits = bytearray(b"\xff" * _FILTER_BYTES)
    total = 8 * _FILTER_BYTES
    for index in range(max(1, round(share * total))):  # the seed is new each time, so which bits does not matter
        bits[index >> 3] &= ~(1 << (index & 7)) & 0xFF
    return {"__t": "E", "__v": BloomFilter(bits, (seed,)).to_json()}


def _rejection(identity: ServerIdentity) -> str | None:
    """Return why a node will not take what the store holds, if it says so now.

    Not a refusal: a store that it cannot reach, and a replica of it that lags. Both pass, or the deadline does.
    """
    code = identity.refusal
    if identity.is_degraded is not True or code is None:
        return None
    return code if code.startswith(_REFUSED) and code != GenerationError.code else None


def _is_without_store(identity: ServerIdentity) -> bool:
    """Return whether a node says that it cannot read the store now, whatever identity it serves meanwhile."""
    if identity.source == Origin.LAST_KNOWN_GOOD:
        return True
    return identity.is_degraded is True and (identity.refusal or "").startswith(_STORE_FAILED)


def read_told(identity: ServerIdentity, *, before_ms: int, after_ms: int) -> _Told:
    """Return what a server says of itself, as far as it matters before a rotation: one server's word.

    Args:
        identity: The answer to ``GET /goatherd/v1/identity``.
        before_ms, after_ms: Our time when the request was sent and when the answer was there.
    """
    now_ms, ahead_ms = identity.now_ms, None
    if now_ms is not None:
        ahead_ms = now_ms - after_ms if now_ms > after_ms else min(0, now_ms - before_ms)
    peers = identity.peers
    return _Told(
        roots=identity.roots,
        revoked=identity.revoked or (),
        generation=identity.generation,
        digest=identity.digest,
        clock_ahead_ms=ahead_ms,
        instance=identity.instance,
        partners=None if peers is None else frozenset(one for peer in peers for one in peer.instances),
        is_partner_unknown=any(not peer.instances and peer.is_online is not False for peer in peers or ()),
    )


def _message(sync_filter: Any) -> dict[str, Any]:
    return {"ver": VERSION, "f": sync_filter, "s": 0, "c": [], "ad": []}


def _commits(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    commits = reply.get("c")
    return [commit for commit in commits if isinstance(commit, Mapping)] if isinstance(commits, list) else []


def _note(sight: _Sight, error: NodeError) -> None:
    sight.is_invalid |= isinstance(error, InvalidAnswerError)
    sight.reachable = sight.reachable or isinstance(error, NodeRefusedError)
    # A proxy answers 502 to 504 for a server that is away.
    sight.is_away |= isinstance(error, NodeUnreachableError) or getattr(error, "status", 0) in (502, 503, 504)
    sight.problems.append(str(error))
