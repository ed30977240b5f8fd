"""The way out of an expired root, against servers started before and after its end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.client import NodeClient
from goatherd.errors import IllegalStepError
from goatherd.identity.expiry import replace_expired_command
from goatherd.node.server import Listener, Server
from goatherd.providers.memory import MemorySecretProvider
from goatherd.rotation import Policy
from goatherd.rotation.revocation import Revoker
from goatherd.settings import CloudSecretSettings

from .goatclient import NOTES, GoatClient
from .herd import free_ports
from .test_clients_through_rotation import LIFE, SECOND, Herd, herd_of

pytestmark = pytest.mark.slow


def settings_of(herd: Herd) -> CloudSecretSettings:
    return CloudSecretSettings(
        MemorySecretProvider(herd.provider._store), "root", refresh_interval=SECOND / 2, clock=herd.clock
    )


async def test_after_revoking_the_expired_root_every_server_serves_and_every_commit_verifies(tmp_path: Path) -> None:
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
        async with late, Listener(late, port=port):
            with pytest.raises(IllegalStepError) as caught:
                await herd.rotate()
            assert replace_expired_command(a) in (caught.value.hint or "")

            servers = [*herd.servers, late]
            urls = [*herd.urls, f"http://127.0.0.1:{port}"]
            nodes = [NodeClient(url, clock=herd.clock) for url in urls]
            policy = Policy(adoption=60 * SECOND, settle=20 * SECOND)
            revoker = Revoker(herd.provider, "root", nodes, policy=policy, clock=herd.clock)
            report = await revoker.revoke(a, reason="expired")
            for node in nodes:
                await node.aclose()

            assert report.is_complete, report
            document = await herd.document()
            b = document.current.id
            assert {server.database().pool.current.id for server in servers} == {b}
            new = await GoatClient.born(urls[2], herd.clock)
            latest = await new.write("by one whom B has introduced")
            wanted = {oldest.id, by_a.commit.id, latest.id}
            async with asyncio.timeout(120):
                while not all(wanted <= set(one.database().engine.repository(NOTES).ids) for one in servers):
                    await herd.clock.sleep(SECOND / 10)
            await new.sync()
            assert new.unverified([oldest, latest]) == []
            assert by_a.commit.id in {commit.id for commit in new.held[NOTES].values()}
            await old.sync()
            await old.write("its session, which A had introduced, goes on")
            await old.sync()
            left_ms = document.current.session.expiration_ms - herd.clock.now_ms()
            assert timedelta(milliseconds=left_ms) > timedelta(days=170)
            assert herd.clock.now_ms() > (document.root(a) or document.current.session).expiration_ms
