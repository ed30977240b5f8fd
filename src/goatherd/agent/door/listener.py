"""The door's side of the network: uvicorn's HTTP/1.1 protocol with limits on connections and on slow headers.

Not a server of its own: framing, keep-alive, chunks and ``100-continue`` are uvicorn's and httptools'. What is added
is what uvicorn leaves open: how many connections one address may hold, limits on heads (`goatherd.connection`), and
being told at once that a caller has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from goatherd.agent.door.limits import Limits, caller_of
from goatherd.connection import Connection
from goatherd.listening import bind, cannot_listen

CONNECTION: Final = "goatherd.connection"
"""The key of a request's scope under which its `Caller` is."""

KEEP_ALIVE_SECONDS: Final = 75
BACKLOG: Final = 2048

_TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
)


class Caller(Connection):
    """One caller's connection."""

    def __init__(self, listener: Listener, **given: Any) -> None:
        super().__init__(**given)
        self.head_bytes = listener.limits.header_bytes
        self.head_timeout = listener.limits.header_timeout
        self._listener = listener
        self._on_close: Callable[[], None] | None = None
        self._address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = caller_of(self.client[0] if self.client else "", "", ())
        if not self._listener.enter(self._address):
            self.end(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.leave(self._address)
        super().connection_lost(exc)
        callback, self._on_close = self._on_close, None
        if callback is not None:
            callback()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]

    def on_slow(self) -> None:
        self._listener.on_slow()

    def on_close(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called when the caller goes away; None takes it back."""
        self._on_close = callback

    def abort(self) -> None:
        """Cut the connection, so that the caller sees that the answer is not whole."""
        self.transport.abort()


class Listener:
    """Listens, and hands requests to an ASGI application.

    Args:
        app: The application.
        host: Address to listen on.
        port: 0 takes a free one.
        limits: See there.
        on_slow: Told of each connection that was too slow with its headers.
        on_full: Told of each connection that was one too many.

    Attributes:
        url: ``http://<host>:<port>``, once started.
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        limits: Limits,
        on_slow: Callable[[], None],
        on_full: Callable[[], None],
    ) -> None:
        self.limits = limits
        self.on_slow = on_slow
        self.host = host
        self.port = port
        self.url = ""
        self._app = app
        self._on_full = on_full
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._open: Counter[str] = Counter()
        self._count = 0
        self._is_cutting = False

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return self._count

    @property
    def request_count(self) -> int:
        """How many requests are being answered."""
        return len(self._state.tasks)

    def enter(self, address: str) -> bool:
        """Count a connection, and return whether it may stay."""
        self._count += 1
        self._open[address] += 1
        is_one_too_many = (
            self._count > self.limits.connections or self._open[address] > self.limits.connections_per_address
        )
        if is_one_too_many:
            self._on_full()
        return not is_one_too_many

    def leave(self, address: str) -> None:
        """Count a connection as closed."""
        self._count -= 1
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # uvicorn would log a traceback for a request that `stop` has cut off.
            if not self._is_cutting:
                raise

    async def start(self) -> None:
        """Listen.

        Raises:
            NodeError: The address cannot be had.
        """
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            http="httptools",
            loop="none",
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        config.load()
        # uvicorn warns of every malformed request; whoever sends them must not fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        sock, port, url = bind(self.host, self.port)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Caller(self, config=config, server_state=self._state, app_state={}), sock=sock, backlog=BACKLOG
            )
        except OSError as error:
            sock.close()
            raise cannot_listen(f"{self.host}:{port}", error) from error
        self.port, self.url = port, url

    def close(self) -> None:
        """Take no more, and cut off everybody at once."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()

    async def stop(self, grace: timedelta) -> None:
        """Take no more, answer what is running for `grace`, then cut off."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = set(self._state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace.total_seconds())
            if late:
                await self._cut(late)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await self._server.wait_closed()
        self._server = None

    async def _cut(self, late: set[asyncio.Task[None]]) -> None:
        """Close the connections first, so that their ends are known, then cancel the requests."""
        self._is_cutting = True
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the transports report their ends in the next round of the loop
        for task in late:
            task.cancel()
        await asyncio.wait(late)
        self._is_cutting = False
