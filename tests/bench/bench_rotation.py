"""What a rotation costs: on 3, 10 and 100 simulated nodes, and on real ones under load.

Simulated (`tests.fakes.herd`): calls of the store, and milliseconds of work, together and in each phase (the rotator's
own and the nodes' answers; the herd's background work is subtracted). With an anchor: its signatures for each renewal
of the working root; the goal is 2 or fewer.

Real: ``goatherd serve`` processes around the file store that read it once an hour, so that only notifications count;
clients that write and read all the time; and a rotator in a process of its own, at normal priority. It rotates several
times. Measured: the latency of the clients' requests during the rotations over that in equally long times before each.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import Phase
from goatherd.operations.workload import RequestSample, Workload
from goatherd.plugins import open_provider
from goatherd.providers.base import SecretProvider
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.rotator import Rotator
from goatherd.stores import ReplicatedStore, StoreMember
from tests.deadlines import ANSWER
from tests.fakes.anchors import MemorySigners
from tests.fakes.herd import FakeClock, Herd
from tests.ports import free_ports

from .data import Data
from .rows import Row
from .scale import Scale
from .servers import UNLIMITED, serve

SIZES: Final = (3, 10, 100)
CLIENTS: Final = 6
GROUP: Final = 3
"""Rotations whose requests are taken together for one p99."""
ENOUGH: Final = 20
"""Requests before each rotation, at least."""
PHASES: Final = (Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED)


# --- simulated ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """One rotation of a simulated herd.

    Attributes:
        phases: How long each phase took, in seconds of the herd's clock.
        phases_ms: Real milliseconds of work in each phase, without the herd's background work.
        store_calls: Calls of the store by the rotator, by operation.
        work_ms: Real milliseconds of work of the whole rotation, without the herd's background work.
    """

    phases: dict[Phase, float]
    phases_ms: dict[Phase, float]
    store_calls: dict[str, int]
    work_ms: float


async def simulate(nodes: int) -> Simulated:
    """Rotate a herd of `nodes` that are notified at once."""
    clock = FakeClock()
    provider = MemorySecretProvider(clock=clock)
    cluster = await Herd.start(provider, clock=clock, nodes=nodes)
    aside = 0.0

    async def step() -> None:
        nonlocal aside
        began = time.perf_counter()
        await _ring(cluster)
        aside += time.perf_counter() - began

    def worked_ms() -> float:
        return (time.perf_counter() - began - aside) * 1000

    def note_phase(event: Event) -> None:
        if isinstance(event, PhaseEntered):
            entered.append((event.phase, event.at_ms / 1000, worked_ms()))

    clock.on_tick = step
    for node in cluster.nodes:
        node.asked.clear()
    before = dict(provider.call_counts.ended)
    entered: list[tuple[Phase, float, float]] = []
    began = time.perf_counter()
    rotator = Rotator(provider, cluster.secret_id, cluster.nodes, clock=clock, on_event=note_phase)
    report = await rotator.rotate()
    work_ms = worked_ms()
    assert report.behind == ()
    calls: Counter[str] = Counter()
    for (operation, outcome), count in provider.call_counts.ended.items():
        calls[operation] += count - before.get((operation, outcome), 0)
    # The nodes' own reads of the store are on the same provider: they are counted by the node and taken out.
    calls["read"] -= sum(node.asked["refresh"] for node in cluster.nodes)
    phases = list(itertools.pairwise(entered))
    return Simulated(
        phases={phase: until - since for (phase, since, _), (_, until, _) in phases},
        phases_ms={phase: until - since for (phase, _, since), (_, _, until) in phases},
        store_calls=calls,
        work_ms=work_ms,
    )


async def _ring(cluster: Herd) -> None:
    """Let every node sync with the next one and with the one seven further on, which is cheaper than all with all."""
    count = len(cluster.nodes)
    for _ in range(count.bit_length()):
        for number, node in enumerate(cluster.nodes):
            for step in (1, 7):
                await node.sync_with(cluster.nodes[(number + step) % count])


async def _simulate_growth(scale: Scale) -> list[Row]:
    """Return the rotator's own work on herds of several sizes."""
    rows = []
    for size in SIZES[: scale.nodes]:
        runs = [await simulate(size) for _ in range(scale.rounds)]
        work = Row(name="rotation/simulated", unit="ms", size=size, samples=[run.work_ms for run in runs], power=1)
        calls = [float(sum(run.store_calls.values())) for run in runs]
        rows += [
            work,
            *(
                replace(work, name=f"rotation/{phase.value}", samples=[run.phases_ms[phase] for run in runs])
                for phase in PHASES
            ),
            Row(name="rotation/calls", unit="calls", size=size, samples=calls),
        ]
    return rows


async def rotate_in_regions(count: int) -> tuple[float, int]:
    """Rotate three simulated servers with stores in `count` regions; return the CPU seconds, and the calls of stores.

    The followers are of the way ``goatherd``. The servers' own reads are on other providers, which are not counted.
    """
    clock = FakeClock()
    places = [MemoryStore() for _ in range(count)]
    stores = [MemorySecretProvider(place, clock=clock) for place in places]
    members = [
        StoreMember(
            region=f"region-{number}",
            provider=store,
            template=Herd.secret_id,
            is_primary=number == 0,
        )
        for number, store in enumerate(stores)
    ]
    provider: SecretProvider = stores[0] if count == 1 else ReplicatedStore(members, clock=clock)
    cluster = await Herd.start(provider, clock=clock, nodes=3)
    for node in cluster.nodes:
        node.provider = MemorySecretProvider(places[0], clock=clock)
    aside = 0.0

    async def step() -> None:
        nonlocal aside
        began = time.process_time()
        await _ring(cluster)
        aside += time.process_time() - began

    clock.on_tick = step
    before = sum(sum(store.call_counts.ended.values()) for store in stores)
    began = time.process_time()
    report = await Rotator(provider, cluster.secret_id, cluster.nodes, clock=clock).rotate()
    seconds = time.process_time() - began - aside
    assert report.behind == ()
    return seconds, sum(sum(store.call_counts.ended.values()) for store in stores) - before


async def _rotate_in_all_regions(scale: Scale) -> list[Row]:
    """Return what stores in three regions add to a rotation with one."""
    rows = []
    for count in (1, 3):
        runs = [await rotate_in_regions(count) for _ in range(scale.rounds)]
        times = [1000 * seconds for seconds, _ in runs]
        calls = [float(made) for _, made in runs]
        rows.append(Row(name="rotation/regions", unit="ms CPU", size=count, samples=times, power=1))
        rows.append(Row(name="rotation/store-calls", unit="calls", size=count, samples=calls, power=1))
    return rows


async def count_anchor_calls(rounds: int) -> list[float]:
    """Add an anchor to three simulated servers and renew its working root; return its signatures for each renewal."""
    clock, signers = FakeClock(), MemorySigners()
    provider = MemorySecretProvider(clock=clock)
    cluster = await Herd.start(provider, clock=clock, nodes=3)

    async def step() -> None:
        await _ring(cluster)

    clock.on_tick = step
    rotator = Rotator(
        provider, cluster.secret_id, cluster.nodes, clock=clock, open_signer=signers.open, signers=signers.configured
    )
    spent, anchor = [], AnchorChoice(signer="memory:kms")
    # The renewal after the first one also introduces the root from before the anchor.
    for choice in (anchor, UNCHANGED, *[UNCHANGED] * rounds):
        before = signers.signed
        report = await rotator.rotate(anchor=choice)
        assert report.behind == ()
        spent.append(float(signers.signed - before))
    return spent[1:]


# --- real ---------------------------------------------------------------------------------------------------------


async def operate(store: str, urls: Sequence[str]) -> None:
    """Rotate once for each line of input, and write a line about it; the part of the benchmark in another process."""
    clock = SystemClock()
    provider, secret_id = open_provider(store)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        nodes = [await stack.enter_async_context(NodeClient(url, timeout=ANSWER)) for url in urls]
        print(json.dumps({"ready": True}), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            rotator = Rotator(provider, secret_id, nodes, clock=clock, started_by="bench")
            began, cpu = clock.monotonic(), time.process_time()
            report = await rotator.rotate()
            took, cpu = clock.monotonic() - began, time.process_time() - cpu
            print(json.dumps({"began": began, "took": took, "cpu": cpu, "behind": len(report.behind)}), flush=True)


@dataclass(slots=True)
class Measured:
    """All rotations of one run. Latencies in seconds, one list for each rotation."""

    rotations: list[dict[str, float]] = field(default_factory=list)
    before: list[list[float]] = field(default_factory=list)
    during: list[list[float]] = field(default_factory=list)
    refused: int = 0


async def measure(data: Data, *, nodes: int, rounds: int, clients: int = CLIENTS) -> Measured:
    """Rotate `nodes` real servers under load, `rounds` times after one that warms up."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = await data.create_store(top)
        ports = free_ports(nodes)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        settings = {**UNLIMITED, "GOATHERD_SETTINGS_REFRESH_INTERVAL": "1h"}
        async with AsyncExitStack() as stack:
            for port, url in zip(ports, urls, strict=True):
                peers = [peer for peer in urls if peer != url]
                await stack.enter_async_context(serve(top / str(port), port, store, peers=peers, settings=settings))
            operator = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "tests.bench.bench_rotation", store, *urls],
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
    assert done["behind"] == 0
    began, took = done["began"], done["took"]
    inside = [sample for sample in samples if began <= sample.at + sample.seconds and sample.at < began + took]
    measured.rotations.append(done)
    measured.during.append([sample.seconds for sample in inside])
    measured.before.append([sample.seconds for sample in samples if rest <= sample.at < began - sample.seconds])
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


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure rotations of real servers under load, and of simulated herds."""
    measured = await measure(data, nodes=scale.nodes, rounds=scale.times(GROUP))
    assert measured.refused == 0, f"{measured.refused} requests were refused during a rotation"
    size = scale.nodes
    groups = range(0, len(measured.rotations), GROUP)
    during, before = (
        [1000 * quantile([one for part in parts[at : at + GROUP] for one in part], 0.99) for at in groups]
        for parts in (measured.during, measured.before)
    )
    times, cpu = ([one[name] for one in measured.rotations] for name in ("took", "cpu"))
    return [
        Row(name="rotation/p99", unit="ms", size=size, samples=during, bare=before, limit="p99 before"),
        Row(name="rotation/total", unit="s", size=size, samples=times, power=1),
        Row(name="rotation/cpu", unit="s CPU", size=size, samples=cpu, power=1),
        *await _simulate_growth(scale),
        *await _rotate_in_all_regions(scale),
        Row(name="rotation/anchor-calls", unit="calls", size=3, samples=await count_anchor_calls(scale.rounds)),
    ]


if __name__ == "__main__":
    asyncio.run(operate(sys.argv[1], sys.argv[2:]))
