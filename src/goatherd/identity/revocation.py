"""A root that must not be believed any more, what the cluster held of it, and who comes after it.

Pure. What it is not: it does not change a document (`transitions`) nor judge one (`succession`). Rules: a proof is no
endorsement. It does not say "believe the next root because I do"; it shows that whoever wrote the revocation had the
revoked root's private key before him, which a stranger who can only write to the store has not. It counts for one
thing, in a document that came out of the store: which root follows the revoked one. Whoever has stolen the key can make
a proof too, but needs the store to have it read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from goatherd.errors import SuccessionError, VerificationError
from goatherd.identity.session import OwnedSession, Session, parse_signature, sign_data, verify_data
from goatherd.times import iso
from goatherd.wire.javascript_values import UNDEFINED

DOMAIN = "revocation/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """What the cluster held of a revoked root's commits when the list was closed.

    Attributes:
        at: When it was closed, in milliseconds since 1970.
        commits: How many there are.
        digest: SHA-256, hexadecimal, of the list itself (`goatherd.identity.freeze.FrozenList`).
        extra: Members that we do not know.
    """

    at: int
    commits: int
    digest: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A root that must not be believed any more.

    Attributes:
        id: The root.
        at: When it was revoked, in milliseconds since 1970.
        reason: For people.
        successor: The root that signed, or began to sign, when it was revoked; only together with `proof`.
        proof: The revoked root's signature, made by whoever revoked it, over the revocation and its successor.
        freeze: The list of what the cluster held. None: not closed yet, so that each node goes by what it holds itself.
        settled_at: When every session that it had introduced had been introduced again, in milliseconds since 1970;
            from then on its word counts for no session any more.
        extra: Members that we do not know.
    """

    id: str
    at: int
    reason: str
    successor: str | None = None
    proof: str | None = None
    freeze: Freeze | None = None
    settled_at: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)


def prove(revoked: OwnedSession, successor: Session, at: int) -> str:
    """Sign, with the revoked root's key, that it was revoked at `at` (milliseconds since 1970) for `successor`."""
    # The time in an envelope is not signed. A root that has expired must still be replaceable.
    ts = min(at, revoked.session.expiration_ms)
    return sign_data(revoked, now_ms=ts, external=_statement(revoked.id, successor, at))


def verify_proof(revocation: Revocation, *, revoked: Session, successor: Session) -> None:
    """Check that the revoked root's key made the proof, for exactly this revocation and successor.

    Raises:
        SuccessionError: There is none, it names other sessions, or it covers something else.
    """
    if revocation.proof is None or revocation.id != revoked.id or revocation.successor != successor.id:
        raise SuccessionError(f"the revocation of {revocation.id} names other sessions")
    try:
        envelope = parse_signature(revocation.proof)
        # SECURITY: as for an endorsement, nothing else may be signed with it (tests/unit/identity/test_revocation.py).
        valid = envelope.data is UNDEFINED
        if valid:
            verify_data(revoked, envelope, external=_statement(revoked.id, successor, revocation.at))
    except VerificationError:
        valid = False
    if not valid:
        raise SuccessionError(f"the proof of the revocation of {revocation.id} does not verify")


def revocation_json(revocation: Revocation) -> dict[str, Any]:
    encoded: dict[str, Any] = {"id": revocation.id, "at": iso(revocation.at), "reason": revocation.reason}
    if revocation.successor is not None:
        encoded.update(successor=revocation.successor, proof=revocation.proof)
    if revocation.freeze is not None:
        freeze = revocation.freeze
        encoded["freeze"] = {"at": iso(freeze.at), "commits": freeze.commits, "digest": freeze.digest, **freeze.extra}
    if revocation.settled_at is not None:
        encoded["settledAt"] = iso(revocation.settled_at)
    return {**encoded, **revocation.extra}


def _statement(revoked_id: str, successor: Session, at: int) -> dict[str, Any]:
    # SECURITY: the first member keeps a proof from ever being an endorsement, a commit or a request
    # (tests/unit/identity/test_revocation.py).
    return {"goatherd": DOMAIN, "revoked": revoked_id, "at": at, "successor": successor.to_json()}
