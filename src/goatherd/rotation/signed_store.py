"""Check, before a command writes, that a root has signed the identity document in the store.

Every command that writes the identity makes this check: rotate, resume, cancel, roll back, restore, replace an expired
root, drop a lost anchor, retire, revoke, promote a store, and the controller. To sign an unsigned document, use
`goatherd.operations.sign`.

The check is needed because a command signs each document that it writes with the root. If it continued from an altered
document, it would sign changes that an attacker without the root's key has made. Goatherd 0.1.0 wrote documents without
a signature. A document without a signature is accepted, unless a signed one has existed: this command has read one
before, an earlier version of the secret has one, or a listed server has seen one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import IdentityError, ProviderError, SecretNotFoundError, VersionDisabledError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.identity.remote_key import Sign
from goatherd.identity.succession import check_first, verify_signed
from goatherd.providers.base import StoreReader
from goatherd.providers.values import CURRENT, SecretVersion, VersionState

MOST_VERSIONS: Final = 8
"""How many earlier versions are read. A rotation writes five."""

Ask = Callable[[], Awaitable[Mapping[str, ServerIdentity]]]
"""Returns, by URL, the reports of the listed servers that answer."""


class SignedStoreCheck:
    """Checks the signatures of the identity documents that one command reads from the store.

    Args:
        provider: The store.
        secret_id: The secret that holds the identity.
        ask: Asks the listed servers which identity they use.

    Attributes:
        has_seen_signed: Whether a document was signed; from then on, documents without a signature are rejected.
    """

    def __init__(self, provider: StoreReader, secret_id: str, ask: Ask) -> None:
        self._provider = provider
        self._secret_id = secret_id
        self._ask = ask
        self.has_seen_signed = False
        self._passed: IdentityDocument | None = None

    async def check_document(self, document: IdentityDocument | None) -> None:
        """Check the signature of an identity document that a command is about to change; None if none was read.

        Raises:
            UnsignedIdentityError: The document was changed since its current root signed it, or it has no signature
                although an earlier one had.
            GenerationJumpError: The document has no signature, and a generation that no writer can have reached.
            ProviderError: The store failed.
        """
        if document is None:
            return
        if document.is_signed:
            self.has_seen_signed = True
            return
        if document.signature is not None or self.has_seen_signed or document.anchor is not None:
            # Builds that do not sign know no anchor.
            verify_signed(document)
        if self._passed == document:
            return
        check_first(document)
        # SECURITY: an attacker may have removed the signature and changed the document; no command may sign the result
        # (tests/unit/rotation/test_signed_store.py).
        if await self._was_signed() or await self._is_refused_by_servers():
            self.has_seen_signed = True
            verify_signed(document)
        self._passed = document

    async def _was_signed(self) -> bool:
        async for _, document in read_earlier(self._provider, self._secret_id):
            if document.signature is not None:
                return True
        return False

    async def _is_refused_by_servers(self) -> bool:
        return any(answer.has_seen_signed for answer in (await self._ask()).values())


async def read_earlier(
    provider: StoreReader, secret_id: str, sign: Sign | None = None
) -> AsyncIterator[tuple[SecretVersion, IdentityDocument]]:
    """Yield the stored versions other than the current one, newest first, each with its identity document.

    Versions that cannot be read are left out, and versions that interrupted writes have left, because these were never
    current. At most `MOST_VERSIONS` are read.

    Args:
        provider, secret_id: The store, and the secret that holds the identity.
        sign: As for `goatherd.identity.document.decode_document`.

    Raises:
        ProviderError: The store failed in a way that a retry may solve.
    """
    listed = [one for one in await provider.versions(secret_id) if CURRENT not in one.labels and not one.is_leftover]
    for version in [one for one in listed if one.state is VersionState.ENABLED][:MOST_VERSIONS]:
        try:
            found = await provider.read(secret_id, version.id)
            yield version, decode_document(found.value.reveal(), sign)
        except (IdentityError, SecretNotFoundError, VersionDisabledError):
            continue
        except ProviderError as error:
            if error.retryable:
                raise
