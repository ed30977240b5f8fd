"""Callers of the door that disconnect, are slow or never end, and a door that closes while requests are in progress."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import DoorRule
from goatherd.wire.commit import Commit
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import World, X, world
from tests.unit.goats import commit_by, element, signed_header
from tests.waiting import until

from .scripted_server import (
    GET,
    PATIENCE,
    Reader,
    Scripted,
    Writer,
    answer_of,
    head_of,
    is_listening,
    line,
    quiet,
    scripted,
)


def push_of(commit: Commit) -> bytes:
    """Return the request in which X pushes a commit of the repository ``/data/x``."""
    body = to_json_bytes([element("/data/x", [commit])])
    head = f"POST /batch-sync HTTP/1.1\r\nhost: h\r\nx-goat-sig: {signed_header(X)}\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


async def answer_without_end(writer: Writer) -> None:
    """Send an answer of a gigabyte, until the other side has closed the connection."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()


def hold_verification(w: World) -> asyncio.Event:
    """Block the verification of commits, and return an event that is set when the first one begins."""
    began = asyncio.Event()

    async def never(*_: Any, **__: Any) -> Any:
        began.set()
        await asyncio.Event().wait()

    w.trust.verify_commits = never  # type: ignore[method-assign]
    return began


async def test_a_caller_who_goes_takes_the_server_s_connection_along() -> None:
    asked = asyncio.Event()

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        asked.set()
        await reader.read()
        state.requests.append(b"closed")

    async with scripted(talk) as (state, door):
        async with line(door.port) as (_, writer):
            writer.write(GET)
            await asyncio.wait_for(asked.wait(), PATIENCE)
        await until(lambda: state.requests == [b"closed"])
        await until(lambda: quiet(door) and door.status.connections == 0)


async def test_what_a_client_has_pushed_is_delivered_although_it_goes_before_the_answer() -> None:
    go_on = asyncio.Event()
    async with world() as w:
        verify = w.trust.verify_commits

        async def late(*given: Any, **more: Any) -> Any:
            await go_on.wait()
            return await verify(*given, **more)

        w.trust.verify_commits = late  # type: ignore[method-assign]
        commit = commit_by(X, "k", {"text": "x"})
        async with line(w.door.port) as (_, writer):
            writer.write(push_of(commit))
            await until(lambda: w.door.status.requests == 1)
            await asyncio.sleep(0.05)
        await until(lambda: w.door.status.connections == 0)
        go_on.set()
        await until(lambda: commit.id in w.stored("/data/x"))


async def test_a_caller_who_goes_in_the_middle_of_an_answer_leaves_nothing_behind() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        await answer_without_end(writer)
        state.requests.append(b"closed")

    async with scripted(talk) as (state, door):
        async with line(door.port) as (reader, writer):
            writer.write(GET)
            await reader.readexactly(300_000)
        await until(lambda: state.requests == [b"closed"])
        await until(lambda: quiet(door) and door.status.connections == 0)


async def test_a_caller_who_goes_in_the_middle_of_a_body_leaves_nothing_behind() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await reader.read()
        state.requests.append(b"closed")

    async with scripted(talk) as (_state, door):
        for path in (b"/upload", b"/batch-sync"):
            async with line(door.port) as (_, writer):
                writer.write(
                    b"POST " + path + b" HTTP/1.1\r\nhost: h\r\nx-goat-sig: a\r\ncontent-length: 1000000\r\n\r\nabc"
                )
                await writer.drain()
                await until(lambda: door.status.requests > 0)
        await until(lambda: quiet(door) and door.status.connections == 0)


@pytest.mark.slow
async def test_a_caller_who_does_not_take_the_answer_is_cut_off() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        await answer_without_end(writer)

    # As long as the server may take to answer, too, which it does before that on a slow machine.
    limits = DoorLimits(answer_timeout=timedelta(seconds=2))
    async with scripted(talk, limits) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET)
        assert (await head_of(reader)).startswith(b"HTTP/1.1 200 ")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: door.status.connections == 0)
        await until(lambda: quiet(door))


@pytest.mark.slow
async def test_a_slow_server_is_not_read_faster_than_the_caller_reads() -> None:
    sent = 0

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        nonlocal sent
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 200000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while sent < 200_000_000:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET)
        await head_of(reader)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.5)
        assert sent < 100_000_000


@pytest.mark.slow
async def test_headers_that_come_too_slowly_end_the_connection() -> None:
    limits = DoorLimits(header_timeout=timedelta(milliseconds=200))
    async with world(limits=limits) as w:
        for start in (b"", b"GET /x HTTP/1.1\r\nhost: "):
            async with line(w.door.port) as (reader, writer):
                writer.write(start)
                assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        async with line(w.door.port) as (reader, writer):
            writer.write(b"GET /healthy HTTP/1.1\r\nhost: h\r\n\r\n")
            assert (await answer_of(reader))[0] == 200
            writer.write(b"GET /heal")
            assert (await reader.read()).startswith(b"HTTP/1.1 408 "), "the second request, too"
        assert w.stopped(DoorRule.TOO_SLOW) == 3
        await until(lambda: w.door.status.connections == 0)


async def test_headers_without_end_are_not_kept() -> None:
    async with world(limits=DoorLimits(header_bytes=10_000)) as w, line(w.door.port) as (reader, writer):
        writer.write(b"GET /x HTTP/1.1\r\nhost: h\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(2000):
                writer.write(b"x-%d: yyyyyyyyyyyyyyyyyyyy\r\n" % number)
                await writer.drain()
            text = await reader.read()
            assert text.startswith(b"HTTP/1.1 431 ")
        await until(lambda: w.door.status.connections == 0)


@pytest.mark.slow
@pytest.mark.parametrize("path", [b"/batch-sync", b"/upload"])
async def test_a_body_that_comes_too_slowly_is_408(path: bytes) -> None:
    limits = DoorLimits(body_timeout=timedelta(milliseconds=200))
    async with world(limits=limits) as w, line(w.door.port) as (reader, writer):
        writer.write(b"POST " + path + b" HTTP/1.1\r\nhost: h\r\nx-goat-sig: " + signed_header(X).encode())
        writer.write(b"\r\ncontent-length: 100\r\n\r\nabc")
        assert (await answer_of(reader))[0] == 408
        assert w.stopped(DoorRule.TOO_SLOW) == 1
        await until(lambda: quiet(w.door))


async def test_one_address_holds_so_many_connections_and_no_more() -> None:
    async with world(limits=DoorLimits(connections_per_address=3)) as w, contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(line(w.door.port))
        await until(lambda: w.door.status.connections == 3)
        async with line(w.door.port) as (reader, _):
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        assert w.stopped(DoorRule.TOO_MANY) == 1


async def test_a_closing_door_answers_what_is_running() -> None:
    go_on = asyncio.Event()

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        state.requests.append(b"asked")
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()

    state = Scripted()
    async with contextlib.AsyncExitStack() as stack:
        state, door = await stack.enter_async_context(scripted(talk))
        reader, writer = await stack.enter_async_context(line(door.port))
        writer.write(GET)
        await until(lambda: state.requests == [b"asked"])
        closing = asyncio.create_task(door._listener.stop(timedelta(seconds=PATIENCE)))
        await asyncio.sleep(0)
        go_on.set()
        assert (await answer_of(reader))[2] == b"ok"
        await closing


async def test_a_door_that_is_hurried_waits_for_no_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goatherd.door.door.GRACE", timedelta(seconds=10 * PATIENCE))
    async with contextlib.AsyncExitStack() as stack:
        w = await stack.enter_async_context(world())
        began = hold_verification(w)
        async with line(w.door.port) as (_, writer):
            writer.write(push_of(commit_by(X, "k", {"text": "x"})))
            await began.wait()
        await until(lambda: w.door.status.connections == 0)
        closing = asyncio.create_task(stack.aclose())
        await until(lambda: not is_listening(w.door))
        assert not closing.done()
        w.door.hurry()
        async with asyncio.timeout(PATIENCE):
            await closing


async def test_a_door_closes_although_its_last_delivery_ends_at_the_same_moment() -> None:
    async with world() as w:
        proxy = w.door._proxy
        assert proxy is not None
        last = asyncio.create_task(asyncio.sleep(0))
        proxy._deliveries.add(last)
        last.add_done_callback(proxy._deliveries.discard)
        while not last.done():
            await asyncio.sleep(0)
        assert proxy._deliveries, "it is forgotten in the next turn of the event loop"
        await proxy.aclose(PATIENCE, asyncio.Event())


async def test_a_door_that_closes_in_the_middle_of_a_push_logs_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with world() as w:
        began = hold_verification(w)
        async with line(w.door.port) as (_, writer):
            writer.write(push_of(commit_by(X, "k", {"text": "x"})))
            await began.wait()
            caplog.clear()
            await w.door._listener.stop(timedelta(milliseconds=50))
    assert not [each.getMessage() for each in caplog.records if each.name.startswith("uvicorn")]
