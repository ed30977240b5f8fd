"""Clients that were offline during rotations, that knew only the first root, and that come after it has expired."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.node.server import Server, ServerListener
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.policy import Policy
from goatherd.rotation.rotator import Rotator
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ADOPTION, ANSWER
from tests.ports import free_ports
from tests.unit.node.nodes import session_commit

from .goatclient import NOTES, SESSIONS, GoatClient

pytestmark = pytest.mark.slow
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
LIFE = 6 * HOUR
"""Of a root, in this test; sessions live 30 days, as everywhere."""


class Shifted(SystemClock):
    """The real clock, moved ahead: waiting takes the real time, and a day passes by one assignment."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead // timedelta(milliseconds=1)


@dataclass
class Herd:
    """Two servers that are peers, their store and their time."""

    clock: Shifted
    provider: MemorySecretProvider
    urls: list[str]
    servers: list[Server]

    async def document(self) -> IdentityDocument:
        return decode_document((await self.provider.read("root")).value.reveal())

    @contextlib.asynccontextmanager
    async def nodes(self) -> AsyncIterator[list[NodeClient]]:
        async with contextlib.AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(NodeClient(url, clock=self.clock, timeout=ANSWER)) for url in self.urls
            ]

    async def rotate(self, lifetime: timedelta = LIFE) -> str:
        """Rotate, and return the root that signs then."""
        policy = Policy(adoption=ADOPTION, settle=ADOPTION, lifetime=lifetime, node_timeout=ANSWER)
        async with self.nodes() as nodes:
            report = await Rotator(self.provider, "root", nodes, policy=policy, clock=self.clock).rotate()
        return report.current_id

    async def in_step(self) -> None:
        """Wait until both servers hold the same commits."""
        for _ in range(600):
            engines = [server.database().engine for server in self.servers]
            held = [
                {path: frozenset(engine.get_repository(path).ids) for path in (SESSIONS, NOTES)} for engine in engines
            ]
            if held[0] == held[1]:
                return
            await self.clock.sleep(SECOND / 10)
        raise AssertionError("the servers do not come into step")


@contextlib.asynccontextmanager
async def herd_of(top: Path) -> AsyncIterator[Herd]:
    clock, store = Shifted(), MemoryStore()
    provider = MemorySecretProvider(store)
    first = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=clock.now_ms(), lifetime=LIFE)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(provider)
        await provider.create("root", encode_document(create_document(first, clock.now_ms())))
        ports = free_ports(2)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        servers = []
        for number, port in enumerate(ports):
            settings = CloudSecretSettings(
                MemorySecretProvider(store), "root", refresh_interval=SECOND / 2, clock=clock
            )
            peers = [url for url in urls if not url.endswith(f":{port}")]
            server = Server(top / f"node-{number}", settings, peers=peers, clock=clock, debug=True)
            await stack.enter_async_context(server)
            await stack.enter_async_context(ServerListener(server, port=port))
            servers.append(server)
        yield Herd(clock, provider, urls, servers)


async def test_a_client_that_was_away_through_a_rotation_goes_on_and_verifies_everything(tmp_path: Path) -> None:
    async with herd_of(tmp_path) as herd:
        away = await GoatClient.born(herd.urls[0], herd.clock)
        other = await GoatClient.born(herd.urls[1], herd.clock)
        oldest = await away.write("the oldest")
        await away.sync()
        assert set(away.roots) == {(await herd.document()).current.id}, "it knows A only"
        b = await herd.rotate()
        newcomer = await GoatClient.born(herd.urls[1], herd.clock)
        await herd.in_step()
        written = [oldest, await other.write("meanwhile"), await newcomer.write("by one whom B has introduced")]
        await herd.in_step()

        await away.sync()

        assert b in away.roots, "it learnt B by A's word in /sys/sessions"
        assert away.unverified(written) == []
        await away.write("it still writes")


async def test_a_client_that_knew_only_a_comes_back_two_rotations_later_and_after_a_has_expired(
    tmp_path: Path,
) -> None:
    async with herd_of(tmp_path) as herd:
        away = await GoatClient.born(herd.urls[0], herd.clock)
        oldest = await away.write("the oldest")
        await away.sync()
        b = await herd.rotate(lifetime=3 * LIFE)
        c = await herd.rotate(lifetime=90 * LIFE)
        herd.clock.ahead += 4 * LIFE
        newcomer = await GoatClient.born(herd.urls[1], herd.clock)
        assert set(newcomer.roots) == {c}, "A and B have expired"
        await herd.in_step()
        latest = await newcomer.write("by one whom C has introduced")
        await herd.in_step()

        await away.sync()

        assert {b, c} <= set(away.roots)
        assert away.unverified([oldest, latest]) == []
        await away.write("it still writes")


async def test_a_client_that_knew_only_a_comes_back_after_five_rotations(tmp_path: Path) -> None:
    async with herd_of(tmp_path) as herd:
        away = await GoatClient.born(herd.urls[0], herd.clock)
        oldest = await away.write("the oldest")
        await away.sync()
        roots = [await herd.rotate(lifetime=90 * LIFE) for _ in range(5)]
        assert len((await herd.document()).roots) < len(roots), "some have left the document"
        newcomer = await GoatClient.born(herd.urls[1], herd.clock)
        await herd.in_step()
        latest = await newcomer.write("by one whom the last root has introduced")
        await herd.in_step()

        await away.sync()

        assert set(roots) <= set(away.roots)
        assert away.unverified([oldest, latest]) == []
        await away.write("it still writes")


async def test_a_brand_new_client_after_a_has_expired_verifies_the_oldest_commit(tmp_path: Path) -> None:
    async with herd_of(tmp_path) as herd:
        a = (await herd.document()).current.id
        old = await GoatClient.born(herd.urls[0], herd.clock)
        oldest = await old.write("the oldest")
        await herd.in_step()
        by_a = await herd.servers[0].database().repository(NOTES).create("by-a", "note/1", {"title": "by A itself"})
        b = await herd.rotate(lifetime=90 * LIFE)
        herd.clock.ahead += 2 * LIFE
        await herd.in_step()

        new = await GoatClient.born(herd.urls[1], herd.clock)
        assert set(new.roots) == {b}, "no answer tells it of A"
        await new.sync()

        assert a in new.roots, "it learnt A by B's word, in time for the sessions that A had introduced"
        assert new.unverified([oldest, by_a.commit]) == []
        assert new.unverified(new.held[NOTES].values()) == []
        await new.write("it writes")


async def test_clients_old_and_new_after_a_revocation(tmp_path: Path) -> None:
    async with herd_of(tmp_path) as herd:
        a = (await herd.document()).current
        away = await GoatClient.born(herd.urls[0], herd.clock)
        oldest = await away.write("the oldest")
        await away.sync()
        rogue = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=herd.clock.now_ms())
        async with herd.nodes() as nodes:
            await nodes[0].push(SESSIONS, [session_commit(a, rogue.session)], a)
            await herd.in_step()
            policy = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER)
            report = await Revoker(herd.provider, "root", nodes, policy=policy, clock=herd.clock).revoke(
                a.id, reason="stolen"
            )
        assert report.is_complete
        b = (await herd.document()).current.id
        await herd.in_step()

        await away.sync()
        assert b in away.roots, "it learnt the successor by the commit that the stolen root had to sign"
        new = await GoatClient.born(herd.urls[1], herd.clock)
        later = await new.write("by one whom B has introduced")
        await herd.in_step()
        await away.sync()
        assert away.unverified([oldest, later]) == []
        await away.write("it still writes")

        await new.sync()
        assert set(new.roots) == {b}, "a new client is told neither of the stolen root nor of the thief's"
        assert new.unverified([oldest, later]) == []
        new.restart()
        assert rogue.id not in new.roots


@pytest.mark.parametrize("believe", ["at once", "at its next start"])
async def test_what_a_client_believes_without_the_order_of_the_answers_comes_too_late(
    tmp_path: Path, believe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows why the previous test is needed: in the order of the log a new client does not verify the oldest commit."""
    keep: Callable[..., list[object]] = lambda self, missing, **more: list(missing)  # noqa: E731
    monkeypatch.setattr("goatherd.identity.introductions_for_clients.RootIntroductions.for_client", keep)
    async with herd_of(tmp_path) as herd:
        old = await GoatClient.born(herd.urls[0], herd.clock)
        oldest = await old.write("the oldest")
        await herd.in_step()
        await herd.rotate(lifetime=90 * LIFE)
        herd.clock.ahead += 2 * LIFE
        await herd.in_step()
        new = await GoatClient.born(herd.urls[1], herd.clock)
        await new.sync()
        if believe == "at its next start":
            new.restart()
        assert new.verifies(oldest) == (believe == "at its next start")
