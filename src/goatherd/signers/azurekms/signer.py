"""Sign with a key of Azure Key Vault or Managed HSM, through the asynchronous official client.

The SHA-384 digest of the text is sent; the service answers with the raw signature (``r || s``). The SDK's own retries
are off, because `goatherd.signers.verified` retries.

SECURITY: an exception of the SDK may quote what was sent or received, so it is never chained
(tests/contract/signers/test_azurekms.py). Only its status, the
service's codes and the text of a denial are quoted. Follows learn.microsoft.com/rest/api/keyvault/keys (get key, sign,
create key).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Final

from azure.core import exceptions as sdk
from azure.core.credentials_async import AsyncTokenCredential
from azure.keyvault.keys import KeyCurveName, KeyOperation
from azure.keyvault.keys.aio import KeyClient
from azure.keyvault.keys.crypto import SignatureAlgorithm

from goatherd.crypto import SIGNATURE_BYTES, PublicKey
from goatherd.errors import (
    ConfigurationError,
    SignerConfigurationError,
    SignerError,
    SignerKeyDisabledError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerUnavailableError,
    UnsupportedKeyError,
)
from goatherd.providers.azure.client import DELETED_CODE, client_options, error_codes, translate_error
from goatherd.providers.azure.credential import DefaultCredential
from goatherd.signers.azurekms.address import AzureKeyAddress, parse_uri
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey

TIMEOUT: Final = 6.0
_COORDINATE: Final = 48
_RATE_SOFTWARE: Final = 400
"""P-384 signatures a second with a software-protected key; HSM-protected keys have half of it (service limits)."""


class AzureKMSSigner(Signer):
    """A key of Azure Key Vault or Managed HSM, which signs in the service.

    Address: ``azurekms://VAULT/KEY/VERSION``; without a version, the newest one. Options: those of ``azure://``,
    such as ``suffix=managedhsm.azure.net`` and ``identity``.
    Credentials: the default chain of the SDK, as for ``azure://``.
    Permissions: the data actions `keys/read` and `keys/sign/action` on the key.
    Facts: not exportable; a request takes some ten milliseconds; signs data of any length; 400 signatures per second.
    """

    scheme: ClassVar[str] = "azurekms"
    credential_variables: ClassVar[tuple[str, ...]] = ("AZURE_*", "IDENTITY_HEADER", "MSI_SECRET")

    def __init__(self, address: AzureKeyAddress, *, credential: AsyncTokenCredential | None = None) -> None:
        self.address = address
        self.name = address.name
        self._given = credential
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._signing: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_uri(cls, uri: str) -> AzureKMSSigner:
        return cls(parse_uri(uri))

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(exportable=False, latency=Latency.SERVICE, signatures_per_second=_RATE_SOFTWARE)

    async def public_key(self) -> SignerKey:
        client = await self._open_client("public_key")
        found = await self._call_key_vault("public_key", client.get_key(self.address.key, self.address.version))
        return self._key_in(found)

    async def sign(self, text: bytes) -> bytes:
        await self._open_client("sign")
        digest = hashlib.sha384(text).digest()
        answer = await self._call_key_vault("sign", self._signing.sign(SignatureAlgorithm.es384, digest))
        signature = answer.signature
        if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
            raise self.damaged_error("sign", "it has no signature of 96 bytes")
        return signature

    async def aclose(self) -> None:
        stack, self._stack = self._stack, AsyncExitStack()
        self._client = self._signing = None
        if self._loop is asyncio.get_running_loop():
            await stack.aclose()

    async def create_key(self) -> None:
        client = await self._open_client("create_key")
        # The service adds a version to a key that exists, so it is asked first.
        try:
            await self._call_key_vault("create_key", client.get_key(self.address.key))
        except SignerKeyNotFoundError:
            pass
        else:
            raise self.error(SignerKeyExistsError, "create_key", "the key exists")
        made = client.create_ec_key(
            self.address.key,
            curve=KeyCurveName.p_384,
            key_operations=[KeyOperation.sign, KeyOperation.verify],
            hardware_protected=self.address.is_in_managed_hsm,  # which has no other keys
        )
        await self._call_key_vault("create_key", made)

    # --- one request ------------------------------------------------------------------------------------------------

    async def _open_client(self, operation: str) -> Any:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            vault, stack = self.address.vault, AsyncExitStack()
            try:
                options = client_options(vault, TIMEOUT)
            except ConfigurationError as error:
                raise self.error(SignerConfigurationError, operation, str(error), hint=error.hint) from None
            credential = self._given or await stack.enter_async_context(DefaultCredential(vault))
            client = KeyClient(vault.url, credential, **options)
            self._client = await stack.enter_async_context(client)
            self._signing = client.get_cryptography_client(self.address.key, key_version=self.address.version)
            self._stack, self._loop = stack, loop
        return self._client

    async def _call_key_vault(self, operation: str, work: Awaitable[Any]) -> Any:
        try:
            return await work
        except Exception as error:  # noqa: BLE001 - the SDK lets out JSON errors, aiohttp's and its own
            problem = self._translate_error(operation, error)
        raise problem  # out here, where the SDK's error is not its context

    def _translate_error(self, operation: str, error: Exception) -> SignerError:
        code, inner, _ = error_codes(error)
        if inner == "KeyDisabled":
            return self.error(
                SignerKeyDisabledError,
                operation,
                "the key is disabled",
                hint="`az keyvault key set-attributes --enabled true` enables it.",
            )
        if inner == DELETED_CODE:
            problem = "the key is deleted but can be recovered; its name stays taken"
            return self.error(
                SignerKeyDisabledError, operation, problem, hint="`az keyvault key recover` restores the key."
            )
        if isinstance(error, sdk.HttpResponseError) and error.status_code == 404:
            if code == "KeyNotFound":
                return self.error(SignerKeyNotFoundError, operation, "the vault has no such key or version")
            problem = f"{self.address.vault.url} answers 404, but not as a key vault does"
            return self.error(SignerUnavailableError, operation, problem, final=True)
        return self.error_of_provider(operation, translate_error(error, self.address.vault.url, self.address.key))

    # --- one answer -------------------------------------------------------------------------------------------------

    def _key_in(self, found: Any) -> SignerKey:
        try:
            name, kind, jwk = found.name, _read_field(found.key_type), found.key
            curve, x, y = _read_field(jwk.crv), jwk.x, jwk.y
            is_exportable, version = found.properties.exportable, found.properties.version
        except (AttributeError, TypeError, ValueError):
            raise self.damaged_error("public_key", "a member is missing") from None
        if name != self.address.key or self.address.version not in (None, version):
            raise self.damaged_error("public_key", "it is about another key")
        if kind not in ("EC", "EC-HSM") or curve != "P-384":
            raise self.error(
                UnsupportedKeyError, "public_key", f"the key must be EC over P-384; it is {kind:.20} over {curve:.20}"
            )
        if is_exportable:
            raise self.error(
                SignerConfigurationError,
                "public_key",
                "the key can be exported",
                hint="Create a key that is not exportable.",
            )
        if not isinstance(x, bytes) or not isinstance(y, bytes) or max(len(x), len(y)) > _COORDINATE:
            raise self.damaged_error("public_key", "it has no public key")
        key = PublicKey(x.rjust(_COORDINATE, b"\x00") + y.rjust(_COORDINATE, b"\x00"))
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=key)


def _read_field(value: object) -> str:
    """Return a field's value as a string: the SDK returns an enumeration member, or a string that it does not know."""
    return str(getattr(value, "value", value))
