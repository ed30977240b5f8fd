"""Carry one request from a caller to the server, and stream the answer back.

`goatherd.door.proxy` decides what is passed on. Rules: hop-by-hop headers are removed in both directions, and each
connection has its own framing. When the caller or the server disconnects, the other connection is closed. An incomplete
answer of the server stays incomplete for the caller. Every wait for a slow caller or a silent server has a timeout.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from goatherd.door.key_filter import KeyFilter
from goatherd.door.report import content_type_of
from goatherd.door.request_checks import connection_tokens
from goatherd.door.server_connections import LostError, ServerConnection, ServerConnections
from goatherd.serving.caller_limiter import (
    CallerLimiter,
    GoneError,
    Headers,
    Receive,
    Send,
    Share,
    send_body,
    send_refusal,
)
from goatherd.serving.caller_limits import RefusedError
from goatherd.serving.http_connection import HTTPConnection
from goatherd.serving.signals import cancel_tasks

T = TypeVar("T")

BODYLESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"})

LAST_STATUS: Final = 599
LINES_BYTES: Final = 64 * 1024
"""Maximum bytes of the first two lines of a script that are changed."""

KEPT_BYTES: Final = 256 * 1024
"""How much of an answer is kept while it is passed on, if the door reads it, too."""
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# `Accept-Encoding` is left out, so that no server compresses an answer that the door checks. GoatDB never does.
_NOT_HANDED_ON: Final = _HOP_BY_HOP | {b"content-length", b"expect", b"accept-encoding"}


@dataclass(frozen=True, slots=True)
class HeaderRewriter:
    """Replace the server's address by the door's in CORS headers and redirects.

    Attributes:
        own: Addresses that the server may use for itself.
        public: Public URL of the door; None leaves every header unchanged.
    """

    own: tuple[bytes, ...]
    public: bytes | None

    def __call__(self, name: bytes, value: bytes) -> bytes:
        """Return the value of a header of the server's answer, with the server's address replaced by the door's."""
        if self.public is None or name not in (b"access-control-allow-origin", b"location"):
            return value
        return self.rewrite_address(value)

    def rewrite_address(self, value: bytes) -> bytes:
        """Return a URL with the door's public URL in place of the server's own address."""
        if self.public is None:
            return value
        for own in self.own:
            rest = value[len(own) :]
            if value.startswith(own) and (not rest or rest[:1] in b"/?#"):
                return self.public + rest
        return value


class Exchange:
    """One HTTP request to the door (reverse proxy) and its answer.

    Args:
        method: The method, as the caller sent it.
        path: The path in lower case, by which the server chooses the handler.
        target: Path and query, as sent; may be changed before the request is passed on.
        headers: The headers as sent, with names in lower case.
        found: The same headers, by name; without an empty ``Host``.
        address: The caller's address, to which the request is charged.
        caller: The caller's connection; None if the listener does not provide it.
        limiter: Reads the body and enforces the limits.
        receive: The ASGI receive function.
        send: The ASGI send function.
        header_rewriter: Rewrites the headers of the server's answer.

    Attributes:
        answer_by: Deadline for the answer to a request that the door checks, on the event loop's clock.
    """

    __slots__ = (
        "_limiter",
        "_receive",
        "_send",
        "address",
        "answer_by",
        "caller",
        "found",
        "has_started",
        "header_rewriter",
        "headers",
        "is_gone",
        "method",
        "path",
        "target",
    )

    def __init__(
        self,
        *,
        method: str,
        path: str,
        target: bytes,
        headers: Headers,
        found: dict[bytes, bytes],
        address: str,
        caller: HTTPConnection | None,
        limiter: CallerLimiter,
        receive: Receive,
        send: Send,
        header_rewriter: HeaderRewriter,
    ) -> None:
        self.method = method
        self.header_rewriter = header_rewriter
        self.path = path
        self.target = target
        self.headers = headers
        self.found = found
        self.address = address
        self.caller = caller
        self.has_started = self.is_gone = False
        self.answer_by = math.inf
        self._limiter = limiter
        self._receive = receive
        self._send = send

    # --- the request --------------------------------------------------------------------------------------------------

    @property
    def has_body(self) -> bool:
        """Whether the request has a body after its headers."""
        return self.found.get(b"content-length", b"0").strip(b"0") != b"" or b"transfer-encoding" in self.found

    def open_share(self) -> Share:
        """Return a new, empty share of the memory budget for the request's body."""
        return self._limiter.open_share(self.address, None if self.caller is None else self.caller.abort)

    def open_answer_share(self) -> Share:
        """Return a new, empty share of the memory budget for an answer that is read whole."""
        return self._limiter.open_answer_share(self.address, None if self.caller is None else self.caller.abort)

    async def read_body(self, share: Share, *, most: int | None = None) -> bytes:
        """Return the request's whole body; its bytes count against `share` until the share is given back.

        Args:
            share: A share of the memory for bodies.
            most: Maximum number of bytes; None for the limit of every caller.

        Raises:
            RefusedError: The body is too large or too slow.
            GoneError: The caller disconnected.
        """
        limit = self._limiter.limits.body_limit(self.path)
        return await self._limiter.read_body(
            self._receive, self.found, share, limit if most is None else min(limit, most)
        )

    def _request_head(self, server: ServerConnections, framing: bytes) -> bytes:
        dropped = _NOT_HANDED_ON
        if b"connection" in self.found:
            dropped = dropped | connection_tokens(self.headers)
        lines = [self.method.encode("ascii") + b" " + self.target + b" HTTP/1.1\r\n"]
        if b"host" not in self.found:
            dropped = dropped | {b"host"}
            lines.append(b"host: " + server.authority + b"\r\n")
        lines += [name + b": " + value + b"\r\n" for name, value in self.headers if name not in dropped]
        lines.append(framing + b"\r\n")
        return b"".join(lines)

    async def hand_on(
        self, server: ServerConnections, body: bytes, timeout: float, *, is_kept: bool = False
    ) -> ServerConnection:
        """Send the request with this body to the server, and wait for the answer's headers.

        Args:
            server: The connections to the server.
            body: The body.
            timeout: Seconds to wait.
            is_kept: Whether the request continues after the caller has disconnected, as it does without a door.

        Raises:
            NodeUnreachableError, LostError, TimeoutError: As `ServerConnections.send_request`.
            GoneError: The caller disconnected.
        """
        framing = b"" if not body and self.method in BODYLESS else b"content-length: %d\r\n" % len(body)
        head = self._request_head(server, framing)
        on_use = None if is_kept else self._close_with_caller
        sending = server.send_request(head, body, limit=timeout, is_head=self.method == "HEAD", on_use=on_use)
        return await self._unless_gone(sending)

    async def deliver_body(self, server: ServerConnections, body: bytes, timeout: float) -> int:
        """Send `body` to the server under the caller's headers, even if the caller disconnects; return the status.

        Raises:
            NodeUnreachableError, LostError, TimeoutError: As `ServerConnections.send_request`, or the answer ended
                early.
        """
        head = self._request_head(server, b"content-length: %d\r\n" % len(body))
        connection = await server.send_request(head, body, limit=timeout)
        try:
            async for _ in connection.read_body(timeout):
                pass
            return connection.status
        finally:
            server.release_connection(connection)

    async def stream_on(self, server: ServerConnections, timeout: float) -> ServerConnection:
        """Send the request to the server, streaming its body as it arrives, and wait for the answer's headers.

        The server has `timeout` seconds for its answer from the end of the body on, however long the caller takes for
        the body, and as long to take each part of it.

        Raises:
            RefusedError: The body is too large or too slow.
            NodeUnreachableError, LostError, TimeoutError: As `ServerConnections.send_request`.
            GoneError: The caller disconnected.
        """
        length = self.found.get(b"content-length")
        # Written anew: the parser accepts a length that a tab follows, which the server may read in another way.
        framing = b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % int(length)
        connection, _ = await server.open_connection(fresh=True)
        self._close_with_caller(connection)
        try:
            connection.begin_exchange(is_head=self.method == "HEAD")
            connection.write(self._request_head(server, framing))
            sending = self._send_body(connection, timeout, is_chunked=length is None)
            pump = asyncio.create_task(sending, name="request body")
            answer = asyncio.create_task(connection.read_head(None), name="answer")
            try:
                await asyncio.wait({pump, answer}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    await pump
                    await asyncio.wait({answer}, timeout=timeout)
                if not answer.done():
                    raise TimeoutError("the server did not answer in time")
                if not pump.done():
                    connection.forbid_reuse()
                await self._unless_gone(answer)
            finally:
                await _cancelled(pump, answer)
        except BaseException:
            server.release_connection(connection)
            raise
        return connection

    async def _send_body(self, connection: ServerConnection, timeout: float, *, is_chunked: bool) -> None:
        limit = self._limiter.limits.body_limit(self.path)
        async for part in self._limiter.read_parts(self._receive, self.found, limit):
            connection.write(b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part)
            await connection.drain(timeout)
        if is_chunked:
            connection.write(b"0\r\n\r\n")

    def _close_with_caller(self, connection: ServerConnection) -> None:
        """Close the connection to the server as soon as the caller disconnects."""
        if self.caller is None:
            return
        if self.is_gone or self.caller.transport.is_closing():
            self._handle_caller_gone(connection)
        self.caller.on_close(lambda: self._handle_caller_gone(connection))

    def _handle_caller_gone(self, connection: ServerConnection) -> None:
        self.is_gone = True
        connection.close()

    async def _unless_gone(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except LostError:
            if self.is_gone:
                raise GoneError from None
            raise

    # --- the answer ---------------------------------------------------------------------------------------------------

    def handed_back(self, headers: Headers) -> Headers:
        """Return the headers of the server's answer for the caller: rewritten, and without hop-by-hop headers."""
        dropped = _HOP_BY_HOP | connection_tokens(headers)
        return [(name, self.header_rewriter(name, value)) for name, value in headers if name not in dropped]

    async def start_answer(self, status: int, headers: Headers) -> None:
        """Send the status and the headers of the answer to the caller."""
        self.has_started = True
        await self._send_event({"type": "http.response.start", "status": status, "headers": headers})

    async def give_answer(self, status: int, body: bytes, more: Headers | None = None) -> None:
        """Send the caller an answer that the door itself has made."""
        fields = [(b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"), *(more or [])]
        await self.start_answer(status, [*fields, *([(b"content-type", content_type_of(self.path))] if body else [])])
        await self.finish_answer(body)

    async def finish_answer(self, body: bytes) -> None:
        """Send the last part of the answer's body to the caller, who has taken most of it when this returns."""
        await send_body(self._send_event, body)

    async def stream_answer(
        self, connection: ServerConnection, keys: KeyFilter | None, timeout: float, kept: bytearray | None = None
    ) -> None:
        """Stream the server's answer to the caller; `keys` overwrites private keys in it, None changes nothing.

        If `kept` is given, the answer's first `KEPT_BYTES`, or a little more, are added to it.

        Raises:
            LostError, TimeoutError: The connection ended, or the server paused too long, before the end.
            GoneError: The caller disconnected.
        """
        _check_status(connection)
        await self.start_answer(connection.status, self.handed_back(connection.headers))

        async def stream() -> None:
            async for chunk in connection.read_body(timeout):
                if kept is not None and len(kept) <= KEPT_BYTES:
                    kept.extend(chunk)
                await self._send_part(chunk if keys is None else keys.feed(chunk))

        await self._unless_gone(stream())
        await self.finish_answer(b"" if keys is None else keys.close())

    async def stream_script(
        self, connection: ServerConnection, rewrite: Callable[[bytes], bytes], timeout: float
    ) -> None:
        """Stream the server's answer to the caller, except that `rewrite` changes its first two lines.

        Raises:
            LostError, TimeoutError, GoneError: As in `stream_answer`.
        """
        _check_status(connection)

        async def stream() -> None:
            chunks, lines = connection.read_body(timeout), bytearray()
            async for chunk in chunks:
                lines += chunk
                if lines.count(b"\n") > 1 or len(lines) > LINES_BYTES:
                    break
            first = rewrite(bytes(lines))
            change = len(first) - len(lines)
            fields = [
                (name, b"%d" % (int(value) + change) if name == b"content-length" else value)
                for name, value in self.handed_back(connection.headers)
            ]
            await self.start_answer(connection.status, fields)
            await self._send_part(first)
            async for chunk in chunks:
                await self._send_part(chunk)

        await self._unless_gone(stream())
        await self.finish_answer(b"")

    async def read_answer(
        self, connection: ServerConnection, size: int, timeout: float, share: Share | None = None
    ) -> bytes:
        """Return the whole body of the server's answer, which must have at most `size` bytes.

        If `share` is given, the bytes count against it until it is given back.

        Raises:
            LostError, TimeoutError, GoneError: As in `stream_answer`. A longer body causes a `LostError`.
            RefusedError: There is no more memory for the body.
        """

        async def collect() -> bytes:
            parts = bytearray()
            async for chunk in connection.read_body(timeout):
                if share is not None:
                    share.take(len(chunk))
                parts += chunk
                if len(parts) > size:
                    raise LostError(f"the server's answer is longer than {size} bytes", is_untouched=False)
            return bytes(parts)

        return await self._unless_gone(collect())

    async def _send_part(self, part: bytes) -> None:
        if part:
            await self._send_event({"type": "http.response.body", "body": part, "more_body": True})

    async def _send_event(self, event: MutableMapping[str, Any]) -> None:
        if self.is_gone:
            raise GoneError
        await self._send(event)

    async def answer_refusal(self, refused: RefusedError) -> None:
        """Send the caller the answer to a rejected request; if another answer has begun, cut that answer off."""
        if self.has_started:
            await self.cut_off()
            return
        self.has_started = True
        await send_refusal(refused, self._receive, self._send_event, is_head=self.method == "HEAD")

    async def cut_off(self) -> None:
        """Close the caller's connection in the middle of the answer, which shows that the answer is incomplete."""
        self.is_gone = True
        if self.caller is None:
            raise GoneError
        self.caller.abort()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def release_caller(self) -> None:
        """Stop observing the caller's connection."""
        if self.caller is not None:
            self.caller.on_close(None)


def _check_status(connection: ServerConnection) -> None:
    if connection.status > LAST_STATUS:
        raise LostError(f"the server answered with the invalid status {connection.status}", is_untouched=False)


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    await cancel_tasks(*tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # reported already, or of no more interest
