"""End the processes that tests have started, if the test process is killed before it can end them (Linux).

Each process inherits an environment variable that names its test process. A watcher, in a session of its own, waits
until the test process has ended, and then ends the processes with this variable. Processes that tests start with an
environment of their own are not found.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

VARIABLE: Final = "STARTED_BY_TEST"
GRACE: Final = 5
"""Seconds between SIGTERM and SIGKILL."""


def watch_this_process() -> None:
    """Start a watcher, which ends all processes that this process starts from now on, once this process has ended."""
    if not hasattr(os, "pidfd_open") or not Path("/proc/self/environ").exists():
        return
    others = {name: value for name, value in os.environ.items() if name != VARIABLE}
    name = os.environ[VARIABLE] = f"{os.getpid()}-{time.monotonic_ns()}"
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), name],
        others,
        file_actions=[(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)],
        setsid=True,
    )


def _end_leftovers(name: str, number: signal.Signals) -> bool:
    """Send a signal to the processes whose environment names the test process; return whether there is one."""
    entry, is_left = f"{VARIABLE}={name}".encode(), False
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError), _open_process(int(place.name)) as process:
            if entry in (place / "environ").read_bytes().split(b"\0"):
                is_left = True
                signal.pidfd_send_signal(process, number)
    return is_left


@contextlib.contextmanager
def _open_process(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _watch(pid: int, name: str) -> None:
    with contextlib.suppress(ProcessLookupError), _open_process(pid) as process:
        # If the test process has ended already, the id may be another's, which is not this process's parent.
        if os.getppid() == pid:
            select.select([process], [], [])
    until = time.monotonic() + GRACE
    while _end_leftovers(name, signal.SIGTERM if time.monotonic() < until else signal.SIGKILL):
        time.sleep(0.2)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
