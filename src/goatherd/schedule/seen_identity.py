"""Whether an identity follows from the one that this process has read before."""

from __future__ import annotations

from goatherd.errors import IdentityError
from goatherd.identity.document import IdentityDocument, document_digest
from goatherd.identity.succession import TrustCheckpoint, verify_signed, verify_successor


class SeenIdentity:
    """The last identity that has followed from those before it; the first one is trusted."""

    def __init__(self) -> None:
        self._seen: TrustCheckpoint | None = None

    def follows(self, document: IdentityDocument) -> bool:
        """Return whether an identity is signed and follows from the one seen before; remember it if so."""
        seen = self._seen
        try:
            verify_signed(document)
            if seen is not None and seen.digest != document_digest(document):
                # No source of the introductions of pruned roots is at hand.
                verify_successor(document, seen, may_fork=True, is_pruning_believed=True)
        except IdentityError:
            return False
        self._seen = TrustCheckpoint.from_document(document)
        return True
