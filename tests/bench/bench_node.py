"""Commits per second into one node over what bare verification on the same cores allows; store over file settings."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from goatherd.cluster.client import NodeClient
from goatherd.identity.session import OwnedSession, parse_signature, sign_commit, sign_request, signed_text
from goatherd.ids import new_id
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.json import to_json
from tests.ports import free_ports

from . import herd

CORES = 2
BATCH = 100
LANES = 4


def commits_of(owned: OwnedSession, count: int) -> list[Commit]:
    """Make signed commits of a typical item, each of its own key."""
    now_ms = time.time_ns() // 1_000_000
    connection = new_id()
    data = {"title": "A note about nothing much", "n": 12, "done": False, "body": "Lorem ipsum dolor sit amet " * 4}
    return [
        sign_commit(
            owned,
            new_commit(
                commit_id=new_id(),
                key=new_id(),
                session_id=owned.id,
                ts=now_ms,
                org="localhost",
                parents=(),
                data=data,
                schema_marker="note/1",
                connection=connection,
            ),
            now_ms=now_ms,
        )
        for _ in range(count)
    ]


def bodies_of(path: str, commits: list[Commit], batch: int = BATCH) -> list[bytes]:
    """Return ready request bodies of `batch` commits each."""
    full = {"__t": "E", "__v": {"d": "AA==", "s": []}}
    bodies = []
    for start in range(0, len(commits), batch):
        chunk = [commit.to_json() for commit in commits[start : start + batch]]
        message = {"ver": 50595584, "f": full, "s": len(chunk), "c": chunk, "ad": []}
        bodies.append(to_json([{"path": path, "msg": message}]).encode())
    return bodies


def bare_rate(owned: OwnedSession, commits: list[Commit]) -> float:
    """Return verifications per second of the same signatures on `CORES` threads, nothing else done."""
    key = owned.session.public_key
    work = [
        (parse_signature(c.signature or "").signature, signed_text(owned.id, c.signed_object(), None).encode())
        for c in commits
    ]
    lanes = [work[i::CORES] for i in range(CORES)]

    def verify(lane: list[tuple[bytes, bytes]]) -> None:
        for signature, text in lane:
            key.verify(signature, text)

    with ThreadPoolExecutor(CORES) as pool:
        started = time.perf_counter()
        list(pool.map(verify, lanes))
        return len(work) / (time.perf_counter() - started)


async def node_rate(url: str, owned: OwnedSession, bodies: list[bytes], count: int) -> float:
    """Return commits per second that the node takes, over `LANES` connections."""
    import httpx2

    queue = list(bodies)
    async with httpx2.AsyncClient(timeout=60) as http:
        header = {"x-goat-sig": sign_request(owned, now_ms=time.time_ns() // 1_000_000, nonce=new_id())}

        async def lane() -> None:
            while queue:
                response = await http.post(url + "/batch-sync", content=queue.pop(), headers=header)
                assert response.status_code == 200, response.status_code

        started = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(LANES)))
        return count / (time.perf_counter() - started)


async def measure(rounds: int = 5, count: int = 2000) -> dict[str, float]:
    """Run everything, in turns, and return the ratios."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        store = f"file://{top}/keys/root"
        await _goatherd("init", "--provider", store)
        settings = top / "b" / "localhost" / "settings.json"
        await _goatherd("export", "--provider", store, str(settings))
        ports = free_ports(2)
        async with (
            herd.serve(top / "a", port=ports[0], settings=["--provider", store]) as (_, from_store),
            herd.serve(top / "b", port=ports[1], settings=["--settings", str(settings)]) as (_, from_file),
        ):
            async with NodeClient(from_store) as a, NodeClient(from_file) as b:
                owned_a, _ = await a.create_session()
                owned_b, _ = await b.create_session()
            over_bare, over_file = [], []
            for turn in range(rounds + 1):
                path = f"/data/bench-{turn}"
                commits_a, commits_b = commits_of(owned_a, count), commits_of(owned_b, count)
                bare = bare_rate(owned_a, commits_a)
                rates = {}
                order = [(from_store, owned_a, commits_a), (from_file, owned_b, commits_b)]
                for url, owned, commits in order if turn % 2 else reversed(order):
                    rates[url] = await node_rate(url, owned, bodies_of(path, commits), count)
                if turn:  # the first round warms up
                    over_bare.append(rates[from_store] / bare)
                    over_file.append(rates[from_store] / rates[from_file])
    return {
        "node_over_bare_verification": statistics.median(over_bare),
        "node_over_bare_verification_min": min(over_bare),
        "store_over_file_settings": statistics.median(over_file),
    }


async def _goatherd(*arguments: str) -> None:
    command = [sys.executable, "-m", "goatherd", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


def run() -> dict[str, float]:
    """Return the ratios of this file."""
    return asyncio.run(measure())


if __name__ == "__main__":
    print(run())
