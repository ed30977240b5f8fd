"""The key of a root that is in an HSM or a KMS, where each of its signatures is made (direct mode).

Pure. A `RemoteKey` holds the public half, the URI of the signer, and the function that makes the signatures, which the
caller of `goatherd.identity.document.decode_document` gives: `goatherd.named_signers` has that of a tool,
`goatherd.remote_keys` that of a server. So two clusters in one process share no permission to call a signer. Without
such a function, a key signs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from goatherd.crypto import PublicKey
from goatherd.errors import SignerConfigurationError, SignerMisuseError

Sign: TypeAlias = Callable[[str, PublicKey, bytes], bytes]
"""Signs bytes with the key that a signer's URI names, verifies the signature with the public key, and returns it."""


class RemoteKey:
    """A private key in an HSM or a KMS, which no process holds. `sign` sends a request and blocks until the answer.

    Do not call `sign` on an event loop: `goatherd.remote_keys.sign_aside` calls it in another thread.

    Args:
        public_key: The public half, which each signature must match.
        uri: URI of the signer that holds the key.
        make_signature: The function that makes the signatures; None if this process may not sign with the key.
    """

    __slots__ = ("make_signature", "public_key", "uri")

    def __init__(self, public_key: PublicKey, uri: str, make_signature: Sign | None = None) -> None:
        self.public_key = public_key
        self.uri = uri
        self.make_signature = make_signature

    def sign(self, data: bytes) -> bytes:
        """Return the raw signature over `data`, verified with the public key. Blocks until the signer answers.

        Raises:
            SignerError: The signer refused, did not answer, or returned an invalid signature.
        """
        if self.make_signature is None:
            raise SignerMisuseError(
                "the root's key is in an HSM or a KMS, and the identity was read without permission to call its signer",
                signer=self.uri.partition(":")[0],
                key=self.uri,
                operation="sign",
                hint="Call the operation with the store and the servers, instead of with an identity.",
            )
        return self.make_signature(self.uri, self.public_key, data)


def refuse_to_sign(uri: str, _: PublicKey, __: bytes) -> bytes:
    """Refuse a signature, because no root has signed the identity that names the signer.

    Raises:
        SignerConfigurationError: Always.
    """
    raise SignerConfigurationError(
        "the identity was changed in the store since its root signed it, so the signer that it names is not used",
        signer=uri.partition(":")[0],
        key=uri,
        operation="sign",
        hint="`goatherd restore --signature` shows the changes, and accepts or undoes them.",
    )
