"""Create the key of a new anchor in an HSM or a KMS. Nothing else creates such a key, and only on request."""

from __future__ import annotations

from goatherd.errors import ConfigurationError, SignerMisuseError
from goatherd.rotation.anchor_keys import SignerOpener, open_pinned_signer


async def create_anchor_key(uri: str, open_signer: SignerOpener = open_pinned_signer) -> None:
    """Create the key that a signer's URI names.

    Args:
        uri: The signer's URI.
        open_signer: Opens the signer.

    Raises:
        SignerKeyExistsError: The key exists. Nothing was changed.
        SignerError: The signer refused, did not answer, or cannot create keys.
    """
    from goatherd.signers.base import KeyCreator  # the commands that can create a key seldom do
    from goatherd.signers.verified import VerifiedSigner

    signer = open_signer(uri, None)
    try:
        if not isinstance(signer, VerifiedSigner):
            raise ConfigurationError(f"a {type(signer).__name__} cannot create keys")
        if not isinstance(signer.plugin, KeyCreator):
            raise signer.plugin.error(
                SignerMisuseError, "create_key", "this signer cannot create keys", hint="Create the key yourself."
            )
        await signer.plugin.create_key()
    finally:
        await signer.aclose()
