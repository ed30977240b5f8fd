"""A scripted server for tests, with a door in front of it, and one connection to the door."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from goatherd.door.door import Door
from goatherd.door.limits import DoorLimits
from goatherd.door.trusted_sessions import TrustedSessions
from tests.cluster.door_world import A, Standing, X, identity
from tests.unit.goats import ORG, introduction

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
PATIENCE = 60


class Quiet(TrustedSessions):
    """Trusted sessions that come from the identity only, without a request to the server; and the client `X`."""

    async def refresh(self) -> None:
        pass


@dataclass
class Scripted:
    """A server whose every answer is written by a test."""

    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    closed: int = 0


@contextlib.asynccontextmanager
async def scripted(
    talk: Callable[[Reader, Writer, Scripted], Awaitable[None]],
    limits: DoorLimits | None = None,
    public_url: str | None = None,
) -> AsyncIterator[tuple[Scripted, Door]]:
    """Yield a scripted server, and a door that sends no requests of its own to it."""
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
        trust.pool.add_session_commit(introduction(X, A))
        async with Door(
            upstream=state.url, trust=trust, limits=limits, public_url=public_url, clock=trust.clock
        ) as door:
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
    """Read one complete answer that has a Content-Length."""
    head = (await head_of(reader)).decode("latin-1")
    fields = dict(re.findall(r"^([\w-]+): (.*)\r$", head, re.MULTILINE))
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    return int(head.split()[1]), fields, body


def quiet(door: Door) -> bool:
    """Return whether the door has no task and no connection in use."""
    names = {task.get_name() for task in asyncio.all_tasks()}
    status = door.status
    return not status.requests and not names & {"request body", "answer"} and not door._server._busy


def is_listening(door: Door) -> bool:
    """Return whether the door accepts connections; it does not once it has begun to close."""
    server = door._listener._server
    return server is not None and server.is_serving()


GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"
