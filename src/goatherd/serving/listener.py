"""Run uvicorn: listen, pass requests to an ASGI application, and stop without losing an answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from datetime import timedelta
from email.utils import formatdate
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from goatherd.clock import SystemClock
from goatherd.serving.caller_limiter import CallerLimiter
from goatherd.serving.http_connection import HTTPConnection, check_hooks
from goatherd.serving.sockets import bind, cannot_listen

BACKLOG: Final = 2048
_ROUNDS: Final = 5
"""Rounds of the event loop until the protocol has an accepted connection; asyncio needs two, uvloop one."""


async def close_server(server: asyncio.Server) -> None:
    """Stop an asyncio server from listening, once every accepted connection has reached its protocol.

    May be called twice.

    asyncio accepts a connection in one round of the event loop and creates its transport in the next. If the server is
    closed in between, neither the server nor the protocol can close the transport, and the client waits until the
    garbage collector does.
    """
    loop = asyncio.get_running_loop()
    try:
        for each in server.sockets:
            with suppress(NotImplementedError):  # an event loop without readers, such as Windows' proactor
                loop.remove_reader(each)
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
    finally:
        server.close()


class HTTPListener:
    """Listen on an address, and pass HTTP requests to an ASGI application.

    Args:
        app: The ASGI application.
        host: Address to listen on.
        port: Port to listen on; 0 selects a free one.
        limiter: Counts what each caller uses, and enforces the limits.
        has_date: Whether answers get a ``Date`` header, as GoatDB's answers have. A proxy passes on the header of its
            server instead.
        tls: Certificate and settings to serve HTTPS with; None to serve HTTP.

    Attributes:
        url: The URL ``http://<host>:<port>``, or ``https://…``, once the address is bound.
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        limiter: CallerLimiter,
        has_date: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.limiter = limiter
        self.host = host
        self.port = port
        self.url = ""
        self._app = app
        self._has_date = has_date
        self._tls = tls
        self._clock_timer: asyncio.TimerHandle | None = None
        self._state = ServerState()
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._hurry = asyncio.Event()
        self._is_cutting = False

    @property
    def request_count(self) -> int:
        """Number of HTTP requests that are being answered."""
        return len(self._state.tasks)

    async def _call_app(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # uvicorn would log a traceback for a request that `stop` has cut off.
            if not self._is_cutting:
                raise

    def bind(self) -> str:
        """Bind the listener's address, without accepting connections yet, and return the listener's URL.

        Raises:
            NodeError: The address cannot be bound.
        """
        if self._socket is None:
            self._socket, self.port, self.url = bind(self.host, self.port)
            if self._tls is not None:
                self.url = self.url.replace("http://", "https://", 1)
        return self.url

    async def start(self) -> None:
        """Start to listen for HTTP connections.

        Raises:
            NodeError: The address cannot be bound, or this version of uvicorn cannot be used.
        """
        await check_hooks()
        config = uvicorn.Config(
            self._call_app,
            interface="asgi3",
            http="httptools",
            loop="none",
            lifespan="off",
            ws="none",
            log_config=None,
            proxy_headers=False,
            timeout_keep_alive=self.limiter.limits.idle_timeout.total_seconds(),  # type: ignore[arg-type]
        )
        config.load()
        self.bind()
        assert self._socket is not None
        sock, self._socket = self._socket, None
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: HTTPConnection(self.limiter, config=config, server_state=self._state, app_state={}),
                sock=sock,
                backlog=BACKLOG,
                ssl=self._tls,
            )
        except OSError as error:
            sock.close()
            raise cannot_listen(f"{self.host}:{self.port}", error) from error
        if self._has_date:
            self._set_date()

    def _set_date(self) -> None:
        now_ms = SystemClock().now_ms()
        self._state.default_headers[:] = [(b"date", formatdate(now_ms // 1000, usegmt=True).encode())]
        # At the next whole second: tools compare clocks by this header, and take it for less than a second old.
        left_ms = 1000 - now_ms % 1000
        self._clock_timer = asyncio.get_running_loop().call_later(left_ms / 1000, self._set_date)

    async def close(self) -> None:
        """Stop listening, and close every connection at once."""
        self._stop_clock()
        self._abort_connections()
        if self._server is not None:
            await close_server(self._server)
            self._abort_connections()

    def stop_waiting(self) -> None:
        """Make a running `stop` wait no longer for requests that are not answered yet."""
        self._hurry.set()

    async def stop(self, grace: timedelta) -> None:
        """Stop listening, let running requests be answered for the time `grace`, then close the other connections."""
        if self._server is None:
            return
        await close_server(self._server)
        for connection in list(self._state.connections):
            connection.shutdown()
        await self._wait_for_answers(set(self._state.tasks), grace)
        late = set(self._state.tasks)
        if late:
            await self._cut_off(late)
        self._abort_connections()
        await self._server.wait_closed()
        await asyncio.sleep(0)  # before Python 3.12 that does not wait until the transports report their ends
        self._server = None
        self._stop_clock()

    async def _wait_for_answers(self, tasks: set[asyncio.Task[None]], grace: timedelta) -> None:
        """Wait until all requests are answered and all answers sent, at most for `grace`, or until `stop_waiting`."""
        hurried = asyncio.create_task(self._hurry.wait())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace.total_seconds()):
                    while tasks and not hurried.done():
                        await asyncio.wait({*tasks, hurried}, return_when=asyncio.FIRST_COMPLETED)
                        tasks = {task for task in tasks if not task.done()}
                    while self._has_unsent and not hurried.done():
                        await asyncio.wait({hurried}, timeout=0.01)
        finally:
            hurried.cancel()

    @property
    def _has_unsent(self) -> bool:
        return any(each.transport.get_write_buffer_size() for each in self._state.connections)

    def _abort_connections(self) -> None:
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _stop_clock(self) -> None:
        if self._clock_timer is not None:
            self._clock_timer.cancel()
            self._clock_timer = None

    async def _cut_off(self, late: set[asyncio.Task[None]]) -> None:
        """Close the connections of unanswered requests, so that callers notice it at once; then cancel the requests."""
        self._is_cutting = True
        self._abort_connections()
        await asyncio.sleep(0)  # the transports report their ends in the next round of the loop
        for task in late:
            task.cancel()
        await asyncio.wait(late)
        self._is_cutting = False
