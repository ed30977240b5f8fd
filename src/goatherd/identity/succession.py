"""Who may follow whom: which new document a node that trusts some roots already may take over.

Pure. Rules: verification raises and returns nothing; a root is believed because it is trusted already or because a
believed, unrevoked root endorsed it, never because a document lists it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from goatherd.errors import GenerationError, MalformedIdentityError, SuccessionError
from goatherd.identity.document import SIZE_LIMIT_BYTES, IdentityDocument, encode_document, read_id, read_session
from goatherd.identity.endorsement import verify_endorsement
from goatherd.identity.revocation import verify_proof
from goatherd.identity.session import Session
from goatherd.identity.text import parse, pretty


def verify_succession(document: IdentityDocument, trusted: Iterable[Session]) -> None:
    """Check that whoever trusts `trusted` may trust `document`.

    Its current root, and every other root that it lists, must be trusted already (same id and same key), or a chain of
    endorsements must lead to it from a trusted root that the document does not revoke. A rollback passes, since the
    earlier root is trusted still. After a revocation one more link counts: from a revoked root that is trusted here, or
    endorsed by one that is, to the successor that its proof names.

    Args:
        document: The new document, checked whole.
        trusted: Public halves of the roots trusted so far, without revoked ones.

    Raises:
        SuccessionError: No chain leads to the current root or to another listed root, a trusted id has come back with
            another key, or the current root is revoked.
    """
    revoked = document.revoked_ids
    known = {session.id: session for session in trusted}
    if document.current.id in revoked:
        raise SuccessionError(f"the current root {document.current.id} is revoked")
    for root in document.roots:
        if root.id in known and known[root.id].public_key != root.public_key:
            raise SuccessionError(f"root {root.id} has come back with another key")
    believed = _believed(document, known)
    if document.current.id not in believed:
        raise SuccessionError(
            f"no chain of endorsements leads from a root trusted here to the current root {document.current.id}"
        )
    # SECURITY: who can write the secret but does not hold a root's key must not be able to slip in a root of his own
    # beside the real one (tests/unit/identity/test_succession.py).
    strange = [root.id for root in document.roots if root.id not in believed and root.id not in revoked]
    if strange:
        raise SuccessionError(f"no chain of endorsements leads from a root trusted here to root {strange[0]}")


def _believed(document: IdentityDocument, known: dict[str, Session]) -> set[str]:
    """Return the roots to believe: no revoked one is among them, though some are passed through."""
    revoked = document.revoked_ids
    listed = {root.id: root for root in document.roots}
    reached = set(known)
    while True:
        found: set[str] = set()
        for endorsement in document.endorsements:
            if endorsement.by in reached - revoked and endorsement.of not in reached:
                by = known.get(endorsement.by) or listed[endorsement.by]
                verify_endorsement(endorsement, by=by, of=listed[endorsement.of])
                found.add(endorsement.of)
        for revocation in document.revoked:
            heir = revocation.successor
            if heir is not None and revocation.id in reached and heir not in reached:
                # SECURITY: a document that came out of the store, and a proof by the revoked key itself. Whoever can
                # write the store but has no root's key lacks the one, whoever has stolen a key lacks the other
                # (tests/unit/identity/test_revocation.py).
                by = known.get(revocation.id) or listed[revocation.id]
                verify_proof(revocation, revoked=by, successor=listed[heir])
                found.add(heir)
        if not found:
            return reached - revoked
        reached |= found


def check_generation(new: IdentityDocument, seen: IdentityDocument | Seen) -> None:
    """Check that `new` does not lead back behind `seen`, the highest generation seen so far.

    Raises:
        GenerationError: Its generation is lower (a stale replica, a replayed value), or equal with other contents (two
            writers shared a generation, so at least one did not go through compare-and-swap).
    """
    if new.generation < seen.generation:
        raise GenerationError(f"generation went back from {seen.generation} to {new.generation}")
    if new.generation == seen.generation and _digest(new) != _seen(seen).digest:
        raise GenerationError(f"generation {new.generation} was seen with other contents")


def verify_successor(new: IdentityDocument, seen: IdentityDocument | Seen) -> None:
    """Check that a node which uses `seen` may go on to `new`: generation, succession, and no revocation forgotten.

    Raises:
        GenerationError: As `check_generation`.
        SuccessionError: As `verify_succession`, or a revocation is gone.
    """
    check_generation(new, seen)
    forgotten = sorted(seen.revoked_ids - new.revoked_ids)
    if forgotten:
        raise SuccessionError(f"the revocation of {forgotten[0]} is gone")
    verify_succession(new, [root for root in seen.roots if root.id not in seen.revoked_ids])


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is enough to remember of an identity in order not to go back behind it. Holds nothing secret.

    Attributes:
        generation: Its generation.
        digest: SHA-256 of its text, hexadecimal.
        roots: Its roots.
        revoked_ids: What it lists as revoked.
    """

    generation: int
    digest: str
    roots: tuple[Session, ...]
    revoked_ids: frozenset[str]

    @classmethod
    def of(cls, document: IdentityDocument) -> Seen:
        return cls(
            generation=document.generation,
            digest=_digest(document),
            roots=document.roots,
            revoked_ids=document.revoked_ids,
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> Seen:
        """Read what `to_bytes` wrote.

        Raises:
            MalformedIdentityError: It is something else.
        """
        tree = parse(raw, max_bytes=SIZE_LIMIT_BYTES)
        generation, digest = tree.get("generation"), tree.get("digest")
        roots, revoked = tree.get("roots"), tree.get("revoked")
        if isinstance(generation, bool) or not isinstance(generation, int) or generation < 0:
            raise MalformedIdentityError("generation is not a non-negative integer")
        if not isinstance(digest, str) or not isinstance(roots, list) or not isinstance(revoked, list):
            raise MalformedIdentityError("digest, roots or revoked is missing")
        return cls(
            generation=generation,
            digest=digest,
            roots=tuple(read_session(item, f"roots[{index}]") for index, item in enumerate(roots)),
            revoked_ids=frozenset(read_id(item, f"revoked[{index}]") for index, item in enumerate(revoked)),
        )

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        return pretty(
            {
                "generation": self.generation,
                "digest": self.digest,
                "roots": [root.to_json() for root in self.roots],
                "revoked": sorted(self.revoked_ids),
            }
        )


def _seen(seen: IdentityDocument | Seen) -> Seen:
    return seen if isinstance(seen, Seen) else Seen.of(seen)


def _digest(document: IdentityDocument) -> str:
    return hashlib.sha256(encode_document(document)).hexdigest()
