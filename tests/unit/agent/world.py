"""Helpers for tests of the agent: small real processes that read settings.json, and a client that sees their roots."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.agent.agent import Agent, Front, Rules, stop_leftover_server
from goatherd.agent.child_process import Supervisor
from goatherd.agent.data_directory_lock import DataDirectoryLock
from goatherd.agent.organization import ManagedOrganization
from goatherd.agent.restart_lease import Lease, NoLease
from goatherd.agent.restart_rules import OnChange
from goatherd.agent.settings_file import SettingsFile
from goatherd.clock import SystemClock
from goatherd.cluster.client import NewSession
from goatherd.errors import NodeUnreachableError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.session import OwnedSession
from goatherd.serving.service_manager import ServiceManager
from tests.deadlines import HANG
from tests.unit.identity.make import NOW, owned
from tests.unit.settings.make import CountingProvider

from .make import TestSettings, introduction

A, B = owned("a"), owned("b")
USER = owned("user", owner=None)
SECOND = timedelta(seconds=1)
SOON = timedelta(milliseconds=100)

# Prints which root it read, then does what the file `orders` contains for that root.
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
    """A clock that begins on the day on which the tests' sessions were made.

    Attributes:
        passed: Seconds that a test has added to the clock.
    """

    def __init__(self) -> None:
        self._offset = NOW - super().now_ms()
        self.passed = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed

    def now_ms(self) -> int:
        return super().now_ms() + self._offset


class LiveClient:
    """A client that answers for the child: the child trusts the root that it read last.

    Attributes:
        rejected: How many requests were signed by a root that the child does not trust.
        hung: How many requests came while the child hung.
    """

    base_url = "http://server"
    timeout = SECOND

    def __init__(self, world: World) -> None:
        self._world = world
        self.leaked: tuple[str, ...] = ()
        self.rejected = self.hung = 0

    async def answers(self, signer: OwnedSession) -> bool:
        starts = self._world.starts
        if not self._world.supervisor.is_running or not starts or " " in starts[-1]:
            self.hung += bool(starts) and " " in starts[-1]
            raise NodeUnreachableError("no server there")
        is_known = starts[-1] == signer.id and not self._world.is_stranger
        self.rejected += not is_known
        return is_known

    async def new_session(self) -> NewSession:
        self._world.asked += 1
        return NewSession(USER, (A.session,), self._world.leaked)

    async def batch_sync(self, requests: Any, signer: OwnedSession, now_ms: int) -> list[dict[str, Any]]:
        root = next((one for one in (A, B) if self._world.starts and one.id == self._world.starts[-1]), None)
        made = [introduction(USER.session, root)] if root is not None and self._world.asked else []
        return [{"s": len(made), "f": {}, "c": made}]

    async def aclose(self) -> None:
        pass


class RecordingService(ServiceManager):
    """A fake of systemd's notification socket that keeps the messages.

    Attributes:
        sent: The lines of all messages.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.sent: list[str] = []

    def _send_lines(self, *lines: str) -> None:
        self.sent += lines


class World:
    """An agent with a child process, in a directory."""

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
        self.rules = Rules(ready_timeout=timedelta(seconds=HANG), look_every=SOON)
        self.notify: Callable[[], Awaitable[None]] | None = None
        self.front: Front | None = None
        self.service = RecordingService({})
        (tmp_path / "memory").mkdir(mode=0o700, parents=True)
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
        """Set what the next child does when it reads this root; `any` stands for every root."""
        ids = {"a": A.id, "b": B.id, "any": "*"}
        (self.path / "orders").write_text(json.dumps({ids[name]: order for name, order in orders.items()}))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[int]]:
        with DataDirectoryLock(self.data) as claim:
            await stop_leftover_server(claim, timedelta(seconds=HANG), self.clock)
            beside = self.rules.on_change is not OnChange.RESTART and self.notify is not None and self.beside
            self.agent = Agent(
                [self.organization, *self.others],
                lock=claim,
                supervisor=None if beside else self.supervisor,
                lease=self.lease,
                rules=self.rules,
                notify=self.notify,
                front=self.front,
                service=self.service,
                clock=self.clock,
            )
            task = asyncio.create_task(self.agent.run())
            try:
                yield task
            finally:
                if not task.done():
                    self.agent.stop()
                await asyncio.wait({task})

    lease_store: CountingProvider
    """The store of the restart lease, in the tests that use one."""
    beside = False
    others: tuple[ManagedOrganization, ...] = ()

    async def seen(self, *starts: str) -> None:
        await self.until(lambda: self.starts == list(starts))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG):
            while not condition():
                await asyncio.sleep(0.02)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goatherd.agent.agent.restart_delay", lambda _: timedelta(milliseconds=1))


def left(world: World) -> list[str]:
    """Return the files that were left in places where keys could be."""
    found = [*(world.path / "memory").rglob("*"), *world.data.rglob("*.json")]
    return sorted(path.name for path in found)
