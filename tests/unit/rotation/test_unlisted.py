"""Servers that are not listed: B signs only after they have had time to read the store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.identity.document import Phase
from goatherd.rotation.events import Decided, Event, PhaseEntered
from goatherd.rotation.machine import Outcome, Wait
from goatherd.rotation.policy import unlisted_for
from tests.fakes.herd import Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, rotator_for

INTERVAL = timedelta(seconds=10)
ALLOWED = replace(POLICY, unlisted=unlisted_for(INTERVAL))
EXCEPTED = replace(POLICY, distrust=frozenset({"http://node-2"}))


def without_sync_until_b_signs(herd: Herd) -> None:
    """Let the server that is not listed learn of B only from the store, at its own interval."""

    async def tick() -> None:
        for node in herd.nodes:
            await node.tick()
        if herd.nodes[0].pool.current.id != "root-a":
            await herd.spread()

    herd.clock.on_tick = tick


@pytest.mark.slow
@pytest.mark.parametrize("is_allowed_for", [True, False])
async def test_a_server_that_is_not_listed_trusts_b_before_b_signs(make_herd: MakeHerd, is_allowed_for: bool) -> None:
    """Runs with the waiting time of the policy, and without it, where the server rejects what B signs."""
    herd = await make_herd(refresh_interval=INTERVAL)
    without_sync_until_b_signs(herd)
    trusted: list[bool] = []
    rotator = rotator_for(herd, nodes=herd.nodes[:2], policy=ALLOWED if is_allowed_for else EXCEPTED)

    def told(event: Event) -> None:
        if isinstance(event, PhaseEntered) and event.phase is Phase.ACTIVATED:
            trusted.append(event.current_id in herd.nodes[2].pool.root_ids)

    rotator._on_event = told
    assert (await rotator.rotate()).outcome is Outcome.ROTATED
    assert trusted == [is_allowed_for]
    herd.clock.on_tick = herd.step
    await check_steady(herd)


@pytest.mark.slow
async def test_the_time_is_waited_for_beside_the_evidence_and_is_told(make_herd: MakeHerd) -> None:
    herd = await make_herd(refresh_interval=INTERVAL)
    events: list[Event] = []
    await rotator_for(herd, policy=ALLOWED, events=events).rotate()
    entered = {event.phase: event.at_ms for event in events if isinstance(event, PhaseEntered)}
    assert entered[Phase.ACTIVATED] - entered[Phase.PUBLISHED] >= ALLOWED.unlisted / timedelta(milliseconds=1)
    reasons = [event.action.reason for event in events if isinstance(event, Decided) and isinstance(event.action, Wait)]
    assert "servers that are not listed read the store" in reasons


@pytest.mark.slow
async def test_resuming_restarts_the_wait_for_unlisted_servers_since_clocks_differ(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd, policy=ALLOWED).rotate(to_phase=Phase.PUBLISHED)
    herd.clock.turn(timedelta(hours=1))
    began = herd.clock.now_ms()
    await rotator_for(herd, policy=ALLOWED).resume()
    assert herd.clock.now_ms() - began >= ALLOWED.unlisted / timedelta(milliseconds=1)


@pytest.mark.slow
async def test_a_time_longer_than_the_patience_ends_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    policy = replace(POLICY, unlisted=2 * POLICY.adoption)
    assert (await rotator_for(herd, policy=policy).rotate()).outcome is Outcome.ROTATED


async def test_with_every_server_listed_no_time_is_spent(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=5)
    began = herd.clock.now_ms()
    await rotator_for(herd).rotate()
    assert herd.clock.now_ms() - began < 1000
