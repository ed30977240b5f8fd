"""Run a command that an operator has configured, and kill it with the processes that it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from datetime import timedelta
from typing import Final

PATIENCE: Final = timedelta(seconds=10)
SHELL: Final = "/bin/sh"


async def run_shell_command(command: str, timeout_seconds: float, given: bytes | None = None) -> str | None:
    """Run a command line with ``/bin/sh -c`` in a process group of its own, and discard its output.

    If the command exceeds its timeout, the whole process group is killed.

    Args:
        command: The command line.
        timeout_seconds: Timeout of the command.
        given: Its standard input, which the command need not read; None for none.

    Returns:
        Why the command failed, as a phrase that follows its name; None if it ended with exit code 0.
    """
    nothing = asyncio.subprocess.DEVNULL
    stdin = nothing if given is None else asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            SHELL, "-c", command, stdin=stdin, stdout=nothing, stderr=nothing, start_new_session=True
        )
    except OSError as error:
        return f"cannot be started: {error.strerror}"
    try:
        async with asyncio.timeout(timeout_seconds):
            await process.communicate(given)
    except TimeoutError:
        return f"did not end within {timeout_seconds:g} s"
    finally:
        await kill_group(process)
    return None if process.returncode == 0 else f"ended with {process.returncode}"


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
