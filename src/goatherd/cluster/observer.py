"""Observe every server of a cluster: which roots it trusts, which commits it holds, and with which root it signs.

The observer makes no decisions. It changes nothing on a server, with one exception: to find out which root signs at an
unmodified server, it must create one anonymous session.

How the observer finds the answer to each question:

- *Does the server trust the next root?* It answers a ``/batch-sync`` request signed by that root with status 200, and
  with 403 if it does not trust the root.
- *Does the server hold this commit?* `goatherd.cluster.session_queries` requests the commit by ``/batch-sync``.
- *Which root signs?* A Goatherd server answers ``GET /goatherd/v1/identity``. An agent answers the same request for its
  unmodified server, and names a commit that proves the answer. Otherwise the observer creates an anonymous session, and
  reads the signature of its commit in ``/sys/sessions``. The observer tries to create only one session after each start
  of the server, because GoatDB keeps every session.
- *Has the server restarted?* The answers about the signing root also identify the server process, by ``instance`` or by
  the commit's connection id. Later, `goatherd.cluster.process_mark` shows whether the process is still the same.

If an answer is missing or invalid, the result is "not known" (None), never "no" or "yes". The observation of one server
takes at most `Policy.node_timeout`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import combinations
from typing import TYPE_CHECKING, Final, TypeVar

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.flow_probe import probe_flow
from goatherd.cluster.node import FlowProbe, Node, NodeSource, NodeView
from goatherd.cluster.process_mark import TOO_OLD_AFTER, MarkState, ProcessMark, find_mark, leave_mark
from goatherd.cluster.server_answers import PeerReport, ServerIdentity
from goatherd.cluster.session_queries import (
    ExpectedCommit,
    find_session_commit,
    prove_signer,
    read_claim,
    read_held,
    read_sessions_filter,
    read_signer,
)
from goatherd.crypto import fingerprint
from goatherd.errors import (
    DecodeError,
    GenerationError,
    GoatherdError,
    InvalidAnswerError,
    NodeError,
    NodeRefusedError,
    NodeUnreachableError,
    RotationError,
)
from goatherd.identity.session import OwnedSession
from goatherd.settings.base import Origin
from goatherd.wire.commit import Commit, decode_commits
from goatherd.wire.paths import DEFAULT_ORG

if TYPE_CHECKING:
    from goatherd.cluster.client import NodeClient

_REJECTED: Final = "identity."
_ASK_SIGNER_EVERY: Final = timedelta(seconds=5)
_PROCESS_TRIES: Final = 3
_UNNAMED: Final = "unnamed"  # a process that has accepted a mark and whose connection id is not known
_COMMITS_A_REQUEST: Final = 200
_ASK_SIGNER_AT_LEAST: Final = timedelta(minutes=5)
_STORE_FAILED: Final = "provider."
_LONGEST_ID: Final = 64
_NO_REPORT: Final = ServerIdentity()

N = TypeVar("N", bound=Node)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to find out about every server in one observation.

    Attributes:
        asker: A root that the servers already trust; it signs the requests to a server that rejects `next_root`.
        next_root: The next root, or None if there is none.
        introductions: The commits that introduce `next_root`; it is enough that a server holds one of them.
        cross_signature: The commit by which the next root introduces the previous one; None if it is not asked for.
        is_next_new: Whether no server can sign with `next_root` yet: it is new, and the store does not have it as the
            current root.
        signer: Whether to find out which root signs at each server. At an unmodified server without an agent, this
            creates one session after each start of the server.
        process: Whether to identify the process of an unmodified server, so that a later restart is noticed. At a
            server that accepts no mark (`goatherd.cluster.process_mark`) this creates up to three sessions in a run.
        answers: Whether to check that the server accepts a request signed by `asker`.
        sharing: Whether to check that only one server process answers at each URL, which costs four requests.
        earlier: The commits that introduce previous roots which are to be removed from the identity document. They are
            read only while no rotation is in progress.
    """

    asker: OwnedSession
    next_root: OwnedSession | None = None
    is_next_new: bool = False
    introductions: tuple[ExpectedCommit, ...] = ()
    cross_signature: ExpectedCommit | None = None
    signer: bool = False
    process: bool = False
    answers: bool = False
    sharing: bool = False
    earlier: tuple[ExpectedCommit, ...] = ()


_SHARED_REQUESTS: Final = 4
"""How many requests at the same time find out whether one server process answers at a URL."""
_SHARED_ROUNDS: Final = 3
"""How often these requests are sent, at most; once if the same process answers all of them."""


@dataclass(slots=True)
class _NodeMemory:
    """What earlier observations of one server have shown, so that expensive requests are made rarely.

    Attributes:
        mark: The mark by which the observed server process is recognized (`goatherd.cluster.process_mark`); None if it
            has none.
        marked_at: When the process accepted the mark.
        forgets: Whether marks cannot be used, because the server has lost one although its process was the same, or
            accepts signatures of any time.
        process: Connection id of the observed process; None if no session created by it was read.
        signer: The root that signs at the server; None if no session created by it was read.
        cannot_sign_with: Roots that are newer than the observed process, which therefore does not sign with them.
    """

    unmodified: bool = False
    has_agent: bool = False
    is_from_file: bool = False
    mark: ProcessMark | None = None
    marked_at: float = 0
    forgets: bool = False
    process: str | None = None
    signer: str | None = None
    cannot_sign_with: frozenset[str] = frozenset()
    asked_at: float | None = None
    pause: float = 0
    was_unreachable: bool = False
    proven: tuple[str, str, str] | None = None

    def start_over(self, mark: ProcessMark | None, now: float) -> None:
        """Forget what is known of the observed process, because another process may run now.

        `mark` is the one that the present process has accepted at time `now`; None if it has none.
        """
        self.mark, self.marked_at, self.process, self.signer = mark, now, None, None
        self.cannot_sign_with = frozenset()


@dataclass(slots=True)
class _Draft:
    """The results for one server during an observation, from which its `NodeView` is made."""

    reachable: bool = False
    trusts_current: bool | None = None
    trusts_next: bool | None = None
    holds: dict[str, bool] = field(default_factory=dict)
    signs_with: str | None = None
    holds_earlier: frozenset[str] | None = None
    report: ServerIdentity = _NO_REPORT
    is_shared: bool = False
    clock_ahead_ms: int | None = None
    is_unreachable: bool = False
    is_invalid: bool = False
    problems: list[str] = field(default_factory=list)


class Observer:
    """Observes all servers at the same time, each within its own timeout.

    Args:
        nodes: The servers, each with a URL of its own; or a source that lists them, so that servers may join and leave
            between observations.
        clock: Tells the time, for signed requests.
        timeout: Timeout of one observation of one server, and of listing the servers.
        bare: URLs of manual-restart servers.
        org: The organization id, which is part of every signed commit.
        on_failure: Called with the URL of a server that failed in `call_each`, and the reason; must not raise.

    Attributes:
        nodes: The servers, by URL.
        unknown: Why the source could not list the servers last time; `nodes` are then those that were known before.
    """

    def __init__(
        self,
        nodes: Sequence[Node] | NodeSource,
        *,
        clock: Clock,
        timeout: timedelta,
        bare: Iterable[str] = (),
        org: str = DEFAULT_ORG,
        on_failure: Callable[[str, str], None] | None = None,
    ) -> None:
        self._org = org
        self._on_failure = on_failure
        self._verified: dict[ExpectedCommit, Mapping[str, object]] = {}
        self._bare = frozenset(url.rstrip("/") for url in bare)
        self._source = nodes if callable(nodes) else None
        self.nodes: dict[str, Node] = {} if callable(nodes) else {node.base_url: node for node in nodes}
        self.unknown: str | None = None
        self._clock = clock
        self._timeout = timeout
        self._memory: dict[str, _NodeMemory] = {}
        self._processes: dict[str, dict[str, None]] = {}
        self._asked_for_process: Counter[str] = Counter()

    @property
    def hint(self) -> str | None:
        """What the operator can do about servers that sign with another root only after a restart by an operator.

        These are unmodified servers without an agent and Goatherd servers with a settings.json, except those that are
        listed for manual restarts. None if no such server was observed.
        """
        waiting = {url: one for url, one in self._memory.items() if url in self.nodes and url not in self._bare}
        found = [url for url, one in waiting.items() if one.unmodified and not one.has_agent]
        from_file = [url for url, one in waiting.items() if one.is_from_file]
        hints = []
        if found:
            hints.append(
                f"{', '.join(found)}: unmodified GoatDB, which signs with another root only after a restart. Run it"
                " under `goatherd run`; if it is, the agent's log states why it did not follow. If it is restarted by"
                " hand only, name it with --bare."
            )
        if from_file:
            hints.append(
                f"{', '.join(from_file)}: the identity is from a settings.json, which a rotation does not change. Start"
                " the server with --provider or under `goatherd run`; or, if it is restarted by hand only, name it with"
                " --bare."
            )
        return " ".join(hints) or None

    def begin_run(self) -> None:
        """Forget the observed processes, so that only restarts from now on are counted, and servers that have left."""
        self._processes.clear()
        self._asked_for_process.clear()
        self._verified.clear()
        self._memory = {url: one for url, one in self._memory.items() if url in self.nodes}

    def count_restarts(self) -> dict[str, int | None]:
        """Return how often each server was seen to restart, by URL; None for a server whose process is not known.

        If a server restarts twice between two observations, this counts as one restart.
        """
        return {url: len(processes) - 1 if processes else None for url, processes in self._processes.items()}

    async def refresh_nodes(self) -> None:
        """Discover the servers again. If that fails, keep the known servers, and record the reason in `unknown`.

        Does nothing if the servers are listed one by one.

        SECURITY: a missing or empty answer does not count as "no servers": a rotation would then wait for none
        (tests/unit/rotation/test_joining.py).
        """
        if self._source is None:
            return
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                found = await self._source()
        except TimeoutError:
            self.unknown = f"no answer within {self._timeout.total_seconds():g} s"
            return
        except (GoatherdError, OSError) as error:
            self.unknown = str(error) or type(error).__name__
            return
        self.unknown = None if found else "no server was found"
        if found:
            self.nodes = {node.base_url: node for node in found}

    async def observe(self, question: Question) -> tuple[NodeView, ...]:
        """Observe all servers; return a view of each, in the order of `nodes`. If a server fails, its view says why."""
        await self.refresh_nodes()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._observe_node(url, question)) for url in self.nodes]
        views = [task.result() for task in tasks]
        # A peer may be a listed server by another URL. Only the processes of all listed servers can show that, and the
        # process of a server under an agent, or behind a load balancer, is not known.
        processes = [self._processes.get(url) for url in self.nodes]
        are_known = all(processes) and not any(one.is_shared or one.report.agent is not None for one in views)
        if not question.answers or not are_known:
            return tuple(views)
        listed = frozenset(one for each in processes for one in each or ())
        return tuple(await asyncio.gather(*(self._find_unlisted_peers(one, listed, question.asker) for one in views)))

    async def _find_unlisted_peers(self, view: NodeView, listed: frozenset[str], asker: OwnedSession) -> NodeView:
        """Return the view with the URLs of those peers of the server that answer it and are not among the listed ones.

        The server reports the processes of its peers to everybody, and their URLs to a root only.
        """

        def is_unlisted(peer: PeerReport) -> bool:
            return peer.is_online is True and bool(peer.instances) and listed.isdisjoint(peer.instances)

        if not any(is_unlisted(one) for one in view.report.peers or ()) or view.trusts_current is not True:
            return view
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                peers = await self.nodes[view.url].list_peers(asker, self._clock.now_ms())
        except (NodeError, TimeoutError) as error:
            return replace(view, problem=f"did not report its peers: {error}")
        found = [one.url for one in peers if one.url and one.url not in self.nodes and is_unlisted(one)]
        return replace(view, unlisted_peers=tuple(found))

    async def call_each(self, urls: Iterable[str], call: Callable[[Node], Awaitable[object]]) -> None:
        """Run `call` for each of the given servers, concurrently, each within the timeout.

        URLs that are not listed are skipped. A server that fails is reported to `on_failure`, and no error is raised:
        the next observation shows what the calls have changed.
        """
        nodes = [self.nodes[url] for url in urls if url in self.nodes]
        await call_each(nodes, call, timeout=self._timeout, on_failure=self._on_failure)

    async def read_commits(self, commit_ids: Sequence[str], signer: OwnedSession) -> AsyncIterator[list[Commit]]:
        """Yield, for one server after another, those of the given ``/sys/sessions`` commits that it holds; unverified.

        Servers that do not answer are skipped.
        """
        await self.refresh_nodes()
        for url in self.nodes:
            found: dict[str, dict[str, object]] = {}
            try:
                async with asyncio.timeout(self._timeout.total_seconds()):
                    for at in range(0, len(commit_ids), _COMMITS_A_REQUEST):
                        ids = commit_ids[at : at + _COMMITS_A_REQUEST]
                        found |= await read_held(self.nodes[url], ids, signer, self._clock.now_ms())
            except (NodeError, TimeoutError):
                continue
            yield decode_commits(found.values(), self._org)

    @property
    def is_discovered(self) -> bool:
        """Whether the servers are discovered by a source, such as DNS, rather than listed one by one."""
        return self._source is not None

    async def probe_flow(
        self, at: str, others: Sequence[str], *, asker: OwnedSession, patience: timedelta
    ) -> FlowProbe:
        """Check that the servers synchronize with each other (`goatherd.cluster.flow_probe.probe_flow`)."""
        return await probe_flow(
            self.nodes,
            at,
            others,
            asker=asker,
            patience=patience,
            clock=self._clock,
            timeout=self._timeout.total_seconds(),
        )

    async def find_unmodified(self) -> tuple[str, ...]:
        """Ask every server, and return the URLs of those that run unmodified GoatDB and of manual-restart servers."""
        await self.read_identities()
        return self.known_unmodified

    @property
    def known_unmodified(self) -> tuple[str, ...]:
        """URLs of the servers that ran unmodified GoatDB when last observed, and of the manual-restart servers."""
        found = {url for url, one in self._memory.items() if one.unmodified}
        return tuple(url for url in self.nodes if url in found | self._bare)

    async def read_identities(self) -> dict[str, ServerIdentity]:
        """Return, by URL, the reports of the Goatherd servers and agents that answer."""

        found: dict[str, ServerIdentity] = {}

        async def ask(node: Node) -> None:
            answer = await node.identity()
            memory = self._memory.setdefault(node.base_url, _NodeMemory())
            memory.has_agent = answer is not None and answer.agent is not None
            memory.unmodified = answer is None or memory.has_agent
            if answer is not None:
                found[node.base_url] = answer

        await self.refresh_nodes()
        # The rotation itself observes whether a server that fails takes part.
        await call_each(self.nodes.values(), ask, timeout=self._timeout)
        return {url: found[url] for url in self.nodes if url in found}

    async def _observe_node(self, url: str, question: Question) -> NodeView:
        draft = _Draft()
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._observe_identity(url, question, draft))
                    if question.next_root is not None:
                        group.create_task(self._observe_trust(url, question, question.next_root, draft))
                    if question.answers:
                        group.create_task(self._observe_answer(url, question.asker, draft))
                    if question.next_root is None and question.earlier:
                        group.create_task(self._observe_earlier(url, question, draft))
        except TimeoutError:
            draft.problems.append(f"no answer within {self._timeout.total_seconds():g} s")
            draft.is_unreachable = True
        cross, report, agent = question.cross_signature, draft.report, draft.report.agent
        # Only the check before a rotation needs these parts of the report. They change often, and each change of a view
        # is an event.
        details = report if question.answers else _NO_REPORT
        if draft.is_unreachable:
            self._memory.setdefault(url, _NodeMemory()).was_unreachable = True
        if draft.reachable:
            self._processes.setdefault(url, {})
        cannot_sign = None
        if draft.trusts_next and question.next_root is not None and question.next_root.is_remote:
            key = fingerprint(question.next_root.session.public_key)
            cannot_sign = NodeView(url=url, reachable=True, report=report).why_cannot_sign(key)
        if cannot_sign is not None:
            # SECURITY: a server that cannot sign would create no sessions and not synchronize, so the next root must
            # not sign yet (tests/cluster/test_direct.py).
            draft.trusts_next, draft.signs_with = False, None
            draft.problems.append(f"{url} {cannot_sign}")
        introduced = [draft.holds.get(one.commit_id) for one in question.introductions]
        is_down = agent is not None and agent.is_down
        return NodeView(
            url=url,
            # SECURITY: an invalid answer counts as none, so that a quorum can leave out a broken server. A server that
            # rejects the next root cannot be left out (`find_excused_servers`; tests/unit/rotation/test_quorum.py).
            reachable=draft.reachable and (not draft.is_invalid or draft.trusts_next is False),
            is_unmodified=url in self._memory and self._memory[url].unmodified,
            report=report,
            trusts_current=draft.trusts_current,
            roots=details.roots,
            revoked=details.revoked or (),
            generation=report.generation,
            digest=report.digest,
            clock_ahead_ms=self._clock_ahead_ms(url) if details is _NO_REPORT else draft.clock_ahead_ms,
            instance=details.instance,
            is_shared=draft.is_shared,
            partners=None
            if details.peers is None
            else frozenset(one for peer in details.peers for one in peer.instances),
            is_partner_unknown=any(not peer.instances and peer.is_online is not False for peer in details.peers or ()),
            trusts_next=draft.trusts_next,
            holds_introduction=None if not introduced or None in introduced else True in introduced,
            signs_with=draft.signs_with,
            holds_cross_signature=None if cross is None else draft.holds.get(cross.commit_id),
            rejects=_rejection(report),
            without_store=_is_without_store(report),
            is_bare=url in self._bare,
            holds_earlier=draft.holds_earlier,
            activity=None if agent is None else agent.activity,
            # While its agent restarts it, a server is not expected to answer.
            problem=None if is_down else "; ".join(dict.fromkeys(draft.problems)) or None,
        )

    def _clock_ahead_ms(self, url: str) -> int | None:
        """Return how far a server's clock is ahead of this machine's, by the date of its last answer."""
        node = self.nodes.get(url)
        return None if node is None else node.clock_ahead_ms(self._clock.now_ms())

    async def read_clocks(self) -> tuple[NodeView, ...]:
        """Ask each server for its time only; return views with `clock_ahead_ms`, which is None without an answer."""
        await self.refresh_nodes()

        await call_each(self.nodes.values(), lambda node: node.time_ms(), timeout=self._timeout)
        ahead_ms = {url: self._clock_ahead_ms(url) for url in self.nodes}
        return tuple(NodeView(url=url, reachable=ms is not None, clock_ahead_ms=ms) for url, ms in ahead_ms.items())

    async def _observe_identity(self, url: str, question: Question, draft: _Draft) -> None:
        memory = self._memory.setdefault(url, _NodeMemory())
        try:
            if not memory.unmodified or memory.has_agent:
                before_ms = self._clock.now_ms()
                answer = await self.nodes[url].identity()
                after_ms = self._clock.now_ms()
                draft.reachable = True
                memory.has_agent = answer is not None and answer.agent is not None
                memory.unmodified = answer is None or memory.has_agent
                memory.is_from_file = answer is not None and answer.is_from_file
                if answer is not None:
                    draft.report = answer
                    draft.clock_ahead_ms = _ahead_ms(answer.now_ms, before_ms=before_ms, after_ms=after_ms)
                    draft.is_shared = question.sharing and await self._is_shared(url, answer.instance)
                    self._record_process(url, answer.instance)
                    if not memory.has_agent:
                        draft.signs_with = answer.signer
                    elif question.signer or question.answers:
                        draft.signs_with = await self._prove_signer(url, answer, question, memory)
                    return
            if question.signer:
                draft.signs_with = await self._find_signer(url, question.asker, memory)
                draft.reachable = True
            elif question.process and not self._processes.get(url):
                await self._observe_process(url, question)
        except NodeError as error:
            _record_error(draft, error)

    async def _is_shared(self, url: str, instance: str | None) -> bool:
        """Return whether several server processes answer at this URL, as behind a load balancer.

        The requests of a round are sent at the same time, so each has a connection of its own: many load balancers
        choose a server for each connection. A restarted server has a new id. So an id that occurs in two rounds proves
        that its process ran throughout, and another id in both of them, or in a round in between, that a second one
        did.
        """
        rounds = [{instance}]
        while len(rounds) <= _SHARED_ROUNDS:
            asked = [self.nodes[url].identity() for _ in range(_SHARED_REQUESTS)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            found = {one.instance for one in answers if isinstance(one, ServerIdentity)} - {None}
            if any(len(found & before) > 1 for before in rounds):
                return True
            if any(one in before and between - {one} for before, between in combinations(rounds, 2) for one in found):
                return True
            if found <= {instance} and len(rounds) == 1:
                return False
            rounds.append(found)
        return False

    async def _observe_process(self, url: str, question: Question) -> None:
        """Identify the process of an unmodified server, so that a later restart is noticed.

        A mark that the process accepts identifies it (`goatherd.cluster.process_mark`); otherwise the commit of a new
        session does. If the server does not send that commit in time, a session is created again at a later
        observation, at most three times in a run, because GoatDB keeps each session permanently.
        """
        memory = self._memory.setdefault(url, _NodeMemory())
        if question.is_next_new and await self._mark_process(url, question, memory):
            return
        if self._asked_for_process[url] >= _PROCESS_TRIES:
            return
        self._asked_for_process[url] += 1
        now = self._clock.monotonic()
        try:
            await self._create_session(url, question.asker, memory, None)
        except NodeError:
            self._asked_for_process[url] -= 1
            return
        # The same session has also shown which root signs.
        memory.asked_at, memory.pause, memory.was_unreachable = now, _ASK_SIGNER_EVERY.total_seconds(), False

    async def _mark_process(self, url: str, question: Question, memory: _NodeMemory) -> bool:
        """Leave a mark in the server's process, by which it can be recognized; return whether the process has one.

        The next root is added to the roots with which this process cannot sign, because it is newer than the process,
        and an unmodified server signs with another root only after a restart.
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

    def _record_process(self, url: str, process: object) -> None:
        if isinstance(process, str) and 0 < len(process) <= _LONGEST_ID:
            self._processes.setdefault(url, {})[process] = None

    async def _observe_answer(self, url: str, asker: OwnedSession, draft: _Draft) -> None:
        try:
            await self.nodes[url].batch_sync([], asker, self._clock.now_ms())
        except NodeRefusedError as error:
            if error.status != 403:
                _record_error(draft, error)
                return
            draft.trusts_current = False
        except NodeError as error:
            _record_error(draft, error)
            return
        else:
            draft.trusts_current = True
        draft.reachable = True

    async def _observe_trust(self, url: str, question: Question, next_root: OwnedSession, draft: _Draft) -> None:
        expected = [*question.introductions, *(() if question.cross_signature is None else (question.cross_signature,))]
        ids = [one.commit_id for one in expected]
        try:
            try:
                held = await read_held(self.nodes[url], ids, next_root, self._clock.now_ms())
                draft.trusts_next = True
            except NodeRefusedError as error:
                if error.status != 403:
                    raise
                draft.reachable = True
                draft.trusts_next = False
                held = await read_held(self.nodes[url], ids, question.asker, self._clock.now_ms())
        except NodeError as error:
            _record_error(draft, error)
            return
        draft.reachable = True
        for one in expected:
            commit = held.get(one.commit_id)
            draft.holds[one.commit_id] = commit is not None and self._is_expected(one, commit)

    async def _observe_earlier(self, url: str, question: Question, draft: _Draft) -> None:
        try:
            ids = [one.commit_id for one in question.earlier]
            held = await read_held(self.nodes[url], ids, question.asker, self._clock.now_ms())
        except NodeError as error:
            _record_error(draft, error)
            return
        draft.reachable = True
        draft.holds_earlier = frozenset(
            one.session_id
            for one in question.earlier
            if (commit := held.get(one.commit_id)) is not None and self._is_expected(one, commit)
        )

    def _is_expected(self, expected: ExpectedCommit, commit: Mapping[str, object]) -> bool:
        """Return whether `commit` is the expected one; a signature that was verified before is not verified again."""
        if self._verified.get(expected) == commit:
            return True
        is_it = expected.matches(commit, org=self._org)
        if is_it:
            self._verified[expected] = commit
        return is_it

    async def _find_signer(self, url: str, asker: OwnedSession, memory: _NodeMemory) -> str | None:
        """Return the id of the root that signs at an unmodified server, from the commit of a session created there.

        GoatDB keeps that session permanently, so sessions are created as rarely as possible, and the last result is
        returned meanwhile. A server signs with another root only after a restart. If its process can be recognized
        (`goatherd.cluster.process_mark`), one session is created for each start. Otherwise one is created after the
        server was unreachable, and then at increasing intervals; at the longest interval if root `asker` signs.
        """
        now = self._clock.monotonic()
        state = None if memory.mark is None or memory.forgets else await find_mark(self.nodes[url], memory.mark)
        if state is MarkState.FOUND:
            memory.was_unreachable = False
            if memory.signer is not None or asker.id in memory.cannot_sign_with:
                return memory.signer
        elif state is MarkState.TOO_EARLY and not memory.was_unreachable:
            if now - memory.marked_at < TOO_OLD_AFTER.total_seconds():
                return memory.signer
            memory.forgets = True  # the server does not check times at all
        pause = _ASK_SIGNER_AT_LEAST.total_seconds() if memory.signer == asker.id else memory.pause
        if memory.asked_at is not None and not memory.was_unreachable and now - memory.asked_at < pause:
            return memory.signer
        memory.pause = min(
            _ASK_SIGNER_EVERY.total_seconds() if memory.was_unreachable or not memory.pause else 2 * memory.pause,
            _ASK_SIGNER_AT_LEAST.total_seconds(),
        )
        memory.asked_at, memory.was_unreachable = now, False
        await self._create_session(url, asker, memory, state)
        return memory.signer

    async def _create_session(
        self, url: str, asker: OwnedSession, memory: _NodeMemory, state: MarkState | None
    ) -> None:
        """Create an anonymous session, and record which root signs its commit and in which process.

        COMPAT: GoatDB does not report which root signs, but that root signs the session commit of every client. The
        commit's connection id identifies the process and changes at each start.

        Args:
            url: The server.
            asker: A root that the server may trust.
            memory: What earlier observations have shown; the result is stored here.
            state: Whether the process still has the mark that was left in it; None if that was not checked.
        """
        node, now = self.nodes[url], self._clock.monotonic()
        try:
            known = await read_sessions_filter(node, asker, self._clock.now_ms())
        except NodeRefusedError:
            known = None  # a server that does not trust the asker yet sends everything
        # Leave the mark before the session is created: if the process restarts in between, another session is created.
        mark = None
        is_same = state is MarkState.FOUND
        if not is_same and not memory.forgets:
            mark = await leave_mark(node, asker, self._clock.now_ms())
        owned, _ = await node.create_session()
        made = await find_session_commit(node, owned, known, self._clock.now_ms())
        if made is None:
            return
        process, signer = made.get("cid"), read_signer(made)
        seen = self._processes.setdefault(url, {})
        if _UNNAMED in seen:
            del seen[_UNNAMED]
            if not is_same and signer in memory.cannot_sign_with:
                seen[f"{_UNNAMED} before {process}"] = None
            # Otherwise the unnamed process is, or may be, this process, which has lost its mark.
        if not is_same:
            memory.forgets |= state is MarkState.LOST and process == memory.process
            memory.start_over(None if memory.forgets else mark, now)
        memory.signer = signer
        if isinstance(process, str):
            memory.process = process
        self._record_process(url, process)

    async def _prove_signer(
        self, url: str, identity: ServerIdentity, question: Question, memory: _NodeMemory
    ) -> str | None:
        """Return the id of the root that signs at a server under an agent, if a commit proves it; else None.

        The agent has created a session after the start of its server, and reports that session's commit and the root
        that signs. The server must hold the commit, signed by that root.
        """
        claim = read_claim(identity)
        if claim is None or memory.proven == claim:
            return None if claim is None else claim[2]
        roots = [one for one in (question.next_root, question.asker) if one is not None]
        signer = await prove_signer(self.nodes[url], identity, roots, org=self._org, now_ms=self._clock.now_ms())
        memory.proven = None if signer is None else claim
        return signer


def _rejection(identity: ServerIdentity) -> str | None:
    """Return the error code with which a server rejects the identity in the store; None if it does not.

    It is no rejection if the server cannot reach the store, or has read from a replica that lags: both conditions may
    pass before the deadline of the rotation's phase.
    """
    code = identity.refusal
    if identity.is_degraded is not True or code is None:
        return None
    return code if code.startswith(_REJECTED) and code != GenerationError.code else None


def _is_without_store(identity: ServerIdentity) -> bool:
    """Return whether a server reports that it cannot read the store now, so that it uses an identity read earlier."""
    if identity.source == Origin.LAST_KNOWN_GOOD:
        return True
    return identity.is_degraded is True and (identity.refusal or "").startswith(_STORE_FAILED)


def _ahead_ms(now_ms: int | None, *, before_ms: int, after_ms: int) -> int | None:
    """Return how far a server's clock is ahead of this machine's at the least, in milliseconds; None if unknown.

    Negative if the server's clock is behind; 0 if the duration of the request can explain the difference.

    Args:
        now_ms: The server's time, as it reports it.
        before_ms, after_ms: This machine's time when the request was sent and when the answer arrived.
    """
    if now_ms is None:
        return None
    return now_ms - after_ms if now_ms > after_ms else min(0, now_ms - before_ms)


def _record_error(draft: _Draft, error: NodeError) -> None:
    draft.is_invalid |= isinstance(error, InvalidAnswerError)
    draft.reachable = draft.reachable or isinstance(error, NodeRefusedError)
    if draft.is_unreachable and isinstance(error, NodeUnreachableError):
        return  # one request without an answer says enough
    # A proxy answers 502 to 504 for a server that is unreachable.
    draft.is_unreachable |= isinstance(error, NodeUnreachableError) or getattr(error, "status", 0) in (502, 503, 504)
    draft.problems.append(str(error))


async def call_each(
    nodes: Iterable[N],
    call: Callable[[N], Awaitable[object]],
    *,
    timeout: timedelta | None,
    on_failure: Callable[[str, str], None] | None = None,
) -> None:
    """Call servers concurrently. A server that fails does not stop or delay the others, and no error is raised.

    Args:
        nodes: The servers.
        call: The call to make.
        timeout: Timeout of one server; None if the call can take long, and the client has its own timeout.
        on_failure: Called with the URL of a server that failed and the reason; must not raise.
    """

    async def one(node: N) -> None:
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                await call(node)
        except (NodeError, DecodeError, RotationError, TimeoutError) as error:
            if on_failure is not None:
                late = "no answer in time" if timeout is None else f"no answer within {timeout.total_seconds():g} s"
                on_failure(node.base_url, str(error) or late)

    async with asyncio.TaskGroup() as group:
        for node in nodes:
            group.create_task(one(node))


async def observe_servers(
    nodes: Sequence[Node], current: OwnedSession, *, org: str, timeout: timedelta
) -> tuple[NodeView, ...]:
    """Observe each server once: what it reports, whether it trusts the current root, and which root signs.

    No session is created. So the root that signs at an unmodified server without an agent stays unknown.

    Args:
        nodes: The servers.
        current: The current root.
        org: The organization id, which is part of every signed commit.
        timeout: Timeout of one request; a server needs at most three.
    """
    observer = Observer(nodes, clock=SystemClock(), timeout=3 * timeout, org=org)
    return await observer.observe(Question(asker=current, answers=True))


async def observe_trust(client: NodeClient, root: OwnedSession) -> NodeView:
    """Ask one server whether it trusts `root`: whether it accepts a request signed by this root.

    The answer is `NodeView.trusts_current` in the result; nothing else is observed.
    """
    try:
        is_trusted = await client.answers(root)
    except NodeError as error:
        return NodeView(url=client.base_url, reachable=isinstance(error, NodeRefusedError), problem=str(error))
    return NodeView(url=client.base_url, reachable=True, trusts_current=is_trusted)
