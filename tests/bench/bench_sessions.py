"""The start of a server that knows many sessions, and its memory at the peak, when all of them have been verified."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from tests.ports import free_ports

from . import bare
from .clients import SESSIONS, Line, batch, post, signature, wait_until_verified
from .data import Data, write_log
from .rows import Row
from .scale import FULL, Scale
from .servers import serve

FEW = 1_000


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure starts; a full run also with few sessions."""
    sizes = (FEW, scale.sessions) if scale == FULL else (scale.sessions,)
    return [row for size in sizes for row in await _measure(size, scale.rounds, data)]


async def _measure(size: int, rounds: int, data: Data) -> list[Row]:
    """Start a server several times; the last time, wait until it has verified every session."""
    ready: list[float] = []
    answered: list[float] = []
    limits: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = await data.create_store(top)
        lines = await asyncio.to_thread(data.sessions, size)
        octets = write_log(top / "data", SESSIONS, lines)
        last = data.user(size - 1)
        (port,) = free_ports(1)
        async with serve(top / "empty", port, store) as server:
            empty = server.peak_bytes()
        for turn in range(rounds + 1):
            limits.append(bare.seconds(lambda: bare.parse(lines)))
            (port,) = free_ports(1)
            began = time.perf_counter()
            async with serve(top / "data", port, store) as server:
                ready.append(time.perf_counter() - began)
                with Line(port) as line:
                    line.ask(post(signature(last), batch()))
                    answered.append(time.perf_counter() - began)
                    if turn == rounds:
                        await wait_until_verified(line)
                        peak = server.peak_bytes()

    def row(name: str, samples: list[float], bare: list[float]) -> Row:
        return Row(name=name, unit="s", size=size, samples=samples, bare=bare, limit="parsing", power=1)

    return [
        row("sessions/ready", ready, limits),
        row("sessions/answered", answered, limits),
        Row(
            name="sessions/peak",
            unit="MiB",
            size=size,
            samples=[peak / (1 << 20)],
            bare=[empty / (1 << 20)],
            limit="a server without sessions",
            power=1,
        ),
        Row(
            name="sessions/memory",
            unit="B/session",
            size=size,
            samples=[(peak - empty) / size],
            bare=[octets / len(lines)],
            limit="its log",
        ),
    ]
