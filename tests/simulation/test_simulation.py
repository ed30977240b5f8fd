"""The real rotator, settings and servers in a simulated world: many seeds, every step, and the simulation itself.

Each test runs ``python -m tests.simulation`` as a process, as a developer who replays a seed does: there, the hashes
of Python are seeded, and nothing that it changes in this process can be seen by other tests.
"""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from tests.depth import SEEDS, STRIDE
from tests.simulation.child import run_python
from tests.simulation.loop import DeadlockError, Process, VirtualLoop

CHUNK = 100
FEWEST_STEPS = 300
"""Of a rotation on two nodes: if it had fewer, the steps would not be counted right."""


async def simulate(*arguments: str, hashes: str | None = None) -> tuple[int, str]:
    """Return the exit code and what was said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    if hashes is not None:
        environment["PYTHONHASHSEED"] = hashes
    return await run_python("-m", "tests.simulation", *arguments, env=environment)


async def check(*arguments: str, runs: int) -> str:
    """Run many, side by side as far as there are processors; a broken rule fails with the command that replays it."""
    code, said = await simulate(*arguments)
    assert code == 0, said
    counted = re.search(r"^(\d+) runs, 0 with a broken rule", said, re.MULTILINE)
    assert counted, said
    assert int(counted[1]) >= runs, said
    return said


@pytest.mark.slow
async def test_a_handful_of_seeds_break_no_rule() -> None:
    await check("--seeds", "0-7", runs=8)


@pytest.mark.deep
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
async def test_many_seeds_break_no_rule(first: int) -> None:
    share = -(-CHUNK // (os.cpu_count() or 1))
    parts = [(start, min(start + share, first + CHUNK) - 1) for start in range(first, first + CHUNK, share)]
    said = await asyncio.gather(*(check("--seeds", f"{a}-{b}", runs=b - a + 1) for a, b in parts))
    print("".join(said))


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["rotate", "restore"])
@pytest.mark.parametrize("fate", ["killed", "interrupted"])
async def test_an_operator_may_be_stopped_at_some_steps(fate: str, goal: str) -> None:
    await check("--seed", "7", "--goal", goal, "--fate", fate, "--stride", "67", runs=5)


@pytest.mark.deep
@pytest.mark.parametrize(("goal", "stride"), [("rotate", STRIDE), ("restore", 3 * STRIDE)])
async def test_an_operator_may_be_killed_or_interrupted_at_every_step(goal: str, stride: int) -> None:
    given = ("--seed", "7", "--goal", goal, "--stride", str(stride), "--fate")
    fates = ("killed", "interrupted")
    said = await asyncio.gather(*(check(*given, fate, runs=FEWEST_STEPS // stride) for fate in fates))
    print("".join(said))


@pytest.mark.slow
async def test_one_seed_tells_one_story_whatever_pythons_hashes_and_the_signatures() -> None:
    stories = await asyncio.gather(
        simulate("--seed", "11", "--steps", hashes="1"),
        simulate("--seed", "11", "--steps", hashes="2"),
        simulate("--seed", "11", "--steps", "--real-signatures"),
    )
    first, second, real = [said for _, said in stories]
    assert "the story's digest is" in first
    assert first == second
    assert first == real


@pytest.mark.slow
async def test_a_broken_rule_is_told_with_the_command_that_replays_it() -> None:
    code, said = await simulate("--seed", "7", "--fate", "killed", "--at", "200", hashes="0")
    assert code == 0
    assert "ops-0        is killed at step 200" in said
    script = (
        "import sys\n"
        "from tests.simulation import invariants\n"
        "from tests.simulation.command import main\n"
        "invariants.at_rest = lambda herd: ['a rule']\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    code, said = await run_python("-c", script, "--seeds", "3-4", env={**os.environ, "PYTHONHASHSEED": "0"})
    assert code == 1
    assert "BROKEN: a rule\nreplay: python -m tests.simulation --seed 4\n" in said


# --- the loop ---------------------------------------------------------------------------------------------------------


def in_virtual_time(work: object) -> tuple[object, float]:
    loop = VirtualLoop(lambda: 0.25)
    began = loop.time()
    try:
        return loop.run_until_complete(work(loop)), loop.time() - began
    finally:
        loop.close()


def test_time_passes_only_when_every_task_waits() -> None:
    async def work(loop: VirtualLoop) -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.sleep(7200)
        return await asyncio.to_thread(lambda: "from a thread")

    assert in_virtual_time(work) == ("from a thread", 3600.5)


def test_a_deadlock_is_an_error_and_not_a_hang() -> None:
    async def work(loop: VirtualLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        in_virtual_time(work)


def test_a_killed_process_has_no_effect_even_when_it_cleans_up() -> None:
    from tests.simulation.machine import MachineClock, MachineDisk

    async def work(loop: VirtualLoop) -> tuple[list[str], int]:
        told: list[str] = []
        disk = MachineDisk()
        log = disk.open_log("/data/notes")

        async def live() -> None:
            try:
                await MachineClock(loop).sleep(timedelta(hours=1))
            finally:
                log.append_record({"id": "after"})
                told.append("cleans up")
                await asyncio.to_thread(log.flush)
                told.append("has had an effect")

        process = Process(loop, "machine/1")
        task = process.spawn(live(), "live")
        await asyncio.sleep(1)
        await process.kill()
        assert task.cancelled()
        return told, len(log.read_records())

    from datetime import timedelta

    assert in_virtual_time(work)[0] == (["cleans up"], 0)


def test_an_alarm_goes_off_right_after_its_step() -> None:
    async def work(loop: VirtualLoop) -> list[int]:
        seen: list[int] = []

        async def live() -> None:
            for step in range(10):
                seen.append(step)
                await asyncio.sleep(0)

        process = Process(loop, "machine/1")
        task = process.spawn(live(), "live")
        process.at_step(4, task.cancel)
        await asyncio.wait({task})
        assert process.steps >= 4
        return seen

    assert in_virtual_time(work)[0] == [0, 1, 2, 3]
