"""The door as a proxy: what it does to bytes, to connections, and to those who misuse them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from goatherd.door import Door, DoorLimits, Rule, TrustedSessions
from goatherd.door.key_filter import script_with_server_url
from goatherd.errors import ConfigurationError
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import A, Standing, X, identity, world
from tests.fakes.upstream_child import APPLICATION
from tests.unit.goats import ORG, commit_by, element, signed_header

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
PATIENCE = 60


class Quiet(TrustedSessions):
    """Believes the identity only, and asks the server nothing."""

    async def refresh(self) -> None:
        pass


@dataclass
class Scripted:
    """A server that a test writes word by word."""

    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    closed: int = 0


@contextlib.asynccontextmanager
async def scripted(
    talk: Callable[[Reader, Writer, Scripted], Awaitable[None]], limits: DoorLimits | None = None
) -> AsyncIterator[tuple[Scripted, Door]]:
    """A scripted server with a door in front that asks nothing of its own."""
    state = Scripted()

    async def serve(reader: Reader, writer: Writer) -> None:
        state.connections += 1
        try:
            await talk(reader, writer, state)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            state.closed += 1
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        trust = Quiet(org=ORG, identity=identity(A), clock=Standing())
        async with Door(upstream=state.url, trust=trust, limits=limits, clock=trust.clock) as door:
            yield state, door
    finally:
        server.close()


async def head_of(reader: Reader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


@contextlib.asynccontextmanager
async def line(port: int) -> AsyncIterator[tuple[Reader, Writer]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer_of(reader: Reader) -> tuple[int, dict[str, str], bytes]:
    """Read one whole answer with a length."""
    head = (await head_of(reader)).decode("latin-1")
    fields = dict(re.findall(r"^([\w-]+): (.*)\r$", head, re.MULTILINE))
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    return int(head.split()[1]), fields, body


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def quiet(door: Door) -> bool:
    """Whether nothing of any request is left: no task, no connection in use."""
    names = {task.get_name() for task in asyncio.all_tasks()}
    status = door.status
    return not status.requests and not names & {"request body", "answer"} and not door._server._busy


GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"


# --- untouched --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/healthy"),
        ("GET", "/HEALTHY?x=1"),
        ("GET", "/healthy/"),
        ("HEAD", "/healthy"),
        ("POST", "/healthy"),
        ("GET", "/"),
        ("OPTIONS", "/batch-sync"),
        ("OPTIONS", "/nope"),
        ("GET", "/batch-sync"),
        ("PUT", "/batch-sync"),
        ("POST", "/batch-sync/"),
        ("PATCH", "/auth/session"),
        ("DELETE", "/auth/session"),
        ("GET", "/auth/temp-login"),
        ("POST", "/nope"),
        ("GET", "/a%20b?c=%2e%2e&d=\\"),
    ],
)
async def test_what_is_not_judged_is_answered_as_the_server_answers_it(method: str, path: str) -> None:
    async with world() as w:
        answers = []
        for through in (False, True):
            url = w.base(through) + path
            answers.append(await w.http.request(method, url, content=b"x" if method == "POST" else None))
        bare, guarded = answers
        assert (guarded.status_code, guarded.content) == (bare.status_code, bare.content)
        assert dict(guarded.headers) == dict(bare.headers)
        assert sum(w.door.status.stopped.values()) == 0


async def test_a_poll_is_handed_on_byte_for_byte_with_its_headers() -> None:
    async with world() as w:
        body = b' [ {"msg": {"f":{"d":"AA==","s":[1.0, 2]}, "ver":50595584,"s":0,"c":[], "zz":1e2},"path":"data/x/y"} ]'
        w.child.reached.clear()
        response = await w.send(True, body, headers={"x-org-id": "any", "x-own": "kept"})
        assert response.status_code == 200
        assert response.json()[0]["path"] == "data/x/y"
        assert [each[2] for each in w.child.reached] == [body]


async def test_headers_of_one_connection_end_at_the_door_and_all_others_pass() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        state.requests.append(await head_of(reader))
        writer.write(
            b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nConnection: keep-alive, x-mine\r\nX-Mine: 1\r\n"
            b"Keep-Alive: timeout=9\r\nX-Kept: a\r\nX-Kept: b\r\nUpgrade: h2c\r\nProxy-Authenticate: x\r\n\r\nok"
        )
        await reader.read()

    async with scripted(talk) as (state, door), line(door.port) as (reader, writer):
        writer.write(
            b"GET /x?y=1 HTTP/1.1\r\nHost: goats.example:99\r\nConnection: close, x-private\r\nX-Private: 1\r\n"
            b"TE: trailers\r\nAccept-Encoding: gzip\r\nProxy-Authorization: x\r\nCookie: a\r\nCookie: b\r\n\r\n"
        )
        status, fields, body = await answer_of(reader)
        assert (status, body) == (200, b"ok")
        assert fields == {"content-length": "2", "x-kept": "b", "connection": "close"}
        (sent,) = state.requests
        assert sent == b"GET /x?y=1 HTTP/1.1\r\nhost: goats.example:99\r\ncookie: a\r\ncookie: b\r\n\r\n"


@pytest.mark.parametrize(
    "named",
    ["host", "close, Host", "x-goat-sig", "X-Forwarded-For", "cookie", "x\r\nConnection: host"],
)
async def test_a_connection_header_takes_nothing_away_that_was_judged_or_names_the_caller(named: str) -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        w.child.reached.clear()
        writer.write(f"GET /healthy HTTP/1.1\r\nHost: h\r\nX-Goat-Sig: s\r\nConnection: {named}\r\n\r\n".encode())
        status, _, _ = await answer_of(reader)
        assert status == 400
        assert not w.others()
        assert w.stopped(Rule.HEADERS) == 1


@pytest.mark.parametrize(
    "request_", [b"CONNECT h:80 HTTP/1.1\r\nhost: h:80\r\n\r\n", b"TRACE / HTTP/1.1\r\nhost: h\r\n\r\n"]
)
async def test_a_tunnel_and_an_echo_are_not_handed_on(request_: bytes) -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        w.child.reached.clear()
        writer.write(request_)
        status = await reader.readline()
        # httptools takes the target of CONNECT for no path at all, which is 400 before the door sees it.
        assert status.split()[1] in (b"405", b"400")
        assert not w.others()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", b"abc"),
    ],
    ids=["chunked", "until the end", "HTTP/1.0", "after 100"],
)
async def test_every_way_to_frame_an_answer_is_understood(answer: bytes, expected: bytes) -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        writer.write(answer)

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        if b"chunked" in head:
            parts = re.findall(rb"([0-9a-f]+)\r\n(\w*)\r\n", body)
            assert all(int(size, 16) == len(part) for size, part in parts)
            body = b"".join([part for _, part in parts])
        assert body == expected


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_keeps_the_connection(status: int) -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        while True:
            await head_of(reader)
            writer.write(b"HTTP/1.1 %d Nothing\r\nx: y\r\n\r\n" % status)

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        for _ in range(2):
            writer.write(GET)
            head = await head_of(reader)
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"transfer-encoding" not in head


async def test_a_head_request_gets_the_length_and_no_body_and_keeps_the_connection() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        while True:
            head = await head_of(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"hello")

    async with scripted(talk) as (_state, door), line(door.port) as (reader, writer):
        for _ in range(2):
            writer.write(b"HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n")
            assert b"content-length: 5" in await head_of(reader)
        writer.write(GET)
        assert (await answer_of(reader))[2] == b"hello"


async def test_answers_stream() -> None:
    go_on = asyncio.Event()

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 6\r\n\r\n[1,")
        await writer.drain()
        await go_on.wait()
        writer.write(b"22]")

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET)
        await head_of(reader)
        assert await reader.readexactly(3) == b"[1,"
        go_on.set()
        assert await reader.readexactly(3) == b"22]"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_bodies_that_are_not_judged_stream(framing: str) -> None:
    arrived = asyncio.Event()

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        state.requests.append(await head_of(reader))
        text = b""
        while not text.endswith(b"world" if framing == "length" else b"0\r\n\r\n"):
            text += await reader.read(100)
            arrived.set()
        state.requests.append(text)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()

    parts = [b"hello", b"world"]
    if framing == "chunked":
        parts = [b"5\r\nhello\r\n", b"5\r\nworld\r\n0\r\n\r\n"]
    length = b"content-length: 10" if framing == "length" else b"transfer-encoding: chunked"
    async with scripted(talk) as (state, door), line(door.port) as (reader, writer):
        writer.write(b"POST /upload HTTP/1.1\r\nhost: h\r\n" + length + b"\r\n\r\n" + parts[0])
        await asyncio.wait_for(arrived.wait(), PATIENCE)
        writer.write(parts[1])
        assert (await answer_of(reader))[2] == b"ok"
        assert state.requests[1] == (b"helloworld" if framing == "length" else b"".join(parts))
        await until(lambda: quiet(door))


async def test_a_server_that_answers_before_it_has_read_the_body_is_heard() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope")
        await writer.drain()
        await reader.read()

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(b"POST /upload HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\nstart")
        assert (await answer_of(reader))[::2] == (404, b"nope")
        await until(lambda: quiet(door))


async def test_who_waits_for_100_continue_gets_it() -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        body = b"[]"
        writer.write(
            b"POST /batch-sync HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\nx-goat-sig: "
            + signed_header(X).encode()
            + b"\r\n\r\n"
        )
        assert await head_of(reader) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await answer_of(reader))[::2] == (200, b"[]")


async def test_requests_that_come_at_once_are_answered_in_their_order() -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        writer.write(b"GET /healthy HTTP/1.1\r\nhost: h\r\n\r\nGET /nope HTTP/1.1\r\nhost: h\r\n\r\n" * 10)
        statuses = [(await answer_of(reader))[0] for _ in range(20)]
        assert statuses == [200, 404] * 10


async def test_a_wish_for_another_protocol_is_not_handed_on() -> None:
    """GoatDB speaks HTTP only; without the headers the server answers as to any request."""
    async with world() as w, line(w.door.port) as (reader, writer):
        writer.write(
            b"GET /healthy HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        assert (await answer_of(reader))[0] == 200


# --- smuggling --------------------------------------------------------------------------------------------------------

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcd" + SMUGGLED,
        b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: +4\r\n\r\nabcd" + SMUGGLED,
        b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n" + SMUGGLED,
        b"POST /x HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n" + SMUGGLED,
        b"GET /x y HTTP/1.1\r\nhost: h\r\n\r\n" + SMUGGLED,
        b"GET /x HTTP/9.9\r\nhost: h\r\n\r\n" + SMUGGLED,
        b"CONNECT h:80 HTTP/1.1\r\nhost: h\r\n\r\n" + SMUGGLED,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ],
    ids=[
        "both lengths",
        "two lengths",
        "a signed length",
        "chunked is not last",
        "space before colon",
        "bad chunk",
        "NUL",
        "space in target",
        "version",
        "CONNECT",
        "TLS",
    ],
)
async def test_a_request_that_two_servers_could_read_differently_is_refused(request_: bytes) -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        w.child.reached.clear()
        writer.write(request_)
        writer.write_eof()
        text = await reader.read()
        assert b" 200 " not in text
        assert not [each for each in w.child.reached if "smuggled" in each[1]]


@pytest.mark.parametrize(
    "fields",
    [
        b"host: h/batch-sync?\r\n",
        b"host: h#\r\n",
        b"host: a@h\r\n",
        b"host: h\r\nhost: i\r\n",
        b"host: h\r\nx-goat-sig: a\r\nx-goat-sig: b\r\n",
    ],
    ids=["path in Host", "mark in Host", "user in Host", "two Hosts", "two signatures"],
)
async def test_headers_by_which_the_server_would_read_another_request_are_refused(fields: bytes) -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        w.child.reached.clear()
        writer.write(b"POST /nothing HTTP/1.1\r\n" + fields + b"content-length: 0\r\n\r\n")
        assert (await answer_of(reader))[0] == 400
        assert not w.child.reached
        assert w.stopped(Rule.HEADERS) == 1


async def test_a_path_in_the_host_header_reaches_the_sync_of_the_server_itself() -> None:
    """Why the rule is there: the server reads Host and path as one URL."""
    async with world() as w, line(int(w.child.url.rpartition(":")[2])) as (reader, writer):
        body = b"[]"
        writer.write(
            b"POST /nothing HTTP/1.1\r\nhost: h/batch-sync?\r\ncontent-length: 2\r\nx-goat-sig: "
            + signed_header(X).encode()
            + b"\r\n\r\n"
            + body
        )
        assert (await answer_of(reader))[::2] == (200, b"[]")


async def test_what_follows_the_body_is_no_header() -> None:
    """Headers are judged before the body comes; trailers must not be among them when they are handed on."""
    body = b'{"publicKey":%b,"email":"a@b.cd","signature":"%b"}' % (
        to_json_bytes(X.session.public_key.to_jwk()),
        signed_header(X).encode(),
    )
    async with world() as w, line(w.door.port) as (reader, writer):
        writer.write(b"POST /auth/session HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        await until(lambda: w.door.status.requests == 1)
        writer.write(b"%x\r\n%b\r\n0\r\nhost: h/auth/send-login-email?\r\n\r\n" % (len(body), body))
        assert b'"session"' in (await answer_of(reader))[2]
        assert not w.child.mails


@pytest.mark.parametrize("path", [b"/batch-sync", b"/x"], ids=["judged", "streamed"])
async def test_a_body_after_a_wish_for_another_protocol_is_no_request(path: bytes) -> None:
    """A proxy in front that hands such a wish on takes the body for what it is."""
    async with world() as w, line(w.door.port) as (reader, writer):
        w.child.reached.clear()
        writer.write(
            b"POST %b HTTP/1.1\r\nhost: h\r\nx-goat-sig: %b\r\nconnection: upgrade\r\nupgrade: x\r\n"
            b"content-length: %d\r\n\r\n" % (path, signed_header(X).encode(), len(SMUGGLED))
        )
        with contextlib.suppress(ConnectionError):
            writer.write(SMUGGLED)
            assert (await answer_of(reader))[0] == 400
            writer.write(SMUGGLED)
            assert await reader.read() == b""
        await until(lambda: quiet(w.door))
        assert not w.child.reached


async def test_trailers_without_end_are_not_kept() -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        writer.write(b"POST /auth/session HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"a" * 4096)
                await writer.drain()
            assert await reader.readline() == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
        await until(lambda: quiet(w.door) and not w.door.status.connections)


@pytest.mark.parametrize(
    "target",
    [b"/x/../batch-sync", b"/x/%2e%2E/batch-sync", b"/./batch-sync", b"/x\\..\\batch-sync", b"/batch-sync\xc3\xa9"],
    ids=["dots", "encoded dots", "one dot", "backslashes", "not ASCII"],
)
async def test_a_path_that_the_server_would_read_as_another_is_refused(target: bytes) -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        w.child.reached.clear()
        writer.write(b"POST " + target + b" HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
        assert (await answer_of(reader))[0] == 400
        assert not w.child.reached


async def test_a_whole_url_as_the_target_is_judged_by_its_path() -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        writer.write(b"POST http://elsewhere/BATCH-sync HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}")
        assert (await answer_of(reader))[0] == 400
        assert w.stopped(Rule.REQUEST_SIGNATURE) == 1


# --- a server in trouble ----------------------------------------------------------------------------------------------


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
    """A process that ends takes all of its connections along."""
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


async def test_a_server_that_is_silent_is_504() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await reader.read()

    limits = DoorLimits(answer_timeout=timedelta(milliseconds=200))
    async with scripted(talk, limits) as (_state, door), line(door.port) as (reader, writer):
        writer.write(GET)
        assert (await answer_of(reader))[0] == 504
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


# --- callers in trouble, or who make it -----------------------------------------------------------------------------


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
        body = to_json_bytes([element("/data/x", [commit])])
        head = f"POST /batch-sync HTTP/1.1\r\nhost: h\r\nx-goat-sig: {signed_header(X)}\r\n"
        async with line(w.door.port) as (_, writer):
            writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
            await until(lambda: w.door.status.requests == 1)
            await asyncio.sleep(0.05)
        await until(lambda: w.door.status.connections == 0)
        go_on.set()
        await until(lambda: commit.id in w.stored("/data/x"))


async def test_a_caller_who_goes_in_the_middle_of_an_answer_leaves_nothing_behind() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
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


async def test_a_caller_who_does_not_take_the_answer_is_cut_off() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()

    limits = DoorLimits(answer_timeout=timedelta(milliseconds=300))
    async with scripted(talk, limits) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET)
        await head_of(reader)
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
        assert w.stopped(Rule.TOO_SLOW) == 3
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
        writer.write(b"POST " + path + b" HTTP/1.1\r\nhost: h\r\nx-goat-sig: a\r\ncontent-length: 100\r\n\r\nabc")
        assert (await answer_of(reader))[0] == 408
        assert w.stopped(Rule.TOO_SLOW) == 1
        await until(lambda: quiet(w.door))


async def test_one_address_holds_so_many_connections_and_no_more() -> None:
    async with world(limits=DoorLimits(connections_per_address=3)) as w, contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(line(w.door.port))
        await until(lambda: w.door.status.connections == 3)
        async with line(w.door.port) as (reader, _):
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        assert w.stopped(Rule.TOO_MANY) == 1


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


async def test_a_door_that_closes_in_the_middle_of_a_push_logs_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with world() as w:
        began = asyncio.Event()

        async def never(*_: Any, **__: Any) -> Any:
            began.set()
            await asyncio.Event().wait()

        w.trust.verify_commits = never  # type: ignore[method-assign]
        body = to_json_bytes([element("/data/x", [commit_by(X, "k", {"text": "x"})])])
        head = f"POST /batch-sync HTTP/1.1\r\nhost: h\r\nx-goat-sig: {signed_header(X)}\r\n"
        async with line(w.door.port) as (_, writer):
            writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
            await began.wait()
            caplog.clear()
            await w.door._listener.stop(timedelta(milliseconds=50))
    assert not [each.getMessage() for each in caplog.records if each.name.startswith("uvicorn")]


async def test_answers_that_are_compressed_are_not_let_out_unseen() -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nok"
        )
        await writer.drain()

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        writer.write(GET)
        assert (await answer_of(reader))[0] == 502


async def test_the_server_s_own_address_becomes_the_public_one_where_one_is_given() -> None:
    async with world() as w:
        trust = TrustedSessions(org=ORG, identity=identity(A), clock=w.clock)
        async with Door(upstream=w.child.url, trust=trust, clock=w.clock, public_url="https://goats.example/") as door:
            health = await w.http.get(door.url + "/healthy")
            assert health.headers["access-control-allow-origin"] == "https://goats.example"
            login = await w.http.get(door.url + "/auth/temp-login", follow_redirects=False)
            assert login.headers["location"] == "https://goats.example"
            script = (await w.http.get(door.url + "/sub/App.js")).content
            own = (await w.http.get(w.child.url + "/sub/app.js")).content
            assert script == own.replace(w.child.url.encode(), b"https://goats.example", 1) != own
            assert script.endswith(APPLICATION)
        assert (await w.send(True, [element("/data/x")])).headers["access-control-allow-origin"] == w.child.url


@pytest.mark.parametrize(
    "script",
    [
        b"",
        b"console.log(1)\n",
        b";\nglobalThis.GoatDBConfig = {;\n;code",
        b";\nglobalThis.GoatDBConfig = {};\n;code",
        b';\nglobalThis.GoatDBConfig = {"custom":{"serverURL":"http://own:1"}};\n;code',
        b';\nglobalThis.GoatDBConfig = {"serverURL":5};\n;code',
        b'code;\nglobalThis.GoatDBConfig = {"serverURL":"http://own:1"};\n;code',
    ],
)
def test_a_script_without_goatdb_s_address_in_front_passes_byte_for_byte(script: bytes) -> None:
    assert script_with_server_url(script, lambda _: b"https://goats.example") == script


@pytest.mark.parametrize(
    ("named", "public_url", "expected"),
    [
        (None, None, "start with --public-url"),
        ("https://goats.example", None, "start with --public-url"),
        ("https://[goats", None, "start with --public-url"),
        (None, "https://goats.example", "login emails name http"),
        ("https://goats.example", "https://goats.example", None),
    ],
)
async def test_a_server_that_names_another_address_than_the_door_s_is_reported_with_the_remedy(
    caplog: pytest.LogCaptureFixture, named: str | None, public_url: str | None, expected: str | None
) -> None:
    async with world() as w:
        caplog.clear()
        w.child.resolves_to = named
        trust = TrustedSessions(org=ORG, identity=identity(A), clock=w.clock)
        async with Door(upstream=w.child.url, trust=trust, clock=w.clock, public_url=public_url) as door:
            await door._check_address()
        found = [text for text in caplog.messages if "door.bypassed" in text]
        assert bool(found) is (expected is not None)
        assert all(expected in text and "domain.resolveOrg" in text for text in found if expected)


@pytest.mark.parametrize(
    ("upstream", "host", "is_itself"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1", True),
        ("http://localhost:8080", "127.0.0.1", True),
        ("http://localhost:8080", "0.0.0.0", True),
        ("http://10.0.0.5:8080", "10.0.0.5", True),
        ("http://127.0.0.1:8080", "10.0.0.5", False),
        ("http://127.0.0.1:8081", "127.0.0.1", False),
        ("http://goats:8080", "127.0.0.1", False),
    ],
)
def test_a_door_does_not_stand_in_front_of_itself(upstream: str, host: str, is_itself: bool) -> None:
    trust = Quiet(org=ORG, identity=identity(A), clock=Standing())
    with pytest.raises(ConfigurationError) if is_itself else contextlib.nullcontext():
        Door(upstream=upstream, trust=trust, host=host, port=8080)
