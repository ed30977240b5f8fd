"""Limits for the cost of a rotation: figures of the benchmark, from small runs, that do not depend on the machine."""

from __future__ import annotations

import pytest

from goatherd.identity.document import Phase, decode_document, encode_document
from goatherd.identity.root_signatures import _verify_endorsement
from tests.bench import bench_rotation
from tests.unit.identity.make import first, rotated


@pytest.mark.parametrize("nodes", [3, 10])
async def test_calls_of_the_store_do_not_grow_with_the_number_of_nodes(nodes: int) -> None:
    run = await bench_rotation.simulate(nodes)
    assert sum(run.store_calls.values()) <= 24
    assert run.store_calls["write"] == 5
    assert run.store_calls["label"] <= 2


async def test_a_healthy_rotation_pauses_for_nothing_but_the_nodes_own_sync() -> None:
    run = await bench_rotation.simulate(3)
    assert set(run.phases) >= set(bench_rotation.PHASES)
    for phase in (Phase.PREPARED, Phase.PUBLISHED, Phase.VERIFIED):
        assert run.phases[phase] == 0, phase
    assert run.phases[Phase.ACTIVATED] <= 0.1


def test_an_endorsement_is_verified_once_however_often_its_document_is_read() -> None:
    document = rotated(first())
    raw = encode_document(document)
    decode_document(raw)
    before = _verify_endorsement.cache_info().misses
    for _ in range(5):
        assert decode_document(raw).endorsements
    assert _verify_endorsement.cache_info().misses == before
