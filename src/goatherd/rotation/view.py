"""What the machine is shown of the identity document and its labels: ids and times, and no key. Pure."""

from __future__ import annotations

from dataclasses import replace

from goatherd.clock import iso
from goatherd.identity.document import IdentityDocument
from goatherd.providers.base import SecretVersion
from goatherd.rotation.machine import Phase, Policy, StoreView, rotation_due_ms


def store_view(document: IdentityDocument, version: SecretVersion, stable: str | None, policy: Policy) -> StoreView:
    """Return what `document`, read as `version`, tells the machine.

    Args:
        stable: The version that label ``stable`` points at. Looked at in phase steady only, and None in all others.
    """
    view = StoreView(
        version=version.id,
        stable=stable,
        generation=document.generation,
        phase=Phase.STEADY,
        phase_since_ms=document.last_updated or version.created_ms,
        current_id=document.current.id,
        current_expires_ms=document.current.session.expiration_ms,
        rotated_to=frozenset(one.to_id for one in document.history if one.event == "rotated" and one.to_id),
        unretired=unretired(document),
    )
    record, following = document.rotation, document.next
    if record is None:
        return view
    next_due_ms = None
    if following is not None:
        # It was made when its rotation began.
        expires_ms = following.session.expiration_ms
        next_due_ms = rotation_due_ms(issued_ms=record.started_at, expires_ms=expires_ms, policy=policy)
    return replace(
        view,
        phase=Phase(record.phase),
        phase_since_ms=record.phase_at,
        rotation_id=record.id,
        from_id=record.from_id,
        to_id=record.to_id,
        started_by=record.started_by,
        started_at=iso(record.started_at),
        rollback_version=record.stable_version,
        next_due_ms=next_due_ms,
    )


def unretired(document: IdentityDocument) -> tuple[tuple[str, int], ...]:
    """Return the earlier roots that are not on record as retired, and since when each has not signed."""
    ended = document.retired_ids | {document.current.id}
    return tuple((root.id, silent_since_ms(document, root.id)) for root in document.roots if root.id not in ended)


def silent_since_ms(document: IdentityDocument, session_id: str) -> int:
    """Return since when a session has not signed, in milliseconds since 1970; the grace period counts from here.

    By the history. That forgets the eldest rotations: of a root that it does not name, nothing was signed since signing
    moved last, or, where it never did, since the document was written.
    """
    times = [entry.at for entry in document.history if session_id in (entry.from_id, entry.to_id)]
    if times:
        return max(times)
    if document.rotated_at is not None or document.root(session_id) is None:
        return document.rotated_at or 0
    return document.last_updated or 0
