"""Processes that race for each version of a secret: a test writes a line to each, and reads a line from each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def start_racer(*command: str) -> subprocess.Popen[str]:
    """Start Python with these arguments, in the directory of the repository, with pipes to the process."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *command], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=_ROOT)


def read_line(process: subprocess.Popen[str]) -> str:
    """Wait for the next line of a process, and return it."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write_line(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to a process."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
