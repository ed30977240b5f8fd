"""What an agent does when the identity changes: alone, with a lease, and beside a server that another program runs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.agent import data_directory_lock, settings_file
from goatherd.agent.agent import AGAIN_AFTER, run_command
from goatherd.agent.organization import ManagedOrganization
from goatherd.agent.restart_lease import Lease, lease_id_for
from goatherd.agent.restart_rules import OnChange
from goatherd.agent.settings_file import SettingsFile, Stamp
from goatherd.clock import SystemClock
from goatherd.errors import AgentError, SettingsError
from goatherd.identity.document import Revocation
from goatherd.identity.settings_json import to_settings
from tests.deadlines import HANG
from tests.unit.identity.make import NOW, activated, first, owned, published
from tests.unit.serving.unkillable import make_unkillable, wait_for_file
from tests.unit.settings.make import CountingProvider

from .world import SECOND, SOON, A, B, LiveClient, World, left, quick

PATIENCE = timedelta(seconds=HANG)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")]

# --- a change -------------------------------------------------------------------------------------------------------


async def test_a_new_signer_restarts_the_child_and_it_is_asked_again(world: World) -> None:
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(published())
        await asyncio.sleep(0.3)
        assert world.starts == [A.id], "trust alone needs no restart"
        world.settings.change(activated())
        await world.seen(A.id, B.id)
        await world.until(lambda: world.asked > 1)


async def test_a_new_root_is_not_refused_because_the_program_cannot_be_started_at_once(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    start, failures = world.supervisor.start, [AgentError("cannot start: no process left")]

    async def start_later() -> None:
        if world.starts and failures:
            raise failures.pop()
        await start()

    monkeypatch.setattr(world.supervisor, "start", start_later)
    async with world.running():
        await world.until(lambda: world.asked > 0)
        world.settings.change(activated())
        await world.seen(A.id, B.id)
    assert "no process left" in told.text
    assert "agent.stepped_back" not in told.text


@pytest.mark.parametrize("order", ["exits 3", "hangs"])
async def test_a_child_that_does_not_come_up_with_the_new_root_gets_the_one_before(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    quick(monkeypatch)
    world.order(b=order)
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(activated())
        if order == "hangs":
            await world.until(lambda: world.client.hung > 0)
            world.clock.passed += world.rules.ready_timeout.total_seconds()
        await world.until(lambda: len(world.starts) == 3)
        await world.until(lambda: world.asked > 1)
        assert world.starts[0] == world.starts[2] == A.id
        assert world.supervisor.is_running
        settings = json.loads(world.file.link.read_text())
        assert {root["id"] for root in settings["roots"]} == {A.id, B.id}
        await asyncio.sleep(0.5)
        assert len(world.starts) == 3, "B is not tried again for the same document"
    assert "agent.stepped_back" in told.text


async def test_a_server_is_not_restarted_while_it_would_cut_off_good_records_of_a_log(
    world: World, told: pytest.LogCaptureFixture
) -> None:
    """After a write that a full disk cut short, GoatDB appends to what is left of it."""
    log = world.data / "localhost" / "data" / "notes.jsonl"
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        log.parent.mkdir()
        log.write_bytes(b'\n{"id":"c1"}\n\n{"id":"c\n{"id":"c3"}\n')
        world.settings.change(activated())
        await world.until(lambda: "agent.change_refused" in told.text)
        assert "notes.jsonl: the line at byte 14 is not JSON, and 1 good records follow it" in told.text
        assert world.agent is not None
        assert world.agent.describe()["problem"] == "node.storage"
        assert world.starts == [A.id]
        log.write_bytes(b'\n{"id":"c1"}\n\n{"id":"c3"}\n')
        world.clock.passed += AGAIN_AFTER.total_seconds()
        await world.seen(A.id, B.id)


async def test_there_is_no_way_back_to_a_root_that_is_revoked(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    world.order(b="exits 3")
    world.rules = replace(world.rules, crashes=2)
    revoked = replace(activated(), revoked=(Revocation(id=A.id, at=NOW, reason="stolen"),))
    async with world.running() as task:
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(revoked)
        assert await task == 3
    assert A.id not in world.starts[1:]


async def test_a_change_that_a_server_cannot_be_started_with_leaves_it_running(
    world: World, told: pytest.LogCaptureFixture
) -> None:
    short = owned("b", days=14)
    document = replace(activated(), current=short, roots=(A.session, short.session))
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(document)
        await world.until(lambda: "agent.change_refused" in told.text)
        assert world.supervisor.is_running
        assert world.starts == [A.id]


async def test_a_child_is_not_stopped_for_a_file_for_which_there_is_no_room(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, is_full = settings_file.replace_file, False

    def write_if_there_is_room(path: Path, data: bytes) -> None:
        if is_full:
            raise SettingsError(f"cannot write {path}: No space left on device")
        write(path, data)

    monkeypatch.setattr(settings_file, "replace_file", write_if_there_is_room)
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        pid, is_full = world.supervisor.pid, True
        world.settings.change(activated())
        await world.until(lambda: "agent.change_refused" in told.text)
        assert world.supervisor.pid == pid
        assert world.agent.describe()["problem"] == SettingsError.code
        is_full = False
        world.clock.passed += AGAIN_AFTER.total_seconds()
        await world.seen(A.id, B.id)
        assert world.agent.describe()["problem"] is None
        assert [path.name for path in (world.path / "memory").iterdir()] == ["localhost.json"]


async def test_a_child_is_restarted_although_the_data_directory_cannot_be_written(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, _: bytes = b"") -> None:
        raise SettingsError(f"cannot write {path}: Read-only file system")

    def fail_to_unlink(path: Path, **_: bool) -> None:
        raise OSError(errno.EROFS, f"{path}: Read-only file system")

    async with world.running() as task:
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        monkeypatch.setattr(data_directory_lock, "replace_file", fail)
        world.settings.change(activated())
        await world.until(lambda: world.starts == [A.id, B.id] or task.done())
        await world.until(lambda: world.asked > 1 or task.done())
        assert world.supervisor.is_running
        assert world.agent is not None
        monkeypatch.setattr(Path, "unlink", fail_to_unlink)
        world.agent.stop()
        assert await task == 0
        monkeypatch.undo()
    assert "agent.not_recorded" in told.text


async def test_a_child_that_ignores_signals_is_killed_for_a_restart(
    world: World, told: pytest.LogCaptureFixture
) -> None:
    world.order(a="deaf")
    world.supervisor._grace = SECOND
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(activated())
        await world.seen(A.id, B.id)
    assert "agent.killed" in told.text


async def test_with_ignore_the_server_goes_on_as_it_is_until_its_next_start(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    world.rules = replace(world.rules, on_change=OnChange.IGNORE)
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(activated())
        await world.until(lambda: "until its next start" in told.text)
        assert world.starts == [A.id]
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        await world.seen(A.id, B.id)


async def test_with_signal_the_file_is_written_and_the_child_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.order(any="reads again")
    world.rules = replace(world.rules, on_change=OnChange.SIGNAL)
    monkeypatch.setattr(ManagedOrganization, "check_signer", signs_by(world))

    async def notify() -> None:
        world.supervisor.send_signal(signal.SIGHUP)

    world.notify = notify
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        pid = world.supervisor.pid
        world.settings.change(activated())
        await world.seen(A.id, B.id)
        await world.until(lambda: world.asked > 1)
        assert world.supervisor.pid == pid, "it was not restarted by the agent"


async def test_with_signal_a_file_that_cannot_be_written_is_written_later_and_the_server_runs_on(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.order(any="reads again")
    world.rules = replace(world.rules, on_change=OnChange.SIGNAL)
    monkeypatch.setattr(ManagedOrganization, "check_signer", signs_by(world))
    write, is_full, signals = SettingsFile.write, False, 0

    def write_if_there_is_room(file: SettingsFile, text: bytes) -> Stamp:
        if is_full:
            raise SettingsError(f"cannot write {file.link}: No space left on device")
        return write(file, text)

    async def notify() -> None:
        nonlocal signals
        signals += 1
        world.supervisor.send_signal(signal.SIGHUP)

    monkeypatch.setattr(SettingsFile, "write", write_if_there_is_room)
    world.notify = notify
    async with world.running() as task:
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        is_full = True
        world.settings.change(activated())
        await world.until(lambda: "agent.change_refused" in told.text or task.done())
        assert not task.done()
        assert (world.supervisor.is_running, signals) == (True, 0)
        is_full = False
        world.clock.passed += AGAIN_AFTER.total_seconds()
        await world.seen(A.id, B.id)
        assert signals == 1


def signs_by(world: World) -> Any:
    async def signs(organization: ManagedOrganization) -> bool:
        assert organization.running is not None
        return bool(world.starts) and world.starts[-1] == organization.running.current.id

    return signs


async def test_with_command_the_command_is_run_and_a_server_that_wrote_over_the_file_gets_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.order(any="reads again")
    world.rules = replace(world.rules, on_change=OnChange.COMMAND)
    monkeypatch.setattr(ManagedOrganization, "check_signer", signs_by(world))
    before: list[bytes] = []

    async def notify() -> None:
        if before:
            # COMPAT: between the write and the start, the server has had another new client.
            world.file.link.write_bytes(before.pop())
        read = len(world.starts)
        await run_command(["kill", "-HUP", str(world.supervisor.pid)], PATIENCE, world.clock, dict(os.environ))
        # A signal is handled some time after it was sent: until then the agent could write the file again.
        await world.until(lambda: len(world.starts) > read)

    world.notify = notify
    # The client believes what it is asked about, as a server that knows both roots does.
    monkeypatch.setattr(LiveClient, "answers", always)
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        before.append(world.file.link.read_bytes())
        world.settings.change(activated())
        await world.until(lambda: world.starts[-1] == B.id)
    assert world.starts == [A.id, A.id, B.id]


async def always(*_: object) -> bool:
    return True


async def test_a_command_that_fails_or_does_not_exist_or_hangs_is_an_error_without_consequences() -> None:
    clock, environ = SystemClock(), dict(os.environ)
    for command, patience in ((["false"], PATIENCE), (["no-such-command"], PATIENCE), (["sleep", "60"], SOON)):
        with pytest.raises(AgentError) as caught:
            await run_command(command, patience, clock, environ)
        assert "--command" in caught.value.hint


async def test_a_command_that_is_cut_short_leaves_no_process_behind(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = ["sh", "-c", f"exec 3> {pipe}; sleep 600 & echo started >&3; wait"]
    running = asyncio.create_task(run_command(command, PATIENCE, SystemClock(), dict(os.environ)))
    with await asyncio.to_thread(pipe.open) as reader:
        assert await asyncio.to_thread(reader.readline) == "started\n"
        running.cancel()
        await asyncio.wait({running})
        async with asyncio.timeout(HANG):
            assert await asyncio.to_thread(reader.read) == "", "nothing has the pipe open any more"


async def test_a_command_that_must_not_be_killed_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a command that runs as root, through sudo."""
    may_end = tmp_path / "may end"
    started = make_unkillable(monkeypatch, SOON)
    command = ["sh", "-c", wait_for_file(may_end)]
    with pytest.raises(AgentError):
        async with asyncio.timeout(HANG):
            await run_command(command, SOON, SystemClock(), dict(os.environ))
    assert started[0].returncode is None
    may_end.touch()
    assert await started[0].wait() == 0


# --- one at a time --------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def up_with_lease(world: World) -> AsyncIterator[Lease]:
    """Run an agent whose server has started with root A, and return the restart lease as another agent sees it."""
    async with CountingProvider() as provider:
        here = lease_id_for("x")
        world.lease, world.lease_store = Lease(provider, here, holder="me", poll=SOON), provider
        async with world.running():
            await world.seen(A.id)
            await world.until(lambda: world.asked > 0)
            yield Lease(provider, here, holder="other")


async def until_it_waits(world: World) -> None:
    """Wait until the agent has read twice that another one holds the lease."""
    before = world.lease_store.reads
    await world.until(lambda: world.lease_store.reads >= before + 2)


async def test_a_node_waits_for_its_turn_and_looks_again_when_it_has_it(world: World) -> None:
    async with up_with_lease(world) as lease_of_another:
        async with lease_of_another.hold():
            world.settings.change(activated())
            await until_it_waits(world)
            assert world.starts == [A.id]
            assert world.supervisor.is_running
        await world.seen(A.id, B.id)


async def test_a_change_that_was_taken_back_while_waiting_restarts_nothing(world: World) -> None:
    async with up_with_lease(world) as lease_of_another:
        async with lease_of_another.hold():
            world.settings.change(activated())
            await until_it_waits(world)
            world.settings.change(published())
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.5)
        assert world.starts == [A.id]


async def test_a_child_that_crashes_while_its_node_waits_is_started_with_the_new_root_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    async with up_with_lease(world) as lease_of_another, lease_of_another.hold():
        world.settings.change(activated())
        await until_it_waits(world)
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        await world.seen(A.id, B.id)


async def test_an_agent_that_is_stopped_in_the_middle_of_a_switch_gives_the_lease_back_and_leaves_nothing(
    world: World,
) -> None:
    world.order(b="hangs")
    async with CountingProvider() as provider:
        here = lease_id_for("x")
        world.lease = Lease(provider, here, holder="me", poll=SOON)
        async with world.running() as task:
            await world.seen(A.id)
            await world.until(lambda: world.asked > 0)
            world.settings.change(activated())
            await world.seen(A.id, f"hung {B.id}")
            assert world.agent is not None
            world.agent.stop()
            assert await task == 0
        async with asyncio.timeout(HANG), Lease(provider, here, holder="other", poll=SOON).hold():
            pass
    assert left(world) == []


# --- beside a server that another program runs ------------------------------------------------------------------------


def run_beside(world: World, patch: pytest.MonkeyPatch) -> list[str]:
    """Have another program run the server; return a list to which each notification adds the root in settings.json."""
    patch.setattr(LiveClient, "answers", always)
    patch.setattr(ManagedOrganization, "check_signer", always)
    world.rules = replace(world.rules, on_change=OnChange.COMMAND)
    world.beside, calls = True, list[str]()

    async def notify() -> None:
        calls.append(json.loads(world.file.link.read_text())["currentSession"]["id"])

    world.notify = notify
    return calls


async def test_beside_a_server_the_file_is_kept_up_to_date_and_stays_at_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = run_beside(world, monkeypatch)
    async with world.running() as task:
        await world.until(lambda: world.asked > 0)
        assert calls == [], "a server that has not been started yet needs not be told"
        world.settings.change(activated())
        await world.until(lambda: calls == [B.id])
        await world.until(lambda: world.asked > 1)
        assert world.agent is not None
        world.agent.stop()
        assert await task == 0
    assert json.loads(world.file.link.read_text())["currentSession"]["id"] == B.id


async def test_beside_a_server_that_runs_with_an_earlier_root_already_it_is_told_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = run_beside(world, monkeypatch)
    world.file.write(to_settings(first()))
    world.settings.document = activated()
    async with world.running():
        await world.until(lambda: calls == [B.id])
        await world.until(lambda: world.asked > 0)


async def test_beside_a_server_a_first_file_that_cannot_be_written_is_written_later_and_only_then_is_the_agent_ready(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = run_beside(world, monkeypatch)
    world.file.write(to_settings(first()))
    world.settings.document = activated()
    write, is_full = SettingsFile.write, True

    def write_if_there_is_room(file: SettingsFile, text: bytes) -> Stamp:
        if is_full:
            raise SettingsError(f"cannot write {file.link}: No space left on device")
        return write(file, text)

    monkeypatch.setattr(SettingsFile, "write", write_if_there_is_room)
    async with world.running():
        await world.until(lambda: "agent.change_refused" in told.text)
        world.clock.passed += AGAIN_AFTER.total_seconds()
        await world.until(lambda: told.text.count("agent.change_refused") == 2)
        assert (calls, world.service.sent) == ([], [])
        is_full = False
        world.clock.passed += AGAIN_AFTER.total_seconds()
        await world.until(lambda: calls == [B.id])
        await world.until(lambda: "READY=1" in world.service.sent)


async def test_a_server_is_notified_of_a_file_that_was_written_before_another_could_not_be(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveClient, "answers", always)
    monkeypatch.setattr(ManagedOrganization, "check_signer", always)
    other = World(world.path / "other")
    world.others = (other.organization,)
    world.rules = replace(world.rules, on_change=OnChange.COMMAND)
    world.beside, calls = True, []
    write, is_full = SettingsFile.write, False

    def write_if_there_is_room(file: SettingsFile, text: bytes) -> Stamp:
        if is_full and file is other.file:
            raise SettingsError(f"cannot write {file.link}: No space left on device")
        return write(file, text)

    async def notify() -> None:
        calls.append([json.loads(one.file.link.read_text())["currentSession"]["id"] for one in (world, other)])

    monkeypatch.setattr(SettingsFile, "write", write_if_there_is_room)
    world.notify = notify
    async with world.running():
        await world.until(lambda: "READY=1" in world.service.sent and world.asked > 0)
        is_full = True
        other.settings.document = activated()
        world.settings.change(activated())
        await world.until(lambda: "agent.change_refused" in told.text)
        assert calls == []
        is_full = False
        other.settings.change(published())
        await world.until(lambda: calls == [[B.id, A.id]])
