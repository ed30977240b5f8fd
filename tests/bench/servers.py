"""Real `goatherd serve` and `goatherd door` processes for the benchmark, and their processor time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
UNLIMITED: Final = {
    "GOATHERD_LIMITS_REQUESTS_PER_SECOND": "1000000",
    "GOATHERD_LIMITS_CONNECTIONS": "16000",
}
"""Settings of a server whose limits are not what is measured: all callers of a benchmark have one address."""


@dataclass(frozen=True, slots=True)
class Program:
    """A running server or door."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """Return the processor time that the process has used, which a busy machine hardly changes."""
        return time.clock_gettime((~self.pid << 3) | 2)  # CLOCK_PROCESS_CPUTIME_ID of another process

    def resident_bytes(self) -> int:
        """Return the resident memory."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """Return the greatest resident memory since the start, or since `reset_peak`."""
        return self._status("VmHWM")

    def reset_peak(self) -> None:
        """Let the greatest resident memory start from the memory of now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, field: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) * 1024


def serve(
    data: Path, port: int, store: str | Path, *, peers: Sequence[str] = (), settings: Mapping[str, str] = UNLIMITED
) -> contextlib.AbstractAsyncContextManager[Program]:
    """Run one server until the block ends; enters once it listens.

    Args:
        data: Its data directory.
        port: Its port.
        store: URL of the root's identity, or a settings.json.
        peers: URLs of other servers.
        settings: Environment variables.
    """
    identity = ["--settings", str(store)] if isinstance(store, Path) else ["--provider", store]
    arguments = ["serve", "--create", "--data", str(data), "--port", str(port), *identity, "--json"]
    for peer in peers:
        arguments += ["--peer", peer]
    return _run(arguments, port, settings)


def door(server: Program, port: int, store: str) -> contextlib.AbstractAsyncContextManager[Program]:
    """Run one door in front of a server until the block ends; enters once it listens."""
    arguments = ["door", "--upstream", server.url, "--port", str(port), "--provider", store, "--json"]
    return _run(arguments, port, UNLIMITED)


@contextlib.asynccontextmanager
async def _run(arguments: Sequence[str], port: int, settings: Mapping[str, str]) -> AsyncIterator[Program]:
    command = [sys.executable, "-m", "goatherd", *arguments]
    environ = {**os.environ, **settings}
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=log, env=environ
        )
        try:
            assert process.stdout is not None
            line = await process.stdout.readline()
            if not line or "ready" not in json.loads(line):
                log.seek(0)
                raise RuntimeError(f"goatherd {arguments[0]} did not start: {line.decode()}{log.read().decode()}")
            yield Program(process.pid, port)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()
