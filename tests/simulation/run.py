"""One run: a scenario is simulated, repaired, resumed, restored, rotated once more, retired, and judged."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from goatherd.errors import NotRestorableError
from goatherd.rotation.machine import Outcome
from tests.simulation import invariants
from tests.simulation.dice import Dice, loaded
from tests.simulation.herd import Herd
from tests.simulation.loop import VirtualLoop
from tests.simulation.people import Goal
from tests.simulation.revocations import Order
from tests.simulation.scenario import MOST_SKEW, Scenario, draw
from tests.simulation.signers import steal
from tests.simulation.world import POLICY, REFRESH, SECRET, WRONG_CLOCKS_POLICY, World

_THREAD = (0.0, 0.004)
"""Seconds that work in a thread waits for its turn, and again for the loop to hear of its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a run.

    Attributes:
        seed: The seed of the run.
        broken: The rules that were broken; empty for a run without errors.
        lines: The story.
        digest: The same for two runs only if everything in them was the same.
        steps: How many steps the command of the scenario's last operator did.
        notes: How many acknowledged notes were checked at the end.
        requests: How many requests went over the network.
        simulated: How long it lasted, in simulated time.
        took: How long it took, in real time.
    """

    seed: int
    broken: tuple[str, ...]
    lines: tuple[str, ...]
    digest: str
    steps: int
    notes: int
    requests: int
    simulated: timedelta
    took: timedelta


def run(seed: int, scenario: Scenario | None = None, *, steps: bool = False, real: bool = False) -> Result:
    """Simulate one scenario.

    Args:
        seed: Decides everything random.
        scenario: What happens; by default drawn from the seed.
        steps: Whether the story tells single calls.
        real: Whether signatures are P-384's own.
    """
    began = time.perf_counter()
    scenario = scenario or draw(seed)
    threads = Dice(seed, "threads")
    with loaded(seed, real=real), _no_collection():
        loop = VirtualLoop(lambda: threads.uniform(*_THREAD))
        start = loop.time()
        try:
            asyncio.set_event_loop(loop)
            policy = WRONG_CLOCKS_POLICY if scenario.wrong_clocks else POLICY
            world = World(seed, loop, scenario.kind, policy=policy, steps=steps)
            for line in scenario.lines():
                world.trace.tell("scenario", line)
            herd = Herd(world, scenario, seed)
            try:
                loop.run_until_complete(_whole(herd))
            except AssertionError as error:
                world.promises.broken.append(str(error))
            for node in herd.nodes:
                loop.run_until_complete(node.crash())
            for client in herd.clients:
                loop.run_until_complete(client.leave())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
    last = f"ops-{len(scenario.commands) - 1}"
    return Result(
        seed=seed,
        broken=tuple(dict.fromkeys([*world.promises.broken, *loop.problems])),
        lines=tuple(world.trace.lines),
        digest=world.trace.digest,
        steps=max((one.process.steps for one in herd.operators if one.name == last), default=0),
        notes=len(world.promises.written),
        requests=world.network.requests,
        simulated=timedelta(seconds=loop.time() - start),
        took=timedelta(seconds=time.perf_counter() - began),
    )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Leave garbage collection to the caller, who makes many runs, because it takes much of the time of one."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


async def _whole(herd: Herd) -> None:
    broken = herd.world.promises.broken
    await herd.live()
    await herd.heal()
    await _carried_on(herd)
    if not await herd.converge():
        broken.append("the nodes did not come to hold the same")
    broken += invariants.at_rest(herd)
    broken += await invariants.new_client(herd)
    broken += await invariants.after_revoking(herd)
    if herd.scenario.is_robbed:
        broken += await steal(herd, SECRET, REFRESH)
    if herd.scenario.is_restored:
        broken += await _restore(herd)
    if herd.scenario.is_rotated_again:
        operator = await herd.command("next", Goal.ROTATE)
        if operator.report is None or operator.report.outcome is not Outcome.ROTATED:
            broken.append(f"the next rotation failed: {operator.ended}")
        if not await herd.converge():
            broken.append("the nodes did not come to hold the same after the next rotation")
        broken += invariants.at_rest(herd)
    if herd.scenario.wrong_clocks:
        await _corrected(herd, broken)
        return
    # His clock is ahead: past the grace period, counted from what an operator with the fastest clock has recorded.
    operator = await herd.command("last", Goal.RETIRE, skew=POLICY.grace + timedelta(seconds=MOST_SKEW + 1))
    if operator.report is None:
        broken.append(f"retiring failed: {operator.ended}")
    broken += invariants.after_retiring(herd)


async def _corrected(herd: Herd, broken: list[str]) -> None:
    """Check that the timestamps of a wrong clock are corrected, and that the grace period then ends."""
    operator = await herd.command("corrector", Goal.RETIRE)
    if operator.report is None:
        broken.append(f"correcting failed: {operator.ended}")
    broken += invariants.no_time_in_the_future(herd)
    await asyncio.sleep((herd.world.policy.grace + timedelta(seconds=MOST_SKEW + 1)).total_seconds())
    operator = await herd.command("last", Goal.RETIRE)
    if operator.report is None:
        broken.append(f"retiring failed: {operator.ended}")
    broken += invariants.after_retiring(herd)


async def _carried_on(herd: Herd) -> None:
    """Resume whatever is in progress."""
    if herd.scenario.is_resumed_first or not herd.world.promises.stolen:
        await herd.command("mender", Goal.RESUME)
    for root_id in tuple(herd.world.promises.stolen):
        await _revoke(herd, root_id)
    if herd.world.promises.stolen and not herd.scenario.is_resumed_first:
        await herd.command("mender", Goal.RESUME)


async def _revoke(herd: Herd, root_id: str) -> None:
    """Act as the operator who runs a revocation again, trusts every server's claims, and destroys the key."""
    urls, pause = [node.url for node in herd.nodes], herd.world.platform.trouble.lag + 0.1
    broken = herd.world.promises.broken
    for number, order in enumerate(
        (
            Order(root_id=root_id),
            Order(root_id=root_id, reopen=True, trust_alone=urls),
            Order(root_id=root_id, destroy=True),
        )
    ):
        operator = await herd.command(f"guard-{number}", Goal.REVOKE, order=order)
        await asyncio.sleep(pause)
        broken += invariants.keys_left(herd, operator)
        if operator.revocation is not None and not operator.revocation.is_complete:
            problems = {node.url: node.problem for node in operator.revocation.nodes}
            broken.append(f"{operator.name}: the revocation of {root_id} is not complete: {problems}")
    if operator.revocation is not None and operator.revocation.keys_left:
        broken.append(f"versions {operator.revocation.keys_left} still hold the key of {root_id}, which was destroyed")


async def _restore(herd: Herd) -> list[str]:
    """Make the previous root sign again; return what went wrong.

    Returns:
        The broken rules: a refusal although the store holds the key of a previous root, or a herd in disorder after it.
    """
    expected = invariants.restorable_root(herd)
    operator = await herd.command("back", Goal.RESTORE)
    document = herd.world.promises.documents[-1][1]
    if expected is None:
        if operator.ended is None or not operator.ended.startswith(NotRestorableError.code):
            return [f"no root can be restored, and the restore ended with: {operator.ended}"]
        return []
    broken = []
    if operator.report is None or operator.report.outcome is not Outcome.RESTORED or document.current.id != expected:
        broken.append(f"the restore of {expected} failed: {operator.ended}")
    if not await herd.converge():
        broken.append("the nodes did not come to hold the same after the restore")
    return [*broken, *invariants.at_rest(herd), *(await invariants.new_client(herd))]
