"""The rotator on a simulated herd: each scenario is a sentence, a fault, and the expected end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.errors import ConfigurationError, IllegalStepError, NotAdoptedError, ObstructedError, RotationBusyError
from goatherd.identity.document import Phase
from goatherd.rotation.events import Event, NodeNotified, NodesSeen, PhaseEntered, RunEnded
from goatherd.rotation.machine import Outcome, Step, Wait
from tests.fakes.herd import SESSIONS, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for


@pytest.mark.slow
async def test_a_healthy_rotation_refuses_nothing_and_loses_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=5, clients=10)
    began = herd.clock.now_ms()
    report = await rotator_for(herd).rotate()
    assert report.outcome is Outcome.ROTATED
    assert report.from_id == "root-a"
    assert report.behind == ()
    assert herd.clock.now_ms() - began < 1000, "with nodes told at once, next to nothing is waiting"
    document = await check_steady(herd)
    assert document.current.id == report.to_id == report.current_id
    assert document.rotated_from == "root-a"
    assert herd.refused == 0


@pytest.mark.slow
async def test_at_every_moment_every_node_trusts_who_signed_what_any_node_holds(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    generations = [1]

    async def tick() -> None:
        await herd.step()
        assert herd.unverifiable(SESSIONS) == []
        generations.append((await document_of(herd)).generation)
        assert generations[-1] >= generations[-2]
        if herd.nodes[0].pool.current.id != "root-a" and len(herd.clients) < 3:
            await herd.add_clients(1, at=herd.nodes[0])

    herd.clock.on_tick = tick
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    await rotator_for(herd).abandon()
    await rotator_for(herd).rotate()
    await check_steady(herd)
    assert herd.refused == 0


@pytest.mark.slow
async def test_one_rotation_after_another_keeps_every_root_and_every_commit(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    for count in range(2, 5):
        await rotator_for(herd).rotate()
        document = await check_steady(herd)
        assert len(document.roots) == count
    assert herd.refused == 0


@pytest.mark.slow
async def test_nodes_that_do_not_hear_follow_at_their_own_interval(make_herd: MakeHerd) -> None:
    herd = await make_herd(refresh_interval=timedelta(seconds=10))
    for node in herd.nodes:
        node.faults.deaf = True
    assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED
    await check_steady(herd)
    assert herd.refused == 0


def cut_off(herd: Herd) -> None:
    herd.nodes[1].faults.cut_off = True


def store_lost(herd: Herd) -> None:
    herd.nodes[1].faults.store_lost = True


def refuses(herd: Herd) -> None:
    herd.nodes[1].faults.refuses_documents = True


def forgets(herd: Herd) -> None:
    herd.nodes[1].faults.forgets_pushes = True


def heal(herd: Herd) -> None:
    for node in herd.nodes:
        node.faults = type(node.faults)()
        node.refusal = None


TROUBLES: list[tuple[str, Phase, Callable[[Herd], None], str, str]] = [
    ("a node is cut off when all is prepared", Phase.PREPARED, cut_off, "cancelled", "node-1"),
    ("a node is cut off when all trust B", Phase.PUBLISHED, cut_off, "cancelled", "timeout"),
    ("a node is cut off when all sign with B", Phase.ACTIVATED, cut_off, "rolled-back", "signs with the next root"),
    ("a node loses the store before B signs", Phase.PUBLISHED, store_lost, "rolled-back", "signs with the next root"),
    ("a node will not take the new document", Phase.STEADY, refuses, "cancelled", "rejects the identity document"),
    ("a node will not take B as the signer", Phase.PUBLISHED, refuses, "rolled-back", "rejects the identity document"),
    ("a node keeps no introduction of B", Phase.STEADY, forgets, "cancelled", "holds the introduction"),
    ("a node keeps no introduction of A by B", Phase.ACTIVATED, forgets, "rolled-back", "previous root"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("since", "trouble", "event", "reason"), [t[1:] for t in TROUBLES], ids=[t[0] for t in TROUBLES]
)
async def test_a_rotation_that_a_node_does_not_follow_ends_where_it_began(
    make_herd: MakeHerd, since: Phase, trouble: Callable[[Herd], None], event: str, reason: str
) -> None:
    herd = await make_herd()
    if since is not Phase.STEADY:
        await rotator_for(herd).rotate(to_phase=since)
    trouble(herd)
    rotator = rotator_for(herd)
    began = herd.clock.now_ms()
    with pytest.raises(NotAdoptedError, match=re.escape(reason)) as caught:
        await (rotator.rotate() if since is Phase.STEADY else rotator.resume())
    waited = timedelta(milliseconds=herd.clock.now_ms() - began)
    assert waited < 2 * POLICY.adoption + POLICY.settle
    report = caught.value.report
    assert report.outcome.value == event
    assert report.current_id == "root-a"
    document = await document_of(herd)
    assert document.current.id == "root-a"
    assert document.history[-1].event == event
    assert reason in (document.history[-1].reason or "")
    took = timedelta(milliseconds=document.history[-1].at - began)
    assert took <= POLICY.adoption + 2 * POLICY.node_timeout + 3 * POLICY.poll_max, "as docs/explanation says"
    if since is not Phase.STEADY and event == "rolled-back":
        assert report.to_id in {root.id for root in document.roots}
        assert report.to_id in {root for node in herd.nodes for root in node.pool.root_ids}
    heal(herd)
    await check_steady(herd)
    assert herd.refused == 0


@pytest.mark.slow
async def test_attempts_in_front_of_a_server_that_is_down_leave_nothing_behind_and_it_follows_when_it_is_back(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    before = await document_of(herd)
    cut_off(herd)
    for _ in range(10):
        with pytest.raises(ObstructedError):
            await rotator_for(herd).rotate()
    assert await document_of(herd) == before
    heal(herd)
    assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED
    await check_steady(herd)


@pytest.mark.slow
async def test_what_stands_in_the_way_is_told_once_and_only_what_was_asked_for(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    cut_off(herd)
    with pytest.raises(NotAdoptedError) as caught:
        await rotator_for(herd).resume()
    said = "timeout: expected that http://node-1 (did not answer) signs with the next root"
    assert caught.value.report.reason == said
    assert "goatherd status" in caught.value.hint


async def test_a_node_that_hangs_is_said_to_give_no_answer(make_herd: MakeHerd) -> None:
    herd = await make_herd()

    class Hanging:
        base_url = herd.nodes[1].base_url

        def clock_ahead_ms(self, now_ms: int) -> int | None:
            return None

        def __getattr__(self, name: str) -> Any:
            async def hang(*_: object) -> None:
                await asyncio.Event().wait()

            return hang

    events: list[Event] = []
    nodes = [herd.nodes[0], Hanging(), herd.nodes[2]]
    hasty = replace(POLICY, node_timeout=timedelta(milliseconds=20))
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    hasty = replace(hasty, adoption=timedelta(0))
    with pytest.raises(NotAdoptedError):
        await rotator_for(herd, nodes=nodes, policy=hasty, events=events).resume()
    told = [event for event in events if isinstance(event, NodeNotified) and event.url == Hanging.base_url]
    assert {one.problem for one in told} == {"no answer within 0.02 s"}


@pytest.mark.slow
async def test_what_b_signed_before_a_roll_back_verifies_everywhere(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    await herd.add_clients(2)
    await herd.step()
    cut_off(herd)
    with pytest.raises(NotAdoptedError) as caught:
        await rotator_for(herd).resume()
    assert caught.value.report.behind == (herd.nodes[1].base_url,)
    heal(herd)
    await check_steady(herd)
    signers = {commit.session for commit in herd.nodes[0].commits(SESSIONS)}
    assert caught.value.report.to_id in signers
    for client in herd.clients:
        assert client.written
        assert client.refused == 0


@pytest.mark.slow
async def test_after_a_roll_back_the_next_rotation_succeeds(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    abandoned = await rotator_for(herd).abandon("the operator has changed his mind")
    assert abandoned.outcome.is_stopped
    assert abandoned.reason == "the operator has changed his mind"
    report = await rotator_for(herd).rotate()
    document = await check_steady(herd)
    assert document.current.id == report.to_id
    assert {"root-a", abandoned.to_id, report.to_id} == {root.id for root in document.roots}


async def test_generation_rises_with_every_write_and_with_a_roll_back(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    seen: list[Event] = []
    await rotator_for(herd, events=seen).rotate(to_phase=Phase.ACTIVATED)
    await rotator_for(herd, events=seen).abandon()
    generations = [event.generation for event in seen if isinstance(event, PhaseEntered)]
    assert generations == sorted(generations)
    assert (await document_of(herd)).generation == max(generations)


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED])
async def test_a_run_stops_where_it_shall_and_another_carries_on(make_herd: MakeHerd, phase: Phase) -> None:
    herd = await make_herd(clients=1)
    report = await rotator_for(herd).rotate(to_phase=phase)
    assert report.outcome is Outcome.REACHED
    assert report.phase is phase
    assert (await document_of(herd)).phase == phase
    finished = await rotator_for(herd, started_by="carol@host-2:1").resume()
    assert finished.outcome is Outcome.ROTATED
    assert finished.to_id == report.to_id
    await check_steady(herd)


async def test_a_second_operator_is_told_who_since_when_and_in_which_phase(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    with pytest.raises(RotationBusyError, match=r"alice@host-1:4711.*2026-.*published") as caught:
        await rotator_for(herd, started_by="bob@host-2:2").rotate()
    assert "was to stop at this phase (--to): `goatherd rotate --resume` finishes" in caught.value.hint
    assert "--cancel ends it" in caught.value.hint
    await rotator_for(herd).resume(to_phase=Phase.ACTIVATED)
    with pytest.raises(RotationBusyError) as caught:
        await rotator_for(herd, started_by="bob@host-2:2").rotate()
    assert "--rollback ends it" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_of_two_operators_at_once_exactly_one_rotates(make_herd: MakeHerd, seed: int) -> None:
    herd = await make_herd(seed=seed)
    outcomes = await asyncio.gather(
        *(rotator_for(herd, started_by=who).rotate() for who in ("alice@a:1", "bob@b:2")), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Report", "RotationBusyError"]
    document = await check_steady(herd)
    assert len(document.roots) == 2
    assert herd.refused == 0


@pytest.mark.slow
async def test_two_operators_may_carry_on_the_same_rotation_at_once(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    reports = await asyncio.gather(rotator_for(herd).resume(), rotator_for(herd).resume())
    assert [report.outcome for report in reports] == [Outcome.ROTATED, Outcome.ROTATED]
    document = await check_steady(herd)
    assert len(document.roots) == 2


async def test_one_operator_carries_on_while_another_rolls_back(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    outcomes = await asyncio.gather(rotator_for(herd).resume(), rotator_for(herd).abandon(), return_exceptions=True)
    assert {type(outcome).__name__ for outcome in outcomes} <= {"Report", "NotAdoptedError", "IllegalStepError"}
    await check_steady(herd)


async def test_with_nothing_in_progress_there_is_nothing_to_resume(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    assert (await rotator_for(herd).resume()).outcome is Outcome.NOTHING
    await check_steady(herd)


async def test_nothing_is_retired_during_a_rotation(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    with pytest.raises(IllegalStepError):
        await rotator_for(herd).retire()


async def test_an_expired_root_cannot_be_rotated(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0, lifetime=timedelta(days=20))
    herd.clock.turn(timedelta(days=21))
    with pytest.raises(IllegalStepError, match="has expired"):
        await rotator_for(herd).rotate()


@pytest.mark.slow
async def test_unmodified_servers_follow_when_they_are_restarted(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, unmodified=[0, 1])

    async def tick() -> None:
        """Simulate an agent that restarts each server with the new settings once another root signs."""
        document = await document_of(herd)
        for node in herd.nodes:
            if document.current.id != node.document.current.id:
                node.document = document
                node.restart()
        await herd.step()

    herd.clock.on_tick = tick
    report = await rotator_for(herd, policy=replace(POLICY, poll_max=timedelta(seconds=5))).rotate()
    assert report.outcome is Outcome.ROTATED
    await herd.settle()
    assert herd.lost() == []
    assert herd.unverifiable() == []
    assert herd.refused == 0
    asked = sum(node.asked["create_session"] for node in herd.nodes)
    assert asked < 12, "each question who signs costs a session"


async def test_a_plan_says_what_would_happen_and_writes_nothing(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    cut_off(herd)
    before = await herd.provider.versions(herd.secret_id)
    held = [node.commits(SESSIONS) for node in herd.nodes]
    plan = await rotator_for(herd).plan()
    assert [step.step for step in plan.steps] == [
        Step.PREPARE,
        Step.PUBLISH,
        Step.ACTIVATE,
        Step.VERIFY,
        Step.FINALIZE,
    ]
    assert plan.nodes == tuple(node.base_url for node in herd.nodes)
    assert [obstacle for obstacle in plan.obstacles if "node-1" in obstacle]
    assert await herd.provider.versions(herd.secret_id) == before
    assert [node.commits(SESSIONS) for node in herd.nodes] == held
    heal(herd)
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    carried_on = await rotator_for(herd).plan()
    assert carried_on.resumes is not None
    assert carried_on.steps[0].step is Step.ACTIVATE
    assert carried_on.obstacles == ()


@pytest.mark.slow
async def test_no_event_and_no_error_holds_key_material(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    store_lost(herd)
    events: list[Event] = []
    with pytest.raises(NotAdoptedError) as caught:
        await rotator_for(herd, events=events).rotate()
    shown = repr(events) + repr(caught.value) + repr(vars(caught.value)) + repr(await rotator_for(herd).plan())
    secrets = []
    for version in await herd.provider.versions(herd.secret_id):
        raw = (await herd.provider.read(herd.secret_id, version.id)).value.reveal().decode()
        secrets += [line.split('"')[3] for line in raw.splitlines() if '"d": "' in line]
    assert secrets
    assert not [secret for secret in secrets if secret in shown]
    assert any(isinstance(event, NodesSeen) for event in events)
    assert isinstance(events[-1], RunEnded)


@pytest.mark.slow
async def test_waiting_is_told_with_whom_and_until_when(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    cut_off(herd)
    events: list[Any] = []
    with pytest.raises(NotAdoptedError):
        await rotator_for(herd, events=events).resume()
    waits = [event.action for event in events if isinstance(getattr(event, "action", None), Wait)]
    assert waits[0].nodes == ("http://node-1",)
    pauses = herd.clock.slept
    assert min(pauses) >= POLICY.poll_min
    assert max(pauses) <= POLICY.poll_max


@pytest.mark.parametrize("work", ["rotate", "resume", "restore"])
async def test_without_a_server_nothing_begins_unless_that_is_meant(make_herd: MakeHerd, work: str) -> None:
    herd = await make_herd(clients=0)
    before = await document_of(herd)
    with pytest.raises(ConfigurationError, match="no server is listed") as refused:
        await getattr(rotator_for(herd, nodes=[]), work)()
    assert "nodes=[" in refused.value.hint
    assert "--node URL" in refused.value.command_hint
    assert await document_of(herd) == before
    await rotator_for(herd, nodes=[], unsafe_without_nodes=True).rotate()
    assert (await document_of(herd)).current != before.current


async def test_a_rotator_remembers_no_commits_of_earlier_runs(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    rotator, remembered = rotator_for(herd), []
    for _ in range(3):
        await rotator.rotate()
        remembered.append(len(rotator._observer._verified))
    assert len(set(remembered)) == 1
