"""The requests of GoatDB's clients: signed, with filters over the commits that the client holds.

docs/reference/goatdb-protocol.md#clients-and-peers. The connections are spoken to without an HTTP library, so that
little of the client is measured.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from goatherd.identity.session import OwnedSession, sign_request
from goatherd.ids import new_id, new_seeds
from goatherd.wire.bloom import BloomFilter, seed_count
from goatherd.wire.messages import VERSION, filter_parameters

CYCLES: Final = 3
"""Rounds in which a real client's filters converge."""
KEPT: Final = 5.0
"""Seconds for which a client uses a connection again."""
SESSIONS: Final = "/sys/sessions"
USERS: Final = "/sys/users"
IDENTITY: Final = b"GET /goatherd/v1/identity HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"

Request = bytes


def filter_over(ids: Sequence[str], count: int = 0) -> BloomFilter:
    """Return the filter of a client that holds commits, with seeds of its own; `count`: how many the server holds."""
    size, rate = filter_parameters(len(ids), count, CYCLES)
    made = BloomFilter.for_size(size, rate, new_seeds(seed_count(size, rate)))
    made.update(ids)
    return made


def element(path: str, held: BloomFilter, size: int, commits: Iterable[bytes] = (), version: int = VERSION) -> bytes:
    """Return one element of a batch as JSON."""
    shown = orjson.dumps({"__t": "E", "__v": held.to_json()})
    parts = (path.encode(), version, shown, size, b",".join(commits))
    return b'{"path":"%b","msg":{"ver":%d,"f":%b,"s":%d,"c":[%b],"ad":[]}}' % parts


def batch(*elements: bytes) -> bytes:
    """Return the body of ``POST /batch-sync``."""
    return b"[" + b",".join(elements) + b"]"


def signature(owned: OwnedSession) -> str:
    """Return a request's signature; real clients sign each request themselves."""
    return sign_request(owned, now_ms=time.time_ns() // 1_000_000, nonce=new_id())


def post(signed: str, body: bytes, caller: str = "") -> Request:
    """Return a request as bytes; `caller`: the address for which a proxy forwards it."""
    forwarded = f"x-forwarded-for: {caller}\r\n" if caller else ""
    head = (
        "POST /batch-sync HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\naccept: */*\r\n"
        f"user-agent: bench\r\n{forwarded}x-goat-sig: {signed}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def messages(body: bytes) -> list[Mapping[str, Any]]:
    """Return the messages of an answer."""
    return [reply["res"] for reply in orjson.loads(body)]


class Line:
    """One connection that waits for each answer, kept as long as GoatDB's clients keep one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = self._connect()
        self._used = time.perf_counter()
        self.body = b""
        """The last answer's body."""

    def _connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: Request) -> float:
        """Return how many seconds the whole answer took."""
        if time.perf_counter() - self._used > KEPT:
            self._socket.close()
            self._socket = self._connect()
        started = time.perf_counter()
        self._socket.sendall(request)
        data = bytearray()
        while b"\r\n\r\n" not in data:
            data += self._receive()
        end = data.index(b"\r\n\r\n") + 4
        head = bytes(data[:end])
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered {head[:200]!r}")
        total = end + content_length(head)
        while len(data) < total:
            data += self._receive()
        self._used = time.perf_counter()
        self.body = bytes(data[end:])
        return self._used - started

    def _receive(self) -> bytes:
        part = self._socket.recv(1 << 20)
        if not part:
            raise RuntimeError("the server closed the connection")
        return part


def content_length(head: bytes) -> int:
    """Return the length of the body that follows a head."""
    return next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))


class Caller(asyncio.Protocol):
    """One kept connection among many; made with the first request, and anew when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._data = bytearray()
        self._total = 0

    async def _connect(self) -> None:
        self._data, self._total = bytearray(), 0
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._total and (end := self._data.find(b"\r\n\r\n")) >= 0:
            self._total = end + 4 + content_length(bytes(self._data[: end + 4]))
        if self._total and len(self._data) >= self._total and self._answer is not None:
            whole, self._data, self._total = bytes(self._data), bytearray(), 0
            self._answer.set_result((int(whole[9:12]), whole.partition(b"\r\n\r\n")[2]))
            self._answer = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.set_result((0, b""))
            self._answer = None

    async def ask(self, request: Request) -> tuple[int, bytes]:
        """Return the status and the body; status 0 if the connection is lost."""
        if self._transport is None or self._transport.is_closing():
            await self._connect()
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def wait_until_verified(line: Line) -> None:
    """Wait until the server has verified every session of its log in the background."""
    while True:
        await asyncio.to_thread(line.ask, IDENTITY)
        if not orjson.loads(line.body)["pending"]:
            return
        await asyncio.sleep(0.2)
