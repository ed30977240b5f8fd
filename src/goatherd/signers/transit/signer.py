"""Sign with a key of the transit engine of Vault or OpenBao. The private key stays in Vault.

Each request contains the digest of the data, never the data, and names the version of the key, which each answer must
confirm. Follows https://openbao.org/api-docs/secret/transit/ (sign data, read key, create key); tested with
OpenBao 2.7.2.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from goatherd.clock import Clock, SystemClock
from goatherd.crypto import SIGNATURE_BYTES, PublicKey
from goatherd.errors import (
    ConfigurationError,
    ProviderAccessDeniedError,
    ProviderError,
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerError,
    SignerKeyDisabledError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    UnsupportedKeyError,
)
from goatherd.providers.vault.client import VaultClient
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey
from goatherd.signers.transit.address import TransitAddress, parse_uri

KEY_TYPE: Final = "ecdsa-p384"
REQUEST_TIMEOUT: Final = 10.0
_BELOW_MINIMUM: Final = "less than the minimum"
_ABOVE_LATEST: Final = "higher than the latest"


class TransitSigner(Signer):
    """A key of the transit engine of Vault or OpenBao, which signs in the server.

    Address: ``transit://host:port/mount/key``; without a host, `VAULT_ADDR` or `BAO_ADDR`. Options: ``version``
    (default: 1), and those of ``vault://``: ``auth``, ``namespace``, ``ca``, ``token-file`` and others.
    Credentials: those of the provider ``vault``: a token, AppRole or Kubernetes.
    Permissions: ``update`` on ``mount/sign/key`` and ``read`` on ``mount/keys/key``.
    Facts: not exportable; a request takes some milliseconds; signs data of any length.
    """

    scheme: ClassVar[str] = "transit"
    credential_variables: ClassVar[tuple[str, ...]] = (
        *("VAULT_TOKEN", "VAULT_SECRET_ID", "VAULT_ROLE_ID"),
        *("BAO_TOKEN", "BAO_SECRET_ID", "BAO_ROLE_ID"),
    )

    def __init__(
        self, address: TransitAddress, *, clock: Clock | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.address = address
        self.name = address.name
        self._clock: Clock = clock or SystemClock()
        self._environment = environment
        self._client: VaultClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_uri(cls, uri: str) -> TransitSigner:
        return cls(parse_uri(uri))

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(exportable=False, latency=Latency.SERVICE)

    async def public_key(self) -> SignerKey:
        answer = await self._call_vault("public_key", "GET", self._build_path("keys"))
        return self._key_in(answer)

    async def sign(self, text: bytes) -> bytes:
        body = {
            "input": base64.b64encode(hashlib.sha384(text).digest()).decode("ascii"),
            "prehashed": True,
            "hash_algorithm": "sha2-384",  # the engine's default is sha2-256, whatever the curve
            "marshaling_algorithm": "jws",
            "key_version": self.address.version,
        }
        answer = await self._call_vault("sign", "POST", self._build_path("sign"), body=body)
        return self._signature_in(answer)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.close()

    async def create_key(self) -> None:
        self.check_first_version(self.address.version, hint="Leave out the version in the URI.")
        # The engine answers success for a key that exists, so it is asked first.
        try:
            await self._call_vault("create_key", "GET", self._build_path("keys"))
        except SignerKeyNotFoundError:
            pass
        else:
            raise self.error(SignerKeyExistsError, "create_key", "the key exists")
        body = {"type": KEY_TYPE, "exportable": False, "allow_plaintext_backup": False}
        await self._call_vault("create_key", "POST", self._build_path("keys"), body=body)

    # --- one request ------------------------------------------------------------------------------------------------

    def _build_path(self, kind: str) -> str:
        return f"{self.address.server.mount}/{kind}/{self.address.key}"

    async def _call_vault(
        self, operation: str, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> Mapping[str, Any]:
        try:
            status, answer = await self._open_client().call_api(method, path, body=body)
        except ProviderError as problem:
            error = self._translate_error(operation, problem)
        except ConfigurationError as problem:
            error = self.error(SignerConfigurationError, operation, str(problem), hint=problem.hint)
        else:
            if status == 404:
                raise self.error(SignerKeyNotFoundError, operation, f"{path} does not exist")
            return answer
        raise error  # out here, where the client's error is not its context

    def _translate_error(self, operation: str, problem: ProviderError) -> SignerError:
        message = str(problem)
        if "signing key not found" in message:
            return self.error(SignerKeyNotFoundError, operation, "the server has no such key")
        if _BELOW_MINIMUM in message:
            return self.error(
                SignerKeyDisabledError,
                operation,
                "this version of the key is below the key's minimum version",
                hint="Name a later version in the URI, or lower min_encryption_version and min_decryption_version.",
            )
        if _ABOVE_LATEST in message:
            return self.error(SignerKeyNotFoundError, operation, "the key has no such version")
        if isinstance(problem, ProviderAccessDeniedError):
            return self.error(SignerAccessDeniedError, operation, message)
        if "nothing is mounted" in message:
            hint = "The address begins with the mount of a transit engine. See `vault secrets list`."
            return self.error(SignerConfigurationError, operation, message, hint=hint)
        return self.error_of_provider(operation, problem)

    def _open_client(self) -> VaultClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            client = VaultClient(
                self.address.server, timeout=REQUEST_TIMEOUT, clock=self._clock, environment=self._environment
            )
            client.open()
            self._client, self._loop = client, loop
        return self._client

    # --- one answer -------------------------------------------------------------------------------------------------

    def _key_in(self, answer: Mapping[str, Any]) -> SignerKey:
        data = self._read_object(answer, "data", "public_key")
        if data.get("type") != KEY_TYPE:
            problem = f"the key's type must be {KEY_TYPE}; it is {data.get('type')!r:.60}"
            raise self.error(UnsupportedKeyError, "public_key", problem)
        if data.get("exportable") is not False or data.get("derived") is True:
            raise self.error(
                SignerConfigurationError,
                "public_key",
                "the key can be exported" if data.get("exportable") else "the key is derived (`derived` is true)",
                hint="Create a key with exportable=false, and name it in the URI.",
            )
        version = self._read_object(data, "keys", "public_key").get(str(self.address.version))
        if version is None:
            latest = data.get("latest_version")
            if isinstance(latest, int) and latest >= self.address.version:
                raise self.error(
                    SignerKeyDisabledError,
                    "public_key",
                    "this version of the key is below the key's minimum version",
                    hint="Name a later version in the URI, or lower min_decryption_version.",
                )
            raise self.error(SignerKeyNotFoundError, "public_key", "the key has no such version")
        pem = version.get("public_key") if isinstance(version, Mapping) else None
        key = self.decode_answer("public_key", PublicKey.from_pem, str(pem))
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=key)

    def _signature_in(self, answer: Mapping[str, Any]) -> bytes:
        text = self._read_object(answer, "data", "sign").get("signature")
        prefix = f"vault:v{self.address.version}:"
        if not isinstance(text, str) or not text.startswith(prefix):
            raise self.damaged_error("sign", "it has no signature of this version of the key")
        try:
            raw = text.removeprefix(prefix).encode("ascii")
            signature = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise self.damaged_error("sign", "the signature is not base64") from None
        if len(signature) != SIGNATURE_BYTES:
            raise self.damaged_error("sign", f"the signature has {len(signature)} bytes")
        return signature

    def _read_object(self, answer: Mapping[str, Any], name: str, operation: str) -> Mapping[str, Any]:
        found = answer.get(name)
        if not isinstance(found, Mapping):
            raise self.damaged_error(operation, f"it has no {name!r}")
        return found
