"""A command of the operator: its outcome, what is killed when its time is up, and one that cannot be killed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.serving.process_group import run_shell_command
from tests.deadlines import HANG
from tests.unit.serving.unkillable import make_unkillable, wait_for_file

SOON = timedelta(milliseconds=50)


async def test_a_command_that_must_not_be_killed_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = make_unkillable(monkeypatch, SOON)
    may_end = tmp_path / "may end"
    try:
        async with asyncio.timeout(HANG):
            answer = await run_shell_command(wait_for_file(may_end), SOON.total_seconds(), b"{}\n")
        assert answer is not None
        assert "did not end within" in answer
        assert started[0].returncode is None
    finally:
        may_end.touch()
        await started[0].wait()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("true", None),
        ("exit 0 # --token s3cr3t", None),
        ("false", "ended with 1"),
        ("sh -c 'echo s3cr3t; echo s3cr3t >&2; exit 7'", "ended with 7"),
        ("kill -9 $$", "ended with -9"),
        ("/nowhere/check --token s3cr3t", "ended with 127"),
        ("TOKEN=s3cr3t false", "ended with 1"),
    ],
)
async def test_a_command_succeeds_that_ends_with_0_and_nothing_of_it_is_shown(
    command: str, said: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await run_shell_command(command, HANG)
    assert answer == said
    assert "s3cr3t" not in (answer or "")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
async def test_a_command_that_does_not_end_in_time_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    # On a slow machine the shell may not have begun when its time is up.
    for seconds in (1, 4, 16, 64):
        command = f"sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; wait"
        assert await run_shell_command(command, seconds) == f"did not end within {seconds} s"
        if pid.exists():
            break
    await is_gone(int(pid.read_text()))


async def test_a_command_whose_run_is_cancelled_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    asking = asyncio.create_task(run_shell_command(f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600", HANG))
    while not pid.exists():
        await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    await is_gone(int(pid.read_text()))


async def is_gone(pid: int) -> None:
    async with asyncio.timeout(60):
        # A killed process whose parent has gone may stay as a zombie until another process reaps it.
        while Path(f"/proc/{pid}/stat").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.01)
