"""A test of the simulation: it finds each defect that is put into the code."""

from __future__ import annotations

import pytest

from tests.simulation.child import run_python
from tests.simulation.mutants import MUTANTS

SEEDS = "0-200"
MORE = 200
# Few runs have wrong clocks, blips, a theft, a liar or a store that goes back. The search starts at the first seed that
# found the mutant, and continues from there, because a change of the code can shift what a seed draws.
FROM_SEED = {
    "clocks_are_not_compared": 175,
    "future_phase_is_believed": 8,
    "future_time_is_not_corrected": 95,
    "deadlines_by_the_wall_clock": 186,
    "store_calls_are_not_repeated": 37,
    "revocation_is_forgotten": 20,
    "revoked_root_is_trusted": 20,
    "frozen_list_is_ignored": 20,
    "older_read_is_trusted": 157,
    "replacement_introduces_no_root": 35,
    "revoke_skips_unlabelled_versions": 20,
    "one_server_suffices_for_commits": 397,
    "invalid_answers_are_used": 106,
    "one_server_suffices_in_an_emergency": 127,
    "quorum_is_ignored": 292,
    "servers_histories_are_not_compared": 22,
    "equal_version_id_means_unchanged": 2434,
    "documents_record_no_ancestors": 59,
    "lost_root_is_not_noticed": 33,
    "altered_document_is_followed": 63,
    "altered_document_is_signed": 153,
    "no_compare_and_swap": 24,
    "anchor_is_ignored": 7,
    "named_anchor_is_adopted": 7,
    "cancel_needs_the_anchor": 0,
}


@pytest.mark.deep
@pytest.mark.parametrize("name", FROM_SEED)
async def test_the_simulation_finds_out_what_was_taken_away_from_its_seed_on(name: str) -> None:
    await check(name, f"{FROM_SEED[name]}-{FROM_SEED[name] + MORE}")


@pytest.mark.deep
@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in FROM_SEED])
async def test_the_simulation_finds_out_what_was_taken_away(name: str) -> None:
    await check(name, SEEDS)


async def check(name: str, seeds: str) -> None:
    code, said = await run_python("-m", "tests.simulation.mutants", name, seeds)
    assert code == 1, said
    assert said.startswith("seed "), said
    assert "<locals>" not in said, "the mutant itself is broken: the code calls its function in another way"
    print(said)
