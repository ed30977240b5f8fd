"""What the machine is shown of the identity document and its labels: ids and times, and no key. Pure."""

from __future__ import annotations

from dataclasses import replace

from goatherd.identity.document import IdentityDocument, source_digest
from goatherd.identity.key_age import unretired
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.identity.transitions import CANCELLED, RESTORED, SUCCESSES, is_full, leaving
from goatherd.providers.values import SecretVersion
from goatherd.rotation.machine import Phase, Policy, StoreView, rotation_due_ms
from goatherd.times import iso


def store_view(
    document: IdentityDocument,
    version: SecretVersion,
    stable: str | None,
    policy: Policy,
    *,
    seen_ms: int,
    clock_ahead_ms: int | None,
) -> StoreView:
    """Return what `document`, read as `version`, tells the machine.

    Args:
        stable: The version that label ``stable`` points at. Looked at in phase steady only, and None in all others.
        seen_ms: When this version was seen first, in milliseconds since 1970: what it records is not later.
        clock_ahead_ms: How far the store's clock is ahead of ours; None where it tells none.
    """
    view = StoreView(
        version=version.id,
        stable=stable,
        generation=document.generation,
        phase=Phase.STEADY,
        phase_since_ms=min(seen_ms, document.last_updated or version.created_ms),
        current_id=document.current.id,
        current_expires_ms=document.current.session.expiration_ms,
        restored=frozenset(one.rotation_id for one in document.history if one.event == RESTORED and one.rotation_id),
        cancelled=frozenset(one.rotation_id for one in document.history if one.event == CANCELLED and one.rotation_id),
        finished=frozenset(one.rotation_id for one in document.history if one.event in SUCCESSES and one.rotation_id),
        unretired=unretired(document),
        root_ids=frozenset(root.id for root in document.roots),
        clock_ahead_ms=clock_ahead_ms,
        recorded_ahead_ms=recorded_ahead_ms(document, seen_ms),
        digest=source_digest(document),
        lineage=document.lineage,
    )
    record, following = document.rotation, document.next
    if record is None:
        return replace(view, leaving=leaving(document), is_full=is_full(document))
    next_due_ms = None
    if following is not None:
        # It was made when its rotation began.
        expires_ms = following.session.expiration_ms
        next_due_ms = rotation_due_ms(issued_ms=record.started_at, expires_ms=expires_ms, policy=policy)
    return replace(
        view,
        phase=Phase(record.phase),
        phase_since_ms=min(seen_ms, record.phase_at),
        rotation_id=record.id,
        from_id=record.from_id,
        to_id=record.to_id,
        started_by=record.started_by,
        started_at=iso(record.started_at),
        rollback_version=record.stable_version,
        next_due_ms=next_due_ms,
    )
