"""Run one organization: its identity, trust pool, engine, data directory and peers.

`goatherd.node.server` handles HTTP. `goatherd.node.engine` makes the decisions without I/O. This module gives the
engine the time, ids, threads and a disk, and makes the flushes and notifications that the engine's responses request.
The module also keeps commits from peers whose signers are not trusted yet (`PendingCommits`).

Rules:

* Only the event loop's thread changes the engine and the trust pool. Other threads run the steps that the engine
  yields, and flush logs.
* No commit is sent before it is on the disk. An answer that confirms or contains commits waits until these commits are
  flushed (GoatDB does not wait). One flush serves all waiting requests (group commit).
* A request that has started is completed even if its client disconnects.
* After a change of the identity, the new root makes the next signature, without a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import orjson

from goatherd.admission.access import AccessRule
from goatherd.clock import Clock, SystemClock
from goatherd.cluster.client import NO_SERVER, NodeClient
from goatherd.cluster.first_identity import rejection_source
from goatherd.cluster.introductions import introduction_source
from goatherd.cluster.server_answers import LogsReport
from goatherd.errors import (
    AccessDeniedError,
    AuthorMismatchError,
    GoatherdError,
    InvalidSignatureError,
    RevokedSessionError,
    SettingsError,
    StorageError,
    UnknownSignerError,
    UntrustedRootError,
    VerificationError,
)
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession, Session, SignatureEnvelope
from goatherd.identity.settings_json import SETTINGS_NAME
from goatherd.ids import new_id as random_id
from goatherd.ids import new_seeds
from goatherd.node.data_check import DataCheck
from goatherd.node.engine import (
    CANNOT_SIGN,
    CANNOT_WRITE,
    Engine,
    EngineStep,
    EngineSteps,
    Ingested,
    Response,
    drive_steps,
)
from goatherd.node.expiry_warning import ExpiryWatch
from goatherd.node.frozen_commits import FOLDER, FrozenCommitStore
from goatherd.node.log_storage import GroupCommit, LogDirectory, TrackedLog, TrackedUnusedLog
from goatherd.node.management import refuse_unless_root
from goatherd.node.peer import FIRST_PATHS, Peer, PeerStatus
from goatherd.node.repository import Item, Log, Repository
from goatherd.node.unused_session_exchange import UnusedSessionExchange
from goatherd.node.unused_sessions import MAX_UNUSED, UNUSED_LOG, UnusedSessions
from goatherd.remote_keys import MOST_AT_ONCE, RootSigners, run_remote
from goatherd.serving.caller_limiter import LONGEST_PAUSE
from goatherd.serving.caller_limits import Rate, TokenBuckets
from goatherd.serving.server_url import masked
from goatherd.serving.signals import cancel_tasks
from goatherd.settings.base import (
    DBSettings,
    Origin,
    SettingsProvider,
    SettingsSource,
    SettingsStatus,
    describe_identity,
)
from goatherd.telemetry import Event, event_text
from goatherd.times import milliseconds
from goatherd.trust import TrustPool, Verification
from goatherd.wire.javascript_values import exact_date_ms, seconds_from_ms
from goatherd.wire.json import to_json_bytes
from goatherd.wire.paths import SESSIONS_PATH, check_repository_path
from goatherd.wire.schema import BUILTIN, Registry

PENDING_COMMITS: Final = 10_000
PENDING_BYTES: Final = 64 * 1024 * 1024
FORGED_COMMITS: Final = 20_000
RETRY_REST: Final = 4
"""Pause after a verification of all pending commits, as a multiple of its duration."""


class PendingCommits:
    """Hold commits whose signers are not trusted yet, to verify them again when the trusted sessions change.

    If there are too many commits or bytes, the oldest commits are dropped.
    """

    def __init__(self) -> None:
        self._commits: OrderedDict[bytes, tuple[str, Any]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._commits)

    def __contains__(self, fingerprint: bytes) -> bool:
        return fingerprint in self._commits

    def add_commit(self, fingerprint: bytes, path: str, commit: Any) -> None:
        if fingerprint in self._commits:
            return
        self._commits[fingerprint] = (path, commit)
        self._bytes += len(fingerprint)
        while len(self._commits) > PENDING_COMMITS or self._bytes > PENDING_BYTES:
            dropped, _ = self._commits.popitem(last=False)
            self._bytes -= len(dropped)

    def take_all(self) -> dict[str, list[Any]]:
        """Return all pending commits by repository, ``/sys/sessions`` first, and remove them from this object."""
        by_path: dict[str, list[Any]] = {}
        for path, commit in self._commits.values():
            by_path.setdefault(path, []).append(commit)
        self._commits.clear()
        self._bytes = 0
        return dict(sorted(by_path.items(), key=lambda pair: pair[0] not in FIRST_PATHS))


class ForgedCommits:
    """Remember commits of peers with a wrong signature, so that they are not verified again with each poll.

    COMPAT: GoatDB accepts commits in another session's name, and sends them again and again to a server that rejects
    them. A commit is remembered with the key of its session, in case a session of the same id is trusted later.
    """

    def __init__(self) -> None:
        self._keys: dict[bytes, bytes] = {}

    def add_commit(self, fingerprint: bytes, key: bytes) -> None:
        """Remember a commit whose signature does not match a key; without effect if there are very many already."""
        if len(self._keys) < FORGED_COMMITS:
            self._keys[hashlib.sha256(fingerprint).digest()] = key

    def find_keys(self, fingerprints: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return, for each of these commits that is remembered, the key that does not match. Any thread may call it."""
        if not self._keys:
            return {}
        found = ((one, self._keys.get(hashlib.sha256(one).digest())) for one in fingerprints)
        return {one: key for one, key in found if key is not None}


def fingerprint_of(path: str, raw: Any) -> bytes:
    """Return bytes that identify a commit by its repository's path and its whole content.

    The commit's id alone does not identify the commit, because an attacker can send another commit with the same id.
    """
    try:
        return path.encode() + b"\0" + orjson.dumps(raw, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate
        return path.encode() + b"\0" + to_json_bytes(raw)


__all__ = ["Database", "DatabaseRepository"]

_log = logging.getLogger("goatherd.node")

R = TypeVar("R")

SETTLE: Final = timedelta(seconds=1)
MAX_LACKING: Final = 50
"""Maximum number of empty repositories that are requested from the peers because a client asked for them."""
PEER_TIMEOUT: Final = timedelta(seconds=30)
PENDING_BATCH: Final = 64
MANY_COMMITS: Final = 1000
"""Work on more commits of a peer is done in a thread, so that the event loop does not wait."""
WORK: Final = Rate(per_second=0.5, burst=20)
"""Processor seconds that a session's requests may use, beyond `FREE_WORK` for each, before they are delayed."""
FREE_WORK: Final = 0.05
VERIFY_AGAIN: Final = timedelta(seconds=1)
VERIFY_AGAIN_AT_MOST: Final = timedelta(minutes=1)
WRITE_AGAIN: Final = timedelta(seconds=2)
"""Pause before a failed write of a log is retried."""
SAY_AGAIN: Final = timedelta(minutes=1)
MERGE_AGAIN: Final = timedelta(seconds=2)
"""Pause before an HSM or a KMS is asked again to sign the merge of concurrent creations."""
SESSIONS_SIGNED_AT_ONCE: Final = MOST_AT_ONCE // 2
SESSIONS_WAITING: Final = 500
"""How many requests for a session may wait for an HSM or a KMS; further ones are answered with 503 at once."""

_JSON: Final = "application/json"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Reasons for a refusal that the arrival of a session can undo.
_MAY_CHANGE: Final = (UnknownSignerError, UntrustedRootError, AccessDeniedError, RevokedSessionError)
_FORGED: Final = (AuthorMismatchError, InvalidSignatureError)


class DataDirectory(Protocol):
    """The interface of the directory that holds a database's log files.

    Implemented by `goatherd.node.log_storage.LogDirectory` and by tests. Calls may block.
    """

    def acquire(self) -> None: ...

    def close(self) -> None: ...

    def open_log(self, repository: str) -> Log: ...

    def read_log(self, repository: str) -> Iterable[Any]:
        """Return the records that are stored in a repository's log, whether or not the log is open."""
        ...

    def repository_paths(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class _RepositoryView:
    """The commits of one open repository in the form in which `goatherd.node.peer.Peer` reads them."""

    repository: Repository

    @property
    def ids(self) -> Sequence[str]:
        return self.repository.shown_ids

    def encoded_commit(self, commit_id: str) -> bytes:
        commit = self.repository.get(commit_id)
        if commit is None:
            raise KeyError(commit_id)
        return commit.encoded


def _describe_peer(peer: PeerStatus) -> dict[str, Any]:
    return {"online": peer.online if peer.was_tried else None, "instances": list(peer.instances)}


class DatabaseRepository:
    """Read and write the items of one repository.

    Each write makes a commit that the current root signs, and returns when this commit is on the disk.

    Field values are in GoatDB's encoded form: JSON, with dates as seconds since 1970. A `datetime` must have a time
    zone, and is converted to this form, rounded down to a millisecond.

    A call that has begun is finished even if its caller is cancelled; a server that stops waits for it. After that,
    each call raises `StorageError`.
    """

    def __init__(self, database: Database, path: str) -> None:
        kind, name = check_repository_path(path)
        self._database = database
        self.path = f"/{kind}/{name}"

    async def get(self, key: str) -> Item | None:
        """Return the item with this key; None if the item does not exist or is deleted.

        Raises:
            StorageError: The repository cannot be read.
        """
        return await self._database.run_operation(self._get(key))

    async def _get(self, key: str) -> Item | None:
        engine = await self._open_repository()
        return engine.get_item(self.path, key)

    async def keys(self) -> list[str]:
        """Return the keys of all items of the repository that are not deleted.

        Raises:
            StorageError: The repository cannot be read.
        """
        return await self._database.run_operation(self._list_keys())

    async def _list_keys(self) -> list[str]:
        engine = await self._open_repository()
        return [
            key for key in engine.get_repository(self.path).item_keys() if engine.get_item(self.path, key) is not None
        ]

    async def create(self, key: str, schema: str, data: Mapping[str, Any]) -> Item:
        """Create an item in the repository.

        Args:
            key: The item's key: a-z, 0-9, ``-`` and ``_``.
            schema: The schema marker, such as ``note/1``. The schema need not be registered.
            data: The item's fields.

        Raises:
            ItemExistsError: The item exists already, or was created while an HSM or a KMS signed the commit.
            PathError, DecodeError, EncodeError: The key or the data are not allowed; a deleted item had another schema;
                the data are not a session in ``/sys/sessions``, or are a session elsewhere.
            StorageError: The item could not be written.
        """
        return await self._database.run_operation(self._create(key, schema, data))

    async def _create(self, key: str, schema: str, data: Mapping[str, Any]) -> Item:
        engine = await self._open_repository()
        engine.check_writable(self.path)
        now_ms = self._database.now_ms()
        await self._database.drive(engine.create_item_in_steps(self.path, key, schema, _encode_fields(data), now_ms))
        return await self._publish_item(key)

    async def set(self, key: str, data: Mapping[str, Any]) -> Item:
        """Replace all fields of an existing item.

        Raises:
            ItemNotFoundError: The item does not exist.
            DecodeError, EncodeError: The data are not allowed; in ``/sys/sessions``, they are not a session.
            StorageError: The item could not be written.
        """
        return await self._database.run_operation(self._set(key, data))

    async def _set(self, key: str, data: Mapping[str, Any]) -> Item:
        engine = await self._open_repository()
        engine.check_writable(self.path)
        now_ms = self._database.now_ms()
        await self._database.drive(engine.set_item_in_steps(self.path, key, _encode_fields(data), now_ms))
        return await self._publish_item(key)

    async def delete(self, key: str) -> None:
        """Delete the item with this key.

        Raises:
            ItemNotFoundError: The item does not exist.
            DecodeError: The item is a session. Clients would continue to trust it, so it cannot be deleted.
            StorageError: The deletion could not be written.
        """
        await self._database.run_operation(self._delete(key))

    async def _delete(self, key: str) -> None:
        engine = await self._open_repository()
        engine.check_writable(self.path)
        await self._database.drive(engine.delete_item_in_steps(self.path, key, self._database.now_ms()))
        await self._database.publish_changes(self.path)

    async def _open_repository(self) -> Engine:
        return await self._database.open_repository(self.path)

    async def _publish_item(self, key: str) -> Item:
        await self._database.publish_changes(self.path)
        item = (await self._open_repository()).get_item(self.path, key)
        if item is None:
            raise KeyError(key)  # deleted in the meantime
        return item


class Database:
    """One organization's database. Call `open` first and `aclose` last, on the same event loop.

    Args:
        org: The organization's id.
        directory: The data directory (a path, or an object that replaces it); locked while the database is open.
        settings: The settings provider that loads the organization's identity; the database enters and leaves its
            context.
        workers: Thread pool for the engine's work on requests.
        verifiers: Thread pool for the verification of signatures; must not be the same pool as `workers`.
        clock: Supplies the current time.
        registry: The application's schemas, in addition to GoatDB's own.
        rules: The application's access rules, in order.
        peers: URLs of the other servers.
        debug: Whether to answer a request for a new session without waiting for the other servers.
        new_id: Returns a new unique id.
        connect: Returns a client for a peer's URL; by default an HTTP client.
        unused_sessions: Maximum number of sessions that are kept out of ``/sys/sessions`` until they sign their first
            request; 0 introduces each session when it is created. Has no effect if the data are not on a disk: each
            session is then introduced at once.
        root_signers: The signers of roots whose keys are in an HSM or a KMS; none by default. The caller enters and
            leaves their context.

    Attributes:
        expiry: The watch that checks how long the current root is still valid.
        instance: A random id of this process's database. The id shows whether two URLs lead to the same server.
        paused_count: Number of requests that were delayed because their session had used too much processing time.
    """

    def __init__(
        self,
        *,
        org: str,
        directory: Path | DataDirectory,
        settings: SettingsProvider,
        workers: Executor,
        verifiers: Executor | None = None,
        clock: Clock | None = None,
        registry: Registry = BUILTIN,
        rules: Sequence[AccessRule] = (),
        peers: Sequence[str] = (),
        debug: bool = False,
        new_id: Callable[[], str] = random_id,
        connect: Callable[[str], NodeClient] | None = None,
        unused_sessions: int = MAX_UNUSED,
        root_signers: RootSigners | None = None,
    ) -> None:
        self.org = org
        self._directory: DataDirectory = LogDirectory(directory) if isinstance(directory, Path) else directory
        self._settings = settings
        self._workers = workers
        self._verifiers = verifiers
        self._clock: Clock = clock or SystemClock()
        self._registry = registry
        self._rules = tuple(rules)
        self._peer_urls = tuple(peers)
        self._debug = debug
        self._new_id = new_id
        self._connect = connect or self._connect_over_http
        self._engine: Engine | None = None
        self._disk = GroupCommit(self._on_disk_change)
        self._cannot_write = asyncio.Event()
        self._pending = PendingCommits()
        self._forged = ForgedCommits()
        self._paths: dict[str, None] = dict.fromkeys(FIRST_PATHS)
        self._lacking: OrderedDict[str, None] = OrderedDict()
        self._peers: list[Peer] = []
        self._running: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self._background: set[asyncio.Task[None]] = set()
        self._trust_changed = asyncio.Event()
        self._verifying = False
        self._frozen_commits: FrozenCommitStore | None = None
        self._data_check: DataCheck | None = None
        self._unused_capacity = unused_sessions
        self._exchange: UnusedSessionExchange | None = None
        self._root_signers = root_signers or RootSigners()
        self._is_withholding = asyncio.Event()
        self._session_turns = asyncio.Semaphore(SESSIONS_SIGNED_AT_ONCE)
        self._sessions_waiting = 0
        self._work = TokenBuckets(WORK)
        self.paused_count = 0
        self.expiry = ExpiryWatch(org, lambda: self._settings.settings.document, self._clock)
        self._stack = AsyncExitStack()
        self.instance = random_id()

    async def open(self) -> None:
        """Load the identity, lock and open the data directory, and start to synchronize with the peers.

        Raises:
            SettingsError, ProviderError, IdentityError: The identity cannot be loaded. No new one is created.
            StorageError: The data directory is in use or cannot be read.
        """
        try:
            await self._open_parts()
        except BaseException:
            await self.aclose()
            raise

    async def _open_parts(self) -> None:
        self._stack.callback(self._disk.close)
        await self._stack.enter_async_context(self._settings)
        if isinstance(self._settings, SettingsSource):
            self._settings.introductions = introduction_source(
                org=self.org,
                read_own=partial(self._directory.read_log, SESSIONS_PATH),
                peers=self._list_peers,
                connect=self._connect,
                clock=self._clock,
                connect_root=self._connect_root,
            )
            self._settings.rejections = rejection_source(
                peers=self._list_peers,
                connect=self._connect,
                clock=self._clock,
                connect_root=self._connect_root,
            )
        settings = await self._settings.load()
        self._stack.push_async_callback(asyncio.to_thread, self._directory.close)
        # A thread goes on when its caller is cancelled: `aclose` waits for it before it releases the lock.
        await self._run_to_end(asyncio.to_thread(self._directory.acquire))
        if (path := self.key_on_disk) is not None:
            advice = f"stop the server, and remove the key: goatherd migrate {path.parent} --remove-key"
            _log.warning("%s", event_text(Event.NODE_KEY_ON_DISK, org=self.org, file=path, hint=advice))
        document = self._connect_root(settings.document)
        pool = TrustPool.from_identity(document, org=self.org, trusted=settings.trusted)
        engine = Engine(
            org=self.org,
            pool=pool,
            open_log=self._open_log,
            new_id=self._new_id,
            new_seeds=new_seeds,
            registry=self._registry,
            rules=self._rules,
            instance=self.instance,
        )
        engine.on_withheld = self._is_withholding.set
        engine.on_damaged = self._fetch_again
        await self._run_to_end(asyncio.to_thread(engine.load_sessions))
        if engine.withheld_count:
            self._is_withholding.set()  # the engine has called from another thread
        self._engine = engine
        self._spawn_task(self._merge_withheld(), "merge what is withheld")
        self._paths.update(dict.fromkeys(await asyncio.to_thread(self._directory.repository_paths)))
        self._frozen_commits = FrozenCommitStore(
            engine=engine,
            folder=self._directory.path / FOLDER if isinstance(self._directory, LogDirectory) else None,
            repositories=self._directory.repository_paths,
            peers=lambda: [peer.client for peer in self._peers],
            clock=self._clock,
            changed=self._trust_changed.set,
        )
        self._frozen_commits.apply_document(document)
        if isinstance(self._directory, LogDirectory):
            self._directory.held_records = engine.held_records
            self._data_check = DataCheck(
                engine=engine,
                logs=self._directory,
                workers=self._workers,
                clock=self._clock,
                withheld=self._fetch_again,
            )
            self._spawn_task(self._data_check.run(), "check the data")
        self._stack.callback(self._settings.subscribe(self._adopt_settings))
        self._spawn_task(self._frozen_commits.run(), "fetch frozen lists")
        self._spawn_task(self._retry_writes(), "write again")
        self._spawn_task(self.expiry.run(), "watch the root's expiration")
        self._trust_changed.set()
        self._spawn_task(self._follow_trust(), "follow the trusted sessions")
        for url in self._peer_urls:
            client = await self._stack.enter_async_context(self._connect(url))
            peer = Peer(self, client, self._clock)
            self._peers.append(peer)
            self._spawn_task(peer.run(), f"peer {url}")
        if isinstance(self._directory, LogDirectory):
            self._stack.push_async_callback((await self._open_unused(self._directory, engine)).aclose)

    async def _open_unused(self, directory: LogDirectory, engine: Engine) -> UnusedSessionExchange:
        log = TrackedUnusedLog(directory.open_unused(), lambda log: self._disk.mark_dirty(log, UNUSED_LOG))
        unused = UnusedSessions(log, self._unused_capacity or MAX_UNUSED)
        await self._run_to_end(asyncio.to_thread(unused.load_log, engine.is_introduced, self.now_ms()))
        engine.unused = unused
        engine.on_first_use = lambda: self._spawn_task(self._publish_sessions(), "introduce a session")
        self._exchange = UnusedSessionExchange(
            engine=engine,
            unused=unused,
            clients=[peer.client for peer in self._peers],
            signer=self.current_signer,
            clock=self._clock,
            durable=lambda: self._disk.wait_until_durable([UNUSED_LOG]),
            publish=lambda: self.publish_changes(SESSIONS_PATH),
            drive=self.drive,
            is_wanted=self._unused_capacity > 0,
        )
        if self._unused_capacity or len(unused):
            self._spawn_task(self._exchange.run(), "exchange unused sessions")
        return self._exchange

    async def _publish_sessions(self) -> None:
        with suppress(StorageError):  # until they can be written, they are still among the unused ones
            await self.publish_changes(SESSIONS_PATH)

    async def _list_peers(self) -> Sequence[str]:
        return self._peer_urls

    def _connect_over_http(self, url: str) -> NodeClient:
        return NodeClient(url, timeout=PEER_TIMEOUT, clock=self._clock, sender=self.instance)

    async def aclose(self) -> None:
        """Finish running requests, stop the synchronization with peers, and flush and close the logs.

        Raises:
            StorageError: A log could not be written.
        """
        self._is_closed = True
        while self._running:
            await asyncio.wait(self._running)
        await cancel_tasks(*self._background)
        while self._running:  # what a peer had begun to take in
            await asyncio.wait(self._running)
        self._peers.clear()
        await self._stack.aclose()

    def _spawn_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=f"{self.org}: {name}")
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background task '%s' ended: %r", task.get_name(), error, exc_info=error)

    # --- what others need of it -------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine, which answers the requests of this organization.

        Raises:
            SettingsError: The database is not open.
        """
        if self._engine is None:
            raise SettingsError(f"the database of {self.org!r} is not open: call open() first")
        return self._engine

    @property
    def pool(self) -> TrustPool:
        """The trust pool: the sessions that this database trusts."""
        return self.engine.pool

    @property
    def peers(self) -> list[PeerStatus]:
        """The status of this server's synchronization with each peer."""
        return [peer.status for peer in self._peers]

    @property
    def withheld_count(self) -> int:
        """Number of items that are hidden until an HSM or a KMS has signed the merge of their concurrent creations."""
        return self.engine.withheld_count

    @property
    def signing_problem(self) -> str | None:
        """The code of the error that keeps this server from signing as the current root; None if it can sign."""
        return self._root_signers.find_problem(self.pool.current)

    def now_ms(self) -> int:
        """Return the current time in milliseconds since 1970."""
        return self._clock.now_ms()

    async def drive(self, steps: EngineSteps[R]) -> R:
        """Run a generator of the engine to its end, and return its result.

        Threads run the steps that the generator yields, so that the event loop does not wait.
        """
        return await drive_steps(steps, self._run_step)

    def repository(self, path: str) -> DatabaseRepository:
        """Return an object that reads and writes the items of the repository with this path.

        Raises:
            PathError: The path is not one that this server allows for a repository.
        """
        return DatabaseRepository(self, path)

    async def run_operation(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a call of the program that embeds the server to its end. `aclose` waits for it.

        Raises:
            StorageError: The database is closed.
        """
        if self._is_closed:
            work.close()
            raise StorageError(
                f"the database of organization {self.org!r} is closed, because its server was stopped",
                hint="While the server runs, `server.database().repository(path)` returns a repository that is open.",
            )
        return await self._run_to_end(work)

    async def open_repository(self, path: str) -> Engine:
        """Open the repository with this path, and return the engine, which then holds the repository.

        A thread reads the repository's log, so that the event loop does not wait.
        """
        await self.drive(self.engine.open_in_steps(path))
        return self.engine

    async def publish_changes(self, path: str) -> None:
        """Write a repository's new commits durably to the disk, then notify the peers.

        Raises:
            StorageError: The commits could not be written.
        """
        await self._disk.wait_until_durable([path])
        if path == SESSIONS_PATH:
            self._trust_changed.set()
        self._notify_peers(path)

    async def wait_for_peers(self, path: str, timeout: timedelta) -> bool:
        """Push a repository's new commits to every peer; return whether all peers have answered within `timeout`."""
        watchers = {peer.push_changes(path) for peer in self._peers}
        if not watchers:
            return True
        done, late = await asyncio.wait(watchers, timeout=timeout.total_seconds())
        for watcher in late:
            watcher.cancel()
        return not late and all(watcher.result() for watcher in done)

    # --- requests ---------------------------------------------------------------------------------------------------

    async def answer_sync(
        self,
        body: bytes,
        header: str | SignatureEnvelope | None,
        *,
        admit: Callable[[str], None] = lambda _: None,
        sender: str | None = NO_SERVER,
        verified_by: Session | None = None,
    ) -> Response:
        """Answer ``POST /batch-sync``, the request with which clients and servers synchronize repositories.

        Args:
            body: The request's body.
            header: The request's signature: the value of the header ``x-goat-sig``, or its parsed form; None without
                the header.
            admit: Called with the id of the session that signed the request, unless the session is a root. It raises an
                exception to reject the request.
            sender: Id of the server process that sent the request, from `SENDER_HEADER`; None if the request has no
                such header, and `NO_SERVER` if the sender is not a server.
            verified_by: The session that `find_signer` returned for this header, so that the signature is not verified
                twice; None if `find_signer` was not called.
        """
        if len(self._work) and (pause := self._pause_for(header)):
            self.paused_count += 1
            await self._clock.sleep(timedelta(seconds=pause))
        failures = self._disk.failure_count
        steps = self.engine.batch_sync(header, body, self.now_ms(), admit, verified_by)
        try:
            first = next(steps)
        except StopIteration as done:
            # Most polls end here, and need no task of their own.
            response: Response = done.value
            self._note_asker(response, sender)
            if not response.changed_paths:
                return await self._finish_response(response, failures)
            return await self._run_to_end(self._finish_response(response, failures))
        return await self._run_to_end(self._answer_in_steps(steps, first, failures, sender))

    async def _answer_in_steps(
        self, steps: EngineSteps[Response], first: EngineStep, failures: int, sender: str | None
    ) -> Response:
        spent = 0.0

        def run(step: EngineStep) -> Any:
            nonlocal spent
            begun = time.thread_time()
            try:
                return step.run(self._verifiers)
            finally:
                spent += time.thread_time() - begun

        async def run_aside(step: EngineStep) -> Any:
            if step.is_remote:
                return await self._run_step(step)
            return await asyncio.get_running_loop().run_in_executor(self._workers, run, step)

        response = await drive_steps(steps, run_aside, first)
        if response.requester is not None and spent > FREE_WORK:
            self._work.charge(response.requester, self._clock.monotonic(), spent - FREE_WORK)
        self._note_asker(response, sender)
        return await self._finish_response(response, failures)

    def _note_asker(self, response: Response, sender: str | None) -> None:
        if response.status == 200 and response.requester is None and self._exchange is not None:
            self._exchange.note_asker(sender)

    def _pause_for(self, header: str | SignatureEnvelope | None) -> float:
        """Return how many seconds to delay a request because its session has recently used too much processing time.

        The session that the header names is not verified yet. A request that falsely names another session delays only
        itself.
        """
        if not isinstance(header, SignatureEnvelope):
            return 0.0
        return min(self._work.seconds_until(header.session_id, self._clock.monotonic()), LONGEST_PAUSE)

    async def find_signer(self, header: str | SignatureEnvelope | None) -> Session | None:
        """Return the session that signed a request; None if the signature is invalid.

        The server calls this before it reads a large body, so that only trusted sessions can send one.
        """
        try:
            return await self.drive(self.engine.authenticate_request(header or "", self.now_ms()))
        except VerificationError:
            return None

    async def answer_session(self, body: bytes) -> Response:
        """Answer ``POST /auth/session``, with which a client creates an anonymous session."""
        return await self._run_to_end(self._answer_session(body))

    async def _answer_session(self, body: bytes) -> Response:
        exchange = self._exchange if self._exchange is not None and self._exchange.may_defer else None
        if self.pool.current.is_remote:
            made = await self._sign_session(body)
        else:
            made = self.engine.create_session(body, self.now_ms(), is_deferred=exchange is not None)
        response = await self._finish_response(made, self._disk.failure_count)
        if response.unused is None or exchange is None or await exchange.share_session(response.unused):
            return response
        await self.drive(self.engine.introduce_in_steps(response.unused, self.now_ms()))
        changed = frozenset({SESSIONS_PATH})
        return await self._finish_response(
            replace(response, flush=changed, changed_paths=changed, wait_for_peers=True, unused=None),
            self._disk.failure_count,
        )

    async def _sign_session(self, body: bytes) -> Response:
        """Create a session whose commit in ``/sys/sessions`` is signed by an HSM or a KMS.

        Only a few sessions are signed at the same time, so that requests to peers can be signed meanwhile. If too many
        requests for a session wait already, the answer is 503.
        """
        if self._sessions_waiting >= SESSIONS_WAITING:
            return CANNOT_SIGN
        self._sessions_waiting += 1
        try:
            async with self._session_turns:
                return await self.drive(self.engine.create_session_in_steps(body, self.now_ms()))
        finally:
            self._sessions_waiting -= 1

    async def answer_unused(self, body: bytes, header: str | None) -> Response:
        """Answer ``POST /goatherd/v1/unused``: exchange sessions that have not signed a request yet with a peer.

        This server stores the sessions in the request, and returns its own such sessions if the request asks for them.
        The request must be signed by a root.
        """
        if self._exchange is None:
            return Response(status=404)
        return await self._run_to_end(self._exchange.answer_request(body, header))

    @property
    def unused(self) -> tuple[int, int]:
        """Number of stored sessions that have signed no request yet, and of those dropped because of the limit."""
        unused = self.engine.unused
        return (0, 0) if unused is None else (len(unused), unused.dropped_count)

    async def answer_refresh(self, body: bytes, header: str | None) -> Response:
        """Answer ``POST /goatherd/v1/refresh``: read the settings from the store now, if a root signed the request."""
        path = "/goatherd/v1/refresh"
        if refusal := await refuse_unless_root(self.engine, path, body, header, now_ms=self.now_ms()):
            return refusal
        changed = await self._settings.refresh()
        answer = {"generation": self._settings.settings.document.generation, "changed": changed}
        return Response(status=200, body=to_json_bytes(answer), content_type=_JSON)

    async def answer_peers(self, body: bytes, header: str | None) -> Response:
        """Answer ``POST /goatherd/v1/peers``: the peers with their URLs, if a root signed the request.

        SECURITY: the public report leaves the URLs out, so only a root gets them (tests/unit/node/test_server.py).
        """
        path = "/goatherd/v1/peers"
        if refusal := await refuse_unless_root(self.engine, path, body, header, now_ms=self.now_ms()):
            return refusal
        peers = [{**_describe_peer(one), "url": masked(one.url)} for one in self.peers]
        return Response(status=200, body=to_json_bytes({"peers": peers}), content_type=_JSON)

    @property
    def document(self) -> IdentityDocument:
        """The identity document that this database uses at present, including private keys."""
        return self._settings.settings.document

    @property
    def status(self) -> SettingsStatus:
        """How fresh the identity in use is, and the result of the latest reads from its source."""
        return self._settings.status

    @property
    def frozen_commits(self) -> FrozenCommitStore:
        """The store of frozen-commit lists, which name those commits of revoked roots that stay valid.

        Raises:
            SettingsError: The database is not open.
        """
        if self._frozen_commits is None:
            raise SettingsError(f"the database of {self.org!r} is not open: call open() first")
        return self._frozen_commits

    @property
    def data(self) -> LogsReport | None:
        """What the check of the log files has found so far; None if the data are not on a disk."""
        if self._data_check is None:
            return None
        return replace(self._data_check.status, unwritable=len(self._disk.failing))

    @property
    def key_on_disk(self) -> Path | None:
        """The settings.json in the data directory, which holds a private key; None if it is the server's source.

        Also None if there is no such file.
        """
        if self._settings.status.origin is Origin.FILE or not isinstance(self._directory, LogDirectory):
            return None
        path = self._directory.path / SETTINGS_NAME
        return path if path.is_file() else None

    def describe_identity(self) -> dict[str, Any]:
        """Return the answer to ``GET /goatherd/v1/identity``: ids and numbers that describe the identity in use.

        SECURITY: the answer is built from single ids, never from a whole document (tests/cluster/test_exchanges.py).
        """
        pool = self.pool
        return {
            "org": self.org,
            "signer": pool.current.id,
            "roots": list(pool.root_ids),
            **describe_identity(self._settings.settings.document, self._settings.status),
            "documentRoots": list(pool.document_root_ids),
            "revoked": sorted(pool.revoked),
            "known": pool.known_count,
            "pending": pool.pending_count,
            "data": None if (data := self.data) is None else data.to_json(),
            "instance": self.instance,
            # URLs are left out: callers of this public endpoint need not learn where the other servers are.
            "peers": [_describe_peer(one) for one in self.peers],
            "nowMs": self.now_ms(),
            # Before a rotation into direct mode, each server must report that it can sign with the next root.
            "rootSigners": self._root_signers.states,
            "signingProblem": self.signing_problem,
            "keyOnDisk": self.key_on_disk is not None,
        }

    async def _finish_response(self, response: Response, failures: int) -> Response:
        """Do what a response requires before it is sent: flush logs, notify peers, and wait for the peers.

        Args:
            response: The response that will be sent.
            failures: The value of `GroupCommit.failure_count` before the response was built. If the count has grown
                since, the response may contain commits that are not on the disk, and is built again.
        """
        for commit_id, error in response.refused:
            _log.debug("commit %s was rejected: %s: %s", commit_id, error.code, error)
        # Wait for the writes of other requests, too: this answer may contain commits that they have just stored.
        try:
            is_whole = await self._disk.wait_until_durable(response.flush)
        except StorageError:
            return CANNOT_WRITE
        if response.again is not None and not (is_whole and self._disk.failure_count == failures):
            failures = self._disk.failure_count
            anew = await self._run_to_end(self.drive(response.again()))
            anew = replace(anew, flush=response.flush, changed_paths=response.changed_paths, refused=response.refused)
            return await self._finish_response(anew, failures)
        if SESSIONS_PATH in response.changed_paths:
            self._trust_changed.set()
        for path in response.changed_paths:
            self._notify_peers(path)
        for path in response.lacking:
            self._request_from_peers(path)
        if response.wait_for_peers and not self._debug:
            # COMPAT: GoatDB waits a second before it answers, so that its peers know the session before the client
            # sends them requests.
            await self.wait_for_peers(SESSIONS_PATH, SETTLE)
        return response

    async def _run_to_end(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine to its end even if its caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _run_step(self, step: EngineStep) -> Any:
        if step.is_remote:
            return await run_remote(partial(step.run, None))
        return await asyncio.get_running_loop().run_in_executor(self._workers, step.run, self._verifiers)

    # --- identity ---------------------------------------------------------------------------------------------------

    def _adopt_settings(self, settings: DBSettings) -> None:
        before = self.pool.current.id
        self.pool.adopt_document(self._connect_root(settings.document))
        self.pool.replace_trusted(settings.trusted)
        self.frozen_commits.apply_document(settings.document)
        self.expiry.check_expiry()
        if self.pool.current.id != before:
            fields = {"org": self.org, "root": self.pool.current.id, "before": before}
            _log.info("%s", event_text(Event.NODE_SIGNER, **fields))
        self._trust_changed.set()
        for peer in self._peers:
            peer.sync_now()

    def _connect_root(self, document: IdentityDocument) -> IdentityDocument:
        """Return the document with a current root that signs through the opened signer of its HSM or KMS.

        If the document itself contains the root's private key, return the document unchanged.
        """
        if not document.current.is_remote:
            return document
        return replace(document, current=self._root_signers.connect(document.current))

    async def _merge_withheld(self) -> None:
        """Merge, until cancelled, concurrent creations that stay hidden until an HSM or a KMS signs their merge."""
        while True:
            await self._is_withholding.wait()
            self._is_withholding.clear()
            while self.engine.withheld_count:
                try:
                    path = await self.drive(self.engine.merge_withheld())
                    if path is not None:
                        await self.publish_changes(path)
                except GoatherdError as error:
                    _log.debug("%s: cannot merge concurrent creations: %s", self.org, error)
                    await self._clock.sleep(MERGE_AGAIN)
                except Exception:  # noqa: BLE001 - a loop that ended would leave items hidden
                    _log.exception("%s: cannot merge concurrent creations", self.org)
                    await self._clock.sleep(MERGE_AGAIN)

    async def _verify_sessions(self) -> None:
        """Verify, in the background, the session commits that no request has needed to verify yet."""
        rest, limit = VERIFY_AGAIN, PENDING_BATCH
        try:
            while self.pool.queued_count:
                verification: Verification | None = None
                try:
                    verification = self.pool.prepare_pending(limit)
                    await asyncio.get_running_loop().run_in_executor(self._workers, verification.run)
                    self.pool.conclude_verification(verification)
                    rest = VERIFY_AGAIN
                except Exception:  # noqa: BLE001 - what one batch does must not leave the others unverified
                    _log.exception("%s: cannot verify sessions; retrying in %s", self.org, rest)
                    if verification is not None:
                        self.pool.requeue(verification)
                    limit = 1
                    await self._clock.sleep(rest)
                    rest = min(2 * rest, VERIFY_AGAIN_AT_MOST)
        finally:
            self._verifying = False

    # --- the disk ---------------------------------------------------------------------------------------------------

    def _open_log(self, path: str) -> TrackedLog:
        return TrackedLog(self._directory.open_log(path), lambda log: self._disk.mark_dirty(log, path))

    def _on_disk_change(self, path: str, can_be_written: bool) -> None:
        self.engine.note_writable(path, can_be_written)
        if not can_be_written:
            self._cannot_write.set()
            return
        if path == UNUSED_LOG:
            return
        if path == SESSIONS_PATH:
            self._trust_changed.set()
        self._notify_peers(path)

    async def _retry_writes(self) -> None:
        """Write the logs whose last write failed, trying again at intervals, until cancelled."""
        while True:
            await self._cannot_write.wait()
            said_at = -SAY_AGAIN.total_seconds()
            while failing := self._disk.failing:
                if self._clock.monotonic() - said_at >= SAY_AGAIN.total_seconds():
                    said_at = self._clock.monotonic()
                    fields = {"org": self.org, "repositories": len(failing), "error": next(iter(failing.values()))}
                    _log.error("%s", event_text(Event.DATA_UNWRITABLE, **fields))
                await self._clock.sleep(WRITE_AGAIN)
                try:
                    await self._disk.retry_failed()
                except Exception:  # noqa: BLE001 - a loop that ended would leave this server unwritable
                    _log.exception("%s: cannot retry the failed writes", self.org)
            self._cannot_write.clear()
            _log.info("%s", event_text(Event.DATA_WRITABLE, org=self.org))

    # --- peers ------------------------------------------------------------------------------------------------------

    def current_signer(self) -> OwnedSession:
        """Return the session that currently signs this server's requests to peers."""
        return self.pool.current

    def synced_paths(self) -> Sequence[str]:
        """Return the paths of the repositories to synchronize, in the order in which to send them."""
        return list(self._paths)

    async def open_view(self, path: str) -> _RepositoryView:
        """Open a repository so that a peer can read its commits.

        SECURITY: clients may request any path, so a repository that no server holds must not stay in memory
        (tests/unit/node/test_peer.py).
        """
        return _RepositoryView(await self.drive(self.engine.peek_in_steps(path)))

    async def store_commits(self, path: str, commits: Sequence[Any]) -> int:
        """Verify and store the commits that a peer sent; return how many were new.

        Commits that cannot be verified yet are kept, up to a limit, and verified again when the trusted sessions
        change.

        Raises:
            StorageError: The commits could not be written.
        """
        return await self._run_to_end(self._store_commits(path, commits))

    async def _store_commits(self, path: str, commits: Sequence[Any]) -> int:
        if len(commits) > MANY_COMMITS:
            fresh, forged = await asyncio.to_thread(self._find_fresh, path, commits)
        else:
            fresh, forged = self._find_fresh(path, commits)
        for fingerprint, key in forged.items():
            if self._find_key(fresh[fingerprint]) == key:
                del fresh[fingerprint]
        if not fresh:
            return 0
        done = await self.drive(self.engine.ingest_commits(path, list(fresh.values()), self.now_ms()))
        early = {commit_id for commit_id, error in done.refused if isinstance(error, _MAY_CHANGE)}
        if early:
            for fingerprint, raw in fresh.items():
                # A commit that could not be decoded may have an id of any type.
                if isinstance(raw, dict) and isinstance(commit_id := raw.get("id"), str) and commit_id in early:
                    self._pending.add_commit(fingerprint, path, raw)
        self._note_forged(fresh, done)
        await self._disk.wait_until_durable([path])
        if done.accepted:
            if path == SESSIONS_PATH:
                self._trust_changed.set()
            self._notify_peers(path)
        return len(done.accepted)

    def _find_fresh(self, path: str, commits: Sequence[Any]) -> tuple[dict[bytes, Any], dict[bytes, bytes]]:
        """Return the commits that are not pending, by fingerprint, and which of them had a wrong signature before."""
        found = {fingerprint_of(path, raw): raw for raw in commits}
        fresh = {fingerprint: raw for fingerprint, raw in found.items() if fingerprint not in self._pending}
        return fresh, self._forged.find_keys(fresh)

    def _note_forged(self, fresh: Mapping[bytes, Any], done: Ingested) -> None:
        wrong = {commit_id for commit_id, error in done.refused if isinstance(error, _FORGED)}
        if not wrong:
            return
        # A good commit can have the same id.
        ids = Counter(raw["id"] for raw in fresh.values() if isinstance(raw, dict) and isinstance(raw.get("id"), str))
        for fingerprint, raw in fresh.items():
            if isinstance(raw, dict) and isinstance(one := raw.get("id"), str) and one in wrong and ids[one] == 1:
                key = self._find_key(raw)
                if key is not None:
                    self._forged.add_commit(fingerprint, key)

    def _find_key(self, raw: Any) -> bytes | None:
        session_id = raw.get("s") if isinstance(raw, dict) else None
        if not isinstance(session_id, str) or not self.pool.knows_session(session_id):
            return None
        try:
            return self.pool.get_session(session_id).public_key.raw
        except VerificationError:
            return None

    def _fetch_again(self, path: str) -> None:
        self._paths[path] = None
        for peer in self._peers:
            peer.resync_path(path)

    def _request_from_peers(self, path: str) -> None:
        """Request a repository from the peers, because a client has asked for it and this server has no commit of it.

        SECURITY: clients may ask for any path, so only the `MAX_LACKING` paths that were asked for last are requested
        (tests/unit/node/test_peer.py).
        """
        if path in self._paths:
            return
        while len(self._lacking) >= MAX_LACKING:
            oldest, _ = self._lacking.popitem(last=False)
            self._paths.pop(oldest, None)
            for peer in self._peers:
                peer.stop_syncing(oldest)
        self._lacking[path] = self._paths[path] = None
        for peer in self._peers:
            peer.mark_changed(path, pull=True)

    def _notify_peers(self, path: str) -> None:
        self._paths[path] = None
        self._lacking.pop(path, None)
        for peer in self._peers:
            peer.mark_changed(path)

    async def _follow_trust(self) -> None:
        """Verify pending commits again, at the start and whenever a new session becomes trusted.

        Pending commits are commits from peers whose signers were not trusted yet. A failure is logged and retried after
        a pause: a loop that ended would leave sessions unknown, and commits pending, until the next start.
        """
        rest = VERIFY_AGAIN
        while True:
            await self._trust_changed.wait()
            self._trust_changed.clear()
            if self.pool.queued_count and not self._verifying:
                self._verifying = True
                self._spawn_task(self._verify_sessions(), "verify sessions")
            began = self._clock.monotonic()
            if not await self._retry_pending():
                self._trust_changed.set()
                await self._clock.sleep(rest)
                rest = min(2 * rest, VERIFY_AGAIN_AT_MOST)
                continue
            rest = VERIFY_AGAIN
            if self._pending:  # 10 000 commits take 0.25 s and more: not after each new session
                await self._clock.sleep(timedelta(seconds=RETRY_REST * (self._clock.monotonic() - began)))

    async def _retry_pending(self) -> bool:
        """Verify all pending commits again; return False if this failed.

        Commits that were not reached before the failure stay pending.
        """
        by_path = self._pending.take_all()
        while by_path:
            path, commits = next(iter(by_path.items()))
            try:
                with suppress(GoatherdError):
                    await self.store_commits(path, commits)
            except Exception:  # noqa: BLE001 - see `_follow_trust`
                _log.exception("%s: cannot verify pending commits of %s; retrying", self.org, path)
                for failed, left in by_path.items():
                    for raw in left:
                        self._pending.add_commit(fingerprint_of(failed, raw), failed, raw)
                return False
            del by_path[path]
        return True


def _encode_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _encode_field(value) for name, value in data.items()}


def _encode_field(value: Any) -> Any:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise TypeError("a datetime must have a time zone")
        # COMPAT: GoatDB reads dates with milliseconds; with microseconds, no GoatDB server could verify the commit.
        return seconds_from_ms(exact_date_ms(milliseconds(value - _EPOCH)))
    return value
