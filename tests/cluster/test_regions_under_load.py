"""Nine servers in three regions under load, each region with an OpenBao process of its own: rotate, cut off, promote.

A region's store is cut off by a proxy in front of it: every connection is reset, or nothing answers. Deadlines are
short only while a region is cut off, so that a run ends in the same way on a slow machine as on a fast one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import NotAdoptedError, ObstructedError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.operations.identity_store import Store
from goatherd.operations.stores import promote_store, read_regions, sync_stores
from goatherd.operations.workload import Workload
from goatherd.providers.base import RetryPolicy, SecretProvider
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import TokenAuth
from goatherd.providers.vault.provider import VaultSecretProvider
from goatherd.rotation.machine import Outcome, Phase, Policy
from goatherd.rotation.rotator import Rotator
from goatherd.stores import RegionalReader, ReplicatedStore, StoreMember
from tests.deadlines import ADOPTION, ANSWER
from tests.fakes.faults import Fault, FaultProxy, Mode
from tests.fakes.openbao import ROOT_TOKEN, WHY_SKIPPED, BaoServer, find_bao

from .herd import Herd, herd_around

pytestmark = [pytest.mark.slow, pytest.mark.deep]

SECRET = "goatdb/root"
SECOND = timedelta(seconds=1)
REFRESH = 3 * SECOND
ORDER = ("eu", "us", "ap")


class Region:
    """The store of one region, which a test can cut off from all servers and commands."""

    def __init__(self, store: BaoServer) -> None:
        self._proxy = FaultProxy("127.0.0.1", store.port)

    async def __aenter__(self) -> Region:
        await self._proxy.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._proxy.stop()

    async def cut_off(self, mode: Mode) -> None:
        self._proxy.fault = Fault(mode=mode)
        await self._proxy.drop()

    async def heal(self) -> None:
        self._proxy.fault = Fault()
        await self._proxy.drop()

    def provider(self, timeout: timedelta) -> SecretProvider:
        url = f"http://127.0.0.1:{self._proxy.port}"
        address = VaultAddress(url=url, auth=TokenAuth(token=ROOT_TOKEN), reads_active=True)
        return VaultSecretProvider(address, timeout=timeout, retry=RetryPolicy(attempts=2))


class Regions:
    """The stores of three regions, and the clients of servers and commands."""

    def __init__(self, stores: dict[str, Region]) -> None:
        self.stores = stores

    def members(self, primary: str = "eu", *, timeout: timedelta = ANSWER) -> list[StoreMember]:
        found = []
        for name in (primary, *(one for one in ORDER if one != primary)):
            provider = self.stores[name].provider(timeout)
            found.append(StoreMember(region=name, provider=provider, template=SECRET, is_primary=name == primary))
        return found

    def writer(self, primary: str = "eu", *, allowed: Sequence[str] = ()) -> ReplicatedStore:
        return ReplicatedStore(self.members(primary), allowed=allowed, patience=ADOPTION)

    def server_reader(self, region: str) -> RegionalReader:
        # A store that is too slow for a server does no harm: the server reads the next region's store.
        return RegionalReader(self.members(timeout=4 * SECOND), region=region, interval=REFRESH)


@contextlib.contextmanager
def processes() -> Iterator[list[BaoServer]]:
    program = find_bao()
    if program is None:
        pytest.skip(WHY_SKIPPED)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(BaoServer(program)) for _ in ORDER]


@pytest.fixture
async def regions() -> AsyncIterator[Regions]:
    async with contextlib.AsyncExitStack() as stack:
        started = stack.enter_context(processes())
        stores = [await stack.enter_async_context(Region(store)) for store in started]
        yield Regions(dict(zip(ORDER, stores, strict=True)))


@contextlib.asynccontextmanager
async def rotator_of(
    cluster: Herd, store: ReplicatedStore, *, deadline: timedelta = ADOPTION
) -> AsyncIterator[Rotator]:
    """Yield a rotator over a store that it opens, as a command does."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(store)
        nodes = [await stack.enter_async_context(NodeClient(url, timeout=ANSWER)) for url in cluster.urls]
        policy = Policy(
            adoption=deadline,
            settle=deadline,
            node_timeout=ANSWER,
            store_patience=ADOPTION,
            poll_min=SECOND / 2,  # to leave the processor to nine servers
        )
        yield Rotator(store, SECRET, nodes, policy=policy, started_by="test")


def stores_of(provider: SecretProvider) -> Store:
    return Store(provider=provider, secret_id=SECRET, org="localhost", name="stores")


async def sync(regions: Regions, primary: str = "eu") -> IdentityDocument:
    """Bring the stores of all regions forward; return their contents."""
    async with regions.writer(primary) as store:
        assert (await sync_stores(stores_of(store), patience=ADOPTION)).is_complete
        states = await read_regions(stores_of(store))
        assert all(one.is_in_step for one in states), states
        return decode_document((await store.read(SECRET)).value.reveal())


async def wait_until(is_done: Callable[[], bool], what: Callable[[], object]) -> None:
    clock = SystemClock()
    until = clock.monotonic() + ADOPTION.total_seconds()
    while not is_done():
        assert clock.monotonic() < until, what()
        await clock.sleep(SECOND / 10)


async def wait_for_root(cluster: Herd, root: str) -> None:
    """Wait until every server signs with a root."""

    def signers() -> set[str]:
        return {server.database().pool.current.id for server in cluster.servers}

    await wait_until(lambda: signers() == {root}, signers)


async def wait_for_regions(cluster: Herd, regions: Sequence[str]) -> None:
    """Wait until each server has read the store of its region in `regions` last."""

    def read_last() -> list[str | None]:
        readers = [one for one in cluster.cables if isinstance(one, RegionalReader)]
        lasts = [one.last_read(SECRET) for one in readers]
        return [None if one is None else one.region for one in lasts]

    await wait_until(lambda: read_last() == list(regions), read_last)


async def test_nine_servers_in_three_regions_refuse_nothing_and_lose_nothing(
    tmp_path: Path, regions: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.stores.writer.FOLLOWER_TIMEOUT", ANSWER)
    number = count(-1)

    def make() -> SecretProvider:
        turn = next(number)  # the first is the operator's
        return regions.writer() if turn < 0 else regions.server_reader(ORDER[turn % 3])

    async with herd_around(tmp_path, make, SECRET, count=9, neighbours=1, refresh_interval=REFRESH) as cluster:
        load = Workload(cluster.urls, clients=3, pause=SECOND, timeout=ADOPTION)
        async with load:
            began, root = load.now(), cluster.first.id
            await sync(regions)
            await wait_for_regions(cluster, [*ORDER] * 3)

            # A region's store is away: nothing begins, and a rotation in progress goes back from every phase.
            ap = regions.stores["ap"]
            for phase, mode in (
                (None, Mode.RESET),
                (Phase.PREPARED, Mode.RESET),
                (Phase.PUBLISHED, Mode.BLACK_HOLE),
                (Phase.ACTIVATED, Mode.RESET),
                (Phase.VERIFIED, Mode.RESET),
            ):
                if phase is not None:
                    async with rotator_of(cluster, regions.writer()) as rotator:
                        await rotator.rotate(to_phase=phase)
                await ap.cut_off(mode)
                with monkeypatch.context() as patch:
                    patch.setattr("goatherd.stores.writer.FOLLOWER_TIMEOUT", 2 * SECOND)
                    async with rotator_of(cluster, regions.writer(), deadline=2 * SECOND) as rotator:
                        if phase is None:
                            with pytest.raises(ObstructedError, match="region ap"):
                                await rotator.rotate()
                        else:
                            with pytest.raises(NotAdoptedError):
                                await rotator.resume()
                await wait_for_regions(cluster, ["eu", "us", "eu"] * 3)
                await ap.heal()
                document = await sync(regions)
                assert document.rotation is None
                assert document.current.id == root
                await wait_for_root(cluster, root)

            # The primary region is lost in the middle of a rotation; another one is promoted, and ends it.
            async with rotator_of(cluster, regions.writer()) as rotator:
                await rotator.rotate(to_phase=Phase.ACTIVATED)
            eu = regions.stores["eu"]
            await eu.cut_off(Mode.RESET)
            async with RegionalReader(regions.members()) as reader:
                promoted = await promote_store(stores_of(reader), "us")
            assert list(promoted.unseen) == ["region eu"]
            store = regions.writer("us", allowed=["eu"])
            async with rotator_of(cluster, store) as rotator:
                assert (await rotator.resume()).outcome is Outcome.ROTATED
                found = await store.read(SECRET)
            document = decode_document(found.value.reveal())
            assert document.current.id != root
            await wait_for_root(cluster, document.current.id)
            await wait_for_regions(cluster, ["us", "us", "ap"] * 3)

            # The old primary store comes back, behind, and is brought forward.
            await eu.heal()
            async with regions.writer("us") as store:
                (state,) = [one for one in await read_regions(stores_of(store)) if one.region == "eu"]
            assert state.problem == f"behind region us, which holds generation {document.generation}"
            assert await sync(regions, "us") == document
            async with rotator_of(cluster, regions.writer("us")) as rotator:
                await rotator.rotate(to_phase=Phase.PUBLISHED)
            assert (await sync(regions, "us")).current.id == document.current.id
            await load.stop()
            audit = await load.audit([cluster.first.session], timeout=ADOPTION)
            window = load.window(began)
    assert window.refused == 0, window.reasons
    assert window.requests > 100
    assert audit.accepted > 50
    assert audit.lost == {}
    assert audit.unverifiable == ()
