"""The worlds that take no time, and the explorer itself."""

from __future__ import annotations

import pytest

from goatherd.rotation import machine

from . import decisions
from .configurations import CONFIGURATIONS, Configuration
from .explorer import TooManyStatesError, explore
from .invariants import RULES, Judge, is_steady
from .settings import Options
from .world import World

SMALL = [one for one in CONFIGURATIONS if not one.is_slow and not one.is_by_hand]


@pytest.mark.slow
@pytest.mark.parametrize("one", SMALL, ids=[one.name for one in SMALL])
def test_no_rule_is_broken_in_any_reachable_state(one: Configuration) -> None:
    found = explore(one.options, allowed=one.allowed)
    assert found.broken is None
    assert found.states > 500
    assert found.transitions > found.states
    assert found.schedules >= found.states
    assert found.steady > 0


def test_the_decisions_are_the_real_ones() -> None:
    assert vars(decisions)["decide"] is machine.decide


def test_every_phase_and_every_step_is_reached_in_the_smallest_world() -> None:
    found = explore(Options(nodes=1, operators=1))
    stores = found.world.stores.values
    assert {store.head.phase for store in stores} == set(machine.Phase)
    pending = [run.pending for runs in found.world.operators.values for run in runs if run and run.pending]
    taken = {one[2] for one in pending if one[0] in ("advance", "abandon")}
    assert taken == set(machine.Step) - {machine.Step.PREPARE, machine.Step.PRUNE}
    assert {one[0] for one in pending} == {"label", "prepare", "advance", "abandon", "destroy"}


@pytest.mark.slow
def test_states_that_differ_in_who_is_called_what_are_one() -> None:
    one, two = explore(Options(nodes=1, operators=1)), explore(Options(nodes=2, operators=1))
    assert one.states < two.states < one.states * 4


def test_the_beginning_is_no_end_and_breaks_no_rule() -> None:
    world = World(Options(nodes=2, operators=2))
    assert Judge(world)(world.first()) is None
    assert not is_steady(world, world.first())  # nothing is labelled stable yet


def test_a_world_that_is_too_large_is_not_taken_for_explored() -> None:
    with pytest.raises(TooManyStatesError):
        explore(Options(nodes=2, operators=2), limit=1000)


def test_every_allowance_names_a_rule() -> None:
    assert {rule for one in CONFIGURATIONS for rule in one.allowed} <= set(RULES)
