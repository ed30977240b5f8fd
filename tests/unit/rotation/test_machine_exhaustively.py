"""The decision for every observation in every reachable state of a small world."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import pytest

from goatherd.rotation import machine
from goatherd.rotation.machine import (
    GATES,
    STEPS,
    Abandon,
    Action,
    Advance,
    Busy,
    CrossSign,
    Destroy,
    Done,
    Goal,
    Illegal,
    Introduce,
    LabelStable,
    Observation,
    Outcome,
    Phase,
    Prepare,
    Step,
    Wait,
    decide,
)
from tests.unit.rotation.views import ASKED, DAY, DEAD, LATE, MINE, NOW, POLICY, SIGHTS, all_observations, node, store

INTENTS = [
    replace(base, goal=goal, to_phase=to_phase)
    for base, goal, to_phase in product((ASKED, MINE), (Goal.ROTATE, Goal.ABANDON), (None, Phase.PUBLISHED))
]


@pytest.mark.slow
def test_whatever_is_seen_no_rule_is_broken() -> None:
    count = 0
    for observation in all_observations():
        for intent, now in product(INTENTS, (NOW, LATE)):
            action = decide(observation, POLICY, intent, now)
            count += 1
            seen, nodes = observation.store, observation.nodes
            if seen.phase is not Phase.STEADY and intent.rotation_id is None:
                assert isinstance(action, Busy)
            if isinstance(action, Advance | Abandon):
                assert (seen.phase, action.step) in STEPS
                assert action.expected == seen.version
            if isinstance(action, Advance) and action.step is Step.ACTIVATE:
                assert all(one.trusts_next and one.holds_introduction for one in nodes)
            if isinstance(action, Advance) and action.step is Step.VERIFY:
                assert all(one.signs_with == "B" and one.holds_cross_signature for one in nodes)
            if isinstance(action, Wait):
                assert action.until_ms > now
                assert seen.phase is Phase.STEADY or now < LATE
            if isinstance(action, Prepare | LabelStable | Destroy):
                assert seen.phase is Phase.STEADY
            if isinstance(action, Prepare):
                assert seen.stable == seen.version
            if isinstance(action, Introduce | CrossSign):
                assert seen.phase in (Phase.PUBLISHED, Phase.ACTIVATED)
            if isinstance(action, Done) and action.outcome is Outcome.ROTATED:
                assert seen.current_id == "B"
    assert count == len(SIGHTS) ** 2 * 3 * 6 * len(INTENTS) * 2


@dataclass(frozen=True)
class World:
    """A model of the cluster: what the store holds, and for each node its knowledge, its signing root and whether it
    runs."""

    phase: Phase
    current: str
    stable_moved: bool
    began: bool
    nodes: tuple[tuple[bool, bool, str, bool, bool], ...]  # introduction, trusts, signs with, cross-signature, up


def seen_of(world: World) -> Observation:
    views = tuple(
        node(i, holds_introduction=intro, trusts_next=trusts, signs_with=signs, holds_cross_signature=cross)
        if up
        else node(i, **DEAD)
        for i, (intro, trusts, signs, cross, up) in enumerate(world.nodes)
    )
    seen = replace(store(world.phase), current_id=world.current, stable="7" if world.stable_moved else "6")
    return Observation(store=seen, nodes=views)


def acted(world: World, action: Action) -> World:
    nodes = list(world.nodes)
    match action:
        case LabelStable():
            return replace(world, stable_moved=True)
        case Prepare():
            return replace(world, phase=Phase.PREPARED, began=True, stable_moved=False)
        case Introduce(nodes=urls):
            for url in urls:
                _, _, signs, cross, up = nodes[int(url[1:])]
                nodes[int(url[1:])] = (True, True, signs, cross, up)
        case CrossSign(node=url):
            intro, trusts, signs, _, up = nodes[int(url[1:])]
            nodes[int(url[1:])] = (intro, trusts, signs, True, up)
        case Advance(step=step) | Abandon(step=step):
            phase = STEPS[world.phase, step]
            current = {Step.ACTIVATE: "B", Step.ROLL_BACK: "A"}.get(step, world.current)
            return replace(world, phase=phase, current=current, stable_moved=False)
    return replace(world, nodes=tuple(nodes))


def by_itself(world: World) -> Iterator[World]:
    """Yield what nodes do without the rotator: read the store, pass commits on, stop and start."""
    for i, (intro, trusts, signs, cross, up) in enumerate(world.nodes):

        def with_node(*changed: object, at: int = i) -> World:
            return replace(world, nodes=(*world.nodes[:at], changed, *world.nodes[at + 1 :]))

        yield with_node(intro, trusts, signs, cross, not up)
        if up:
            yield with_node(intro, trusts or world.phase is not Phase.STEADY, world.current, cross, up)
            for other in world.nodes:
                if other[4] and (other[0], other[3]) != (intro, cross):
                    yield with_node(intro or other[0], trusts or other[0], signs, cross or other[3], up)


def explore() -> set[World]:
    """Return every state that a rotation, its nodes and an adversary that chooses all timing can reach."""
    fresh = (False, False, "A", False, True)
    first = World(phase=Phase.STEADY, current="A", stable_moved=False, began=False, nodes=(fresh, fresh))
    seen, queue = {first}, deque([first])
    while queue:
        world = queue.popleft()
        following = list(by_itself(world))
        for goal, now in product((Goal.ROTATE, Goal.ABANDON), (NOW, LATE)):
            if goal is Goal.ABANDON and not world.began:
                continue
            intent = replace(MINE if world.began else ASKED, goal=goal)
            following.append(acted(world, decide(seen_of(world), POLICY, intent, now)))
        for one in following:
            if one not in seen:
                seen.add(one)
                queue.append(one)
    return seen


def unsafe(world: World) -> bool:
    """Whether some node signs with a root that some node does not trust or was not introduced to."""
    return any(one[2] == "B" for one in world.nodes) and not all(one[0] and one[1] for one in world.nodes)


def test_in_every_reachable_state_every_signer_is_trusted_by_all() -> None:
    worlds = explore()
    assert len(worlds) > 200
    assert not [world for world in worlds if unsafe(world)]
    assert {world.phase for world in worlds} == set(Phase)


def test_from_every_reachable_state_the_way_to_steady_is_short_whatever_the_nodes_do() -> None:
    for world in explore():
        if not world.began:
            continue
        for goal in (Goal.RESUME, Goal.ABANDON):
            at, steps = world, 0
            while True:
                action = decide(seen_of(at), POLICY, replace(MINE, goal=goal), LATE + DAY)
                if isinstance(action, Done):
                    break
                assert not isinstance(action, Wait | Busy | Illegal), (at, action)
                at, steps = acted(at, action), steps + 1
                assert steps < 10, world
            assert at.phase is Phase.STEADY
            assert at.stable_moved


@pytest.mark.parametrize("kept", [(), (machine.Evidence.TRUSTS_NEXT,), (machine.Evidence.HOLDS_INTRODUCTION,)])
def test_without_its_gate_the_walk_finds_a_signer_that_is_not_trusted(
    kept: tuple[machine.Evidence, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GATES, Step.ACTIVATE, kept)
    assert any(unsafe(world) for world in explore()) is (kept != (machine.Evidence.HOLDS_INTRODUCTION,))
