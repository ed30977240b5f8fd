"""Answer GoatDB's sync and session requests for one organization. Pure: takes bytes, returns a `Response`.

The module does no I/O, reads no clock and uses no randomness. It answers GoatDB's own endpoints; Goatherd's management
endpoints are in `goatherd.node.management` and `goatherd.node.frozen_commits`.

Steps
    Long work is cut into steps, so that the caller can run it in threads although this code starts none. `batch_sync`,
    `ingest_commits` and `open_in_steps` are generators. Each `EngineStep` that a generator yields is work for a thread:
    the driver calls ``step.run()`` and sends the result back. All other code runs on the event loop's thread, to which
    the engine belongs. `load_sessions` (blocking, once, before serving) opens ``/sys/sessions`` and ``/sys/users``;
    `create_session` answers at once::

        response = await drive_steps(engine.batch_sync(header, body, now_ms), run)   # run: async, step -> its result
        response = drive_inline(engine.batch_sync(header, body, now_ms))             # tests, tools

        async def run(step):
            return await loop.run_in_executor(workers, step.run, verify_pool)    # verify_pool: another executor or None

    Several requests can be in progress; each checks the state again after every step. A generator must run to its end,
    even if the client has disconnected (COMPAT): shield it from cancellation.

    Before the answer is sent, the logs of `Response.flush` must be durable. Afterwards the peers are notified of
    `Response.changed_paths`. If `Response.wait_for_peers` is true, the caller waits up to a second for the peers, as
    GoatDB does after a new session. `ingest_commits` stores commits that were pulled from a peer; the caller then
    flushes and notifies in the same way.

Order within a batch. A batch has one element for each repository. Commits for ``/sys/sessions`` are stored first, then
those for ``/sys/users``, then the others. Within ``/sys/sessions``, commits by unknown signers are verified again after
each new session, until nothing changes. So the order of a batch does not matter (GoatDB drops commits that come before
the session that signed them). Replies keep the order of the request.

docs/reference/compatibility.md lists the differences from GoatDB 0.5.1. In direct mode, an item of which two creations
must be merged is hidden until an HSM or a KMS has signed the merge.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from goatherd.admission.access import Access, AccessRule, Rulebook
from goatherd.admission.requests import check_filter_size, decode_session_request, read_repository_path
from goatherd.errors import (
    AccessDeniedError,
    DecodeError,
    GoatherdError,
    OtherServerError,
    PathError,
    SignerError,
    StorageError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.identity.request_binding import MISDIRECTED, RequestGuard, digest_body, read_binding
from goatherd.identity.session import (
    SESSION_LIFETIME,
    OwnedSession,
    Session,
    SignatureEnvelope,
    parse_signature,
    sign_commit,
    verify_commit,
)
from goatherd.identity.session_commits import SESSIONS_SCHEMA, session_fields
from goatherd.node.commit_checks import check_against, is_damaged, read_commit
from goatherd.node.concurrent_creation import merge_creations, portions_of, unmerged_creations
from goatherd.node.repository import Authorship, Item, Log, Repository, Seeds
from goatherd.node.unused_sessions import UNUSED_LOG, UnusedSessions
from goatherd.node.views import BIG_VIEW, ReplyBudget, SyncLimits, Views
from goatherd.times import milliseconds
from goatherd.trust import TrustPool, Verification
from goatherd.wire.batch import PORTION_COMMITS, SMALL_BODY, RawCommits, begins_array, is_light, read_batch
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.javascript_values import exact_date_ms
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.messages import VERSION, SyncMessage, encode_reply
from goatherd.wire.paths import SESSIONS_PATH, USERS_PATH, check_repository_path
from goatherd.wire.schema import BUILTIN, Registry

if TYPE_CHECKING:
    from concurrent.futures import Executor


R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class EngineStep:
    """One part of a request's work that may run in a thread.

    The work uses only data that no other thread changes meanwhile.

    Attributes:
        work: The function that does the work. Its argument is an executor that verifies signatures in parallel, or
            None.
        is_remote: Whether the work waits for an HSM or a KMS to sign. The driver must then run it in a separate thread,
            so that slow signatures do not delay other work.
    """

    work: Callable[[Executor | None], Any]
    is_remote: bool = False

    def run(self, executor: Executor | None = None) -> Any:
        """Do this part of the work in the calling thread.

        If `executor` is given, its threads verify signatures in parallel; the calling thread must not be one of them.
        """
        return self.work(executor)


EngineSteps = Generator[EngineStep, Any, R]


def drive_inline(steps: EngineSteps[R]) -> R:
    """Run a generator and all the steps that it yields in the calling thread; return the generator's result.

    An error of a step is raised inside the generator.
    """
    try:
        step = next(steps)
        while True:
            try:
                result = step.run()
            except GoatherdError as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        answer: R = done.value
        return answer


async def drive_steps(
    steps: EngineSteps[R], run: Callable[[EngineStep], Awaitable[Any]], first: EngineStep | None = None
) -> R:
    """Run a generator on the event loop, with `run` executing the steps that it yields; return the generator's result.

    An error of a step is raised inside the generator.

    Args:
        steps: The generator.
        run: Executes a step and returns its result.
        first: The step that the generator has yielded already; None if it has not been started.
    """
    try:
        step = first or next(steps)
        while True:
            try:
                result = await run(step)
            except GoatherdError as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as done:
        answer: R = done.value
        return answer


__all__ = ["Engine", "EngineStep", "EngineSteps", "Ingested", "Response", "drive_inline", "drive_steps"]

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain;charset=UTF-8"

_FEW_COMMITS = 16
_FEW_SIGNATURES = 2
_LIGHT = 256 * 1024
_MOST_REFUSALS = 1000
_MOST_USERS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The answer to a request, and what the caller must do before and after sending the answer.

    Attributes:
        status: HTTP status of the answer.
        body: The answer's body, possibly empty.
        content_type: Content type of the body; None for an empty body.
        cors: Whether the answer has CORS headers (not if the signature was rejected).
        flush: Paths of the repositories whose log must be written durably before the answer is sent.
        changed_paths: Paths of the repositories with new commits, of which peers must be notified.
        wait_for_peers: Whether to wait, before the answer is sent, until the peers have received the new commits, or a
            second has passed.
        refused: Ids of the commits that were rejected, and the reasons; for logs and metrics only.
        lacking: Paths of the repositories that a client asked for and of which this server has no commit.
        requester: Id of the session to which the processing time is charged; None for a root, which servers use.
        unused: The session that was created, if it has no commit in ``/sys/sessions`` yet; otherwise None.
        again: Builds the answer again, without commits that could not be written to the disk; the commits in the
            request are not stored a second time. None if the answer contains no commits.
    """

    status: int
    body: bytes = b""
    content_type: str | None = None
    cors: bool = True
    flush: frozenset[str] = frozenset()
    changed_paths: frozenset[str] = frozenset()
    wait_for_peers: bool = False
    refused: tuple[tuple[str, GoatherdError], ...] = ()
    lacking: frozenset[str] = frozenset()
    requester: str | None = None
    unused: Session | None = None
    again: Callable[[], EngineSteps[Response]] | None = None


def refuse_request(error: VerificationError) -> Response:
    """Return the answer to a request whose signature this server rejects.

    The status is 421 if the request was signed for another server, otherwise 403.
    """
    return Response(status=MISDIRECTED if isinstance(error, OtherServerError) else 403, cors=False)


CANNOT_WRITE: Final = Response(status=507, cors=False)
"""The answer to a request that cannot be stored (disk full, read-only or broken). The client may retry it."""

CANNOT_SIGN: Final = Response(status=503, cors=False)
"""The answer to a request that needs a signature of the root while the HSM or the KMS that holds the root's key does
not sign. The client may retry it."""


@dataclass(slots=True, kw_only=True)
class Ingested:
    """The result of verifying and storing received commits: which were accepted and which were rejected.

    Attributes:
        accepted: The commits that were new and are now stored.
        refused: Id and reason of each rejected commit. A commit that could not be decoded has the id ``""``; only the
            first thousand of such commits are listed.
    """

    accepted: list[Commit] = field(default_factory=list)
    refused: list[tuple[str, GoatherdError]] = field(default_factory=list)


@dataclass(slots=True)
class _Element:
    """One element of a ``/batch-sync`` request: the sync message for one repository."""

    given_path: str
    path: str
    message: SyncMessage
    brought: list[Commit] = field(default_factory=list)

    def without_commits(self) -> _Element:
        return _Element(self.given_path, self.path, replace(self.message, commits=()))


@dataclass(frozen=True, slots=True)
class _Portion:
    """A range of the commits in one element of a ``/batch-sync`` request, which are decoded together."""

    element: _Element
    start: int
    end: int


class Engine:
    """Answer the requests of GoatDB's clients and servers for one organization.

    Args:
        org: The organization's id.
        pool: The pool of trusted sessions. Its owner updates it when the identity changes.
        open_log: Returns the log of a repository. Several threads call it, so it must be thread-safe, and return the
            same object for the same repository (`goatherd.node.log_storage.LogDirectory.open_log`).
        new_id: Returns a new unique id.
        new_seeds: Returns new random seeds for a Bloom filter.
        registry: The application's schemas, in addition to GoatDB's own.
        rules: The application's access rules, in order.
        limits: Limits on one request and its answer.
        instance: The id of this server process. A client that signs a request for this process only puts this id into
            the signature. By default a new id is made.

    Attributes:
        instance: The id of this server process.
        on_withheld: Called when concurrent creations are withheld (hidden from clients and peers), because a root whose
            key is in an HSM or a KMS must sign their merge. The caller then runs `merge_withheld`.
        guard: Checks whether a request was signed for this server, and was not received before.
        unused: The sessions that have not signed a request yet and are not introduced; None if each session is
            introduced when it is created.
        on_first_use: Called when a session from `unused` has been introduced, because it has signed its first request.
    """

    def __init__(
        self,
        *,
        org: str,
        pool: TrustPool,
        open_log: Callable[[str], Log],
        new_id: Callable[[], str],
        new_seeds: Seeds,
        registry: Registry = BUILTIN,
        rules: Sequence[AccessRule] = (),
        limits: SyncLimits | None = None,
        instance: str | None = None,
    ) -> None:
        self.org = org
        self.pool = pool
        self.connection = new_id()
        self.instance = instance or self.connection
        self.guard = RequestGuard(lambda: self.instance)
        self.registry = registry
        self.rulebook = Rulebook(rules)
        self.limits = limits or SyncLimits()
        self._open_log = open_log
        self._new_id = new_id
        self._new_seeds = new_seeds
        self._repositories: dict[str, Repository] = {}
        self._in_use: dict[str, int] = {}
        self._pinned: set[str] = set()
        self._unwritable: set[str] = set()
        self._in_verification: dict[str, Commit] = {}
        self._wrong: dict[str, tuple[Mapping[str, Sequence[Commit]], Mapping[str, Commit]]] = {}
        self._users: OrderedDict[tuple[str, str, int], bool] = OrderedDict()
        self._views = Views(self.rulebook, self.limits, pool, new_seeds)
        self.unused: UnusedSessions | None = None
        self.on_first_use: Callable[[], None] = lambda: None
        self.on_withheld: Callable[[], None] = lambda: None
        self.on_damaged: Callable[[str], None] = lambda _: None
        self._withheld: dict[tuple[str, str], None] = {}
        self._being_introduced: set[str] = set()

    # --- repositories ------------------------------------------------------------------------------------------------

    def load_sessions(self) -> None:
        """Open the repositories ``/sys/sessions`` and ``/sys/users``, and index the sessions.

        Blocks; call it before the server answers requests.

        Raises:
            StorageError: A log cannot be read.
        """
        sessions = self.get_repository(SESSIONS_PATH)
        self.pool.offer_session_commits(sessions)
        drive_inline(self._merge_creations(sessions, sessions.branched_keys(), is_shown=False))
        self.get_repository(USERS_PATH)

    @property
    def repositories(self) -> Mapping[str, Repository]:
        """The open repositories by their paths."""
        return self._repositories

    def get_repository(self, path: str) -> Repository:
        """Return the repository with this path.

        If the repository is not open yet, open it (which blocks) and keep it open.

        Raises:
            PathError: The path is not one that this server allows for a repository.
            StorageError: The log cannot be read.
        """
        found = self._repositories.get(path)
        if found is None:
            read = self._read_repository(path)
            found = drive_inline(self._register_repository(read.path, read))
        self._pinned.add(found.path)
        return found

    def open_in_steps(self, path: str) -> EngineSteps[Repository]:
        """Return the repository with this path, opening it if necessary.

        The log is read in a step, so that a thread can do it.
        """
        kind, name = check_repository_path(path)
        if f"/{kind}/{name}" not in self._repositories:
            read = yield EngineStep(lambda _: self._read_repository(path))
            yield from self._register_repository(f"/{kind}/{name}", read)
        return self.get_repository(f"/{kind}/{name}")

    def peek_in_steps(self, path: str) -> EngineSteps[Repository]:
        """Return the repository with this path; like `open_in_steps`, but an empty repository is not kept open.

        The caller must not write to it.
        """
        yield from self._hold_repository(path)
        repository = self._repositories[path]
        self._release_repository(path)
        return repository

    def read_repository(self, path: str) -> Repository:
        """Read a repository from its log without keeping it open. Blocks; may be called in any thread.

        Raises:
            PathError, StorageError: As in `get_repository`.
        """
        return self._read_repository(path)

    def held_records(self, path: str) -> list[bytes] | None:
        """Return all records of a repository's log as JSON; None if it is not open, or holds damaged records too.

        May be called in any thread.
        """
        repository = self._repositories.get(path)
        if repository is None or repository.undecodable or path in self._wrong:
            return None
        return [commit.encoded for commit in list(repository)]

    def _read_repository(self, path: str) -> Repository:
        repository = Repository(
            path,
            self._open_log(path),
            org=self.org,
            connection=self.connection,
            own_session=lambda: self.pool.current.id,
            registry=self.registry,
        )
        wrong, _ = self._wrong.get(repository.path, (None, None))
        repository.load_log(wrong)
        return repository

    def withhold_damaged(self, path: str, wrong: Mapping[str, Sequence[Commit]], good: Mapping[str, Commit]) -> bool:
        """Withhold damaged commits of a repository, now and whenever the repository is opened again.

        The log stays unchanged.

        Args:
            path: Path of the repository.
            wrong: The damaged commits of the repository's log, by id.
            good: Undamaged commits of the same log that replace damaged ones with the same id.

        Returns:
            Whether any of the damaged commits was part of the open repository until now.
        """
        self._wrong[path] = wrong, good
        repository = self._repositories.get(path)
        if repository is None or not repository.withhold_damaged(wrong, good):
            return False
        self._views.drop_views(path)
        return True

    def note_verified(self, path: str, commit_ids: Iterable[str]) -> None:
        """Note that commits of a repository's log were verified, so that they may be sent without another check."""
        repository = self._repositories.get(path)
        if repository is not None:
            repository.unverified.difference_update(commit_ids)

    def _verify_held(self, path: str, commits: Sequence[Commit]) -> EngineSteps[None]:
        """Verify commits of a repository that were read from its log, and withhold those that are damaged."""
        verification = self.pool.prepare_verification(commits, held=True)
        yield EngineStep(verification.run)
        verdicts = zip(commits, self.pool.conclude_verification(verification), strict=True)
        wrong = {commit.id: [commit] for commit, verdict in verdicts if is_damaged(commit, verdict)}
        if wrong:
            known, good = self._wrong.get(path, ({}, {}))
            self.withhold_damaged(path, {**known, **wrong}, good)
            self.on_damaged(path)
        self.note_verified(path, [commit.id for commit in commits])

    def note_writable(self, path: str, can_be_written: bool) -> None:
        """Record whether a repository's log can be written at present.

        While the log cannot be written, requests that bring commits for the repository are answered with status 507,
        and commits that are not in the log yet are hidden.
        """
        (self._unwritable.discard if can_be_written else self._unwritable.add)(path)
        repository = self._repositories.get(path)
        if repository is not None:
            if can_be_written:
                repository.show_written()
            else:
                repository.hold_back_unwritten()
            self._views.drop_views(path)

    def check_writable(self, path: str) -> None:
        """Check that the last write to a repository's log has not failed.

        Raises:
            StorageError: The last write failed.
        """
        if path in self._unwritable:
            raise StorageError(f"{path} cannot be written: the last write to its log failed; the server retries it")

    def _register_repository(self, path: str, read: Repository) -> EngineSteps[Repository]:
        """Add a repository that was just read to the open ones, and merge concurrent creations in it.

        If another request has already opened the same repository, that object stays in use.
        """
        repository = self._repositories.setdefault(path, read)
        if repository is read and path in self._wrong:
            # SECURITY: the check of the repository's log may have found damage while a thread was still reading the
            # log, so the damaged commits are withheld now (tests/unit/node/test_data_check.py).
            repository.withhold_damaged(*self._wrong[path])
        if repository is read and path != SESSIONS_PATH:
            with repository.hold_back_everything():
                yield from self._merge_creations(repository, repository.branched_keys(), is_shown=False)
        return repository

    def _hold_repository(self, path: str) -> EngineSteps[None]:
        """Open a repository for one request.

        When the request ends, `_release_repository` closes a repository that is still empty, so that requests for
        unused paths take no memory.
        """
        if path not in self._repositories:
            read = yield EngineStep(lambda _: self._read_repository(path))
            yield from self._register_repository(path, read)
        self._in_use[path] = self._in_use.get(path, 0) + 1

    def _release_repository(self, path: str) -> None:
        left = self._in_use[path] = self._in_use[path] - 1
        if left:
            return
        del self._in_use[path]
        repository = self._repositories[path]
        # One whose log holds only damaged records would be read again with each request.
        if path not in self._pinned and not (len(repository) or repository.undecodable or path in self._wrong):
            del self._repositories[path]
            self._views.drop_views(path)

    # --- POST /auth/session ------------------------------------------------------------------------------------------

    def create_session(self, body: bytes, now_ms: int, *, is_deferred: bool = False) -> Response:
        """Answer ``POST /auth/session`` in the calling thread; otherwise like `create_session_in_steps`."""
        return drive_inline(self.create_session_in_steps(body, now_ms, is_deferred=is_deferred))

    def create_session_in_steps(self, body: bytes, now_ms: int, *, is_deferred: bool = False) -> EngineSteps[Response]:
        """Answer ``POST /auth/session``: create an anonymous session for the caller's key.

        The current root introduces the session: it signs a commit for the session in ``/sys/sessions``. If the root has
        expired, or a signature by its key in an HSM or a KMS fails, the answer is 503.

        Args:
            body: The request's body.
            now_ms: The time of the server's clock in milliseconds.
            is_deferred: Whether to put the session only into the table `unused` now, and to introduce it when it signs
                its first request.
        """
        unused = self.unused if is_deferred else None
        if not self._can_introduce(now_ms):
            return Response(status=503, cors=False)
        if (SESSIONS_PATH if unused is None else UNUSED_LOG) in self._unwritable:
            return CANNOT_WRITE
        try:
            public_key = decode_session_request(body)
        except DecodeError as error:
            return Response(status=400, body=to_json_bytes({"error": str(error)}), content_type=TEXT_TYPE)
        session = Session(
            id=self._new_id(),
            public_key=public_key,
            owner=None,
            expiration_ms=exact_date_ms(now_ms + milliseconds(SESSION_LIFETIME)),
        )
        if unused is None:
            try:
                yield from self.introduce_in_steps(session, now_ms)
            except SignerError:
                return CANNOT_SIGN
        else:
            unused.add_session(session)
        encoded = session.to_json()
        # SECURITY: the answer contains only the public keys of the roots (tests/unit/test_upstream_traps.py).
        roots = [each.to_json() for each in self.pool.public_roots(now_ms)]
        answer = {
            "session": {name: encoded[name] for name in ("publicKey", "id", "expiration")},
            "roots": roots,
        }
        made = Response(status=200, body=to_json_bytes(answer), content_type=JSON_TYPE)
        if unused is not None:
            return replace(made, flush=frozenset({UNUSED_LOG}), unused=session)
        changed = frozenset({SESSIONS_PATH})
        return replace(made, flush=changed, changed_paths=changed, wait_for_peers=True)

    def _can_introduce(self, now_ms: int) -> bool:
        root = self.pool.current.session
        return root.is_root and not root.is_expired(now_ms)

    def is_introduced(self, session_id: str) -> bool:
        """Return whether ``/sys/sessions`` contains a commit for the session with this id."""
        return self.get_repository(SESSIONS_PATH).count_of(session_id) > 0

    def introduce_unused(self, count: int, now_ms: int) -> EngineSteps[int]:
        """Introduce up to `count` sessions that have not signed a request yet; return how many were introduced.

        Servers that do not exchange unused sessions learn of a session only by its commit in ``/sys/sessions``. The
        caller flushes the log of ``/sys/sessions`` afterwards.
        """
        if self.unused is None or not self._can_introduce(now_ms):
            return 0
        sessions = self.unused.oldest_sessions(count, now_ms)
        for session in sessions:
            yield from self.introduce_in_steps(session, now_ms)
        return len(sessions)

    def _begin_use(self, envelope: SignatureEnvelope, now_ms: int) -> EngineSteps[Session | None]:
        """Introduce the session that claims to have signed a request, if this is the session's first request.

        Returns:
            The session; None if it was introduced before or is not in the table of unused sessions.

        Raises:
            VerificationError: The session has not signed the request.
        """
        unused = None if self.unused is None else self.unused.find_session(envelope.session_id, now_ms)
        if unused is None or self.is_introduced(envelope.session_id):
            return None
        # SECURITY: a session is introduced only by a request that it has signed itself, not by requests that others
        # send in its name (tests/unit/node/test_unused_sessions.py).
        self.pool.verify_request(envelope, now_ms, unused=unused)
        if self._can_introduce(now_ms) and unused.id not in self._being_introduced:
            yield from self.introduce_in_steps(unused, now_ms)
            self.on_first_use()
        return unused

    def introduce_in_steps(self, session: Session, now_ms: int) -> EngineSteps[Commit]:
        """Store the session commit that introduces `session`, signed by the current root, and trust the session.

        If the session has a commit already, the new commit is its child. The caller flushes the log of
        ``/sys/sessions`` afterwards.
        """
        repository = self.get_repository(SESSIONS_PATH)
        head = repository.find_head(session.id)
        ancestors_filter, count = repository.build_ancestors_filter(session.id, self._new_seeds)
        commit = new_commit(
            commit_id=self._new_id(),
            key=session.id,
            session_id=self.pool.current.id,
            ts=now_ms,
            org=self.org,
            parents=() if head is None else (head.id,),
            data=session_fields(session),
            schema_marker=SESSIONS_SCHEMA,
            connection=self.connection,
            ancestors_filter=ancestors_filter,
            ancestors_count=count,
        )
        self._being_introduced.add(session.id)
        try:
            return (yield from self._store_own(repository, commit, now_ms))
        finally:
            self._being_introduced.discard(session.id)

    # --- POST /batch-sync --------------------------------------------------------------------------------------------

    def batch_sync(
        self,
        header: str | SignatureEnvelope | None,
        body: bytes,
        now_ms: int,
        admit: Callable[[str], None] = lambda _: None,
        verified_by: Session | None = None,
    ) -> EngineSteps[Response]:
        """Answer ``POST /batch-sync``: store the commits in the request, and return those that the sender lacks.

        Args:
            header: The request's signature: the value of the header ``x-goat-sig``, or its parsed form; None without
                the header.
            body: The request's body.
            now_ms: The time of the server's clock in milliseconds.
            admit: Called with the id of the session that signed the request, unless the session is a root. An exception
                that this function raises ends the request.
            verified_by: The session that `authenticate_request` returned for this header, so that the signature is not
                verified twice; None if it was not called.
        """
        # COMPAT: like GoatDB, verify the signature only if the body is an array.
        if not header or not begins_array(body):
            return Response(status=400)
        # SECURITY: the body is parsed only after its sender is authenticated, because parsing is expensive
        # (tests/unit/node/test_cost.py).
        try:
            requester = yield from self._authenticate_batch(header, body, now_ms, verified_by)
        except VerificationError as error:
            return refuse_request(error)
        if not requester.is_root:
            admit(requester.id)
        try:
            elements = (
                self._read_elements(body) if is_light(body) else (yield EngineStep(lambda _: self._read_elements(body)))
            )
        except (DecodeError, PathError):
            return Response(status=400)
        if any(element.message.commits and element.path in self._unwritable for element in elements):
            return CANNOT_WRITE
        is_small = len(body) - sum(_encoded_size(element.message.filter) for element in elements) <= SMALL_BODY
        return (yield from self._answer_batch(elements, requester, now_ms, is_small=is_small))

    def _answer_batch(
        self, elements: Sequence[_Element], requester: Session, now_ms: int, *, is_small: bool
    ) -> EngineSteps[Response]:
        held: list[str] = []
        try:
            for path in dict.fromkeys(element.path for element in elements):
                yield from self._hold_repository(path)
                held.append(path)
            done = Ingested()
            for batch in _order_elements([element for element in elements if element.message.commits]):
                yield from self._ingest_elements(
                    batch, now_ms, done, is_small=is_small, is_offered_again=requester.is_root
                )
            answer = yield from self._build_replies(elements, requester, now_ms)
            # Peers ask for whatever they look for themselves, and would be looked for in turn.
            lacking = [] if requester.is_root else [path for path in held if not self._repositories[path].ids]
        finally:
            for path in held:
                self._release_repository(path)
        changed = frozenset(element.path for element in elements if element.brought)
        return Response(
            status=200,
            body=answer,
            content_type=TEXT_TYPE,
            flush=changed,
            changed_paths=changed,
            refused=tuple(done.refused),
            requester=None if requester.is_root else requester.id,
            lacking=frozenset(lacking),
            again=lambda: self._answer_batch(
                [each.without_commits() for each in elements], requester, now_ms, is_small=True
            ),
        )

    def _authenticate_batch(
        self, header: str | SignatureEnvelope, body: bytes, now_ms: int, verified_by: Session | None
    ) -> EngineSteps[Session]:
        envelope = parse_signature(header) if isinstance(header, str) else header
        requester = yield from self.authenticate_request(envelope, now_ms, verified_by)
        binding = read_binding(envelope)
        if binding is not None:
            is_big = len(body) > _LIGHT
            digest = (yield EngineStep(lambda _: digest_body(body))) if is_big else digest_body(body)
            self.guard.check_request(
                envelope,
                binding,
                method="POST",
                path="/batch-sync",
                digest=digest,
                is_root=requester.is_root,
                now_ms=now_ms,
            )
        return requester

    def authenticate_request(
        self, header: str | SignatureEnvelope, now_ms: int, verified_by: Session | None = None
    ) -> EngineSteps[Session]:
        """Verify a request's signature and return the session that signed the request.

        This does not check for which server the request was signed; `guard` checks that. `verified_by` is the session
        that an earlier call returned for the same header, so that the signature is not verified twice.

        Raises:
            VerificationError: The signature is invalid, or the session's user no longer exists.
        """
        envelope = parse_signature(header) if isinstance(header, str) else header
        session = yield from self._begin_use(envelope, now_ms)
        session = session or self.pool.verify_request(envelope, now_ms, verified_by=verified_by)
        if session.owner is not None and not session.is_root and not (yield from self._is_user(session.owner)):
            raise AccessDeniedError(f"session {session.id!r} belongs to a user that does not exist")
        return session

    def _is_user(self, owner: str) -> EngineSteps[bool]:
        """Return whether the user with this id exists and is not deleted."""
        users = self.get_repository(USERS_PATH)
        head = users.find_head(owner)
        if head is None:
            return False
        if not head.is_delta:
            return not (head.data or {}).get("isDeleted")
        # SECURITY: the result is cached, because users can write their own item, and applying its deltas at every
        # request could block the event loop (tests/unit/node/test_cost.py).
        known = owner, head.id, users.count_of(owner)
        if known not in self._users:
            commits = users.commits_of(owner)
            item = yield EngineStep(lambda _: users.read_item(owner, head, commits))
            self._users[known] = item is not None and not item.deleted
            if len(self._users) > _MOST_USERS:
                self._users.popitem(last=False)
        return self._users[known]

    def ingest_commits(self, path: str, commits: Sequence[Any], now_ms: int) -> EngineSteps[Ingested]:
        """Verify and store commits that a peer sent in answer to a request, as if the peer had pushed them.

        The caller flushes the log of `path` afterwards.

        Raises:
            PathError: The path is not a repository path.
            StorageError: The repository cannot be opened or written.
        """
        self.check_writable(path)
        repository = yield from self.open_in_steps(path)
        message = SyncMessage(version=VERSION, filter=BloomFilter(b"", ()), size=0, commits=commits)
        done = Ingested()
        element = _Element(path, repository.path, message)
        yield from self._ingest_elements([element], now_ms, done, is_offered_again=True)
        return done

    def _read_elements(self, body: bytes) -> list[_Element]:
        elements = []
        for given_path, message in read_batch(body, self.limits.elements):
            path = read_repository_path(given_path)
            check_filter_size(message.filter, self.limits)
            elements.append(_Element(given_path, path, message))
        return elements

    # --- taking in ---------------------------------------------------------------------------------------------------

    def _ingest_elements(
        self,
        elements: Sequence[_Element],
        now_ms: int,
        done: Ingested,
        *,
        is_small: bool = False,
        is_offered_again: bool = False,
    ) -> EngineSteps[None]:
        """Decode, verify and store the commits of several elements of a request.

        The commits are processed in portions, so that other requests can run in between. While one portion is verified,
        the next one is decoded, and the previous one stored. In ``/sys/sessions``, a portion can introduce the signers
        of the next one, so each portion is stored before the next one is verified.

        Args:
            elements: The elements of the ``/batch-sync`` request.
            now_ms: The time of the server's clock in milliseconds.
            done: The result, to which each accepted or rejected commit is added.
            is_small: Whether all commits of the request together are small, so that no thread is needed for a few of
                them.
            is_offered_again: Whether the sender is a server, which offers commits again until they are stored. Then
                commits that are already being verified for another request are skipped: a server often sends the same
                commit in a push and in the answer to a poll.
        """
        begun: dict[str, Commit] = {}
        try:
            yield from self._ingest_portions(elements, now_ms, done, begun, is_small, is_offered_again)
        finally:
            for commit_id in begun:
                del self._in_verification[commit_id]

    def _ingest_portions(
        self,
        elements: Sequence[_Element],
        now_ms: int,
        done: Ingested,
        begun: dict[str, Commit],
        is_small: bool,
        is_offered_again: bool,
    ) -> EngineSteps[None]:
        early: list[tuple[_Element, Commit]] = []
        learnt = False
        split = list(_split_portions(elements))
        is_overlapping = len(split) > 1 and elements[0].path != SESSIONS_PATH
        running: deque[tuple[list[tuple[_Element, Commit]], Verification]] = deque()
        for portions in split:
            decode = partial(self._decode_portions, portions, now_ms)
            few = is_small and sum(portion.end - portion.start for portion in portions) <= _FEW_COMMITS
            decoded, refused = decode(None) if few else (yield EngineStep(decode))
            _note_undecodable(done, refused)
            if is_offered_again:
                decoded = [each for each in decoded if self._in_verification.get(each[1].id) != each[1]]
            new = {commit.id: commit for _, commit in decoded if commit.id not in self._in_verification}
            self._in_verification |= new
            begun |= new
            if not decoded:
                continue
            if is_overlapping:
                running.append((decoded, self._prepare_verification(decoded)))
                yield EngineStep(running[-1][1].start)
                if len(running) == 1:
                    continue
                later, is_learnt = yield from self._finish_verification(*running.popleft(), done)
            else:
                later, is_learnt = yield from self._take_in(decoded, done, is_small=few)
            early += later
            learnt = learnt or is_learnt
        while running:
            later, _ = yield from self._finish_verification(*running.popleft(), done)
            early += later
        while early and (learnt or (yield from self._introduce_authors(early, now_ms))):
            early, learnt = yield from self._take_in(early, done)
        done.refused += [
            (commit.id, UnknownSignerError(f"session {commit.session!r} is not known")) for _, commit in early
        ]

    def _introduce_authors(self, early: Sequence[tuple[_Element, Commit]], now_ms: int) -> EngineSteps[bool]:
        """Introduce the unused sessions that signed commits in `early`; return whether there were any.

        An unused session has signed no request yet, and is usually introduced at its first request. A commit by the
        session can arrive earlier, for example in a request that a root has signed. The session is then introduced
        here, so that the commit need not wait.
        """
        if self.unused is None or not self._can_introduce(now_ms):
            return False
        ids = {commit.session for _, commit in early}
        unused = {one: session for one in ids if (session := self.unused.find_session(one, now_ms)) is not None}
        if not unused:
            return False
        authors: dict[str, Session] = {}

        def find_authors(_: object) -> None:
            for _, commit in early:
                session = unused.get(commit.session)
                if session is not None and commit.session not in authors:
                    # SECURITY: a session counts as used only if it has signed the commit, so a forged commit introduces
                    # no session (tests/unit/node/test_unused_sessions.py).
                    with suppress(VerificationError):
                        verify_commit(session, commit)
                        authors[commit.session] = session

        yield EngineStep(find_authors)
        introduced = [session for one, session in authors.items() if not self.is_introduced(one)]
        for session in introduced:
            try:
                yield from self.introduce_in_steps(session, now_ms)
            except SignerError:
                return False  # the commits count as those of unknown sessions, and are offered again
        if introduced:
            self.on_first_use()
        return bool(introduced)

    def _take_in(
        self, candidates: list[tuple[_Element, Commit]], done: Ingested, *, is_small: bool = False
    ) -> EngineSteps[tuple[list[tuple[_Element, Commit]], bool]]:
        """Verify and store decoded commits; add each accepted or rejected commit to `done`.

        With `is_small`, one or two signatures are verified without a thread.
        Return the commits whose signing session is unknown, and whether a new session was stored.
        """
        if not candidates:
            return [], False
        verification = self._prepare_verification(candidates)
        if is_small and verification.signature_count <= _FEW_SIGNATURES:
            verification.run()
        else:
            yield EngineStep(verification.run)
        return (yield from self._store_verified(candidates, verification, done))

    def _finish_verification(
        self, candidates: Sequence[tuple[_Element, Commit]], verification: Verification, done: Ingested
    ) -> EngineSteps[tuple[list[tuple[_Element, Commit]], bool]]:
        """Wait for a verification that was started before, then store the verified commits.

        Return the commits whose signing session is unknown, and whether a new session was stored.
        """
        yield EngineStep(verification.finish)
        return (yield from self._store_verified(candidates, verification, done))

    def _prepare_verification(self, candidates: Sequence[tuple[_Element, Commit]]) -> Verification:
        return self.pool.prepare_verification([commit for _, commit in candidates])

    def _store_verified(
        self, candidates: Sequence[tuple[_Element, Commit]], verification: Verification, done: Ingested
    ) -> EngineSteps[tuple[list[tuple[_Element, Commit]], bool]]:
        """Store decoded commits whose verification has ended; add each accepted or rejected commit to `done`.

        Return the commits whose signing session is unknown, and whether a new session was stored.
        """
        verdicts = self.pool.conclude_verification(verification)
        early: list[tuple[_Element, Commit]] = []
        learnt = False
        fresh: dict[str, list[Commit]] = {}
        with ExitStack() as held:
            touched: dict[str, set[str]] = {}
            for element, commit in candidates:
                touched.setdefault(element.path, set()).add(commit.key)
            for path, changed in touched.items():
                # Creations are hidden until a thread has merged them.
                held.enter_context(self._repositories[path].hold_back(changed))
            for (element, commit), verdict in zip(candidates, verdicts, strict=True):
                if isinstance(verdict, UnknownSignerError):
                    early.append((element, commit))
                    continue
                outcome = verdict or self._store_commit(element.path, commit)
                if isinstance(outcome, GoatherdError):
                    done.refused.append((commit.id, outcome.with_traceback(None)))
                elif outcome:
                    element.brought.append(commit)
                    done.accepted.append(commit)
                    fresh.setdefault(element.path, []).append(commit)
                    learnt = learnt or element.path == SESSIONS_PATH
            for path, commits in fresh.items():
                keys = dict.fromkeys(commit.key for commit in commits)
                verified = {commit.id for commit in commits}
                yield from self._merge_creations(self._repositories[path], keys, verified)
        return early, learnt

    def _decode_portions(
        self, portions: Sequence[_Portion], now_ms: int, _: object
    ) -> tuple[list[tuple[_Element, Commit]], list[DecodeError]]:
        """Decode the commits of some portions; return those that could be decoded, and the errors of the others.

        Commits that the repository already holds are skipped. If two received commits have the same id, both are
        returned, since the first may be forged.
        """
        decoded: list[tuple[_Element, Commit]] = []
        refused: list[DecodeError] = []
        for portion in portions:
            repository = self._repositories[portion.element.path]
            commits = portion.element.message.commits
            for index in range(portion.start, portion.end):
                try:
                    raw = commits[index]
                    if _is_known(raw, repository):
                        continue
                    decoded.append((portion.element, read_commit(raw, repository, self.limits, now_ms)))
                except DecodeError as error:
                    refused.append(_without_traceback(error))
        return decoded, refused

    def _store_commit(self, path: str, commit: Commit) -> GoatherdError | bool:
        """Store a verified commit if its signer may write to its repository and item.

        Returns:
            The error if the commit was rejected. Otherwise whether the commit is new: another request may have brought
            the same commit while this one was being verified.
        """
        repository = self._repositories[path]
        try:
            author = self.pool.get_author(commit)
            check_against(commit, repository)
        except (VerificationError, DecodeError) as error:
            return error
        access = Access(repository=path, key=commit.key, session=author, operation="write")
        if author.id != self.pool.current.id and not self.rulebook.allows(access):
            return AccessDeniedError(f"session {author.id!r} may not write {path}/{commit.key}")
        is_new = repository.add_commit(commit)
        if is_new and path == SESSIONS_PATH:
            self._learn_session(commit)
        return is_new

    def _learn_session(self, commit: Commit) -> None:
        # Every commit for /sys/sessions has passed `check_session_item`.
        self.pool.add_verified_session_commit_unsafe(commit, is_session=True)
        if self.unused is not None:
            self.unused.discard_session(commit.key)

    def _store_own(
        self, repository: Repository, commit: Commit, now_ms: int, *, creates_item: bool = False
    ) -> EngineSteps[Commit]:
        """Sign a commit as the current root and store it.

        While an HSM or a KMS signs, other requests can change the item. Concurrent changes of an existing item are left
        to GoatDB's servers and clients, which merge them.

        Args:
            repository: The repository of the commit.
            commit: The unsigned commit.
            now_ms: The time of the server's clock in milliseconds.
            creates_item: Whether the item must still be absent when the commit is stored.

        Raises:
            ItemExistsError: The item was created while an HSM or a KMS signed the commit.
            SignerError: The HSM or the KMS did not sign.
        """
        signer = self.pool.current
        signed: Commit
        if not signer.is_remote:
            signed = sign_commit(signer, commit, now_ms=now_ms)
            self._add_own(repository, signed)
            return signed
        signed = yield EngineStep(lambda _: sign_commit(signer, commit, now_ms=now_ms), is_remote=True)
        if creates_item:
            repository.check_absent(commit.key)
        with repository.hold_back((commit.key,)):
            self._add_own(repository, signed)
            yield from self._merge_creations(repository, (commit.key,), {commit.id})
        return signed

    def _add_own(self, repository: Repository, commit: Commit) -> None:
        repository.add_commit(commit)
        if repository.path == SESSIONS_PATH:
            self._learn_session(commit)

    def _merge_creations(
        self, repository: Repository, keys: Iterable[str], verified: Set[str] = frozenset(), *, is_shown: bool = True
    ) -> EngineSteps[None]:
        """Merge concurrent creations of items before clients and peers receive them.

        Unmerged, they would crash a GoatDB server or client. If an HSM or a KMS must sign the merge, the items are only
        hidden here, and `merge_withheld` merges them later.

        Args:
            repository: The repository. The caller hides its new commits until this function ends.
            keys: The keys of the items to check for concurrent creations.
            verified: Ids of commits that were verified a moment ago.
            is_shown: Whether clients may have received some of the creations.
        """
        for key in keys:
            creations = yield from self._find_verified(repository.path, unmerged_creations(repository, key), verified)
            if not creations:
                continue
            if self.pool.current.is_remote:
                # No request waits for an HSM or a KMS, and no client receives the creations unmerged.
                repository.withhold_item(key, is_shown=is_shown)
                self._withheld[repository.path, key] = None
                self.on_withheld()
                continue
            merged = yield EngineStep(partial(self._sign_merges, creations, repository, self.pool.current))
            self._add_merges(repository, merged)

    def _add_merges(self, repository: Repository, merged: Sequence[Commit]) -> None:
        for merge in merged:
            repository.add_commit(merge)
            if repository.path == SESSIONS_PATH:
                self.pool.add_verified_session_commit_unsafe(merge)

    @property
    def withheld_count(self) -> int:
        """Number of items that are hidden until the merge of their concurrent creations is signed."""
        return len(self._withheld)

    def merge_withheld(self) -> EngineSteps[str | None]:
        """Merge the concurrent creations of one withheld item, show the item, and return its repository's path.

        A withheld item is hidden until an HSM or a KMS has signed the merge. Return None if no item is withheld. The
        caller flushes the repository's log afterwards.

        Raises:
            SignerError: The HSM or the KMS that holds the root's key did not sign. The item stays hidden.
        """
        if not self._withheld:
            return None
        path, key = next(iter(self._withheld))
        repository, signer = self._repositories[path], self.pool.current
        creations = yield from self._find_verified(path, unmerged_creations(repository, key))
        if creations:
            work = partial(self._sign_merges, creations, repository, signer)
            self._add_merges(repository, (yield EngineStep(work, is_remote=signer.is_remote)))
        self._withheld.pop((path, key), None)
        repository.show_item(key)
        return path

    def _sign_merges(
        self, creations: Sequence[Commit], repository: Repository, signer: OwnedSession, _: object
    ) -> list[Commit]:
        """Build and sign the commits that merge concurrent creations of an item. Each is a child of the previous one.

        The list is empty if the creations cannot be merged.
        """
        merged: list[Commit] = []
        for portion in portions_of(creations):
            merge = merge_creations([*merged[-1:], *portion], repository, signer.id, merged)
            if merge is None or merge.ts > signer.session.expiration_ms:
                break
            if merge.id in repository:
                merge = replace(merge, id=self._new_id())
            merged.append(sign_commit(signer, merge, now_ms=int(merge.ts)))
            merged[-1].keep_encoded()
        return merged

    def _find_verified(
        self, path: str, creations: Sequence[Commit], verified: Set[str] = frozenset()
    ) -> EngineSteps[Sequence[Commit]]:
        """Return those concurrent creations of an item whose signatures are valid now, for a merge.

        A merge of only some of them, or a child of one, also keeps a GoatDB server or client from crashing. Of
        creations in ``/sys/sessions``, either all are returned, which roots have signed, or none.

        SECURITY: the merge commit, which the root signs, must not contain data that a GoatDB server has written to the
        log without verification (tests/unit/test_upstream_traps.py).

        Args:
            path: Path of the repository.
            creations: The creations.
            verified: Ids of commits that were verified a moment ago.
        """
        is_sessions = path == SESSIONS_PATH
        if is_sessions and not all(commit.session in self.pool.root_ids for commit in creations):
            return []
        unsure = [commit for commit in creations if is_sessions or commit.id not in verified]
        if not unsure:
            return creations
        verification = self.pool.prepare_verification(unsure, held=True)
        yield EngineStep(verification.run)
        verdicts = self.pool.conclude_verification(verification)
        wrong = {commit.id for commit, verdict in zip(unsure, verdicts, strict=True) if verdict is not None}
        return [] if is_sessions and wrong else [commit for commit in creations if commit.id not in wrong]

    # --- answering ---------------------------------------------------------------------------------------------------

    def _build_replies(self, elements: Sequence[_Element], requester: Session, now_ms: int) -> EngineSteps[bytes]:
        """Build the body of the answer to ``POST /batch-sync``, with one reply for each element of the request.

        SECURITY: commits that were read from a log are verified before they are sent for the first time, and the
        answer is built again, so that no damaged commit is sent as a genuine one (tests/unit/node/test_data_check.py).
        """
        while True:
            body, unverified = yield from self._build_answer(elements, requester, now_ms)
            if not unverified:
                return body
            for path, commits in unverified.items():
                yield from self._verify_held(path, commits)

    def _build_answer(
        self, elements: Sequence[_Element], requester: Session, now_ms: int
    ) -> EngineSteps[tuple[bytes, dict[str, list[Commit]]]]:
        """Build the body of an answer; return it with the commits in it that were not verified yet, by repository."""
        repositories = [self._repositories[element.path] for element in elements]
        views = [self._views.view_for(repository, requester) for repository in repositories]
        born_under = None
        if not requester.is_root:
            introductions = self.get_repository(SESSIONS_PATH).commits_of(requester.id)
            born_under = {commit.session: commit.ts for commit in introductions}  # the earliest is the last one

        asked = [element.message for element in elements]
        brought = [bool(element.brought) for element in elements]
        remembered = None if requester.is_root else requester.id
        looks = self._views.recall_looks(views, remembered, asked, brought, now_ms)
        unverified: dict[str, list[Commit]] = {}

        def build_body() -> bytes:
            room = ReplyBudget(self.limits.reply_bytes, self.limits.reply_lookups)
            for index in self._views.order_elements(views, asked):
                look = looks[index]
                if look is None:
                    looks[index] = self._views.take_look(views[index], remembered, asked[index], room)
                elif remembered is not None:
                    views[index].memory.store(remembered, look)
            replies = []
            for index, element in enumerate(elements):
                room.chosen.clear()
                reply = self._views.build_reply(
                    views[index], asked[index], looks[index], brought[index], now_ms, born_under=born_under, room=room
                )
                replies.append((element.given_path, reply))
                found = [commit for commit in room.chosen if commit.id in repositories[index].unverified]
                if found:
                    unverified.setdefault(element.path, []).extend(found)
            return encode_reply(replies)

        left = [index for index, look in enumerate(looks) if look is None]
        is_light = sum(repositories[index].weight for index in left) <= _LIGHT
        if is_light and sum(len(views[index].commits) for index in left) <= BIG_VIEW:
            return build_body(), unverified
        body: bytes = yield EngineStep(lambda _: build_body())
        return body, unverified

    # --- reading and writing from Python -----------------------------------------------------------------------------

    def get_item(self, path: str, key: str) -> Item | None:
        """Return the item with this key; None if the item does not exist or is deleted."""
        item = self.get_repository(path).find_item(key)
        return None if item is None or item.deleted else item

    def create_item_in_steps(
        self, path: str, key: str, schema: str, data: Mapping[str, Any], now_ms: int
    ) -> EngineSteps[Commit]:
        """Create an item with a commit that the current root signs. The caller then flushes the log.

        Raises:
            ItemExistsError: The item exists already, or was created while an HSM or a KMS signed the commit.
            PathError, DecodeError, EncodeError: The path, the key or the data are not allowed; a deleted item had
                another schema; the data are not a session in ``/sys/sessions``, or are a session elsewhere.
        """
        repository = self.get_repository(path)
        commit = repository.build_create(key, schema, data, **self._new_authorship(now_ms))
        return (yield from self._write_item(repository, commit, now_ms, creates_item=True))

    def set_item_in_steps(self, path: str, key: str, data: Mapping[str, Any], now_ms: int) -> EngineSteps[Commit]:
        """Replace an item's fields with a commit that the current root signs. The caller then flushes the log.

        Raises:
            ItemNotFoundError: The item does not exist.
            PathError, DecodeError, EncodeError: The data are not allowed; in ``/sys/sessions``, they are not a session.
        """
        repository = self.get_repository(path)
        commit = repository.build_set(key, data, **self._new_authorship(now_ms))
        return (yield from self._write_item(repository, commit, now_ms))

    def delete_item_in_steps(self, path: str, key: str, now_ms: int) -> EngineSteps[Commit]:
        """Delete an item with a commit that the current root signs. The caller then flushes the log.

        Raises:
            ItemNotFoundError: The item does not exist.
            DecodeError: The item is a session. Clients would continue to trust it, so it cannot be deleted.
        """
        repository = self.get_repository(path)
        commit = repository.build_delete(key, **self._new_authorship(now_ms))
        return (yield from self._write_item(repository, commit, now_ms))

    def _write_item(
        self, repository: Repository, commit: Commit, now_ms: int, *, creates_item: bool = False
    ) -> EngineSteps[Commit]:
        # Peers make the same checks: a commit that they reject would stay on this server alone.
        checked = read_commit(parse_json(commit.encoded), repository, self.limits, now_ms)
        return (yield from self._store_own(repository, checked, now_ms, creates_item=creates_item))

    def _new_authorship(self, now_ms: int) -> Authorship:
        return Authorship(commit_id=self._new_id(), session_id=self.pool.current.id, ts=now_ms, seeds=self._new_seeds)


def _note_undecodable(done: Ingested, refused: Sequence[DecodeError]) -> None:
    """Add the errors of commits that could not be decoded to a result, up to the limit of listed errors."""
    # SECURITY: the list of errors is bounded, because a body may consist of undecodable commits only
    # (tests/unit/node/test_cost.py).
    done.refused += [("", error) for error in refused[: max(0, _MOST_REFUSALS - len(done.refused))]]


def _without_traceback(error: DecodeError) -> DecodeError:
    """Return an error without its traceback and causes, which would keep other objects in memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _split_portions(elements: Sequence[_Element]) -> Iterator[list[_Portion]]:
    """Split the commits of some elements into groups of portions.

    One step decodes one group, and the group's commits are stored before those of the next group, so that other
    requests can run in between.
    """
    gathered: list[_Portion] = []
    count = 0
    for element in elements:
        commits = element.message.commits
        if isinstance(commits, RawCommits):
            ranges: Iterable[tuple[int, int]] = commits.portions()
        else:
            ranges = ((at, min(at + PORTION_COMMITS, len(commits))) for at in range(0, len(commits), PORTION_COMMITS))
        for start, end in ranges:
            size = end - start
            if gathered and count + size > PORTION_COMMITS:
                yield gathered
                gathered, count = [], 0
            gathered.append(_Portion(element, start, end))
            count += size
    if gathered:
        yield gathered


def _encoded_size(bloom: BloomFilter) -> int:
    """Return how many bytes of a request a Bloom filter takes, or a little less."""
    return len(bloom.bits) * 4 // 3


def _is_known(raw: Any, repository: Repository) -> bool:
    commit_id = raw.get("id") if isinstance(raw, dict) else None
    return isinstance(commit_id, str) and commit_id in repository


def _order_elements(elements: Sequence[_Element]) -> list[list[_Element]]:
    """Group the elements of a request in the order in which their commits are stored.

    Elements for ``/sys/sessions`` come first, then those for ``/sys/users``, then all others together.
    """
    sessions = [element for element in elements if element.path == SESSIONS_PATH]
    users = [element for element in elements if element.path == USERS_PATH]
    others = [element for element in elements if element.path not in (SESSIONS_PATH, USERS_PATH)]
    return [stage for stage in (sessions, users, others) if stage]
