"""The door's public address, which answers name in place of the server's address."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from goatherd.door.door import Door
from goatherd.door.key_filter import script_with_server_url
from goatherd.door.trusted_sessions import TrustedSessions
from goatherd.errors import ConfigurationError
from tests.cluster.door_world import A, Standing, identity, world
from tests.fakes.upstream_child import APPLICATION, UpstreamChild
from tests.unit.goats import ORG, element

from .scripted_server import Quiet, Reader, Scripted, Writer, head_of, line, scripted


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


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_script_is_passed_on_as_it_comes(is_chunked: bool) -> None:
    """Anyone may request the script on many connections and read it slowly, so the door buffers none of it."""
    may_end = asyncio.Event()
    rest = b"x" * 100_000

    async def talk(reader: Reader, writer: Writer, state: Scripted) -> None:
        await head_of(reader)
        start = b';\nglobalThis.GoatDBConfig = {"serverURL":"%s"};\n;' % state.url.encode()
        if is_chunked:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(start) + len(rest)))
        for part in (start[:10], start[10:], rest):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part)
            await writer.drain()
            await asyncio.sleep(0)
        await may_end.wait()
        writer.write(b"0\r\n\r\n" if is_chunked else b"")
        await reader.read()

    expected = b';\nglobalThis.GoatDBConfig = {"serverURL":"https://goats.example"};\n;'
    async with (
        scripted(talk, public_url="https://goats.example") as (_, door),
        line(door.port) as (reader, writer),
    ):
        writer.write(b"GET /app.js HTTP/1.1\r\nhost: h\r\n\r\n")
        head = await head_of(reader)
        if not is_chunked:
            assert b"content-length: %d\r\n" % (len(expected) + len(rest)) in head
        assert expected in await reader.readuntil(expected)
        may_end.set()
        left = b""
        while left.count(b"x") < len(rest):
            left += await reader.read(100_000)


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
        ("https://third.example", "https://goats.example", "sends browsers and login emails to https://third.example"),
        ("https://goats.example", "https://goats.example", None),
    ],
)
async def test_a_server_that_names_another_address_than_the_door_s_is_reported_with_the_remedy(
    caplog: pytest.LogCaptureFixture, named: str | None, public_url: str | None, expected: str | None
) -> None:
    clock = Standing()
    async with UpstreamChild(A, clock=clock) as child:
        child.resolves_to = named
        trust = Quiet(org=ORG, identity=identity(A), clock=clock)
        async with Door(upstream=child.url, trust=trust, clock=clock, public_url=public_url) as door:
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
