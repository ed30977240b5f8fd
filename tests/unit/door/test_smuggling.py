"""Requests that the door and the server could read differently are rejected."""

from __future__ import annotations

import contextlib

import pytest

from goatherd.door.request_checks import DoorRule
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import X, world
from tests.unit.goats import signed_header
from tests.waiting import until

from .scripted_server import Reader, Scripted, Writer, answer_of, head_of, line, quiet, scripted

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
        assert w.stopped(DoorRule.HEADERS) == 1


async def test_a_path_in_the_host_header_reaches_the_sync_of_the_server_itself() -> None:
    """Shows why the rule exists: the server reads Host and path as one URL."""
    async with world() as w, line(int(w.child.url.rpartition(":")[2])) as (reader, writer):
        body = b"[]"
        writer.write(
            b"POST /nothing HTTP/1.1\r\nhost: h/batch-sync?\r\ncontent-length: 2\r\nx-goat-sig: "
            + signed_header(X).encode()
            + b"\r\n\r\n"
            + body
        )
        assert (await answer_of(reader))[::2] == (200, b"[]")


async def test_the_length_of_a_body_is_passed_on_as_a_plain_number() -> None:
    async def talk(reader: Reader, writer: Writer, server: Scripted) -> None:
        server.requests.append(await head_of(reader))
        server.requests.append(await reader.readexactly(4))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with scripted(talk) as (server, door), line(door.port) as (reader, writer):
        writer.write(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 04\r\n\r\nabcd")
        assert (await answer_of(reader))[0] == 200
    assert server.requests == [b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\n", b"abcd"]


async def test_what_follows_the_body_is_no_header() -> None:
    """The door checks headers before the body arrives, so trailers must not be forwarded as headers."""
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
    """A proxy in front of the door that forwards such an upgrade request treats the body as another request."""
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
        assert w.stopped(DoorRule.REQUEST_SIGNATURE) == 1
