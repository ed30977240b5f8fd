"""Calculate how soon the current root expires, and when each previous root last signed.

Pure. `goatherd.rotation` replaces roots. A cluster whose root has expired accepts no new client, so with the default
lifetime each stage of urgency leaves the operator weeks to act. The stages are fractions of the root's lifetime, if the
lifetime is known, so that a short-lived root is not urgent on its first day.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from goatherd.identity.document import IdentityDocument
    from goatherd.identity.session import Session


SHORT_LIFE: Final = timedelta(days=15)
"""COMPAT: with less time left, GoatDB extends the root automatically at its next start, and then returns its private
key to unauthenticated clients (docs/explanation/rotation.md)."""


REPLACE_EXPIRED: Final = "goatherd rotate --replace-expired"
"""The command that replaces an expired root; options that name the servers are still missing."""

EXPIRED_HINT: Final = f"`{REPLACE_EXPIRED}` puts a new root in its place; give --node URL for each server."


def last_valid_ms(session: Session) -> int:
    """Return the last time at which the session's signatures are valid, in milliseconds since 1970.

    COMPAT: GoatDB compares the timestamp in a signature with the session's expiration and never with the clock, so a
    signature of an expired root with this timestamp is accepted everywhere. One second is subtracted because GoatDB
    stores the expiration in seconds with a fraction and rounds it.
    """
    return session.expiration_ms - 1000


class Urgency(StrEnum):
    """How urgently the current root must be replaced."""

    FINE = "fine"
    DUE = "due"
    """A rotation is due; nothing is wrong yet."""
    SOON = "soon"
    """A rotation is overdue."""
    URGENT = "urgent"
    """COMPAT: at its next start a GoatDB server would extend the root automatically, and then expose its key."""
    EXPIRED = "expired"
    """No new client is accepted, and nothing that the root signs now is valid."""


GOATDB_LIFE: Final = timedelta(days=30)
"""COMPAT: the lifetime of a root that a GoatDB server creates."""

STAGES: Final[tuple[tuple[Urgency, timedelta, float], ...]] = (
    (Urgency.URGENT, SHORT_LIFE, 1 / 6),
    (Urgency.SOON, timedelta(days=30), 1 / 3),
    (Urgency.DUE, timedelta(days=60), 1 / 2),
)
"""Each stage: its urgency, the time left below which it starts, and the same as a fraction of the lifetime."""


def time_left(document: IdentityDocument, now_ms: int) -> timedelta:
    """Return the time until the current root expires; negative once it has expired."""
    return timedelta(milliseconds=document.current.session.expiration_ms - now_ms)


def is_fresh_and_short(document: IdentityDocument) -> bool:
    """Return whether the root had at most 30 days left when the identity was created, and none was rotated since.

    This is the case after `goatherd migrate` has converted a GoatDB server's identity.
    """
    if document.rotated_at is not None or document.generation > 1 or document.last_updated is None:
        return False
    left = timedelta(milliseconds=document.current.session.expiration_ms - document.last_updated)
    return left <= GOATDB_LIFE


def assess_urgency(document: IdentityDocument, now_ms: int) -> Urgency:
    """Return how urgently the current root must be replaced.

    Args:
        document: The identity. Its `rotated_at` gives the start of the root's lifetime.
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
    """Return the previous roots that are not recorded as retired, and when each last signed (ms since 1970)."""
    ended = document.retired_ids | {document.current.id}
    return tuple((root.id, last_signed_ms(document, root.id)) for root in document.roots if root.id not in ended)


def last_signed_ms(document: IdentityDocument, session_id: str) -> int:
    """Return when a root last signed, in milliseconds since 1970; the root's grace period starts then.

    The time is taken from the history, whose oldest entries are dropped. A root that the history does not name last
    signed before the last rotation or, if there was none, before the document was last written. A cancelled restore
    does not count: the previous root signed nothing.
    """
    named = [entry for entry in document.history if session_id in (entry.from_id, entry.to_id)]
    signed = [entry.at for entry in named if not (entry.event == "cancelled" and entry.to_id == session_id)]
    times = signed or [entry.at for entry in named]
    if times:
        return max(times)
    if document.rotated_at is not None or document.find_root(session_id) is None:
        return document.rotated_at or 0
    return document.last_updated or 0
