"""A server behind the door that breaks off an answer, ends, does not answer, or closes its connections."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import pytest

from goatherd.door.limits import DoorLimits
from tests.cluster.door_world import world
from tests.waiting import until

from .scripted_server import GET, Reader, Scripted, Writer, answer_of, head_of, line, quiet, scripted


@pytest.mark.parametrize("framing", [b"content-length: 100", b"transfer-encoding: chunked"], ids=["length", "chunked"])
async def test_an_answer_that_breaks_off_is_cut_off_and_not_completed(framing: bytes) -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        part = b"5\r\nhello\r\n" if b"chunked" in framing else b"hello"
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + part)
        await writer.drain()

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET)
        with contextlib.suppress(ConnectionError):
            text = await reader.read()
            assert b"hello" in text
            assert not text.endswith(b"0\r\n\r\n")
        await until(lambda: quiet(door) and door.status.connections == 0)


async def test_an_answer_that_breaks_off_leaves_nothing_behind_where_requests_came_at_once() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
        await writer.drain()

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET * 3)
        with contextlib.suppress(ConnectionError):
            assert (await reader.read()).endswith(b"abc")
        await until(lambda: quiet(door))


async def test_a_server_that_dies_before_its_answer_is_502() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET)
        status, fields, _ = await answer_of(reader)
        assert (status, fields["retry-after"]) == (502, "1")
        writer.write(GET)
        assert (await answer_of(reader))[0] == 502, "the caller's connection stays"
        await until(lambda: quiet(door))


async def test_a_server_that_speaks_something_else_is_502() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        writer.write(b"SSH-2.0-nonsense\r\n")
        await reader.read()

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET)
        assert (await answer_of(reader))[0] == 502


async def test_a_server_that_is_not_there_is_503_and_one_that_comes_back_is_used() -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        writer.write(b"GET /healthy HTTP/1.1\r\nhost: h\r\n\r\n")
        assert (await answer_of(reader))[0] == 200
        assert w.child._listener is not None
        await w.child._listener.close()
        writer.write(b"GET /healthy HTTP/1.1\r\nhost: h\r\n\r\n")
        status, fields, _ = await answer_of(reader)
        assert (status, fields["retry-after"]) == (503, "1")
        push = await w.push(True, "/data/x", {"id": "any"})
        assert push.status_code == 503, "who cannot be asked is no reason to take a commit out"
        w.child._listener = type(w.child._listener)(
            w.child.app,
            "127.0.0.1",
            int(w.child.url.rpartition(":")[2]),
            limiter=w.child._listener.limiter,
        )
        await w.child._listener.start()
        writer.write(b"GET /healthy HTTP/1.1\r\nhost: h\r\n\r\n")
        assert (await answer_of(reader))[0] == 200


async def test_an_era_ends_with_the_last_connection_and_not_before() -> None:
    """A process that ends closes all of its connections."""
    async with world() as w:
        upstream = w.door._server
        (first, _), (second, _) = await upstream.open_connection(fresh=True), await upstream.open_connection(fresh=True)
        for each in list(upstream._idle):
            each.close()
        server_generation = upstream.server_generation
        first.close()
        await asyncio.sleep(0)
        assert upstream.server_generation == server_generation
        second.close()
        await until(lambda: upstream.server_generation == server_generation + 1)
        upstream._busy.clear()


async def test_a_connection_that_is_too_old_is_not_closed_before_there_is_another_one() -> None:
    async with world() as w:
        upstream = w.door._server
        connection = upstream._idle[-1]
        for each in upstream._idle:
            each.idle_since -= 60
        server_generation = upstream.server_generation
        assert (await w.http.get(w.door.url + "/healthy")).text == "OK"
        assert not connection.is_open
        assert upstream.server_generation == server_generation


@pytest.mark.slow
async def test_a_server_that_is_silent_is_504() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await reader.read()

    limits = DoorLimits(answer_timeout=timedelta(milliseconds=200))
    async with scripted(talk, limits) as (_state, door), line(door.port) as (reader, writer):
        writer.write(GET)
        assert (await answer_of(reader))[0] == 504
        await until(lambda: quiet(door))


@pytest.mark.slow
async def test_the_time_for_the_answer_begins_when_the_body_has_arrived() -> None:
    parts = 4

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        await reader.readexactly(parts)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await reader.read()

    limits = DoorLimits(answer_timeout=timedelta(seconds=1))  # shorter than the body takes, and long for one answer
    async with scripted(talk, limits) as (_state, door), line(door.port) as (reader, writer):
        writer.write(b"POST /upload HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % parts)
        for _ in range(parts):
            await asyncio.sleep(0.3)
            writer.write(b"x")
        assert (await answer_of(reader))[::2] == (200, b"ok")
        await until(lambda: quiet(door))


@pytest.mark.slow
@pytest.mark.parametrize("reads", [True, False])
async def test_a_server_that_takes_no_body_or_does_not_answer_it_is_504(reads: bool) -> None:
    size = 32 * 1024 * 1024 if not reads else 1000

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        if reads:
            await reader.readexactly(size)
        await asyncio.wait_for(gone.wait(), 60)

    gone = asyncio.Event()
    limits = DoorLimits(answer_timeout=timedelta(milliseconds=200))
    async with scripted(talk, limits) as (_state, door), line(door.port) as (reader, writer):
        writer.write(b"POST /upload HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size)
        writer.write(b"x" * size)
        assert (await answer_of(reader))[0] == 504
        gone.set()
        await until(lambda: quiet(door))


async def test_a_kept_connection_that_the_server_has_closed_meanwhile_is_no_error() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        state.requests.append(b"")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await head_of(reader)  # and closes without a word

    async with scripted(talk) as (state, door), line(door.port) as (reader, writer):
        for _ in range(3):
            writer.write(GET)
            assert (await answer_of(reader))[0] == 200
        assert len(state.requests) == 3
