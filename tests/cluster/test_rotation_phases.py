"""Real servers that join, leave, restart or lose the store during a rotation, and a real health check.

The same events in every phase, on a simulated herd: tests/unit/rotation/test_joining.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.cluster.node import Node
from goatherd.errors import NotAdoptedError
from goatherd.identity.document import IdentityDocument, Phase, decode_document, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.node.server import Server, ServerListener
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.providers.values import CURRENT
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.health_checks import HTTPProbe
from goatherd.rotation.machine import Outcome
from goatherd.rotation.policy import Policy
from goatherd.rotation.rotator import Rotator
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ADOPTION, ANSWER, HANG
from tests.ports import free_ports

from .herd import CutOff

pytestmark = pytest.mark.slow
SECRET = "root"
SECOND = timedelta(seconds=1)
POLICY = Policy(
    adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER, health_timeout=ANSWER, health_soak=timedelta(0)
)


@dataclass(slots=True)
class Member:
    """One server, that can be stopped and started again on its data and its port."""

    url: str
    top: Path
    port: int
    cable: CutOff
    peers: list[str]
    server: Server | None = None
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def start(self) -> None:
        settings = CloudSecretSettings(self.cable, SECRET, refresh_interval=SECOND)
        self.server = Server(self.top, settings, peers=self.peers)
        await self.stack.enter_async_context(self.server)
        await self.stack.enter_async_context(ServerListener(self.server, port=self.port))

    async def stop(self) -> None:
        await self.stack.aclose()
        self.stack, self.server = contextlib.AsyncExitStack(), None


class Cluster:
    """Servers around a file store, some of which are listed."""

    def __init__(self, top: Path, provider: FileSecretProvider) -> None:
        self.top, self.provider = top, provider
        self.members: list[Member] = []
        self.clients: dict[str, NodeClient] = {}
        self._ports = free_ports(4)

    async def add(self) -> Member:
        number = len(self.clients)
        url = f"http://127.0.0.1:{self._ports[number]}"
        peers = [f"http://127.0.0.1:{port}" for port in self._ports if port != self._ports[number]]
        cable = CutOff(self.top / "keys")
        member = Member(url, self.top / f"node-{number}", self._ports[number], cable, peers)
        await member.start()
        self.members.append(member)
        self.clients[url] = NodeClient(url, timeout=ANSWER)
        return member

    async def nodes(self) -> Sequence[Node]:
        return [self.clients[member.url] for member in self.members]

    async def document(self) -> IdentityDocument:
        return decode_document((await self.provider.read(SECRET, CURRENT)).value.reveal())

    def rotator(self, **options: object) -> Rotator:
        return Rotator(self.provider, SECRET, self.nodes, policy=POLICY, started_by="test", **options)  # type: ignore[arg-type]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with FileSecretProvider(tmp_path / "keys") as provider:
        now_ms = SystemClock().now_ms()
        root = OwnedSession.generate(session_id=new_id(), owner=ROOT_OWNER, now_ms=now_ms)
        await provider.create(SECRET, encode_document(create_document(root, now_ms)))
        cluster = Cluster(tmp_path, provider)
        try:
            for _ in range(3):
                await cluster.add()
            yield cluster
        finally:
            for member in cluster.members:
                await member.stop()
            for client in cluster.clients.values():
                await client.aclose()


async def joins(cluster: Cluster, carried_on: Callable[[], None]) -> None:
    carried_on()
    await cluster.add()


async def leaves(cluster: Cluster, carried_on: Callable[[], None]) -> None:
    await cluster.members.pop(1).stop()
    carried_on()


async def restarts(cluster: Cluster, carried_on: Callable[[], None]) -> None:
    await cluster.members[1].stop()
    carried_on()
    await SystemClock().sleep(SECOND)
    await cluster.members[1].start()


async def loses_the_store(cluster: Cluster, carried_on: Callable[[], None]) -> None:
    cluster.members[1].cable.is_cut = True
    carried_on()
    await SystemClock().sleep(2 * SECOND)
    cluster.members[1].cable.is_cut = False


def name(value: object) -> str:
    return str(value) if isinstance(value, Phase) else getattr(value, "__name__", "").replace("_", " ")


@pytest.mark.parametrize("happening", [joins, leaves, restarts, loses_the_store], ids=name)
@pytest.mark.parametrize("phase", [Phase.PUBLISHED, Phase.ACTIVATED], ids=name)
async def test_a_rotation_goes_through_whatever_a_server_does_meanwhile(
    cluster: Cluster, phase: Phase, happening: Callable[[Cluster, Callable[[], None]], Awaitable[None]]
) -> None:
    client, _ = await next(iter(cluster.clients.values())).create_session()
    await cluster.rotator().rotate(to_phase=phase)
    running: list[asyncio.Task[object]] = []
    await happening(cluster, lambda: running.append(asyncio.create_task(cluster.rotator().resume())))
    report = await running[0]
    assert getattr(report, "outcome", None) is Outcome.ROTATED
    document = await cluster.document()
    assert document.rotation is None
    async with asyncio.timeout(HANG):
        for member in cluster.members:
            assert member.server is not None
            while member.server.database().pool.current.id != document.current.id:
                await SystemClock().sleep(timedelta(milliseconds=50))
            # A client's earlier session is known at every server, also at those that joined later.
            while not await cluster.clients[member.url].answers(client):
                await SystemClock().sleep(timedelta(milliseconds=50))
            assert {root.id for root in document.roots} == set(member.server.database().pool.root_ids)


async def test_a_health_probe_that_turns_bad_brings_the_earlier_root_back_and_nothing_is_refused(
    cluster: Cluster,
) -> None:
    first = (await cluster.document()).current.id
    statuses: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        statuses.append(503 if signs_b else 200)
        writer.write(f"HTTP/1.1 {statuses[-1]} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    signs_b = False

    def told(event: Event) -> None:
        nonlocal signs_b
        signs_b = signs_b or (isinstance(event, PhaseEntered) and event.phase is Phase.ACTIVATED)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        probe = HTTPProbe(f"http://127.0.0.1:{port}/healthy", timeout=ANSWER)
        with pytest.raises(NotAdoptedError, match="not healthy, 3 times in a row"):
            await cluster.rotator(health=[probe], on_event=told).rotate()
    assert statuses[0] == 200
    assert statuses.count(503) == POLICY.health_failures
    document = await cluster.document()
    assert document.current.id == first
    assert document.history[-1].event == "rolled-back"
    assert f"GET http://127.0.0.1:{port}/healthy: status 503" in (document.history[-1].reason or "")
    for member in cluster.members:
        assert member.server is not None
        assert member.server.database().pool.current.id == first
        assert len(member.server.database().pool.root_ids) == 2
