"""A caller's connection ends, whatever the caller does with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from goatherd.clock import SystemClock
from goatherd.errors import NodeError
from goatherd.serving.caller_limiter import CallerLimiter, Receive, Scope, Send
from goatherd.serving.caller_limits import CallerLimits
from goatherd.serving.http_connection import QUEUED, HTTPConnection, _ReadControl, check_hooks
from goatherd.serving.listener import HTTPListener
from tests.deadlines import HANG

SHORT = timedelta(milliseconds=50)
MUCH = 32 * 1024 * 1024
PATIENT = CallerLimits(header_timeout=timedelta(seconds=HANG))


async def answer_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def answer_much(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % MUCH)]})
    await send({"type": "http.response.body", "body": bytes(MUCH)})


@contextlib.asynccontextmanager
async def listening(limits: CallerLimits, app: Any = answer_at_once, **given: Any) -> AsyncIterator[HTTPListener]:
    listener = HTTPListener(app, "127.0.0.1", 0, limiter=CallerLimiter(limits, clock=SystemClock(), **given))
    await listener.start()
    try:
        async with asyncio.timeout(HANG):
            yield listener
    finally:
        await listener.stop(timedelta(0))


@contextlib.asynccontextmanager
async def line(listener: HTTPListener) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def accepted(listener: HTTPListener) -> HTTPConnection:
    """Return the only connection of a listener as soon as the listener has accepted it."""
    while not listener._state.connections:
        await asyncio.sleep(0.001)
    (connection,) = listener._state.connections
    assert isinstance(connection, HTTPConnection)
    return connection


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return what still comes before the connection ends."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_blank_lines_after_a_request_keep_no_connection_open() -> None:
    async with listening(PATIENT) as listener, line(listener) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        listener.limiter.limits = replace(PATIENT, header_timeout=SHORT)
        writer.write(b"\r\n")
        assert (await ended(reader)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("more", [b"", b"x"], ids=["silent", "slow"])
async def test_the_rest_of_a_body_that_was_answered_is_not_waited_for(more: bytes) -> None:
    async with listening(PATIENT) as listener, line(listener) as (reader, writer):
        while not listener.limiter.connection_count:
            await asyncio.sleep(0.001)
        # From here on: the connection itself has begun with the long one, for the head that is sent now.
        listener.limiter.limits = replace(PATIENT, header_timeout=SHORT)
        writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n")
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.write(more)
        assert await ended(reader) == b""


async def test_the_rest_of_a_body_that_was_answered_is_not_read_without_end() -> None:
    async with listening(CallerLimits(header_bytes=5000)) as listener, line(listener) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n")
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.write(bytes(10_000))
        assert await ended(reader) == b""


async def test_a_small_rest_of_an_answered_body_does_not_close_the_connection() -> None:
    async with listening(CallerLimits()) as listener, line(listener) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n")
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.write(b"abcGET / HTTP/1.1\r\nhost: h\r\n\r\n")
        assert await reader.readexactly(len(ANSWER)) == ANSWER


@pytest.mark.parametrize("count", [QUEUED + 2, 14_000])
async def test_requests_that_wait_for_an_earlier_one_are_limited(count: int) -> None:
    stopped: list[str] = []

    async def answer_never(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async with (
        listening(PATIENT, answer_never, report=lambda _, why: stopped.append(why)) as listener,
        line(listener) as (reader, writer),
    ):
        connection = await accepted(listener)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * count)
        # Nothing comes if more was sent than was read.
        assert (await ended(reader)).partition(b" S")[0] in (b"", b"HTTP/1.1 503")
        assert (len(connection.pipeline), len(connection._cycles)) == (QUEUED, QUEUED + 1)
        assert len(stopped) == 1


async def test_nothing_more_is_read_while_requests_wait_for_an_earlier_one() -> None:
    begun, go_on = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def answer_later(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        begun.release()
        await go_on.acquire()
        await answer_at_once(scope, receive, send)

    async with listening(PATIENT, answer_later) as listener, line(listener) as (reader, writer):
        connection = await accepted(listener)
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n" * 3)
        for waiting in (2, 1, 0):
            await begun.acquire()
            assert (len(connection.pipeline), connection.flow.read_paused) == (waiting, waiting > 0)
            go_on.release()
            assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        go_on.release()
        assert await reader.readexactly(len(ANSWER)) == ANSWER


async def test_a_head_that_is_not_read_yet_is_not_slow() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def answer_later(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await go_on.wait()
        await answer_at_once(scope, receive, send)

    async with listening(PATIENT, answer_later) as listener, line(listener) as (reader, writer):
        connection = await accepted(listener)
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n" * 2 + b"GET / HTTP/1.1\r\nhost: h")
        await begun.wait()
        assert connection._head_timer is not None
        connection._too_slow()
        writer.write(b"\r\n\r\n")
        go_on.set()
        for _ in range(3):
            assert await reader.readexactly(len(ANSWER)) == ANSWER


REQUEST = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"
UNREAD = {
    "keep-alive": (REQUEST, b""),
    "close": (b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", b""),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\nhost: h\r\n\r\n", b""),
    "another request": (REQUEST, REQUEST),
    "malformed request": (REQUEST, b"\0"),
    "slow head": (REQUEST, b"GET /"),
}


async def test_a_connection_without_a_request_is_closed_after_the_idle_timeout() -> None:
    for seconds in (0.05, 2 * HANG):
        limits = CallerLimits(idle_timeout=timedelta(seconds=seconds))
        async with listening(limits) as listener, line(listener) as (reader, writer):
            writer.write(REQUEST)
            assert (await reader.readuntil(b"ok")).endswith(b"ok")
            ending = asyncio.create_task(reader.read())
            done, _ = await asyncio.wait({ending}, timeout=HANG if seconds < 1 else 0.2)
            assert bool(done) == (seconds < 1)
            ending.cancel()


@pytest.mark.parametrize(("sent", "then"), UNREAD.values(), ids=UNREAD.keys())
async def test_an_answer_that_is_not_taken_is_not_kept(sent: bytes, then: bytes) -> None:
    limits = CallerLimits(idle_timeout=SHORT, answer_timeout=SHORT)
    async with listening(limits, answer_much) as listener, line(listener) as (_, writer):
        connection = await accepted(listener)
        writer.write(sent)
        while not connection.transport.get_write_buffer_size() and listener.limiter.connection_count:
            await asyncio.sleep(0.001)
        listener.limiter.limits = replace(limits, header_timeout=SHORT)
        writer.write(then)
        while listener.limiter.connection_count:
            await asyncio.sleep(0.01)


async def test_an_answer_that_is_taken_too_slowly_is_not_kept() -> None:
    limits = CallerLimits(answer_timeout=timedelta(seconds=HANG), answer_rate=MUCH)
    async with listening(limits, answer_much) as listener, line(listener) as (reader, writer):
        connection = await accepted(listener)
        writer.write(REQUEST)
        while not connection.flow.write_paused:
            await asyncio.sleep(0.001)
        before = connection.transport.get_write_buffer_size()
        while connection.transport.get_write_buffer_size() == before:
            assert await reader.read(65536)
        connection._check_answer(before)
        assert connection.transport.is_closing()


async def test_an_answer_that_is_taken_slowly_but_steadily_is_sent_whole() -> None:
    limits = CallerLimits(idle_timeout=SHORT, answer_timeout=timedelta(seconds=HANG), answer_rate=10)
    async with listening(limits, answer_much) as listener, line(listener) as (reader, writer):
        connection = await accepted(listener)
        writer.write(REQUEST)
        taken = len(await reader.readuntil(b"\r\n\r\n"))
        while connection.flow.write_paused:
            before = connection.transport.get_write_buffer_size()
            while connection.flow.write_paused and before - connection.transport.get_write_buffer_size() < 10 * HANG:
                taken += len(await reader.read(65536))
            connection._check_answer(before)
        taken += len(await ended(reader))
        assert taken > MUCH


async def test_an_answer_that_is_on_its_way_is_not_cut_off_by_the_end() -> None:
    async with listening(CallerLimits(), answer_much) as listener, line(listener) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        stopping = asyncio.create_task(listener.stop(timedelta(seconds=HANG)))
        body = await ended(reader)
        await stopping
        assert b"content-length: %d\r\n" % len(body) in head


async def test_one_address_holds_so_many_connections_and_a_proxy_that_is_named_holds_all() -> None:
    limits = CallerLimits(connections_per_address=1, connections=3)
    for proxies, allowed in ((), 1), (("127.0.0.0/8",), 3):
        stopped: list[str] = []
        async with (
            listening(limits, forwarded_by=proxies, report=lambda _, why, seen=stopped: seen.append(why)) as listener,
            contextlib.AsyncExitStack() as stack,
        ):
            for number in range(1, 5):
                reader, writer = await stack.enter_async_context(line(listener))
                writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
                status = await reader.readuntil(b"\r\n")
                assert status == b"HTTP/1.1 %b\r\n" % (b"200 OK" if number <= allowed else b"503 Service Unavailable")
            assert len(stopped) == 4 - allowed


async def test_a_listener_logs_no_requests_and_leaves_uvicorn_s_loggers_to_the_program(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = [logging.getLogger(f"uvicorn.{name}") for name in ("access", "error")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.INFO)
        monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO):
        async with listening(CallerLimits()) as listener, line(listener) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
            assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
            writer.write(b"no request\r\n\r\n")
            assert b"HTTP/1.1 400 Bad Request" in await reader.read()
    assert [(logger.level, logger.propagate) for logger in loggers] == [(logging.INFO, True)] * 2
    assert not caplog.records


@pytest.mark.parametrize(
    "hook", ["connection_made", "connection_lost", "data_received", "on_message_begin", "on_header"]
)
async def test_a_version_of_uvicorn_that_does_not_call_a_hook_is_refused_at_start(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check_hooks()
    monkeypatch.setattr(HTTPConnection, hook, getattr(HttpToolsProtocol, hook))
    with pytest.raises(NodeError, match=r"uvicorn .* cannot be used"):
        await check_hooks()


async def test_a_version_of_uvicorn_that_reads_on_while_requests_wait_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_ReadControl, "resume_reading", FlowControl.resume_reading)
    with pytest.raises(NodeError, match=r"uvicorn .* cannot be used"):
        await check_hooks()


async def test_a_version_of_uvicorn_whose_protocol_is_another_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HttpToolsProtocol, "on_headers_complete", lambda self: self.no_such_attribute)
    with pytest.raises(NodeError, match=r"its protocol has changed|does not call"):
        await check_hooks()
