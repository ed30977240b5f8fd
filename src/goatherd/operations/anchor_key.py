"""Create the private key of a new anchor (the root key in an HSM or a KMS that endorses the other roots).

No other module creates such a key, and this one does so only when the operator asks for it (`--create-key`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from goatherd.errors import ConfigurationError, GoatherdError
from goatherd.rotation.anchor_keys import SignerOpener, open_anchor_signer


async def create_anchor_key(
    uri: str,
    open_signer: SignerOpener = open_anchor_signer,
    *,
    on_wait: Callable[[timedelta], None] | None = None,
) -> None:
    """Create the anchor's private key, in the HSM or KMS that a signer's URI names, and wait until it can be read.

    Args:
        uri: URI of the signer (the access to a key in an HSM or a KMS); it names the key to create.
        open_signer: Opens the signer.
        on_wait: Called once, with the longest duration of the wait, if the key is not ready at once.

    Raises:
        SignerKeyExistsError: A key of this name exists already. Nothing was changed.
        SignerError: The signer refused, did not answer, or cannot create keys. If the key was created nevertheless, the
            message says so.
    """
    from goatherd.signers.verified import VerifiedSigner  # the commands that can create a key seldom do

    signer = open_signer(uri)
    try:
        if not isinstance(signer, VerifiedSigner):
            raise ConfigurationError(f"a {type(signer).__name__} cannot create keys; only a VerifiedSigner can")
        await signer.create_key(on_wait)
    finally:
        await signer.aclose()


@contextmanager
def mention_created_key(*, was_created: bool) -> Iterator[None]:
    """Add to the hint of an error that the anchor's key was created, if it was: a second creation would fail."""
    try:
        yield
    except GoatherdError as error:
        if was_created:
            error.hint = f"{error.hint} The anchor's key was created, so leave out --create-key then."
        raise
