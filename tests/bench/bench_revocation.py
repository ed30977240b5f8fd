"""A revocation on two servers that hold sessions by the thousand: how long each part takes."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from goatherd.cluster.client import NodeClient
from goatherd.plugins import open_provider
from goatherd.revocation.report import RevocationReport
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.machine import Policy
from tests.ports import free_ports

from . import bare
from .clients import SESSIONS, Line, wait_until_verified
from .data import Data, write_log
from .rows import Row
from .scale import Scale
from .servers import serve

SERVERS = 2
PATIENCE = timedelta(minutes=30)
SAMPLE = 500
PARTS = {"freeze": "freeze", "collect": "survey", "reissue": "introduce again", "spread": "spread"}
"""Of the report's parts, those whose work grows with the number of sessions."""


async def run(scale: Scale, data: Data) -> list[Row]:
    """Return the seconds of each part, and of all."""
    size = scale.reissued
    with tempfile.TemporaryDirectory() as name:
        report = await _revoke(Path(name), data, size)
    sample = min(SAMPLE, size)
    signing = bare.seconds_on_all_cores(bare.sign, sample) / sample
    verifying = bare.seconds_on_all_cores(bare.verify, sample) / sample
    # Each session is verified when it is collected, reissued with a new signature, and verified by each server.
    limit = size * (signing + (1 + SERVERS) * verifying)
    seconds = report.seconds
    rejected = Row(
        name="revocation/rejected", unit="s", size=size, samples=[seconds["revoke"] + seconds["adoption"]], power=0
    )
    parts = [
        Row(name=f"revocation/{name}", unit="s", size=size, samples=[seconds[part]], power=1)
        for name, part in PARTS.items()
    ]
    total = Row(
        name="revocation/total",
        unit="s",
        size=size,
        samples=[sum(seconds.values()) - seconds["spread"]],  # which is a part of "revoke"
        bare=[limit],
        limit="signing and verifying on two threads",
        power=1,
    )
    calls = Row(name="revocation/requests", unit="", size=size, samples=[report.node_calls], power=1)
    return [rejected, *parts, total, calls]


async def _revoke(top: Path, data: Data, size: int) -> RevocationReport:
    """Revoke the root that has introduced `size` sessions, and check that both servers know them afterwards."""
    store = await data.create_store(top)
    provider, secret_id = open_provider(store)
    lines = (await asyncio.to_thread(data.sessions, size))[:size]
    ports = free_ports(SERVERS)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        nodes = []
        for port in ports:
            write_log(top / str(port), SESSIONS, lines)
            peers = [f"http://127.0.0.1:{other}" for other in ports if other != port]
            server = await stack.enter_async_context(serve(top / str(port), port, store, peers=peers))
            nodes.append(await stack.enter_async_context(NodeClient(server.url, timeout=PATIENCE)))
        for port in ports:  # as servers have that run for a while
            with Line(port) as line:
                await wait_until_verified(line)
        policy = Policy(adoption=PATIENCE, settle=PATIENCE)
        report = await Revoker(provider, secret_id, nodes, policy=policy).revoke(data.root.id, reason="measured")
        assert report.is_complete
        assert report.sessions == size
        for node in nodes:
            assert await node.answers(data.user(size - 1))
        return report
