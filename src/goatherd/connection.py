"""One caller's HTTP/1.1 connection: uvicorn's protocol, with an end to all of a request that is not its body.

Not a server: framing, keep-alive, chunks and ``100-continue`` are uvicorn's and httptools'. What is added is what they
leave open: a head (request line and headers) is collected in memory, whoever sends it, for as long as more of it comes;
trailers count as headers; what follows a wish for another protocol is read as the next request.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["Connection"]

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """One caller's connection. Trailers are dropped.

    Attributes:
        head_bytes: A request's line and headers, and whatever else is not its body; 431 beyond.
        head_timeout: How long a connection may take to send its head; 408 beyond.
    """

    head_bytes: int = 64 * 1024
    head_timeout: timedelta = timedelta(seconds=10)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._head_timer: asyncio.TimerHandle | None = None
        self._loose_bytes = 0
        self._in_head = True
        self._cycles: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        # uvicorn tells the newest request only; where requests came at once, an older one is being answered.
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > self.head_bytes:
            self.end(_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._start_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        # SECURITY: uvicorn adds trailers to the headers, which were judged before the body came: a second Host, or
        # another signature, would be seen by some and not by others (tests/unit/agent/test_door_transport.py).
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_head = False
        self._loose_bytes = 0
        super().on_headers_complete()
        self._cycles = [each for each in self._cycles if not each.response_complete]
        self._cycles.append(self.cycle)
        if self.parser.should_upgrade():
            # SECURITY: httptools takes what follows for another protocol's, and then, in the next segment, for another
            # request, even if it is this one's body (tests/unit/agent/test_door_transport.py).
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._loose_bytes = 0
        super().on_message_complete()

    def on_slow(self) -> None:
        """Called when the caller was too slow with its headers."""

    def end(self, answer: bytes) -> None:
        """Send a last answer and close; where another answer has begun, cut the connection."""
        self._stop_timer()
        if any(each.response_started and not each.response_complete for each in self._cycles):
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout.total_seconds(), self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self.on_slow()
        self.end(_TOO_SLOW)
