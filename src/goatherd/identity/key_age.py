"""How soon the root that signs expires, told long before it matters.

Pure. What it is not: it replaces nothing (`goatherd.rotation`). Rules: a cluster whose root has expired takes no new
client, so there is time enough in every stage for somebody to be on holiday. A root that was made to live shortly is
not late from its first day on: the stages are parts of its life, where that is known.

Since when the earlier roots of a document have not signed, and which of them are not on record as retired. Pure.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from goatherd.identity.document import IdentityDocument
    from goatherd.identity.session import Session


SHORT_LIFE: Final = timedelta(days=15)
"""COMPAT: with less than this left, GoatDB extends the root by itself at its next start, and then hands its private key
to anybody who asks (docs/explanation/rotation.md)."""


REPLACE_EXPIRED: Final = "goatherd rotate --replace-expired"
"""The one command that puts another root in the place of an expired one; the servers are still to be named."""

EXPIRED_HINT: Final = f"`{REPLACE_EXPIRED}` puts a new root in its place; give --node URL for each server."


def last_valid_ms(session: Session) -> int:
    """Return a time at which whatever the session signs is valid: a second before its end, in milliseconds since 1970.

    COMPAT: GoatDB compares the time in a signature with the session's expiration and never with the clock, so what an
    expired root signs with this time is believed everywhere. The second keeps the rounding of an expiration, which is
    in seconds with a fraction, from mattering.
    """
    return session.expiration_ms - 1000


class Urgency(StrEnum):
    """How urgent a new root is."""

    FINE = "fine"
    DUE = "due"
    """A rotation is due; nothing is wrong yet."""
    SOON = "soon"
    """Somebody should have rotated."""
    URGENT = "urgent"
    """COMPAT: at its next start a GoatDB server would extend the root by itself, and then give its key away."""
    EXPIRED = "expired"
    """No new client gets in, and nothing that the root signs now convinces anybody."""


GOATDB_LIFE: Final = timedelta(days=30)
"""COMPAT: so long a root lives that a GoatDB server has made."""

STAGES: Final[tuple[tuple[Urgency, timedelta, float], ...]] = (
    (Urgency.URGENT, SHORT_LIFE, 1 / 6),
    (Urgency.SOON, timedelta(days=30), 1 / 3),
    (Urgency.DUE, timedelta(days=60), 1 / 2),
)
"""A stage begins when less than this time is left, and less than this part of the root's life where it is known."""


def time_left(document: IdentityDocument, now_ms: int) -> timedelta:
    """Return how long the root that signs still lives; negative once it has expired."""
    return timedelta(milliseconds=document.current.session.expiration_ms - now_ms)


def is_fresh_and_short(document: IdentityDocument) -> bool:
    """Return whether the root had 30 days or less left when the identity was made, and nothing was rotated since.

    That is how a GoatDB server's identity comes out of `goatherd migrate`.
    """
    if document.rotated_at is not None or document.generation > 1 or document.last_updated is None:
        return False
    left = timedelta(milliseconds=document.current.session.expiration_ms - document.last_updated)
    return left <= GOATDB_LIFE


def assess_urgency(document: IdentityDocument, now_ms: int) -> Urgency:
    """Return how urgent a new root is.

    Args:
        document: The identity. When signing last moved tells how long its root was made to live.
        now_ms: Milliseconds since 1970.
    """
    left = time_left(document, now_ms)
    if left < timedelta(0):
        return Urgency.EXPIRED
    began = document.rotated_at
    life = None if began is None else timedelta(milliseconds=document.current.session.expiration_ms - began)
    for stage, most, part in STAGES:
        limit = most if life is None else min(most, life * part)
        if left < limit:
            # There was no earlier time to rotate at.
            return Urgency.DUE if stage is Urgency.SOON and is_fresh_and_short(document) else stage
    return Urgency.FINE


def roots_with_keys(document: IdentityDocument) -> tuple[tuple[str, int], ...]:
    """Return the earlier roots that are not on record as retired, and since when each has not signed."""
    ended = document.retired_ids | {document.current.id}
    return tuple((root.id, last_signed_ms(document, root.id)) for root in document.roots if root.id not in ended)


def last_signed_ms(document: IdentityDocument, session_id: str) -> int:
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
    if document.rotated_at is not None or document.find_root(session_id) is None:
        return document.rotated_at or 0
    return document.last_updated or 0
