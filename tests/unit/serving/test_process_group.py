"""A command of the operator that cannot be killed, because it runs as root, delays nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.rotation.health_checks import HealthCommand
from goatherd.serving.process_group import run_shell_command
from tests.deadlines import HANG
from tests.unit.serving.unkillable import make_unkillable, wait_for_file

SOON = timedelta(milliseconds=50)


async def check_health(command: str) -> str | None:
    return await HealthCommand(command, timeout=SOON).ask()


async def raise_alert(command: str) -> str | None:
    return await run_shell_command(command, SOON.total_seconds(), b"{}\n")


@pytest.mark.parametrize("run", [check_health, raise_alert])
async def test_a_command_that_must_not_be_killed_holds_nothing_up(
    run: Callable[[str], Awaitable[str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = make_unkillable(monkeypatch, SOON)
    may_end = tmp_path / "may end"
    try:
        async with asyncio.timeout(HANG):
            answer = await run(wait_for_file(may_end))
        assert answer is not None
        assert "did not end within" in answer
        assert started[0].returncode is None
    finally:
        may_end.touch()
        await started[0].wait()
