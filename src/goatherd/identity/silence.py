"""Since when the earlier roots of a document have not signed, and which of them are not on record as retired. Pure."""

from __future__ import annotations

from goatherd.identity.document import IdentityDocument


def unretired(document: IdentityDocument) -> tuple[tuple[str, int], ...]:
    """Return the earlier roots that are not on record as retired, and since when each has not signed."""
    ended = document.retired_ids | {document.current.id}
    return tuple((root.id, silent_since_ms(document, root.id)) for root in document.roots if root.id not in ended)


def silent_since_ms(document: IdentityDocument, session_id: str) -> int:
    """Return since when a session has not signed, in milliseconds since 1970; the grace period counts from here.

    By the history. That forgets the eldest rotations: of a root that it does not name, nothing was signed since signing
    moved last, or, where it never did, since the document was written. A restore that was cancelled changes nothing:
    the earlier root did not sign.
    """
    named = [entry for entry in document.history if session_id in (entry.from_id, entry.to_id)]
    signed = [entry.at for entry in named if not (entry.event == "cancelled" and entry.to_id == session_id)]
    times = signed or [entry.at for entry in named]
    if times:
        return max(times)
    if document.rotated_at is not None or document.root(session_id) is None:
        return document.rotated_at or 0
    return document.last_updated or 0
