"""An encrypted key in a file: the reference implementation of a signer, for tests and for trying out.

The file is JSON. The public key in it is plain text. The private key is sealed: encrypted with AES-256-GCM under a
sealing key, which also authenticates the rest of the file. Any process that can read both the file and the sealing key
can copy the private key. A signer decrypts the private key at the first signature, and keeps it in memory until
`LocalSigner.aclose`.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from goatherd.crypto import PrivateKey, PublicKey
from goatherd.crypto.sealed import SEAL_KEY_BYTES, open_sealed, seal_data
from goatherd.errors import (
    ConfigurationError,
    DecodeError,
    IdentityExistsError,
    InvalidSealError,
    SettingsError,
    SignerAccessDeniedError,
    SignerConfigurationError,
    SignerKeyDisabledError,
    SignerKeyExistsError,
    SignerKeyNotFoundError,
    SignerUnavailableError,
)
from goatherd.files import create_file, read_if_there
from goatherd.serving.secret_source import SecretSource
from goatherd.signers.base import KeyKind, Latency, Signer, SignerFacts, SignerKey, check_role

FORMAT: Final = "goatherd local signer 1"
DEFAULT_SOURCE: Final = "env:GOATHERD_SIGNER_SEAL_KEY"
_EXAMPLE: Final = "Write local:/srv/keys/anchor.key?seal-key=file:/run/keys/seal."


@dataclass(frozen=True, slots=True)
class SealSource(SecretSource):
    """Where the operator keeps the key that seals the signer's file."""

    subject: ClassVar[str] = "the key that seals the signer's file"


class LocalSigner(Signer):
    """A key in a file of this machine, sealed (encrypted) with a key that the operator keeps elsewhere.

    Address: ``local:/path/to/key.json``, with ``?seal-key=file:/PATH``, ``env:NAME`` or ``credential:NAME`` (systemd);
    the default is ``env:GOATHERD_SIGNER_SEAL_KEY``.
    Credentials: the sealing key, 32 random bytes as base64 or hexadecimal.
    Permissions: reading the file and the sealing key.
    Facts: exportable; a signature takes a millisecond; signs data of any length.
    """

    scheme: ClassVar[str] = "local"
    credential_variables: ClassVar[tuple[str, ...]] = ("GOATHERD_SIGNER_SEAL_KEY",)

    def __init__(self, path: Path, source: SealSource, *, environ: Mapping[str, str] | None = None) -> None:
        self.name = str(path)
        self._path = path
        self._source = source
        self._environ = os.environ if environ is None else environ
        self._key: PrivateKey | None = None

    @classmethod
    def from_uri(cls, uri: str) -> LocalSigner:
        path, source = parse_uri(uri)
        return cls(path, source)

    @property
    def facts(self) -> SignerFacts:
        return SignerFacts(exportable=True, latency=Latency.MEMORY)

    async def public_key(self) -> SignerKey:
        key = self._public_of(self._read_file("public_key"), "public_key")
        return SignerKey(kind=KeyKind.ECDSA_P384, public_key=key)

    async def sign(self, text: bytes) -> bytes:
        content = self._read_file("sign")
        if content["disabled"]:
            raise self.error(
                SignerKeyDisabledError,
                "sign",
                "the file says that the key is disabled",
                hint="Create another key, or restore the file from a backup.",
            )
        if self._key is None or self._key.public_key != self._public_of(content, "sign"):
            self._key = self._unseal_key(content)
        return self._key.sign(text)

    async def aclose(self) -> None:
        self._key = None

    async def create_key(self) -> None:
        try:
            create_file(self._path, self._encode_file(PrivateKey.generate()))
        except IdentityExistsError:
            raise self.error(SignerKeyExistsError, "create_key", "the file exists") from None
        except SettingsError as error:
            raise self.error(SignerAccessDeniedError, "create_key", str(error)) from None

    # --- the file ---------------------------------------------------------------------------------------------------

    def _encode_file(self, key: PrivateKey) -> bytes:
        # SECURITY: the private key leaves this function encrypted only
        # (tests/unit/signers/test_local.py::test_the_file_does_not_hold_the_key_in_the_clear).
        head: dict[str, object] = {
            "format": FORMAT,
            "publicKey": key.public_key.to_jwk(),
            "disabled": False,
        }
        raw = json.dumps(key.to_jwk()).encode()
        sealed = seal_data(raw, key=self._seal_key("create_key"), associated=_build_associated_data(head))
        return json.dumps({**head, "sealed": base64.b64encode(sealed).decode("ascii")}, indent=2).encode() + b"\n"

    def _read_file(self, operation: str) -> dict[str, Any]:
        try:
            raw = read_if_there(self._path)
        except SettingsError as error:
            raise self.error(SignerAccessDeniedError, operation, str(error)) from None
        if raw is None:
            raise self.error(SignerKeyNotFoundError, operation, "there is no such file")
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or set(content) != {"format", "publicKey", "disabled", "sealed"}:
            raise self.error(SignerUnavailableError, operation, "the file is damaged", final=True)
        if content["format"] != FORMAT or not isinstance(content["disabled"], bool):
            raise self.error(SignerConfigurationError, operation, "the file has another format")
        return content

    def _public_of(self, content: Mapping[str, Any], operation: str) -> PublicKey:
        try:
            return PublicKey.from_jwk(content["publicKey"])
        except DecodeError as error:
            raise self.error(SignerUnavailableError, operation, f"the file is damaged: {error}", final=True) from None

    def _unseal_key(self, content: Mapping[str, Any]) -> PrivateKey:
        head = {name: content[name] for name in ("format", "publicKey", "disabled")}
        try:
            sealed = base64.b64decode(content["sealed"], validate=True)
            raw = open_sealed(sealed, key=self._seal_key("sign"), associated=_build_associated_data(head))
            key = PrivateKey.from_jwk(json.loads(raw))
        except (InvalidSealError, binascii.Error, TypeError, ValueError, DecodeError):
            problem = "the file was sealed with another key, or is damaged"
            raise self.error(SignerAccessDeniedError, "sign", problem, hint=f"Check {self._source}.") from None
        if key.public_key != self._public_of(content, "sign"):
            raise self.error(SignerUnavailableError, "sign", "the file is damaged", final=True)
        return key

    def _seal_key(self, operation: str) -> bytes:
        try:
            return self._source.read_key(self._environ, SEAL_KEY_BYTES)
        except ConfigurationError as error:
            raise self.error(SignerConfigurationError, operation, str(error), hint=error.hint) from None


def parse_uri(uri: str) -> tuple[Path, SealSource]:
    """Return the path of the file that a ``local:`` URI names, and the source of the key that decrypts it.

    Raises:
        ConfigurationError: The URI does not have the form ``local:/PATH?seal-key=SOURCE``, or an option is unknown.
    """
    parts = urlsplit(uri)
    path = unquote(parts.path)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - {"seal-key"})
    if parts.scheme != "local" or parts.netloc or parts.fragment or not path.startswith("/") or path.endswith("/"):
        raise ConfigurationError("a local URI must name a file by its absolute path", hint=_EXAMPLE)
    if unknown:
        raise ConfigurationError(f"local URI: there is no option {unknown[0]!r}", hint=_EXAMPLE)
    return Path(path), SealSource.from_text(options.get("seal-key", DEFAULT_SOURCE))


def policy(role: str, uri: str) -> str:
    """Return the shell commands that let one user of this machine sign with the key, and no other user read it."""
    check_role(role)
    path, source = parse_uri(uri)
    lines = [
        "# Goatherd signer: reads the sealed key and the key that seals it. USER is the user that runs Goatherd.",
        f"chown USER {shlex.quote(str(path))} && chmod 0600 {shlex.quote(str(path))}",
    ]
    if source.kind == "file":
        lines.append(f"chown USER {shlex.quote(source.name)} && chmod 0600 {shlex.quote(source.name)}")
    return "\n".join(lines) + "\n"


def _build_associated_data(head: Mapping[str, object]) -> bytes:
    return json.dumps(head, sort_keys=True).encode()
