"""CPU time of short commands over that of an interpreter that does nothing, taken in turn in one run."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from goatherd.cli.main import EXIT_FINDINGS

from .data import Data
from .rows import Row
from .scale import Scale


async def run(scale: Scale, data: Data) -> list[Row]:
    """Measure `goatherd --help`, and `goatherd status` on a file store."""
    program = str(Path(sys.executable).with_name("goatherd"))
    with tempfile.TemporaryDirectory() as directory:
        store = await data.create_store(Path(directory))
        commands = {
            "bare": [sys.executable, "-c", "pass"],
            "help": [program, "--help"],
            "status": [program, "status", "--provider", store],
        }
        return await asyncio.to_thread(_measure, commands, scale.times(5))


def _measure(commands: dict[str, list[str]], rounds: int) -> list[Row]:
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            taken = cpu_seconds(command)
            if turn:  # the first round compiles
                times[name].append(taken * 1000)
    bare = times.pop("bare")
    limit = "python -c pass"
    return [
        Row(name=f"command/{name}", unit="ms CPU", size=1, samples=found, bare=bare, limit=limit)
        for name, found in times.items()
    ]


def cpu_seconds(command: Sequence[str]) -> float:
    """Return the CPU time, user and system, that a command takes with all that it starts."""
    # Without compiled modules each run would measure the compiler.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environ, check=False, stdout=subprocess.DEVNULL)
    if done.returncode not in (0, EXIT_FINDINGS):  # a status without servers is a finding
        raise subprocess.CalledProcessError(done.returncode, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
