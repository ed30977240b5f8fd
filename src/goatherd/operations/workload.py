"""Run clients that constantly write and read, and audit their writes afterwards.

`goatherd demo`, the cluster tests and the benchmarks use these clients. A client is not a GoatDB replica: it merges no
commits and stores only what the audit needs. Rules: a write counts as accepted only if the Bloom filter in the server's
answer contains the commit's id. No request is retried, so that every failure that a user would notice is counted.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from goatherd.clock import Clock, SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import DecodeError, GoatherdError, NodeError, VerificationError
from goatherd.identity.session import OwnedSession, Session, sign_commit
from goatherd.identity.session_commits import session_from_commit, verify_commit_by
from goatherd.ids import new_id
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.messages import VERSION
from goatherd.wire.paths import SESSIONS_PATH

PATH = "/data/load"
_TICK = timedelta(milliseconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSample:
    """One request: when it was sent (monotonic seconds), how long it took (seconds), and its result."""

    kind: str
    at: float
    seconds: float
    accepted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWindow:
    """The requests in a period of time. Latencies are in milliseconds, over writes and reads together."""

    requests: int
    refused: int
    p50_ms: float
    p99_ms: float
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAudit:
    """The result of reading all commits from all servers at the end of a load.

    Attributes:
        accepted: Number of commits that the servers accepted.
        lost: Ids of accepted commits that a server does not hold, with the URLs of these servers.
        unverifiable: Ids of commits, on any server, that cannot be verified from the given roots.
        by_signer: Number of session commits on the first server that each root signed, by the root's id.
    """

    accepted: int
    lost: Mapping[str, tuple[str, ...]]
    unverifiable: tuple[str, ...]
    by_signer: Mapping[str, int]


@dataclass(slots=True)
class _Client:
    owned: OwnedSession
    home: int
    heads: dict[str, str] = field(default_factory=dict)


class Workload:
    """Writes and reads constantly on several GoatDB servers, with signed requests.

    Use it as an async context manager: entering creates the client sessions and waits until every server knows them,
    and leaving stops the load.

    Args:
        urls: The servers.
        clients: How many clients write at the same time; each uses the servers in turn.
        pause: How long a client waits between requests.
        newcomers: Whether new clients join all the time. A new client gets a session from one server and writes through
            another, which must verify the root's signature on that session.
        timeout: Timeout of one request, and of the wait until every server knows a new session.

    Raises:
        NodeError: A server did not answer, or did not learn of a new session in time. After entering, such failures
            are only counted.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        clients: int = 6,
        pause: timedelta = timedelta(milliseconds=20),
        newcomers: bool = True,
        clock: Clock | None = None,
        timeout: timedelta = timedelta(seconds=30),
    ) -> None:
        self.urls = tuple(urls)
        self.samples: list[RequestSample] = []
        self.accepted: dict[str, str] = {}
        self._count = clients
        self._pause = pause
        self._timeout = timeout.total_seconds()
        self._newcomers = newcomers
        self._clock: Clock = clock or SystemClock()
        self._nodes = [NodeClient(url, timeout=timeout) for url in self.urls]
        self._clients: list[_Client] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._connection = new_id()
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            self._clients = list(
                await asyncio.gather(*(self._create_client(i % len(self.urls)) for i in range(self._count)))
            )
        except BaseException:
            await self.__aexit__()
            raise
        self._tasks = [asyncio.create_task(self._run_client(client, i)) for i, client in enumerate(self._clients)]
        if self._newcomers:
            self._tasks.append(asyncio.create_task(self._run_new_clients()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await asyncio.gather(*(node.aclose() for node in self._nodes))

    async def stop(self) -> None:
        """Let every client finish its request, then stop. May be called twice."""
        self._stopping.set()
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    def now(self) -> float:
        """Return the monotonic time in seconds, by the clock that also times the samples."""
        return self._clock.monotonic()

    def window(self, since: float, until: float | None = None) -> LoadWindow:
        """Summarize the requests that were sent from `since` to `until` (None: until now), in monotonic seconds."""
        inside = [s for s in self.samples if s.at >= since and (until is None or s.at < until)]
        times = sorted(s.seconds * 1000 for s in inside)
        reasons: dict[str, int] = {}
        for sample in inside:
            if not sample.accepted:
                reasons[sample.reason] = reasons.get(sample.reason, 0) + 1
        return LoadWindow(
            requests=len(inside),
            refused=sum(reasons.values()),
            p50_ms=_choose_quantile(times, 0.50),
            p99_ms=_choose_quantile(times, 0.99),
            reasons=reasons,
        )

    async def audit(self, roots: Sequence[Session], *, timeout: timedelta = timedelta(seconds=20)) -> LoadAudit:
        """Read every commit from every server, and check that none is lost and that all can be verified from `roots`.

        A commit is lost if a server does not hold it after `timeout`.
        """
        reader = self._clients[0].owned
        deadline = self.now() + timeout.total_seconds()
        while True:
            held = await asyncio.gather(*(node.pull(PATH, reader) for node in self._nodes))
            lost = self._find_lost(held)
            if not lost or self.now() >= deadline:
                break
            await self._clock.sleep(timedelta(milliseconds=100))
        unverifiable: set[str] = set()
        by_signer: dict[str, int] = {}
        for node, commits in zip(self._nodes, held, strict=True):
            known = {root.id: root for root in roots}
            introductions = [decode_commit(c) for c in await node.pull(SESSIONS_PATH, reader)]
            signers = learn_sessions(known, introductions)
            if node is self._nodes[0]:
                by_signer = signers
            bad = await asyncio.to_thread(unverifiable_commits, known, [decode_commit(c) for c in commits])
            unverifiable |= bad
        return LoadAudit(
            accepted=len(self.accepted), lost=lost, unverifiable=tuple(sorted(unverifiable)), by_signer=by_signer
        )

    def _find_lost(self, held: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, tuple[str, ...]]:
        ids = [{commit["id"] for commit in commits} for commits in held]
        lost = {c: tuple(u for u, have in zip(self.urls, ids, strict=True) if c not in have) for c in self.accepted}
        return {commit_id: urls for commit_id, urls in lost.items() if urls}

    # --- the clients ------------------------------------------------------------------------------------------------

    async def _create_client(self, home: int) -> _Client:
        owned, _ = await self._nodes[home].create_session()
        deadline = self.now() + self._timeout
        for node in self._nodes:
            while not await node.answers(owned):
                if self.now() >= deadline:
                    raise NodeError(
                        f"{node.base_url} did not learn within {self._timeout:g} s of a session that {self.urls[home]}"
                        " has created"
                    )
                await self._clock.sleep(timedelta(milliseconds=50))
        return _Client(owned, home)

    async def _run_client(self, client: _Client, number: int) -> None:
        for turn in itertools.count(number):
            if self._stopping.is_set():
                return
            node = self._nodes[turn % len(self._nodes)]
            if turn % 4 == 3:
                await self._read_repository(client, node)
            else:
                await self._write_commit(client, node, f"client-{number}-{turn % 8}")
            await self._clock.sleep(self._pause)

    async def _run_new_clients(self) -> None:
        for turn in itertools.count():
            started = self.now()
            try:
                client = await self._create_client(turn % len(self._nodes))
            except NodeError as error:
                self._record_request("session", started, False, _describe_error(error))
            else:
                self._record_request("session", started, True)
                await self._write_commit(client, self._nodes[(turn + 1) % len(self._nodes)], f"newcomer-{turn}")
            until = self.now() + 0.3
            while self.now() < until:
                if self._stopping.is_set():
                    return
                await self._clock.sleep(_TICK)

    async def _write_commit(self, client: _Client, node: NodeClient, key: str) -> None:
        now_ms = self._clock.now_ms()
        parent = client.heads.get(key)
        draft = new_commit(
            commit_id=new_id(),
            key=key,
            session_id=client.owned.id,
            ts=now_ms,
            org="localhost",
            parents=(parent,) if parent else (),
            data={"title": f"{key} at {now_ms}", "n": now_ms},
            schema_marker="note/1",
            connection=self._connection,
        )
        commit = sign_commit(client.owned, draft, now_ms=now_ms)
        started = self.now()
        try:
            reply = await node.push(PATH, [commit], client.owned)
        except GoatherdError as error:
            self._record_request("write", started, False, _describe_error(error))
            return
        accepted = reply is not None and commit.id in BloomFilter.from_json(reply["f"]["__v"])
        self._record_request("write", started, accepted, "" if accepted else "commit not kept")
        if accepted:
            self.accepted[commit.id] = key
            client.heads[key] = commit.id

    async def _read_repository(self, client: _Client, node: NodeClient) -> None:
        started = self.now()
        full = {"__t": "E", "__v": {"d": "AA==", "s": []}}
        try:
            await node.batch_sync([(PATH, {"ver": VERSION, "f": full, "s": 0, "c": [], "ad": []})], client.owned)
        except NodeError as error:
            self._record_request("read", started, False, _describe_error(error))
        else:
            self._record_request("read", started, True)

    def _record_request(self, kind: str, started: float, accepted: bool, reason: str = "") -> None:
        self.samples.append(
            RequestSample(kind=kind, at=started, seconds=self.now() - started, accepted=accepted, reason=reason)
        )


def _describe_error(error: GoatherdError) -> str:
    status = getattr(error, "status", None)
    return f"{error.code} {status}" if status else error.code


def _choose_quantile(ordered: Sequence[float], fraction: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))] if ordered else 0.0


def decode_commit(encoded: Mapping[str, Any]) -> Commit:
    """Decode a commit as a server of the default organization does."""
    return Commit.from_json(encoded, org="localhost")


def learn_sessions(known: dict[str, Session], introductions: Sequence[Commit]) -> dict[str, int]:
    """Add the sessions that known roots have introduced to `known`; return how many each root has introduced.

    A root that is introduced in this way is known, too, and so are the sessions that it introduces.
    """
    signers: dict[str, int] = {}
    waiting = list(introductions)
    while True:
        later = []
        for commit in waiting:
            root = known.get(commit.session)
            if root is None or not root.is_root:
                later.append(commit)
                continue
            try:
                verify_commit_by(root, commit)
                session = session_from_commit(commit)
            except (VerificationError, DecodeError):
                continue
            known.setdefault(session.id, session)
            signers[root.id] = signers.get(root.id, 0) + 1
        if len(later) == len(waiting):
            return signers
        waiting = later


def unverifiable_commits(known: Mapping[str, Session], commits: Sequence[Commit]) -> set[str]:
    """Return the ids of the commits whose signature cannot be verified with a session in `known`."""
    bad = set()
    for commit in commits:
        session = known.get(commit.session)
        try:
            if session is None:
                raise VerificationError("unknown signer")
            verify_commit_by(session, commit)
        except VerificationError:
            bad.add(commit.id)
    return bad
