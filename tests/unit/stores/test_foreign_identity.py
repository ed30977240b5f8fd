"""An attacker who can write one region's store makes an identity of their own there, correctly signed by its root.

Its generation is higher, it names the honest document as its predecessor, and it lists the honest roots. It must not
count as the later identity for a server, a command or a hint, and must not be copied.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from goatherd.identity.document import (
    IdentityDocument,
    decode_document,
    encode_document,
    normalize_document,
    sign_document,
    source_digest,
)
from goatherd.identity.lineage import Lineage
from goatherd.identity.succession import MAX_JUMP
from goatherd.identity.transitions import correct_times, create_document, revoke_root
from goatherd.operations.identity_store import Store
from goatherd.operations.stores import promote_store, read_regions, sync_stores
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.events import Event, StoreTroubled
from goatherd.rotation.machine import Outcome
from goatherd.settings.store import CloudSecretSettings
from goatherd.stores import DocumentMark, Standing
from tests.fakes.herd import FakeClock
from tests.unit.identity.make import owned
from tests.unit.operations.test_stores import nodes_with
from tests.unit.rotation.conftest import OWN_CLOCK
from tests.unit.stores.regions import SECRET, Regions
from tests.unit.stores.test_reader import FIRST, write
from tests.unit.stores.world import World, current

NOW_MS = FakeClock().now_ms()


def forge(honest: IdentityDocument, *, ahead: int = 5, lists_honest: bool = True) -> IdentityDocument:
    """Return an identity of the attacker's own, which looks like a successor of `honest`."""
    made = create_document(owned("attacker"), NOW_MS)
    lineage = (honest.lineage or Lineage()).followed_by(honest.generation, source_digest(honest))
    roots = (*made.roots, *honest.roots) if lists_honest else made.roots
    forged = replace(made, generation=honest.generation + ahead, lineage=lineage, roots=roots)
    return normalize_document(sign_document(forged, NOW_MS))


def stores_of(regions: Regions) -> Store:
    return Store(provider=regions.writer(), secret_id=SECRET, org="localhost", name="stores")


@pytest.fixture
async def regions() -> Regions:
    made = Regions(FakeClock())
    await made.writer().create(SECRET, encode_document(FIRST))
    return made


@pytest.mark.parametrize("ahead", [1, 5])
async def test_the_servers_of_that_region_follow_a_revocation_in_another_store(regions: Regions, ahead: int) -> None:
    async with CloudSecretSettings(SECRET, regions.reader("ap"), clock=regions.clock) as settings:
        await settings.load()
        await write(regions, "ap", forge(FIRST, ahead=ahead))
        revoked = revoke_root(FIRST, FIRST.current.id, NOW_MS, reason="stolen", successor=owned("new"))
        await write(regions, "eu", revoked)
        assert await settings.refresh()
        assert settings.status.generation == revoked.generation
        assert settings.settings.document.revoked_ids == {FIRST.current.id}
        problems = {state.region: state.problem for state in settings.status.stores if state.problem is not None}
        expected = f"holds generation {1 + ahead}, which does not follow from the roots in use"
        assert problems == {"ap": expected}


async def test_in_another_region_it_is_reported_and_not_offered_to_the_servers(regions: Regions) -> None:
    async with CloudSecretSettings(SECRET, regions.reader("us"), clock=regions.clock) as settings:
        await settings.load()
        await write(regions, "ap", forge(FIRST))
        assert not await settings.refresh()
        assert not settings.status.is_degraded, "rotations are rolled back if a server reports that it rejects one"
        problems = {state.region: state.problem for state in settings.status.stores if state.problem is not None}
        assert problems == {"ap": "holds generation 6, which does not follow from the roots in use"}


async def test_if_no_store_can_be_used_the_caller_judges_each_of_them_in_turn(regions: Regions) -> None:
    """The caller may find the introductions that lead to a store's identity in the logs of other servers."""
    reader = regions.reader("ap")
    reader.note_used(SECRET, DocumentMark.from_document(FIRST))
    regions.us.is_cut_off = True
    await write(regions, "ap", forge(FIRST))
    await write(regions, "eu", forge(FIRST, ahead=6))
    found = await reader.read(SECRET)
    assert decode_document(found.value.reveal()).generation == 6
    reader.note_rejected(SECRET, found.value)
    assert decode_document((await reader.read(SECRET)).value.reveal()).generation == 7


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [-1, 0, 5])
async def test_a_rotation_goes_through_and_names_the_store(ahead: int) -> None:
    world = await World.start()
    world.is_going_back = True  # the region `ap` stays behind
    forged = forge(current(world), ahead=ahead)
    await write(world.regions, "ap", forged)
    events: list[Event] = []
    report = await world.rotator(events.append).rotate()
    assert report.outcome is Outcome.ROTATED
    left = [one.error for one in events if isinstance(one, StoreTroubled)]
    assert len(left) == 1
    assert left[0].startswith("the rotation continues without region ap: it holds generation")
    assert world.regions.ap.document() == forged
    await world.herd.settle(4)
    assert {node.pool.current.id for node in world.herd.nodes} == {report.to_id}


@pytest.mark.slow
async def test_a_revocation_goes_through_and_names_the_store() -> None:
    world = await World.start()
    world.is_going_back = True
    forged = forge(current(world))
    await write(world.regions, "ap", forged)
    revoker = Revoker(world.regions.writer(), SECRET, (), policy=OWN_CLOCK, clock=world.herd.clock)
    report = await revoker.revoke("root-a", reason="stolen")
    assert (current(world).revoked_ids, report.lagging_regions) == ({"root-a"}, ("ap",))
    assert world.regions.ap.document() == forged
    await world.herd.settle(4)
    assert {node.pool.current.id for node in world.herd.nodes} == {report.current_id}


@pytest.mark.parametrize("lists_honest", [False, True])
@pytest.mark.parametrize("place", ["eu", "ap"])
async def test_it_is_neither_copied_nor_named_as_the_later_one(
    regions: Regions, place: str, lists_honest: bool
) -> None:
    forged = forge(FIRST, lists_honest=lists_honest)
    regions.us.is_stalled = True  # a platform copies what its primary store holds, whatever that is
    await write(regions, place, forged)
    states = {one.region: one for one in await read_regions(stores_of(regions))}
    assert Standing.AHEAD not in {one.standing for one in states.values()}
    assert Standing.BEHIND not in {one.standing for one in states.values()}
    assert states["ap"].standing is Standing.UNTRUSTED
    assert "region eu" in (states["ap"].problem or "")
    assert "the servers trust" in states["ap"].hint
    report = await sync_stores(stores_of(regions))
    assert [one.region for one in report.followers if one.is_untrusted and "lead" in one.problem][-1] == "ap"
    held = {region: regions.stores[region].document().generation for region in ("eu", "ap")}
    assert held == {"eu": 1, "ap": 1} | {place: forged.generation}


async def test_in_the_primary_store_it_does_not_stop_the_promotion_of_a_store_that_servers_trust(
    regions: Regions,
) -> None:
    regions.us.is_stalled = True
    await write(regions, "eu", forge(FIRST, ahead=10 * MAX_JUMP))
    report = await promote_store(stores_of(regions), "ap", nodes_with(FIRST), clock=regions.clock)
    assert (report.generation, report.overruled) == (FIRST.generation + 1, ())


async def test_a_successor_by_the_same_roots_is_still_the_later_one(regions: Regions) -> None:
    later = normalize_document(sign_document(correct_times(FIRST, NOW_MS + 1), NOW_MS))
    await write(regions, "ap", later)
    states = {one.region: one.standing for one in await read_regions(stores_of(regions))}
    assert (states["eu"], states["ap"]) == (Standing.BEHIND, Standing.SAME)
