"""Many clients that poll one server as GoatDB's clients do; one in twenty of them writes.

docs/reference/goatdb-protocol.md#clients-and-peers gives the rhythm: each repository is polled every 1.5 s, or every
0.3 s after a change, rising again within 20 s; what is due every 0.2 s goes in one request; one request is in progress
at a time. Each client has three repositories: sessions, users, and one that it shares with `GROUP` clients, all
together with as many commits as the scale says. The clients of the first groups write.

The server has its default limits, and the clients come from one proxy, as in a deployment behind one address:
`limits.forwarded_by` names the proxy, and ``X-Forwarded-For`` the client.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from goatherd.identity.session import OwnedSession
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.json import to_json_bytes
from tests.ports import free_ports

from . import bare
from .clients import SESSIONS, USERS, Caller, Request, batch, element, filter_over, post, signature
from .data import CORES, EDITS, Data, ids_of, make_commit, write_log
from .rows import Row
from .scale import Scale
from .servers import serve

GROUP: Final = 50
WRITERS: Final = 0.05
WRITE_EVERY: Final = 5.0
"""Seconds between two commits of a writer, on average."""
SHORTEST, LONGEST, RAMP, TICK = 0.3, 1.5, 20.0, 0.2
"""A client's pause between polls of a repository after a change and later, when it reaches that, and its clock."""
WARM_UP: Final = 15.0
"""Seconds in which the clients start, one after the other, before anything counts."""
SLICES: Final = 4
FILTERS: Final = 8
BEHIND_PROXY: Final = {"GOATHERD_LIMITS_FORWARDED_BY": "127.0.0.1/32"}


def poll_pause(since_change: float) -> float:
    """Return the pause until a client's next poll of a repository."""
    part = min(1.0, since_change / RAMP)
    return SHORTEST + (2 ** (10 * part - 10) if part > 0 else 0.0) * (LONGEST - SHORTEST)


@dataclass(slots=True)
class _Shared:
    """A repository that clients poll: its path, the commits that all of them hold at the start, filters over these."""

    path: str
    count: int
    filters: list[BloomFilter]

    @classmethod
    def over(cls, path: str, ids: list[str]) -> _Shared:
        return cls(path, len(ids), [filter_over(ids) for _ in range(FILTERS if ids else 1)])


@dataclass(slots=True)
class _Polled:
    """A repository as one client sees it."""

    shared: _Shared
    due: float
    changed: float
    learned: dict[str, None] = field(default_factory=dict)
    unsent: dict[str, bytes] = field(default_factory=dict)

    def element(self, dice: random.Random) -> bytes:
        held = dice.choice(self.shared.filters)
        if self.learned:
            held = BloomFilter(bytearray(held.bits), held.seeds)
            held.update(self.learned)
        return element(self.shared.path, held, self.shared.count + len(self.learned), self.unsent.values())

    def take_reply(self, reply: dict[str, Any], now: float) -> int:
        """Record what the server holds and has sent; return how many of the client's own commits it has now."""
        before = len(self.unsent)
        if self.unsent:
            shown = BloomFilter.from_json(reply["f"]["__v"])
            self.unsent = {one: text for one, text in self.unsent.items() if one not in shown}
        fresh = {commit["id"]: None for commit in reply["c"]}
        self.learned |= fresh
        if fresh or self.unsent:
            self.changed = now
        self.due = now + poll_pause(now - self.changed)
        return before - len(self.unsent)


@dataclass(slots=True)
class Crowd:
    """The clients, and what they saw.

    Attributes:
        port: The server's.
        data: The sessions and commits.
        writers: How many clients write.
        starts: Seconds in which the clients start.
        answers: When each answer came, how long it took, and its status.
        acknowledged: How many new commits the server's filters have shown.
        numbers: Of the new commits.
    """

    port: int
    data: Data
    writers: int
    starts: float
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    acknowledged: int = 0
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1 << 30, EDITS))

    async def run_client(self, number: int, shared: list[_Shared], signed: deque[str], until: float) -> None:
        """Poll, and push if the client is one that writes, until the loop's clock shows `until`."""
        loop = asyncio.get_running_loop()
        dice = random.Random(number)
        owned, caller = self.data.user(number), Caller(self.port)
        is_writer = number < self.writers
        began = loop.time() + dice.uniform(0, self.starts)
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        repositories = [_Polled(one, due=began, changed=began - RAMP) for one in shared]
        mine = repositories[-1]
        write_at = began + dice.expovariate(1 / WRITE_EVERY) if is_writer else math.inf
        while True:
            due = min(write_at, *(one.due for one in repositories))
            now = began + TICK * math.ceil(max(0.0, due - began, loop.time() - began) / TICK)
            if now >= until:
                break
            await asyncio.sleep(now - loop.time())
            if now >= write_at:
                self._write(owned, mine, now)
                write_at = now + dice.expovariate(1 / WRITE_EVERY)
            asked = [one for one in repositories if one.due <= now]
            body = batch(*(one.element(dice) for one in asked))
            request = post(signed.popleft() if signed else signature(owned), body, address)
            await self._ask(caller, request, asked)
        caller.close()

    def _write(self, owned: OwnedSession, mine: _Polled, now: float) -> None:
        commit = make_commit(next(self.numbers), self.data.made_ms, owned)
        mine.unsent[commit.id] = to_json_bytes(commit.to_json())
        mine.learned[commit.id] = None
        mine.changed = mine.due = now

    async def _ask(self, caller: Caller, request: Request, asked: list[_Polled]) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        status, body = await caller.ask(request)
        now = loop.time()
        self.answers.append((now, now - sent, status))
        if status != 200:
            for one in asked:
                one.due = now + LONGEST
            return
        for one, reply in zip(asked, orjson.loads(body), strict=True):
            self.acknowledged += one.take_reply(reply["res"], now)


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure the latency of all requests."""
    groups = max(1, scale.clients // GROUP)
    part = scale.commits // groups
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = await data.create_store(top)
        sessions = await asyncio.to_thread(data.sessions, scale.clients)
        write_log(top, SESSIONS, sessions)
        system = [_Shared.over(SESSIONS, ids_of(sessions)), _Shared.over(USERS, [])]
        teams = []
        for number in range(groups):
            lines = await asyncio.to_thread(data.commits, number * part, (number + 1) * part)
            write_log(top, f"/data/team-{number}", lines)
            teams.append(_Shared.over(f"/data/team-{number}", ids_of(lines)))
        (port,) = free_ports(1)
        async with serve(top, port, store, settings=BEHIND_PROXY) as server:
            warm_up = min(WARM_UP, scale.seconds)
            crowd = Crowd(port, data, math.ceil(scale.clients * WRITERS), 0.8 * warm_up)
            opener = Caller(port)
            for team in teams:
                body = batch(element(team.path, team.filters[0], team.count))
                await opener.ask(post(signature(data.user(0)), body))
            signed = await asyncio.to_thread(_sign_ahead, data, scale.clients, warm_up + scale.seconds)
            loop = asyncio.get_running_loop()
            spent, began = server.cpu_seconds(), loop.time() + warm_up
            until = began + scale.seconds
            async with asyncio.TaskGroup() as tasks:
                for number in range(scale.clients):
                    team = teams[number * groups // scale.clients]
                    tasks.create_task(crowd.run_client(number, [*system, team], signed[number], until))
            spent = server.cpu_seconds() - spent
            status, body = await opener.ask(
                post(
                    signature(data.user(0)), batch(*(element(team.path, team.filters[0], team.count) for team in teams))
                )
            )
            opener.close()
    held = sum(reply["res"]["s"] for reply in orjson.loads(body))
    assert status == 200
    assert held >= groups * part + crowd.acknowledged, "the server has every commit that it acknowledged"
    limit = bare.cpu_seconds(bare.verify, 100)
    cpu = Row(
        name="crowd/cpu",
        unit="ms CPU",
        size=scale.clients,
        samples=[1000 * spent / len(crowd.answers)],
        bare=[1000 * limit],
        limit="verification of its signature",
    )
    return [*_rows(crowd, began, scale), cpu]


def _sign_ahead(data: Data, clients: int, seconds: float) -> list[deque[str]]:
    """Return request signatures for each client, made in advance, because real clients sign on their own machines."""
    count = math.ceil(seconds / LONGEST)

    def sign(number: int) -> deque[str]:
        owned = data.user(number)
        return deque(signature(owned) for _ in range(count))

    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(sign, range(clients)))


def _rows(crowd: Crowd, began: float, scale: Scale) -> list[Row]:
    width = scale.seconds / SLICES
    slices: list[list[float]] = [[] for _ in range(SLICES)]
    refused = 0
    for at, taken, status in crowd.answers:
        refused += status != 200
        if 0 <= (place := int((at - began) / width)) < SLICES:
            slices[place].append(1000 * taken)
    filled = [sorted(times) for times in slices if times]
    size = scale.clients
    return [
        Row(name="crowd/p50", unit="ms", size=size, samples=[times[len(times) // 2] for times in filled]),
        Row(name="crowd/p99", unit="ms", size=size, samples=[times[int(len(times) * 0.99)] for times in filled]),
        Row(
            name="crowd/answers",
            unit="1/s",
            size=size,
            samples=[len(times) / width for times in filled],
            more_is_better=True,
            power=1,
        ),
        Row(name="crowd/refused", unit="", size=size, samples=[refused]),
    ]
