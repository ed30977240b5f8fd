"""The loop around a child: small real processes that read settings.json, and a client that sees what they read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.agent.agent import Agent, Rules, run_command, take_over
from goatherd.agent.child_process import Supervisor
from goatherd.agent.data_directory_lock import DataDirectoryLock
from goatherd.agent.organization import ManagedOrganization
from goatherd.agent.restart_lease import Lease, NoLease, lease_id_for
from goatherd.agent.restart_rules import OnChange
from goatherd.agent.settings_file import SettingsFile
from goatherd.clock import SystemClock
from goatherd.cluster.client import NewSession
from goatherd.errors import AgentError, GoatherdError, IdentityError, KeyLeakedError, NodeUnreachableError
from goatherd.identity.document import IdentityDocument, Revocation
from goatherd.identity.session import OwnedSession
from goatherd.identity.settings_json import to_settings
from tests.deadlines import HANG
from tests.unit.identity.make import NOW, activated, first, owned, published
from tests.unit.settings.make import CountingProvider

from .make import TestSettings, introduction

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")]
A, B = owned("a"), owned("b")
USER = owned("user", owner=None)
SECOND = timedelta(seconds=1)
SOON = timedelta(milliseconds=100)

# Says which root it read, then does what the file `orders` says for that root.
CHILD = """
    import json, os, signal, sys, time
    directory, = sys.argv[1:]
    root = json.load(open(directory + "/data/localhost/settings.json"))["currentSession"]["id"]
    try:
        orders = json.load(open(directory + "/orders"))
    except FileNotFoundError:
        orders = {}
    order = orders.get(root, orders.get("*", ""))
    def note(what):
        with open(directory + "/starts", "a") as file:
            file.write(what + "\\n")
    if order == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    def hup(*_):
        root = json.load(open(directory + "/data/localhost/settings.json"))["currentSession"]["id"]
        note(root)
    if order == "reads again":
        signal.signal(signal.SIGHUP, hup)
    if order.startswith("stops with"):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(order[11:])))
    if order.startswith("exits"):
        note("exit")
        sys.exit(int(order[6:]))
    note(("hung " if order == "hangs" else "") + root)
    while True:
        time.sleep(0.02)
"""


class SystemClockThen(SystemClock):
    """The day on which the tests' sessions were made, and time goes on from there."""

    def __init__(self) -> None:
        self._offset = NOW - super().now_ms()

    def now_ms(self) -> int:
        return super().now_ms() + self._offset


class LiveClient:
    """Answers for the child: it trusts the root that it read last."""

    base_url = "http://server"
    timeout = SECOND

    def __init__(self, world: World) -> None:
        self._world = world
        self.leaked: tuple[str, ...] = ()

    async def answers(self, signer: OwnedSession) -> bool:
        starts = self._world.starts
        if not self._world.supervisor.is_running or not starts or " " in starts[-1]:
            raise NodeUnreachableError("nobody there")
        return starts[-1] == signer.id and not self._world.is_stranger

    async def new_session(self) -> NewSession:
        self._world.asked += 1
        return NewSession(USER, (A.session,), self._world.leaked)

    async def batch_sync(self, requests: Any, signer: OwnedSession, now_ms: int) -> list[dict[str, Any]]:
        root = next((one for one in (A, B) if self._world.starts and one.id == self._world.starts[-1]), None)
        made = [introduction(USER.session, root)] if root is not None and self._world.asked else []
        return [{"s": len(made), "f": {}, "c": made}]

    async def aclose(self) -> None:
        pass


class World:
    """An agent with a child, in a directory."""

    def __init__(self, tmp_path: Path, document: IdentityDocument | None = None) -> None:
        self.path = tmp_path
        self.asked = 0
        self.leaked: tuple[str, ...] = ()
        self.is_stranger = False
        self.clock = SystemClockThen()
        self.settings = TestSettings(document)
        command = [sys.executable, "-S", "-c", textwrap.dedent(CHILD), str(tmp_path)]
        self.supervisor = Supervisor(command, environ=dict(os.environ), grace=timedelta(seconds=60))
        self.lease: Lease | NoLease = NoLease()
        self.rules = Rules(ready_timeout=20 * SECOND, look_every=SOON)
        self.notify: Callable[[], Awaitable[None]] | None = None
        (tmp_path / "memory").mkdir(mode=0o700)
        self.client = LiveClient(self)
        self.data = tmp_path / "data"
        self.file = SettingsFile(
            link=self.data / "localhost" / "settings.json", target=tmp_path / "memory" / "localhost.json"
        )
        self.organization = self.new_organization()
        self.agent: Agent | None = None

    def new_organization(self) -> ManagedOrganization:
        return ManagedOrganization(
            org="localhost",
            settings=self.settings,  # type: ignore[arg-type]
            directory=self.data / "localhost",
            file=self.file,
            client=self.client,  # type: ignore[arg-type]
            clock=self.clock,
        )

    @property
    def starts(self) -> list[str]:
        try:
            return (self.path / "starts").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []

    def order(self, **orders: str) -> None:
        """Tell the next child what to do, by the root that it reads; `any` for whichever."""
        ids = {"a": A.id, "b": B.id, "any": "*"}
        (self.path / "orders").write_text(json.dumps({ids[name]: order for name, order in orders.items()}))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[int]]:
        with DataDirectoryLock(self.data) as claim:
            await take_over(claim, SECOND, self.clock)
            beside = self.rules.on_change is not OnChange.RESTART and self.notify is not None and self.beside
            self.agent = Agent(
                [self.organization],
                lock=claim,
                supervisor=None if beside else self.supervisor,
                lease=self.lease,
                rules=self.rules,
                notify=self.notify,
                clock=self.clock,
            )
            task = asyncio.create_task(self.agent.run())
            try:
                yield task
            finally:
                if not task.done():
                    self.agent.stop()
                await asyncio.wait({task})

    beside = False

    async def seen(self, *starts: str) -> None:
        await self.until(lambda: self.starts == list(starts))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "goatherd.agent")
    return caplog


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goatherd.agent.agent.restart_delay", lambda _: timedelta(milliseconds=1))


def left(world: World) -> list[str]:
    """What is left where keys could be."""
    found = [*(world.path / "memory").rglob("*"), *world.data.rglob("*.json")]
    return sorted(path.name for path in found)


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


async def test_a_server_that_does_not_read_the_file_is_stopped_and_the_operator_told(world: World) -> None:
    world.is_stranger = True
    world.rules = replace(world.rules, ready_timeout=5 * SECOND)
    async with asyncio.timeout(HANG), world.running() as task:
        with pytest.raises(AgentError, match="does not read"):
            await task
    assert not world.supervisor.is_running


async def test_a_server_that_gives_its_key_away_is_stopped_and_stays_so(world: World) -> None:
    world.leaked = (A.id,)
    async with world.running() as task:
        with pytest.raises(KeyLeakedError, match=A.id):
            await task
    assert world.starts == [A.id]
    assert not world.supervisor.is_running
    assert left(world) == []


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


async def test_crashes_cause_no_call_to_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    provider = CountingProvider()
    world.lease = Lease(provider, lease_id_for("x"), holder="me")
    world.order(any="exits 9")
    async with world.running() as task:
        await task
    assert (provider.reads, provider.writes) == (0, 0)


async def test_a_child_that_dies_of_a_signal_nobody_passed_on_is_started_again(
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


@pytest.mark.parametrize("order", ["exits 3", "hangs"])
async def test_a_child_that_does_not_come_up_with_the_new_root_gets_the_one_before(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    quick(monkeypatch)
    world.rules = replace(world.rules, ready_timeout=3 * SECOND)
    world.order(b=order)
    async with world.running():
        await world.seen(A.id)
        await world.until(lambda: world.asked > 0)
        world.settings.change(activated())
        await world.until(lambda: len(world.starts) == 3)
        await world.until(lambda: world.asked > 1)
        assert world.starts[0] == world.starts[2] == A.id
        assert world.supervisor.is_running
        settings = json.loads(world.file.link.read_text())
        assert {root["id"] for root in settings["roots"]} == {A.id, B.id}
        await asyncio.sleep(0.5)
        assert len(world.starts) == 3, "B is not tried again for the same document"
    assert "agent.stepped_back" in told.text


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
        await run_command(["kill", "-HUP", str(world.supervisor.pid)], 10 * SECOND, world.clock, dict(os.environ))

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
    for command, patience in ((["false"], 10 * SECOND), (["no-such-command"], SECOND), (["sleep", "60"], SOON)):
        with pytest.raises(AgentError):
            await run_command(command, patience, clock, environ)


# --- one at a time --------------------------------------------------------------------------------------------------


async def test_a_node_waits_for_its_turn_and_looks_again_when_it_has_it(world: World) -> None:
    async with CountingProvider() as provider:
        here = lease_id_for("x")
        world.lease = Lease(provider, here, holder="me", poll=SOON)
        async with world.running():
            await world.seen(A.id)
            await world.until(lambda: world.asked > 0)
            async with Lease(provider, here, holder="other").hold():
                world.settings.change(activated())
                await asyncio.sleep(0.5)
                assert world.starts == [A.id]
                assert world.supervisor.is_running
            await world.seen(A.id, B.id)


async def test_a_change_that_was_taken_back_while_waiting_restarts_nothing(world: World) -> None:
    async with CountingProvider() as provider:
        here = lease_id_for("x")
        world.lease = Lease(provider, here, holder="me", poll=SOON)
        async with world.running():
            await world.seen(A.id)
            await world.until(lambda: world.asked > 0)
            async with Lease(provider, here, holder="other").hold():
                world.settings.change(activated())
                await asyncio.sleep(0.3)
                world.settings.change(published())
                await asyncio.sleep(0.3)
            await asyncio.sleep(0.5)
            assert world.starts == [A.id]


async def test_a_child_that_crashes_while_its_node_waits_is_started_with_the_new_root_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    async with CountingProvider() as provider:
        here = lease_id_for("x")
        world.lease = Lease(provider, here, holder="me", poll=SOON)
        async with world.running():
            await world.seen(A.id)
            await world.until(lambda: world.asked > 0)
            async with Lease(provider, here, holder="other").hold():
                world.settings.change(activated())
                await asyncio.sleep(0.3)
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
        async with asyncio.timeout(30), Lease(provider, here, holder="other", poll=SOON).hold():
            pass
    assert left(world) == []


# --- beside a server that somebody else runs ------------------------------------------------------------------------


async def test_beside_a_server_the_file_is_kept_up_to_date_and_stays_at_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveClient, "answers", always)
    monkeypatch.setattr(ManagedOrganization, "check_signer", always)
    world.rules = replace(world.rules, on_change=OnChange.COMMAND)
    world.beside, calls = True, []

    async def notify() -> None:
        calls.append(json.loads(world.file.link.read_text())["currentSession"]["id"])

    world.notify = notify
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
    monkeypatch.setattr(LiveClient, "answers", always)
    monkeypatch.setattr(ManagedOrganization, "check_signer", always)
    world.file.write(to_settings(first()))
    world.settings.document = activated()
    world.rules = replace(world.rules, on_change=OnChange.COMMAND)
    world.beside, calls = True, []

    async def notify() -> None:
        calls.append(json.loads(world.file.link.read_text())["currentSession"]["id"])

    world.notify = notify
    async with world.running():
        await world.until(lambda: calls == [B.id])
        await world.until(lambda: world.asked > 0)


# --- an agent that was killed ---------------------------------------------------------------------------------------


async def test_the_next_agent_carries_on_from_what_one_that_was_killed_has_left(
    world: World, told: pytest.LogCaptureFixture
) -> None:
    """The file half-written by the child, the record with the child, the child still there."""
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
