"""Restarts during a rotation: each is counted, and the agent restarts a server at most once for one rotation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from goatherd.errors import NotAdoptedError
from goatherd.identity.document import Phase
from goatherd.rotation.events import Event, PhaseEntered, Report
from goatherd.rotation.machine import Outcome
from tests.fakes.herd import Herd
from tests.unit.rotation.conftest import MakeHerd, check_steady, rotator_for
from tests.unit.rotation.test_interrupted import EFFECTS, KilledError, Trap, kill, trapped

EVERY = timedelta(seconds=5)


def real_restarts(herd: Herd) -> dict[str, int]:
    return {node.base_url: node.restarts for node in herd.nodes}


def in_phase(phase: Phase, act: Callable[[], None]) -> Callable[[Event], None]:
    """Return a listener that calls `act` once, when the rotation enters the phase."""
    done: list[Phase] = []

    def told(event: Event) -> None:
        if isinstance(event, PhaseEntered) and event.phase is phase and phase not in done:
            done.append(phase)
            act()

    return told


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED])
async def test_a_server_that_restarts_in_any_phase_is_counted(make_herd: MakeHerd, phase: Phase) -> None:
    herd = await make_herd(nodes=3)
    report = await rotator_for(herd, listener=in_phase(phase, herd.nodes[1].restart)).rotate()
    assert report.restarts == {"http://node-0": 0, "http://node-1": 1, "http://node-2": 0}
    again = await rotator_for(herd).rotate()
    assert set(again.restarts.values()) == {0}, "a run counts what happens during it"


async def test_restarts_at_every_phase_are_counted_each(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2)

    def told(event: Event) -> None:
        if isinstance(event, PhaseEntered) and event.phase is not Phase.STEADY:
            herd.nodes[0].restart()

    report = await rotator_for(herd, listener=told).rotate()
    assert report.restarts == {"http://node-0": 4, "http://node-1": 0}


@pytest.mark.slow
async def test_an_unmodified_server_under_the_agent_restarts_once_in_a_rotation_and_is_counted(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=3, agented=[0, 1], refresh_interval=EVERY)
    report = await rotator_for(herd).rotate()
    assert report.outcome is Outcome.ROTATED
    assert report.restarts == real_restarts(herd) == {"http://node-0": 1, "http://node-1": 1, "http://node-2": 0}
    await check_steady(herd)
    assert max(real_restarts(herd).values()) == 1, "nor does it restart afterwards"


async def test_an_unmodified_server_without_an_agent_is_counted_and_costs_no_session(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=2, clients=0, unmodified=[1])
    rotator = rotator_for(herd)
    report = await rotator.rotate(to_phase=Phase.PUBLISHED)
    assert report.restarts == {"http://node-0": 0, "http://node-1": 0}
    assert herd.nodes[1].asked["create_session"] <= 1  # the probe of the flow
    await rotator.abandon("enough")


@pytest.mark.slow
async def test_rotations_leave_one_session_for_each_start_of_an_unmodified_server(make_herd: MakeHerd) -> None:
    """GoatDB keeps every session permanently, in every server and every settings.json."""
    herd = await make_herd(nodes=3, clients=0, agented=[0, 1, 2], refresh_interval=EVERY)
    await rotator_for(herd).rotate()  # there is no session yet by which the flow can be seen
    before = {node.base_url: node.asked["create_session"] for node in herd.nodes}
    for number in range(2, 5):
        report = await rotator_for(herd).rotate()
        assert set(report.restarts.values()) == {1}
        assert set(real_restarts(herd).values()) == {number}
    made = {node.base_url: node.asked["create_session"] - before[node.base_url] for node in herd.nodes}
    assert set(made.values()) == {3}


@pytest.mark.slow
async def test_a_cancelled_rotation_restarts_no_server(make_herd: MakeHerd) -> None:
    for phase in (Phase.PREPARED, Phase.PUBLISHED):
        herd = await make_herd(nodes=2, agented=[0], refresh_interval=EVERY)
        await rotator_for(herd).rotate(to_phase=phase)
        report = await rotator_for(herd).abandon("enough")
        await check_steady(herd)
        assert set(real_restarts(herd).values()) == {0}
        assert report.restarts["http://node-0"] == 0
        await herd.provider.delete(herd.secret_id)


@pytest.mark.slow
async def test_a_rotation_that_is_rolled_back_restarts_a_server_once_more_at_most(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, agented=[0], refresh_interval=EVERY)
    herd.nodes[2].faults.deaf = herd.nodes[2].faults.store_lost = True
    report = await failed(herd)
    assert report.event == "rolled-back"
    herd.nodes[2].faults.store_lost = False
    await check_steady(herd)
    assert real_restarts(herd) == {"http://node-0": 2, "http://node-1": 0, "http://node-2": 0}
    assert report.restarts["http://node-0"] == 2


async def failed(herd: Herd) -> Report:
    with pytest.raises(NotAdoptedError) as caught:
        await rotator_for(herd).rotate()
    assert isinstance(caught.value.report, Report)
    return caught.value.report


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.deep)])
async def test_killed_at_every_effect_and_resumed_a_rotation_restarts_a_server_once(
    make_herd: MakeHerd, after: bool, stride: int
) -> None:
    at = 0
    while True:
        herd = await make_herd(nodes=2, clients=1, agented=[1], refresh_interval=EVERY)
        trap = Trap(EFFECTS, at, kill, after=after)
        try:
            await trapped(herd, trap).rotate()
        except (KilledError, BaseExceptionGroup):
            assert trap.sprung is not None
        report = await rotator_for(herd).resume()
        if report.outcome is Outcome.NOTHING and report.current_id == "root-a":
            await rotator_for(herd).rotate()
        await check_steady(herd)
        assert real_restarts(herd) == {"http://node-0": 0, "http://node-1": 1}
        if trap.sprung is None:
            break
        await herd.provider.delete(herd.secret_id)
        at += stride
    assert at >= 20
