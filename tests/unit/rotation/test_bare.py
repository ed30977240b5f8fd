"""Unmodified servers that are not restarted: they trust the next root, and still sign with the previous one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.cli.text.rotation import bare_lines
from goatherd.cluster.observer import Observer
from goatherd.errors import NotAdoptedError
from goatherd.rotation.machine import (
    Evidence,
    NodeView,
    Observation,
    Outcome,
    Phase,
    Policy,
    Step,
    StoreView,
    find_missing_evidence,
)
from goatherd.times import format_utc
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, rotator_for

STORE = StoreView(
    version="3",
    stable="1",
    generation=3,
    phase=Phase.ACTIVATED,
    phase_since_ms=0,
    current_id="b",
    current_expires_ms=1 << 50,
    from_id="a",
    to_id="b",
)


def view(**more: object) -> NodeView:
    seen = {"reachable": True, "trusts_next": True, "holds_introduction": True, "holds_cross_signature": True}
    return NodeView(**{"url": "http://bare", "signs_with": "a", **seen, **more})  # type: ignore[arg-type]


def test_a_bare_server_is_not_waited_for_to_sign_with_the_next_root() -> None:
    assert find_missing_evidence(Observation(store=STORE, nodes=(view(),)), Step.VERIFY) == {
        Evidence.SIGNS_WITH_NEXT: ("http://bare",)
    }
    assert find_missing_evidence(Observation(store=STORE, nodes=(view(is_bare=True),)), Step.VERIFY) == {}


@pytest.mark.parametrize(
    ("step", "lacks", "evidence"),
    [
        (Step.ACTIVATE, {"trusts_next": False}, Evidence.TRUSTS_NEXT),
        (Step.ACTIVATE, {"trusts_next": None}, Evidence.TRUSTS_NEXT),
        (Step.ACTIVATE, {"holds_introduction": None}, Evidence.HOLDS_INTRODUCTION),
        (Step.VERIFY, {"holds_cross_signature": False}, Evidence.HOLDS_CROSS_SIGNATURE),
    ],
)
def test_everything_else_is_asked_of_a_bare_server_as_of_all_others(
    step: Step, lacks: dict[str, object], evidence: Evidence
) -> None:
    assert find_missing_evidence(Observation(store=STORE, nodes=(view(is_bare=True, **lacks),)), step) == {
        evidence: ("http://bare",)
    }


def test_who_is_bare_is_told_by_address_with_or_without_a_slash_at_the_end() -> None:
    for given in (frozenset({"http://x/"}), ["http://x"], "http://x/"):
        policy = Policy(bare=given, distrust=given)  # type: ignore[arg-type]
        assert policy.bare == policy.distrust == frozenset({"http://x"})
    observer = Observer([], clock=None, timeout=timedelta(seconds=1), bare=["http://x/"])  # type: ignore[arg-type]
    assert observer._bare == {"http://x"}


async def test_a_rotation_goes_through_with_a_bare_server_loses_nothing_and_says_who_is_behind(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(nodes=3, unmodified=[1])
    bare = herd.nodes[1].base_url
    report = await rotator_for(herd, policy=replace(POLICY, bare=frozenset({bare}))).rotate()
    assert report.outcome is Outcome.ROTATED
    assert report.behind == (bare,)
    document = await check_steady(herd)
    assert herd.nodes[1].pool.current.id == report.from_id
    assert document.current.id in herd.nodes[1].pool.root_ids, "it trusts the new root"
    told = "\n".join(bare_lines(report, [bare]))
    assert bare in told
    assert "goatherd run --once" in told
    assert document.current.id in told
    root = document.find_root(report.from_id or "")
    assert root is not None
    assert f"at most until its root expires ({root.id}: {format_utc(root.expiration_ms)})" in told
    assert bare_lines(report, []) == []


@pytest.mark.slow
async def test_without_being_told_so_the_rotation_goes_back_and_the_hint_says_what_to_do(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3, unmodified=[1])
    with pytest.raises(NotAdoptedError) as caught:
        await rotator_for(herd).rotate()
    await check_steady(herd)
    assert herd.nodes[1].base_url in caught.value.hint
    assert "goatherd run" in caught.value.hint
    assert "the agent's log states why" in caught.value.hint, "under `goatherd run --watch` it looks the same"
    assert "--bare" in caught.value.hint
