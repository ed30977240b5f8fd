"""Run a command of the simulation in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PATIENCE = 1800.0


async def run_python(*arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run Python with these arguments in the directory of the repository; return the exit code and all output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
        cwd=_ROOT,
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()
