"""Shorthand for what a rotation reads from the store and from servers, for the tests of its decisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

from goatherd.rotation.machine import (
    Goal,
    Intent,
    NodeView,
    Observation,
    Phase,
    Policy,
    StoreView,
)

NOW = 1_000_000_000
POLICY = Policy(adoption=timedelta(seconds=60), settle=timedelta(seconds=30), grace=timedelta(days=1))
LATE = NOW + 60_000
DAY = 86_400_000


def store(phase: Phase, **changes: Any) -> StoreView:
    signs_b = phase in (Phase.ACTIVATED, Phase.VERIFIED)
    view = StoreView(
        version="7",
        stable="7" if phase is Phase.STEADY else "6",
        generation=7,
        phase=phase,
        phase_since_ms=NOW,
        current_id="B" if signs_b else "A",
        current_expires_ms=NOW + DAY,
    )
    if phase is not Phase.STEADY:
        view = replace(
            view,
            rotation_id="r1",
            from_id="A",
            to_id="B",
            started_by="bob@host:1",
            started_ms=1_795_521_600_000,
            rollback_version="6",
        )
    return replace(view, **changes)


def node(number: int, **changes: Any) -> NodeView:
    full = NodeView(
        url=f"n{number}",
        reachable=True,
        trusts_next=True,
        holds_introduction=True,
        signs_with="B",
        holds_cross_signature=True,
    )
    return replace(full, **changes)


DEAD = {
    "reachable": False,
    "trusts_next": None,
    "holds_introduction": None,
    "signs_with": None,
    "holds_cross_signature": None,
}
ASKED = Intent(goal=Goal.ROTATE, began_ms=NOW, from_id="A")
MINE = replace(ASKED, rotation_id="r1", to_id="B")
RESTORING = replace(ASKED, goal=Goal.RESTORE, to_id="Z")
STEADY, PREPARED, PUBLISHED = store(Phase.STEADY), store(Phase.PREPARED), store(Phase.PUBLISHED)
ACTIVATED, VERIFIED = store(Phase.ACTIVATED), store(Phase.VERIFIED)
ROLLED_BACK = replace(STEADY, current_id="A", rolled_back=frozenset({"r1"}))
FINISHED = replace(STEADY, current_id="B", finished=frozenset({"r1"}))


SIGHTS: list[dict[str, Any]] = [
    {"trusts_next": trusts, "holds_introduction": holds, "signs_with": signs, "holds_cross_signature": cross}
    for trusts, holds, signs, cross in product((True, False), (True, False, None), ("A", "B", None), (True, False))
] + [DEAD, {"rejects": "it says so"}]


def all_observations() -> Iterator[Observation]:
    for phase, stable, first, second in product(Phase, (None, "6", "7"), SIGHTS, SIGHTS):
        for current in ("A", "B") if phase is Phase.STEADY else (None,):
            seen = store(phase, stable=stable)
            seen = replace(seen, current_id=current) if current else seen
            yield Observation(store=seen, nodes=(node(1, **first), node(2, **second)))
