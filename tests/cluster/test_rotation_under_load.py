"""Servers, clients that write and read all the time, and a rotation or a restore in the middle of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NotAdoptedError, ObstructedError
from goatherd.node.server import Server, ServerListener
from goatherd.operations.workload import LoadAudit, Workload
from goatherd.rotation.machine import Outcome, Phase, Policy
from goatherd.rotation.rotator import Rotator
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ADOPTION, ANSWER
from tests.ports import free_ports
from tests.waiting import until

from .herd import CutOff, Herd, herd

pytestmark = pytest.mark.slow
SECOND = timedelta(seconds=1)


@contextlib.asynccontextmanager
async def rotator_of(cluster: Herd, adoption: timedelta = ADOPTION, **options: Any) -> AsyncIterator[Rotator]:
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(NodeClient(url, timeout=ANSWER)) for url in cluster.urls]
        policy = Policy(adoption=adoption, settle=ADOPTION, node_timeout=ANSWER)
        yield Rotator(cluster.provider, cluster.secret_id, nodes, policy=policy, started_by="test", **options)


async def audit_of(cluster: Herd, load: Workload) -> LoadAudit:
    """Audit the load, knowing only the first root: every other root must be introduced, step by step, in
    /sys/sessions."""
    await load.stop()
    return await load.audit([cluster.first.session], timeout=ADOPTION)


async def test_a_full_rotation_refuses_nothing_and_loses_nothing(tmp_path: Path) -> None:
    clock = SystemClock()
    async with herd(tmp_path) as cluster:
        load = Workload(cluster.urls, clients=10, pause=timedelta(milliseconds=60))
        async with load, rotator_of(cluster) as rotator:
            began = load.now()
            await clock.sleep(SECOND)
            await rotator.rotate()
            await clock.sleep(SECOND)
            await until(lambda: load.window(began).requests > 100 and len(load.accepted) > 80)
            audit = await audit_of(cluster, load)
        document = await cluster.document()
        window = load.window(began)
        signers = [server.database().pool.current.id for server in cluster.servers]
    assert window.requests > 100
    assert window.refused == 0, window.reasons
    assert audit.accepted > 80
    assert audit.lost == {}
    assert audit.unverifiable == ()
    assert document.rotation is None
    assert document.current.id != cluster.first.id
    assert signers == [document.current.id] * 5
    assert set(audit.by_signer) == {cluster.first.id, document.current.id}


async def test_a_restore_and_the_rotation_after_it_refuse_nothing_and_lose_nothing_on_a_server_added_in_between_too(
    tmp_path: Path,
) -> None:
    """A rotates to B, B restores A, a server joins, A rotates to C. Clients introduced by A, B and A again write."""
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(herd(tmp_path, count=3))
        loads = [await stack.enter_async_context(workload(cluster))]
        began = loads[0].now()
        async with rotator_of(cluster) as rotator:
            await rotator.rotate()
            b = (await cluster.document()).current
            loads.append(await stack.enter_async_context(workload(cluster)))
            await clock.sleep(SECOND)
            restored = await rotator.restore()
            assert (await cluster.document()).current.id == cluster.first.id
        await stack.enter_async_context(added_server(cluster, tmp_path / "added", tmp_path / "keys"))
        loads.append(await stack.enter_async_context(workload(cluster)))
        await clock.sleep(SECOND)
        async with rotator_of(cluster) as rotator:
            rotated = await rotator.rotate()
        await clock.sleep(SECOND)
        await until(lambda: all(load.window(began).requests > 30 and load.accepted for load in loads))
        for load in loads:
            await load.stop()
        for load in loads[:-1]:
            assert load.accepted
            loads[-1].accepted |= load.accepted
        audit = await loads[-1].audit([cluster.first.session], timeout=ADOPTION)
        document = await cluster.document()
        windows = [load.window(began) for load in loads]
        signers = [server.database().pool.current.id for server in cluster.servers]
        trusted = [set(server.database().pool.root_ids) for server in cluster.servers]
    assert restored.outcome is Outcome.RESTORED
    assert rotated.outcome is Outcome.ROTATED
    assert [window.reasons for window in windows] == [{}] * 3
    assert all(window.requests > 30 for window in windows)
    assert audit.lost == {}
    assert audit.unverifiable == ()
    assert signers == [document.current.id] * 4
    assert trusted == [{cluster.first.id, b.id, document.current.id}] * 4
    assert set(audit.by_signer) == {cluster.first.id, b.id, document.current.id}
    # Four clients and some newcomers have their sessions from B.
    assert audit.by_signer[b.id] > 4


def workload(cluster: Herd) -> Workload:
    return Workload(cluster.urls, clients=4, pause=timedelta(milliseconds=60))


@contextlib.asynccontextmanager
async def added_server(cluster: Herd, top: Path, keys: Path) -> AsyncIterator[None]:
    """Start one more server, which the others do not name as a peer, and list it."""
    (port,) = free_ports(1)
    settings = CloudSecretSettings(CutOff(keys), cluster.secret_id, refresh_interval=SECOND)
    async with Server(top, settings, peers=list(cluster.urls)) as server, ServerListener(server, port=port):
        cluster.servers.append(server)
        cluster.urls.append(f"http://127.0.0.1:{port}")
        yield


class WaitingClock(SystemClock):
    """A clock whose time begins to pass when a condition holds, so that a slow machine misses no deadline before."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        self._is_so = is_so
        self._began, self._waited, self._is_over = super().monotonic(), 0.0, False

    def _behind(self) -> float:
        if not self._is_over:
            self._waited = super().monotonic() - self._began
            self._is_over = self._is_so()
        return self._waited

    def monotonic(self) -> float:
        return super().monotonic() - self._behind()

    def now_ms(self) -> int:
        return super().now_ms() - round(1000 * self._behind())


async def test_a_node_that_is_cut_off_from_the_store_makes_the_rotation_roll_back_with_nothing_lost(
    tmp_path: Path,
) -> None:
    clock = SystemClock()
    async with herd(tmp_path) as cluster:
        load = Workload(cluster.urls, clients=10, pause=timedelta(milliseconds=60))
        async with load, rotator_of(cluster) as rotator:
            began = load.now()
            await rotator.rotate(to_phase=Phase.PUBLISHED)
            b = (await cluster.document()).next
            assert b is not None
            cable = cluster.cables[4]
            assert isinstance(cable, CutOff)
            cable.is_cut = True
            sessions = cluster.servers[0].database().engine.get_repository("/sys/sessions")
            roots = (cluster.first.id, b.id)
            waiting = WaitingClock(lambda: any(one.session == b.id and one.key not in roots for one in sessions))
            async with rotator_of(cluster, adoption=2 * SECOND, clock=waiting) as impatient:
                with pytest.raises(NotAdoptedError):
                    await impatient.resume()
            cable.is_cut = False
            await clock.sleep(SECOND)
            audit = await audit_of(cluster, load)
        document = await cluster.document()
        window = load.window(began)
        trusting = [b.id in server.database().pool.root_ids for server in cluster.servers]
        signers = [server.database().pool.current.id for server in cluster.servers]
    assert document.current.id == cluster.first.id
    assert document.rotation is None
    assert document.history[-1].reason
    assert b.id in {root.id for root in document.roots}
    assert trusting == [True] * 5
    assert signers == [cluster.first.id] * 5
    assert window.refused == 0, window.reasons
    assert audit.by_signer.get(b.id, 0) > 0, "B has signed nothing in between, so the test shows nothing"
    assert audit.lost == {}
    assert audit.unverifiable == ()


async def test_a_node_that_stays_away_begins_no_rotation_and_before_b_signs_only_cancels_it(tmp_path: Path) -> None:
    async with herd(tmp_path, count=3) as cluster:
        async with rotator_of(cluster) as rotator:
            await rotator.rotate(to_phase=Phase.PREPARED)
        cluster.urls.append("http://127.0.0.1:9")
        async with rotator_of(cluster, adoption=2 * SECOND) as rotator:
            with pytest.raises(NotAdoptedError, match=r"127\.0\.0\.1:9"):
                await rotator.resume()
            document = await cluster.document()
            with pytest.raises(ObstructedError, match=r"127\.0\.0\.1:9 did not answer"):
                await rotator.rotate()
        assert await cluster.document() == document
    assert document.current.id == cluster.first.id
    assert document.next is None
