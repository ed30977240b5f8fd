"""Sign with a key version of Google Cloud KMS, through the asynchronous official client.

A request contains the SHA-384 digest of the text to sign, and the digest's CRC32C checksum. The answer must name the
requested key version, confirm that the request's checksum was correct, and contain a correct checksum of the signature.
The signature is DER-encoded. Follows docs.cloud.google.com/kms/docs/reference/rpc and
…/kms/docs/data-integrity-guidelines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, ClassVar, Final

import google_crc32c
from google.api_core import exceptions as sdk
from google.auth.credentials import Credentials
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient as Client
from google.cloud.kms_v1 import types as wire
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceGrpcAsyncIOTransport as Transport,
)

from goatherd.crypto import PublicKey, raw_from_der
from goatherd.errors import (
    SignerError,
    SignerKeyDisabledError,
    SignerThrottledError,
    SignerUnavailableError,
    UnsupportedKeyError,
)
from goatherd.providers.gcp.connection import Connection
from goatherd.providers.gcp.problem import status_of, translate_error
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey
from goatherd.signers.gcpkms.address import PUBLIC_HOST, GCPKeyAddress, parse_uri

TIMEOUT: Final = 10.0
READY_WITHIN: Final = timedelta(minutes=10)
"""A new key is PENDING_GENERATION at first; in an HSM, for up to some minutes."""
_NOISY: Final = ("google", "google.cloud.kms_v1")
_QUOTA_HINT: Final = "See the project's quotas for cloudkms.googleapis.com."


class GCPKMSSigner(Signer):
    """A key version of Google Cloud KMS, which signs in the service.

    Address: ``gcpkms://PROJECT/LOCATION/RING/KEY/VERSION``. Options: ``endpoint``, and ``protection`` (``hsm``, the
    default, or ``software``) for a key that is created.
    Credentials: application default credentials, as for ``gcp://``.
    Permissions: `roles/cloudkms.signer` and `roles/cloudkms.publicKeyViewer` on the key.
    Facts: not exportable; a request takes some ten milliseconds; signs data of any length.
    """

    scheme: ClassVar[str] = "gcpkms"
    credential_variables: ClassVar[tuple[str, ...]] = ("GOOGLE_APPLICATION_CREDENTIALS",)

    def __init__(self, address: GCPKeyAddress, *, credentials: Credentials | None = None) -> None:
        self.address = address
        self.name = address.name
        host = address.endpoint or PUBLIC_HOST
        self._connection: Connection[Any] = Connection(
            Client, Transport, host=host, credentials=credentials, quiet=_NOISY
        )

    @classmethod
    def from_uri(cls, uri: str) -> GCPKMSSigner:
        return cls(parse_uri(uri))

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(
            exportable=False, latency=Latency.SERVICE, region=self.address.location, ready_within=READY_WITHIN
        )

    async def public_key(self) -> SignerKey:
        request = wire.GetPublicKeyRequest(name=self.name)
        answer = await self._call_kms("public_key", lambda it: it.get_public_key, request)
        if answer.name != self.name or not answer.pem or not _is_intact(answer, "pem", answer.pem.encode()):
            raise self.damaged_error("public_key", "it is about another key, or its checksum is wrong")
        if answer.algorithm != wire.CryptoKeyVersion.CryptoKeyVersionAlgorithm.EC_SIGN_P384_SHA384:
            name = getattr(answer.algorithm, "name", "unknown")
            raise self.error(UnsupportedKeyError, "public_key", f"the key must be EC_SIGN_P384_SHA384; it is {name}")
        key = self.decode_answer("public_key", PublicKey.from_pem, answer.pem)
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=key)

    async def sign(self, text: bytes) -> bytes:
        digest = hashlib.sha384(text).digest()
        request = wire.AsymmetricSignRequest(
            name=self.name, digest=wire.Digest(sha384=digest), digest_crc32c=google_crc32c.value(digest)
        )
        answer = await self._call_kms("sign", lambda it: it.asymmetric_sign, request)
        if answer.name != self.name or not answer.verified_digest_crc32c:
            raise self.damaged_error("sign", "it is about another key or another text")
        if not answer.signature or not _is_intact(answer, "signature", answer.signature):
            raise self.damaged_error("sign", "the signature does not have its checksum")
        return self.decode_answer("sign", raw_from_der, answer.signature)

    async def aclose(self) -> None:
        await self._connection.close()

    async def create_key(self) -> None:
        self.check_first_version(self.address.version, hint="End the URI with /1.")
        level = wire.ProtectionLevel[self.address.protection.upper()]
        algorithm = wire.CryptoKeyVersion.CryptoKeyVersionAlgorithm.EC_SIGN_P384_SHA384
        template = wire.CryptoKeyVersionTemplate(protection_level=level, algorithm=algorithm)
        key = wire.CryptoKey(purpose=wire.CryptoKey.CryptoKeyPurpose.ASYMMETRIC_SIGN, version_template=template)
        request = wire.CreateCryptoKeyRequest(
            parent=self.address.ring_name, crypto_key_id=self.address.key, crypto_key=key
        )
        await self._call_kms("create_key", lambda it: it.create_crypto_key, request)

    # --- one request ------------------------------------------------------------------------------------------------

    async def _call_kms(
        self, operation: str, method: Callable[[Any], Callable[..., Awaitable[Any]]], request: Any
    ) -> Any:
        """Send one request to Google Cloud KMS, with a deadline and without the SDK's retries; return the answer."""
        try:
            answer = await self._connection.send(method, request, timeout=TIMEOUT)
            if answer is not None:
                return answer
            # grpc.aio 1.85 returns None for bytes that are not the message.
            problem: SignerError = self.damaged_error(operation, "it is not the message")
        except Exception as error:  # noqa: BLE001 - the libraries below raise what they like when bytes are cut
            problem = self._translate_error(operation, error, type(request).__name__.removesuffix("Request"))
        raise problem  # outside of the handlers, so that the SDK's exception is not its context

    def _translate_error(self, operation: str, error: Exception, doing: str) -> SignerError:
        if isinstance(error, sdk.GoogleAPICallError) and status_of(error) == "FAILED_PRECONDITION":
            if "PENDING_GENERATION" in str(error.message):
                return self.error(
                    SignerUnavailableError,
                    operation,
                    "the key is still being generated",
                    hint="Wait a minute, then run the command again.",
                )
            return self.error(
                SignerKeyDisabledError,
                operation,
                "this version of the key is disabled, destroyed or scheduled to be",
                hint="`gcloud kms keys versions list` shows the key's state; `enable` and `restore` make it usable"
                " again.",
            )
        translated = self.error_of_provider(operation, translate_error(error, doing=doing))
        if isinstance(translated, SignerThrottledError):
            translated.hint = _QUOTA_HINT
        return translated


def _is_intact(answer: Any, field: str, data: bytes) -> bool:
    """Return whether a field in an answer of Google Cloud KMS matches the checksum that the answer holds for it."""
    name = f"{field}_crc32c"
    return name in answer and getattr(answer, name) == google_crc32c.value(data)
