"""No rule is broken with stores in three regions, and removing any protection breaks a rule."""

from __future__ import annotations

import pytest

from .page import PAGE, written
from .regions import RULES, explore
from .regions_worlds import MUTANTS, WORLDS, RegionsMutant, RegionsWorld, figures, parts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(one, marks=pytest.mark.deep if one.is_slow else (), id=one.name)
        for one in WORLDS
        if not one.is_by_hand
    ],
)
def test_no_rule_is_broken_in_any_state_and_the_page_has_the_figures(one: RegionsWorld) -> None:
    found = explore(one.options, allowed=one.allowed)
    assert found.broken is None, found.path
    assert found.steady > 0
    assert found.largest_lag > 0
    (row,) = [line for line in figures({one.name: found}).splitlines() if line.startswith(f"| {one.name} |")]
    assert row in PAGE.read_text().splitlines()


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(one, marks=pytest.mark.deep if one.is_slow else (), id=one.part)
        for one in MUTANTS
        if not one.is_by_hand
    ],
)
def test_without_a_protection_a_rule_is_broken(mutant: RegionsMutant) -> None:
    found = explore(mutant.options, mutant.part, allowed=mutant.allowed)
    assert found.broken == mutant.breaks
    assert found.path


def test_the_page_is_in_step_with_the_model() -> None:
    page = PAGE.read_text()
    assert written(page, parts()) == page
    assert {one.breaks for one in MUTANTS} <= set(RULES)
