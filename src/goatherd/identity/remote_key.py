"""The key of a root that is in an HSM or a KMS, where each of its signatures is made (direct mode).

Pure. A `RemoteKey` holds the public half, and the function that makes the signatures, which the caller of
`goatherd.identity.document.decode_document` gives: `goatherd.remote_keys.RootSigners.sign`, which calls only signers
that the configuration of this machine names. Without such a function, a key signs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from goatherd.crypto import PublicKey, fingerprint
from goatherd.errors import SignerMisuseError

Sign: TypeAlias = Callable[[PublicKey, bytes], bytes]
"""Signs bytes with the key that has this public half, verifies the signature, and returns it."""


class RemoteKey:
    """A private key in an HSM or a KMS, which no process holds. `sign` sends a request and blocks until the answer.

    Do not call `sign` on an event loop: `goatherd.remote_keys.sign_aside` calls it in another thread.

    Args:
        public_key: The public half, which each signature must match.
        make_signature: The function that makes the signatures; None if this process may not sign with the key.
    """

    __slots__ = ("make_signature", "public_key")

    def __init__(self, public_key: PublicKey, make_signature: Sign | None = None) -> None:
        self.public_key = public_key
        self.make_signature = make_signature

    def sign(self, data: bytes) -> bytes:
        """Return the raw signature over `data`, verified with the public key. Blocks until the signer answers.

        Raises:
            SignerError: The signer refused, did not answer, or returned an invalid signature.
        """
        if self.make_signature is None:
            raise SignerMisuseError(
                "the root's key is in an HSM or a KMS, and the identity was read without permission to call its signer",
                signer="direct",
                key=fingerprint(self.public_key),
                operation="sign",
                hint="Call the operation with the store and the servers, instead of with an identity.",
            )
        return self.make_signature(self.public_key, data)
