"""A server and its repositories: opening a log, polls, pulls and pushes, over HTTP as GoatDB's clients do it."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import orjson

from goatherd.wire.bloom import BloomFilter
from tests.ports import free_ports

from . import bare
from .clients import (
    SESSIONS,
    USERS,
    Caller,
    Line,
    batch,
    element,
    filter_over,
    messages,
    post,
    signature,
)
from .data import AUTHORS, Data, ids_of, write_log
from .rows import Row
from .scale import Scale
from .servers import Program, serve

OLDER = 1
"""The version of a build to which a server answers with a count and no commits."""
NOTHING = BloomFilter(bytes(1), (1, 2))
FILTERS = 8
"""Filters with different seeds; a client makes one for each request."""
CONNECTIONS = 16


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure one server that holds large and small repositories."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = await data.create_store(top)
        lines = await asyncio.to_thread(data.commits, 0, scale.commits)
        write_log(top / "a", SESSIONS, data.sessions(AUTHORS))
        large = [f"/data/large-{number}" for number in range(scale.rounds + 1)]
        octets = 0
        for path in large:
            octets = write_log(top / "a", path, lines)
        strange = "/data/strange"
        write_log(top / "a", strange, map(sort_members, lines))
        write_log(top / "a", "/data/few", lines[: scale.few])
        write_log(top / "a", "/data/pulled", data.commits(0, scale.pushed))
        (port,) = free_ports(1)
        async with serve(top / "a", port, store) as server:
            session = _Measurement(scale, data, server, top)
            rows = await asyncio.to_thread(session.open_logs, [*large, strange], lines, octets)
            rows += await asyncio.to_thread(session.poll, large[0], ids_of(lines))
            rows += await session.poll_often("/data/few", ids_of(lines[: scale.few]))
            rows += await asyncio.to_thread(session.pull, "/data/pulled")
            rows += await asyncio.to_thread(session.push_one, large[0], ids_of(lines))
        (port,) = free_ports(1)
        write_log(top / "b", SESSIONS, data.sessions(AUTHORS))
        async with serve(top / "b", port, store) as server:
            rows += await asyncio.to_thread(_Measurement(scale, data, server, top).push_all)
    return rows


def sort_members(line: bytes) -> bytes:
    """Return a commit with its members in alphabetical order."""
    return orjson.dumps(orjson.loads(line), option=orjson.OPT_SORT_KEYS)


class _Measurement:
    """Measures one server."""

    def __init__(self, scale: Scale, data: Data, server: Program, top: Path) -> None:
        self._scale = scale
        self._data = data
        self._server = server
        self._top = top
        self._users = itertools.cycle(data.user(number) for number in range(AUTHORS))
        self._system = [
            element(SESSIONS, filter_over([]), 0, version=OLDER),
            element(USERS, filter_over([]), 0),
        ]

    def open_logs(self, paths: Sequence[str], lines: Sequence[bytes], octets: int) -> list[Row]:
        """Measure the first request for each log, to which the server answers with a count only.

        The members of the last log's commits are in another order than GoatDB and Goatherd write them.
        """
        times, memory, limits = [], [], []
        with Line(self._server.port) as line:
            for path in paths:
                self._server.reset_peak()
                resident, began = self._server.resident_bytes(), self._server.cpu_seconds()
                line.ask(post(signature(next(self._users)), batch(element(path, NOTHING, 0, version=OLDER))))
                times.append(self._server.cpu_seconds() - began)
                (reply,) = messages(line.body)
                assert reply["s"] == len(lines)
                memory.append((self._server.peak_bytes() - resident) / len(lines))
                limits.append(bare.cpu_seconds(lambda: bare.parse(lines)))
        size = len(lines)
        text = [octets / size] * len(memory)
        opened = Row(
            name="repository/open",
            unit="s CPU",
            size=size,
            samples=times[:-1],
            bare=limits[:-1],
            limit="parsing",
            power=1,
        )
        return [
            opened,
            replace(opened, name="repository/open-strange", samples=times[-1:], bare=limits[-1:]),
            Row(name="repository/memory", unit="B/commit", size=size, samples=memory, bare=text, limit="its log"),
        ]

    def poll(self, path: str, ids: Sequence[str]) -> list[Row]:
        """Measure polls of a client that holds everything."""
        filters = [filter_over(ids) for _ in range(FILTERS)]
        owned = next(self._users)
        times, waits, limits = [], [], []
        with Line(self._server.port) as line:
            for turn in range(self._scale.times(20) + 3):
                body = batch(*self._system, element(path, filters[turn % FILTERS], len(ids)))
                request = post(signature(owned), body)
                began = self._server.cpu_seconds()
                waited = line.ask(request)
                spent = self._server.cpu_seconds() - began
                if turn >= 3:  # the first build what later ones use again
                    times.append(spent * 1000)
                    waits.append(waited * 1000)
                    limits.append(bare.cpu_seconds(bare.verify, 3) * 1000)
            assert all(not reply["c"] for reply in messages(line.body))
        size = len(ids)
        limit = "verification of its signature"
        return [
            Row(name="repository/poll-cpu", unit="ms CPU", size=size, samples=times, bare=limits, limit=limit),
            Row(name="repository/poll", unit="ms", size=size, samples=waits, bare=limits, limit=limit),
        ]

    async def poll_often(self, path: str, ids: Sequence[str]) -> list[Row]:
        """Measure how many polls a second the server answers on several connections."""
        filters = [filter_over(ids) for _ in range(FILTERS)]
        count = self._scale.times(300)
        rates, limits = [], []
        callers = [Caller(self._server.port) for _ in range(CONNECTIONS)]
        for turn in range(self._scale.times(2) + 1):
            requests = [
                post(signature(next(self._users)), batch(*self._system, element(path, filters[at % FILTERS], len(ids))))
                for at in range(count)
            ]
            taken = await _ask_all(callers, requests)
            if turn:  # the first round warms up
                rates.append(count / taken)
                limits.append(count / bare.seconds_on_all_cores(bare.verify, count))
        for caller in callers:
            caller.close()
        return [
            Row(
                name="repository/polls",
                unit="1/s",
                size=len(ids),
                samples=rates,
                bare=limits,
                limit="verification on two threads",
                more_is_better=True,
            )
        ]

    def pull(self, path: str) -> list[Row]:
        """Measure a new client that pulls everything: the server's answers, without the client's own work between."""
        times, rounds, limits = [], [], []
        for _ in range(self._scale.times(2)):
            held: dict[str, None] = {}
            taken, octets, asked, count = 0.0, 0, 0, 1
            with Line(self._server.port) as line:
                owned = next(self._users)
                while len(held) < count:
                    known = filter_over(list(held), count) if held else NOTHING
                    taken += line.ask(post(signature(owned), batch(element(path, known, len(held)))))
                    (reply,) = messages(line.body)
                    held |= dict.fromkeys(commit["id"] for commit in reply["c"])
                    octets, asked, count = octets + len(line.body), asked + 1, reply["s"]
            times.append(taken)
            rounds.append(asked)
            limits.append(bare.send(bytes(octets)))
        name = "repository/pull"
        return [
            Row(name=name, unit="s", size=count, samples=times, bare=limits, limit="sending the bytes", power=1),
            Row(name=f"{name}-rounds", unit="", size=count, samples=rounds),
        ]

    def push_one(self, path: str, ids: Sequence[str]) -> list[Row]:
        """Measure pushes of single commits into the large repository by a client that also polls."""
        count = self._scale.times(8)
        fresh = self._data.commits(self._scale.commits, self._scale.commits + count)
        filters = [filter_over(ids) for _ in range(FILTERS)]
        pushed: list[str] = []
        owned = next(self._users)

        def ask(line: Line, number: int, commits: Sequence[bytes] = ()) -> float:
            known = filters[number % FILTERS]
            held = BloomFilter(bytearray(known.bits), known.seeds)
            held.update(pushed)
            size = len(ids) + len(pushed)
            taken = line.ask(post(signature(owned), batch(*self._system, element(path, held, size, commits))))
            assert messages(line.body)[-1]["s"] == size
            return taken

        file = self._top / "appended"
        times, limits = [], []
        with Line(self._server.port) as line:
            for turn, commit in enumerate(fresh):
                ask(line, 2 * turn)
                pushed += ids_of([commit])
                times.append(ask(line, 2 * turn + 1, [commit]) * 1000)
                flush = bare.seconds(partial(bare.append, file, commit))
                limits.append((2 * bare.seconds(bare.verify, 2) + flush) * 1000)
        limit = "two verifications, one flush"
        name = "repository/push-one"
        return [Row(name=name, unit="ms", size=len(ids), samples=times, bare=limits, limit=limit)]

    def push_all(self) -> list[Row]:
        """Measure pushes of many commits in one body, each into an empty repository."""
        count = self._scale.pushed
        rates, limits = [], []
        with ExitStack() as stack:
            line = stack.enter_context(Line(self._server.port))
            for turn in range(self._scale.rounds):
                commits = self._data.commits(turn * count, (turn + 1) * count)
                body = batch(element(f"/data/push-{turn}", filter_over(ids_of(commits)), count, commits))
                rates.append(count / line.ask(post(signature(next(self._users)), body)))
                assert messages(line.body)[0]["s"] == count
                limits.append(count / bare.seconds_on_all_cores(bare.verify, count))
        return [
            Row(
                name="repository/push",
                unit="1/s",
                size=count,
                samples=rates,
                bare=limits,
                limit="verification on two threads",
                more_is_better=True,
            )
        ]


async def _ask_all(callers: Sequence[Caller], requests: Sequence[bytes]) -> float:
    """Return the seconds until all answers have arrived, with one request in progress on each connection."""
    queue = list(requests)

    async def lane(caller: Caller) -> None:
        while queue:
            status, _ = await caller.ask(queue.pop())
            assert status == 200, status

    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(lane(caller) for caller in callers))
    return loop.time() - began
