"""Check that an identity follows from the one that was read before, before a signer that it names is called.

SECURITY: a call sends a signer the credentials of this process. An attacker who can write the secret, but has no root's
key, must not choose where they go (tests/unit/schedule/test_controller.py).
"""

from __future__ import annotations

from goatherd.errors import IdentityError, SuccessionError
from goatherd.identity.document import IdentityDocument, document_digest
from goatherd.identity.succession import TrustCheckpoint, verify_signed, verify_successor


class SeenIdentity:
    """The last identity that has followed from those before it; the first one is trusted."""

    def __init__(self) -> None:
        self._seen: TrustCheckpoint | None = None

    def check_succession(self, document: IdentityDocument) -> None:
        """Check that an identity follows from the one seen before, and remember it.

        Raises:
            SuccessionError: It does not, or it names an anchor and its root has not signed it.
        """
        seen = self._seen
        try:
            if document.anchor is not None:
                verify_signed(document)
            if seen is not None and seen.digest != document_digest(document):
                # No source of the introductions of pruned roots is at hand.
                verify_successor(document, seen, may_fork=True, is_pruning_believed=True)
        except IdentityError as error:
            raise SuccessionError(
                f"{error}; the signer that the identity names was not called. If you made this change, start this"
                " process again"
            ) from error
        self._seen = TrustCheckpoint.from_document(document)

    def check_if_remote(self, document: IdentityDocument) -> bool:
        """Check and remember an identity as `check_succession` does; raise only if a root's key is in an HSM or a KMS.

        Requests and records that such a root signs call the signer. Without one, what changes an identity or servers
        makes its own checks.

        Raises:
            SuccessionError: The identity is in direct mode, or enters it, and does not follow from the one before.
        """
        try:
            self.check_succession(document)
        except SuccessionError:
            if document.uses_remote_key:
                raise
            return False
        return True
