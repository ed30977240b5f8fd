"""The two signatures that a root makes in the identity document: endorsements of other roots, and the document's own.

Pure. An endorsement is root A's signature over root B's public session: its id, public key, owner and expiration.

The document signature is the current root's signature over the whole document, private keys and unknown members
included; only the signature string itself is left out. White space and the order of members are not signed, because a
store may change them.

Each signed object starts with a member that names its purpose, so that no signature is valid for another purpose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from goatherd.errors import SuccessionError, VerificationError
from goatherd.identity.key_age import last_valid_ms
from goatherd.identity.session import OwnedSession, Session, parse_signature, sign_data, verify_data
from goatherd.identity.strict_json import to_canonical_json
from goatherd.wire.javascript_values import UNDEFINED

ENDORSEMENT_DOMAIN = "endorsement/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """The statement that root `by` endorses root `of`. `extra` holds unknown members, which are not signed."""

    by: str
    of: str
    signature: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def to_json(self) -> dict[str, Any]:
        return {"by": self.by, "of": self.of, "signature": self.signature, **self.extra}


def endorse_root(by: OwnedSession, of: Session, now_ms: int) -> Endorsement:
    """Sign root `of` with root `by`. Only GoatDB's four public members of `of` are signed."""
    signature = sign_data(by, now_ms=now_ms, external=_endorsement_statement(of))
    return Endorsement(by=by.id, of=of.id, signature=signature)


def verify_endorsement(endorsement: Endorsement, *, by: Session, of: Session) -> None:
    """Check that root `by` endorsed exactly the root `of`.

    Raises:
        SuccessionError: The ids differ, the signature covers something else (another key, owner, expiration or
            purpose), or it was made after `by` had expired.
    """
    if endorsement.by != by.id or endorsement.of != of.id:
        raise SuccessionError(f"the endorsement must be by root {by.id} of root {of.id}, but names other roots")
    if by.id == of.id:
        raise SuccessionError("a root cannot endorse itself")
    _verify_endorsement(endorsement.signature, by, of)


# Each decoding of a document verifies the same endorsements, so successes are cached (`make bench`, rotation).
# SECURITY: everything that is verified is in the key, the public keys' coordinates included, and only a success is kept
# (tests/unit/identity/test_succession.py, "a verified endorsement is worth nothing for another key").
@lru_cache(maxsize=256)
def _verify_endorsement(signature: str, by: Session, of: Session) -> None:
    try:
        envelope = parse_signature(signature)
        # SECURITY: data embedded in the signature would be a second thing that was signed; none is allowed
        # (tests/unit/identity/test_succession.py).
        valid = envelope.data is UNDEFINED
        if valid:
            verify_data(by, envelope, external=_endorsement_statement(of))
    except VerificationError:
        valid = False
    if not valid:
        raise SuccessionError(f"the endorsement of {of.id} by {by.id} does not verify")


def _endorsement_statement(session: Session) -> dict[str, Any]:
    # SECURITY: GoatDB signs objects of commits and requests with the same key; the first member keeps an endorsement
    # from ever being one of those (tests/unit/identity/test_succession.py).
    return {"goatherd": ENDORSEMENT_DOMAIN, "session": session.to_json()}


DOCUMENT_DOMAIN: Final = "document/1"
MEMBER: Final = "documentSignature"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSignature:
    """The signature over an identity document.

    Attributes:
        by: Id of the current root, which signed.
        generation: The document's generation when it was signed. A version of Goatherd that does not know the signature
            copies it unchanged, and only increases the document's generation.
        signature: A signature string in GoatDB's format.
        extra: Members that this version of Goatherd does not know.
    """

    by: str
    generation: int
    signature: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def to_json(self) -> dict[str, Any]:
        return {"by": self.by, "generation": self.generation, "signature": self.signature, **self.extra}


def sign_tree(tree: Mapping[str, Any], *, by: OwnedSession, generation: int, now_ms: int) -> DocumentSignature:
    """Sign a document that is given as JSON values; an existing signature is ignored.

    Args:
        tree: The document as plain JSON values.
        by: The document's current root. An expired root signs with the last timestamp at which it was valid.
        generation: The document's generation.
        now_ms: Milliseconds since 1970.
    """
    head = DocumentSignature(by=by.id, generation=generation, signature="")
    ts = min(now_ms, last_valid_ms(by.session))
    signature = sign_data(by, now_ms=ts, external=_document_statement(tree_digest({**tree, MEMBER: head.to_json()})))
    return DocumentSignature(by=by.id, generation=generation, signature=signature)


def is_signed_by(tree: Mapping[str, Any], signature: DocumentSignature, *, by: Session, generation: int) -> bool:
    """Return whether root `by` signed exactly this document, at this generation."""
    if signature.by != by.id or signature.generation != generation:
        return False
    return _is_signature_valid(signature.signature, by, tree_digest(tree))


def tree_digest(tree: Mapping[str, Any]) -> str:
    """Return the SHA-256, hexadecimal, of a document's canonical form (RFC 8785) without the signature."""
    signed = dict(tree)
    if isinstance(member := tree.get(MEMBER), Mapping):
        signed[MEMBER] = {name: value for name, value in member.items() if name != "signature"}
    return hashlib.sha256(to_canonical_json(signed)).hexdigest()


# Documents are verified often, so results are cached. SECURITY: the cache key covers everything that is verified: the
# public key and the digest of the whole document (tests/unit/identity/test_root_signatures.py).
@lru_cache(maxsize=256)
def _is_signature_valid(signature: str, by: Session, digest: str) -> bool:
    try:
        envelope = parse_signature(signature)
        # SECURITY: as for an endorsement, nothing else may be signed with it
        # (tests/unit/identity/test_root_signatures.py).
        if envelope.data is not UNDEFINED:
            return False
        verify_data(by, envelope, external=_document_statement(digest))
    except VerificationError:
        return False
    return True


def _document_statement(digest: str) -> dict[str, Any]:
    # SECURITY: the first member keeps this from ever being an endorsement, a proof, a commit or a request.
    return {"goatherd": DOCUMENT_DOMAIN, "sha256": digest}
