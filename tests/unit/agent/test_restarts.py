"""A rotation restarts an unmodified server at most once: checked for every document that a rotation can write."""

from __future__ import annotations

import pytest

from goatherd.agent.restart_rules import reasons_to_restart
from goatherd.identity import transitions
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.identity.session import OwnedSession

NOW = 1_790_000_000_000
A, B = (OwnedSession.generate(session_id=name, owner="root", now_ms=NOW) for name in ("root-a", "root-b"))


def count_restarts(documents: list[IdentityDocument]) -> int:
    running, count = documents[0], 0
    for wanted in documents[1:]:
        if reasons_to_restart(running, wanted):
            running, count = wanted, count + 1
    return count


def forward(first: IdentityDocument, prepared: IdentityDocument) -> list[IdentityDocument]:
    published = transitions.with_phase(prepared, Phase.PUBLISHED, NOW + 2)
    activated = transitions.activate_rotation(published, NOW + 3)
    verified = transitions.with_phase(activated, Phase.VERIFIED, NOW + 4)
    return [first, prepared, published, activated, verified, transitions.finalize_rotation(verified, NOW + 5)]


def rotation() -> list[IdentityDocument]:
    first = transitions.create_document(A, NOW)
    ids = {"now_ms": NOW + 1, "rotation_id": "r1", "started_by": "", "stable_version": "1"}
    return forward(first, transitions.prepare_rotation(first, B, **ids))  # type: ignore[arg-type]


def restoration() -> list[IdentityDocument]:
    first = rotation()[-1]
    ids = {"now_ms": NOW + 6, "rotation_id": "r2", "started_by": "", "stable_version": "6"}
    return forward(first, transitions.prepare_restore(first, A, **ids))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [rotation, restoration])
def test_a_server_restarts_once_in_a_rotation_or_restore_not_if_cancelled_and_once_more_if_rolled_back(make) -> None:  # type: ignore[no-untyped-def]
    documents = make()
    assert count_restarts(documents) == 1
    for left in (2, 3):
        cancelled = transitions.cancel_rotation(documents[left - 1], NOW + 9, reason="")
        assert count_restarts([*documents[:left], cancelled]) == 0
    for left in (4, 5):
        back = transitions.roll_back_rotation(documents[left - 1], documents[0], NOW + 9, reason="")
        assert count_restarts([*documents[:left], back]) == 2
