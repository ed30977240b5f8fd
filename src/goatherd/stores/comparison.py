"""Compare two identity documents by generation, digest and the predecessors that they name.

Pure. A higher generation alone does not make a document the later one: if both documents were changed independently
after a common predecessor (a split), neither may replace the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from goatherd.identity.document import IdentityDocument, source_digest
from goatherd.identity.lineage import DIGEST_CHARACTERS, Lineage


class Standing(StrEnum):
    """The result of comparing one identity document with another one."""

    SAME = "same"
    BEHIND = "behind"
    AHEAD = "ahead"
    SPLIT = "another history"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentMark:
    """The parts of an identity document that are compared: generation, digest, and the predecessors that it names.

    Attributes:
        digest: SHA-256 of the document's text, hexadecimal.
        lineage: The latest predecessors; None if they are not known.
        is_signed: Whether the current root has signed the document; None if that is not known.
    """

    generation: int
    digest: str
    lineage: Lineage | None = field(default=None, repr=False)
    is_signed: bool | None = None

    @classmethod
    def from_document(cls, document: IdentityDocument) -> DocumentMark:
        return cls(
            generation=document.generation,
            digest=source_digest(document),
            lineage=document.lineage,
            is_signed=document.is_signed,
        )


def compare_documents(one: DocumentMark, other: DocumentMark) -> Standing:
    """Return whether the document `one` is the same as `other`, behind it or ahead of it, or has another history.

    A predecessor that only one of the documents names counts as shared, because it cannot be compared.
    """
    # SECURITY: an attacker who can write one store, but has no root's key, can raise the generation. A document without
    # a valid signature is behind a signed one whatever its generation: it is not used, not copied, and delays nothing
    # (tests/unit/operations/test_stores.py).
    for unsigned, signed, result in ((one, other, Standing.BEHIND), (other, one, Standing.AHEAD)):
        if unsigned.is_signed is False and signed.is_signed and unsigned.generation >= signed.generation:
            return result
    if one.generation == other.generation:
        return Standing.SAME if one.digest == other.digest else Standing.SPLIT
    earlier, later = (one, other) if one.generation < other.generation else (other, one)
    if later.lineage is not None and later.lineage.contradicts(earlier.generation, earlier.digest):
        return Standing.SPLIT
    if earlier.lineage is not None and later.lineage is not None:
        for generation, digest in earlier.lineage.entries:
            known = later.lineage.digest_of(generation)
            if known is not None and known[:DIGEST_CHARACTERS] != digest[:DIGEST_CHARACTERS]:
                return Standing.SPLIT
    return Standing.BEHIND if earlier is one else Standing.AHEAD
