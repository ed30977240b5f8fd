"""What the door changes in requests and answers: everything that it does not check passes unchanged."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace
from typing import Any

import pytest

from goatherd.door import key_filter, proxy
from goatherd.door.request_checks import DoorRule
from goatherd.serving.caller_limiter import Share
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import A, B, X, Y, identity, world
from tests.unit.goats import NOW, element, owned, signed_header
from tests.waiting import until

from .scripted_server import GET, PATIENCE, Reader, Scripted, Writer, answer_of, head_of, line, quiet, scripted


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
    ("request_", "expected"),
    [
        (b"GET /healthy HTTP/1.1\r\nHost: \r\nX: 1\r\nConnection: Close\r\n\r\n", b"GET /healthy"),
        (b"GET /healthy HTTP/1.0\r\nX: 1\r\n\r\n", b"GET /healthy"),
        (b"OPTIONS * HTTP/1.1\r\nHost:\r\nX: 1\r\n\r\n", b"OPTIONS /"),
        (b"OPTIONS / HTTP/1.0\r\nX: 1\r\n\r\n", b"OPTIONS /"),
    ],
    ids=["F5", "without a host", "HAProxy", "HAProxy without a host"],
)
async def test_health_checks_of_load_balancers_reach_the_server(request_: bytes, expected: bytes) -> None:
    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        state.requests.append(await head_of(reader))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with scripted(talk) as (state, door), line(door.port) as (reader, writer):
        writer.write(request_)
        assert (await answer_of(reader))[0] == 200
        host = state.url.removeprefix("http://").encode()
        assert state.requests == [expected + b" HTTP/1.1\r\nhost: " + host + b"\r\nx: 1\r\n\r\n"]


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
        assert w.stopped(DoorRule.HEADERS) == 1


@pytest.mark.parametrize(
    "request_", [b"CONNECT h:80 HTTP/1.1\r\nhost: h:80\r\n\r\n", b"TRACE / HTTP/1.1\r\nhost: h\r\n\r\n"]
)
async def test_a_tunnel_and_an_echo_are_not_handed_on(request_: bytes) -> None:
    async with world() as w, line(w.door.port) as (reader, writer):
        w.child.reached.clear()
        writer.write(request_)
        status = await reader.readline()
        # httptools does not accept the target of CONNECT as a path, and answers 400 before the door gets the request.
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
    """GoatDB supports HTTP only; without these headers the server answers as to any request."""
    async with world() as w, line(w.door.port) as (reader, writer):
        writer.write(
            b"GET /healthy HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        assert (await answer_of(reader))[0] == 200


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


@pytest.mark.slow
async def test_a_large_answer_with_introductions_of_roots_is_read_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BIG_BODY", 1000)
    threads: list[int] = []

    def noted(function: Any) -> Any:
        def call(*given: Any) -> Any:
            threads.append(threading.get_ident())
            return function(*given)

        return call

    for name in ("split_batch", "to_json_bytes"):
        monkeypatch.setattr(key_filter, name, noted(getattr(key_filter, name)))
    async with world() as w:
        w.child.introduce(B.session)
        answer = await w.send(True, [element("/sys/sessions")])
        assert len(answer.content) > proxy.BIG_BODY
        assert answer.json()[0]["res"]["c"][0]["k"] == B.id
    assert len(threads) == 2, "read once, and encoded with the introduction in another place"
    assert threading.get_ident() not in threads


@pytest.mark.slow
async def test_an_answer_that_is_read_whole_counts_as_memory() -> None:
    async with world() as w:
        w.child.introduce(B.session)
        budget = w.door._limiter.answers
        left, budget._spare = budget._left, 0
        others = [Share(budget, address) for address in ("192.0.2.1", "192.0.2.2")]
        for share in others:
            share.take(left // 2 - 500)
        full = await w.send(True, [element("/sys/sessions")])
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        for share in others:
            share.give_back()
        assert (await w.send(True, [element("/sys/sessions")])).status_code == 200
        assert budget._left == left


STRANGER = owned("stranger")
REJECTED = {
    "unknown session": (signed_header(STRANGER), DoorRule.UNKNOWN_SIGNER),
    "another key": (signed_header(replace(STRANGER, session=X.session)), DoorRule.REQUEST_SIGNATURE),
    "malformed": ("a", DoorRule.REQUEST_SIGNATURE),
    "too long": (signed_header(X) + "a" * 4000, DoorRule.REQUEST_SIGNATURE),
    "late": (signed_header(X, NOW - 240_000), DoorRule.REQUEST_TIME),
    "revoked": (signed_header(Y), DoorRule.REVOKED),
}


@pytest.mark.slow
@pytest.mark.parametrize(("header", "rule"), REJECTED.values(), ids=REJECTED.keys())
@pytest.mark.parametrize("framing", ["content-length: 2", "content-length: 1000000", "transfer-encoding: chunked"])
async def test_a_batch_needs_a_valid_signature_before_its_body_is_read(
    header: str, rule: DoorRule, framing: str
) -> None:
    async with world(given=identity(A, revoked=(Y.id,))) as w, line(w.door.port) as (reader, writer):
        writer.write(f"POST /batch-sync HTTP/1.1\r\nhost: h\r\nx-goat-sig: {header}\r\n{framing}\r\n\r\n".encode())
        status, fields, _ = await answer_of(reader)
        assert (status, fields["connection"]) == (403, "close")
        assert w.stopped(rule) == 1
        assert not w.others()


async def test_a_large_poll_of_a_known_session_reaches_the_server_as_it_is() -> None:
    async with world() as w:
        body = to_json_bytes([element("/data/x")]).ljust(100_000)
        assert (await w.send(True, body)).status_code == 200
        assert w.child.reached[-1][2] == body


@pytest.mark.slow
async def test_an_answer_with_sessions_counts_against_the_memory_until_the_client_has_taken_it() -> None:
    """A client may ask for it on many connections and take a few bytes a second of each."""
    size = 64 * 1024 * 1024

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        head = await head_of(reader)
        await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        writer.write(b" " * size)
        await reader.read()

    async with scripted(talk) as (_, door), line(door.port) as (reader, writer):
        answers = door._limiter.answers
        left = answers._left
        body = to_json_bytes([element("/sys/sessions")])
        signature = signed_header(X).encode()
        writer.write(b"POST /batch-sync HTTP/1.1\r\nhost: h\r\nx-goat-sig: %b\r\n" % signature)
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        await head_of(reader)
        assert answers._left == left - size
        await reader.readexactly(size)
        await until(lambda: answers._left == left)
