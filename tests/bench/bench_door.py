"""What the door adds to a request: directly and through it, in turns, on kept connections of one run.

The server behind it is `goatherd serve`, which does GoatDB's own work for each request: a signature for each poll, and
one more for each commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from goatherd.cluster.client import NodeClient
from goatherd.identity.session import OwnedSession, sign_request
from goatherd.ids import new_id
from goatherd.wire.json import to_json
from tests.ports import free_ports

from . import herd
from .bench_node import bodies_of, commits_of

ROUNDS = 20
PER_ROUND = 25
CALLERS = 16
REST = 5
POLLED = ("/sys/sessions", "/sys/users", "/data/bench")
HELD = 5000
EMPTY = {"__t": "E", "__v": {"d": "AA==", "s": [1, 2]}}
FULL = {"__t": "E", "__v": {"d": "AA==", "s": []}}

Request = bytes


class Line:
    """One kept connection, spoken to without a library, so that little of the client is measured."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: Request) -> float:
        """Return how many seconds the whole answer took."""
        started = time.perf_counter()
        self._socket.sendall(request)
        data = bytearray()
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head[:200]
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        left = length - len(body)
        while left > 0:
            left -= len(self._receive())
        return time.perf_counter() - started

    def _receive(self) -> bytes:
        part = self._socket.recv(1 << 20)
        assert part, "the connection was closed"
        return part

    def close(self) -> None:
        self._socket.close()


def post(owned: OwnedSession, body: bytes) -> Request:
    """Return a signed request as bytes."""
    signature = sign_request(owned, now_ms=time.time_ns() // 1_000_000, nonce=new_id())
    head = (
        "POST /batch-sync HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\naccept: */*\r\n"
        f"user-agent: bench\r\nx-goat-sig: {signature}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def polls(callers: list[OwnedSession]) -> Iterator[Request]:
    message = {"ver": 50595584, "f": FULL, "s": 0, "c": [], "ad": []}
    body = to_json([{"path": path, "msg": message} for path in POLLED]).encode()
    for owned in itertools.cycle(callers):
        yield post(owned, body)


def pushes(callers: list[OwnedSession], size: int) -> Iterator[Request]:
    for owned in itertools.cycle(callers):
        (body,) = bodies_of("/data/bench", commits_of(owned, size), size)
        yield post(owned, body)


def repeats(callers: list[OwnedSession], body: bytes) -> Iterator[Request]:
    """Give the same commits again and again, as of a client that got no answer."""
    for owned in itertools.cycle(callers):
        yield post(owned, body)


def pulls(callers: list[OwnedSession]) -> Iterator[Request]:
    message = {"ver": 50595584, "f": EMPTY, "s": 0, "c": [], "ad": []}
    body = to_json([{"path": "/data/bench", "msg": message}]).encode()
    for owned in itertools.cycle(callers):
        yield post(owned, body)


def healths() -> Iterator[Request]:
    while True:
        yield b"GET /healthy HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


def compare(
    direct: Line, guarded: Line, make: Callable[[], Iterator[Request]], per_round: int, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Return the medians of both in milliseconds, taken in turns."""
    times: dict[Line, list[float]] = {direct: [], guarded: []}
    sources = {direct: make(), guarded: make()}
    for turn in range(rounds + 1):
        for line in (direct, guarded) if turn % 2 else (guarded, direct):
            requests = [next(sources[line]) for _ in range(per_round)]
            taken = [line.ask(request) for request in requests]
            if turn:  # the first round warms up
                times[line] += taken
    return statistics.median(times[direct]) * 1000, statistics.median(times[guarded]) * 1000


def cpu_ms(pid: int) -> float:
    """Return the processor time that a process has used, which a busy machine does not change."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def door(upstream: str, port: int, store: str) -> AsyncIterator[int]:
    """Run one door until the block ends; yields its process id."""
    command = [sys.executable, "-m", "goatherd", "door", "--upstream", upstream, "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        *command, "--provider", store, "--json", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert "ready" in json.loads(await process.stdout.readline())
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def measure() -> dict[str, float]:
    """Run everything, in turns, and return medians and what the door adds to them."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = f"file://{top}/keys/root"
        init = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "goatherd", "init", "--provider", store, stdout=asyncio.subprocess.DEVNULL
        )
        assert await init.wait() == 0
        ports = free_ports(2)
        async with herd.serve(top / "a", port=ports[0], settings=["--provider", store]) as (_, url):
            async with NodeClient(url) as client:
                callers = [one for one, _ in await asyncio.gather(*[client.create_session() for _ in range(CALLERS)])]
                held = commits_of(callers[0], HELD)
                await client.push("/data/held", held, callers[0])
            (again,) = bodies_of("/data/held", held, HELD)
            async with door(url, ports[1], store) as pid:
                kinds: list[tuple[str, Callable[[], Iterator[Request]], int, int]] = [
                    ("health", healths, PER_ROUND, ROUNDS),
                    ("poll", lambda: polls(callers), PER_ROUND, ROUNDS),
                    ("push_1", lambda: pushes(callers, 1), PER_ROUND, ROUNDS),
                    ("push_20", lambda: pushes(callers, 20), 5, ROUNDS),
                    ("push_1000", lambda: pushes(callers, 1000), 1, 5),
                    ("push_held", lambda: repeats(callers, again), 1, 5),
                    ("pull_all", lambda: pulls(callers), 2, ROUNDS),
                ]
                for kind, make, per_round, rounds in kinds:
                    await asyncio.sleep(REST)  # the limits must not be what is measured
                    lines = [Line(port) for port in ports]
                    # What the first request costs once is not what is measured.
                    await asyncio.to_thread(lines[1].ask, next(make()))
                    before = cpu_ms(pid)
                    direct, guarded = await asyncio.to_thread(compare, lines[0], lines[1], make, per_round, rounds)
                    results[f"{kind}_direct_ms"] = direct
                    results[f"{kind}_added_ms"] = guarded - direct
                    results[f"{kind}_over_direct"] = guarded / direct
                    results[f"{kind}_door_cpu_ms"] = (cpu_ms(pid) - before) / (per_round * (rounds + 1))
                    for line in lines:
                        line.close()
    return results


def run() -> dict[str, float]:
    """Return the medians of this file."""
    return asyncio.run(measure())


if __name__ == "__main__":
    for title, value in run().items():
        print(f"{title:<24} {value:10.3f}")
