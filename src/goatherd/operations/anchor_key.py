"""Create the private key of a new anchor (the root key in an HSM or a KMS that endorses the other roots).

No other module creates such a key, and this one does so only when the operator asks for it (`--create-key`).
"""

from __future__ import annotations

from goatherd.errors import ConfigurationError, SignerMisuseError
from goatherd.rotation.anchor_keys import SignerOpener, open_pinned_signer


async def create_anchor_key(uri: str, open_signer: SignerOpener = open_pinned_signer) -> None:
    """Create the anchor's private key, in the HSM or KMS that a signer's URI names.

    Args:
        uri: URI of the signer (the access to a key in an HSM or a KMS); it names the key to create.
        open_signer: Opens the signer.

    Raises:
        SignerKeyExistsError: A key of this name exists already. Nothing was changed.
        SignerError: The signer refused, did not answer, or cannot create keys.
    """
    from goatherd.signers.base import KeyCreator  # the commands that can create a key seldom do
    from goatherd.signers.verified import VerifiedSigner

    signer = open_signer(uri, None)
    try:
        if not isinstance(signer, VerifiedSigner):
            raise ConfigurationError(f"a {type(signer).__name__} cannot create keys; only a VerifiedSigner can")
        if not isinstance(signer.plugin, KeyCreator):
            raise signer.plugin.error(
                SignerMisuseError, "create_key", "this signer cannot create keys", hint="Create the key yourself."
            )
        await signer.plugin.create_key()
    finally:
        await signer.aclose()
