"""Revocations in three regions: an unreachable region delays no server, and does not keep the stolen root trusted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from goatherd.cli.text.revocation import revocation_lines
from goatherd.errors import StoresDifferError
from goatherd.identity.document import encode_document
from goatherd.identity.transitions import correct_times
from goatherd.providers.values import SecretVersion
from goatherd.revocation.revoker import Revoker
from tests.unit.rotation.conftest import OWN_CLOCK
from tests.unit.stores.regions import SECRET
from tests.unit.stores.world import World, current

pytestmark = pytest.mark.slow


def revoker(world: World) -> Revoker:
    return Revoker(world.regions.writer(), SECRET, (), policy=OWN_CLOCK, clock=world.herd.clock)


@pytest.mark.parametrize("region", ["us", "ap"])
async def test_a_region_that_goes_away_after_the_write_is_left_behind(region: str) -> None:
    world = await World.start()
    world.is_going_back = True
    eu, store = world.regions.eu, world.regions.stores[region]
    write = eu._write

    async def cut(*arguments: Any) -> SecretVersion:
        made = await write(*arguments)
        store.is_cut_off = True
        return made

    eu._write = cut  # type: ignore[method-assign]
    report = await revoker(world).revoke("root-a", reason="stolen")
    assert (current(world).revoked_ids, report.lagging_regions, report.stable_problem) == ({"root-a"}, (region,), None)
    assert f"region {region}: its store LAGS" in "\n".join(revocation_lines(report))
    assert eu.contents()[0] == eu.contents()[1], "there is no going back behind a revocation"
    again = await revoker(world).revoke("root-a", reason="stolen")
    assert again.generation == report.generation
    await world.herd.settle(4)
    assert {node.pool.current.id for node in world.herd.nodes} == {report.current_id}


async def test_a_region_that_is_away_before_the_write_is_left_behind() -> None:
    world = await World.start()
    world.is_going_back, world.regions.ap.is_cut_off = True, True
    report = await revoker(world).revoke("root-a", reason="stolen")
    assert (current(world).revoked_ids, report.lagging_regions) == ({"root-a"}, ("ap",))


async def test_the_servers_of_a_region_whose_replication_has_ended_learn_of_a_revocation() -> None:
    world = await World.start()
    world.is_going_back, world.regions.us.is_stalled = True, True
    report = await revoker(world).revoke("root-a", reason="stolen")
    assert report.lagging_regions == ("us",)
    world.herd.clock.turn(timedelta(minutes=6))
    await world.herd.settle(4)
    assert {node.pool.current.id for node in world.herd.nodes} == {report.current_id}


async def test_nothing_is_revoked_where_another_store_was_promoted() -> None:
    world = await World.start()
    ap = world.regions.ap
    later = correct_times(current(world), world.herd.clock.now_ms())
    await ap.write(SECRET, encode_document(later), expected=(await ap.read(SECRET)).version.id)
    with pytest.raises(StoresDifferError):
        await revoker(world).revoke("root-a", reason="stolen")
    assert current(world).revoked_ids == frozenset()
