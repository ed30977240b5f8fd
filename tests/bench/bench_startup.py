"""Start-up and memory with user sessions in ``/sys/sessions``, over start-up with none, in one run."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from goatherd.cluster.client import NodeClient
from goatherd.identity.document import decode_document
from goatherd.identity.session import OwnedSession, Session, sign_commit
from goatherd.ids import new_id
from goatherd.plugins import open_provider
from goatherd.wire.commit import new_commit
from goatherd.wire.commit_log import frame_records
from goatherd.wire.javascript_values import seconds_from_ms
from goatherd.wire.json import to_json
from tests.ports import free_ports

from . import herd

SIZES = (0, 1_000, 50_000)


def resident_mib(pid: int) -> float:
    """Return the process's resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def session_log(root: OwnedSession, count: int) -> tuple[bytes, OwnedSession | None]:
    """Return a log of `count` session commits signed by `root`, and the last session."""
    now_ms = time.time_ns() // 1_000_000
    keys = [OwnedSession.generate(session_id=new_id(), owner=None, now_ms=now_ms) for _ in range(min(count, 64))]
    records, last = [], None
    for i in range(count):
        base = keys[i % len(keys)]
        session = Session(
            id=new_id(), public_key=base.session.public_key, owner=None, expiration_ms=base.session.expiration_ms
        )
        last = OwnedSession(session=session, signer=base.signer)
        data = {
            "id": session.id,
            "publicKey": to_json(session.public_key.to_jwk()),
            "expiration": seconds_from_ms(session.expiration_ms),
        }
        draft = new_commit(
            commit_id=new_id(),
            key=session.id,
            session_id=root.id,
            ts=now_ms,
            org="localhost",
            parents=(),
            data=data,
            schema_marker="sessions/1",
            connection="bench",
        )
        records.append(sign_commit(root, draft, now_ms=now_ms).to_json())
    return b"".join(frame_records([record]) for record in records), last


async def start(data: Path, store: str, last: OwnedSession | None) -> tuple[float, float, float]:
    """Return seconds until the server listens, until it has answered a known user session, and MiB then."""
    (port,) = free_ports(1)
    started = time.perf_counter()
    async with herd.serve(data, port=port, settings=["--provider", store]) as (process, url):
        listening = time.perf_counter() - started
        async with NodeClient(url) as node:
            if last is not None:
                assert await node.answers(last)
            else:
                assert await node.healthy()
            answered = time.perf_counter() - started
        return listening, answered, resident_mib(process.pid)


def run(repeats: int = 3) -> dict[str, float]:
    """Return seconds, MiB and ratios for each size."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = f"file://{top}/keys/root"
        subprocess.run([sys.executable, "-m", "goatherd", "init", "--provider", store], check=True, capture_output=True)
        root = asyncio.run(_root(store))
        cases = []
        for size in SIZES:
            log, last = session_log(root, size)
            folder = top / str(size) / "localhost" / "sys"
            folder.mkdir(parents=True, mode=0o700)
            (folder / "sessions.jsonl").write_bytes(log)
            (folder / "sessions.jsonl").chmod(0o600)
            cases.append((size, top / str(size), last))
        seen: dict[int, list[tuple[float, float, float]]] = {size: [] for size in SIZES}
        for _ in range(repeats):
            for size, data, last in cases:
                seen[size].append(asyncio.run(start(data, store, last)))
    base = statistics.median(answered for _, answered, _ in seen[0])
    for size in SIZES:
        results[f"startup_{size}_answered_s"] = statistics.median(answered for _, answered, _ in seen[size])
        results[f"startup_{size}_over_empty"] = results[f"startup_{size}_answered_s"] / base
        results[f"startup_{size}_resident_mib"] = statistics.median(mib for _, _, mib in seen[size])
    return results


async def _root(store: str) -> OwnedSession:
    provider, secret_id = open_provider(store)
    async with provider:
        value = await provider.read(secret_id)
    return decode_document(value.value.reveal()).current


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
