"""The signature over a whole identity document, by the root that signs.

Pure. What it is not: it knows no members of the document but its own, ``documentSignature``. Rules: everything is under
the signature, members that this version does not know and the private keys included, only the signature itself is not;
the order of members and the white space are not, since a store may write them anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from goatherd.errors import VerificationError
from goatherd.identity.expiry import last_valid_ms
from goatherd.identity.session import OwnedSession, Session, parse_signature, sign_data, verify_data
from goatherd.identity.text import canonical
from goatherd.wire.javascript_values import UNDEFINED

DOMAIN: Final = "document/1"
MEMBER: Final = "documentSignature"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSignature:
    """Who signed a document, at which generation.

    Attributes:
        by: The root that signed: the current one.
        generation: The document's generation when it was signed. A version of Goatherd that does not know the
            signature keeps it as it was, and raises the document's generation only.
        signature: A signature string as GoatDB writes them.
        extra: Members that we do not know.
    """

    by: str
    generation: int
    signature: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    def to_json(self) -> dict[str, Any]:
        return {"by": self.by, "generation": self.generation, "signature": self.signature, **self.extra}


def sign_tree(tree: Mapping[str, Any], *, by: OwnedSession, generation: int, now_ms: int) -> DocumentSignature:
    """Sign a document's tree; a signature that it holds already is not looked at.

    Args:
        tree: The document as plain JSON values.
        by: The document's current root. One that has expired signs with the last time at which it was valid.
        generation: The document's.
        now_ms: Milliseconds since 1970.
    """
    head = DocumentSignature(by=by.id, generation=generation, signature="")
    ts = min(now_ms, last_valid_ms(by.session))
    signature = sign_data(by, now_ms=ts, external=_statement(tree_digest({**tree, MEMBER: head.to_json()})))
    return DocumentSignature(by=by.id, generation=generation, signature=signature)


def is_signed_by(tree: Mapping[str, Any], signature: DocumentSignature, *, by: Session, generation: int) -> bool:
    """Return whether `by` signed exactly this tree, at this generation."""
    if signature.by != by.id or signature.generation != generation:
        return False
    return _verifies(signature.signature, by, tree_digest(tree))


def tree_digest(tree: Mapping[str, Any]) -> str:
    """Return the SHA-256, hexadecimal, of a document's canonical form (RFC 8785) without the signature."""
    signed = dict(tree)
    if isinstance(member := tree.get(MEMBER), Mapping):
        signed[MEMBER] = {name: value for name, value in member.items() if name != "signature"}
    return hashlib.sha256(canonical(signed)).hexdigest()


# A document is looked at all the time. SECURITY: everything that is verified is in the key, the public key and the
# digest of the whole document included (tests/unit/identity/test_document_signature.py).
@lru_cache(maxsize=256)
def _verifies(signature: str, by: Session, digest: str) -> bool:
    try:
        envelope = parse_signature(signature)
        # SECURITY: as for an endorsement, nothing else may be signed with it
        # (tests/unit/identity/test_document_signature.py).
        if envelope.data is not UNDEFINED:
            return False
        verify_data(by, envelope, external=_statement(digest))
    except VerificationError:
        return False
    return True


def _statement(digest: str) -> dict[str, Any]:
    # SECURITY: the first member keeps this from ever being an endorsement, a proof, a commit or a request.
    return {"goatherd": DOMAIN, "sha256": digest}
