"""CPU time of short commands over that of an interpreter that does nothing, taken in turn in one run."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 15


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU time, user and system, that a command takes with all that it starts."""
    # Without compiled modules each run would measure the compiler.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run() -> dict[str, float]:
    """Return the medians of `goatherd --help` and of `goatherd status` on a file store over a bare interpreter."""
    program = str(Path(sys.executable).with_name("goatherd"))
    with tempfile.TemporaryDirectory() as directory:
        store = ["--provider", f"file://{directory}/keys/root"]
        subprocess.run([program, "init", *store], check=True, stdout=subprocess.DEVNULL)
        commands = {
            "bare": [sys.executable, "-c", "pass"],
            "help": [program, "--help"],
            "status": [program, "status", *store],
        }
        seen: dict[str, list[float]] = {name: [] for name in commands}
        for at in range(ROUNDS + 1):
            for name, command in commands.items():
                taken = cpu_seconds(command)
                if at:  # the first round compiles
                    seen[name].append(taken)
    median = {name: statistics.median(found) for name, found in seen.items()}
    return {
        "bare_interpreter_ms": 1000 * median["bare"],
        "help_over_bare_interpreter": median["help"] / median["bare"],
        "status_over_bare_interpreter": median["status"] / median["bare"],
    }
