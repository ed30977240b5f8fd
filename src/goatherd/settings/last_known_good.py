"""Keep a sealed copy of the last known good identity on this machine, to start from while the store is unreachable.

The copy is not a cache: it is opened only if the store did not answer, never if the store answered with an error. The
identity in it passes the same checks as one from the store.

Rules: the copy is encrypted with a key that the operator provides and that is not stored with it. The sealed data
include the time when the store last confirmed the identity; after `max_age` the copy is rejected. A damaged copy is an
error, and never treated as absent.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from goatherd.crypto import SEAL_KEY_BYTES, open_sealed, seal_data
from goatherd.errors import (
    ConfigurationError,
    IdentityError,
    InvalidSealError,
    LastKnownGoodError,
    MalformedIdentityError,
    SettingsError,
)
from goatherd.files import read_file, replace_file
from goatherd.identity.document import SIZE_LIMIT_BYTES, IdentityDocument, decode_document, encode_document
from goatherd.identity.strict_json import parse_object, to_pretty_json
from goatherd.providers.values import ORG_FIELD, SecretBytes, secret_id_for

MAX_AGE: Final = timedelta(hours=24)
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
STAMPS: Final = 24
"""The copy is written again when the store has confirmed it and this part of `max_age` has passed."""
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"

_FORMAT: Final = "goatherd last known good 1"
_HEAD: Final = ("format", "secret", "generation", "confirmedAt")
_SIZE_LIMIT: Final = 2 * SIZE_LIMIT_BYTES + 4096
_KEY_HINT: Final = "A key is 32 random bytes as base64 or hexadecimal: `openssl rand -base64 32`."
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where the operator keeps the key that seals the copy.

    Attributes:
        kind: ``file``, ``env`` or ``credential``.
        name: A path, the name of an environment variable, or that of a systemd credential.
    """

    kind: str
    name: str

    @classmethod
    def from_text(cls, text: str) -> KeySource:
        """Parse ``file:/run/keys/seal``, ``env:GOATHERD_SEAL_KEY`` or ``credential:seal``.

        Raises:
            ConfigurationError: The string has another form. SECURITY: it is not quoted, since a user may have given the
                key itself (tests/unit/settings/test_last_known_good.py).
        """
        kind, _, name = text.partition(":")
        is_fine = (kind == "file" and Path(name).is_absolute()) or (
            kind in ("env", "credential") and _NAME.fullmatch(name) is not None and name.strip(".") != ""
        )
        if not is_fine:
            raise ConfigurationError(
                "the source of the key must be file:/PATH, env:NAME or credential:NAME",
                hint="Give the location of the key, not the key itself: a configuration must not contain it.",
            )
        return cls(kind=kind, name=name)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def read(self, environ: Mapping[str, str]) -> SecretBytes:
        """Return the key.

        Raises:
            ConfigurationError: The key is missing, readable by others, or malformed.
        """
        if self.kind == "env":
            text = environ.get(self.name, "")
            if not text:
                raise self._key_error("the environment variable is not set")
            return self._decode_key(text.encode("utf-8", "surrogateescape"))
        if self.kind == "file":
            return self._decode_key(self._read_key_file(Path(self.name), forbidden=0o077))
        directory = environ.get(CREDENTIALS_VARIABLE, "")
        if not directory:
            raise self._key_error(f"{CREDENTIALS_VARIABLE} is not set", hint="Use LoadCredential= in the systemd unit.")
        # systemd may grant the service's user access by an ACL, which shows as bits of the group.
        return self._decode_key(self._read_key_file(Path(directory) / self.name, forbidden=0o007))

    def _read_key_file(self, path: Path, *, forbidden: int) -> bytes:
        try:
            # O_NONBLOCK: a pipe in the file's place must not make the start wait. Links are followed: Kubernetes mounts
            # its secrets as links.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise self._key_error(f"{path} is not a regular file")
                # SECURITY: a key that others can read protects nothing (tests/unit/settings/test_last_known_good.py).
                if status.st_mode & forbidden or status.st_uid not in (os.geteuid(), 0):
                    mode = stat.S_IMODE(status.st_mode)
                    hint = f"Give the file to the server's user with chown, and run chmod 0600 {path}."
                    raise self._key_error(f"other users can read or change {path} (mode {mode:04o})", hint=hint)
                return os.read(descriptor, 4096)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._key_error(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error

    def _decode_key(self, raw: bytes) -> SecretBytes:
        # SECURITY: 32 characters that a user made up are no key, so raw bytes are not accepted.
        text = raw.strip()
        try:
            key = bytes.fromhex(text.decode()) if len(text) == 2 * SEAL_KEY_BYTES else _from_base64(text)
        except (ValueError, binascii.Error):
            key = b""
        if len(key) != SEAL_KEY_BYTES or len(set(key)) < SEAL_KEY_BYTES // 2:
            raise self._key_error("the value must be 32 random bytes as base64 or hexadecimal", hint=_KEY_HINT)
        return SecretBytes(key)

    def _key_error(self, problem: str, *, hint: str | None = None) -> ConfigurationError:
        return ConfigurationError(f"the key of the last known good identity, {self}: {problem}", hint=hint)


def _from_base64(text: bytes) -> bytes:
    padded = text.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    return base64.b64decode(padded + b"=" * (-len(padded) % 4), validate=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The unencrypted part of the file. The seal covers it as well, so a change is detected."""

    secret: str
    generation: int
    confirmed_ms: int

    def to_json(self) -> dict[str, object]:
        return dict(zip(_HEAD, (_FORMAT, self.secret, self.generation, self.confirmed_ms), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The content of a copy.

    Attributes:
        document: The identity document.
        confirmed_ms: When the store last confirmed the identity, in milliseconds since 1970.
    """

    document: IdentityDocument
    confirmed_ms: int


class LastKnownGood:
    """A sealed copy of one identity, or of one for each organization. Calls block while they read or write the disk.

    Args:
        path: The file; ``{org}`` in it is replaced by `for_org`.
        key: Where the operator keeps the key.
        max_age: How long the copy may be used after the store last confirmed it.
        store: Identifies the store, such as its URI: a copy from another store is rejected.
    """

    def __init__(self, path: Path | str, key: KeySource, *, max_age: timedelta = MAX_AGE, store: str = "") -> None:
        if max_age <= timedelta(0):
            raise ConfigurationError("the maximum age of a last known good identity must be longer than 0")
        self.path = Path(path)
        self.max_age = max_age
        self._source = key
        self._store = store
        self._key: SecretBytes | None = None
        self._written: tuple[bytes, int] | None = None

    def for_org(self, org: str) -> LastKnownGood:
        """Return the copy of one organization's identity.

        Raises:
            ConfigurationError: The organization's id cannot be part of a path.
        """
        path = secret_id_for(str(self.path), org)
        return LastKnownGood(path, self._source, max_age=self.max_age, store=self._store)

    def check_usable(self) -> None:
        """Read the key, so that a problem with it is reported at every start and not only when the store fails.

        Raises:
            ConfigurationError: There is no usable key, the key is in the copy's directory, or an organization is
                missing.
        """
        if ORG_FIELD in str(self.path):
            raise ConfigurationError(f"the path {self.path} still contains {ORG_FIELD}: give an organization")
        if self._source.kind == "file" and Path(self._source.name).resolve().parent == self.path.resolve().parent:
            raise ConfigurationError(
                f"the key {self._source} is in the same directory as the copy that it encrypts",
                hint="An attacker could read both. Keep the key on another file system, such as a tmpfs.",
            )
        self._key = self._source.read(os.environ)

    def is_due(self, document: IdentityDocument, confirmed_ms: int) -> bool:
        """Return whether to write the copy, because the identity has changed or the last confirmation is too old."""
        if self._written is None:
            return True
        raw, stamped_ms = self._written
        age = timedelta(milliseconds=confirmed_ms - stamped_ms)
        # A stamp from a clock that was ahead would be refused in the outage, as one from the future.
        return not timedelta(0) <= age < self.max_age / STAMPS or raw != encode_document(document)

    def save_copy(self, secret: str, document: IdentityDocument, confirmed_ms: int) -> None:
        """Replace the copy atomically, with mode 0600.

        Args:
            secret: The secret's name.
            document: The identity document.
            confirmed_ms: When the store confirmed the identity, in milliseconds since 1970.

        Raises:
            SettingsError: The copy cannot be written; the previous one is unchanged.
        """
        raw = encode_document(document)
        head = _Head(secret=secret, generation=document.generation, confirmed_ms=confirmed_ms)
        sealed = seal_data(raw, key=self._secret_key(), associated=self._associated_data(head))
        replace_file(self.path, to_pretty_json({**head.to_json(), "sealed": base64.b64encode(sealed).decode("ascii")}))
        self._written = (raw, confirmed_ms)

    def open_copy(self, secret: str, now_ms: int) -> Opened | None:
        """Return the content of the copy, or None if there is none.

        Args:
            secret: The secret's name.
            now_ms: Milliseconds since 1970.

        Raises:
            LastKnownGoodError: The copy must not be used; the message says why.
        """
        found = self._read_parts()
        if found is None:
            return None
        head, sealed = found
        if head.secret != secret:
            raise self._unusable_error(f"is a copy of another secret, {head.secret!r}")
        try:
            raw = open_sealed(sealed, key=self._secret_key(), associated=self._associated_data(head))
            document = decode_document(raw)
        except InvalidSealError:
            raise self._unusable_error(
                "cannot be decrypted: it was encrypted with another key or for another store, or was changed"
            ) from None
        except IdentityError as error:
            raise self._unusable_error(f"contains no valid identity: {error}") from None
        # From here on, the head is known to be ours too: it is under the seal.
        age = timedelta(milliseconds=now_ms - head.confirmed_ms)
        if age > self.max_age:
            raise self._unusable_error(f"is {_format_hours(age)} old; the maximum age is {_format_hours(self.max_age)}")
        if age < -CLOCK_TOLERANCE:
            raise self._unusable_error(
                "has a timestamp in the future: this machine's clock is wrong, or was wrong when the copy was written"
            )
        return Opened(document=document, confirmed_ms=min(now_ms, head.confirmed_ms))

    def _read_parts(self) -> tuple[_Head, bytes] | None:
        try:
            if self.path.stat().st_size > _SIZE_LIMIT:
                raise self._unusable_error("is damaged: the file is too long")
            tree = parse_object(read_file(self.path), max_bytes=_SIZE_LIMIT)
            sealed = base64.b64decode(str(tree.pop("sealed", "")), validate=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable_error(f"cannot be read: {error.strerror or type(error).__name__}") from error
        except LastKnownGoodError:
            raise
        except SettingsError as error:
            raise self._unusable_error(f"cannot be used: {error}") from error
        except (MalformedIdentityError, binascii.Error, ValueError):
            raise self._unusable_error("is damaged") from None
        secret, generation, confirmed = tree.get("secret"), tree.get("generation"), tree.get("confirmedAt")
        if tree.get("format") != _FORMAT or not isinstance(secret, str):
            raise self._unusable_error("is damaged, or was written by another version of Goatherd")
        if not isinstance(generation, int) or not isinstance(confirmed, int) or tree.keys() != set(_HEAD):
            raise self._unusable_error("is damaged")
        return _Head(secret=secret, generation=generation, confirmed_ms=confirmed), sealed

    def _associated_data(self, head: _Head) -> bytes:
        # SECURITY: a copy of another secret, of another generation, with another time or from another store does not
        # open (tests/unit/settings/test_last_known_good.py).
        return to_pretty_json({**head.to_json(), "store": self._store})

    def _secret_key(self) -> bytes:
        if self._key is None:
            self.check_usable()
        assert self._key is not None
        return self._key.reveal()

    def _unusable_error(self, problem: str) -> LastKnownGoodError:
        return LastKnownGoodError(
            f"the last known good identity {self.path} {problem}",
            hint="The copy was not changed, and no new identity was created. Make the store reachable again. Remove the"
            " copy if it belongs to another cluster.",
        )


def _format_hours(duration: timedelta) -> str:
    return f"{duration / timedelta(hours=1):.1f} h"
