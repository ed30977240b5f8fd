"""What the agent adds to the start of an unmodified server that knows many sessions.

First: the log read, every session verified, the text made, checked and written. Again: the same for a restart, while
the server still serves and with nothing new, which is what a node is away for beyond its own start.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

from goatherd.agent.organization import ManagedOrganization
from goatherd.agent.settings_file import SettingsFile
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.providers.memory import MemorySecretProvider
from goatherd.settings import CloudSecretSettings

from .bench_startup import session_log

SIZES = (1_000, 10_000)


async def measure(top: Path, count: int) -> tuple[float, float, int]:
    """Return seconds for the first start and for a restart, and the size of settings.json."""
    now_ms = SystemClock().now_ms()
    root = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms)
    log, _ = session_log(root, count)
    directory = top / str(count) / "localhost"
    (directory / "sys").mkdir(parents=True)
    (directory / "sys" / "sessions.jsonl").write_bytes(log)
    async with MemorySecretProvider() as provider:
        await provider.create("root", encode_document(create_document(root, now_ms)))
        file = SettingsFile(link=directory / "settings.json", target=top / f"{count}.json")
        async with ManagedOrganization(
            org="localhost",
            settings=CloudSecretSettings(provider, "root"),
            directory=directory,
            file=file,
            client=NodeClient("http://127.0.0.1:9"),
            clock=SystemClock(),
        ) as organization:
            await organization.load_identity(asyncio.Event())
            began = time.perf_counter()
            await organization.write_file()
            first = time.perf_counter() - began
            began = time.perf_counter()
            await organization.write_file()
            again = time.perf_counter() - began
    tree = json.loads(file.link.read_bytes())
    assert len(tree["trustedSessions"]) == count + 1
    return first, again, file.link.stat().st_size


def run() -> dict[str, float]:
    """Return seconds and MiB for each size."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for size in SIZES:
            first, again, octets = asyncio.run(measure(Path(name), size))
            results[f"agent_{size}_first_s"] = first
            results[f"agent_{size}_again_s"] = again
            results[f"agent_{size}_settings_mib"] = octets / (1 << 20)
    return results


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
