"""Connections to the server behind the door: why one cannot be opened, and their end with their pool."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from goatherd.door.server_connections import LostError, ServerConnections
from goatherd.errors import NodeUnreachableError
from tests.deadlines import HANG
from tests.fakes.certificates import certificate


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
        assert connections.open_count == 0


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
