"""A test of the model: without one protection, the explorer finds the harm and tells how it happens."""

from __future__ import annotations

import pytest

from goatherd.rotation.machine import GATES, Step

from .invariants import RULES
from .mutants import MUTANTS, PRICES, REDUNDANT, Mutant, explore_mutant
from .settings import PROTECTIONS
from .story import tell

CAUGHT = (*MUTANTS, *PRICES)


@pytest.mark.deep
@pytest.mark.parametrize("mutant", CAUGHT, ids=[one.name for one in CAUGHT])
def test_without_it_a_rule_is_broken_and_the_story_says_which_and_how(mutant: Mutant) -> None:
    found = explore_mutant(mutant)
    assert found.broken == mutant.breaks
    story = tell(found)
    assert f"BROKEN ({mutant.breaks}): {RULES[mutant.breaks or '']}." in story
    lines = story.splitlines()
    assert [line.split(".")[0].strip() for line in lines if line[3:4] == "."] == [
        str(number) for number in range(len(found.path) + 1)
    ]
    assert len(found.path) < 45


@pytest.mark.deep
@pytest.mark.parametrize("mutant", REDUNDANT, ids=[one.name for one in REDUNDANT])
def test_without_it_alone_nothing_is_broken_because_another_protection_stands_behind_it(mutant: Mutant) -> None:
    assert explore_mutant(mutant).broken is None


def test_a_story_names_operators_nodes_and_versions_all_the_way() -> None:
    (mutant,) = [one for one in MUTANTS if one.name.startswith("asking one node only")]
    assert tell(explore_mutant(mutant)).splitlines()[9:13] == [
        "  9. The introduction of B reaches node 1, which takes it.",
        " 10. Operator 1 sees version 2 (published, generation 3, A signs, B next): the next step is to activate.",
        " 11. Operator 1 writes version 3 (activated, generation 4, B signs).",
        " 12. Node 2 reads version 3 (activated, generation 4, B signs) and takes it.",
    ]


def test_nothing_is_told_of_a_world_in_which_nothing_breaks() -> None:
    assert tell(explore_mutant(REDUNDANT[0])) == "nothing broke"


def test_every_gate_and_every_part_is_taken_away_by_some_mutant() -> None:
    steps = {step for step, evidence in GATES.items() if evidence}
    everywhere = (*MUTANTS, *REDUNDANT)
    assert steps == {step for one in everywhere for step in one.removed.gates}
    assert steps - {step for one in MUTANTS for step in one.removed.gates} == {Step.PUBLISH}, (
        "docs/explanation/proof.md"
    )
    for step in steps:
        kept = [set(one.removed.gates[step]) for one in everywhere if step in one.removed.gates]
        assert all(any(evidence not in some for some in kept) for evidence in GATES[step])
    assert {part for one in MUTANTS for part in one.removed.protections} == set(PROTECTIONS)


def test_the_real_gates_are_back_after_a_mutant() -> None:
    before = dict(GATES)
    explore_mutant(MUTANTS[0])
    assert before == GATES
    assert GATES[Step.ACTIVATE]
