"""A test process that is killed leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deadlines import HANG

KILLED = """
import subprocess, sys, time
from tests.leftover_processes import watch_this_process
watch_this_process()
shell = "trap '' TERM; sleep 1000 & echo $!; echo $$; exec >/dev/null; wait"
subprocess.Popen(["sh", "-c", shell], start_new_session=True)
time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open (Linux)")
def test_what_a_killed_test_process_has_started_ends_soon() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = [Path(f"/proc/{process.stdout.readline().strip()}") for _ in range(2)]
        assert all(one.exists() for one in started)
        process.send_signal(signal.SIGKILL)
        process.wait(HANG)
        until = time.monotonic() + HANG
        while any(_runs(one) for one in started) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(_runs(one) for one in started)


def _runs(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
