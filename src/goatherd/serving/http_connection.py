"""One caller's HTTP/1.1 connection: uvicorn's protocol, with a limit on everything that a caller can prolong.

uvicorn and httptools handle framing, keep-alive, chunks and ``100-continue``. This module adds limits that they lack:
the number of connections of one address, the size and duration of a head (request line and headers), trailers and
upgrade requests, and requests that come before the earlier ones are answered. It also limits three things that could
keep a connection open indefinitely: blank lines between requests, the rest of a request body after the request was
answered, and an answer that the caller does not read. The module also notifies the application as soon as its caller
disconnects.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from goatherd.clock import SystemClock
from goatherd.errors import NodeError
from goatherd.serving.caller_limiter import CONNECTION, CallerLimiter, Receive, Scope, Send
from goatherd.serving.caller_limits import CallerLimits

_log = logging.getLogger("goatherd.serving")
# uvicorn warns of every malformed request; their senders must not fill the log.
_log.setLevel(logging.ERROR)

QUEUED: Final = 32
"""Maximum number of requests of one connection that wait until an earlier one is answered. GoatDB's clients send none
before the answer to the last one."""

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
)


class _QueueFullError(Exception):
    """A connection has more requests waiting than `QUEUED`; the parser stops."""


class _HeadTooLargeError(Exception):
    """The line and headers of a request have more bytes than the limit; the parser stops."""


class _ReadControl(FlowControl):
    """Pauses and resumes reading from a caller; never resumes while requests of the caller wait for an earlier one.

    SECURITY: uvicorn itself resumes reading with each answer, and when the application reads a body. The queue of a
    caller's requests could then grow without limit (tests/unit/serving/test_http_connection.py).

    Args:
        transport: The caller's connection.
        pipeline: The requests that wait.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Collection[object]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class HTTPConnection(HttpToolsProtocol):
    """The HTTP connection of one caller, with limits on size and duration. Trailers of requests are dropped.

    Args:
        limiter: Counts connections, and provides the limits on the size and duration of a request's head.
        given: The arguments for uvicorn's own connection class.
    """

    def __init__(self, limiter: CallerLimiter, **given: Any) -> None:
        super().__init__(**given)
        # uvicorn's own loggers belong to the program, which may run a uvicorn of its own beside this listener.
        self.logger = _log
        self.access_log = False
        self._limiter = limiter
        self._address = ""
        self._on_close: Callable[[], None] | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._loose_bytes = 0
        self._in_head = True
        self._answer_timer: asyncio.TimerHandle | None = None
        self._cycles: list[RequestResponseCycle] = []

    # --- asyncio ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _ReadControl(transport, self.pipeline)
        self._start_timer()
        self._address = self.client[0] if self.client else ""
        if not self._limiter.count_connection(self._address, self.abort):
            self.answer_and_close(_TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_answer_timer()
        self._limiter.uncount_connection(self._address, self.abort)
        super().connection_lost(exc)
        # uvicorn notifies only the newest request. If several requests are queued, an older one is being answered.
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        callback, self._on_close = self._on_close, None
        if callback is not None:
            callback()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_answer_timer()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > self._limiter.limits.header_bytes:
            self.answer_and_close(_TOO_LARGE)
        elif self._is_between_requests and self.timeout_keep_alive_task is None:
            # SECURITY: a caller could keep a connection open by sending blank lines. They begin no request, but uvicorn
            # stops its keep-alive timer when they arrive (tests/unit/serving/test_http_connection.py).
            self._start_timer()

    # --- httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= QUEUED:
            # SECURITY: one TCP segment can contain thousands of short requests, so the queue is bounded
            # (tests/unit/serving/test_http_connection.py).
            self._limiter.report_full_queue()
            self.answer_and_close(_TOO_MANY)
            raise _QueueFullError
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]
        self._start_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        # SECURITY: uvicorn adds trailers to the headers, after the headers were checked. With a second Host or
        # signature in the trailers, the door and the server would read different requests
        # (tests/unit/door/test_smuggling.py).
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        # Also of a head that came whole, in one segment or with other requests.
        head_bytes = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
        if head_bytes > self._limiter.limits.header_bytes:
            self.answer_and_close(_TOO_LARGE)
            raise _HeadTooLargeError
        self._stop_timer()
        self._in_head = False
        self._loose_bytes = 0
        super().on_headers_complete()
        self._cycles = [each for each in self._cycles if not each.response_complete]
        self._cycles.append(self.cycle)
        if self.parser.should_upgrade():
            # SECURITY: after a request to upgrade, httptools treats the following bytes as another protocol, and the
            # next segment as a new request, even if both belong to this request's body. So the connection is closed
            # (tests/unit/door/test_smuggling.py).
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._in_head = True
        self._loose_bytes = 0
        super().on_message_complete()

    # --- uvicorn ------------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)
            self._watch_answer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_answer()
        elif not self._in_head and self.cycle.response_complete:
            # SECURITY: the response was sent before the whole body arrived. The rest of the body is limited in time and
            # size, like a head (tests/unit/serving/test_http_connection.py).
            self._loose_bytes = 0
            self._start_timer()

    def timeout_keep_alive_handler(self) -> None:
        if self.flow.write_paused:
            # The caller is still reading the last answer.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()
            self._watch_answer()

    # --- what applications use ----------------------------------------------------------------------------------------

    def on_close(self, callback: Callable[[], None] | None) -> None:
        """Set the function that is called when the caller disconnects; None removes it."""
        self._on_close = callback

    def abort(self) -> None:
        """Close the connection at once, so that the caller notices that the answer is incomplete."""
        self.transport.abort()

    def answer_and_close(self, answer: bytes) -> None:
        """Send a last answer and close the connection. If another answer has begun, close the connection at once."""
        self._stop_timer()
        is_answering = any(each.response_started and not each.response_complete for each in self._cycles)
        if is_answering or (not self._in_head and self.cycle.response_complete):
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()
            self._watch_answer()

    # --- times --------------------------------------------------------------------------------------------------------

    @property
    def _is_between_requests(self) -> bool:
        is_idle = self._in_head and (self.cycle is None or self.cycle.response_complete)
        return is_idle and not self.transport.is_closing()

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limiter.limits.header_timeout.total_seconds(), self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_answer(self) -> None:
        """Start to check how fast the caller takes what is not sent yet.

        This is needed while no more is written: the application waits for the caller, or the connection is closing.
        """
        if self._answer_timer is None and (unsent := self.transport.get_write_buffer_size()):
            self._answer_timer = self.loop.call_later(
                self._limiter.limits.answer_timeout.total_seconds(), self._check_answer, unsent
            )

    def _check_answer(self, before: int) -> None:
        self._answer_timer = None
        limits = self._limiter.limits
        least = min(before, int(limits.answer_rate * limits.answer_timeout.total_seconds()))
        if before - self.transport.get_write_buffer_size() < least:
            # SECURITY: the connection is aborted, because closing it would wait for a caller that reads nothing
            # (tests/unit/serving/test_http_connection.py).
            self.transport.abort()
        else:
            self._watch_answer()

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.pipeline:
            self._start_timer()  # the rest of the head may have come, but is not read yet
            return
        self._limiter.report_slow_head()
        self.answer_and_close(_TOO_SLOW)


class _Recorder(asyncio.Transport):
    """A transport that records what is written to it and sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_paused = False
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    abort = close

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


async def check_hooks() -> None:
    """Check that the installed version of uvicorn calls the methods that `HTTPConnection` overrides.

    These methods are not a public interface of uvicorn. SECURITY: if uvicorn no longer called one of them, a limit
    would be gone without an error (tests/unit/serving/test_http_connection.py).

    Raises:
        NodeError: This version of uvicorn does not call one of the methods.
    """
    seen: list[Scope] = []
    paused: list[bool] = []
    transport = _Recorder()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        while (await receive()).get("more_body"):
            pass
        paused.append(transport.is_paused)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    problem = "its HTTP protocol class does not call the methods that Goatherd relies on"
    caller: HTTPConnection | None = None
    try:
        config = uvicorn.Config(answer, loop="none", lifespan="off", ws="none", log_config=None)
        state = ServerState()
        limiter = CallerLimiter(CallerLimits(header_bytes=256), clock=SystemClock())
        caller = HTTPConnection(limiter, config=config, server_state=state, app_state={})
        caller.connection_made(transport)
        counted, has_timer = limiter.connection_count, caller._head_timer is not None
        caller.data_received(
            b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nhost: t\r\n\r\n"
        )
        await asyncio.gather(*state.tasks)
        scope = seen[0]
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        is_answered = transport.written.startswith(b"HTTP/1.1 204") and caller.timeout_keep_alive_task is not None
        is_head_bounded = scope[CONNECTION] is caller and hosts == [b"h"] and caller._head_timer is None
        caller.data_received(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n" * 2)
        while state.tasks:
            await asyncio.gather(*state.tasks)
        is_queue_bounded = paused == [False, True, False]
        transport.written.clear()
        caller.data_received(b"GET /" + b"x" * 256)
        is_cut = transport.written.startswith(b"HTTP/1.1 431")
        caller.connection_lost(None)
        caller, counts = None, (counted, limiter.connection_count)
        if is_answered and is_head_bounded and is_queue_bounded and is_cut and has_timer and counts == (1, 0):
            return
    except (AttributeError, LookupError, TypeError) as error:
        problem = f"its protocol has changed ({type(error).__name__}: {error})"
    finally:
        if caller is not None:
            caller._stop_timer()
    raise NodeError(
        f"uvicorn {uvicorn.__version__} cannot be used: {problem}",
        hint="Install the version that this release was tested with: pip install 'uvicorn==0.54.0'.",
    )
