"""Calculate how soon the current root expires, and when each previous root last signed.

Pure. A cluster whose root has expired accepts no new client. So the stages of urgency begin early: with the default
lifetime, each stage leaves the operator weeks to rotate. If the root's lifetime is known, the stages are fractions of
it, so that a short-lived root is not urgent on its first day.
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
key to unauthenticated clients (docs/explanation/agent.md)."""


REPLACE_EXPIRED: Final = "goatherd rotate --replace-expired"
"""The command that replaces an expired root; options that name the servers are still missing."""

EXPIRED_HINT: Final = f"`{REPLACE_EXPIRED}` puts a new root in its place; give --node URL for each server."


def last_valid_ms(session: Session) -> int:
    """Return the last time at which a session's signatures are valid, in milliseconds since 1970.

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


WORKING_STAGES: Final[tuple[tuple[Urgency, float], ...]] = (
    (Urgency.URGENT, 1 / 6),
    (Urgency.SOON, 1 / 4),
    (Urgency.DUE, 1 / 3),
)
"""The stages of a working root, which an anchor endorses, as fractions of its lifetime. It is renewed when a third is
left, so at half of that the renewal has failed for a long time."""


def working_life(document: IdentityDocument) -> timedelta | None:
    """Return the lifetime of a current root that an anchor has endorsed.

    Return None if the identity has no anchor, or if the current root is the anchor itself (direct mode).
    """
    anchor, current = document.anchor, document.current
    if anchor is None or document.is_direct:
        return None
    began = next(
        (one.commit.ts for one in document.endorsements if (one.by, one.of) == (anchor, current.id) and one.commit),
        current.session.expiration_ms,
    )
    return timedelta(milliseconds=current.session.expiration_ms - began)


def time_left(document: IdentityDocument, now_ms: int) -> timedelta:
    """Return the time until the current root of an identity expires; negative once it has expired."""
    return timedelta(milliseconds=document.current.session.expiration_ms - now_ms)


def is_fresh_and_short(document: IdentityDocument) -> bool:
    """Return whether an identity's root had at most 30 days left at its creation and was never rotated since.

    This is the case after `goatherd migrate` has converted a GoatDB server's identity, whose root lives for 30 days.
    """
    if document.rotated_at is not None or document.generation > 1 or document.last_updated is None:
        return False
    left = timedelta(milliseconds=document.current.session.expiration_ms - document.last_updated)
    return left <= GOATDB_LIFE


def assess_urgency(document: IdentityDocument, now_ms: int) -> Urgency:
    """Return how urgently the current root of an identity must be replaced.

    Args:
        document: The identity document. Its `rotated_at` gives the start of the root's lifetime.
        now_ms: Milliseconds since 1970.
    """
    left = time_left(document, now_ms)
    if left < timedelta(0):
        return Urgency.EXPIRED
    working = working_life(document)
    if working is not None:
        return next((stage for stage, part in WORKING_STAGES if left < working * part), Urgency.FINE)
    began = document.rotated_at
    life = None if began is None else timedelta(milliseconds=document.current.session.expiration_ms - began)
    for stage, most, part in STAGES:
        limit = most if life is None else min(most, life * part)
        if left < limit:
            # There was no earlier time to rotate at.
            return Urgency.DUE if stage is Urgency.SOON and is_fresh_and_short(document) else stage
    return Urgency.FINE


def roots_with_keys(document: IdentityDocument) -> tuple[tuple[str, int], ...]:
    """Return the previous roots not recorded as retired, each with the time (ms since 1970) at which it last signed.

    The store may still hold the private keys of these roots. The key of an anchor, and of a root that signed in direct
    mode, was never in the store.
    """
    ended = document.retired_ids | document.anchor_ids | {document.current.id}
    return tuple((root.id, last_signed_ms(document, root.id)) for root in document.roots if root.id not in ended)


def last_signed_ms(document: IdentityDocument, session_id: str) -> int:
    """Return when a root last signed, in milliseconds since 1970; the root's grace period starts then.

    The time is taken from the history, whose oldest entries are dropped. For a root that the history does not name, it
    is the latest possible time: that of the last rotation or, if there was none, of the last write of the document. A
    cancelled restore of a previous root does not count, because that root signed nothing.
    """
    named = [entry for entry in document.history if session_id in (entry.from_id, entry.to_id)]
    signed = [entry.at for entry in named if not (entry.event == "cancelled" and entry.to_id == session_id)]
    times = signed or [entry.at for entry in named]
    if times:
        return max(times)
    if document.rotated_at is not None or document.find_root(session_id) is None:
        return document.rotated_at or 0
    return document.last_updated or 0
