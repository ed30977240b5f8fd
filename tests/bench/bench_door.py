"""The time that the door adds: the same requests sent directly and through it, in turns, and commits that are sent
again.

The server behind it is `goatherd serve`, which does GoatDB's own work for each request: a signature for each poll, and
one more for each commit.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.ports import free_ports

from . import bare
from .clients import SESSIONS, USERS, Line, Request, batch, element, filter_over, post, signature
from .data import AUTHORS, Data, ids_of, write_log
from .rows import Row
from .scale import Scale
from .servers import Program, door, serve

POLLED = "/data/few"


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure a server and the door in front of it."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = await data.create_store(top)
        write_log(top / "data", SESSIONS, data.sessions(AUTHORS))
        write_log(top / "data", POLLED, data.commits(0, scale.few))
        ports = free_ports(2)
        async with serve(top / "data", ports[0], store) as server, door(server, ports[1], store) as front:
            return await asyncio.to_thread(_measure, scale, data, server, front)


def _measure(scale: Scale, data: Data, server: Program, front: Program) -> list[Row]:
    requests = _Requests(scale, data)
    size = scale.few
    return [
        _compare(server, front, "poll", size, requests.polls, scale.times(30)),
        _compare(server, front, "push-one", 1, lambda: requests.pushes(1), scale.times(15)),
        _compare(server, front, "pull", size, requests.pulls, scale.times(2)),
        _compare(server, front, "push", scale.pushed, lambda: requests.pushes(scale.pushed), scale.rounds),
        _push_again(server, front, scale, requests),
    ]


class _Requests:
    """Makes requests, each by another client and with other commits."""

    def __init__(self, scale: Scale, data: Data) -> None:
        self._size = scale.few
        self._data = data
        self._users = itertools.cycle(data.user(number) for number in range(AUTHORS))
        self._held = ids_of(data.commits(0, scale.few))
        self._next_commit = scale.few
        self._next_path = 0

    def signed(self, body: bytes) -> Request:
        return post(signature(next(self._users)), body)

    def polls(self) -> Iterator[Request]:
        filters = [filter_over(self._held) for _ in range(8)]
        system = [element(path, filter_over([]), 0) for path in (SESSIONS, USERS)]
        for known in itertools.cycle(filters):
            yield self.signed(batch(*system, element(POLLED, known, self._size)))

    def pulls(self) -> Iterator[Request]:
        while True:
            yield self.signed(batch(element(POLLED, filter_over([]), 0)))

    def pushes(self, count: int) -> Iterator[Request]:
        """Yield pushes of new commits, each into an empty repository."""
        while True:
            yield self.signed(self.new_body(count))

    def new_body(self, count: int) -> bytes:
        commits = self._data.commits(self._next_commit, self._next_commit + count)
        self._next_commit += count
        self._next_path += 1
        return batch(element(f"/data/push-{self._next_path}", filter_over(ids_of(commits)), count, commits))


def _compare(
    server: Program, front: Program, name: str, size: int, make: Callable[[], Iterator[Request]], count: int
) -> Row:
    """Return the milliseconds of requests through the door and, as the bare limit, of the same requests without it."""
    source = make()
    direct: list[float] = []
    guarded: list[float] = []
    with Line(server.port) as straight, Line(front.port) as through:
        for turn in range(count + 1):
            for line, times in (
                ((straight, direct), (through, guarded))
                if turn % 2
                else (
                    (through, guarded),
                    (straight, direct),
                )
            ):
                taken = line.ask(next(source))
                if turn or count == 1:  # the first of each warms up
                    times.append(taken * 1000)
    limit = "without the door"
    return Row(name=f"door/{name}", unit="ms", size=size, samples=guarded, bare=direct, limit=limit, power=1)


def _push_again(server: Program, front: Program, scale: Scale, requests: _Requests) -> Row:
    """Return the processor seconds of door and server for commits that both have, from a client that got no answer."""
    body = requests.new_body(scale.few)
    times: list[float] = []
    limits: list[float] = []
    with Line(front.port) as line:
        line.ask(requests.signed(body))
        for _ in range(scale.times(2)):
            request = requests.signed(body)
            began = server.cpu_seconds() + front.cpu_seconds()
            line.ask(request)
            times.append(server.cpu_seconds() + front.cpu_seconds() - began)
            limits.append(bare.cpu_seconds(lambda: bare.parse_and_digest(body)))
    return Row(
        name="door/push-again",
        unit="s CPU",
        size=scale.few,
        samples=times,
        bare=limits,
        limit="parsing, a digest",
        power=1,
    )
