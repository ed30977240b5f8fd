"""How an agent starts its server, ends, and restarts a server that crashed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.agent import data_directory_lock, settings_file
from goatherd.agent.child_process import Supervisor
from goatherd.agent.data_directory_lock import RECORD_NAME, DataDirectoryLock
from goatherd.agent.restart_lease import Lease, lease_id_for
from goatherd.errors import (
    AgentError,
    ConfigurationError,
    GoatherdError,
    IdentityError,
    KeyLeakedError,
    SettingsError,
    StorageError,
)
from tests.deadlines import HANG
from tests.unit.identity.make import NOW, activated
from tests.unit.settings.make import CountingProvider

from .world import SOON, A, B, World, left, quick

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")]


class HurriedFront:
    """The listener in front of a server; records that the agent asked it to finish quickly."""

    is_hurried = False

    def hurry(self) -> None:
        self.is_hurried = True


# --- start and end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 7])
async def test_the_agent_ends_with_the_childs_exit_code_and_leaves_no_key(world: World, code: int) -> None:
    world.order(any=f"exits {code}")
    world.rules = replace(world.rules, crashes=0)
    async with world.running() as task:
        assert await task == code
    assert left(world) == []
    assert not (world.data / ".goatherd-agent.json").exists()


async def test_an_agent_that_is_told_to_stop_stops_the_child_first_and_leaves_no_key(world: World) -> None:
    async with world.running() as task:
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        assert world.file.link.is_symlink()
        assert world.agent is not None
        world.agent.stop(signal.SIGTERM)
        assert await task == 0
    assert left(world) == []
    assert not world.supervisor.is_running


@pytest.mark.parametrize(
    ("order", "number", "code", "is_cut_off"),
    [
        ("", signal.SIGTERM, 0, True),
        ("", signal.SIGINT, 0, True),
        ("stops with 0", signal.SIGTERM, 0, False),
        ("stops with 143", signal.SIGTERM, 0, False),
        ("stops with 7", signal.SIGTERM, 7, False),
    ],
)
async def test_a_clean_stop_is_exit_code_0_and_what_the_server_does_badly_is_named(
    world: World, told: pytest.LogCaptureFixture, order: str, number: int, code: int, is_cut_off: bool
) -> None:
    world.order(any=order)
    async with world.running() as task:
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        assert world.agent is not None
        world.agent.stop(number)
        assert await task == code
    assert told.text.count("agent.cut_off") == is_cut_off
    assert f"agent.stopping signal={signal.Signals(number).name}" in told.text


async def test_a_second_signal_is_passed_on_and_a_server_that_ignores_it_is_killed_soon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.agent.child_process.LEFT_BEHIND", SOON)
    world.supervisor._grace = timedelta(seconds=10 * HANG)
    world.order(any="deaf")
    door = HurriedFront()
    world.front = lambda *_: contextlib.nullcontext(door)
    async with asyncio.timeout(HANG), world.running() as task:
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        os.kill(os.getpid(), signal.SIGTERM)
        await world.until(lambda: "STOPPING=1" in world.service.sent)
        done, _ = await asyncio.wait({task}, timeout=0.5)
        assert not done, "the server has its time to stop"
        os.kill(os.getpid(), signal.SIGTERM)
        assert await task == 137
    assert door.is_hurried
    assert left(world) == []


async def test_a_server_without_a_handler_is_named_once_however_often_it_is_restarted(
    world: World, told: pytest.LogCaptureFixture
) -> None:
    async with world.running() as task:
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(activated())
        await world.seen(A.id, B.id)
        await world.until(lambda: world.asked > 1)
        assert told.text.count("agent.cut_off") == 1
        assert world.agent is not None
        world.agent.stop()
        assert await task == 0
    assert told.text.count("agent.cut_off") == 1


async def test_an_agent_that_is_told_to_stop_before_the_store_has_answered_starts_nothing(world: World) -> None:
    world.settings.silence = asyncio.Event()
    async with world.running() as task:
        await world.until(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await task == 0
    assert world.starts == []
    assert left(world) == []


async def test_an_identity_that_fails_its_checks_starts_no_child(world: World) -> None:
    world.settings.failure = IdentityError("roots[1] breaks a rule")
    async with world.running() as task:
        with pytest.raises(IdentityError):
            await task
    assert world.starts == []


async def test_a_root_that_is_too_old_for_a_goatdb_server_starts_no_child(world: World) -> None:
    world.clock._offset += A.session.expiration_ms - NOW - 14 * 86_400_000
    async with world.running() as task:
        with pytest.raises(IdentityError, match="exposes its private key"):
            await task
    assert world.starts == []
    assert left(world) == []


async def test_the_operator_of_a_running_server_is_warned_of_a_root_that_expires_in_20_days(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.clock._offset += A.session.expiration_ms - NOW - 20 * 86_400_000
    async with world.running():
        await world.until(lambda: "agent.short_life" in caplog.text)
    assert world.starts == [A.id]


async def test_a_server_that_does_not_read_the_file_is_stopped_and_the_operator_told(world: World) -> None:
    world.is_stranger = True
    async with asyncio.timeout(HANG), world.running() as task:
        await world.until(lambda: world.client.rejected > 0)
        world.clock.passed += world.rules.ready_timeout.total_seconds()
        with pytest.raises(AgentError, match="does not read") as caught:
            await task
    assert "A GoatDB newer than 0.5.1 ignores this file, too" in (caught.value.hint or "")
    assert not world.supervisor.is_running


async def test_a_server_that_gives_its_key_away_is_stopped_and_not_started_before_another_root_signs(
    world: World,
) -> None:
    world.leaked, first = (A.id,), world.settings.document
    for _ in range(2):
        async with world.running() as task:
            with pytest.raises(KeyLeakedError, match=A.id):
                await task
        assert world.starts == [A.id]
        assert not world.supervisor.is_running
        assert left(world) == [RECORD_NAME]
        world.organization = world.new_organization()

    world.leaked = ()
    world.settings.change(activated())
    for _ in range(2):
        async with world.running():
            await world.seen(A.id, B.id)
        assert left(world) == [RECORD_NAME]
        (world.path / "starts").write_text(f"{A.id}\n")
        world.organization = world.new_organization()

    world.settings.change(first)
    async with world.running() as task:
        with pytest.raises(KeyLeakedError, match=A.id):
            await task


async def test_an_exposed_root_that_cannot_be_recorded_is_logged(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.leaked, write = (A.id,), data_directory_lock.replace_file

    def refuse_exposed(path: Path, data: bytes) -> None:
        if b"exposed" in data:
            raise SettingsError("the disk is full")
        write(path, data)

    monkeypatch.setattr(data_directory_lock, "replace_file", refuse_exposed)
    async with world.running() as task:
        with pytest.raises(KeyLeakedError, match=A.id):
            await task
    assert f"agent.not_recorded exposed={A.id}" in told.text


async def test_a_running_server_is_not_put_back_on_a_root_whose_key_it_has_exposed(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    first = world.settings.document
    with DataDirectoryLock(world.data) as claim:
        claim.save(exposed=[A.id])
        claim.clear()
    world.settings.change(activated())
    async with world.running():
        await world.seen(B.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(first)
        await world.until(lambda: "agent.change_refused" in told.text)
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        await world.seen(B.id, B.id)
        assert world.agent is not None
        assert world.agent.describe()["problem"] == "agent.key_leaked"


async def test_a_server_that_comes_up_late_is_asked_then(world: World) -> None:
    world.rules = replace(world.rules, ready_timeout=SOON)
    world.order(a="hangs")
    async with world.running():
        await world.seen(f"hung {A.id}")
        await asyncio.sleep(0.5)
        assert world.asked == 0
        with (world.path / "starts").open("a") as file:
            file.write(A.id + "\n")
        await world.until(lambda: world.asked == 1)


async def test_a_server_that_comes_up_late_is_reported_as_ready(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    world.rules = replace(world.rules, ready_timeout=SOON)
    world.order(a="hangs")
    async with world.running():
        await world.seen(f"hung {A.id}")
        await world.until(lambda: "agent.not_up" in told.text)
        assert "url=http://server" in told.text
        assert "(--url)" in told.text
        assert "READY=1" not in world.service.sent
        with (world.path / "starts").open("a") as file:
            file.write(A.id + "\n")
        await world.until(lambda: "READY=1" in world.service.sent)
        assert "agent.up" in told.text
        assert world.agent is not None
        assert world.agent.describe()["state"] == "serving"
        # Then a server that does not know the root is no proof that none reads its file.
        world.is_stranger = True
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        await world.until(lambda: told.text.count("agent.not_up") == 2)
        world.is_stranger = False
        world.order()
        with (world.path / "starts").open("a") as file:
            file.write(A.id + "\n")
        await world.until(lambda: told.text.count("agent.up") == 2)


# --- crashes --------------------------------------------------------------------------------------------------------


async def test_a_child_that_crashes_again_and_again_is_started_ever_later_and_then_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(
        "goatherd.agent.agent.restart_delay", lambda crashes: waits.append(crashes) or timedelta(milliseconds=1)
    )
    world.order(any="exits 9")
    world.rules = replace(world.rules, crashes=3)
    async with world.running() as task:
        assert await task == 9
    assert world.starts == ["exit"] * 4
    assert waits == [1, 2, 3]


@pytest.mark.parametrize("error", [AgentError("cannot start deno: no process left"), ConfigurationError("not found")])
async def test_a_server_that_cannot_be_started_again_now_is_started_later(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: GoatherdError
) -> None:
    quick(monkeypatch)
    start, failures = world.supervisor.start, [error, error]

    async def start_later() -> None:
        if world.starts and failures:
            raise failures.pop()
        await start()

    monkeypatch.setattr(world.supervisor, "start", start_later)
    async with world.running():
        await world.until(lambda: world.asked > 0)
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        await world.seen(A.id, A.id)
        await world.until(lambda: world.asked > 1)
    assert str(error) in told.text
    assert left(world) == []


async def test_what_a_crash_left_of_a_record_is_cut_off_before_the_server_starts_again(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    log = world.data / "localhost" / "data" / "notes.jsonl"
    async with world.running():
        await world.until(lambda: world.asked > 0)
        log.parent.mkdir()
        log.write_bytes(b'\n{"id":"c1"}\n\n{"id":"c')
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        await world.seen(A.id, A.id)
        assert log.read_bytes() == b'\n{"id":"c1"}\n\n'
    assert "data.torn" in told.text


async def test_a_server_that_would_cut_off_good_records_of_a_log_is_not_started_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    log = world.data / "localhost" / "data" / "notes.jsonl"
    async with world.running() as task:
        await world.until(lambda: world.asked > 0)
        log.parent.mkdir()
        log.write_bytes(b'\n{"id":"c\n{"id":"c2"}\n')
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        with pytest.raises(StorageError, match="1 good records follow"):
            await task
    assert world.starts == [A.id]
    assert left(world) == []


@pytest.mark.parametrize("is_whole", [True, False])
async def test_on_a_full_disk_a_server_that_crashed_is_started_with_its_file_if_that_is_whole(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    quick(monkeypatch)
    world.rules = replace(world.rules, look_every=timedelta(seconds=HANG))  # the agent does not see the damage before

    def fail(path: Path, _: bytes) -> None:
        raise SettingsError(f"cannot write {path}: No space left on device")

    async with world.running() as task:
        await world.until(lambda: world.asked > 0)
        monkeypatch.setattr(settings_file, "replace_file", fail)
        if not is_whole:
            world.file.link.write_bytes(b"")  # GoatDB writes the file in place
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        if is_whole:
            await world.seen(A.id, A.id)
            await world.until(lambda: world.asked > 1)
        else:
            with pytest.raises(SettingsError, match="holds no root"):
                await task
            assert world.starts == [A.id]
    assert "No space left on device" in told.text


async def test_a_program_that_does_not_exist_ends_the_agent(world: World) -> None:
    world.supervisor = Supervisor(["/no/such/server"], environ={})
    async with world.running() as task:
        with pytest.raises(ConfigurationError, match="was not found"):
            await task
    assert left(world) == []


async def test_the_log_names_the_process_of_a_server_that_ends_at_once(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    world.supervisor = Supervisor(["false"], environ=dict(os.environ))
    start = world.supervisor.start

    async def start_and_end() -> None:
        await start()
        await world.supervisor.wait()

    monkeypatch.setattr(world.supervisor, "start", start_and_end)
    async with world.running() as task:
        assert await task == 1
    started = re.findall(r"agent\.started pid=(\S+)", told.text)
    assert len(started) > 1
    assert all(pid.isdecimal() for pid in started)


async def test_crashes_cause_no_call_to_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    provider = CountingProvider()
    world.lease = Lease(provider, lease_id_for("x"), holder="me")
    world.order(any="exits 9")
    async with world.running() as task:
        await task
    assert (provider.reads, provider.writes) == (0, 0)


async def test_a_server_that_is_killed_by_a_signal_of_its_own_is_restarted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        assert world.supervisor.pid is not None
        os.kill(world.supervisor.pid, signal.SIGKILL)
        await world.seen(A.id, A.id)
        await world.until(lambda: world.asked > 1)


async def test_a_signal_that_was_passed_on_and_ends_the_child_ends_the_agent(world: World) -> None:
    async with world.running() as task:
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await task == 128 + signal.SIGUSR1


# --- an agent that was killed ---------------------------------------------------------------------------------------


async def test_the_next_agent_carries_on_from_what_one_that_was_killed_has_left(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child left a half-written file, the record names the child, and the child still runs."""
    monkeypatch.setattr("goatherd.agent.child_process.LEFT_BEHIND", timedelta(milliseconds=50))
    with DataDirectoryLock(world.data) as claim:
        await world.organization.write_file()
        await world.supervisor.start()
        claim.save(orgs=["localhost"], child=world.supervisor.child)
    await world.seen(A.id)
    world.file.link.write_bytes(b'{"currentSession": {"id"')
    orphan = world.supervisor
    reaped = asyncio.create_task(orphan.wait())
    command = orphan._command
    world.supervisor = Supervisor(command, environ=dict(os.environ))
    world.organization = world.new_organization()
    async with world.running():
        await world.seen(A.id, A.id)
        await world.until(lambda: world.asked > 0)
        assert await reaped == 143
    assert "agent.leftover" in told.text
    assert left(world) == []


async def test_every_error_of_the_agent_has_a_code_and_most_a_hint() -> None:
    for kind in (AgentError, KeyLeakedError):
        assert issubclass(kind, GoatherdError)
        assert kind.code.startswith("agent.")
