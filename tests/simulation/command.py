"""What ``python -m tests.simulation`` does: replay one seed as a story, or go through many.

Rules: the same command gives the same story on every machine. Python's own hashes are seeded too, since code may go
through a set of texts; so the command starts itself again with a fixed seed for them where there is none.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from tests.simulation.people import Goal
from tests.simulation.run import Result, run
from tests.simulation.scenario import Fate, Scenario

MODULE: Final = "tests.simulation"
_FIXED: Final = "0"
_COLLECT_EVERY: Final = 25
_MORE_STEPS: Final = 10
"""Steps beyond the last one, in which nothing may be hit any more."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One run, and the command that replays it."""

    seed: int
    replay: str
    scenario: Scenario | None = None


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code: 0 where no rule was broken, 1 where one was, 2 for a wrong call."""
    if os.environ.get("PYTHONHASHSEED") != _FIXED:
        os.environ["PYTHONHASHSEED"] = _FIXED
        os.execv(sys.executable, [sys.executable, "-m", MODULE, *arguments])
    options = _parser().parse_args(arguments)
    logging.disable(logging.CRITICAL)
    if options.seed is not None and options.fate is None:
        return _tell(_Job(options.seed, _replay(options.seed, options)), options)
    return _sweep(_jobs(options), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__.partition("\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="replay this seed and tell what happens")
    which.add_argument("--seeds", type=_range, metavar="FROM-TO", help="go through these seeds; tell the bad ones")
    parser.add_argument("--steps", action="store_true", help="tell every single call too")
    parser.add_argument("--real-signatures", action="store_true", help="sign with P-384 instead of a stand-in: slow")
    parser.add_argument(
        "--fate",
        choices=[str(fate) for fate in Fate],
        help="with --seed: nothing goes wrong but this, which befalls the operator at one of his steps",
    )
    parser.add_argument(
        "--at", type=_range, metavar="STEP[-STEP]", help="with --fate: at which of his steps; by default at every one"
    )
    parser.add_argument(
        "--goal",
        type=Goal,
        choices=[Goal.ROTATE, Goal.RESTORE],
        default=Goal.ROTATE,
        help="with --fate: the command of this operator (default: rotate)",
    )
    parser.add_argument("--stride", type=int, default=1, help="with --fate: only at every n-th of these steps")
    return parser


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def calm(goal: Goal, *, fate: Fate | None = None, step: int = 0) -> Scenario:
    """Return a scenario of two nodes whose only fault is one at a step of an operator's command.

    Args:
        goal: What the operator does. A restore begins after a rotation that nothing befalls.
        fate: How the command ends.
        step: The step at which the command ends so.
    """
    scenario = Scenario(nodes=2, clients=1, is_rotated_again=False)
    (rotate,) = scenario.commands
    if goal is Goal.ROTATE:
        return replace(scenario, commands=(replace(rotate, fate=fate, step=step),))
    return replace(scenario, commands=(rotate, replace(rotate, goal=goal, after=0, fate=fate, step=step)))


def _jobs(options: argparse.Namespace) -> Iterator[_Job]:
    if options.fate is None:
        for seed in options.seeds:
            yield _Job(seed, _replay(seed, options))
        return
    if options.seed is None:
        raise SystemExit("--fate goes with --seed")
    steps = options.at
    if steps is None:
        whole = run(options.seed, calm(options.goal), real=options.real_signatures)
        steps = range(1, whole.steps + _MORE_STEPS)
    for step in steps[:: options.stride]:
        replay = f"{_replay(options.seed, options)} --goal {options.goal} --fate {options.fate} --at {step}"
        yield _Job(options.seed, replay, calm(options.goal, fate=Fate(options.fate), step=step))


def _replay(seed: int, options: argparse.Namespace) -> str:
    return f"python -m {MODULE} --seed {seed}{' --real-signatures' if options.real_signatures else ''}"


def _sweep(jobs: Iterator[_Job], options: argparse.Namespace) -> int:
    """Run all jobs; print those in which a rule was broken, and a single job completely."""
    began, done, bad, notes, simulated = time.perf_counter(), 0, 0, 0, timedelta()
    single = options.at is not None and len(options.at) == 1
    for job in jobs:
        if single:
            return _tell(job, options)
        result = run(job.seed, job.scenario, real=options.real_signatures)
        done += 1
        notes += result.notes
        simulated += result.simulated
        if result.broken:
            bad += 1
            _complain(job, result)
        if done % _COLLECT_EVERY == 0:
            gc.collect()
    took = time.perf_counter() - began
    _say(
        f"{done} runs, {bad} with a broken rule; {notes} acknowledged notes looked for,"
        f" {simulated / timedelta(hours=1):.1f} hours simulated in {took:.1f} s,"
        f" {1000 * took / max(1, done):.0f} ms each"
    )
    return 1 if bad else 0


def _tell(job: _Job, options: argparse.Namespace) -> int:
    result = run(job.seed, job.scenario, steps=options.steps, real=options.real_signatures)
    _say("\n".join(result.lines))
    _complain(job, result)
    _say(
        f"{result.steps} steps of the operator, {result.requests} requests, {result.notes} acknowledged notes,"
        f" {result.simulated.total_seconds():.1f} s simulated; the story's digest is {result.digest}"
    )
    return 1 if result.broken else 0


def _complain(job: _Job, result: Result) -> None:
    for rule in result.broken:
        _say(f"BROKEN: {rule}")
    if result.broken:
        _say(f"replay: {job.replay}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
