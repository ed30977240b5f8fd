"""Commands that cannot be killed, such as one that runs as root through sudo."""

from __future__ import annotations

import asyncio
import errno
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.serving import process_group


def make_unkillable(monkeypatch: pytest.MonkeyPatch, patience: timedelta) -> list[asyncio.subprocess.Process]:
    """Let no process group be killed, shorten the wait for the end of a killed one, and return the started processes.

    The list grows with each process that asyncio starts.
    """
    started, begin = list[asyncio.subprocess.Process](), asyncio.create_subprocess_exec

    def refuse(*_: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    async def start(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(await begin(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr(process_group, "PATIENCE", patience)
    return started


def wait_for_file(file: Path) -> str:
    """Return a shell command that ends when a file exists."""
    return f'until [ -e "{file}" ]; do sleep 0.05; done'
