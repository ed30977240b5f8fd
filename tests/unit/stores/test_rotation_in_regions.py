"""Rotations in three regions: a region that lags, is cut off, or is promoted in any phase, and an old primary's return.

Each run checks at every moment that no server goes back or follows another history (`World.check_nodes`), and before
every change of the primary store that each follower shows the change before (`World.check_gate`).
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from goatherd.errors import (
    NotAdoptedError,
    ObstructedError,
    ProviderAccessDeniedError,
    ProviderError,
    UnavailableError,
)
from goatherd.identity.document import Phase, decode_document
from goatherd.providers.base import Call
from goatherd.rotation.machine import Outcome, Step
from goatherd.stores import DocumentMark, FollowerView, ReplicatedStore, Standing
from tests.unit.stores.regions import SECRET
from tests.unit.stores.world import IMPATIENT, ViolationError, World, at_phase, current

pytestmark = pytest.mark.slow

PHASES = (Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED)


async def check_rest(world: World) -> None:
    """Check that every server signs with the current root, and nothing that clients wrote is lost."""
    await world.herd.settle(4)
    document = current(world)
    assert document.rotation is None
    assert {node.pool.current.id for node in world.herd.nodes} == {document.current.id}
    assert {node.document.generation for node in world.herd.nodes} == {document.generation}
    assert world.herd.lost() == []
    assert world.herd.unverifiable() == []
    assert world.herd.refused == 0


async def followers(world: World) -> tuple[FollowerView, ...]:
    return await world.regions.writer(world.primary).observe(SECRET, catch_up=True)


async def test_a_rotation_in_three_regions_leaves_all_stores_alike() -> None:
    world = await World.start(servers=9, clients=3)
    report = await world.rotator().rotate()
    assert report.outcome is Outcome.ROTATED
    assert all(view.is_in_step for view in await followers(world))
    assert world.counted.changes >= 7
    await check_rest(world)


@pytest.mark.parametrize("lag", [1, pytest.param(2, marks=pytest.mark.deep)])
async def test_a_replica_that_lags_for_a_while_delays_the_rotation_and_no_more(lag: int) -> None:
    world = await World.start()

    async def tick() -> None:
        world.regions.us.lag = 0 if int(world.herd.clock.monotonic()) % 4 == 0 else lag
        await world.tick()

    world.herd.clock.on_tick = tick
    assert (await world.rotator().rotate()).outcome is Outcome.ROTATED
    world.regions.us.lag = 0
    await check_rest(world)


@pytest.mark.parametrize(
    ("phase", "region"),
    [
        pytest.param(phase, region, marks=() if (phase, region) == (Phase.ACTIVATED, "ap") else pytest.mark.deep)
        for phase in PHASES[:3]
        for region in ("us", "ap")
    ],
)
async def test_a_region_that_is_cut_off_in_a_phase_holds_the_rotation_which_then_goes_back(
    phase: Phase, region: str
) -> None:
    world = await World.start()
    store = world.regions.stores[region]

    def cut() -> None:
        store.is_cut_off = True

    ignoring_lag = ReplicatedStore.ignoring_lag
    with pytest.MonkeyPatch.context() as patch:

        def noted(self: ReplicatedStore) -> object:
            world.is_going_back = True
            return ignoring_lag(self)

        patch.setattr(ReplicatedStore, "ignoring_lag", noted)
        with pytest.raises(NotAdoptedError, match=f"{region}:") as caught:
            await world.rotator(at_phase(phase, cut)).rotate()
    world.is_going_back = False
    assert caught.value.report is not None
    assert current(world).current.id == "root-a"
    last = current(world).history[-1]
    assert last.event == ("cancelled" if phase in (Phase.PREPARED, Phase.PUBLISHED) else "rolled-back")
    store.is_cut_off = False
    world.herd.clock.turn(timedelta(minutes=1))
    assert all(view.is_in_step for view in await followers(world))
    assert (await world.rotator().rotate()).outcome is Outcome.ROTATED
    await check_rest(world)


async def test_the_servers_of_a_region_that_was_allowed_to_lag_follow_the_stores_of_the_others() -> None:
    world = await World.start()
    world.allowed, world.regions.us.is_stalled = ("us",), True
    report = await world.rotator().rotate()
    assert report.outcome is Outcome.ROTATED
    await world.herd.settle(4)
    assert {node.pool.current.id for node in world.herd.nodes} == {report.to_id}


async def test_a_region_that_is_away_stops_a_rotation_before_anything_is_written() -> None:
    world = await World.start()
    world.regions.ap.is_cut_off = True
    with pytest.raises(ObstructedError, match="region ap") as caught:
        await world.rotator().rotate()
    assert caught.value.hint.startswith(UnavailableError.hint)
    assert "`--allow-lagging ap` leaves its store out" in caught.value.hint
    assert current(world).generation == 1
    world.allowed = ("ap",)
    assert (await world.rotator().rotate()).outcome is Outcome.ROTATED
    await check_rest(world)


async def test_a_region_that_denies_access_is_not_waited_for_before_a_rotation_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await World.start()

    def deny(call: Call) -> None:
        raise call.error(ProviderAccessDeniedError, "denied")

    monkeypatch.setattr(world.regions.ap, "_arrive", deny)
    began = world.herd.clock.monotonic()
    with pytest.raises(ObstructedError, match="region ap"):
        await world.rotator().rotate()
    assert world.herd.clock.monotonic() - began < IMPATIENT.adoption.total_seconds() / 2
    assert current(world).generation == 1


@pytest.mark.parametrize(
    ("phase", "region"),
    [
        pytest.param(phase, region, marks=() if (phase, region) == (Phase.PUBLISHED, "us") else pytest.mark.deep)
        for phase in PHASES
        for region in ("us", "ap")
    ],
)
async def test_a_region_is_promoted_in_a_phase_and_the_rotation_ends_there(phase: Phase, region: str) -> None:
    world = await World.start()

    def lose() -> None:
        world.regions.eu.is_cut_off = True

    with pytest.raises(ProviderError):
        await world.rotator(at_phase(phase, lose)).rotate()
    before = current(world).generation
    report = await world.promote(region)
    assert report.generation == before + 1
    assert "region eu" in report.unseen
    world.allowed = ("eu",)
    # The versions of the promoted store are its own: the way back leads through its label stable.
    assert current(world).rotation is not None
    stable = await world.regions.stores[region].read(SECRET, "stable")
    assert current(world).rotation.stable_version == stable.version.id  # type: ignore[union-attr]
    assert (await world.rotator().resume()).outcome is Outcome.ROTATED
    await check_rest(world)
    # The old primary store returns with an earlier state, and `stores sync` updates it.
    world.regions.eu.is_cut_off, world.allowed = False, ()
    world.herd.clock.turn(timedelta(minutes=1))
    assert all(view.is_in_step for view in await followers(world))
    assert (await world.rotator().rotate()).outcome is Outcome.ROTATED
    await check_rest(world)


@pytest.mark.deep
async def test_after_a_promotion_in_a_phase_the_rotation_can_be_rolled_back_there() -> None:
    world = await World.start()

    def lose() -> None:
        world.regions.eu.is_cut_off = True

    with pytest.raises(ProviderError):
        await world.rotator(at_phase(Phase.ACTIVATED, lose)).rotate()
    await world.promote("ap")
    world.allowed = ("eu", "us")
    report = await world.rotator().abandon(by=Step.ROLL_BACK)
    assert report.outcome is Outcome.ROLLED_BACK
    assert current(world).current.id == "root-a"
    await check_rest(world)


async def test_a_roll_back_with_the_configuration_from_before_a_promotion_is_refused() -> None:
    world = await World.start()
    with pytest.raises(InterruptedError):
        await world.rotator(at_phase(Phase.ACTIVATED, interrupt)).rotate()
    await world.promote("us")
    world.primary = "eu"  # this operator has not changed the configuration yet
    before = current(world)
    with pytest.raises(ObstructedError, match="region us"):
        await world.rotator().abandon(by=Step.ROLL_BACK)
    assert current(world) == before


def interrupt() -> None:
    raise InterruptedError


async def test_two_primaries_that_both_rotated_are_a_split_and_no_server_changes_sides() -> None:
    world = await World.start()
    eu_side, ap_side = world.herd.nodes[:2], world.herd.nodes[2:]
    world.herd.clock.on_tick = world.herd.step
    world.regions.eu.is_cut_off = world.regions.us.is_cut_off = True
    await world.promote("ap")
    world.allowed, world.herd.nodes = ("eu", "us"), ap_side
    for node in ap_side:
        await node.look()
    await world.rotator().rotate()
    world.regions.eu.is_cut_off = world.regions.us.is_cut_off = False
    world.regions.ap.is_cut_off = True
    world.primary, world.allowed, world.herd.nodes = "eu", ("ap",), eu_side
    await world.rotator().rotate()
    world.regions.ap.is_cut_off, world.herd.nodes = False, [*eu_side, *ap_side]
    world.herd.clock.turn(timedelta(minutes=5))
    documents = {node.base_url: node.document for node in world.herd.nodes}
    for node in world.herd.nodes:
        await node.look()
    assert {node.base_url: node.document for node in world.herd.nodes} == documents
    world.allowed = ()
    (_, ap) = await followers(world)
    assert ap.is_split
    before = world.regions.ap.document()
    writer = world.regions.writer()
    found = await writer.read(SECRET)
    with pytest.raises(ProviderError, match="another history"):
        await writer.label(SECRET, "stable", found.version.id, expected=None)
    assert world.regions.ap.document() == before


# --- the proofs can fail ----------------------------------------------------------------------------------------------


async def test_without_the_gate_after_each_change_the_primary_store_runs_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FollowerView, "is_holding", False)
    world = await World.start()
    world.regions.us.lag = 1
    with pytest.raises(ViolationError, match="while us is 1 behind"):
        await world.rotator().rotate()


async def test_without_the_gate_for_labels_a_label_moves_while_a_replica_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goatherd.rotation.machine._CHANGES", ())
    monkeypatch.setattr(ReplicatedStore, "_wait_for_followers", lambda *_: _nothing())
    world = await World.start()

    async def tick() -> None:
        # The last change before the end is the final document; then label stable moves.
        world.regions.us.lag = 1 if current(world).generation >= 5 else 0
        await world.tick()

    world.herd.clock.on_tick = tick
    with pytest.raises(ViolationError, match="while us is"):
        await world.rotator(at_phase(Phase.VERIFIED, lambda: setattr(world.regions.us, "lag", 1))).rotate()


async def _nothing() -> None:
    pass


async def test_without_the_generation_rule_a_server_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(one: DocumentMark, other: DocumentMark) -> Standing:
        return Standing.SAME

    world = await World.start()
    node = world.herd.nodes[1]
    assert (await world.rotator().rotate()).outcome is Outcome.ROTATED
    world.regions.us.show_again(2)

    async def look(world: World) -> None:
        found = await node.provider.read(SECRET)
        before = {each.base_url: each.document.generation for each in world.herd.nodes}
        node.adopt(decode_document(found.value.reveal()))
        world.check_nodes(before)

    await look(world)
    monkeypatch.setattr("goatherd.stores.reader.compare_documents", compare)
    with pytest.raises(ViolationError, match="went back"):
        await look(world)
