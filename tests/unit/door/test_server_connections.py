"""Connections from the door to the server: the address, errors when they are opened, and when they are closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import uvloop

from goatherd.door.server_connections import HIGH_WATER, LostError, ServerConnection, ServerConnections
from goatherd.errors import NodeUnreachableError
from tests.deadlines import HANG
from tests.fakes.certificates import certificate
from tests.waiting import until


async def test_a_connection_that_opens_while_the_pool_is_closed_is_closed_too() -> None:
    closed = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        writer.close()
        closed.set()

    async with await asyncio.start_server(wait_for_end, "127.0.0.1", 0) as server:
        connections = ServerConnections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        opening = asyncio.create_task(connections.open_connection())
        await asyncio.sleep(0)
        await connections.aclose()
        with pytest.raises(NodeUnreachableError, match="are closed"):
            await opening
        await asyncio.wait_for(closed.wait(), HANG)
        assert (connections._busy, connections._idle) == (set(), [])


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        ("http", "cannot connect to http://127.0.0.1:PORT: Connection refused"),
        ("https", "cannot connect to https://127.0.0.1:PORT: its certificate is not trusted: self-signed certificate"),
        ("https without TLS", "cannot connect to https://127.0.0.1:PORT: the TLS handshake failed: "),
    ],
)
def test_the_error_says_why_there_is_no_connection(
    scheme: str, why: str, loop_factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    async def connect() -> None:
        context = None
        if scheme == "https":
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            for name, content in zip(("cert.pem", "key.pem"), certificate(), strict=True):
                (tmp_path / name).write_bytes(content)
            context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with asyncio.timeout(HANG), await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            if scheme == "http":
                server.close()
            connections = ServerConnections(f"{scheme.split()[0]}://127.0.0.1:{port}")
            with pytest.raises(NodeUnreachableError, match=why.replace("PORT", str(port))):
                await connections.open_connection()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(connect())


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """Block every attempt to connect to a port of 127.0.0.1."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", port))
        full.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2")
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_address_that_drops_packets_is_tried_once_before_the_one_that_answers(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def connect() -> None:
        with socket.create_server(("127.0.0.2", 0)) as server:
            port = server.getsockname()[1]
            connections = ServerConnections(f"http://server.test:{port}", connect_timeout=timedelta(seconds=HANG))
            connect_to = connections._connect_to

            async def record(address: str) -> ServerConnection:
                tried.append(address)
                async with asyncio.timeout(0.2 if address == "127.0.0.1" else None):
                    return await connect_to(address)

            async def find_addresses() -> list[str]:
                return ["127.0.0.1", "127.0.0.2"]

            monkeypatch.setattr(connections, "_connect_to", record)
            monkeypatch.setattr(connections, "_find_addresses", find_addresses)
            with black_hole(port):
                for _ in range(3):
                    await connections.open_connection()
            await connections.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(connect())
    assert tried == ["127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.2"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2")
async def test_an_address_that_drops_packets_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        connections = ServerConnections(f"http://server.test:{port}", connect_timeout=timedelta(seconds=4))

        async def find(*_: object, **__: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", port)) for last in (1, 2)]

        with black_hole(port), monkeypatch.context() as patched:
            patched.setattr(asyncio.get_running_loop(), "getaddrinfo", find)
            connection, _ = await connections.open_connection()
        assert connection.is_open
        await connections.aclose()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("is_reset", [False, True])
def test_an_answer_without_a_length_is_complete_only_if_the_server_has_closed_its_connection(
    is_reset: bool, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A server that is killed, or runs out of memory, resets the connection."""

    async def fetch() -> None:
        has_head = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nthe beginning")
            await has_head.wait()
            if is_reset:
                linger = struct.pack("ii", 1, 0)  # close with a reset
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.write(b" and the end")
                writer.close()

        async with asyncio.timeout(HANG), await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            connections = ServerConnections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            connection = await connections.send_request(b"GET / HTTP/1.1\r\n\r\n", b"", limit=HANG)
            body = connection.read_body(HANG)
            read = await anext(body)
            has_head.set()
            if is_reset:
                with pytest.raises(LostError, match="in the middle of an answer"):
                    await anext(body)
            else:
                assert read + b"".join([chunk async for chunk in body]) == b"the beginning and the end"
                assert connection.is_whole
            connections.release_connection(connection)
            await connections.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(fetch())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_answer_that_arrives_faster_than_it_is_read_is_paused_and_then_read_to_its_end(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    size = 20 * HIGH_WATER

    async def fetch() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
            await writer.drain()
            writer.close()

        async with asyncio.timeout(HANG), await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            connections = ServerConnections(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            connection = await connections.send_request(b"GET / HTTP/1.1\r\n\r\n", b"", limit=HANG)
            await until(lambda: connection._is_paused)
            assert connection._queued < size
            assert sum([len(chunk) async for chunk in connection.read_body(HANG)]) == size
            connections.release_connection(connection)
            await connections.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(fetch())
