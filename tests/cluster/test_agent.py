"""Servers that do not know Goatherd, run by agents as processes: started, rotated, killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.cli.main import run as run_here
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeError, NotAdoptedError, ObstructedError
from goatherd.identity.settings_json import to_settings
from goatherd.node.server import Server, ServerListener
from goatherd.operations.workload import LoadAudit, Workload
from goatherd.plugins import open_provider
from goatherd.rotation.machine import Outcome, Phase, Policy
from goatherd.rotation.rotator import Rotator
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ADOPTION, ANSWER
from tests.waiting import until

from .agents import Agented, Cluster, cluster, keys_on_disk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/shm"),
]
SECOND = timedelta(seconds=1)
SEED = int(os.environ.get("GOATHERD_AGENT_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


@contextlib.asynccontextmanager
async def rotator_of(
    made: Cluster, adoption: timedelta = timedelta(minutes=3), bare: Sequence[str] = ()
) -> AsyncIterator[Rotator]:
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(NodeClient(url, timeout=ANSWER)) for url in made.urls]
        policy = Policy(adoption=adoption, settle=ADOPTION, bare=frozenset(bare), node_timeout=ANSWER)
        yield Rotator(made.provider, made.secret_id, nodes, policy=policy, started_by="test")


def environ_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_a_server_is_run_rotated_and_stopped_and_its_key_is_never_on_the_disk_nor_where_others_look(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, 1) as made:
        (node,) = made.nodes
        await node.start()
        await made.up()
        await node.logged("agent.up")
        assert node.settings.is_symlink()
        assert node.settings.stat().st_mode & 0o777 == 0o600
        where = node.settings.readlink()
        d = made.first.to_secret_json()["privateKey"]["d"].encode()
        assert d in node.settings.read_bytes()
        # What GoatDB keeps of its own is not there; the goat-like server's own copy is its substitute for memory.
        assert {path.name for path in keys_on_disk(node.path)} <= {".data-goatlike.json"}
        pid = node.child_pid()
        assert pid is not None
        assert node.process is not None
        assert d not in environ_of(pid) + environ_of(node.process.pid)

        async with rotator_of(made) as rotator:
            report = await rotator.rotate()
        assert report.restarts == {node.url: 1}, "the agent restarts a server once in a rotation"
        document = await made.document()
        assert document.current.id != made.first.id
        settings = json.loads(node.settings.read_bytes())
        assert settings["currentSession"]["id"] == document.current.id
        assert {root["id"] for root in settings["roots"]} == {made.first.id, document.current.id}
        async with NodeClient(node.url, timeout=ANSWER) as client:
            assert await client.answers(made.first), "A's signatures count after the switch"
        writes = await made.versions()
        assert await node.stop() == 0
        assert not os.path.lexists(node.settings)
        assert not where.exists()
        assert not where.parent.exists()
        assert await made.versions() == writes, "the agent never writes the identity"
        assert keys_on_disk(node.path) == {}
        assert [json.loads(line)["signer"] for line in node.out.splitlines()] == [made.first.id, document.current.id]
        assert b"privateKey" not in node.log.encode()


async def test_what_goatdb_does_with_14_days_left_is_never_let_happen(tmp_path: Path) -> None:
    """GoatDB extends such a root and then exposes its key. The agent does not start the server, and says what to do."""
    async with cluster(tmp_path, 2, lifetime=timedelta(days=14)) as made:
        bare, agented = made.nodes
        bare.is_bare = True
        bare.settings.parent.mkdir(parents=True)
        root = made.first.session.to_json()
        text = {"currentSession": made.first.to_secret_json(), "roots": [root], "trustedSessions": [root]}
        bare.settings.write_text(json.dumps(text))
        await bare.start()
        await bare.up(made.first)
        async with NodeClient(bare.url, timeout=ANSWER) as client:
            assert (await client.new_session()).leaked == (made.first.id,)
        await agented.start()
        assert agented.process is not None
        assert await agented.process.wait() == EXIT_CODES["identity"]
        assert "goatherd rotate" in agented.log
        assert agented.out == "", "the server was not started"


async def test_a_server_that_gives_its_key_away_is_stopped_at_once_and_the_agent_says_so_and_ends(
    tmp_path: Path,
) -> None:
    """A start script strips `roots` from the file."""
    strip = "import json,sys,os; p=sys.argv[1]; t=json.load(open(p)); t['roots']=[]; f=open(p,'r+'); f.truncate(0); "
    strip += "json.dump(t,f); f.close(); os.execv(sys.argv[2],sys.argv[2:])"
    async with cluster(tmp_path, 1) as made:
        (node,) = made.nodes
        node.wrapper = [sys.executable, "-c", strip, str(node.settings)]
        await node.start()
        assert node.process is not None
        async with asyncio.timeout(120):
            assert await node.process.wait() == EXIT_CODES["agent"]
        assert f"returned the private key of root {made.first.id} to an unauthenticated request" in node.log
        assert made.first.to_secret_json()["privateKey"]["d"] not in node.log
        async with NodeClient(node.url, timeout=ANSWER) as client:
            with pytest.raises(NodeError):
                await client.new_session()
        assert not os.path.lexists(node.settings)


@pytest.mark.deep
async def test_a_node_that_does_not_come_up_with_the_new_root_serves_with_the_one_before_and_the_rotation_goes_back(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, 2) as made:
        async with rotator_of(made, adoption=40 * SECOND) as rotator:
            for node in made.nodes:
                await node.start()
            await made.up()
            await rotator.rotate(to_phase=Phase.PREPARED)
            b = (await made.document()).next
            assert b is not None
            sick = made.nodes[1]
            await sick.stop()
            sick.faults = ["--refuse", b.id]
            await sick.start()
            await made.up()
            with pytest.raises(NotAdoptedError):
                await rotator.resume()
        await sick.logged("agent.stepped_back")
        await made.up()
        document = await made.document()
        assert document.current.id == made.first.id
        assert b.id in {root.id for root in document.roots}
        for node in made.nodes:
            await until(lambda node=node: made.first.id in node.settings.read_text(), lambda node=node: node.log)
            async with NodeClient(node.url, timeout=ANSWER) as client:
                assert await client.answers(b), "B stays trusted"


async def test_the_agent_is_killed_and_the_next_one_carries_on(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as made:
        (node,) = made.nodes
        await node.start()
        await made.up()
        await node.logged("agent.up")
        first_child = node.child_pid()
        assert await node.stop(signal.SIGKILL) == -signal.SIGKILL
        assert os.path.lexists(node.settings), "no process was left to remove it"
        await node.start()
        await node.up(made.first)
        await node.logged("agent.up", times=2)
        assert node.child_pid() != first_child
        assert await node.stop() == 0
        assert not os.path.lexists(node.settings)
        assert keys_on_disk(node.path) == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_that_ignores_signals_is_killed_and_the_agent_says_137(tmp_path: Path, number: int) -> None:
    async with cluster(tmp_path, 1) as made:
        (node,) = made.nodes
        deaf = "import os,signal,sys; [signal.signal(n, signal.SIG_IGN) for n in (2,15)]; "
        deaf += "signal.pthread_sigmask(signal.SIG_BLOCK, {2,15}); os.execv(sys.argv[1],sys.argv[1:])"
        node.wrapper = [sys.executable, "-c", deaf]
        node.options = ["--grace", "1s"]
        await node.start()
        await made.up()
        await node.logged("agent.up")
        assert await node.stop(number) == 137
        assert not os.path.lexists(node.settings)


async def test_a_server_that_replaces_its_file_by_rename_gets_it_back_in_memory(tmp_path: Path) -> None:
    async with cluster(tmp_path, 1) as made:
        (node,) = made.nodes
        node.faults = ["--rename"]
        await node.start()
        await made.up()
        await node.logged("agent.mended")
        await until(node.settings.is_symlink, lambda: node.log)
        assert await node.stop() == 0


# --- a herd ---------------------------------------------------------------------------------------------------------


async def until_written(load: Workload, count: int) -> None:
    """Wait a second, or on a slow machine until this number of writes is accepted."""
    await SystemClock().sleep(SECOND)
    await until(lambda: len(load.accepted) >= count)


async def audit_of(made: Cluster, load: Workload) -> LoadAudit:
    await load.stop()
    return await load.audit([made.first.session], timeout=ADOPTION)


@contextlib.asynccontextmanager
async def watched(made: Cluster) -> AsyncIterator[list[int]]:
    """Count repeatedly, while the block runs, how many nodes do not answer; yield the counts."""
    worst: list[int] = []

    async def watch() -> None:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(NodeClient(url, timeout=ADOPTION)) for url in made.urls]
            while True:
                well = await asyncio.gather(*(client.healthy() for client in clients))
                worst.append(well.count(False))
                await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield worst
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def test_a_cluster_of_agents_is_rotated_one_node_at_a_time_and_every_write_is_on_every_node(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, 3) as made:
        await asyncio.gather(*(node.start() for node in made.nodes))
        await made.up()
        for node in made.nodes:
            await node.logged("agent.up")
        async with Workload(made.urls, clients=4, pause=timedelta(milliseconds=100), newcomers=False) as load:
            async with watched(made) as worst:
                await until_written(load, 1)
                before = len(load.accepted)
                async with rotator_of(made) as rotator:
                    report = await rotator.rotate()
            assert report.restarts == dict.fromkeys(made.urls, 1)
            assert [node.out.count("signer") for node in made.nodes] == [2, 2, 2]
            await until_written(load, before + 1)
            audit = await audit_of(made, load)
        document = await made.document()
        assert document.current.id != made.first.id
        assert document.rotation is None
        assert before > 0
        assert audit.accepted > before
        assert audit.lost == {}
        assert audit.unverifiable == ()
        assert max(worst) == 1, "one node at a time"
        for node in made.nodes:
            assert json.loads(node.settings.read_bytes())["currentSession"]["id"] == document.current.id


async def test_a_restore_restarts_each_server_once_one_at_a_time_and_every_write_is_on_every_server(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, 2) as made:
        a = made.first
        await asyncio.gather(*(node.start() for node in made.nodes))
        await made.up()
        for node in made.nodes:
            await node.logged("agent.up")
        async with rotator_of(made) as rotator:
            await rotator.rotate()
            b = (await made.document()).current
            async with Workload(made.urls, clients=3, pause=timedelta(milliseconds=100), newcomers=False) as load:
                async with watched(made) as worst:
                    await until_written(load, 1)
                    before = len(load.accepted)
                    report = await rotator.restore()
                await until_written(load, before + 1)
                audit = await audit_of(made, load)
        assert report.outcome is Outcome.RESTORED
        assert report.current_id == a.id
        assert (await made.document()).rotation is None
        assert audit.accepted > before > 0
        assert audit.lost == {}
        assert audit.unverifiable == ()
        assert max(worst) == 1, "one server at a time"
        for node in made.nodes:
            # Each server writes one line at its start, with the root that it signs with.
            assert [json.loads(line)["signer"] for line in node.out.splitlines()] == [a.id, b.id, a.id]
            settings = json.loads(node.settings.read_bytes())
            assert settings["currentSession"]["id"] == a.id
            async with NodeClient(node.url, timeout=ANSWER) as client:
                assert await client.answers(b), "what B signed stays valid"
            assert {path.name for path in keys_on_disk(node.path)} <= {".data-goatlike.json"}


class Mischief:
    """Kills agents and servers at random moments, and restarts what an outer supervisor would restart."""

    def __init__(self, made: Cluster, seed: int) -> None:
        self._made = made
        self._random = random.Random(seed)
        self.done: list[str] = []

    async def run(self, until_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + until_s
        while loop.time() < end:
            await asyncio.sleep(self._random.uniform(0.3, 2))
            number = self._random.randrange(len(self._made.nodes))
            node, what = self._made.nodes[number], self._random.choice(["agent", "server", "both", "asked"])
            await self._do(node, what)
            self.done.append(f"{what} {number}")

    async def _do(self, node: Agented, what: str) -> None:
        pid = node.child_pid()
        if what in ("server", "both") and pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if what in ("agent", "both"):
            await node.stop(signal.SIGKILL)
        elif what == "asked":
            await node.stop(signal.SIGTERM)
        assert node.process is not None
        if node.process.returncode is not None:
            await node.start()


@pytest.mark.deep
async def test_whatever_is_killed_at_random_writes_acknowledged_before_a_rotation_are_on_every_node_after_it(
    tmp_path: Path,
) -> None:
    print(f"replay with GOATHERD_AGENT_SEED={SEED}")
    async with cluster(tmp_path, 3) as made:
        await asyncio.gather(*(node.start() for node in made.nodes))
        await made.up()
        async with Workload(made.urls, clients=4, pause=timedelta(milliseconds=100), newcomers=False) as load:
            await SystemClock().sleep(2 * SECOND)
            before = dict(load.accepted)
            async with rotator_of(made) as rotator:
                mischief = Mischief(made, SEED)
                rotating = asyncio.create_task(rotator.rotate())
                await mischief.run(20)
                with contextlib.suppress(NotAdoptedError, ObstructedError):
                    await rotating
            for node in made.nodes:
                assert node.process is not None
                if node.process.returncode is not None:
                    await node.start()
            await made.up()
            audit = await audit_of(made, load)
        document = await made.document()
        assert mischief.done
        assert before
        assert document.rotation is None, mischief.done
        assert audit.lost == {}, mischief.done
        assert audit.unverifiable == (), mischief.done
        for node in made.nodes:
            await until(
                lambda node=node: json.loads(node.settings.read_bytes())["currentSession"]["id"] == document.current.id,
                lambda node=node: node.log,
            )
        versions = await made.versions()
        await asyncio.gather(*(node.stop() for node in made.nodes))
        assert await made.versions() == versions
        assert all(not os.path.lexists(node.settings) for node in made.nodes)


async def test_a_rotation_drives_our_own_server_an_agent_and_a_manual_restart_server(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path, 3) as made, contextlib.AsyncExitStack() as stack:
        own, agented, bare = made.nodes
        settings = CloudSecretSettings(open_provider(made.uri)[0], made.secret_id, refresh_interval=SECOND / 2)
        server = await stack.enter_async_context(Server(own.data, settings, peers=own.peers))
        await stack.enter_async_context(ServerListener(server, port=own.port))
        bare.is_bare = True
        bare.settings.parent.mkdir(parents=True)
        bare.settings.write_bytes(to_settings(await made.document()))
        await asyncio.gather(agented.start(), bare.start())
        await asyncio.gather(agented.up(made.first), bare.up(made.first))
        await agented.logged("agent.up")
        async with Workload(made.urls, clients=3, pause=timedelta(milliseconds=100), newcomers=False) as load:
            await SystemClock().sleep(SECOND)
            async with rotator_of(made, bare=[bare.url]) as rotator:
                report = await rotator.rotate()
            await SystemClock().sleep(SECOND)
            audit = await audit_of(made, load)
        assert report.behind == (bare.url,)
        assert audit.lost == {}
        assert audit.unverifiable == ()
        b = (await made.document()).current
        assert server.database().pool.current.id == b.id
        assert json.loads(agented.settings.read_bytes())["currentSession"]["id"] == b.id
        assert json.loads(bare.settings.read_bytes())["currentSession"]["id"] == made.first.id
        # What the operator is told to do: stop it, fetch, start it.
        await bare.stop()
        words = ["fetch", "--provider", made.uri, "--data", str(bare.data), "--plain-file", "--log-level", "error"]
        assert await asyncio.to_thread(run_here, words) == 0
        await bare.start()
        await bare.up(b)
        assert json.loads(bare.out.splitlines()[-1])["signer"] == b.id
        async with NodeClient(bare.url, timeout=ANSWER) as client:
            assert await client.answers(made.first), "A's signatures count there too"
            assert not (await client.new_session()).leaked


async def test_beside_a_server_that_something_else_runs_watch_tells_it_of_the_new_root_and_it_takes_it(
    tmp_path: Path,
) -> None:
    """A start script restarts its server whenever it ends; watch asks the server to end."""
    loop = "import subprocess,sys,os; open(sys.argv[1],'w').write('')\n"
    loop += "while True:\n p=subprocess.Popen(sys.argv[2:]); open(sys.argv[1],'w').write(str(p.pid)); p.wait()"
    async with cluster(tmp_path, 2) as made:
        outer, watcher = made.nodes
        outer.peers = []
        common = ["--provider", made.uri, "--data", str(outer.data), "--url", outer.url, "--memory", "/dev/shm"]
        assert await asyncio.to_thread(run_here, ["fetch", "--create", *common, "--log-level", "error"]) == 0
        where = outer.settings.readlink()
        outer.is_bare = True
        outer.wrapper = [sys.executable, "-c", loop, str(tmp_path / "pid")]
        watcher.argv = ["watch", *common, "--refresh-interval", "500ms", "--on-change", "signal", "--signal", "TERM"]
        watcher.argv += ["--pid-file", str(tmp_path / "pid")]
        try:
            await outer.start()
            await outer.up(made.first)
            await watcher.start()
            made.nodes = [outer]
            async with rotator_of(made) as rotator:
                await rotator.rotate()
            b = (await made.document()).current
            await watcher.logged(f"signs={b.id}")
            assert json.loads(outer.settings.read_bytes())["currentSession"]["id"] == b.id
            assert [json.loads(line)["signer"] for line in outer.out.splitlines()] == [made.first.id, b.id]
            assert await watcher.stop() == 0
            assert outer.settings.is_symlink(), "the server may need it for its next start"
        finally:
            made.nodes = [outer, watcher]
            assert outer.process is not None
            with contextlib.suppress(ProcessLookupError):
                outer.process.kill()
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            shutil.rmtree(where.parent, ignore_errors=True)
