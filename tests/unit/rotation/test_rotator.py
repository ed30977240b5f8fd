"""The rotator on a simulated herd: what happens when all is well."""

from __future__ import annotations

from goatherd.rotation import Outcome

from .conftest import MakeHerd, check_steady, rotator_for


async def test_a_healthy_rotation_refuses_nothing_and_loses_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=5, clients=3)
    report = await rotator_for(herd).rotate()
    assert report.outcome is Outcome.ROTATED
    assert report.from_id == "root-a"
    document = await check_steady(herd)
    assert document.current.id == report.to_id == report.current_id
    assert document.rotated_from == "root-a"
    assert herd.refused == 0
