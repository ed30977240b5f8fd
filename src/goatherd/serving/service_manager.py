"""Report the state of this process to systemd by its notification protocol (``sd_notify``, ``Type=notify``).

Without systemd, or in a unit of another type, nothing is sent. The watchdog's messages come from the event loop, so a
process whose event loop no longer runs is restarted by systemd after ``WatchdogSec=``.

Source: the manual page sd_notify(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Final

from goatherd.clock import Clock
from goatherd.serving.signals import cancel_tasks

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Environment variables of the protocol. A process that this one starts must not speak for the service."""


class ServiceManager:
    """Sends notifications to the service manager that started this process, if there is one.

    Args:
        environ: The environment of the process.
        pid: Id of the process, with which `WATCHDOG_PID` is compared.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, *, pid: int | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # An address that begins with @ is in Linux's abstract namespace.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._is_ready = False
        interval = environ.get("WATCHDOG_USEC", "")
        meant = environ.get("WATCHDOG_PID", "")
        is_ours = not meant or meant == str(os.getpid() if pid is None else pid)
        self.watchdog = timedelta(microseconds=int(interval)) if interval.isdecimal() and is_ours else None

    def report_ready(self, status: str) -> None:
        """Report that the service is ready (only in the first call), and `status`, which ``systemctl status`` shows."""
        self._send_lines(*(() if self._is_ready else ("READY=1",)), f"STATUS={status}")
        self._is_ready = True

    def report_stopping(self) -> None:
        """Report that the service has begun to stop. May be called twice."""
        self._send_lines("STOPPING=1", "STATUS=stopping")

    @contextlib.asynccontextmanager
    async def feed_watchdog(self, clock: Clock) -> AsyncIterator[None]:
        """Send the watchdog's message twice in each of its intervals while the ``async with`` block runs."""
        if self.watchdog is None or not self._address:
            yield
            return
        task = asyncio.create_task(self._send_watchdog_messages(self.watchdog / 2, clock), name="watchdog")
        try:
            yield
        finally:
            await cancel_tasks(task)

    async def _send_watchdog_messages(self, interval: timedelta, clock: Clock) -> None:
        while True:
            self._send_lines("WATCHDOG=1")
            await clock.sleep(interval)

    def _send_lines(self, *lines: str) -> None:
        if not self._address:
            return
        # A service manager that does not listen must not end the service.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), self._address)
