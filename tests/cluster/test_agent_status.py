"""The status of servers under an agent: the signing root is found without a new session, and the agent reports its
actions."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.rotation.machine import Outcome, Policy
from goatherd.rotation.rotator import Rotator
from tests.deadlines import ADOPTION, ANSWER
from tests.ports import free_ports

from .agents import REPO, Cluster, cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/shm"),
]
SESSIONS = "/sys/sessions"


async def rotate(made: Cluster, urls: list[str]) -> None:
    """Rotate as `goatherd rotate` does: each time with a rotator of its own."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(NodeClient(url, timeout=ANSWER)) for url in urls]
        policy = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER)
        report = await Rotator(made.provider, made.secret_id, nodes, policy=policy, started_by="test").rotate()
    assert report.outcome is Outcome.ROTATED


async def sessions(made: Cluster, url: str) -> set[str]:
    """The ids of the anonymous sessions that a server holds."""
    async with NodeClient(url, timeout=ANSWER) as client:
        commits = await client.pull(SESSIONS, (await made.document()).current)
    return {commit["k"] for commit in commits if not commit["c"]["r"]["d"].get("owner")}


async def goatherd(made: Cluster, urls: list[str], *words: str) -> tuple[int, dict[str, object]]:
    nodes = [word for url in urls for word in ("--node", url)]
    command = [sys.executable, "-m", "goatherd", *words, "--json", "--provider", made.uri, *nodes]
    command += ["--timeout", f"{ANSWER.total_seconds():g}s"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=REPO, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode in (0, 11), err.decode()
    return process.returncode, json.loads(out)


async def start(made: Cluster) -> list[str]:
    """Start the first server behind a door, the second with an address of its agent's own; return those addresses."""
    ports = free_ports(2)
    for node, option, port in zip(made.nodes, ("--door", "--agent-port"), ports, strict=True):
        node.options = (option, str(port))
        await node.start()
    await made.up()
    for node in made.nodes:
        await node.logged("agent.up")
    return [f"http://127.0.0.1:{port}" for port in ports]


@pytest.mark.parametrize("rotations", [2, pytest.param(10, marks=pytest.mark.deep)])
async def test_a_rotation_leaves_one_session_for_each_start_of_a_server_under_an_agent(
    tmp_path: Path, rotations: int
) -> None:
    async with cluster(tmp_path, 2) as made:
        urls = await start(made)
        for _ in range(rotations):
            await rotate(made, urls)
        starts = sum(node.log.count("agent.started") for node in made.nodes)
        assert starts == 2 + 2 * rotations
        assert len(await sessions(made, urls[0])) <= starts


async def test_status_and_doctor_show_what_an_agent_knows_of_its_server(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as made:
        urls = await start(made)
        async with NodeClient(urls[0], timeout=ANSWER) as client:
            first = await client.identity()
        await rotate(made, urls)
        root = (await made.document()).current.id
        before = await sessions(made, urls[0])
        code, told = await goatherd(made, urls, "status")
        assert code == 0, told
        for node, has_door in zip(told["nodes"], (True, False), strict=True):  # type: ignore[arg-type, call-overload]
            assert (node["signsWith"], node["trustsCurrent"], node["unmodified"]) == (root, True, True)
            assert (node["agent"]["state"], node["agent"]["started"], node["agent"]["restarts"]) == ("serving", root, 1)
            assert node["agent"]["leakCheck"] is not None
            assert (node["agent"]["door"] is not None) is has_door
        code, told = await goatherd(made, urls, "doctor")
        assert code == 0, told
        assert sum("its agent has checked after the start" in one["text"] for one in told["checks"]) == 2  # type: ignore[attr-defined]
        assert await sessions(made, urls[0]) == before, "neither of them leaves a session"
        async with NodeClient(urls[0], timeout=ANSWER) as client:
            second = await client.identity()
        assert first is not None
        assert second is not None
        assert first.instance != second.instance, "each start of the server is another process"
        secrets = [one.to_secret_json()["privateKey"]["d"] for one in (made.first, (await made.document()).current)]
        assert not any(secret in f"{first} {second}" for secret in secrets)


async def test_an_agent_reads_the_store_at_once_when_a_root_asks(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as made:
        urls = await start(made)
        async with NodeClient(urls[0], timeout=ANSWER) as client:
            stranger = (await client.new_session()).owned
            answer = await client.refresh(made.first)
            assert answer == {"generation": 1, "changed": False}
            with pytest.raises(Exception, match="403"):
                await client.refresh(stranger)
