"""Compare two identity documents: by the endorsements between their roots, then by generation and predecessors.

Pure. A higher generation alone does not make a document the later one. It must be a successor of the earlier one, by
the same rules by which a server adopts an identity. If both documents were changed independently after a common
predecessor (a split), or no root of one has endorsed the other, neither may replace the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from goatherd.errors import IdentityError
from goatherd.identity.document import IdentityDocument, source_digest
from goatherd.identity.lineage import Lineage
from goatherd.identity.succession import TrustCheckpoint, check_signature, verify_succession, verify_successor


class Standing(StrEnum):
    """The result of comparing one identity document with another one."""

    SAME = "same"
    BEHIND = "behind"
    AHEAD = "ahead"
    SPLIT = "another history"
    UNTRUSTED = "untrusted"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentMark:
    """The parts of an identity document that are compared.

    Without `document` or `checkpoint`, as of a server that reports only a digest, no endorsements are verified.

    Attributes:
        digest: SHA-256 of the document's text, hexadecimal.
        lineage: The latest predecessors; None if they are not known.
        is_signed: Whether the current root has signed the document; None if that is not known.
        checkpoint: The roots that the document makes trusted; None if they are not known.
        document: The document itself; None if it is not known.
    """

    generation: int
    digest: str
    lineage: Lineage | None = field(default=None, repr=False)
    is_signed: bool | None = None
    checkpoint: TrustCheckpoint | None = field(default=None, repr=False, compare=False)
    document: IdentityDocument | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_document(cls, document: IdentityDocument) -> DocumentMark:
        return cls(
            generation=document.generation,
            digest=source_digest(document),
            lineage=document.lineage,
            is_signed=document.is_signed,
            checkpoint=TrustCheckpoint.from_document(document),
            document=document,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: TrustCheckpoint) -> DocumentMark:
        return cls(
            generation=checkpoint.generation,
            digest=checkpoint.digest,
            is_signed=checkpoint.is_signed or None,
            checkpoint=checkpoint,
        )


def compare_documents(one: DocumentMark, other: DocumentMark) -> Standing:
    """Return whether the document `one` is the same as `other`, behind it or ahead of it, or has another history.

    The result is `UNTRUSTED` if the later document does not follow from the roots of the earlier one: one of the two
    was written by an attacker, or the introductions that lead from one to the other are only in the servers' logs.
    A predecessor that only one of the documents names counts as shared, because it cannot be compared.
    """
    # SECURITY: an attacker who can write one store, but has no root's key, can raise the generation. A document without
    # a valid signature is behind a signed one whatever its generation: it is not used, not copied, and delays nothing
    # (tests/unit/operations/test_stores.py).
    for unsigned, signed, result in ((one, other, Standing.BEHIND), (other, one, Standing.AHEAD)):
        if unsigned.is_signed is False and signed.is_signed and unsigned.generation >= signed.generation:
            return result
    if one.generation == other.generation and one.digest == other.digest:
        return Standing.SAME
    earlier, later = (one, other) if one.generation < other.generation else (other, one)
    # SECURITY: an attacker who can write one store can write a higher generation of an identity of their own, correctly
    # signed by their own root. It is not the later one, is not copied, and delays nothing
    # (tests/unit/stores/test_foreign_identity.py).
    if not _is_endorsed(later, earlier):
        return Standing.UNTRUSTED
    if one.generation == other.generation or _is_contradicted(later, earlier) or not _is_successor(later, earlier):
        # The earlier one may list the roots of the later one, and yet be signed by an attacker's root.
        return Standing.SPLIT if _is_endorsed(earlier, later) else Standing.UNTRUSTED
    return Standing.BEHIND if earlier is one else Standing.AHEAD


def _is_contradicted(later: DocumentMark, earlier: DocumentMark) -> bool:
    """Return whether the predecessors that the two documents name differ in a generation."""
    if later.lineage is None:
        return False
    if later.lineage.contradicts(earlier.generation, earlier.digest):
        return True
    entries = () if earlier.lineage is None else earlier.lineage.entries
    return any(later.lineage.contradicts(generation, digest) for generation, digest in entries)


def _is_endorsed(new: DocumentMark, seen: DocumentMark) -> bool:
    """Return whether the roots of `seen` lead to those of the document `new`, and its current root has signed it."""
    if new.document is None or seen.checkpoint is None:
        return True
    trusted = [root for root in seen.checkpoint.roots if root.id not in seen.checkpoint.revoked_ids]
    try:
        verify_succession(new.document, trusted, anchor=seen.checkpoint.anchor)
        check_signature(new.document, seen.checkpoint)
    except IdentityError:
        return False
    return True


def _is_successor(new: DocumentMark, seen: DocumentMark) -> bool:
    """Return whether the document `new` lacks no root and no revocation of `seen`, so that a server may adopt it."""
    if new.document is None or seen.checkpoint is None:
        return True
    try:
        verify_successor(new.document, seen.checkpoint, may_fork=True, is_pruning_believed=True)
    except IdentityError:
        return False
    return True
