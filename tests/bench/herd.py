"""Real `goatherd serve` processes for benchmarks and cluster tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

UNLIMITED = {
    **os.environ,
    "GOATHERD_LIMITS_REQUESTS_PER_SECOND": "1000000",
    "GOATHERD_LIMITS_NEW_SESSIONS": "1000000",
    "GOATHERD_LIMITS_SESSION_REQUESTS_PER_SECOND": "1000000",
    "GOATHERD_LIMITS_CONNECTIONS_PER_ADDRESS": "4000",
}
"""The environment of a server whose limits are not what is measured: all callers of a benchmark have one address."""


@contextlib.asynccontextmanager
async def serve(
    data: Path, *, port: int, settings: Sequence[str], peers: Sequence[str] = ()
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run one server until the block ends; yields the process, once it listens, and its URL."""
    command = [sys.executable, "-m", "goatherd", "serve", "--create", "--data", str(data), "--port", str(port)]
    command += [*settings, "--json"]
    for peer in peers:
        command += ["--peer", peer]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=UNLIMITED)
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with status {await process.wait()}")
        if "ready" not in json.loads(line):
            raise RuntimeError(line.decode())
        yield process, f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
