"""What systemd is notified of: that a service is ready, is alive, and stops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.serving.service_manager import ServiceManager


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.setblocking(False)
        yield found


def heard(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


class SteppedClock:
    """A clock whose waits end when the test releases them."""

    def __init__(self) -> None:
        self.waits: list[timedelta] = []
        self.go_on = asyncio.Event()

    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, duration: timedelta) -> None:
        self.waits.append(duration)
        await self.go_on.wait()
        self.go_on.clear()


def test_a_service_is_ready_once_and_may_say_more_of_itself(listener: socket.socket) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": listener.getsockname()})
    service.report_ready("serves\nREADY=1")
    service.report_ready("serves on")
    service.report_stopping()
    assert heard(listener) == ["READY=1\nSTATUS=serves READY=1", "STATUS=serves on", "STOPPING=1\nSTATUS=stopping"]


async def test_the_watchdog_hears_twice_in_its_interval_and_nothing_after_the_end(listener: socket.socket) -> None:
    clock = SteppedClock()
    environ = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}
    async with ServiceManager(environ, pid=7).feed_watchdog(clock):
        for times in (1, 2, 3):
            while len(clock.waits) < times:
                await asyncio.sleep(0)
            clock.go_on.set()
    clock.go_on.set()
    await asyncio.sleep(0)
    assert heard(listener) == ["WATCHDOG=1"] * 3
    assert set(clock.waits) == {timedelta(seconds=30)}


@pytest.mark.parametrize(
    "environ", [{"WATCHDOG_USEC": "1000"}, {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1"}, {"NOTIFY_SOCKET": "/no/where"}]
)
async def test_without_a_service_manager_nothing_happens(environ: dict[str, str]) -> None:
    service = ServiceManager(environ)
    async with service.feed_watchdog(SteppedClock()):
        service.report_ready("serves")
    service.report_stopping()


def test_a_watchdog_of_another_process_is_not_fed() -> None:
    assert ServiceManager({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "8"}, pid=7).watchdog is None
    assert ServiceManager({"WATCHDOG_USEC": "soon"}).watchdog is None


@pytest.mark.skipif(not hasattr(socket, "SO_PASSCRED"), reason="the abstract namespace is Linux's")
def test_an_address_in_the_abstract_namespace_is_reached(tmp_path: Path) -> None:
    name = f"goatherd-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.setblocking(False)
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).report_ready("serves")
        assert heard(listener) == ["READY=1\nSTATUS=serves"]
