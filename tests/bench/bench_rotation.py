"""What a rotation costs: on 3, 10 and 100 simulated nodes, and on five real ones under load.

Simulated (`tests.fakes.herd`): the time of each phase on the herd's clock, calls of the store, questions to a
node, and milliseconds of work (the rotator's own and the nodes' answers; what the herd does by itself is taken out).

Real: five ``goatherd serve`` processes around the file store, that look at it by themselves once an hour, so that only
being told counts; clients that write and read all the time; and a rotator in a process of its own, as an operator's is.
It rotates several times. Of each rotation: how long it took, how much of that it slept, the processor time of the
rotator, how much slower than its processor time work was done on this machine then, and the latency of the clients'
requests during all rotations over that in equally long times before each, in the same run.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from goatherd.cli.process import LAST
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.operations.workload import RequestSample, Workload
from goatherd.plugins import open_provider
from goatherd.providers.memory import MemorySecretProvider
from goatherd.rotation import Phase, Rotator
from goatherd.rotation.events import Event, PhaseEntered
from tests.fakes.herd import FakeClock, Herd
from tests.ports import free_ports

from . import herd

SIZES: Final = (3, 10, 100)
NODES: Final = 5
ROUNDS: Final = 10
ENOUGH: Final = 20
"""Requests before each rotation, at least."""
PHASES: Final = (Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED)


@dataclass(slots=True)
class Phases:
    """How long each phase took, in seconds of a clock; `told` is an `on_event`."""

    seconds: dict[Phase, float] = field(default_factory=dict)
    _entered: tuple[Phase, int] | None = None

    def told(self, event: Event) -> None:
        if isinstance(event, PhaseEntered):
            if self._entered is not None:
                phase, since_ms = self._entered
                self.seconds[phase] = (event.at_ms - since_ms) / 1000
            self._entered = event.phase, event.at_ms


# --- simulated ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """One rotation of a simulated herd.

    Attributes:
        phases: Seconds on the herd's clock.
        store_calls: By operation.
        questions: To the busiest node.
        work_ms: Real milliseconds, without what the herd does by itself.
    """

    phases: dict[Phase, float]
    store_calls: dict[str, int]
    questions: int
    work_ms: float


async def simulate(nodes: int) -> Simulated:
    """Rotate a herd of `nodes` that are told at once."""
    clock = FakeClock()
    provider = MemorySecretProvider(clock=clock)
    cluster = await Herd.start(provider, clock=clock, nodes=nodes)
    aside = 0.0

    async def step() -> None:
        nonlocal aside
        began = time.perf_counter()
        await _ring(cluster)
        aside += time.perf_counter() - began

    clock.on_tick = step
    for node in cluster.nodes:
        node.asked.clear()
    before, phases = dict(provider.call_counts.ended), Phases()
    began = time.perf_counter()
    # The nodes' own looks at the store are on the same provider: they are counted by the node and taken out.
    rotator = Rotator(provider, cluster.secret_id, cluster.nodes, clock=clock, on_event=phases.told)
    report = await rotator.rotate()
    work = time.perf_counter() - began - aside
    assert report.behind == ()
    calls: dict[str, int] = {}
    for (operation, outcome), count in provider.call_counts.ended.items():
        calls[operation] = calls.get(operation, 0) + count - before.get((operation, outcome), 0)
    looks = sum(node.asked["refresh"] for node in cluster.nodes)
    calls["read"] -= looks
    questions = max(node.asked.total() for node in cluster.nodes)
    return Simulated(phases=phases.seconds, store_calls=calls, questions=questions, work_ms=work * 1000)


async def _ring(cluster: Herd) -> None:
    """Let every node sync with the next one and the one seven further on: as far as all with all, and affordable."""
    count = len(cluster.nodes)
    for _ in range(count.bit_length()):
        for number, node in enumerate(cluster.nodes):
            for step in (1, 7):
                await node.sync_with(cluster.nodes[(number + step) % count])


def simulated(sizes: Sequence[int] = SIZES) -> dict[str, float]:
    """Return the figures of one rotation for each size, and how they grow."""
    results: dict[str, float] = {}
    runs = {size: asyncio.run(simulate(size)) for size in sizes}
    for size, run in runs.items():
        for phase in PHASES:
            results[f"simulated_{size}_{phase.value}_s"] = run.phases[phase]
        for operation, count in sorted(run.store_calls.items()):
            if count:
                results[f"simulated_{size}_store_{operation}"] = count
        results[f"simulated_{size}_questions_per_node"] = run.questions
        results[f"simulated_{size}_work_ms_per_node"] = run.work_ms / size
    first, last = runs[sizes[0]], runs[sizes[-1]]
    name = f"simulated_{sizes[-1]}_over_{sizes[0]}"
    results[f"{name}_store_calls"] = sum(last.store_calls.values()) / sum(first.store_calls.values())
    results[f"{name}_work_per_node"] = (last.work_ms / sizes[-1]) / (first.work_ms / sizes[0])
    return results


# --- real ---------------------------------------------------------------------------------------------------------


class CountingClock(SystemClock):
    """The machine's clock, and how long somebody has slept on it."""

    def __init__(self) -> None:
        self.slept = 0.0

    async def sleep(self, duration: timedelta) -> None:
        began = self.monotonic()
        await super().sleep(duration)
        self.slept += self.monotonic() - began


async def operate(store: str, urls: Sequence[str]) -> None:
    """Rotate once for each line of input, and write a line about it; the part of the benchmark in another process."""
    os.nice(LAST)  # as `goatherd rotate` does
    clock = CountingClock()
    provider, secret_id = open_provider(store)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        nodes = [await stack.enter_async_context(NodeClient(url)) for url in urls]
        print(json.dumps({"ready": True}), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            clock.slept, phases = 0.0, Phases()
            before = sum(provider.call_counts.ended.values())
            rotator = Rotator(provider, secret_id, nodes, clock=clock, started_by="bench", on_event=phases.told)
            began, cpu = clock.monotonic(), time.process_time()
            report = await rotator.rotate()
            took, cpu = clock.monotonic() - began, time.process_time() - cpu
            line = {
                "began": began,
                "took": took,
                "slept": clock.slept,
                "cpu": cpu,
                "busy": busy(),
                "behind": len(report.behind),
                "store_calls": sum(provider.call_counts.ended.values()) - before,
                "phases": {phase.value: phases.seconds[phase] for phase in PHASES},
            }
            print(json.dumps(line), flush=True)


def busy(seconds: float = 0.05) -> float:
    """Return how much longer work takes here and now than it computes: 1 on an idle machine."""
    began, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < seconds:
        pass
    return (time.perf_counter() - began) / seconds


@dataclass(slots=True)
class Measured:
    """All rotations of one run. Latencies in seconds."""

    rotations: list[dict[str, float]] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    refused: int = 0


async def measure(*, nodes: int = NODES, rounds: int = ROUNDS, clients: int = 6) -> Measured:
    """Rotate `nodes` real servers under load, `rounds` times after one that warms up."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = f"file://{top}/keys/root"
        command = [sys.executable, "-m", "goatherd", "init", "--provider", store]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
        ports = free_ports(nodes)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        async with AsyncExitStack() as stack:
            for port, url in zip(ports, urls, strict=True):
                peers = [peer for peer in urls if peer != url]
                settings = ["--provider", store, "--refresh-interval", "1h"]
                await stack.enter_async_context(herd.serve(top / str(port), port=port, settings=settings, peers=peers))
            operator = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "tests.bench.bench_rotation", "operate", store, *urls],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            stack.push_async_callback(_ended, operator)
            await _line(operator)
            load = Workload(urls, clients=clients, pause=timedelta(milliseconds=20), newcomers=False)
            await stack.enter_async_context(load)
            measured = Measured()
            took = 1.0
            for turn in range(rounds + 1):
                rest = load.now()
                while load.now() < rest + took or load.window(rest).requests < ENOUGH:
                    await clock.sleep(timedelta(milliseconds=100))
                assert operator.stdin is not None
                operator.stdin.write(b"\n")
                done = await _line(operator)
                took = max(1.0, done["took"])
                if turn:
                    _take(measured, done, load.samples, rest)
            await load.stop()
    return measured


def _take(measured: Measured, done: dict[str, float], samples: Sequence[RequestSample], rest: float) -> None:
    """Add one rotation, and the requests during it and since `rest` before it."""
    phases = done.pop("phases")
    assert isinstance(phases, dict)
    for phase, seconds in phases.items():
        measured.phases.setdefault(phase, []).append(seconds)
    assert done["behind"] == 0
    began, took = done["began"], done["took"]
    inside = [sample for sample in samples if began <= sample.at + sample.seconds and sample.at < began + took]
    measured.rotations.append(done)
    measured.during += [sample.seconds for sample in inside]
    measured.before += [sample.seconds for sample in samples if rest <= sample.at < began - sample.seconds]
    measured.refused += sum(not sample.accepted for sample in inside)


async def _line(process: asyncio.subprocess.Process) -> dict[str, float]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"the rotator ended with status {await process.wait()}")
    found: dict[str, float] = json.loads(line)
    return found


async def _ended(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which a part of all values is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def real(*, nodes: int = NODES, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the figures of several rotations under load."""
    measured = asyncio.run(measure(nodes=nodes, rounds=rounds))
    took = [one["took"] for one in measured.rotations]
    name = f"real_{nodes}"
    results = {
        f"{name}_total_s": statistics.median(took),
        f"{name}_total_max_s": max(took),
        f"{name}_slept_over_total": sum(one["slept"] for one in measured.rotations) / sum(took),
        f"{name}_rotator_cpu_s": statistics.median(one["cpu"] for one in measured.rotations),
        f"{name}_machine_busy": statistics.median(one["busy"] for one in measured.rotations),
        f"{name}_store_calls": statistics.median(one["store_calls"] for one in measured.rotations),
    }
    for phase, seconds in measured.phases.items():
        results[f"{name}_{phase}_s"] = statistics.median(seconds)
    results[f"{name}_requests_during"] = len(measured.during)
    results[f"{name}_refused_during"] = measured.refused
    for label, fraction in (("p50", 0.5), ("p99", 0.99)):
        ratio = quantile(measured.during, fraction) / quantile(measured.before, fraction)
        results[f"{name}_{label}_during_over_before"] = ratio
    return results


def run() -> dict[str, float]:
    """Return the figures of this file."""
    return simulated() | real()


if __name__ == "__main__":
    if sys.argv[1:2] == ["operate"]:
        asyncio.run(operate(sys.argv[2], sys.argv[3:]))
    else:
        print(json.dumps(run(), indent=2))
