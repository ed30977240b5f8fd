"""A revocation on two servers that hold sessions by the thousand: how long each part takes, and how many requests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from goatherd.cluster.client import NodeClient
from goatherd.identity.document import decode_document
from goatherd.plugins import open_provider
from goatherd.revocation.report import RevocationReport
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.machine import Policy
from tests.ports import free_ports

from . import herd
from .bench_startup import session_log

SIZES = (1_000, 50_000)
SERVERS = 2
PATIENCE = timedelta(minutes=10)


async def revoke(top: Path, store: str, size: int) -> RevocationReport:
    """Return the report of a revocation of the root of `store`, which has introduced `size` sessions."""
    provider, secret_id = open_provider(store)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        root = decode_document((await provider.read(secret_id)).value.reveal()).current
        log, last = session_log(root, size)
        ports = free_ports(SERVERS)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        nodes = []
        for number, port in enumerate(ports):
            folder = top / f"node-{number}" / "localhost" / "sys"
            folder.mkdir(parents=True, mode=0o700)
            (folder / "sessions.jsonl").write_bytes(log)
            peers = [url for url in urls if not url.endswith(f":{port}")]
            data = top / f"node-{number}"
            await stack.enter_async_context(herd.serve(data, port=port, settings=["--provider", store], peers=peers))
            nodes.append(await stack.enter_async_context(NodeClient(urls[number], timeout=PATIENCE)))
        policy = Policy(adoption=PATIENCE, settle=PATIENCE)
        report = await Revoker(provider, secret_id, nodes, policy=policy).revoke(root.id, reason="measured")
        assert report.is_complete
        assert report.sessions == size
        assert last is not None
        for node in nodes:
            assert await node.answers(last)
        return report


def run() -> dict[str, float]:
    """Return seconds by part, sessions a second, and requests, for each size."""
    results: dict[str, float] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            store = f"file://{name}/keys/root"
            init = [sys.executable, "-m", "goatherd", "init", "--provider", store]
            subprocess.run(init, check=True, capture_output=True)
            began = time.perf_counter()
            report = asyncio.run(revoke(Path(name), store, size))
            results[f"revocation_{size}_with_start_s"] = time.perf_counter() - began
        for part, seconds in report.seconds.items():
            results[f"revocation_{size}_{part.replace(' ', '_')}_s"] = seconds
        total = sum(report.seconds.values())
        results[f"revocation_{size}_total_s"] = total
        results[f"revocation_{size}_refused_after_s"] = report.seconds["revoke"] + report.seconds["adoption"]
        results[f"revocation_{size}_sessions_per_s"] = size / total
        results[f"revocation_{size}_node_calls"] = report.node_calls
        results[f"revocation_{size}_store_calls"] = report.store_calls
    return results


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
