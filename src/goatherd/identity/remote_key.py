"""The key of a root that is in an HSM or a KMS, where each of its signatures is made (direct mode).

Pure. A `RemoteKey` holds the public half, and the URI of the signer. `goatherd.remote_keys` makes the signatures. It
registers its function here when it is imported, so that this package does not depend on the plugins that call an HSM or
a KMS.

A signer gets this process's credentials, may read files and load a library. So the URI in a document is used only if
the operator has named it, too (`accept_signer`), or if a listed server reports that it was started with the signer of
this key (`register_servers`): an attacker can replace the whole document, and then sign it correctly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from goatherd.crypto import PublicKey
from goatherd.errors import SignerConfigurationError, SignerMisuseError

Sign = Callable[[str, PublicKey, bytes], bytes]
"""Signs bytes with the key that a signer's URI names, verifies the signature with the public key, and returns it."""


class RemoteKey:
    """A private key in an HSM or a KMS, which no process holds. `sign` sends a request and blocks until the answer.

    Do not call `sign` on an event loop: `goatherd.remote_keys.sign_aside` calls it in another thread.

    Args:
        public_key: The public half, which each signature must match.
        uri: URI of the signer that holds the key.
        sign: The function that makes the signatures; None for the registered one, which opens the signer that the URI
            names with this process's credentials.
    """

    __slots__ = ("_sign", "public_key", "uri")

    def __init__(self, public_key: PublicKey, uri: str, sign: Sign | None = None) -> None:
        self.public_key = public_key
        self.uri = uri
        self._sign = sign

    def distrust_uri(self) -> None:
        """Sign nothing from now on, because no root has signed the identity that names the URI."""
        self._sign = _refuse_to_sign

    def sign(self, data: bytes) -> bytes:
        """Return the raw signature over `data`, verified with the public key. Blocks until the signer answers.

        Raises:
            SignerError: The signer refused, did not answer, or returned an invalid signature.
        """
        sign = self._sign or next(iter(_REGISTERED), None)
        if sign is None:
            raise SignerMisuseError(
                "the root's key is in an HSM or a KMS, and this process has not imported goatherd.remote_keys, which"
                " signs with such keys",
                signer=self.uri.partition(":")[0],
                key=self.uri,
                operation="sign",
                hint="Import goatherd.remote_keys before the first signature.",
            )
        return sign(self.uri, self.public_key, data)


def _refuse_to_sign(uri: str, _: PublicKey, __: bytes) -> bytes:
    raise SignerConfigurationError(
        "the identity was changed in the store since its root signed it, so the signer that it names is not used",
        signer=uri.partition(":")[0],
        key=uri,
        operation="sign",
        hint="`goatherd restore --signature` shows the changes, and accepts or undoes them.",
    )


_REGISTERED: Final[list[Sign]] = []


def register_signing(sign: Sign) -> None:
    """Register the function that signs for every remote key (in an HSM or a KMS) that was made without its own."""
    _REGISTERED[:] = [sign]


AskServers = Callable[[str], Awaitable[bool]]
"""Returns whether a server reports that it was started with the signer of the key that has this fingerprint."""

ACCEPTED_SIGNERS: Final[set[str]] = set()
"""The URIs of signers that the operator has named."""


def accept_signer(uri: str) -> None:
    """Let this process sign with the key of a root at a signer that the operator has named by its URI."""
    ACCEPTED_SIGNERS.add(uri)


_SERVERS: Final[list[AskServers]] = []


def register_servers(ask: AskServers) -> None:
    """Register the function that asks the servers of which this process has clients."""
    _SERVERS[:] = [ask]


async def is_known_to_servers(key_fingerprint: str) -> bool:
    """Return whether a listed server reports that it was started with the signer of the key with this fingerprint."""
    return any([await ask(key_fingerprint) for ask in _SERVERS])
