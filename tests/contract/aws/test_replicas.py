"""AWS replicas on the wire: no label moves while one lags, a failed one stops every change, and a replica is
promoted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import (
    NotAdoptedError,
    ObstructedError,
    ProviderConfigurationError,
    ReplicationFailedError,
    StoresDifferError,
    UnavailableError,
)
from goatherd.identity.document import Phase, decode_document
from goatherd.operations.identity_store import Store
from goatherd.operations.stores import promote_store, read_regions, sync_stores
from goatherd.providers.aws.address import AWSAddress
from goatherd.providers.aws.provider import AWSSecretProvider
from goatherd.providers.values import CURRENT, STABLE
from goatherd.rotation.machine import Outcome
from goatherd.rotation.rotator import Rotator
from goatherd.stores import RegionalReader, ReplicatedStore, Replication, StoreMember
from tests.deadlines import ANSWER, HANG
from tests.fakes.aws_fake import ACCESS_KEY, FakeSecretsManager
from tests.fakes.herd import FakeClock, Herd
from tests.unit.rotation.conftest import OWN_CLOCK
from tests.unit.stores.world import at_phase

from .clients import AT_ONCE, sent

SECRET = Herd.secret_id
REGIONS = {"eu": "eu-west-1", "us": "us-east-1", "ap": "ap-south-1"}
POLICY = replace(OWN_CLOCK, adoption=timedelta(seconds=6), poll_min=timedelta(seconds=1), settle=timedelta(seconds=3))
PATIENCE = timedelta(seconds=HANG)
BRIEFLY = timedelta(seconds=3)
"""How long a test lets a store wait for a replica that does not come; set when the store's client exists already."""


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, FakeSecretsManager]]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    monkeypatch.setattr("goatherd.stores.writer.FOLLOWER_TIMEOUT", ANSWER)
    with ExitStack() as stack:
        made = {name: stack.enter_context(FakeSecretsManager(region)) for name, region in REGIONS.items()}
        for fake in made.values():
            fake.others = {other.region: other for other in made.values() if other is not fake}
        yield made


def provider_in(fakes: dict[str, FakeSecretsManager], name: str) -> AWSSecretProvider:
    address = AWSAddress(region=REGIONS[name], endpoint=fakes[name].url)
    return AWSSecretProvider(address, retry=AT_ONCE, timeout=PATIENCE)


def members(fakes: dict[str, FakeSecretsManager], primary: str = "eu") -> list[StoreMember]:
    ways = dict.fromkeys(REGIONS, Replication.PLATFORM)
    if primary != "eu":
        ways = {"eu": Replication.GOATHERD, "ap": Replication.GOATHERD}
    return [
        StoreMember(
            region=name,
            provider=provider_in(fakes, name),
            template=SECRET,
            replication=None if name == primary else ways[name],
        )
        for name in (primary, *(one for one in REGIONS if one != primary))
    ]


async def test_no_label_moves_before_every_replica_is_in_sync(fakes: dict[str, FakeSecretsManager]) -> None:
    eu = fakes["eu"]
    async with provider_in(fakes, "eu") as store:
        first = await store.create(SECRET, b"1")
        await store.add_replicas(SECRET, ["us-east-1", "ap-south-1"])
        second = await store.write(SECRET, b"2", expected=first.id)
        assert {one.place: one.is_in_sync for one in (await store.replica_states(SECRET)).values()} == {
            "us-east-1": True,
            "ap-south-1": True,
        }
        eu.lagging["us-east-1"] = "InProgress"
        eu.replicate()
        store.timeout = BRIEFLY  # its client exists, so only the wait for the replica can take so long
        with pytest.raises(UnavailableError, match="the replicas in us-east-1 are not in sync yet"):
            await store.label(SECRET, STABLE, second.id, expected=None)
        with pytest.raises(UnavailableError, match="not in sync yet"):
            await store.write(SECRET, b"3", expected=second.id)
        store.timeout = PATIENCE
        assert len(sent(eu, "PutSecretValue")) == 1, "nothing was written"
        store.tolerated_replicas = frozenset({"us-east-1"})
        await store.label(SECRET, STABLE, second.id, expected=None)
        assert eu.wedged(SECRET) == ["us-east-1"], "that is what the operator has accepted"


async def test_no_label_is_removed_before_every_replica_is_in_sync(fakes: dict[str, FakeSecretsManager]) -> None:
    eu = fakes["eu"]
    async with provider_in(fakes, "eu") as store:
        first = await store.create(SECRET, b"1")
        await store.add_replicas(SECRET, ["us-east-1"])
        second = await store.write(SECRET, b"2", expected=first.id)
        await store.label(SECRET, "mine", second.id, expected=None)
        held = eu.stages(SECRET)
        assert held[first.id] == ["AWSPREVIOUS"]
        eu.lagging["us-east-1"] = "InProgress"
        eu.replicate()
        store.timeout = BRIEFLY
        for change in (store.destroy(SECRET, first.id), store.unlabel(SECRET, "mine", expected=second.id)):
            with pytest.raises(UnavailableError, match="the replicas in us-east-1 are not in sync yet"):
                await change
        store.timeout = PATIENCE
        assert eu.stages(SECRET) == held
        assert eu.wedged(SECRET) == []
        del eu.lagging["us-east-1"]
        eu.replicate()
        await store.destroy(SECRET, first.id)
        await store.unlabel(SECRET, "mine", expected=second.id)
    assert eu.wedged(SECRET) == []
    assert (
        fakes["us"].stages(SECRET)
        == eu.stages(SECRET)
        == {first.id: [], second.id: ["goatherd-candidate", "AWSCURRENT"]}
    )


async def test_a_failed_replica_stops_before_anything_is_written_and_names_the_remedy(
    fakes: dict[str, FakeSecretsManager],
) -> None:
    eu = fakes["eu"]
    async with provider_in(fakes, "eu") as store:
        first = await store.create(SECRET, b"1")
        await store.add_replicas(SECRET, ["us-east-1"])
        eu.lagging["us-east-1"] = "Failed"
        eu.replicate()
        for change in (
            store.write(SECRET, b"2", expected=first.id),
            store.label(SECRET, STABLE, first.id, expected=None),
        ):
            with pytest.raises(ReplicationFailedError, match="us-east-1: Replication Failed") as caught:
                await change
            assert "remove-regions-from-replication" in caught.value.hint
        assert not sent(eu, "PutSecretValue")
        assert not sent(eu, "UpdateSecretVersionStage")
        assert eu.wedged(SECRET) == []


async def test_a_replica_takes_no_write_until_it_is_promoted(fakes: dict[str, FakeSecretsManager]) -> None:
    async with provider_in(fakes, "eu") as eu, provider_in(fakes, "us") as us:
        first = await eu.create(SECRET, b"1")
        await eu.add_replicas(SECRET, ["us-east-1"])
        await eu.label(SECRET, "mine", first.id, expected=None)
        for change in (
            us.write(SECRET, b"2", expected=first.id),
            us.label(SECRET, STABLE, first.id, expected=None),
            us.unlabel(SECRET, "mine", expected=first.id),
            us.delete(SECRET),
        ):
            with pytest.raises(ProviderConfigurationError, match="a replica of the one in eu-west-1") as caught:
                await change
            assert "goatherd stores promote" in caught.value.hint
        assert (await us.read(SECRET)).value.reveal() == b"1"
        fakes["us"].late_promotions = 2
        for _ in range(2):  # the second time changes nothing
            await us.promote_replica(SECRET)
        assert len(sent(fakes["us"], "StopReplicationToReplica")) == 1
        await us.write(SECRET, b"2", expected=first.id)
        assert await eu.replica_states(SECRET) == {}


async def test_a_secret_with_replicas_is_not_deleted_and_the_error_names_them(
    fakes: dict[str, FakeSecretsManager],
) -> None:
    async with provider_in(fakes, "eu") as eu:
        await eu.create(SECRET, b"1")
        await eu.add_replicas(SECRET, ["us-east-1"])
        with pytest.raises(ProviderConfigurationError, match="does not delete a secret that has replicas: us-east-1"):
            await eu.delete(SECRET)
        assert (await eu.read(SECRET)).value.reveal() == b"1"


async def herd_of(fakes: dict[str, FakeSecretsManager], clock: FakeClock) -> Herd:
    writer = ReplicatedStore(members(fakes))
    async with writer:
        herd = await Herd.start(writer, clock=clock, nodes=3)
    for name, node in zip(REGIONS, herd.nodes, strict=True):
        node.provider = RegionalReader(members(fakes), region=name)
        node.adopt(node.document)
    return herd


def rotator_for(store: ReplicatedStore, herd: Herd, **options: object) -> Rotator:
    return Rotator(store, SECRET, herd.nodes, policy=POLICY, clock=herd.clock, **options)  # type: ignore[arg-type]


async def test_a_rotation_leaves_every_replica_in_sync_and_none_wedged(fakes: dict[str, FakeSecretsManager]) -> None:
    herd = await herd_of(fakes, FakeClock())
    async with ReplicatedStore(members(fakes)) as store:
        assert (await rotator_for(store, herd).rotate()).outcome is Outcome.ROTATED
        assert all(view.is_in_step for view in await store.observe(SECRET))
    assert fakes["eu"].wedged(SECRET) == []
    assert {node.document.generation for node in herd.nodes} == {6}
    for fake in fakes.values():
        assert fake.stages(SECRET) == fakes["eu"].stages(SECRET)


@pytest.mark.parametrize(
    "phase",
    [
        Phase.PUBLISHED,
        pytest.param(Phase.PREPARED, marks=pytest.mark.deep),
        pytest.param(Phase.ACTIVATED, marks=pytest.mark.deep),
    ],
)
async def test_a_region_that_lags_from_a_phase_on_ends_the_rotation(
    fakes: dict[str, FakeSecretsManager], phase: Phase
) -> None:
    clock, listed = FakeClock(), members(fakes)
    herd = await herd_of(fakes, clock)

    def lag() -> None:
        fakes["eu"].lagging["us-east-1"] = "InProgress"
        fakes["eu"].replicate()
        if phase is Phase.PREPARED:  # only then the store itself waits for the replica
            for member in listed:
                member.provider.timeout = BRIEFLY

    async with ReplicatedStore(listed) as store:
        with pytest.raises(NotAdoptedError, match="us: "):
            await rotator_for(store, herd, on_event=at_phase(phase, lag)).rotate()
        document = decode_document((await store.read(SECRET, CURRENT)).value.reveal())
        assert document.current.id == "root-a"
        assert document.rotation is None
        fakes["eu"].lagging["us-east-1"] = "Failed"
        fakes["eu"].replicate()
        puts = len(sent(fakes["eu"], "PutSecretValue"))
        with pytest.raises(ObstructedError, match="replication has failed"):
            await rotator_for(store, herd).rotate()
        assert len(sent(fakes["eu"], "PutSecretValue")) == puts, "nothing was written"


async def test_a_replica_is_promoted_and_the_old_primary_comes_back_behind(
    fakes: dict[str, FakeSecretsManager],
) -> None:
    clock = FakeClock()
    herd = await herd_of(fakes, clock)
    async with ReplicatedStore(members(fakes)) as store:
        await rotator_for(store, herd).rotate(to_phase=Phase.PUBLISHED)
    fakes["eu"].fail("InternalServiceError", status=500, times=10_000)
    async with RegionalReader(members(fakes)) as reader:
        stores = Store(provider=reader, secret_id=SECRET, org="localhost", name="stores")
        report = await promote_store(stores, "us", clock=clock)
        assert list(report.unseen) == ["region eu"]
        assert (await promote_store(stores, "us", clock=clock)).is_repeated
    fakes["eu"]._troubles.clear()
    async with ReplicatedStore(members(fakes, "us")) as store:
        stores = Store(provider=store, secret_id=SECRET, org="localhost", name="stores")
        eu = next(one for one in await read_regions(stores) if one.region == "eu")
        assert eu.problem == f"behind region us, which holds generation {report.generation}"
        # The link of ap to eu is gone with eu's primary role: both are followers that Goatherd writes.
        for fake in (fakes["eu"], fakes["ap"]):
            fake._secrets[SECRET].primary_region = None
        fakes["eu"]._secrets[SECRET].replicas.clear()
        assert (await sync_stores(stores)).is_complete
        assert (await rotator_for(store, herd).resume()).outcome is Outcome.ROTATED
        assert all(view.is_in_step for view in await store.observe(SECRET))
    assert {node.document.generation for node in herd.nodes} == {report.generation + 3}
    puts = len(sent(fakes["eu"], "PutSecretValue"))
    async with ReplicatedStore(members(fakes)) as former:  # with the configuration from before
        with pytest.raises(ObstructedError, match=r"region us .* does not replicate the secret to it") as caught:
            await rotator_for(former, herd).rotate()
        assert "If region us was promoted, make it the primary store" in caught.value.hint
    assert len(sent(fakes["eu"], "PutSecretValue")) == puts, "nothing was written"


async def test_a_replica_and_its_primary_that_both_rotated_are_a_split_that_nothing_overwrites(
    fakes: dict[str, FakeSecretsManager],
) -> None:
    herd = await herd_of(fakes, FakeClock())
    eu_side, us_side = [herd.nodes[0], herd.nodes[2]], [herd.nodes[1]]
    both = herd.nodes
    cut(fakes, "eu", "ap")
    async with RegionalReader(members(fakes)) as reader:
        stores = Store(provider=reader, secret_id=SECRET, org="localhost", name="stores")
        await promote_store(stores, "us", clock=herd.clock)
    for node in us_side:
        await node.look()
    herd.nodes = us_side
    async with ReplicatedStore(members(fakes, "us"), allowed=["eu", "ap"]) as store:
        assert (await rotator_for(store, herd).rotate()).outcome is Outcome.ROTATED
    cut(fakes, "us")
    herd.nodes = eu_side
    async with ReplicatedStore(members(fakes), allowed=["us"]) as store:
        assert (await rotator_for(store, herd).rotate()).outcome is Outcome.ROTATED
    assert fakes["ap"].stages(SECRET) == fakes["eu"].stages(SECRET)
    cut(fakes)

    herd.nodes = both
    used = [node.document for node in both]
    for node in both:
        node.provider = RegionalReader(node.provider.listed, region=node.provider.region)  # type: ignore[attr-defined]
        await node.look()
    assert [node.document for node in both] == used
    held = {name: fake.stages(SECRET) for name, fake in fakes.items()}
    for primary, other, herd.nodes in (("eu", "us", eu_side), ("us", "eu", us_side)):
        async with ReplicatedStore(members(fakes, primary)) as store:
            views = {view.region: view for view in await store.observe(SECRET)}
            assert views[other].is_split
            with pytest.raises(ObstructedError, match="another history"):
                await rotator_for(store, herd).rotate()
            found = await store.read(SECRET)
            with pytest.raises(StoresDifferError, match="another history"):
                await store.label(SECRET, STABLE, found.version.id, expected=None)
            stores = Store(provider=store, secret_id=SECRET, org="localhost", name="stores")
            report = await sync_stores(stores, patience=timedelta(0))
            assert not report.is_complete
            assert report.added == ()
    assert {name: fake.stages(SECRET) for name, fake in fakes.items()} == held
    assert not sent(fakes["eu"], "ReplicateSecretToRegions")[1:], "nothing was replicated over the other history"


def cut(fakes: dict[str, FakeSecretsManager], *names: str) -> None:
    """Cut off the regions with these names, and no others."""
    for name, fake in fakes.items():
        fake._troubles.clear()
        if name in names:
            fake.fail("InternalServiceError", status=500, times=100_000)
