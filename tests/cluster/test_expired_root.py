"""The replacement of an expired root, with servers that were started before and after it expired."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.cluster.client import NodeClient
from goatherd.errors import IllegalStepError, NodeError
from goatherd.identity.key_age import REPLACE_EXPIRED
from goatherd.node.server import Server, ServerListener
from goatherd.providers.memory import MemorySecretProvider
from goatherd.rotation.policy import Policy
from goatherd.rotation.replacement import ReplacementReport, Replacer
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ADOPTION, ANSWER, HANG
from tests.ports import free_ports

from .agents import REPO, Agented, Cluster, cluster
from .goatclient import NOTES, GoatClient
from .test_clients_through_rotation import LIFE, SECOND, Herd, Shifted, herd_of

pytestmark = pytest.mark.slow


def settings_of(herd: Herd) -> CloudSecretSettings:
    return CloudSecretSettings(
        MemorySecretProvider(herd.provider.store), "root", refresh_interval=SECOND / 2, clock=herd.clock
    )


async def test_after_the_expired_root_is_replaced_every_server_serves_and_every_commit_verifies_everywhere(
    tmp_path: Path,
) -> None:
    async with herd_of(tmp_path) as herd:
        a = (await herd.document()).current.id
        old = await GoatClient.born(herd.urls[0], herd.clock)
        oldest = await old.write("the oldest")
        await old.sync()
        await herd.in_step()
        by_a = await herd.servers[0].database().repository(NOTES).create("by-a", "note/1", {"title": "by A itself"})
        await herd.in_step()

        herd.clock.ahead += 2 * LIFE
        (port,) = free_ports(1)
        late = Server(tmp_path / "late", settings_of(herd), peers=herd.urls, clock=herd.clock, debug=True)
        async with late, ServerListener(late, port=port):
            with pytest.raises(IllegalStepError) as caught:
                await herd.rotate()
            assert REPLACE_EXPIRED in (caught.value.hint or "")

            servers = [*herd.servers, late]
            urls = [*herd.urls, f"http://127.0.0.1:{port}"]
            nodes = [NodeClient(url, clock=herd.clock, timeout=ANSWER) for url in urls]
            policy = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER)
            replacer = Replacer(herd.provider, "root", nodes, policy=policy, clock=herd.clock)
            report = await replacer.replace()
            again = await replacer.replace()
            for node in nodes:
                await node.aclose()

            assert report.is_complete, [*report.nodes]
            assert (again.is_complete, again.is_written) == (True, False)
            document = await herd.document()
            b = document.current.id
            assert {server.database().pool.current.id for server in servers} == {b}
            new = await GoatClient.born(urls[2], herd.clock)
            latest = await new.write("by one whom B has introduced")
            wanted = {oldest.id, by_a.commit.id, latest.id}
            async with asyncio.timeout(120):
                while not all(wanted <= set(one.database().engine.get_repository(NOTES).ids) for one in servers):
                    await herd.clock.sleep(SECOND / 10)
            await new.sync()
            assert a in new.roots, "an expired root is no revoked one: its successor introduces it"
            assert new.unverified([oldest, by_a.commit, latest]) == []
            assert by_a.commit.id in {commit.id for commit in new.held[NOTES].values()}
            await old.sync()
            assert b in old.roots, "the expired root has introduced its successor"
            assert old.unverified([oldest, by_a.commit, latest]) == []
            await old.write("its session, which A had introduced, goes on")
            await old.sync()
            left_ms = document.current.session.expiration_ms - herd.clock.now_ms()
            assert timedelta(milliseconds=left_ms) > timedelta(days=170)
            assert herd.clock.now_ms() > (document.find_root(a) or document.current.session).expiration_ms


async def replaced(made: Cluster, clock: Shifted, *, patience: timedelta = 120 * SECOND) -> ReplacementReport:
    nodes = [NodeClient(url, clock=clock, timeout=ANSWER) for url in made.urls]
    try:
        policy = Policy(adoption=patience, lifetime=timedelta(days=180), node_timeout=ANSWER)
        return await Replacer(made.provider, made.secret_id, nodes, policy=policy, clock=clock).replace()
    finally:
        for node in nodes:
            await node.aclose()


async def fetch(node: Agented) -> None:
    """Write the settings.json of a server that is restarted by hand, as an operator does."""
    words = ["fetch", "--create", "--plain-file", "--provider", node.uri, "--data", str(node.data)]
    process = await asyncio.create_subprocess_exec(*node.module("goatherd"), *words, cwd=REPO)
    assert await process.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/shm")
async def test_unmodified_servers_under_an_agent_and_restarted_by_hand_follow_with_all_their_clients(
    tmp_path: Path,
) -> None:
    clock, shift = Shifted(), tmp_path / "ahead"

    def pass_time(days: int) -> None:
        clock.ahead += timedelta(days=days)
        told = tmp_path / "ahead.new"
        told.write_text(str(clock.ahead // timedelta(milliseconds=1)))
        told.replace(shift)

    pass_time(0)
    async with cluster(tmp_path, 2, lifetime=timedelta(days=40)) as made:
        agented, manual = made.nodes
        agented.shift = manual.shift = shift
        manual.is_bare = True
        await fetch(manual)
        await asyncio.gather(agented.start(), manual.start())
        await made.up()
        await agented.logged("agent.up")
        a = made.first
        pass_time(39)
        old = await GoatClient.born(manual.url, clock)
        oldest = await old.write("the oldest")
        pass_time(2)
        with pytest.raises(NodeError):
            await GoatClient.born(agented.url, clock)
        await agented.logged(
            "has expired: the server rejects new clients and cannot be started again; replace it with"
            f" `{REPLACE_EXPIRED}`"
        )

        report = await replaced(made, clock, patience=3 * SECOND)
        assert not report.is_complete
        standings = {node.url: report.has_followed(node) for node in report.nodes}
        assert standings[manual.url] is False, "it signs with the root of its settings.json until it is restarted"
        await manual.stop()
        await fetch(manual)
        await manual.start()
        report = await replaced(made, clock)
        assert report.is_complete, list(map(str, report.nodes))
        b = report.current_id

        for url in made.urls:
            new = await GoatClient.born(url, clock)
            assert a.id not in new.roots
            await new.sync()
            assert set(new.roots) == {a.id, b}, "the successor has introduced the expired root"
            # The session that A introduced in its last day may have reached one server only: that one brings it now.
            async with asyncio.timeout(HANG):
                while new.unverified([oldest]):
                    await asyncio.sleep(0.1)
                    await new.sync()
            latest = await new.write("by one whom B has introduced")
            await old.sync()
        await old.sync()
        assert b in old.roots
        assert old.unverified([oldest, latest]) == []
        await old.write("its session, which A had introduced, goes on")
