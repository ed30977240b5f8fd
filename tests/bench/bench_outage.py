"""200 servers during an hour without their store, and after: calls per second, compared with loops that only retry.

Everything is real but the time and the store's health: 200 `CloudSecretSettings` with their retries, breakers and
jitter, on one clock that jumps to the next wake-up. A call is what reaches the store: every attempt counts.

- ``jittered``: a loop that reads every 30 s, spread by a fifth, with the provider's five attempts.
- ``goatherd``: what a Goatherd server does.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, Final

from goatherd.errors import GoatherdError, UnavailableError
from goatherd.identity.document import encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.providers.base import Call
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import Label, SecretValue, VersionId
from goatherd.settings.store import CloudSecretSettings
from tests.fakes.herd import FakeClock

from .data import Data
from .rows import Row
from .scale import Scale

NODES: Final = 200
INTERVAL: Final = timedelta(seconds=30)
BEFORE: Final = timedelta(minutes=5)
OUTAGE: Final = timedelta(hours=1)
AFTER: Final = timedelta(minutes=10)
ONSET: Final = timedelta(minutes=2)
"""The part of the outage in which nodes find out; what comes after is its long run."""
SECRET: Final = "cluster/root"
JITTER: Final = 0.2

KINDS: Final = ("jittered", "goatherd")


class SharedClock(FakeClock):
    """A `FakeClock` for many: it jumps to the next wake-up, once every task sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self._order = count()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._asleep = 0

    async def sleep(self, duration: timedelta) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        when = self.now_ms() + max(1, duration // timedelta(milliseconds=1))
        heapq.heappush(self._sleepers, (when, next(self._order), woken))
        self._asleep += 1
        try:
            await woken
        finally:
            if woken.cancelled():
                self._asleep -= 1

    async def run(self, duration: timedelta, sleepers: int) -> None:
        """Let `duration` pass for `sleepers` tasks, each of which always sleeps in the end."""
        end = self.now_ms() + duration // timedelta(milliseconds=1)
        await self._everybody_sleeps(sleepers)
        while self._sleepers[0][0] <= end:
            when = self._sleepers[0][0]
            if when > self.now_ms():
                self.turn(timedelta(milliseconds=when - self.now_ms()))
            while self._sleepers and self._sleepers[0][0] == when:
                woken = heapq.heappop(self._sleepers)[2]
                if not woken.done():
                    self._asleep -= 1
                    woken.set_result(None)
            await self._everybody_sleeps(sleepers)
        if end > self.now_ms():
            self.turn(timedelta(milliseconds=end - self.now_ms()))

    async def _everybody_sleeps(self, sleepers: int) -> None:
        while self._asleep < sleepers:
            await asyncio.sleep(0)


class Store(MemorySecretProvider):
    """A store that a test can make unavailable; counts every attempt, per second."""

    def __init__(self, clock: SharedClock) -> None:
        super().__init__(clock=clock)
        self.is_away = False
        self.calls: Counter[int] = Counter()

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        self.calls[self.clock.now_ms() // 1000] += 1
        if self.is_away:
            raise call.error(UnavailableError, "away")
        return await super()._read(call, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """The load on the store, in calls per second.

    Attributes:
        healthy_mean: Before.
        onset_peak: The worst second at the start of the outage.
        outage_mean, outage_peak: In the rest of the outage.
        return_mean, return_peak: In the first minute after the store's return.
        later_peak: The worst second after that: a herd that has fallen into step would show here.
        outage_calls: All calls in the outage.
        recovered_s: When the last node had a good answer, in seconds after the return.
    """

    healthy_mean: float
    onset_peak: float
    outage_mean: float
    outage_peak: float
    return_mean: float
    return_peak: float
    later_peak: float
    outage_calls: int
    recovered_s: float


@dataclass(slots=True)
class _Run:
    clock: SharedClock
    store: Store
    last_good: dict[int, float] = field(default_factory=dict)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def loop(self, number: int) -> None:
        """Read the store indefinitely, with a plain loop."""
        dice = secrets.SystemRandom()
        while True:
            await self.clock.sleep(INTERVAL * dice.uniform(1 - JITTER, 1 + JITTER))
            try:
                await self.store.read(SECRET)
                self.last_good.setdefault(number, self.clock.monotonic())
            except GoatherdError:
                pass


async def simulate(kind: str, *, nodes: int = NODES, outage: timedelta = OUTAGE, after: timedelta = AFTER) -> Weather:
    """Return the load that one kind of server puts on a store that is unavailable for `outage`.

    Args:
        kind: One of `KINDS`.
        nodes: How many.
        outage: How long the store is away; longer than `ONSET`.
        after: How long to watch its return.
    """
    clock = SharedClock()
    store = Store(clock)
    run = _Run(clock, store)
    root = OwnedSession.generate(session_id="a" * 24, owner="root", now_ms=clock.now_ms())
    await store.create(SECRET, encode_document(create_document(root, clock.now_ms())))
    settings: list[CloudSecretSettings] = []
    async with AsyncExitStack() as stack:
        for number in range(nodes):
            if kind == "goatherd":
                one = CloudSecretSettings(store, SECRET, refresh_interval=INTERVAL, clock=clock)
                settings.append(await stack.enter_async_context(one))
                await one.load()
            else:
                loop: Coroutine[Any, Any, None] = run.loop(number)
                run.tasks.append(asyncio.create_task(loop))
        store.calls.clear()
        began = clock.now_ms()
        await clock.run(BEFORE, nodes)
        store.is_away = True
        lost = clock.now_ms()
        await clock.run(outage, nodes)
        store.is_away = False
        run.last_good.clear()
        returned, returned_at = clock.now_ms(), clock.monotonic()
        recovered: float | None = None
        for _ in range(after // timedelta(seconds=5)):
            await clock.run(timedelta(seconds=5), nodes)
            if recovered is None and (
                all(not one.status.failures for one in settings) if settings else len(run.last_good) == nodes
            ):
                recovered = clock.monotonic() - returned_at
        ended = clock.now_ms()
        for task in run.tasks:
            task.cancel()
        await asyncio.gather(*run.tasks, return_exceptions=True)

    def seconds(start_ms: int, end_ms: int) -> list[int]:
        return [store.calls[second] for second in range(start_ms // 1000, end_ms // 1000)]

    in_outage = seconds(lost, returned)
    onset = ONSET // timedelta(seconds=1)
    steady = in_outage[onset:]
    back = seconds(returned, ended)
    healthy = seconds(began, lost)
    return Weather(
        healthy_mean=sum(healthy) / len(healthy),
        onset_peak=max(in_outage[:onset]),
        outage_mean=sum(steady) / len(steady),
        outage_peak=max(steady),
        return_mean=sum(back[:60]) / 60,
        return_peak=max(back[:60]),
        later_peak=max(back[60:]),
        outage_calls=sum(in_outage),
        recovered_s=recovered if recovered is not None else float("inf"),
    )


async def run(scale: Scale, data: Data) -> list[Row]:
    """Return calls per second of Goatherd's nodes, beside those of loops that only retry."""
    # 200 nodes that each say that their store is away are no news here.
    logger = logging.getLogger("goatherd.settings")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        times: dict[str, Any] = (
            {} if scale.rounds > 1 else {"nodes": 2, "outage": 2 * ONSET, "after": timedelta(minutes=2)}
        )
        jittered, goatherd = [await simulate(kind, **times) for kind in ("jittered", "goatherd")]
    finally:
        logger.setLevel(level)
    return [
        Row(
            name=f"outage/{name.replace('_', '-')}",
            unit="calls/s",
            size=times.get("nodes", NODES),
            samples=[getattr(goatherd, name)],
            bare=[getattr(jittered, name)],
            limit="loops that retry",
            power=1,
        )
        for name in Weather.__slots__
        if name.endswith(("_mean", "_peak"))
    ]
