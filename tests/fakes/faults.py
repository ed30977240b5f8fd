"""A TCP proxy that fails on purpose: between any client and any server, plain or TLS, HTTP or gRPC.

What it is: bytes in, bytes out, and one `Fault` at a time. What it is not: it understands no protocol; a fault that
waits for some `match` looks for bytes in what the client sends, which works without TLS only. Rules: it listens on
127.0.0.1, on a port that the system gives; nothing outlives ``async with``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

from goatherd.serving.listener import close_server

_CHUNK: Final = 1 << 16
_LAST_BYTES: Final = 0.5
_LINGER_0: Final = struct.pack("ii", 1, 0)


class Mode(StrEnum):
    """The kind of a fault: what happens to what the client sends."""

    OK = "ok"
    """It is passed on, and the reply too."""
    RESET = "reset"
    """The connection is reset; the server sees nothing of it."""
    BLACK_HOLE = "black hole"
    """It is dropped; no reply ever comes back."""
    DELAY = "delay"
    """It is passed on after `Fault.delay`."""
    CUT = "cut"
    """It is passed on; the reply ends after `Fault.after` bytes."""
    REPLY_LOST = "reply lost"
    """It is passed on and takes effect; when the reply begins to come, the connection is reset instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault: its kind, the requests that it affects, and how often it occurs.

    Attributes:
        mode: What goes wrong.
        after: For `Mode.CUT`: how many bytes of the reply get through.
        delay: The delay of `Mode.DELAY`.
        match: It affects only data that contain these bytes, such as ``b"POST /v1/secret/data/x"``.
        times: How often it occurs; None: indefinitely.
    """

    mode: Mode = Mode.OK
    after: int = 0
    delay: timedelta = timedelta(0)
    match: bytes = b""
    times: int | None = None


BREAKS: Final = (
    Fault(mode=Mode.RESET, times=1),
    Fault(mode=Mode.REPLY_LOST, times=1),
    *(Fault(mode=Mode.CUT, after=after, times=1) for after in (0, 9, 60, 300)),
)
"""Each way in which one request breaks off: before it arrives, and in each part of the reply."""


@dataclass(slots=True)
class _Connection:
    """One client's, with its way to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    reply: Fault | None = None
    replied: int = 0
    dead: bool = False


class FaultProxy:
    """Stands between a client and the server at `host` and `port`; see the module.

    ::

        async with FaultProxy("127.0.0.1", 8200) as proxy:
            proxy.fault = Fault(mode=Mode.REPLY_LOST, times=1)

    Attributes:
        port: Where it listens, once entered.
        fault: What goes wrong from now on, on connections that are open too.
        hits: How often the fault has occurred.
        connections: How many clients have connected.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._fault = Fault()
        self._left: int | None = None
        self.port = 0
        self.hits = 0
        self.connections = 0

    @property
    def fault(self) -> Fault:
        """The present fault; None for none."""
        return Fault() if self._left == 0 else self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault, self._left = fault, fault.times

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close everything. From now on a connection is refused."""
        if self._server is not None:
            await close_server(self._server)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drop(self) -> None:
        """End every connection that is open, at once. New ones are served."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # a task that is cancelled before it begins closes nothing

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection(*self._upstream)
        except OSError:
            _reset(writer)
            await _closed(writer)
            return
        both = _Connection(client=writer, server=server)
        pumps = [
            asyncio.ensure_future(_pump(reader, lambda chunk: self._sent(both, chunk))),
            asyncio.ensure_future(_pump(answers, lambda chunk: self._answered(both, chunk))),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if both.dead and not pumps[0].done():
                await asyncio.wait({pumps[0]})  # the client shall wait for what never comes
        finally:
            for pump in pumps:
                pump.cancel()
            for each in (writer, server):
                each.close()  # both, though this be cancelled again while it waits
            try:
                await asyncio.gather(*pumps, return_exceptions=True)
                for each in (writer, server):
                    await _closed(each)
            finally:
                for each in (writer, server):
                    each.transport.abort()  # closing alone waits for the other side to take what was written

    async def _sent(self, both: _Connection, chunk: bytes) -> bool:
        """Handle data from the client; return whether to continue."""
        fault = self.fault
        if both.dead:
            return True
        if fault.mode is not Mode.OK and fault.match in chunk:
            self.hits += 1
            if self._left is not None:
                self._left -= 1
            match fault.mode:
                case Mode.RESET:
                    _reset(both.client)
                    return False
                case Mode.BLACK_HOLE:
                    both.dead = True
                    return True
                case Mode.DELAY:
                    await asyncio.sleep(fault.delay.total_seconds())
                case _:
                    both.reply, both.replied = fault, 0
        both.server.write(chunk)
        await both.server.drain()
        return True

    async def _answered(self, both: _Connection, chunk: bytes) -> bool:
        """Handle data from the server; return whether to continue."""
        fault = both.reply
        if fault is not None and fault.mode is Mode.REPLY_LOST:
            _reset(both.client)
            return False
        if fault is not None:
            chunk = chunk[: fault.after - both.replied]
            both.replied += len(chunk)
        both.client.write(chunk)
        await both.client.drain()
        return fault is None or both.replied < fault.after


async def _pump(reader: asyncio.StreamReader, deal: Callable[[bytes], Awaitable[bool]]) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            if not await deal(chunk):
                return


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close the connection after the written data were sent, or at once if the other side does not read them."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), _LAST_BYTES)
    writer.transport.abort()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side gets a reset, not an end."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    writer.transport.abort()
