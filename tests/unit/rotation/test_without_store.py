"""A node with a last known good identity could not follow a rotation, so no rotation starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import DegradedError
from goatherd.rotation.machine import Outcome
from tests.fakes.herd import Herd
from tests.unit.rotation.conftest import MakeHerd, document_of, rotator_for


def cut_off(herd: Herd, monkeypatch: pytest.MonkeyPatch, *, comes_back: bool) -> None:
    """Let a node report that it is cut off from the store; with `comes_back`, a notification makes it reach the store
    again."""
    node = herd.nodes[1]
    plain_identity, plain_refresh = node.identity, node.refresh
    source = "last known good"

    async def identity() -> ServerIdentity | None:
        answer = await plain_identity()
        return None if answer is None else replace(answer, source=source)

    async def refresh(*arguments: Any) -> dict[str, Any] | None:
        nonlocal source
        source = "store" if comes_back else source
        return await plain_refresh(*arguments)

    monkeypatch.setattr(node, "identity", identity)
    monkeypatch.setattr(node, "refresh", refresh)


async def test_no_rotation_begins_while_a_node_cannot_reach_the_store(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd()
    cut_off(herd, monkeypatch, comes_back=False)
    before = await document_of(herd)
    with pytest.raises(DegradedError, match=herd.nodes[1].base_url):
        await rotator_for(herd).rotate()
    assert await document_of(herd) == before, "nothing was written"
    assert herd.nodes[1].asked["refresh"] == 1, "it was told to try again first"
    plan = await rotator_for(herd).plan()
    assert any("cannot read the store" in obstacle for obstacle in plan.obstacles)


async def test_a_node_that_finds_the_store_when_told_to_look_takes_part(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd()
    cut_off(herd, monkeypatch, comes_back=True)
    assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED


async def test_a_node_that_does_not_answer_is_left_to_the_rotation(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    herd.nodes[1].faults.cut_off = True
    report = await rotator_for(herd).plan()
    assert not any("cannot read the store" in obstacle for obstacle in report.obstacles)
