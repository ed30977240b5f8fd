"""What the agent adds to the start of an unmodified server that knows many sessions.

A first start reads the log, verifies every session, and makes, checks and writes settings.json. A restart does so while
the server still serves, without new sessions; it shows the downtime that the agent adds to the server's own start.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from goatherd.agent.organization import ManagedOrganization
from goatherd.agent.settings_file import SettingsFile
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.plugins import open_provider
from goatherd.settings.store import CloudSecretSettings

from . import bare
from .clients import SESSIONS
from .data import AUTHORS, Data, write_log
from .rows import Row
from .scale import Scale

SAMPLE = 100


async def run(scale: Scale, data: Data) -> list[Row]:
    """Return the CPU seconds of a first start and of a restart."""
    size = max(scale.managed, AUTHORS)
    with tempfile.TemporaryDirectory() as name:
        first, again = await _write_twice(Path(name), data, size)
    limit = size * bare.cpu_seconds(bare.verify, SAMPLE)
    common: dict[str, Any] = {"unit": "s CPU", "size": size, "power": 1}
    return [
        Row(name="agent/first", samples=[first], bare=[limit], limit="verification", **common),
        Row(name="agent/restart", samples=[again], bare=[limit], limit="verification", **common),
    ]


async def _write_twice(top: Path, data: Data, size: int) -> tuple[float, float]:
    clock = SystemClock()
    lines = await asyncio.to_thread(data.sessions, size)
    write_log(top, SESSIONS, lines)
    directory = top / "localhost"
    provider, secret_id = open_provider(await data.create_store(top))
    async with provider:
        file = SettingsFile(link=directory / "settings.json", target=top / "settings.json")
        async with ManagedOrganization(
            org="localhost",
            settings=CloudSecretSettings(provider, secret_id),
            directory=directory,
            file=file,
            client=NodeClient("http://127.0.0.1:9"),
            clock=clock,
        ) as organization:
            await organization.load_identity(asyncio.Event())
            first = await _cpu_seconds(organization)
            again = await _cpu_seconds(organization)
    assert len(json.loads(file.link.read_bytes())["trustedSessions"]) == size + 1
    return first, again


def _used_seconds() -> float:
    """Return the processor time of this process, and of its processes that have ended, such as verifier processes."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


async def _cpu_seconds(organization: ManagedOrganization) -> float:
    began = _used_seconds()
    await organization.write_file()
    return _used_seconds() - began
