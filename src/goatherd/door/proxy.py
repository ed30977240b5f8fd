"""Handle each request of the door: check it, pass it on to the server, and answer.

The module is an ASGI application for `goatherd.serving.listener`, which reports when a caller disconnects. It applies
the checks of `request_checks`, `trusted_sessions` and `commit_index`, in this order.

Rules: four kinds of request are read whole and checked (`/batch-sync`, `/auth/session`, `/auth/send-login-email`,
`/auth/temp-login`); all others stream in both directions, and so do answers. Hop-by-hop headers are removed, and each
connection has its own framing. If a check needs the server and the server does not answer, the caller gets a 503 with
Retry-After. A refusal has an empty body and no CORS headers, like GoatDB's own. An incomplete answer of the server
stays incomplete for the caller.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Any, Final
from urllib.parse import parse_qs

from goatherd.admission.access import is_allowed_by_default
from goatherd.clock import Clock
from goatherd.door.binding import give_misdirected, instance_headers, is_misdirected
from goatherd.door.commit_index import RepositoryIndex, RepositoryIndexes
from goatherd.door.delivery import Delivery, Verified, encode_batch
from goatherd.door.exchange import KEPT_BYTES, Exchange, HeaderRewriter
from goatherd.door.key_filter import (
    KeyFilter,
    SyncAnswer,
    filter_session_answer,
    script_with_server_url,
)
from goatherd.door.limits import DoorLimits
from goatherd.door.received_commits import ReceivedCommit
from goatherd.door.request_checks import (
    DoorRule,
    DroppedError,
    Element,
    check_encoding,
    check_headers,
    check_method,
    check_session_request,
    check_target,
    read_batch,
    read_commit,
    read_mail_request,
    rule_of,
)
from goatherd.door.server_connections import LostError, ServerConnection, ServerConnections
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.errors import (
    ClockSkewError,
    DecodeError,
    ExpiredSessionError,
    GoatherdError,
    InvalidSignatureError,
    NodeRefusedError,
    NodeUnreachableError,
    RevokedSessionError,
    UnknownSignerError,
    VerificationError,
)
from goatherd.identity.request_binding import RequestGuard
from goatherd.identity.session import (
    Session,
    SignatureEnvelope,
    parse_signature,
    verify_data,
)
from goatherd.serving.caller_limiter import (
    CONNECTION,
    CallerLimiter,
    GoneError,
    Receive,
    Scope,
    Send,
    Share,
    send_refusal,
)
from goatherd.serving.caller_limits import Excess, RefusedError, TokenBuckets
from goatherd.serving.signals import cancel_tasks, run_unless_set
from goatherd.wire.batch import RawCommits, is_light, split_batch
from goatherd.wire.commit import Commit
from goatherd.wire.paths import SESSIONS_PATH

Answerer = Callable[[str, str, str, str, bytes], Awaitable[tuple[int, bytes]]]
"""Answers a request below `OWN_PREFIX`, given method, path, query and signature; returns status and body."""

OWN_PREFIX: Final = "/goatherd/v1/"
"""Requests for paths below this prefix are Goatherd's own, and never passed to the server."""
OWN_BODY: Final = 16 * 1024
"""Maximum bytes of the body of such a request that is read; tools send none to a door or an agent."""
BIG_BODY: Final = 64 * 1024
"""A larger answer to a client is parsed in a thread."""
ANSWER_BYTES: Final = 8 * 1024 * 1024
"""Maximum size of an answer to ``/auth/session``."""
ANSWER_SECONDS: Final = 7.5
"""How long after its headers a push is answered at the latest, if the server answers at all: a client waits ten seconds
for the whole answer, then closes the connection and sends everything again."""
PEER_ANSWER_SECONDS: Final = 3.5
"""The same limit for pushes by another server, which uses a root's session and waits five seconds."""
SESSION_SECONDS: Final = 4.0
"""The same limit for the creation of a session, for which a client waits five seconds."""
JUDGE_SECONDS: Final = 2.0
"""Minimum time for the checks, however long the body took to arrive."""
EARLY_ANSWERS: Final = 5
"""Maximum number of early answers during a delivery: clients stop offering a commit after ten answers."""
LEFT_OUT: Final = 1000
"""Maximum number of remembered untrusted roots."""
_REQUEST_RULES: Final = {
    RevokedSessionError: DoorRule.REVOKED,
    UnknownSignerError: DoorRule.UNKNOWN_SIGNER,
    ClockSkewError: DoorRule.REQUEST_TIME,
}
"""The rules of errors in a request's signature other than `DoorRule.REQUEST_SIGNATURE`."""


class Proxy:
    """Check the requests to a GoatDB server, and pass them on to the server.

    Args:
        server: The connections to the server.
        trusts: The trusted sessions of each organization.
        indexes: The indexes of repositories of each organization, by its id.
        limits: Limits on each caller's requests.
        limiter: Counts what callers use.
        clock: Supplies the current time.
        executor: Threads for signatures.
        private: Whether only roots may write to ``/sys/*`` and only the owner to ``/user/<id>``.
        header_rewriter: Rewrites the headers of the server's answer.
        report: Called for each rejection, with the rule and the reason.
        report_away: Called, with the reason, for each request that failed because the server did not answer.
        own: Answers requests below ``/goatherd/v1/``; None answers them with 404.
        guard: Checks whether a request that was signed for one server is meant for this one.
    """

    def __init__(
        self,
        *,
        server: ServerConnections,
        trusts: Sequence[TrustedSessions],
        indexes: Mapping[str, RepositoryIndexes],
        limits: DoorLimits,
        limiter: CallerLimiter,
        clock: Clock,
        executor: Executor | None,
        private: bool,
        header_rewriter: HeaderRewriter,
        report: Callable[[DoorRule, str], None],
        report_away: Callable[[str], None],
        guard: RequestGuard,
        own: Answerer | None = None,
    ) -> None:
        self._own = own
        self._guard = guard
        self.limits = limits
        self._server = server
        self._trusts = tuple(trusts)
        self._indexes = indexes
        self._clock = clock
        self._executor = executor
        self._private = private
        self._limiter = limiter
        self._header_rewriter = header_rewriter
        self._report = report
        self._log_unanswered = report_away
        self._timeout = limits.answer_timeout.total_seconds()
        self._mails = TokenBuckets(limits.mails)
        self._new_repositories = TokenBuckets(limits.new_repositories)
        self._repositories: OrderedDict[str, None] = OrderedDict()
        self._left_out: dict[str, None] = {}
        self._deliveries: set[asyncio.Task[None]] = set()
        self.handed_on = 0
        """How many requests have reached the server."""

    async def aclose(self, grace: float, hurry: asyncio.Event) -> None:
        """Let deliveries whose clients have their answer already continue for a while, then cancel them.

        Args:
            grace: For how many seconds the deliveries may continue.
            hurry: Event that ends this time.
        """
        if self._deliveries:
            await run_unless_set(hurry, asyncio.wait(set(self._deliveries), timeout=grace))
        await cancel_tasks(*self._deliveries)

    async def handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI request. This is the door's ASGI application."""
        if scope["type"] != "http":
            return
        try:
            exchange = self._begin_exchange(scope, receive, send)
        except RefusedError as refused:
            self._report(DoorRule(refused.rule), str(refused))
            await send_refusal(refused, receive, send)
            return
        with suppress(GoneError):
            try:
                await self._handle_exchange(exchange)
            finally:
                exchange.release_caller()

    async def _handle_exchange(self, exchange: Exchange) -> None:
        try:
            await self._route_request(exchange)
        except RefusedError as refused:
            self._report(DoorRule(refused.rule), f"{exchange.method} {exchange.path:.100}: {refused}")
            await exchange.answer_refusal(refused)
        except (LostError, TimeoutError) as error:
            status = 504 if isinstance(error, TimeoutError) else 502
            await exchange.answer_refusal(RefusedError(DoorRule.CHILD, status, str(error), retry_after=1))
        except NodeUnreachableError as error:
            self._log_unanswered(str(error))
            await exchange.answer_refusal(RefusedError(DoorRule.CHILD, 503, str(error), retry_after=1))
        except NodeRefusedError as error:
            # The server does not trust the door's signer, so that nothing can be judged.
            self._report(DoorRule.CHILD, str(error))
            await exchange.answer_refusal(RefusedError(DoorRule.CHILD, 503, str(error), retry_after=1))

    def _begin_exchange(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        check_method(scope["method"])
        found = check_headers(headers)
        address = self._limiter.take_request(scope)
        raw_path: bytes = scope["raw_path"]
        if raw_path == b"*" and scope["method"] == "OPTIONS":
            raw_path = b"/"  # health checks of HAProxy ask so; GoatDB under Node cannot read this URL
        path = check_target(raw_path)
        query: bytes = scope["query_string"]
        exchange = Exchange(
            method=scope["method"],
            path=path,
            target=raw_path + b"?" + query if query else raw_path,
            headers=headers,
            found=found,
            address=address,
            caller=scope.get(CONNECTION),
            limiter=self._limiter,
            receive=receive,
            send=send,
            header_rewriter=self._header_rewriter,
        )
        exchange.answer_by = asyncio.get_running_loop().time() + ANSWER_SECONDS
        if exchange.has_body and b"upgrade" in found:
            raise RefusedError(DoorRule.HEADERS, 400, "a request with a body must not ask for another protocol")
        return exchange

    async def _route_request(self, exchange: Exchange) -> None:
        method, path = exchange.method, exchange.path
        if path.startswith(OWN_PREFIX):
            return await self._answer_own(exchange)
        if method == "POST":
            if path == "/batch-sync":
                return await self._batch_sync(exchange)
            if path == "/auth/session":
                return await self._new_session(exchange)
            if path == "/auth/send-login-email":
                return await self._login_mail(exchange)
        elif method == "GET" and path == "/auth/temp-login":
            self._login_token(exchange)
        return await self._pass_on(exchange)

    async def _answer_own(self, exchange: Exchange) -> None:
        """Answer a request below ``/goatherd/v1/`` in the door, without passing it on to the server.

        SECURITY: the server behind the door must not answer in the name of Goatherd's agent
        (tests/cluster/test_agent_status.py).
        """
        with exchange.open_share() as share:
            body = await read_own_body(exchange, share)  # left unread, it would be the next request
        status, answer = 404, b""
        if self._own is not None:
            query = exchange.target.partition(b"?")[2].decode("latin-1")
            signature = exchange.found.get(b"x-goat-sig", b"").decode("latin-1")
            status, answer = await self._own(exchange.method, exchange.path, query, signature, body)
        await exchange.give_answer(status, answer, instance_headers(self._guard, status))

    async def _pass_on(self, exchange: Exchange) -> None:
        """Pass on a request that the door does not check; only private keys in the JSON answer are overwritten."""
        if exchange.has_body:
            connection = await exchange.stream_on(self._server, self._timeout)
        else:
            connection = await exchange.hand_on(self._server, b"", self._timeout)
        if self._header_rewriter.public is not None and exchange.method == "GET" and exchange.path.endswith("/app.js"):
            await self._answer_script(exchange, connection)
            return
        headers = dict(connection.headers)
        is_json = b"json" in headers.get(b"content-type", b"").lower()
        await self._stream_answer(exchange, connection, KeyFilter() if is_json else None)

    async def _answer_script(self, exchange: Exchange, connection: ServerConnection) -> None:
        """Answer with the application's script (``app.js``), with the door's address in place of the server's.

        SECURITY: callers without a session may request the script, and read the answer slowly. So the door streams the
        script, and does not hold it in memory (tests/unit/door/test_public_address.py).
        """

        def rewrite(lines: bytes) -> bytes:
            return script_with_server_url(lines, self._header_rewriter.rewrite_address)

        try:
            await exchange.stream_script(connection, rewrite, self._timeout)
        finally:
            self._server.release_connection(connection)
        self.handed_on += 1

    async def _stream_answer(
        self,
        exchange: Exchange,
        connection: ServerConnection,
        keys: KeyFilter | None,
        kept: bytearray | None = None,
    ) -> None:
        try:
            if keys is not None:
                _refuse_compressed(connection)
            await exchange.stream_answer(connection, keys, self._timeout, kept)
            self.handed_on += 1
        finally:
            self._server.release_connection(connection)
            if keys is not None and keys.found:
                self._report(
                    DoorRule.PRIVATE_KEY, f"the answer of {exchange.path:.100} contained {keys.found} private keys"
                )

    # --- POST /batch-sync ---------------------------------------------------------------------------------------------

    async def _batch_sync(self, exchange: Exchange) -> None:
        with exchange.open_share() as share:
            trust, session, envelope = await self._authenticate_sender(exchange)
            body = await exchange.read_body(share)
            exchange.answer_by = max(exchange.answer_by, asyncio.get_running_loop().time() + JUDGE_SECONDS)
            if await is_misdirected(
                self._guard, exchange, body, envelope, is_root=session.is_root, now_ms=self._clock.now_ms()
            ):
                await give_misdirected(exchange, self._guard)
                return
            if is_light(body):
                elements = read_batch(body, self.limits, trust.known_commits)
            else:
                elements = await asyncio.to_thread(read_batch, body, self.limits, trust.known_commits)
            # The servers of a cluster share one root session; they may request any number of repositories.
            fresh = set() if session.is_root else {each.path for each in elements} - self._repositories.keys()
            if fresh:
                self._limiter.take_token(self._new_repositories, exchange.address, "new repositories", len(fresh))
            try:
                if any(element.commits or element.left_out for element in elements):
                    if session.is_root:
                        read_by = asyncio.get_running_loop().time()
                        earlier = exchange.answer_by - ANSWER_SECONDS + PEER_ANSWER_SECONDS
                        exchange.answer_by = max(earlier, read_by + JUDGE_SECONDS)
                    connection = await self._deliver_push(exchange, trust, elements, body, share)
                else:
                    connection = await exchange.hand_on(self._server, body, self._timeout)
            except NodeUnreachableError:
                self._count_repositories(exchange.address, elements, fresh, is_accepted=False)
                raise
        self._count_repositories(exchange.address, elements, fresh, is_accepted=connection.status == 200)
        asks_for_sessions = any(element.path == SESSIONS_PATH for element in elements)
        if connection.status == 200 and not session.is_root and asks_for_sessions:
            await self._answer_client(exchange, connection, trust, session, elements, fresh)
            return
        kept = bytearray() if fresh and connection.status == 200 else None
        await self._stream_answer(exchange, connection, KeyFilter(only=self._root_coordinates()), kept)
        if kept is not None:
            self._credit_repositories(exchange.address, elements, fresh, bytes(kept))

    async def _authenticate_sender(self, exchange: Exchange) -> tuple[TrustedSessions, Session, SignatureEnvelope]:
        """Return the sender of a request: its organization's trusted sessions, its session, and its signature.

        An unknown session is looked up in the server's sessions.

        SECURITY: the body is read and parsed only after its sender is authenticated, as in `goatherd serve`, so an
        unknown caller can make neither the door nor the server parse one. The signature is verified here, because the
        server caches the results of its checks and so accepts a signature again after the three minutes in which it is
        valid. The server also accepts a login token as a request signature, and answers 500 to a malformed signature
        (tests/cluster/test_door_requests.py, tests/unit/door/test_proxy.py).

        Raises:
            RefusedError: The signature is missing or invalid, its session is revoked or unknown, or the session has
                sent too many requests.
            NodeUnreachableError, NodeRefusedError: The server's sessions cannot be read, or not in time.
        """
        header = exchange.found.get(b"x-goat-sig", b"").decode("latin-1")
        try:
            if not header:
                raise RefusedError(DoorRule.REQUEST_SIGNATURE, 400, "a batch must have a request signature")
            check_encoding(exchange.found)
            envelope = parse_signature(header)
            await self._limiter.pause_request(envelope.session_id)
            async with self._in_time(exchange):
                trust, _ = await self._look_up_session(envelope.session_id)
            session = trust.pool.verify_request(envelope, self._clock.now_ms())
            if not session.is_root:
                self._limiter.take_request_of(session.id)
        except RefusedError as refused:
            refused.is_unread = exchange.has_body
            raise
        except VerificationError as error:
            rule = _REQUEST_RULES.get(type(error), DoorRule.REQUEST_SIGNATURE)
            raise RefusedError(rule, 403, str(error), is_unread=exchange.has_body) from None
        return trust, session, envelope

    async def _answer_client(
        self,
        exchange: Exchange,
        connection: ServerConnection,
        trust: TrustedSessions,
        session: Session,
        elements: Sequence[Element],
        fresh: Collection[str],
    ) -> None:
        """Answer a client's ``/batch-sync`` with those introductions of roots that the client can follow.

        `goatherd serve` chooses the same ones. Introductions of untrusted roots are left out. Of the requested
        repositories that were `fresh` to the door, those in which the server has commits are not charged.

        SECURITY: a client cannot be notified that a root was revoked, so the door does not send it such a root
        (tests/cluster/test_door_writers.py).
        """
        status, headers = connection.status, exchange.handed_back(connection.headers)
        keys = KeyFilter(only=self._root_coordinates())
        with exchange.open_answer_share() as share:
            try:
                _refuse_compressed(connection)
                body = await exchange.read_answer(connection, self.limits.buffered_bytes, self._timeout, share)
            finally:
                self._server.release_connection(connection)
            self._credit_repositories(exchange.address, elements, fresh, body)
            try:
                body = await self._choose_introductions(exchange, trust, session, body, keys)
            except (DecodeError, RecursionError) as error:
                raise RefusedError(DoorRule.CHILD, 502, f"the server's answer cannot be read: {error}") from None
            if keys.found:
                self._report(
                    DoorRule.PRIVATE_KEY, f"the answer of {exchange.path:.100} contained {keys.found} private keys"
                )
            fields = [(name, value) for name, value in headers if name != b"content-length"]
            with share.waiting():
                await exchange.start_answer(status, [*fields, (b"content-length", b"%d" % len(body))])
                await exchange.finish_answer(body)
        self.handed_on += 1

    async def _choose_introductions(
        self, exchange: Exchange, trust: TrustedSessions, session: Session, body: bytes, keys: KeyFilter
    ) -> bytes:
        """Return an answer of the server with the introductions of roots for a client, and without private keys.

        Raises:
            DecodeError, RecursionError: The answer cannot be read.
        """
        is_large = len(body) > BIG_BODY
        answer = await asyncio.to_thread(SyncAnswer, body) if is_large else SyncAnswer(body)
        if answer.introductions:
            await self._learn_introductions(exchange, list(chain.from_iterable(answer.introductions)))
        chosen = [trust.introductions_for(session, each) for each in answer.introductions]
        return await asyncio.to_thread(answer.encode, chosen, keys) if is_large else answer.encode(chosen, keys)

    async def _learn_introductions(self, exchange: Exchange, introductions: list[dict[str, Any]]) -> None:
        """Read the server's sessions if the door does not know all these introductions of roots.

        Untrusted roots are reported, each only once, although the server sends them with each answer.
        """
        root_ids = {each["k"] for each in introductions}
        is_known = any(trust.knows_introductions(introductions) for trust in self._trusts)
        revoked = {each for trust in self._trusts for each in trust.pool.revoked}
        if not is_known or root_ids - self._trusted_roots() - revoked - self._left_out.keys():
            # A root that was introduced a moment ago, past the door, may be good.
            with suppress(NodeUnreachableError, NodeRefusedError):
                async with self._in_time(exchange):
                    await self._refresh_sessions()
        for root_id in root_ids - self._trusted_roots() - self._left_out.keys():
            self._left_out[root_id] = None
            if len(self._left_out) > LEFT_OUT:
                del self._left_out[next(iter(self._left_out))]
            self._report(
                DoorRule.UNTRUSTED_ROOT,
                f"the door removed the untrusted root {root_id!r:.100} from an answer for {SESSIONS_PATH}",
            )

    def _trusted_roots(self) -> set[str]:
        return {root.id for trust in self._trusts for root in trust.pool.roots}

    async def _look_up_session(self, session_id: str) -> tuple[TrustedSessions, Session]:
        """Return a session and its organization's trusted sessions; if it is unknown, read the server's sessions first.

        Raises:
            UnknownSignerError, RevokedSessionError: The session is still unknown, or is revoked.
            NodeUnreachableError, NodeRefusedError: The server's sessions cannot be read.
        """
        found = self._find_session(session_id)
        if found is None:
            await self._refresh_sessions()
            found = self._find_session(session_id)
        if found is None:
            raise UnknownSignerError(f"session {session_id!r:.100} is not known")
        return found

    def _find_session(self, session_id: str) -> tuple[TrustedSessions, Session] | None:
        for trust in self._trusts:
            session = trust.find_session(session_id)
            if session is not None:
                return trust, session
        return None

    async def _refresh_sessions(self) -> None:
        await asyncio.gather(*[trust.look_up() for trust in self._trusts])

    def _credit_repositories(
        self, address: str, elements: Sequence[Element], fresh: Collection[str], answer: bytes
    ) -> None:
        """Give back what was charged for repositories that the server had already, as after a restart of the door.

        Only an answer of up to `KEPT_BYTES` is read: that to a client with the same commits as the server is small.
        """
        if not fresh or len(answer) > KEPT_BYTES:
            return
        counts = _read_counts(answer)
        held = {element.path for element, count in zip(elements, counts, strict=False) if count}
        pushed = {element.path for element in elements if element.commits}  # also by another element of the request
        self._new_repositories.give_back(address, self._clock.monotonic(), len((held - pushed).intersection(fresh)))

    def _count_repositories(
        self, address: str, elements: Sequence[Element], fresh: Collection[str], *, is_accepted: bool
    ) -> None:
        """Remember which repositories a request has asked for, so that they are no longer new to the door.

        A rejected request is not charged, except for repositories that the door has read for it: the server has
        created them.

        SECURITY: only requests whose signature the server accepted count, and the oldest entry makes room for a new
        one, so that no caller can fill the table (tests/cluster/test_door_limits.py).
        """
        if not is_accepted:
            read = {element.path for element in elements if element.commits}
            self._new_repositories.give_back(address, self._clock.monotonic(), len(set(fresh) - read))
            return
        for element in elements:
            self._repositories[element.path] = None
            self._repositories.move_to_end(element.path)
        while len(self._repositories) > self.limits.repositories:
            self._repositories.popitem(last=False)

    @asynccontextmanager
    async def _in_time(self, exchange: Exchange) -> AsyncIterator[None]:
        """Limit the ``async with`` block, in which a request is checked, to the time for which a client waits.

        Raises:
            NodeUnreachableError: The server did not answer in time.
        """
        limit = asyncio.timeout_at(exchange.answer_by)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise NodeUnreachableError(
                f"{self._server.url} did not return the data for the check of a request in time"
            ) from None

    async def _deliver_push(
        self, exchange: Exchange, trust: TrustedSessions, elements: Sequence[Element], body: bytes, share: Share
    ) -> ServerConnection:
        """Deliver the commits of a push to the server, and return the server's answer.

        The last portion, or the only one, is sent in the client's own request. A client that would wait too long gets
        an answer earlier, whose filter shows the client which commits the server has so far.
        """
        for element in elements:
            if element.left_out:
                self._report(
                    DoorRule.COMMIT, f"{element.path}: {element.left_out} items are not commits, or are too large"
                )
        may_look_up = True  # the server's sessions are read for an unknown signer only once

        async def judge(element: Element, received: Sequence[ReceivedCommit]) -> list[Verified]:
            nonlocal may_look_up
            good, is_unknown = await self._verify_commits(trust, element, received, may_look_up=may_look_up)
            may_look_up = may_look_up and not is_unknown
            return good

        delivery = Delivery(
            elements,
            index_of=self._indexes[trust.org].open_index,
            judge=judge,
            admit=self._hold_accepted,
            send=lambda portion: exchange.deliver_body(self._server, portion, self._timeout),
        )
        is_over = True
        try:
            async with self._in_time(exchange):
                await delivery.claim_commits()
            if delivery.is_small:
                async with self._in_time(exchange):
                    last = await delivery.run()
            else:
                running = asyncio.create_task(delivery.run(), name="delivery of a push")
                is_over = await self._wait_for_delivery(exchange, delivery, running)
                if is_over:
                    last = running.result()
                else:
                    last = []
                    self._keep_delivering(delivery, running, share.move())
                    self._count_early_answer(delivery)
            is_changed = len(last) < sum(len(element.commits) + element.left_out for element in elements)
            if is_changed:
                parts = [(each, each.raw, [one.received for one in last if one.element is each]) for each in elements]
                body = await encode_batch(parts)
            # A client gives up after ten seconds and sends the commits again. The first copy is delivered all the same.
            connection = await exchange.hand_on(self._server, body, self._timeout, is_kept=True)
            if is_over:
                delivery.settle_held(is_stored=connection.status == 200)
        finally:
            if is_over:
                delivery.release_commits()
        return connection

    async def _wait_for_delivery(
        self, exchange: Exchange, delivery: Delivery, running: asyncio.Task[list[Verified]]
    ) -> bool:
        """Wait until all but the last portion are delivered; return False if the client must get an answer earlier."""
        now = asyncio.get_running_loop().time()
        try:
            await asyncio.wait({running}, timeout=max(exchange.answer_by - now, 0))
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait({running})
            raise
        delivery.is_alone = not running.done()
        return not delivery.is_alone

    def _count_early_answer(self, delivery: Delivery) -> None:
        """Count an answer that the client gets before all commits of its push are delivered.

        Raises:
            NodeUnreachableError: Such an answer is not allowed: the server has stored nothing since the last one, or
                there were too many. The client then has to send its commits again later.
        """
        deliveries = (delivery, *delivery.others)
        has_progressed = any(each.stored_count > each.answered_count for each in deliveries)
        if not has_progressed or any(each.early_answers >= EARLY_ANSWERS for each in deliveries):
            raise NodeUnreachableError(f"{self._server.url} has not stored the commits of a push yet")
        for each in deliveries:
            each.early_answers += 1
            each.answered_count = each.stored_count

    def _keep_delivering(self, delivery: Delivery, running: asyncio.Task[list[Verified]], share: Share) -> None:
        """Continue the delivery of a push for which no request waits any more."""

        async def keep() -> None:
            try:
                await running
            except (RefusedError, LostError, TimeoutError, NodeUnreachableError, NodeRefusedError) as error:
                self._report(DoorRule.CHILD, f"a push failed after the client had received its answer: {error}")
            finally:
                delivery.release_commits()
                share.give_back()

        if not delivery.own_count:
            running.cancel()  # it would only wait for others
        task = asyncio.create_task(keep(), name="rest of a push")
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)

    def _read_commits(
        self, trust: TrustedSessions, path: str, received: Sequence[ReceivedCommit]
    ) -> tuple[list[tuple[ReceivedCommit, Commit]], list[DroppedError]]:
        """Return the received commits that are well-formed, and the errors of the others. Any thread may call this."""
        now_ms = self._clock.now_ms()
        commits, dropped = [], []
        for each in received:
            try:
                commits.append((each, read_commit(each.raw, path, org=trust.org, limits=self.limits, now_ms=now_ms)))
            except DroppedError as error:
                dropped.append(error)
        return commits, dropped

    async def _verify_commits(
        self, trust: TrustedSessions, element: Element, received: Sequence[ReceivedCommit], *, may_look_up: bool
    ) -> tuple[list[Verified], bool]:
        """Return the commits that are well-formed and have a valid signature, and whether a signer is unknown."""
        path = element.path
        if element.is_large:
            commits, dropped = await asyncio.to_thread(self._read_commits, trust, path, received)
        else:
            commits, dropped = self._read_commits(trust, path, received)
        for error in dropped:
            self._report(error.rule, f"{path}: {error}")
        verdicts = await trust.verify_commits(path, commits, self._executor, may_look_up, are_large=element.is_large)
        good = []
        for (each, commit), verdict in zip(commits, verdicts, strict=True):
            if verdict is not None:
                self._report(rule_of(verdict), f"{path}: {verdict}")
            elif self._private and not self._may_write(trust, path, commit):
                self._report(DoorRule.PRIVATE, f"{path}: session {commit.session!r} may not write here")
            else:
                good.append(Verified(element, each, commit))
        return good, any(isinstance(verdict, UnknownSignerError) for verdict in verdicts)

    def _may_write(self, trust: TrustedSessions, path: str, commit: Commit) -> bool:
        author = trust.pool.get_session(commit.session)
        return author.is_root or is_allowed_by_default(path, author.owner)

    async def _hold_accepted(self, index: RepositoryIndex, commits: Sequence[Verified]) -> list[Verified]:
        problems = await index.hold_accepted([each.commit for each in commits])
        good = []
        for each, problem in zip(commits, problems, strict=True):
            if problem is None:
                good.append(each)
            else:
                self._report(problem.rule, f"{index.path}: {problem}")
        return good

    def _root_coordinates(self) -> frozenset[bytes]:
        if len(self._trusts) == 1:
            return self._trusts[0].root_coordinates()
        return frozenset().union(*[trust.root_coordinates() for trust in self._trusts])

    # --- /auth/* ------------------------------------------------------------------------------------------------------

    async def _new_session(self, exchange: Exchange) -> None:
        exchange.answer_by = asyncio.get_running_loop().time() + SESSION_SECONDS
        check_encoding(exchange.found)
        with exchange.open_share() as share:
            body = await exchange.read_body(share)
            check_session_request(body)
            self._limiter.take_session(exchange.address)
            connection = await exchange.hand_on(self._server, body, self._timeout)
        if connection.status != 200:
            await self._stream_answer(exchange, connection, KeyFilter())
            return
        status, headers = connection.status, exchange.handed_back(connection.headers)
        try:
            answer = await exchange.read_answer(connection, ANSWER_BYTES, self._timeout)
        finally:
            self._server.release_connection(connection)
        try:
            cleaned = await self._clean_session_answer(exchange, answer)
        except (DecodeError, RecursionError) as error:
            raise RefusedError(DoorRule.PRIVATE_KEY, 502, f"the server's answer cannot be read: {error}") from None
        for trust in self._trusts:
            trust.refresh_soon()
        fields = [(name, value) for name, value in headers if name != b"content-length"]
        await exchange.start_answer(status, [*fields, (b"content-length", b"%d" % len(cleaned))])
        await exchange.finish_answer(cleaned)
        self.handed_on += 1

    async def _clean_session_answer(self, exchange: Exchange, answer: bytes) -> bytes:
        """Remove private keys and untrusted roots from an answer with a new session.

        SECURITY: a GoatDB server publishes its private key in this answer if its list of roots does not hold its root
        with the same expiration (tests/cluster/test_door_writers.py).

        Raises:
            RefusedError: No root is left. COMPAT: a client does not start without one, and the server trusts another
                identity, or its root has expired.
        """
        cleaned, leaked, untrusted = filter_session_answer(answer, self._is_root)
        if untrusted:
            # A root that was introduced a moment ago, past the door, may be good.
            try:
                async with self._in_time(exchange):
                    await self._refresh_sessions()
            except (NodeUnreachableError, NodeRefusedError):
                pass
            else:
                cleaned, leaked, untrusted = filter_session_answer(answer, self._is_root)
        for root_id in leaked:
            self._report(
                DoorRule.PRIVATE_KEY, f"the server's answer contained the private key of root {root_id!r:.100}"
            )
        for root_id in untrusted:
            self._report(
                DoorRule.UNTRUSTED_ROOT,
                f"the server's answer names root {root_id!r:.100}, which the door does not trust",
            )
        if cleaned is None:
            raise RefusedError(
                DoorRule.UNTRUSTED_ROOT, 503, "the server's answer names no root that clients may trust", retry_after=1
            )
        return cleaned

    def _is_root(self, session_id: str, public_key: Any) -> bool:
        return any(trust.is_root(session_id, public_key) for trust in self._trusts)

    async def _login_mail(self, exchange: Exchange) -> None:
        """Check the signature of a request for a login mail, and pass it on.

        SECURITY: GoatDB verifies this signature, but also accepts the request if the signature is invalid
        (tests/cluster/test_door_requests.py).
        """
        check_encoding(exchange.found)
        with exchange.open_share() as share:
            body = await exchange.read_body(share)
            email, signature = read_mail_request(body)
            try:
                async with self._in_time(exchange):
                    await self._check_mail(email, parse_signature(signature))
            except (VerificationError, RecursionError) as error:
                raise RefusedError(DoorRule.LOGIN_MAIL, 403, str(error), body=b'{"error":"AccessDenied"}') from None
            self._limiter.take_token(self._mails, exchange.address, "login mails")
            connection = await exchange.hand_on(self._server, body, self._timeout)
        await self._stream_answer(exchange, connection, KeyFilter())

    async def _check_mail(self, email: str, envelope: SignatureEnvelope) -> None:
        _, session = await self._look_up_session(envelope.session_id)
        if session.is_expired(self._clock.now_ms()):
            raise ExpiredSessionError(f"session {session.id!r} has expired")
        verify_data(session, envelope, external=email)

    def _login_token(self, exchange: Exchange) -> None:
        """Remove the login token from a request unless a root signed it recently; without a token the login fails."""
        query = exchange.target.partition(b"?")[2]
        tokens = parse_qs(query.decode("latin-1")).get("t", [])
        if not tokens:
            return
        try:
            self._check_token(tokens)
        except (GoatherdError, RecursionError) as error:
            self._report(DoorRule.LOGIN_TOKEN, str(error))
            exchange.target = exchange.target.partition(b"?")[0]

    def _check_token(self, tokens: Sequence[str]) -> None:
        if len(tokens) > 1:
            raise InvalidSignatureError("a request must have only one login token")
        envelope = parse_signature(tokens[0])
        session = next((each for trust in self._trusts if (each := trust.find_session(envelope.session_id))), None)
        if session is None or not session.is_root:
            raise InvalidSignatureError("a login token must be signed by a trusted root")
        data = envelope.data
        ts = data.get("ts") if isinstance(data, Mapping) else None
        age = self.limits.login_age.total_seconds() * 1000
        if isinstance(ts, bool) or not isinstance(ts, int | float) or not abs(self._clock.now_ms() - ts) <= age:
            raise InvalidSignatureError("a login token must have a recent timestamp")
        verify_data(session, envelope)


async def read_own_body(exchange: Exchange, share: Share) -> bytes:
    """Return the body of a request for one of Goatherd's own paths.

    SECURITY: the sender is not authenticated yet, so the body must not use memory that other callers need
    (tests/unit/agent/test_own_api.py).

    Raises:
        RefusedError: The body is too large (404, because only `goatherd serve` has paths that take it) or too slow.
        GoneError: The caller disconnected.
    """
    try:
        return await exchange.read_body(share, most=OWN_BODY)
    except RefusedError as refused:
        if refused.rule is Excess.TOO_LARGE:
            refused.status = 404
        raise


def _refuse_compressed(connection: ServerConnection) -> None:
    """Check that the server's answer is not compressed.

    Raises:
        RefusedError: It is, so that the door cannot search it for private keys.
    """
    if dict(connection.headers).get(b"content-encoding", b"identity") != b"identity":
        raise RefusedError(DoorRule.PRIVATE_KEY, 502, "the server's answer is compressed, so the door cannot check it")


def _read_counts(answer: bytes) -> list[float]:
    """Return how many commits the server has in each repository, by its answer to ``/batch-sync``; [] if malformed."""
    try:
        counts = [each["res"]["s"] for each in split_batch(answer, sys.maxsize, RawCommits)[0]]
    except (DecodeError, LookupError, TypeError):
        return []
    return [each if isinstance(each, int | float) else 0 for each in counts]
