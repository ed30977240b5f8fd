"""A herd of simulated GoatDB nodes and clients in one process, on a clock that a test moves.

What it is: nodes that keep GoatDB's rules where a rotation can hurt (which roots are trusted, what is dropped silently,
the ten submissions, a view of the store that lags), with faults to switch on. What it is not: a server; there is no
HTTP, and commits are never merged.

What it keeps of GoatDB 0.5.1: a request by an unknown or expired session is rejected; a pushed commit by one is dropped
without an error; all commits of a message are verified before one is stored, so a session commit and what
that session signed do not pass together; a session is known once its commit is stored and a trusted root signed it; a
commit is offered ten times in the life of the process that wrote it, and then never again. Signatures of commits are
real; those of requests are only looked up (the key must be the known one), which keeps a thousand runs affordable.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from goatherd.agent.restart_rules import reasons_to_restart
from goatherd.cluster.node import Sendable
from goatherd.cluster.server_answers import PeerReport, ServerIdentity
from goatherd.errors import (
    DecodeError,
    ExpiredSessionError,
    IdentityError,
    NodeRefusedError,
    NodeUnreachableError,
    ProviderError,
    SuccessionError,
    UnavailableError,
    VerificationError,
)
from goatherd.identity.document import IdentityDocument, decode_document, document_digest, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession, Session, parse_signature, sign_commit, verify_request
from goatherd.identity.session_commits import session_from_commit
from goatherd.identity.succession import verify_successor
from goatherd.identity.transitions import create_document
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT
from goatherd.rotation.cross_signing import make_session_commit
from goatherd.stores import DocumentMark, RegionalReader
from goatherd.trust import TrustPool
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.messages import VERSION, SyncMessage, filter_parameters

SESSIONS: Final = "/sys/sessions"
DATA: Final = "/data/notes"
ORG: Final = "localhost"
SHORT_LOG: Final = 64
MAX_SUBMISSIONS: Final = 10
"""COMPAT: the most times that one process offers a commit."""


class FakeClock:
    """A clock that advances only when a task sleeps on it, or a test advances it; `on_tick` runs after each advance."""

    def __init__(self, now_ms: int = 1_790_000_000_000) -> None:
        self._now_ms = now_ms
        self._started_ms = now_ms
        self.on_tick: Callable[[], Awaitable[None]] | None = None
        self.slept: list[timedelta] = []

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return (self._now_ms - self._started_ms) / 1000

    def turn(self, duration: timedelta) -> None:
        """Advance the clock, without running any task."""
        self._now_ms += max(1, duration // timedelta(milliseconds=1))

    async def sleep(self, duration: timedelta) -> None:
        self.slept.append(duration)
        self.turn(duration)
        if self.on_tick is not None:
            await self.on_tick()


@dataclass(slots=True)
class Faults:
    """The faults of a node; all can be changed while it runs.

    Attributes:
        cut_off: No request gets through, from any sender.
        store_lost: It cannot read the store: its view stays as it is.
        admits_loss: It reports that it cannot read the store, as a Goatherd server does; otherwise its replica lags.
        deaf: It ignores notifications; it still reads the store at its interval.
        refuses_documents: It reads the document, rejects it, and reports that.
        forgets_pushes: It answers 200 to pushed session commits of roots and keeps none.
        clock_ahead: How far its clock is ahead of the herd's.
        tells_no_time: Its answers have no date.
    """

    cut_off: bool = False
    store_lost: bool = False
    admits_loss: bool = False
    deaf: bool = False
    refuses_documents: bool = False
    forgets_pushes: bool = False
    clock_ahead: timedelta = timedelta(0)
    tells_no_time: bool = False


@dataclass(slots=True)
class _Sender:
    """The memory of a process of how often it has offered each commit."""

    submissions: Counter[tuple[str, str]] = field(default_factory=Counter)
    filters: dict[tuple[str, str], BloomFilter] = field(default_factory=dict)

    def offers(self, url: str, path: str, commits: Iterable[Commit]) -> list[Commit]:
        known = self.filters.get((url, path))
        chosen = []
        for commit in commits if known is None else find_missing(known, commits):
            if self.submissions[url, commit.id] < MAX_SUBMISSIONS:
                self.submissions[url, commit.id] += 1
                chosen.append(commit)
        return chosen


class HerdNode:
    """One simulated server. It is a `goatherd.cluster.node.Node`.

    Attributes:
        unmodified: It runs GoatDB 0.5.1: it has no ``/goatherd/v1``, and signs with the key that it started with.
        is_agented: An agent runs it: reads the store at the interval, and restarts it for the reasons of a real agent.
        faults: See `Faults`.
        peers: The nodes that it synchronizes with; None for all.
        instance: The id of its process.
        provider: The store that it reads; by default that of the herd.
        restarts: How often it was started again.
        asked: How often each method was called.
    """

    def __init__(
        self, herd: Herd, name: str, document: IdentityDocument, *, unmodified: bool = False, is_agented: bool = False
    ) -> None:
        self.base_url = f"http://{name}"
        self.unmodified = unmodified or is_agented
        self.is_agented = is_agented
        self.faults = Faults()
        self.asked: Counter[str] = Counter()
        self.refusal: str | None = None
        self.peers: Sequence[HerdNode] | None = None
        self.instance = f"instance-of-{name}"
        self.version: str | None = None
        self.restarts = 0
        self.provider = herd.provider
        self._herd = herd
        self._logs: dict[str, dict[str, Commit]] = {SESSIONS: {}, DATA: {}}
        self._filters: dict[str, tuple[int, int, BloomFilter]] = {}
        self._digested: tuple[IdentityDocument, str] | None = None
        self._sender = _Sender()
        self._accepted: set[str] = set()
        self._looked_ms = herd.clock.now_ms()
        self.document = document
        self.pool = self._new_pool()

    # --- what a rotation sees ---------------------------------------------------------------------------------------

    async def batch_sync(
        self,
        requests: Sequence[tuple[str, Mapping[str, Any]]],
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> list[dict[str, Any]]:
        self._arrive("batch_sync")
        self._admit(signer)
        return [self._answer(path, SyncMessage.from_json(message)) for path, message in requests]

    async def push(
        self,
        path: str,
        commits: Iterable[Sendable | Mapping[str, Any]],
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> dict[str, Any] | None:
        sent = [dict(one) if isinstance(one, Mapping) else json.loads(one.encoded) for one in commits]
        message = SyncMessage(version=VERSION, filter=BloomFilter(b"", ()), size=0, commits=sent)
        (reply,) = await self.batch_sync([(path, message.to_json())], signer, now_ms)
        return reply

    async def identity(self) -> ServerIdentity | None:
        self._arrive("identity")
        return None if self.unmodified else ServerIdentity.from_json(self.say_identity())

    def say_identity(self) -> dict[str, Any]:
        """Return the node's answer about its identity, as on the wire."""
        is_lost = self.faults.store_lost and self.faults.admits_loss
        refusal = UnavailableError.code if is_lost and self.refusal is None else self.refusal
        reached = [peer for peer in self.known_peers() if not peer.faults.cut_off]
        return {
            "org": ORG,
            "signer": self.pool.current.id,
            "roots": list(self.pool.root_ids),
            "generation": self.document.generation,
            "digest": self._digest(),
            "degraded": refusal is not None,
            "refusal": None if refusal is None else {"code": refusal},
            "instance": self.instance,
            "version": self.version,
            "peers": [
                {
                    "online": peer in reached,
                    "instances": [peer.instance] if peer in reached and not peer.unmodified else [],
                }
                for peer in self.known_peers()
            ],
            "nowMs": None if self.faults.tells_no_time else self._now_ms(),
        }

    async def time_ms(self) -> int | None:
        self._arrive("time_ms")
        return None if self.faults.tells_no_time else self._now_ms()

    def clock_ahead_ms(self, now_ms: int) -> int | None:
        """Return how far its clock is ahead of `now_ms`; None before it has answered."""
        is_unknown = not self.asked.total() or self.faults.cut_off or self.faults.tells_no_time
        return None if is_unknown else self._now_ms() - now_ms

    def _now_ms(self) -> int:
        return self._herd.clock.now_ms() + self.faults.clock_ahead // timedelta(milliseconds=1)

    def known_peers(self) -> list[HerdNode]:
        """Return the other nodes that it synchronizes with."""
        return [peer for peer in (self._herd.nodes if self.peers is None else self.peers) if peer is not self]

    async def list_peers(self, signer: OwnedSession, now_ms: int | None = None) -> tuple[PeerReport, ...]:
        self._arrive("peers")
        if self.unmodified or not self._admit(signer).is_root:
            raise NodeRefusedError(f"{self.base_url}: status 403", status=403)
        return tuple(
            [PeerReport(is_online=True, instances=(one.instance,), url=one.base_url) for one in self.known_peers()]
        )

    async def refresh(
        self,
        signer: OwnedSession,
        now_ms: int | None = None,
    ) -> dict[str, Any] | None:
        self._arrive("refresh")
        if self.unmodified:
            return None
        if not self._admit(signer).is_root:
            raise NodeRefusedError(f"{self.base_url}: status 403", status=403)
        if not self.faults.deaf:
            if isinstance(self.provider, RegionalReader):
                self.provider.expect_change(self._herd.secret_id)
            await self.look()
        return {"generation": self.document.generation, "changed": True}

    async def accepts_signature(self, signature: str) -> bool:
        """COMPAT: as in GoatDB, a process accepts a signature again that it has accepted before, whatever the time."""
        self._arrive("accepts_signature")
        envelope = parse_signature(signature)
        now_ms = self._herd.clock.now_ms()
        try:
            session = self.pool.get_session(envelope.session_id)
            if session.is_expired(now_ms):
                return False
            if not self.unmodified or signature not in self._accepted:
                verify_request(session, envelope, now_ms=now_ms)
        except VerificationError:
            return False
        self._accepted.add(signature)
        return True

    async def create_session(self) -> tuple[OwnedSession, list[Session]]:
        self._arrive("create_session")
        now_ms = self._herd.clock.now_ms()
        owned = OwnedSession.generate(session_id=self._herd.new_id(), owner=None, now_ms=now_ms)
        raw = make_session_commit(
            owned.session,
            signer=self.pool.current,
            commit_id=self._herd.new_id(),
            ts=now_ms,
            org=ORG,
            connection=self.instance,
        )
        commit = Commit.from_json(raw, org=ORG)
        self._keep(SESSIONS, [commit])
        return owned, self.pool.public_roots(now_ms)

    # --- its life -----------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Read the store and adopt the document, as far as the faults allow."""
        if self.faults.store_lost:
            return
        document = await self._read_store()
        if document is None or document.generation <= self.document.generation:
            return
        if self.faults.refuses_documents:
            self.refusal = SuccessionError.code
            return
        if self.document.anchor is not None or document.anchor is not None:
            try:
                verify_successor(document, self.document, self._logs[SESSIONS].values())
            except IdentityError as error:
                self.refusal = error.code
                return
        self.adopt(document)

    def adopt(self, document: IdentityDocument) -> None:
        """Use an identity from now on."""
        self.document = document
        self.pool.adopt_document(document)
        if isinstance(self.provider, RegionalReader):
            self.provider.note_used(self._herd.secret_id, DocumentMark.from_document(document))

    def restart(self) -> None:
        """Start again: the log is kept, trust is rebuilt from it, and the counts of submissions are lost."""
        self.restarts += 1
        self.instance = f"{self.instance.partition('/')[0]}/{self.restarts}"
        self._sender = _Sender()
        self._accepted.clear()
        self.pool = self._new_pool()

    def wipe(self) -> None:
        """Start again on an empty disk."""
        self._logs = {path: {} for path in self._logs}
        self._filters.clear()
        self.restart()

    async def tick(self) -> None:
        """Read the store when the interval has passed; under an agent, restart if needed."""
        due = self._looked_ms + self._herd.refresh_interval // timedelta(milliseconds=1)
        if self._herd.clock.now_ms() < due:
            return
        if self.is_agented:
            await self._follow()
        elif not self.unmodified:
            await self.look()

    async def _follow(self) -> None:
        found = None if self.faults.store_lost else await self._read_store()
        if found is None or found.generation <= self.document.generation:
            return
        if reasons_to_restart(self.document, found):
            self.document = found
            self.restart()

    async def _read_store(self) -> IdentityDocument | None:
        try:
            found = await self.provider.read(self._herd.secret_id, CURRENT)
        except ProviderError:
            return None
        self._looked_ms = self._herd.clock.now_ms()
        return decode_document(found.value.reveal())

    async def sync_with(self, peer: HerdNode) -> None:
        """Offer a peer the commits that it lacks and pull those that this node lacks, signed by this node's root."""
        if self.faults.cut_off:
            return
        for path, log in self._logs.items():
            known = (peer.base_url, path) in self._sender.filters
            offered = self._sender.offers(peer.base_url, path, log.values()) if known else []
            message = self._message(path, offered)
            try:
                (reply,) = await peer.batch_sync([(path, message)], self.pool.current)
            except (NodeRefusedError, NodeUnreachableError):
                continue
            self._sender.filters[peer.base_url, path] = SyncMessage.from_json(reply).filter
            self._ingest(path, reply["c"])

    def holds(self, path: str, commit_id: str) -> bool:
        """Whether a commit was accepted here."""
        return commit_id in self._logs[path]

    def commits(self, path: str) -> tuple[Commit, ...]:
        """Return what was accepted here, in order."""
        return tuple(self._logs[path].values())

    # --- inside -------------------------------------------------------------------------------------------------------

    def _new_pool(self) -> TrustPool:
        document = self.document
        pool = TrustPool(
            org=ORG,
            current=document.current,
            roots=document.roots,
            revoked=[one.id for one in document.revoked],
            anchored=None if self.unmodified or self.is_agented else document.anchored_trust,
        )
        pool.offer_session_commits(self._logs[SESSIONS].values())
        return pool

    def _digest(self) -> str:
        if self._digested is None or self._digested[0] is not self.document:
            self._digested = self.document, document_digest(self.document)
        return self._digested[1]

    def _arrive(self, method: str) -> None:
        self.asked[method] += 1
        if self.faults.cut_off:
            raise NodeUnreachableError(f"{self.base_url}: cut off")

    def _admit(self, signer: OwnedSession) -> Session:
        try:
            session = self.pool.get_session(signer.id)
            if session.public_key != signer.session.public_key:
                raise VerificationError("another key")
            if session.is_expired(self._herd.clock.now_ms()):
                raise ExpiredSessionError("expired")
        except VerificationError as error:
            raise NodeRefusedError(f"{self.base_url}: status 403: {error}", status=403) from None
        return session

    def _answer(self, path: str, message: SyncMessage) -> dict[str, Any]:
        self._ingest(path, message.commits)
        return self._message(path, find_missing(message.filter, self._logs.setdefault(path, {}).values()))

    def _message(self, path: str, commits: Iterable[Commit]) -> dict[str, Any]:
        """Return a sync message over a log. At one time, one filter of an unchanged long log goes to every peer.

        The filter of a short log often hides a commit, so each message has its own, as GoatDB's.
        """
        log, now_ms = self._logs[path], self._herd.clock.now_ms()
        made = self._filters.get(path)
        if made is None or len(log) < SHORT_LOG or made[:2] != (now_ms, len(log)):
            made = self._filters[path] = now_ms, len(log), self._herd.filter_of(log)
        return new_message(made[2], len(log), commits)

    def _ingest(self, path: str, raw: Iterable[Any]) -> None:
        accepted = []
        for one in raw:
            try:
                commit = Commit.from_json(one, org=ORG)
            except DecodeError:
                continue
            if self.holds(path, commit.id) or (self.faults.forgets_pushes and _introduces_a_root(commit)):
                continue
            try:
                self.pool.verify_commit(commit)
            except VerificationError:
                continue  # COMPAT: dropped, and the sender is not told
            accepted.append(commit)
        self._keep(path, accepted)

    def _keep(self, path: str, commits: Iterable[Commit]) -> None:
        for commit in commits:
            self._logs[path][commit.id] = commit
            if path == SESSIONS:
                self.pool.add_session_commit(commit)


class HerdClient:
    """A GoatDB client that writes notes.

    Attributes:
        home: The node that all its requests go to; None for any, as behind a load balancer.
        refused: How many of its requests were refused.
        written: Its notes, as it signed them.
        connected: Switch it off to let it be offline.
    """

    def __init__(self, herd: Herd, owned: OwnedSession, number: int, home: HerdNode | None) -> None:
        self.owned = owned
        self.home = home
        self.refused = 0
        self.written: list[Commit] = []
        self.connected = True
        self._herd = herd
        self._number = number
        self._sender = _Sender()

    def write(self) -> None:
        """Write one note, locally."""
        draft = new_commit(
            commit_id=self._herd.new_id(),
            key=f"note-{self._number}-{len(self.written)}",
            session_id=self.owned.id,
            ts=self._herd.clock.now_ms(),
            org=ORG,
            data={"title": "a note"},
            schema_marker="note/1",
            connection=self._herd.new_id(),
        )
        self.written.append(sign_commit(self.owned, draft, now_ms=self._herd.clock.now_ms()))

    async def sync(self) -> None:
        """Offer one node the commits that it lacks."""
        node = self.home or self._herd.random.choice(self._herd.nodes)
        offered = self._sender.offers("the cluster", DATA, self.written)
        message = new_message(self._herd.filter_of([one.id for one in self.written]), len(self.written), offered)
        try:
            (reply,) = await node.batch_sync([(DATA, message)], self.owned)
        except NodeUnreachableError:
            for commit in offered:  # nothing was submitted: no server was there
                self._sender.submissions["the cluster", commit.id] -= 1
            return
        except NodeRefusedError:
            self.refused += 1
            return
        self._sender.filters["the cluster", DATA] = SyncMessage.from_json(reply).filter


class Herd:
    """Nodes, clients, the store and the clock.

    Args:
        provider: The store, which holds the identity under `secret_id`.
        nodes: How many nodes, or the names of those that there are.
        unmodified: Numbers of nodes that are GoatDB 0.5.1.
        agented: Numbers of those that an agent runs.
        seed: Seed of all random numbers.
        refresh_interval: How often a node reads the store.
    """

    secret_id: Final = "cluster/root"

    def __init__(
        self,
        provider: SecretProvider,
        document: IdentityDocument,
        *,
        clock: FakeClock,
        nodes: int = 3,
        unmodified: Iterable[int] = (),
        agented: Iterable[int] = (),
        seed: int = 0,
        refresh_interval: timedelta = timedelta(seconds=30),
    ) -> None:
        self.provider = provider
        self.clock = clock
        self.random = random.Random(seed)
        self.refresh_interval = refresh_interval
        self.nodes = [
            HerdNode(
                self,
                f"node-{number}",
                document,
                unmodified=number in set(unmodified),
                is_agented=number in set(agented),
            )
            for number in range(nodes)
        ]
        self.clients: list[HerdClient] = []
        clock.on_tick = self.step

    @classmethod
    async def start(
        cls, provider: SecretProvider, *, clock: FakeClock, lifetime: timedelta = timedelta(days=90), **options: Any
    ) -> Herd:
        """Create an identity in the store and a herd that has loaded it; `options` as for the class."""
        root = OwnedSession.generate(session_id="root-a", owner=ROOT_OWNER, now_ms=clock.now_ms(), lifetime=lifetime)
        document = create_document(root, clock.now_ms())
        await provider.create(cls.secret_id, encode_document(document))
        return cls(provider, document, clock=clock, **options)

    async def add_clients(self, count: int, *, at: HerdNode | None = None, home: HerdNode | None = None) -> None:
        """Create a session for each of `count` clients, at some node or at `at`, and spread the sessions."""
        for _ in range(count):
            owned, _ = await (at or self.random.choice(self.nodes)).create_session()
            self.clients.append(HerdClient(self, owned, len(self.clients), home))
        await self.spread()

    async def step(self) -> None:
        """Run one round: reads of the store, sync between peers, one write and one request of each client."""
        for node in self.nodes:
            await node.tick()
        await self.spread()
        for client in self.clients:
            if client.connected:
                client.write()
                await client.sync()

    async def spread(self) -> None:
        """Let every node sync once with each of its peers."""
        for node in self.nodes:
            for peer in node.known_peers():
                await node.sync_with(peer)

    async def settle(self, rounds: int = 15) -> None:
        """Stop writing, and run rounds until everything that will arrive has arrived."""
        for _ in range(rounds):
            self.clock.turn(self.refresh_interval)
            for node in self.nodes:
                await node.tick()
            await self.spread()
            for client in self.clients:
                if client.connected:
                    await client.sync()

    @property
    def refused(self) -> int:
        """How many requests of clients were refused."""
        return sum(client.refused for client in self.clients)

    def lost(self) -> list[str]:
        """Return the ids of written notes that some reachable node does not hold. Ask after `settle`."""
        written = [commit.id for client in self.clients for commit in client.written]
        alive = [node for node in self.nodes if not node.faults.cut_off]
        return [commit_id for commit_id in written if not all(node.holds(DATA, commit_id) for node in alive)]

    def unverifiable(self, *paths: str) -> list[str]:
        """Return the ids of commits that some node holds and that some reachable node would reject today.

        Args:
            paths: The repositories to look at; all by default.
        """
        alive = [node for node in self.nodes if not node.faults.cut_off]
        held = {
            commit.id: commit
            for node in self.nodes
            for path in paths or (DATA, SESSIONS)
            for commit in node.commits(path)
        }
        return [commit.id for commit in held.values() if not all(_verifies(node.pool, commit) for node in alive)]

    def new_client_pool(self, roots: Iterable[Session]) -> TrustPool:
        """Return the trust pool of a new client: the roots that it got, and ``/sys/sessions``."""
        told = list(roots)
        own = OwnedSession.generate(session_id=self.new_id(), owner=None, now_ms=self.clock.now_ms())
        pool = TrustPool(org=ORG, current=own, roots=told)
        pool.offer_session_commits(self.nodes[0].commits(SESSIONS))
        return pool

    def new_id(self) -> str:
        """Return an id in GoatDB's form, from the herd's own dice."""
        return "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=24))

    def filter_of(self, ids: Collection[str]) -> BloomFilter:
        """Return the Bloom filter of what a process holds, with fresh seeds as GoatDB takes them."""
        size, fpr = filter_parameters(len(ids), 0, 1)
        seeds = [self.random.getrandbits(50) for _ in range(seed_count(size, fpr))]
        bloom = BloomFilter.for_size(size, fpr, seeds)
        bloom.update(ids)
        return bloom


def new_message(bloom: BloomFilter, size: int, commits: Iterable[Commit]) -> dict[str, Any]:
    """Return a sync message from the filter of the `size` commits that a process holds."""
    return SyncMessage(version=VERSION, filter=bloom, size=size, commits=[one.to_json() for one in commits]).to_json()


def find_missing(bloom: BloomFilter, commits: Iterable[Commit]) -> list[Commit]:
    """Return the commits that a filter does not contain."""
    held = list(commits)
    return [held[position] for position in bloom.find_missing([commit.id for commit in held])]


def _introduces_a_root(commit: Commit) -> bool:
    try:
        return session_from_commit(commit).is_root
    except DecodeError:
        return False


def _verifies(pool: TrustPool, commit: Commit) -> bool:
    try:
        pool.verify_commit(commit)
    except VerificationError:
        return False
    return True
