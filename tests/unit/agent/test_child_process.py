"""`ChildProcess` with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.agent.child_process import Supervisor, end_leftover, exit_code, find_command
from goatherd.agent.data_directory_lock import (
    RECORD_NAME,
    AgentState,
    DataDirectoryLock,
    Process,
    find_members,
    has_members,
    may_signal,
)
from goatherd.clock import SystemClock
from goatherd.errors import AgentError, ConfigurationError
from tests.deadlines import HANG

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
SOON = timedelta(milliseconds=200)
OTHER = 65_534
"""ID of a user who owns no process."""
LATE = timedelta(seconds=2 * HANG)


def python(script: str) -> list[str]:
    return [sys.executable, "-S", "-c", textwrap.dedent(script)]


def supervisor(command: list[str], grace: timedelta = LATE, **environ: str) -> Supervisor:
    return Supervisor(command, environ={**os.environ, **environ}, grace=grace)


async def exists(path: Path) -> None:
    async with asyncio.timeout(60):
        while not path.exists():
            await asyncio.sleep(0.02)


async def gone(pid: int) -> None:
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("code", [0, 1, 77])
async def test_the_exit_code_is_the_childs_own(code: int) -> None:
    one = supervisor(["sh", "-c", f"exit {code}"])
    await one.start()
    assert await one.wait() == code
    assert not one.is_running
    assert await one.stop() == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
async def test_a_signal_that_ends_it_is_128_and_its_number(number: int) -> None:
    one = supervisor(["sh", "-c", f"kill -{int(number)} $$"])
    await one.start()
    assert await one.wait() == 128 + number == exit_code(-number)


@pytest.mark.slow
async def test_environment_directory_input_and_output_are_the_agents_own(tmp_path: Path) -> None:
    """Checked from a process that runs the supervisor, because pytest replaces the descriptors of its own process."""
    script = """
        import asyncio, os
        from goatherd.agent.child_process import Supervisor
        async def main():
            one = Supervisor(["sh", "-c", "read line; echo out $line $MINE $PWD; echo err >&2"],
                             environ={**os.environ, "MINE": "yes"})
            await one.start()
            return await one.wait()
        raise SystemExit(asyncio.run(main()))
    """
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(script)],
        input=b"hello\n",
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"out hello yes {tmp_path}\n".encode(), b"err\n")


async def test_the_process_list_shows_the_command_and_nothing_else(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = ["sh", "-c", f"touch {ready}; exec sleep 60"]
    one = supervisor(command)
    await one.start()
    await exists(ready)
    assert one.pid is not None
    async with asyncio.timeout(60):
        while Path(f"/proc/{one.pid}/cmdline").read_bytes() != b"sleep\x0060\x00":
            await asyncio.sleep(0.02)
    assert await one.stop() == 143


async def test_a_broken_pipe_ends_the_child_as_it_would_without_an_agent(tmp_path: Path) -> None:
    one = supervisor(["sh", "-c", f"grep SigIgn /proc/self/status > {tmp_path / 'ignored'}"])
    await one.start()
    assert await one.wait() == 0
    ignored = int((tmp_path / "ignored").read_text().split()[1], 16)
    assert not ignored & 1 << signal.SIGPIPE - 1


async def test_a_child_that_listens_is_asked_and_not_killed(tmp_path: Path) -> None:
    ready, said = tmp_path / "ready", tmp_path / "said"
    one = supervisor(
        ["sh", "-c", f"trap 'echo bye > {said}; exit 5' TERM; touch {ready}; while :; do sleep 0.05; done"]
    )
    await one.start()
    await exists(ready)
    assert await one.stop() == 5
    assert said.read_text() == "bye\n"
    assert not one.was_killed


@pytest.mark.slow
async def test_a_child_that_ignores_signals_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    one = supervisor(["sh", "-c", f"trap '' TERM INT HUP; touch {ready}; while :; do sleep 0.05; done"], grace=SOON)
    await one.start()
    await exists(ready)
    assert await one.stop() == 137
    assert one.was_killed


@pytest.mark.slow
async def test_nothing_that_the_child_has_started_is_left(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    one = supervisor(["sh", "-c", f"sleep 600 & echo $! > {file}.new; mv {file}.new {file}; wait"])
    await one.start()
    await exists(file)
    assert await one.stop() == 143
    await gone(int(file.read_text()))


def behind_script(directory: Path, at_signal: str, end: str) -> list[str]:
    """Return a script that ends at a signal, or does `end`, while its server does `at_signal`."""
    server = f"trap '{at_signal}' TERM; touch {directory}/server; while :; do sleep 0.02; done"
    started = f"until [ -e {directory}/server ]; do sleep 0.02; done"
    return ["sh", "-c", f'sh -c "$1" & {started}; {end}', "sh", server]


@pytest.mark.slow
async def test_a_server_behind_a_script_has_the_time_that_it_needs_to_stop(tmp_path: Path) -> None:
    asked, may_end, said = tmp_path / "asked", tmp_path / "may end", tmp_path / "said"
    flush = f'touch "{asked}"; until [ -e "{may_end}" ]; do sleep 0.02; done; echo bye > "{said}"; exit'
    one = supervisor(behind_script(tmp_path, flush, "wait"))
    await one.start()
    await exists(tmp_path / "server")
    script = one.pid
    assert script is not None
    stopping, seen = asyncio.create_task(one.stop()), asyncio.create_task(exists(asked))
    await asyncio.wait({stopping, seen}, return_when=asyncio.FIRST_COMPLETED)
    await gone(script)
    assert not stopping.done()
    may_end.touch()
    assert await stopping == 143
    assert said.read_text() == "bye\n"
    assert not one.was_killed
    assert not one.was_cut_off, "it has handled the signal"
    await seen


async def test_a_server_behind_a_script_that_passes_the_signal_on_gets_it_once(tmp_path: Path) -> None:
    ready, passed_on, may_end, said = (tmp_path / name for name in ("ready", "passed on", "may end", "said"))
    flush = (
        f'echo asked >> "{said}"; trap "echo again; exit 1" TERM; until [ -e "{may_end}" ]; do sleep 0.02; done; exit'
    )
    (tmp_path / "server.sh").write_text(f"""trap '{flush}' TERM; touch "{ready}"; while :; do sleep 0.02; done\n""")
    script = f"""trap 'kill -TERM $!; touch "{passed_on}"' TERM; sh "{tmp_path}/server.sh" >> "{said}" & wait; wait"""
    one = supervisor(["sh", "-c", script])
    await one.start()
    await exists(ready)
    stopping = asyncio.create_task(one.stop())
    await exists(passed_on)
    while not said.read_text():
        await asyncio.sleep(0.02)
    may_end.touch()
    await stopping
    assert said.read_text() == "asked\n"
    assert not one.was_killed


@pytest.mark.slow
async def test_a_server_behind_a_script_that_waits_for_it_is_asked_to_stop_before_it_is_killed(tmp_path: Path) -> None:
    """At Ctrl-C, a shell ends only after its command."""
    ready, said = tmp_path / "ready", tmp_path / "said"
    server = f"trap 'echo bye > \"{said}\"; exit 7' TERM; touch {ready}; while :; do sleep 0.02; done"
    one = supervisor(["sh", "-c", 'sh -c "$1"; exit $?', "sh", server], grace=SOON)
    await one.start()
    await exists(ready)
    code = await one.stop(signal.SIGINT)
    assert said.read_text() == "bye\n"
    assert not one.was_killed
    assert code in (7, 128 + signal.SIGINT)


@pytest.mark.slow
async def test_a_server_that_gets_the_signal_a_second_time_counts_as_killed(tmp_path: Path) -> None:
    """The script has passed the first signal on; many servers abort their requests at the second one."""
    ready = tmp_path / "ready"
    server = f'trap "trap \'exit 1\' TERM" TERM; touch "{ready}"; while :; do sleep 0.02; done'
    script = 'sh -c "$1" & trap "kill -TERM $!" TERM; while kill -0 $! 2>/dev/null; do wait $!; done'
    one = supervisor(["sh", "-c", script, "sh", server], grace=SOON)
    await one.start()
    await exists(ready)
    await one.stop()
    assert one.was_killed


@pytest.mark.slow
async def test_a_server_behind_a_script_that_ends_by_itself_is_asked_to_stop(tmp_path: Path) -> None:
    said = tmp_path / "said"
    one = supervisor(behind_script(tmp_path, f"echo bye > {said}; exit", "exit 3"))
    await one.start()
    assert await one.wait() == 3
    assert said.read_text() == "bye\n"
    assert not one.was_killed


async def test_a_child_that_has_stopped_as_asked_was_not_killed_although_its_helper_was(
    tmp_path: Path,
) -> None:
    helper = f"trap '' TERM; touch {tmp_path}/server; while :; do sleep 0.02; done"
    script = f"""sh -c "$1" & trap 'exit 0' TERM; touch {tmp_path}/ready; while :; do sleep 0.02; done"""
    one = supervisor(["sh", "-c", script, "sh", helper], grace=SOON)
    await one.start()
    await exists(tmp_path / "ready")
    await exists(tmp_path / "server")
    code = await one.stop()
    assert (code, one.was_killed, one.has_stopped(0)) == (0, False, True)


@pytest.mark.parametrize("end", ["wait", "exit 3"], ids=["asked", "by itself"])
@pytest.mark.slow
async def test_a_server_behind_a_script_that_ignores_signals_is_killed(tmp_path: Path, end: str) -> None:
    one = supervisor(behind_script(tmp_path, "", end), grace=SOON)
    await one.start()
    script = one.pid
    assert script is not None
    await exists(tmp_path / "server")
    assert await (one.wait() if "exit" in end else one.stop()) in (3, 143)
    assert one.was_killed
    assert not has_members(script, os.getsid(0))


@pytest.mark.slow
async def test_a_child_in_a_hurry_is_killed_no_later_than_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.agent.child_process.LEFT_BEHIND", LATE)
    monkeypatch.setattr("goatherd.agent.child_process._signal_descendants", lambda _: False)
    ready = tmp_path / "ready"
    one = supervisor(["sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.05; done"], grace=SOON)
    await one.start()
    await exists(ready)
    one.hurry()
    async with asyncio.timeout(HANG):
        assert await one.stop() == 137


@pytest.mark.slow
async def test_a_signal_is_passed_on_once_and_stop_does_not_send_it_again(tmp_path: Path) -> None:
    ready, said = tmp_path / "ready", tmp_path / "said"
    script = f"trap 'echo got >> {said}' TERM; touch {ready}; until [ -e {said} ]; do sleep 0.05; done"
    script += "; for i in 1 2 3 4 5 6; do sleep 0.1; done; exit 9"
    one = supervisor(["sh", "-c", script])
    await one.start()
    await exists(ready)
    one.ask_to_stop(signal.SIGTERM)
    assert await one.stop(signal.SIGTERM) == 9
    assert said.read_text() == "got\n"


async def test_a_cancelled_start_leaves_no_unsupervised_child() -> None:
    one = supervisor(["sleep", "600"])
    starting = asyncio.create_task(one.start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await one.stop() == 143


@pytest.mark.parametrize("turns", range(4), ids="after {} turns of the event loop".format)
async def test_a_request_to_stop_reaches_a_child_that_is_being_started(turns: int) -> None:
    one = supervisor(["sleep", "600"])
    starting = asyncio.create_task(one.start())
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    one.ask_to_stop(signal.SIGTERM)
    await starting
    async with asyncio.timeout(HANG):
        assert await one.stop(signal.SIGTERM) == 143
    assert one.has_stopped(143)


async def test_a_second_child_beside_the_first_is_a_bug() -> None:
    one = supervisor(["sleep", "600"])
    await one.start()
    with pytest.raises(RuntimeError):
        await one.start()
    assert await one.stop() == 143
    await one.start()
    assert await one.stop() == 143


def test_a_command_that_does_not_exist_is_told_before_anything_starts(tmp_path: Path) -> None:
    for command in ([], ["no-such-command-anywhere"], [str(tmp_path)]):
        with pytest.raises(ConfigurationError):
            find_command(command)


async def test_a_program_that_cannot_run_ends_with_126(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    one = supervisor([str(program)])
    await one.start()
    assert await one.wait() == 126


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
@pytest.mark.slow
async def test_if_the_agent_is_killed_the_child_is_asked_to_stop(tmp_path: Path) -> None:
    file, said = tmp_path / "pid", tmp_path / "said"
    told = f"trap 'echo bye > {said}; exit 0' TERM; echo $$ > {file}.new; mv {file}.new {file}"
    child = f"{told}; while :; do sleep 0.05; done"
    script = f"""
        import asyncio, os
        from goatherd.agent.child_process import Supervisor
        async def main():
            one = Supervisor(["sh", "-c", {child!r}], environ=dict(os.environ))
            await one.start()
            await one.wait()
        asyncio.run(main())
    """
    agent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])  # noqa: ASYNC220
    await exists(file)
    agent.kill()
    await asyncio.to_thread(agent.wait, 60)
    await exists(said)
    await gone(int(file.read_text()))


# --- what an agent that was killed has left -------------------------------------------------------------------------


async def left_over(tmp_path: Path, trap: str) -> tuple[subprocess.Popen[bytes], Process]:
    ready = tmp_path / "ready"
    command = ["sh", "-c", f"{trap}; touch {ready}; while :; do sleep 0.05; done"]
    process = subprocess.Popen(command, process_group=0)  # noqa: ASYNC220
    await exists(ready)
    known = Process.find_process(process.pid)
    assert known is not None
    return process, known


@pytest.mark.slow
@pytest.mark.parametrize("trap", ["true", "trap '' TERM"], ids=["listens", "ignores signals"])
async def test_a_child_that_was_left_over_is_stopped_permanently(tmp_path: Path, trap: str) -> None:
    process, known = await left_over(tmp_path, trap)
    reaped = asyncio.create_task(asyncio.to_thread(process.wait, 60))
    assert await end_leftover(known, SOON, SystemClock())
    assert await reaped in (-signal.SIGTERM, -signal.SIGKILL)
    assert not await end_leftover(known, SOON, SystemClock())


async def test_another_process_with_the_number_of_the_child_that_was_left_over_is_let_alone(tmp_path: Path) -> None:
    process, known = await left_over(tmp_path, "true")
    boot, ticks = known.started.split()
    # A state file may name a server that its agent has stopped: `DataDirectoryLock.save` never clears it.
    for started in ("another boot 1", f"{boot} {int(ticks) - 1}"):
        assert not await end_leftover(replace(known, started=started), SOON, SystemClock())
    assert process.poll() is None
    process.kill()
    process.wait(60)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.slow
async def test_an_agent_of_root_stops_only_what_the_owner_of_the_state_file_may_signal(tmp_path: Path) -> None:
    ours, own = await left_over(tmp_path, "(sleep 600) & true")
    other = subprocess.Popen(["sleep", "600"], process_group=0, user=OTHER)  # noqa: ASYNC220
    theirs = Process.find_process(other.pid)
    assert theirs is not None
    (tmp_path / RECORD_NAME).write_bytes(AgentState(child=own).to_bytes())
    os.chown(tmp_path / RECORD_NAME, OTHER, -1)
    with DataDirectoryLock(tmp_path) as lock:
        named = lock.before.child
    assert named == own
    assert named is not None
    assert not await end_leftover(named, SOON, SystemClock())
    ours.kill()
    ours.wait(60)
    assert not await end_leftover(named, SOON, SystemClock())
    assert own.has_group()
    os.killpg(own.pid, signal.SIGKILL)
    reaped = asyncio.create_task(asyncio.to_thread(other.wait, 60))
    assert await end_leftover(replace(theirs, named_by=OTHER), SOON, SystemClock())
    assert await reaped == -signal.SIGTERM


@pytest.mark.slow
async def test_a_process_whose_name_is_not_utf_8_is_found_and_stopped(tmp_path: Path) -> None:
    process, known = await left_over(tmp_path, "printf '\\377' > /proc/$$/comm")
    assert known.is_running()
    assert process.pid in find_members(process.pid, os.getsid(0))
    assert may_signal(os.getuid(), process.pid)
    assert not may_signal(OTHER, process.pid)
    reaped = asyncio.create_task(asyncio.to_thread(process.wait, 60))
    assert await end_leftover(replace(known, named_by=os.getuid()), SOON, SystemClock())
    assert await reaped == -signal.SIGTERM


@pytest.mark.slow
async def test_a_server_that_its_script_has_left_over_is_stopped(tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = subprocess.Popen(  # noqa: ASYNC220
        behind_script(tmp_path, f"echo bye > {said}; exit", "wait"), process_group=0
    )
    await exists(tmp_path / "server")
    known = Process.find_process(script.pid)
    assert known is not None
    script.kill()
    script.wait(60)
    for other in (
        replace(known, started="another boot 1"),
        replace(known, session=os.getsid(0) + 1),
        replace(known, session=None),
    ):
        assert not await end_leftover(other, SOON, SystemClock()), "a later group with the same number"
    assert await end_leftover(known, LATE, SystemClock())
    assert said.read_text() == "bye\n"
    assert not await end_leftover(known, SOON, SystemClock())


@pytest.mark.slow
async def test_one_that_cannot_be_stopped_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goatherd.agent.child_process.KILL_PATIENCE", SOON)
    monkeypatch.setattr(Process, "has_group", lambda _: True)
    monkeypatch.setattr("goatherd.agent.child_process.os", FakeOS())
    with pytest.raises(AgentError, match="cannot be stopped"):
        await end_leftover(Process(pid=4_000_000, started="x"), SOON, SystemClock())


class FakeOS:
    def kill(self, pid: int, number: int) -> None:
        pass

    def killpg(self, pid: int, number: int) -> None:
        pass
