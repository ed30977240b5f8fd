"""Keep one database synchronized with one other server, by GoatDB's own protocol.

The protocol is in docs/reference/goatdb-protocol.md#clients-and-peers. The database verifies commits from a peer
exactly as it verifies commits from a client.

Differences from GoatDB's scheduler, with their reasons:

* A commit is offered until the peer's filters show that the peer holds it; GoatDB gives up after ten submissions. A
  commit that the peer rejects, for example because it does not know the signer yet, is offered again after all new
  commits, and less and less often. So the commit is not lost, and does not delay others.
* New commits are sent at once, in a message that only pushes: its filter has no seeds, which means that this server has
  everything, so the peer sends no commits back. Every 0.3 to 1.5 s, a poll with a real filter pulls the peer's commits.
* A commit counts as held by the peer when the chance that all the peer's filters contain it falsely is below `CERTAIN`.
  Filters with the same seeds count once: a Goatherd server answers pushes with its last filter, extended, and polls if
  both servers hold the same commits. This server then requests other filters, by polls that claim every commit. If a
  peer suddenly holds fewer commits (it was restored or replaced), every commit is checked again.
* All repositories that are due go in one request, ``/sys/sessions`` and ``/sys/users`` first: a GoatDB server processes
  a batch in order, and must know a session before the commits that the session signed. Requests are small enough for a
  server that verifies at 1.6 ms a commit within the 5 s that peers wait.
* The current root signs every request. If the peer answers 403, the loop continues, because the peer may trust the root
  later.
* A repository that fails, because its log cannot be read or written here or on the peer, is tried again after a growing
  pause; the others are synchronized meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from goatherd.clock import Clock
from goatherd.errors import DecodeError, GoatherdError, NodeError, NodeRefusedError
from goatherd.ids import new_seeds
from goatherd.serving.signals import run_unless_set
from goatherd.telemetry import Event, event_text
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.messages import EncodedMessage, SyncMessage, encode_filter, filter_parameters
from goatherd.wire.paths import SESSIONS_PATH, USERS_PATH

if TYPE_CHECKING:
    from goatherd.cluster.client import NodeClient
    from goatherd.identity.session import OwnedSession

__all__ = ["Peer", "PeerStatus", "PeerView", "SyncedDatabase"]

_log = logging.getLogger("goatherd.node.peer")

T = TypeVar("T")

FIRST_PATHS: Final = (SESSIONS_PATH, USERS_PATH)

POLL_MIN: Final = timedelta(milliseconds=300)
POLL_MAX: Final = timedelta(milliseconds=1500)
RAMP: Final = timedelta(seconds=3)
DOWN_MAX: Final = timedelta(seconds=2)
AGAIN_MAX: Final = timedelta(seconds=30)
"""Maximum pause before a commit that the peer does not confirm, or a repository that fails, is tried again."""
REPORT: Final = timedelta(seconds=60)
"""Minimum interval between two reports that a peer does not answer: it may fail now and then, as behind a load balancer
with a server that is down."""
RECHECK: Final = timedelta(seconds=60)
RECENT: Final = timedelta(seconds=30)
"""How long after its last answer a server process still counts as synchronized with this one."""
MANY_INSTANCES: Final = 64

MAX_PATHS: Final = 64
MAX_COMMITS: Final = 400
MIN_COMMITS: Final = 20
MAX_BYTES: Final = 1_000_000
CERTAIN: Final = 1e-9
SMALL: Final = 5000
SPARE_SIZE: Final = 1000
MANY: Final = 2000
LIGHT_POLLS: Final = 8
CYCLES: Final = 3

MAY_BE_ONE: Final = frozenset({400, 413, 500, 507})
"""Statuses with which a server refuses a whole request because of one repository. COMPAT: GoatDB answers 500 if a
repository holds a commit without an id, which any client can send."""
APART_EVERY: Final = 16

_HAVE_ALL: Final = BloomFilter(b"\0", ())


class PeerView(Protocol):
    """The interface of an open repository through which a `Peer` reads commits to send them to another server."""

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all stored commits of the repository in order of arrival. Ids are only added, at the end."""
        ...

    def encoded_commit(self, commit_id: str) -> bytes:
        """Return the JSON of the stored commit with this id.

        Raises:
            KeyError: The repository no longer has the commit.
        """
        ...


class SyncedDatabase(Protocol):
    """The interface of a database that a `Peer` synchronizes. See `goatherd.node.database.Database`."""

    def current_signer(self) -> OwnedSession: ...

    def synced_paths(self) -> Sequence[str]: ...

    async def open_view(self, path: str) -> PeerView: ...

    async def store_commits(self, path: str, commits: Sequence[Any]) -> int:
        """Verify and store the commits that a peer sent; return how many were new."""
        ...


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """The status of the synchronization with one other server (a peer).

    Attributes:
        url: The peer's URL.
        online: Whether the last request to the peer succeeded.
        last_error: Why the last request to the peer failed, or why a repository cannot be synchronized; else None.
        rounds: Number of requests that the peer has answered.
        waiting: Number of this server's commits that the peer is not known to hold.
        was_tried: Whether any request to the peer has succeeded or failed yet.
        instances: Ids of the server processes that have recently answered at this URL.
    """

    url: str
    online: bool
    last_error: str | None
    rounds: int
    waiting: int
    was_tried: bool = False
    instances: tuple[str, ...] = ()


@dataclass(slots=True)
class _Waiting:
    """What is known of a commit of this server that the peer may not hold yet.

    Attributes:
        doubt: Probability that the peer's Bloom filters have contained the commit only by chance; 1 if none has
            contained it.
        offers: How often the commit has been sent since a filter of the peer last contained it.
        not_before: The commit is not sent again before this time, in monotonic seconds.
    """

    doubt: float = 1.0
    offers: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class _Repository:
    """What this server knows of a peer's copy of one repository. Times are seconds on the monotonic clock.

    `seeds` are those of the peer's last filter. `wants_filters` says that filters with other seeds are needed to decide
    whether the peer holds the waiting commits. `unread` counts how often in a row the repository could not be read for
    a request, `unstored` the replies in a row that this server could not use, and `problem` says why. `limit` is how
    many commits a request may have: less after a refusal, which may be due to the request's size.
    """

    path: str
    due: float = 0.0
    reset: float = 0.0
    checked: float = 0.0
    seen: int = 0
    size: int = 0
    has_filter: bool = False
    seeds: tuple[int, ...] = ()
    wants_filters: bool = False
    pull: bool = True
    light: int = 0
    is_outdated: bool = False
    unread: int = 0
    unstored: int = 0
    problem: str = ""
    limit: int = MAX_COMMITS
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    watchers: list[asyncio.Future[bool]] = field(default_factory=list)
    own: BloomFilter | None = None
    own_size: int = 0
    own_seen: int = 0

    @property
    def has_news(self) -> bool:
        """Whether the repository has commits that were never sent to the peer and that it is not known to hold."""
        return any(one.doubt >= 1.0 and not one.offers for one in self.waiting.values())


class Peer:
    """Synchronize this server's repositories with one other server.

    `run` is the loop; call the other methods from the same event loop.

    Args:
        replica: The database to synchronize.
        client: The HTTP client for the other server; the caller closes it.
        clock: Supplies the monotonic time, and waits.
    """

    def __init__(self, replica: SyncedDatabase, client: NodeClient, clock: Clock) -> None:
        self._replica = replica
        self.client = client
        self._clock = clock
        self._repositories: dict[str, _Repository] = {}
        self._wake = asyncio.Event()
        self._failures = 0
        self._is_reported = False
        self._reported_at = -math.inf
        self._retry_at = 0.0
        self._last_error: str | None = None
        self._rounds = 0
        self._answered: dict[str, float] = {}
        self._limit = MAX_COMMITS

    @property
    def url(self) -> str:
        return self.client.base_url

    @property
    def status(self) -> PeerStatus:
        """The status of the synchronization with the other server."""
        repositories = self._repositories.values()
        return PeerStatus(
            url=self.url,
            online=self._rounds > 0 and not self._failures,
            last_error=self._last_error or next((one.problem for one in repositories if one.problem), None),
            rounds=self._rounds,
            waiting=sum(len(one.waiting) for one in repositories),
            was_tried=self._rounds > 0 or self._failures > 0,
            instances=self._find_recent(),
        )

    def _find_recent(self) -> tuple[str, ...]:
        since = self._clock.monotonic() - RECENT.total_seconds()
        return tuple(instance for instance, at in self._answered.items() if at >= since)

    def mark_changed(self, path: str, *, pull: bool = False) -> None:
        """Mark a repository as changed, so that its new commits are sent to the peer now.

        With `pull`, also request the peer's new commits.
        """
        now = self._clock.monotonic()
        state = self._state_of(path)
        state.due = state.reset = now
        state.pull = state.pull or pull
        self._wake.set()

    def stop_syncing(self, path: str) -> None:
        """Stop requesting a repository from the peer until the repository changes again."""
        self._repositories.pop(path, None)

    def resync_path(self, path: str) -> None:
        """Compare all commits of a repository with the peer again, after damaged commits were removed on this server.

        The next poll requests the removed commits from the peer.
        """
        self._state_of(path).is_outdated = True
        self.mark_changed(path, pull=True)

    def push_changes(self, path: str) -> asyncio.Future[bool]:
        """Send a repository's new commits to the peer at once, even if the last request to the peer failed.

        Returns:
            A future. Its result becomes True when the peer has answered requests with all the new commits, or False if
            a request failed.
        """
        self.sync_now()
        watcher: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._state_of(path).watchers.append(watcher)
        self.mark_changed(path)
        return watcher

    def sync_now(self) -> None:
        """Synchronize with the peer now, without waiting for the end of the pause after a failure."""
        if self._failures:
            self._retry_at = 0.0
            self._wake.set()

    async def run(self) -> None:
        """Exchange commits with the peer, by polls and pushes, until cancelled."""
        while True:
            for path in self._replica.synced_paths():
                self._state_of(path)
            now = self._clock.monotonic()
            due = self._due_repositories(now)
            if due:
                try:
                    await self._run_round(due)
                except NodeError as error:
                    self._record_failure(due, error)
                except (GoatherdError, OSError) as error:
                    # Ours, not the peer's, for example an HSM that does not sign. Logged each time, and tried again.
                    _log.error("cannot sync with %s: %s", self.url, error)
                    self._record_failure(due, error)
                except Exception as error:  # noqa: BLE001 - a loop that ended would leave this server alone permanently
                    _log.exception("cannot sync with %s", self.url)
                    self._record_failure(due, error)
            else:
                await self._wait_for_work(now)

    # --- one round --------------------------------------------------------------------------------------------------

    async def _run_round(self, due: Sequence[_Repository]) -> None:
        budget = _RequestBudget(self._limit)
        sent: list[tuple[_Repository, bool, list[asyncio.Future[bool]]]] = []
        requests: list[tuple[str, EncodedMessage]] = []
        try:
            for state in due:
                # Callers that start to wait from now on wait for the next request, not for this one.
                watchers, state.watchers = state.watchers, []
                sent.append((state, False, watchers))
                try:
                    message, pulled = await self._build_message(state, budget)
                except Exception as error:  # noqa: BLE001 - one repository must not keep the others from the peer
                    sent.pop()
                    state.unread += 1
                    self._postpone_repository(state, state.unread, watchers, error)
                    continue
                state.unread = 0
                sent[-1] = (state, pulled, watchers)
                requests.append((state.path, message))
            if not requests:
                return
            replies = await self._send_requests(requests, is_problem_known=all(state.unstored for state, *_ in sent))
            for (state, pulled, watchers), reply in zip(sent, replies, strict=True):
                try:
                    if isinstance(reply, NodeRefusedError):
                        state.limit = max(MIN_COMMITS, state.limit // 2)
                        raise reply
                    state.limit = min(MAX_COMMITS, state.limit * 2)
                    await self._process_reply(state, pulled, reply)
                except Exception as error:  # noqa: BLE001 - the other replies are good
                    state.unstored += 1
                    self._postpone_repository(state, state.unstored, watchers, error)
                    continue
                if pulled or reply.get("c"):  # a reply to a poll that wanted nothing does not show that storing works
                    state.unstored, state.problem = 0, ""
                if state.has_news:
                    state.watchers.extend(watchers)
                else:
                    _resolve_watchers(watchers, answer=True)
        except BaseException:
            for _, _, watchers in sent:
                _resolve_watchers(watchers, answer=False)
            raise

    async def _send_requests(
        self, requests: Sequence[tuple[str, EncodedMessage]], *, is_problem_known: bool
    ) -> Sequence[dict[str, Any] | NodeRefusedError]:
        """Send one request for all repositories; return for each the peer's reply, or the error with which it refuses.

        If one repository may be the reason for a refusal, each is sent in a request of its own: at once, and then now
        and then while the peer refuses all of them.

        Args:
            requests: The repositories' paths and messages.
            is_problem_known: Whether the peer refused these repositories before, but not others.

        Raises:
            NodeError: No answer, or the peer refuses everything.
        """
        replies: list[dict[str, Any] | NodeRefusedError] = []
        try:
            replies += await self.client.batch_sync(requests, self._replica.current_signer())
        except NodeRefusedError as error:
            if error.status not in MAY_BE_ONE or self._failures % APART_EVERY:
                raise
            if len(requests) == 1:
                replies.append(error)
            for request in requests if len(requests) > 1 else ():
                try:
                    replies += await self.client.batch_sync([request], self._replica.current_signer())
                except NodeRefusedError as one:
                    replies.append(one)
            if all(isinstance(reply, NodeRefusedError) for reply in replies):
                if is_problem_known:
                    return replies
                raise
        self._record_success()
        return replies

    async def _build_message(self, state: _Repository, budget: _RequestBudget) -> tuple[EncodedMessage, bool]:
        view = await self._replica.open_view(state.path)
        now = self._clock.monotonic()
        if state.is_outdated:
            state.is_outdated = False
            state.waiting.clear()
            state.seen = state.own_seen = state.own_size = 0
            state.own, state.has_filter, state.pull = None, False, True
        await _run_aside(len(view.ids) > MANY, self._add_new_commits, state, view.ids, now)
        commits = self._choose_commits(state, view, budget, now)
        count = len(view.ids)
        is_pull = state.pull or (not commits and now - state.reset >= POLL_MIN.total_seconds())
        may_be_light = count > SMALL or state.wants_filters
        if is_pull and may_be_light and not state.pull and state.size == count and state.light < LIGHT_POLLS:
            # COMPAT: the protocol has no request that asks whether there is anything new. If both servers hold equally
            # many commits, there is probably nothing new, so no Bloom filter is sent.
            state.light += 1
            is_pull = False
        elif is_pull:
            state.light = 0
        bloom = await _run_aside(count > MANY, self._own_filter, state, view.ids) if is_pull else _HAVE_ALL
        return EncodedMessage(filter=encode_filter(bloom), size=count, commits=commits), is_pull

    def _add_new_commits(self, state: _Repository, ids: Sequence[str], now: float) -> None:
        """Record in `state.waiting` that the peer may lack the commits that were stored since the last call.

        Once in each interval `RECHECK`, record this of all other commits of the repository, too.
        """
        for commit_id in ids[state.seen :]:
            state.waiting[commit_id] = _Waiting()
            state.seen += 1
        if now - state.checked >= RECHECK.total_seconds():
            state.checked = now
            self._reset_peer_state(state, ids)

    def _reset_peer_state(self, state: _Repository, ids: Sequence[str]) -> None:
        """Mark every commit of a repository as not confirmed by the peer.

        The peer's next Bloom filter shows which of them the peer holds; these are not sent again.
        """
        for commit_id in ids[: state.seen]:
            if commit_id not in state.waiting:
                state.waiting[commit_id] = _Waiting()
        state.has_filter = False

    def _choose_commits(self, state: _Repository, view: PeerView, budget: _RequestBudget, now: float) -> list[bytes]:
        """Choose commits to send to the peer, the least often sent first.

        None are chosen before the peer has sent its first Bloom filter, which shows the commits that it holds.
        """
        if not state.has_filter:
            state.pull = True
            return []
        ready = [
            (one.offers, commit_id)
            for commit_id, one in state.waiting.items()
            if one.doubt >= 1.0 and one.not_before <= now
        ]
        if len(ready) > budget.commits or any(offers for offers, _ in ready):
            ready.sort(key=lambda pair: pair[0])
        chosen: list[bytes] = []
        for _, commit_id in ready:
            try:
                commit = view.encoded_commit(commit_id)
            except KeyError:  # taken out since
                del state.waiting[commit_id]
                continue
            if len(chosen) == state.limit or not budget.take_commit(len(commit)):
                break
            one = state.waiting[commit_id]
            one.offers += 1
            one.not_before = now + _retry_pause(one.offers)
            chosen.append(commit)
        return chosen

    def _own_filter(self, state: _Repository, ids: Sequence[str]) -> BloomFilter:
        """Return a Bloom filter over all commits of a repository on this server.

        For a large repository, the previous filter is extended instead of building a new one.
        """
        stale = state.own is None or len(ids) > state.own_size or state.size > len(ids) or len(ids) <= SMALL
        if state.own is None or stale:
            # SECURITY: a peer that claims to hold 1e9 commits must not make this server build a filter for as many
            # (tests/unit/node/test_peer.py).
            theirs = min(state.size, 2 * len(ids) + SPARE_SIZE)
            size, rate = filter_parameters(len(ids) + len(ids) // 8, theirs, CYCLES)
            state.own = BloomFilter.for_size(size, rate, new_seeds(seed_count(size, rate)))
            state.own_size, state.own_seen = size, 0
        fresh = ids[state.own_seen :]
        state.own.update(fresh)
        state.own_seen += len(fresh)
        return state.own

    async def _process_reply(self, state: _Repository, pulled: bool, reply: Mapping[str, Any]) -> None:
        try:
            message = SyncMessage.from_json(reply)
        except DecodeError as error:
            raise NodeRefusedError(
                f"the reply of {self.url} for {state.path} is invalid: {error}", status=200
            ) from None
        now = self._clock.monotonic()
        size = int(message.size) if 0 <= message.size < 2**53 else 0
        if size < state.size:
            state.checked = 0.0
        state.size = size
        if pulled:
            state.pull = False
        await _run_aside(len(state.waiting) > MANY, self._mark_confirmed, state, message.filter)
        new = await self._replica.store_commits(state.path, message.commits) if message.commits else 0
        if new:
            state.reset = now
            state.pull = True
        if state.has_news:
            state.due = now
        elif new:
            state.due = now + POLL_MIN.total_seconds()
        elif state.due <= now:
            state.due = now + self._poll_interval(state, now)

    def _mark_confirmed(self, state: _Repository, shown: BloomFilter) -> None:
        """Mark the commits that the peer's Bloom filter contains as held by the peer.

        A commit counts only once enough filters have contained it, so that a false positive is unlikely.
        """
        error_rate = shown.error_rate
        is_new = shown.seeds != state.seeds
        state.has_filter, state.seeds = True, shown.seeds
        is_undecided = False
        for commit_id, one in list(state.waiting.items()):
            if one.doubt < 1.0 and not is_new:  # the last filter contained it, and so does this one in any case
                is_undecided = True
                continue
            if commit_id not in shown:
                if one.doubt < 1.0:
                    one.offers, one.not_before = 0, 0.0
                one.doubt = 1.0
                continue
            one.doubt *= error_rate
            if one.doubt < CERTAIN:
                del state.waiting[commit_id]
            elif one.doubt < 1.0:
                is_undecided = True
        state.wants_filters = is_undecided and (state.wants_filters or not is_new)

    # --- rhythm -----------------------------------------------------------------------------------------------------

    def _state_of(self, path: str) -> _Repository:
        state = self._repositories.get(path)
        if state is None:
            now = self._clock.monotonic()
            state = self._repositories[path] = _Repository(path, due=now, reset=now, checked=now)
        return state

    def _due_repositories(self, now: float) -> list[_Repository]:
        if self._retry_at > now:
            return []
        due = [state for state in self._repositories.values() if state.due <= now]
        due.sort(key=_sync_order)
        if due and due[0].path not in FIRST_PATHS:
            # The request also sends the sessions that signed these commits, if the peer may lack them.
            first = [self._repositories[path] for path in FIRST_PATHS if path in self._repositories]
            lacking = [state for state in first if any(one.doubt >= 1.0 for one in state.waiting.values())]
            due[:0] = [state for state in lacking if not (state.unread or state.unstored)]  # those wait for their time
        return due[:MAX_PATHS]

    async def _wait_for_work(self, now: float) -> None:
        """Wait until the next repository has to be polled, or a repository changes."""
        self._wake.clear()
        until = max(min((state.due for state in self._repositories.values()), default=now + 1.0), self._retry_at)
        await run_unless_set(self._wake, self._clock.sleep(timedelta(seconds=max(0.001, until - now))))

    def _poll_interval(self, state: _Repository, now: float) -> float:
        """Return the pause before the next poll of a repository: as in GoatDB, 0.3 s after a change and 1.5 s later on.

        The pause reaches 1.5 s three seconds after the change. If there are very many repositories, those without
        changes are polled less often, so that the total rate stays bounded.
        """
        low, high = POLL_MIN.total_seconds(), POLL_MAX.total_seconds()
        if state.path not in FIRST_PATHS:
            high *= max(1.0, len(self._repositories) / MAX_PATHS)
        part = min(1.0, max(0.0, now - state.reset) / RAMP.total_seconds())
        return low + ((2.0 ** (10 * part - 10)) if part > 0 else 0.0) * (high - low)

    def _record_success(self) -> None:
        if self._is_reported:
            self._is_reported = False
            _log.info("%s", event_text(Event.NODE_PEER_FOUND, url=self.url))
        if self._failures:
            for state in self._repositories.values():
                state.due = 0.0
        self._failures = 0
        self._retry_at = 0.0
        self._last_error = None
        self._rounds += 1
        instance = self.client.answered_by
        if instance is not None:
            self._answered.pop(instance, None)
            self._answered[instance] = self._clock.monotonic()
            if len(self._answered) > MANY_INSTANCES:
                del self._answered[next(iter(self._answered))]
        self._limit = min(MAX_COMMITS, self._limit * 2)

    def _record_failure(self, due: Sequence[_Repository], error: Exception) -> None:
        now = self._clock.monotonic()
        if not self._is_reported and now - self._reported_at >= REPORT.total_seconds():
            self._is_reported, self._reported_at = True, now
            advice = {"do": error.hint} if isinstance(error, NodeRefusedError) and error.hint else {}
            text = event_text(Event.NODE_PEER_LOST, url=self.url, message=error, **advice)
            _log.warning("%s", text)
        self._failures += 1
        self._last_error = str(error)
        self._limit = max(MIN_COMMITS, self._limit // 2)
        self._retry_at = now + min(DOWN_MAX.total_seconds(), 0.1 * 2.0 ** min(self._failures, 10))
        for state in due:
            # The peer may have received the commits. Its next filter shows whether it has.
            for one in state.waiting.values():
                one.not_before, one.offers = 0.0, 0
            state.due = max(state.due, now)

    def _postpone_repository(
        self, state: _Repository, count: int, watchers: Sequence[asyncio.Future[bool]], error: Exception
    ) -> None:
        """Try a repository again later whose synchronization has failed `count` times in a row."""
        if str(error) != state.problem:
            state.problem = str(error)
            trace = None if isinstance(error, GoatherdError | OSError) else error
            _log.error("cannot sync %s with %s; retrying: %s", state.path, self.url, error, exc_info=trace)
        state.pull = True  # what the peer has sent may not be stored
        state.due = self._clock.monotonic() + _retry_pause(count)
        _resolve_watchers(watchers, answer=False)


class _RequestBudget:
    """How many more commits and bytes fit into one request to a peer."""

    __slots__ = ("bytes", "commits")

    def __init__(self, commits: int) -> None:
        self.commits = commits
        self.bytes = MAX_BYTES

    def take_commit(self, size: int) -> bool:
        """Reserve room for a commit of `size` bytes in the request; return False if there is not enough.

        The first commit fits even if it is larger than the whole limit of bytes.
        """
        if self.commits <= 0 or (size > self.bytes and self.bytes < MAX_BYTES):
            return False
        self.commits -= 1
        self.bytes -= size
        return True


async def _run_aside(is_much: bool, work: Callable[..., T], *arguments: Any) -> T:
    """Run a function, in a thread if `is_much` says that it takes long.

    No lock is needed: only the loop of this peer uses the same state, and the loop waits for the function.
    """
    return await asyncio.to_thread(work, *arguments) if is_much else work(*arguments)


def _retry_pause(count: int) -> float:
    """Return how many seconds to wait before the next attempt after `count` unsuccessful ones."""
    return min(AGAIN_MAX.total_seconds(), 0.3 * 2.0 ** min(count - 1, 10))


def _resolve_watchers(watchers: Sequence[asyncio.Future[bool]], *, answer: bool) -> None:
    for watcher in watchers:
        if not watcher.done():
            watcher.set_result(answer)


def _sync_order(state: _Repository) -> tuple[int, float]:
    return (FIRST_PATHS.index(state.path) if state.path in FIRST_PATHS else len(FIRST_PATHS), state.due)
