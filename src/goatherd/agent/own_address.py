"""Listen on the agent's own address (`--agent-port`), for a server that runs without Goatherd's reverse proxy.

The agent answers the requests for its own status. It passes the requests that ``goatherd status``, ``doctor`` and
``rotate`` send to any GoatDB server on to the server, without checking them. The answer to any other path is 404.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock, SystemClock
from goatherd.door.binding import (
    give_misdirected,
    instance_headers,
    is_misdirected,
    parse_bound_signature,
)
from goatherd.door.exchange import Exchange, HeaderRewriter
from goatherd.door.proxy import OWN_PREFIX, Answerer, read_own_body
from goatherd.door.request_checks import DoorRule, check_headers, check_method, check_target
from goatherd.door.server_connections import LostError, ServerConnections
from goatherd.errors import ConfigurationError, NodeUnreachableError
from goatherd.identity.request_binding import RequestGuard
from goatherd.serving.caller_limiter import CONNECTION, CallerLimiter, GoneError, Receive, Scope, Send
from goatherd.serving.caller_limits import CallerLimits, RefusedError
from goatherd.serving.listener import HTTPListener

_PASSED_ON: Final = frozenset({("POST", "/batch-sync"), ("POST", "/auth/session"), ("GET", "/healthy")})
_GRACE: Final = timedelta(seconds=5)


class OwnAddress:
    """Listens on an address of the agent. An async context manager.

    Args:
        upstream: The server's URL.
        answer: Answers the requests that are for the agent itself.
        guard: Checks whether a request whose signature names a server is meant for this agent's server.
        clock: Supplies the current time.
        host: Address to listen on.
        port: Port to listen on; 0 selects a free one.

    Raises:
        ConfigurationError: The server itself has this address.
    """

    def __init__(
        self,
        *,
        upstream: str,
        answer: Answerer,
        guard: RequestGuard,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._server = ServerConnections(upstream)
        if self._server.is_at(host, port):
            raise ConfigurationError(
                f"the server and its agent cannot both listen on port {port}",
                hint="Choose another port with --agent-port.",
            )
        self._answer = answer
        self._guard = guard
        self._clock: Clock = clock or SystemClock()
        self._limiter = CallerLimiter(CallerLimits(), clock=self._clock)
        self._header_rewriter = HeaderRewriter(self._server.names, None)
        self._listener = HTTPListener(self._handle_request, host, port, limiter=self._limiter)

    @property
    def url(self) -> str:
        """The URL ``http://<host>:<port>``, once the address is open."""
        return self._listener.url

    async def __aenter__(self) -> OwnAddress:
        await self._listener.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._listener.stop(_GRACE)
        await self._server.aclose()

    def hurry(self) -> None:
        """Stop waiting for running requests, which are then cut off, when the address closes."""
        self._listener.stop_waiting()

    async def _handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw_path: bytes = scope["raw_path"]
        query: bytes = scope["query_string"]
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        exchange = Exchange(
            method=scope["method"],
            path="",
            target=raw_path + b"?" + query if query else raw_path,
            headers=headers,
            found=dict(headers),
            address="",
            caller=scope.get(CONNECTION),
            limiter=self._limiter,
            receive=receive,
            send=send,
            header_rewriter=self._header_rewriter,
        )
        with suppress(GoneError):
            try:
                check_method(exchange.method)
                exchange.found = check_headers(headers)
                exchange.address = self._limiter.take_request(scope)
                exchange.path = check_target(raw_path)
                await self._answer_or_pass_on(exchange, query)
            except RefusedError as refused:
                await self._answer_refusal(exchange, refused)
            except (LostError, NodeUnreachableError, TimeoutError) as error:
                await self._answer_refusal(exchange, RefusedError(DoorRule.CHILD, 503, str(error), retry_after=1))
            finally:
                exchange.release_caller()

    async def _answer_or_pass_on(self, exchange: Exchange, query: bytes) -> None:
        with exchange.open_share() as share:
            is_passed_on = (exchange.method, exchange.path) in _PASSED_ON
            body = await (exchange.read_body(share) if is_passed_on else read_own_body(exchange, share))
            if exchange.path.startswith(OWN_PREFIX):
                signature = exchange.found.get(b"x-goat-sig", b"").decode("latin-1")
                text = query.decode("latin-1")
                status, answer = await self._answer(exchange.method, exchange.path, text, signature, body)
                await exchange.give_answer(status, answer, instance_headers(self._guard, status))
                return
            if not is_passed_on:
                await exchange.give_answer(404, b"")
                return
            header = exchange.found.get(b"x-goat-sig", b"").decode("latin-1")
            envelope = parse_bound_signature(header)
            if envelope is not None and await is_misdirected(
                self._guard, exchange, body, envelope, is_root=False, now_ms=self._clock.now_ms()
            ):
                await give_misdirected(exchange, self._guard)
                return
            timeout = self._limiter.limits.answer_timeout.total_seconds()
            connection = await exchange.hand_on(self._server, body, timeout)
        try:
            await exchange.stream_answer(connection, None, timeout)
        finally:
            self._server.release_connection(connection)

    @staticmethod
    async def _answer_refusal(exchange: Exchange, refused: RefusedError) -> None:
        if not exchange.has_started:
            await exchange.answer_refusal(refused)
