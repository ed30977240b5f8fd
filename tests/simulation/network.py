"""The network between simulated machines: HTTP requests that take time, get lost, or find no server.

What it is: `Network`, and `Line`, which a real `goatherd.NodeClient` takes for its connection pool, so that its
own deadline, signing and parsing are what is tested. What it is not: TCP; a request arrives once or not at all.

What can go wrong: a machine is cut off (what is sent waits in vain until the cut is mended, then the connection is
reset, or it is refused at once), a machine is slow, an answer is lost after its request took effect, no process
listens, a process dies while it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

import httpx2

from tests.simulation.dice import Dice
from tests.simulation.loop import Process, check_alive, current_process
from tests.simulation.trace import Trace

FAST: Final = (0.0003, 0.004)
"""Seconds that a message is on its way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The part of an HTTP response that `NodeClient` uses."""

    status_code: int
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        yield self.content


class Host(Protocol):
    """A machine on which a server may be listening."""

    @property
    def name(self) -> str: ...

    @property
    def process(self) -> Process | None:
        """The process that listens; None where none does."""
        ...

    async def answer(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> Answer: ...


@dataclass(slots=True)
class Trouble:
    """The present faults of the network; names are those of machines.

    Attributes:
        cut: Machines that nothing reaches and that reach nothing.
        cut_pairs: Pairs between which nothing passes.
        refusing: Among the machines that are cut off, those whose connections are refused at once.
        slow: By which factor messages of a machine are slower.
        loses_answers: The chance that an answer of a machine is lost.
    """

    cut: set[str] = field(default_factory=set)
    cut_pairs: set[tuple[str, str]] = field(default_factory=set)
    refusing: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    loses_answers: dict[str, float] = field(default_factory=dict)

    def parts(self, one: str, other: str) -> bool:
        """Return whether nothing passes between two machines."""
        return bool(
            one in self.cut or other in self.cut or (one, other) in self.cut_pairs or (other, one) in self.cut_pairs
        )


class Network:
    """The simulated network, which carries requests between machines.

    Args:
        dice: Decides how long messages take, and which get lost.
        trace: The trace, in which single requests are recorded.

    Attributes:
        trouble: The present faults.
        requests: How many were sent.
    """

    def __init__(self, dice: Dice, trace: Trace) -> None:
        self.trouble = Trouble()
        self.requests = 0
        self._dice = dice
        self._trace = trace
        self._hosts: dict[str, Host] = {}
        self._mended = asyncio.Event()

    def add(self, url: str, host: Host) -> None:
        """Make a host known under its URL."""
        self._hosts[url] = host

    def mended(self) -> None:
        """Apply a reduction of `trouble`: connections that were cut are reset now."""
        self._mended.set()
        self._mended = asyncio.Event()

    def line(self) -> httpx2.AsyncClient:
        """Return what a `NodeClient` takes as its ``http``."""
        return cast("httpx2.AsyncClient", Line(self))

    async def carry(self, method: str, url: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a request and return the answer.

        Raises:
            httpx2.TransportError: The request failed.
        """
        check_alive()
        self.requests += 1
        place, _, path = url.removeprefix("http://").partition("/")
        host = self._hosts[f"http://{place}"]
        asker = current_process()
        name = "world" if asker is None else asker.name
        machine = name.partition("/")[0]
        what = f"{method} {host.name}/{path}"
        await self._travel(machine, host.name)
        server = host.process
        if server is None or server.is_dead:
            self._trace.detail(name, f"{what}: refused")
            raise httpx2.ConnectError("connection refused")
        task = server.spawn(host.answer(method, f"/{path}", content, headers), f"answer {path}")
        await asyncio.wait({task})
        if task.cancelled() or server.is_dead:
            self._trace.detail(name, f"{what}: reset")
            raise httpx2.ReadError("connection reset")
        answer = task.result()
        if self._dice.chance(self.trouble.loses_answers.get(host.name, 0.0)):
            self._trace.detail(name, f"{what}: {answer.status_code}, answer lost")
            raise httpx2.ReadError("connection reset")
        await self._travel(host.name, machine)
        self._trace.detail(name, f"{what}: {answer.status_code}")
        return answer

    async def _travel(self, one: str, other: str) -> None:
        trouble = self.trouble
        factor = max(trouble.slow.get(one, 1.0), trouble.slow.get(other, 1.0))
        await asyncio.sleep(self._dice.uniform(*FAST) * factor)
        if trouble.parts(one, other):
            if not trouble.refusing & {one, other}:
                await self._mended.wait()
            raise httpx2.ConnectError("connection reset")
        check_alive()


class Line:
    """The part of an `httpx2.AsyncClient` that `NodeClient` uses."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **options: object,
    ) -> AsyncIterator[Answer]:
        yield await self._network.carry(method, url, content or b"", headers or {})
