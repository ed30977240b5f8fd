"""Copy new sessions, which have not signed a request yet, to every server of a cluster, or introduce them at once.

A client may get its session from one server and send its first request to another. A server that does not know the
session answers 403, and GoatDB's client then never requests a new one. So the server that creates a session copies it
to its peers. If every peer confirms in time that it has stored the session, no commit is needed yet. Otherwise (a peer
is unreachable, or is an unmodified GoatDB server or an older Goatherd) the session is *introduced* at once: it gets a
commit in ``/sys/sessions``, which replicates to all servers.

Each request lists the server processes to which the session is sent. A peer that also synchronizes with a server
outside of this list does not confirm. So if not all servers are peers of each other, sessions are introduced when they
are created.

Servers that are not peers are noticed when they request ``/sys/sessions``, signed by a root; a Goatherd server names
its process in the request. Until such a server has confirmed a session, every new session is introduced at once. If the
server continues to send requests without a confirmation, the older unused sessions are introduced, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from goatherd.clock import Clock
from goatherd.cluster.client import NO_SERVER
from goatherd.errors import DecodeError, GoatherdError, NodeError
from goatherd.identity.session import OwnedSession, Session
from goatherd.node.engine import JSON_TYPE, Engine, EngineSteps, Response
from goatherd.node.management import refuse_unless_root
from goatherd.node.unused_sessions import UnusedSessions, read_records, read_servers, record_of
from goatherd.serving.signals import cancel_tasks
from goatherd.wire.json import parse_json, to_json_bytes

if TYPE_CHECKING:
    from goatherd.cluster.client import NodeClient

_log = logging.getLogger("goatherd.node")

PATH: Final = "/goatherd/v1/unused"
PAGE: Final = 2000

CONFIRMED_WITHIN: Final = timedelta(seconds=1)
AGAIN_AFTER: Final = timedelta(seconds=5)
"""Pause before the next request to a peer that did not confirm."""
INTRODUCED_AFTER_START: Final = timedelta(seconds=15)
"""How long after a start every new session is introduced; in this time, servers that are not peers are noticed."""
REMEMBERED: Final = timedelta(minutes=10)
PERSISTENT: Final = timedelta(seconds=30)
LOOK: Final = timedelta(seconds=5)
FETCH_AGAIN: Final = timedelta(seconds=20)
TIDY: Final = timedelta(hours=1)

_MOST_RECORDS: Final = 400
_MOST_ASKERS: Final = 64
_INTRODUCED_AT_ONCE: Final = 64


class _PeerHandover:
    """Send new sessions to one peer. Sessions that arrive during a request are sent together in the next one."""

    def __init__(
        self,
        client: NodeClient,
        signer: Callable[[], OwnedSession],
        clock: Clock,
        recipients: Callable[[], Sequence[str]],
    ) -> None:
        self.client = client
        self._recipients = recipients
        self.has_given = False
        self.fetch_not_before = 0.0
        self._signer = signer
        self._clock = clock
        self._waiting: list[tuple[dict[str, Any] | None, asyncio.Future[str | None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._not_before = -1.0
        self._began = 0.0

    def hand_over(self, record: dict[str, Any] | None) -> asyncio.Future[str | None]:
        """Send a new session to the peer; with None, only ask for the id of the peer's server process.

        The future's result is that id, or None if the request failed.
        """
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        now = self._clock.monotonic()
        is_busy = self._task is not None and not self._task.done()
        if now < self._not_before or (is_busy and now - self._began > CONFIRMED_WITHIN.total_seconds()):
            future.set_result(None)
            return future
        self._waiting.append((record, future))
        if not is_busy:
            self._began = now
            self._task = asyncio.create_task(self._send_waiting(), name=f"unused sessions to {self.client.base_url}")
        return future

    async def _send_waiting(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[:_MOST_RECORDS], self._waiting[_MOST_RECORDS:]
            self._began = self._clock.monotonic()
            instance: str | None = None
            try:
                records = [record for record, _ in taken if record is not None]
                instance = await self.client.send_unused_sessions(records, self._recipients(), self._signer())
            except (NodeError, OSError) as error:
                _log.debug("cannot send unused sessions to %s: %s", self.client.base_url, error)
            except Exception:  # noqa: BLE001 - the callers that wait get an answer, and the session is introduced
                _log.exception("cannot send unused sessions to %s", self.client.base_url)
            finally:
                if instance is None:
                    self._not_before = self._clock.monotonic() + AGAIN_AFTER.total_seconds()
                    taken, self._waiting = taken + self._waiting, []
                for _, future in taken:
                    if not future.done():
                        future.set_result(instance)

    async def aclose(self) -> None:
        await cancel_tasks(self._task)


class UnusedSessionExchange:
    """Exchange sessions that have not signed a request yet with the other servers, for one database.

    Args:
        engine: The database's engine.
        unused: The engine's table of the sessions that have not signed a request yet.
        clients: HTTP clients of the peers.
        signer: Returns the session that currently signs requests to peers.
        clock: Supplies the current time.
        durable: Writes the log of `unused` durably to the disk.
        publish: Writes ``/sys/sessions`` durably and notifies the peers.
        drive: Runs a generator of the engine.
        is_wanted: Whether new sessions may be kept out of ``/sys/sessions`` until their first request; if not, all
            unused sessions are introduced.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        unused: UnusedSessions,
        clients: Sequence[NodeClient],
        signer: Callable[[], OwnedSession],
        clock: Clock,
        durable: Callable[[], Awaitable[object]],
        publish: Callable[[], Awaitable[None]],
        drive: Callable[[EngineSteps[int]], Awaitable[int]],
        is_wanted: bool = True,
    ) -> None:
        self._engine = engine
        self._unused = unused
        self._couriers = [_PeerHandover(client, signer, clock, self._known_recipients) for client in clients]
        self._signer = signer
        self._clock = clock
        self._durable = durable
        self._publish = publish
        self._drive = drive
        self._is_wanted = is_wanted
        self._began = clock.monotonic()
        self._confirmed: dict[str, None] = {}
        self._askers: dict[str, tuple[float, float]] = {}
        self._wake = asyncio.Event()

    async def aclose(self) -> None:
        """End all requests to the peers that exchange unused sessions."""
        for courier in self._couriers:
            await courier.aclose()

    # --- what is kept back ------------------------------------------------------------------------------------------

    @property
    def may_defer(self) -> bool:
        """Whether a new session may be kept out of ``/sys/sessions`` until its first request, if all peers store it.

        False in direct mode (the root's key is in an HSM or a KMS), because a request that sends a session to a peer
        costs a signature, as the introduction does.
        """
        if self._signer().is_remote:
            return False
        if not self._is_wanted or self._clock.monotonic() - self._began < INTRODUCED_AFTER_START.total_seconds():
            return False
        return not self._unconfirmed_askers()

    def note_asker(self, sender: str | None) -> None:
        """Note that another server has requested ``/sys/sessions`` with a request that a root signed.

        Args:
            sender: Id of the server process that sent the request; None if the request names none, as the requests of
                unmodified GoatDB servers.
        """
        if sender == NO_SERVER:
            return
        now = self._clock.monotonic()
        first, _ = self._askers.pop(sender or "", (now, now))
        self._askers[sender or ""] = first, now
        if len(self._askers) > _MOST_ASKERS:
            del self._askers[next(iter(self._askers))]
        if sender not in self._confirmed:
            self._wake.set()

    def _recent_askers(self) -> dict[str, tuple[float, float]]:
        """Return which server processes have requested ``/sys/sessions`` recently.

        For each process's id, the result has the times of its first and its last request.
        """
        since = self._clock.monotonic() - REMEMBERED.total_seconds()
        self._askers = {sender: times for sender, times in self._askers.items() if times[1] >= since}
        return self._askers

    def _unconfirmed_askers(self) -> list[tuple[float, float]]:
        """Return when servers requested ``/sys/sessions``: those that have not confirmed to store unused sessions.

        The result has, for each such server process, the times of its first and its last request.
        """
        return [times for sender, times in self._recent_askers().items() if sender not in self._confirmed]

    async def share_session(self, session: Session) -> bool:
        """Send a new session to all peers; return whether each peer has stored the session."""
        if not self._couriers:
            return True
        record = record_of(session)
        handed = [courier.hand_over(record) for courier in self._couriers]
        _, late = await asyncio.wait(handed, timeout=CONFIRMED_WITHIN.total_seconds())
        instances = [None if future in late else future.result() for future in handed]
        for instance in instances:
            self._note_confirmed(instance)
        return None not in instances

    def _known_recipients(self) -> list[str]:
        """Return the ids of the server processes that get each new session.

        These are this process and, for each peer, the process that last answered.
        """
        answered = [courier.client.answered_by for courier in self._couriers]
        return [self._engine.instance, *(instance for instance in answered if instance is not None)]

    def _is_complete(self, recipients: Collection[str]) -> bool:
        """Return whether these server processes include every server that this one synchronizes with."""
        peers = [courier.client.answered_by for courier in self._couriers]
        return all(instance in recipients for instance in (*peers, *self._recent_askers()))

    def _note_confirmed(self, instance: str | None) -> None:
        if instance is not None:
            self._confirmed.pop(instance, None)
            self._confirmed[instance] = None
            if len(self._confirmed) > _MOST_ASKERS:
                del self._confirmed[next(iter(self._confirmed))]

    # --- keeping up -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch unused sessions from the peers, and introduce those that other servers need, until cancelled."""
        tidied = self._clock.monotonic()
        while True:
            try:
                if self._clock.monotonic() - tidied >= TIDY.total_seconds():
                    tidied = self._clock.monotonic()
                    self._unused.drop_expired(self._engine_now())
                    await self._durable()
                await self._sync_peers()
            except GoatherdError as error:
                _log.warning("cannot exchange unused sessions: %s", error)
            except Exception:  # noqa: BLE001 - a loop that ended would leave this server without its peers' sessions
                _log.exception("cannot exchange unused sessions")
            await self._clock.sleep(LOOK)

    async def _sync_peers(self) -> None:
        for courier in self._couriers:
            if not courier.has_given and self._clock.monotonic() >= courier.fetch_not_before:
                courier.has_given = await self._fetch_sessions(courier)
                courier.fetch_not_before = self._clock.monotonic() + FETCH_AGAIN.total_seconds()
        if self._wake.is_set():
            self._wake.clear()
            for courier in self._couriers:
                self._note_confirmed(await courier.hand_over(None))
        while self._must_introduce():
            if not await self._drive(self._engine.introduce_unused(_INTRODUCED_AT_ONCE, self._engine_now())):
                break
            await self._publish()

    def _must_introduce(self) -> bool:
        if not self._is_wanted:
            return True
        now = self._clock.monotonic()
        persistent = PERSISTENT.total_seconds()
        return any(last - first >= persistent and now - last < persistent for first, last in self._unconfirmed_askers())

    def _engine_now(self) -> int:
        return self._clock.now_ms()

    async def _fetch_sessions(self, courier: _PeerHandover) -> bool:
        """Fetch a peer's unused sessions; return False if this failed and must be repeated later.

        The result is also True if the peer will never provide such sessions.
        """
        after = ""
        while True:
            try:
                page = read_records(await courier.client.unused(after, self._signer()))
            except (NodeError, DecodeError, OSError):
                return False
            if not page:
                return True
            self._unused.add_records(page, self._engine.is_introduced, self._engine_now())
            await self._durable()
            last = max((record["id"] for record in page if isinstance(record.get("id"), str)), default="")
            if last <= after:
                return True
            after = last

    # --- requests ---------------------------------------------------------------------------------------------------

    async def answer_request(self, body: bytes, header: str | None) -> Response:
        """Answer ``POST /goatherd/v1/unused``: store the unused sessions of a peer, and return this server's if asked.

        Status 409 means that this server has not stored the sessions, so that the peer must introduce them in
        ``/sys/sessions``.
        """
        if refusal := await refuse_unless_root(self._engine, PATH, body, header, now_ms=self._engine_now()):
            return refusal
        try:
            asked = parse_json(body)
            given = read_records(asked.get("sessions") if isinstance(asked, dict) else None)
            recipients = read_servers(asked.get("servers", []))
            after = asked.get("after")
        except DecodeError:
            return Response(status=400)
        if given:
            # SECURITY: the sessions are stored only if every peer gets them, because a server without them would reject
            # their first requests (tests/unit/node/test_unused_sessions.py).
            if not self.may_defer or not self._is_complete(recipients):
                return Response(status=409)
            self._unused.add_records(given, self._engine.is_introduced, self._engine_now())
            await self._durable()
        answer: dict[str, Any] = {"instance": self._engine.instance}
        if isinstance(after, str):
            answer["sessions"] = await asyncio.to_thread(self._unused.page_reader(), after, PAGE)
        return Response(status=200, body=to_json_bytes(answer), content_type=JSON_TYPE)
