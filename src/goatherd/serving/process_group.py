"""Kill a command that an operator has configured, with the processes that it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from datetime import timedelta
from typing import Final

PATIENCE: Final = timedelta(seconds=10)


async def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kill the process group that a process leads, unless the process has ended, and wait for the end of the process.

    What runs as root (``sudo``) cannot be killed by another user, so this waits no longer than `PATIENCE`.
    """
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    ending = asyncio.create_task(process.wait())
    try:
        await asyncio.wait({ending}, timeout=PATIENCE.total_seconds())
    finally:
        ending.cancel()
