"""Connect to the server behind the door by HTTP/1.1, with reused connections and streaming in both directions.

The client follows no redirects, keeps no cookies and decodes no bodies. httptools parses the answers, in a fifth of the
time that httpx2 takes.

Rules: a connection is used again only after a complete request and a complete answer, and if the server has not closed
it. If a reused connection closes before the first byte of the answer, the request is sent again once, on a new
connection, provided that its whole body is in memory. While a caller does not read its answer, the module does not read
from the server (flow control).
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from typing import Any, Final, cast

import httptools

from goatherd.errors import NodeUnreachableError
from goatherd.serving.server_url import parse_server_url

HIGH_WATER: Final = 256 * 1024
IDLE_SECONDS: Final = 4.0
IDLE_CONNECTIONS: Final = 256
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on

Headers = list[tuple[bytes, bytes]]


class LostError(Exception):
    """The connection to the server ended in the middle of an exchange.

    `is_untouched` is true if no byte of the answer had arrived.
    """

    def __init__(self, why: str, *, is_untouched: bool) -> None:
        super().__init__(why)
        self.is_untouched = is_untouched


class ServerConnection(asyncio.Protocol):
    """One HTTP connection from the door to the server, for one request and answer at a time.

    Args:
        count: Called with 1 when the connection opens, and with -1 when it has closed.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self.status = 0
        self.headers: Headers = []
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._chunks: list[bytes] = []
        self._queued = 0
        self._is_paused = False
        self._has_head = self._is_complete = self._is_lost = self._may_stay = False
        self._bytes_in = 0
        self._is_head_request = self._is_spoilt = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    # --- asyncio ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._count(1)

    def connection_lost(self, exc: Exception | None) -> None:
        # An answer without a length ends when the server closes its connection, not when it or this door breaks it off.
        is_at_end = exc is None and not self._is_lost and self._has_head and self._ends_with_connection()
        if self._parser is not None and is_at_end:
            self._is_complete = True
        self._is_lost = True
        self._count(-1)
        self._wake_waiter()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        self._bytes_in += len(data)
        if self._parser is None:  # no request is open
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
        if self._queued > HIGH_WATER and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake_waiter()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- httptools ----------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        self._has_head = True
        self._may_stay = bool(self._parser.should_keep_alive())
        if self._is_head_request:
            # The parser would wait for a body that does not come.
            self._is_complete = True

    def on_body(self, body: bytes) -> None:
        if self.status >= 200 and not self._is_head_request:
            self._chunks.append(body)
            self._queued += len(body)

    def on_message_complete(self) -> None:
        if self.status < 200:
            self.headers = []
        else:
            self._is_complete = True

    # --- one exchange -------------------------------------------------------------------------------------------------

    def begin_exchange(self, *, is_head: bool) -> None:
        """Prepare the connection for the answer to the next request."""
        self.status, self.headers, self._chunks, self._queued = 0, [], [], 0
        self._has_head = self._is_complete = self._may_stay = False
        self._bytes_in = 0
        self._is_head_request = is_head
        self._parser = httptools.HttpResponseParser(self)

    def end_exchange(self) -> None:
        """Mark the current request and answer as complete. If the server sends more data, the connection is closed."""
        self._parser = None

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._is_lost:
            self._transport.write(data)

    async def drain(self, limit: float) -> None:
        """Wait until the connection's write buffer has room for more data (flow control).

        Raises:
            TimeoutError: The buffer had no room for `limit` seconds.
        """
        if self._writable is not None:
            _, waiting = await asyncio.wait({self._writable}, timeout=limit)
            if waiting:
                raise TimeoutError("the server did not take the body in time")

    async def read_head(self, limit: float | None) -> None:
        """Wait for the status and the headers of the server's answer.

        Raises:
            LostError: The connection ended.
            TimeoutError: No data arrived for `limit` seconds; None waits as long as the connection lasts.
        """
        while not self._has_head:
            if self._is_lost:
                raise LostError("the server closed the connection before it answered", is_untouched=not self._bytes_in)
            await self._wait_for_data(limit)

    async def read_body(self, limit: float) -> AsyncIterator[bytes]:
        """Yield the answer's body in parts as they arrive.

        Raises:
            LostError: The connection ended before the answer did.
            TimeoutError: The server paused for more than `limit` seconds.
        """
        while True:
            if self._chunks:
                chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks, self._queued = [], 0
                if self._is_paused and self._transport is not None and not self._is_lost:
                    self._is_paused = False
                    self._transport.resume_reading()
                yield chunk
            elif self._is_complete:
                return
            elif self._is_lost:
                raise LostError("the server closed the connection in the middle of an answer", is_untouched=False)
            else:
                await self._wait_for_data(limit)

    @property
    def is_whole(self) -> bool:
        """Whether the whole answer has arrived and its body was read."""
        return self._is_complete and not self._chunks

    @property
    def is_usable(self) -> bool:
        """Whether the connection can be used for another exchange."""
        return self.is_whole and self._may_stay and not self._is_spoilt and self.is_open

    def forbid_reuse(self) -> None:
        """Close the connection after this exchange, because the request was not sent completely."""
        self._is_spoilt = True

    @property
    def is_open(self) -> bool:
        return not self._is_lost and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection at once; waiting calls raise `LostError`."""
        self._is_lost = True
        if self._transport is not None:
            self._transport.abort()

    def _ends_with_connection(self) -> bool:
        names = {name for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    async def _wait_for_data(self, limit: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = None if limit is None else loop.call_later(limit, _time_out, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._waiter = None

    def _wake_waiter(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _time_out(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError("the server did not answer in time"))


class ServerConnections:
    """Opens connections to the server, and keeps idle ones. Close with `aclose`.

    Args:
        url: ``http://host:port`` or ``https://host:port``.
        connect_timeout: Timeout for opening a connection.

    Attributes:
        server_generation: Number that rises whenever the last open connection closes. A process that ends closes all of
            its connections, so while the number stays the same, the server is the same process.

    Raises:
        ConfigurationError: The URL is not of this form.
    """

    def __init__(self, url: str, *, connect_timeout: timedelta = timedelta(seconds=5)) -> None:
        server = parse_server_url(url, hint="Write the URL as http://127.0.0.1:8081.")
        self.url = str(server)
        self.authority = server.authority.encode("ascii")
        self.host = server.host
        self._tls = ssl.create_default_context() if server.scheme == "https" else None
        self.port = server.connect_port
        self._connect_timeout = connect_timeout.total_seconds()
        self._idle: list[ServerConnection] = []
        self._busy: set[ServerConnection] = set()
        self._alive = 0
        self._is_closed = False
        self._last_address = ""
        self.server_generation = 0

    def _count_connection(self, change: int) -> None:
        self._alive += change
        if not self._alive:
            self.server_generation += 1

    @property
    def is_encrypted(self) -> bool:
        """Whether the connections to the server use TLS."""
        return self._tls is not None

    @property
    def names(self) -> tuple[bytes, ...]:
        """The URLs that the server may use for itself if its application sets no public URL."""
        hosts = dict.fromkeys([self.authority.decode(), f"localhost:{self.port}", f"127.0.0.1:{self.port}"])
        return tuple([f"{scheme}://{host}".encode() for scheme in ("http", "https") for host in hosts])

    def is_at(self, host: str, port: int) -> bool:
        """Return whether a listener on `host` and `port` of this machine would listen at the server's own address."""
        mine = _LOCAL if host in _EVERYWHERE else {host, "localhost"} if host in _LOCAL else {host}
        return port == self.port and self.host in mine

    async def aclose(self) -> None:
        """Close every connection to the server, also one that is being opened now."""
        self._is_closed = True
        for connection in [*self._idle, *self._busy]:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)

    async def open_connection(self, *, fresh: bool = False) -> tuple[ServerConnection, bool]:
        """Return a connection to the server, and whether it was used before.

        The caller gives it back with `release_connection`.

        Raises:
            NodeUnreachableError: The server accepts no connection.
        """
        loop = asyncio.get_running_loop()
        old: list[ServerConnection] = []
        try:
            while self._idle and not fresh:
                connection = self._idle.pop()
                if connection.is_open and loop.time() - connection.idle_since < IDLE_SECONDS:
                    self._busy.add(connection)
                    return connection, True
                old.append(connection)
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._connect()
        except (OSError, TimeoutError) as error:
            raise NodeUnreachableError(f"cannot connect to {self.url}: {self._describe_failure(error)}") from error
        finally:
            # Not before there is another one, so that the generation does not end while the server lives.
            for each in old:
                each.close()
        if self._is_closed:
            connection.close()
            raise NodeUnreachableError(f"the connections to {self.url} are closed")
        self._busy.add(connection)
        return connection, False

    async def _connect(self) -> ServerConnection:
        """Connect to one of the server's addresses, the one that was reached last first.

        An address that drops all packets, as IPv6 does in some networks, gets only a part of the timeout. (uvloop lacks
        asyncio's `happy_eyeballs_delay`.)

        Raises:
            OSError, TimeoutError: There is no address, or the last one cannot be reached.
        """
        addresses = sorted(await self._find_addresses(), key=lambda address: address != self._last_address)
        for number, address in enumerate(addresses, 1):
            share = self._connect_timeout / len(addresses) if number < len(addresses) else None
            try:
                async with asyncio.timeout(share):
                    connection = await self._connect_to(address)
            except OSError:  # TimeoutError, too
                if number == len(addresses):
                    raise
            else:
                self._last_address = address
                return connection
        raise OSError("its name has no address")

    async def _connect_to(self, address: str) -> ServerConnection:
        connection = ServerConnection(self._count_connection)
        name = self.host if self._tls else None
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection, address, self.port, ssl=self._tls, server_hostname=name
            )
        except BaseException:  # a timeout or a cancellation that came when the connection was open already
            connection.close()
            raise
        return connection

    async def _find_addresses(self) -> Sequence[str]:
        with suppress(ValueError):
            return [str(ip_address(self.host))]
        found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    def _describe_failure(self, error: OSError) -> str:
        """Return in a few words why no connection could be opened."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            return f"the TLS handshake failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
        if isinstance(error, TimeoutError) and error.errno is None:
            return f"no connection within {self._connect_timeout:g} s"
        if error.errno is not None and error.errno > 0:  # a failure to find the name has a negative one
            return os.strerror(error.errno)
        return error.strerror or str(error) or type(error).__name__

    def release_connection(self, connection: ServerConnection) -> None:
        """Take back a connection from the caller: keep it for reuse, or close it if its exchange is unfinished."""
        self._busy.discard(connection)
        if connection.is_usable and len(self._idle) < IDLE_CONNECTIONS:
            connection.end_exchange()
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    async def send_request(
        self,
        head: bytes,
        body: bytes,
        *,
        limit: float,
        is_head: bool = False,
        on_use: Callable[[ServerConnection], None] | None = None,
    ) -> ServerConnection:
        """Send a request whose body is in memory, and wait for the answer's headers.

        Args:
            head: Request line and headers, with the empty line.
            body: The body.
            limit: Seconds to wait.
            is_head: Whether the method is HEAD.
            on_use: Called with the connection that is used.

        Raises:
            NodeUnreachableError: No connection could be opened.
            LostError: The connection ended.
            TimeoutError: The server did not answer in time.
        """
        must_be_new = False
        while True:
            connection, was_used = await self.open_connection(fresh=must_be_new)
            if on_use is not None:
                on_use(connection)
            try:
                connection.begin_exchange(is_head=is_head)
                connection.write(head + body if body else head)
                await connection.read_head(limit)
            except BaseException as error:
                self.release_connection(connection)
                if not (was_used and isinstance(error, LostError) and error.is_untouched):
                    raise
                must_be_new = True
            else:
                return connection

    async def fetch(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        limit: float,
        most: float = math.inf,
        host: bytes | None = None,
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """Send a request of the door's own, and return the answer's status, headers and body.

        Args:
            method, path, headers, body: The request.
            limit: Seconds to wait for each part of the answer.
            most: Maximum number of bytes in the answer's body.
            host: Value of the ``Host`` header; None for the server's address.

        Raises:
            NodeUnreachableError: The server did not answer completely in time, or its answer is too long.
        """
        host = host or self.authority
        lines = [f"{method} {path} HTTP/1.1".encode(), b"host: " + host, b"content-length: %d" % len(body)]
        lines += [name + b": " + value for name, value in headers]
        try:
            connection = await self.send_request(b"\r\n".join(lines) + b"\r\n\r\n", body, limit=limit)
            try:
                answer = bytearray()
                async for chunk in connection.read_body(limit):
                    answer += chunk
                    if len(answer) > most:
                        raise NodeUnreachableError(f"{self.url}{path}: the answer has more than {most:g} bytes")
                return connection.status, dict(connection.headers), bytes(answer)
            finally:
                self.release_connection(connection)
        except (LostError, TimeoutError) as error:
            raise NodeUnreachableError(f"{self.url}{path}: {error}") from error
