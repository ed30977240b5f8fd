"""Connections to the server behind the door are closed with their pool, whatever they are doing."""

from __future__ import annotations

import asyncio

import pytest

from goatherd.door.server_connections import ServerConnections
from goatherd.errors import NodeUnreachableError
from tests.deadlines import HANG


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
