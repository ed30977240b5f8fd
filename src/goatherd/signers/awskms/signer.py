"""Sign with a key of AWS KMS, through boto3 in threads.

A text of up to 4096 bytes, the service's limit, is sent unchanged; for a longer text, its SHA-384 digest is sent. The
service answers with a DER-encoded signature. boto3 reports an answer that was cut off as a success without content, so
the fields of each answer are checked.

SECURITY: an exception of boto3 may quote what was sent or received, so it is never chained
(tests/contract/signers/test_awskms.py).
Follows docs.aws.amazon.com/kms/latest/APIReference/ (Sign, GetPublicKey, CreateKey, CreateAlias, DescribeKey,
ScheduleKeyDeletion).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar, Final

from goatherd.clock import Clock, SystemClock
from goatherd.crypto import PublicKey, raw_from_der
from goatherd.errors import (
    SignerConfigurationError,
    SignerError,
    SignerKeyDisabledError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerThrottledError,
    SignerUnavailableError,
    UnsupportedKeyError,
)
from goatherd.providers.aws.client import KeptClient, refusal_of
from goatherd.providers.threads import Threads
from goatherd.signers.awskms.address import ALGORITHM, AWSKeyAddress, parse_uri
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey

Answer = Mapping[str, object]

KEY_SPEC: Final = "ECC_NIST_P384"
LONGEST_RAW: Final = 4096
TIMEOUT: Final = timedelta(seconds=12)
THREADS: Final = 4
NAMING: Final = timedelta(seconds=30)
"""How long to try to give a new key its alias. Some seconds pass until all servers of KMS know a new key."""
NAMING_PAUSE: Final = timedelta(seconds=1)
_DISABLED: Final = (
    SignerKeyDisabledError,
    "the key is disabled, being created or scheduled for deletion",
    "`aws kms describe-key` shows the key's state; `enable-key` and `cancel-key-deletion` make it usable again.",
)
_FAILED: Final = (SignerUnavailableError, "KMS reports an error", None)
_REFUSALS: Final[Mapping[str, tuple[type[SignerError], str, str | None]]] = {
    "AlreadyExistsException": (SignerKeyExistsError, "the alias exists", None),
    "DependencyTimeoutException": _FAILED,
    "DisabledException": _DISABLED,
    "InvalidKeyUsageException": (UnsupportedKeyError, f"the key cannot sign with {ALGORITHM}", None),
    "KMSInternalException": _FAILED,
    "KMSInvalidStateException": _DISABLED,
    "KeyUnavailableException": _FAILED,
    "LimitExceededException": (
        SignerConfigurationError,
        "a quota of KMS is reached",
        "AWS limits the keys of an account and the aliases of a key: see the quotas of KMS in the region.",
    ),
    "NotFoundException": (SignerKeyNotFoundError, "there is no such key", None),
}
"""For each error code that is KMS's own: the error's class, what happened, and what to do."""


class AWSKMSSigner(Signer):
    """An asymmetric key of AWS KMS, which signs in the service.

    Address: ``awskms://REGION/alias/NAME``, ``awskms://REGION/KEY-ID`` or ``awskms:///ARN``. Options: ``profile``,
    ``endpoint``, ``role_arn``.
    Credentials: the standard chain of the SDK, as for ``aws://``.
    Permissions: `kms:Sign` and `kms:GetPublicKey` on the key.
    Facts: not exportable; a request takes some ten milliseconds; signs data of any length; 1000 signatures per second,
    shared by an account and region.
    """

    scheme: ClassVar[str] = "awskms"
    credential_variables: ClassVar[tuple[str, ...]] = ("AWS_*",)

    def __init__(self, address: AWSKeyAddress, *, clock: Clock | None = None) -> None:
        self.address = address
        self.name = address.key
        self._clock: Clock = clock or SystemClock()
        self._threads = Threads("goatherd-awskms", THREADS)
        self._client = KeptClient(address.service, TIMEOUT, "kms")

    @classmethod
    def from_uri(cls, uri: str) -> AWSKMSSigner:
        return cls(parse_uri(uri))

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(
            exportable=False,
            latency=Latency.SERVICE,
            region=self.address.service.region,
            signatures_per_second=1000,
        )

    async def public_key(self) -> SignerKey:
        answer = await self._call_kms("public_key", "get_public_key", KeyId=self.address.key)
        der, usage = answer.get("PublicKey"), answer.get("KeyUsage")
        if not isinstance(der, bytes) or not isinstance(usage, str):
            raise self.damaged_error("public_key", "it does not describe the key")
        spec = answer.get("KeySpec", KEY_SPEC)  # moto leaves it out; the public key says it as well
        if spec != KEY_SPEC or usage != "SIGN_VERIFY":
            problem = f"the key must be {KEY_SPEC} for SIGN_VERIFY; it is {spec!s:.40} for {usage:.40}"
            raise self.error(UnsupportedKeyError, "public_key", problem)
        key = self.decode_answer("public_key", PublicKey.from_der, der)
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=key)

    async def sign(self, text: bytes) -> bytes:
        # An empty message is rejected by the service, its digest is not.
        is_raw = 0 < len(text) <= LONGEST_RAW
        answer = await self._call_kms(
            "sign",
            "sign",
            KeyId=self.address.key,
            Message=text if is_raw else hashlib.sha384(text).digest(),
            MessageType="RAW" if is_raw else "DIGEST",
            SigningAlgorithm=ALGORITHM,
        )
        der = answer.get("Signature")
        if answer.get("SigningAlgorithm") != ALGORITHM or not isinstance(der, bytes):
            raise self.damaged_error("sign", "it has no signature of this algorithm")
        return self.decode_answer("sign", raw_from_der, der)

    async def aclose(self) -> None:
        self._threads.close()
        self._client.close()

    async def create_key(self) -> None:
        alias = self.address.alias
        if alias is None:
            raise self.error(
                SignerConfigurationError, "create_key", "KMS chooses key ids", hint="Name an alias: alias/NAME."
            )
        try:
            await self._describe_key()
        except SignerKeyNotFoundError:
            pass
        else:
            raise self.error(SignerKeyExistsError, "create_key", "the alias exists")
        made = await self._call_kms("create_key", "create_key", KeySpec=KEY_SPEC, KeyUsage="SIGN_VERIFY")
        key_id = self._key_id(made)
        try:
            await self._name_key(alias, key_id)
        except SignerError as error:
            # A key without an alias would never be found again.
            try:
                await self._call_kms("create_key", "schedule_key_deletion", KeyId=key_id, PendingWindowInDays=7)
            except SignerError:
                error.hint = f"Delete the new key {key_id}, which has no alias (`aws kms schedule-key-deletion`)."
            raise

    async def _name_key(self, alias: str, key_id: str) -> None:
        """Give a new key its alias. Tries again while KMS does not know the key yet, or does not answer.

        Raises:
            SignerError: The alias is another key's, or KMS refused, or the attempts have failed for `NAMING`.
        """
        until = self._clock.monotonic() + NAMING.total_seconds()
        is_first = True
        while True:
            try:
                try:
                    await self._call_kms("create_key", "create_alias", AliasName=alias, TargetKeyId=key_id)
                except SignerKeyExistsError:
                    # An earlier attempt whose answer was lost may have created it.
                    if is_first or self._key_id(await self._describe_key()) != key_id:
                        raise
                return
            except (SignerKeyNotFoundError, SignerThrottledError, SignerUnavailableError):
                if self._clock.monotonic() + NAMING_PAUSE.total_seconds() > until:
                    raise
            is_first = False
            await self._clock.sleep(NAMING_PAUSE)

    async def _describe_key(self) -> Answer:
        return await self._call_kms("create_key", "describe_key", KeyId=self.address.key)

    def _key_id(self, answer: Answer) -> str:
        data = answer.get("KeyMetadata")
        found = data.get("KeyId") if isinstance(data, dict) else None
        if not isinstance(found, str) or not found:
            raise self.damaged_error("create_key", "it does not name the key")
        return found

    # --- one request ------------------------------------------------------------------------------------------------

    async def _call_kms(self, operation: str, method: str, **request: object) -> Answer:
        outcome = await self._threads.run(lambda: self._send_request(operation, method, request))
        if isinstance(outcome, SignerError):
            raise outcome
        return outcome

    def _send_request(self, operation: str, method: str, request: Mapping[str, object]) -> Answer | SignerError:
        """Send one request in a thread; return the answer or the error.

        The error is returned, not raised, so that its traceback does not lead to the SDK's exception.
        """
        try:
            return self._client.send(method, request)
        except Exception as error:  # noqa: BLE001 - under faults, the SDK lets other errors out
            return self._translate_error(operation, error)

    def _translate_error(self, operation: str, error: Exception) -> SignerError:
        refusal = refusal_of(error)
        if refusal.code not in _REFUSALS:
            return self.error_of_provider(operation, refusal.error)
        kind, problem, hint = _REFUSALS[refusal.code]
        return self.error(kind, operation, f"{problem}: {refusal.code}", hint=hint)
