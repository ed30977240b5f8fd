"""Endorsements: root A's signature over root B's public session.

Pure. An endorsement is worth as much as the key that made it, and no more than the session that it names: id, public
key, owner and expiration are all under the signature, in an object that says what it is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from goatherd.errors import SuccessionError, VerificationError
from goatherd.identity.session import OwnedSession, Session, parse_signature, sign_data, verify_data
from goatherd.wire.javascript_values import UNDEFINED

DOMAIN = "endorsement/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """Says that root `by` vouches for root `of`. `extra` holds members that we do not know; they are not signed."""

    by: str
    of: str
    signature: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def to_json(self) -> dict[str, Any]:
        return {"by": self.by, "of": self.of, "signature": self.signature, **self.extra}


def endorse(by: OwnedSession, of: Session, now_ms: int) -> Endorsement:
    """Sign `of` with `by`; only the public half is signed, and only GoatDB's four members of it."""
    signature = sign_data(by, now_ms=now_ms, external=_statement(of))
    return Endorsement(by=by.id, of=of.id, signature=signature)


def verify_endorsement(endorsement: Endorsement, *, by: Session, of: Session) -> None:
    """Check that `by` endorsed exactly `of`.

    Raises:
        SuccessionError: The ids differ, the signature covers something else (another key, owner, expiration or
            purpose), or it was made after `by` had expired.
    """
    if endorsement.by != by.id or endorsement.of != of.id:
        raise SuccessionError("the endorsement names other sessions")
    if by.id == of.id:
        raise SuccessionError("a root cannot endorse itself")
    _verify_statement(endorsement.signature, by, of)


# A document is decoded at every look at it, and its endorsements are the same ones each time: what has verified once is
# not computed again (`make bench`, rotation). SECURITY: everything that is verified is in the key, the public keys'
# coordinates included, and only a success is kept
# (tests/unit/identity/test_succession.py, "a verified endorsement is worth nothing for another key").
@lru_cache(maxsize=256)
def _verify_statement(signature: str, by: Session, of: Session) -> None:
    try:
        envelope = parse_signature(signature)
        # SECURITY: data embedded in the signature would be a second thing that was signed; none is allowed
        # (tests/unit/identity/test_succession.py).
        valid = envelope.data is UNDEFINED
        if valid:
            verify_data(by, envelope, external=_statement(of))
    except VerificationError:
        valid = False
    if not valid:
        raise SuccessionError(f"the endorsement of {of.id} by {by.id} does not verify")


def _statement(session: Session) -> dict[str, Any]:
    # SECURITY: GoatDB signs objects of commits and requests with the same key; the first member keeps an endorsement
    # from ever being one of those (tests/unit/identity/test_succession.py).
    return {"goatherd": DOMAIN, "session": session.to_json()}
