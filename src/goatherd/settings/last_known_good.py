"""Keep a sealed copy of the last known good identity on this machine, to start from while the store is unreachable.

The copy is not a cache: it is opened only if the store does not answer, never if the store answers with an error. The
identity in it passes the same checks as one from the store.

Rules: the copy is encrypted with a key that the operator provides and that is not stored with it. The sealed data
include the time when the store last confirmed the identity; after `max_age` the copy is rejected. A damaged copy is an
error, and never counts as missing.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final

from goatherd.crypto.sealed import SEAL_KEY_BYTES, open_sealed, seal_data
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
from goatherd.serving.secret_source import SecretSource

MAX_AGE: Final = timedelta(hours=24)
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
STAMPS: Final = 24
"""The copy is written again when the store has confirmed it and this part of `max_age` has passed."""

_FORMAT: Final = "goatherd last known good 1"
_HEAD: Final = ("format", "secret", "generation", "confirmedAt")
_SIZE_LIMIT: Final = 2 * SIZE_LIMIT_BYTES + 4096


@dataclass(frozen=True, slots=True)
class KeySource(SecretSource):
    """Where the operator keeps the key that encrypts the last known good copy of the identity."""

    subject: ClassVar[str] = "the key of the last known good identity"

    def read(self, environ: Mapping[str, str]) -> SecretBytes:
        """Read and return the key that encrypts the last known good copy of the identity.

        Raises:
            ConfigurationError: The key is missing, readable by others, or malformed.
        """
        return SecretBytes(self.read_key(environ, SEAL_KEY_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The unencrypted header of the file with the last known good identity.

    The encryption authenticates the header, so a change to it is detected.
    """

    secret: str
    generation: int
    confirmed_ms: int

    def to_json(self) -> dict[str, object]:
        return dict(zip(_HEAD, (_FORMAT, self.secret, self.generation, self.confirmed_ms), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The decrypted content of a last known good copy of the identity.

    Attributes:
        document: The identity document.
        confirmed_ms: When the store last confirmed the identity, in milliseconds since 1970.
    """

    document: IdentityDocument
    confirmed_ms: int


class LastKnownGood:
    """An encrypted copy of the identity on disk, with which a server can start while the store is unreachable.

    There is one file, or one for each organization. Calls block while they read or write the disk.

    Args:
        path: Path of the file; ``{org}`` in it is replaced by `for_org`.
        key: Where the operator keeps the key that encrypts the copy.
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
        """Return the last known good copy of one organization's identity.

        Raises:
            ConfigurationError: The organization's id cannot be part of a path.
        """
        path = secret_id_for(str(self.path), org)
        return LastKnownGood(path, self._source, max_age=self.max_age, store=self._store)

    def check_usable(self) -> None:
        """Read the key that encrypts the last known good identity, to report a problem with the key at every start.

        Otherwise a missing key would be noticed only when the store is unreachable and the copy is needed.

        Raises:
            ConfigurationError: There is no usable key, the key is in the same directory as the copy, or ``{org}`` in
                the path was not replaced by an organization.
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
        """Return whether to write the last known good copy of the identity again.

        This is the case if `document` differs from the copy, or if the time in the copy is much older than
        `confirmed_ms`, when the store last confirmed the identity (milliseconds since 1970).
        """
        if self._written is None:
            return True
        raw, stamped_ms = self._written
        age = timedelta(milliseconds=confirmed_ms - stamped_ms)
        # A stamp from a clock that was ahead would be refused in the outage, as one from the future.
        return not timedelta(0) <= age < self.max_age / STAMPS or raw != encode_document(document)

    def save_copy(self, secret: str, document: IdentityDocument, confirmed_ms: int) -> None:
        """Replace the last known good copy of the identity on disk: atomically, encrypted, with mode 0600.

        Args:
            secret: The name of the store's secret that holds the identity.
            document: The identity document to save.
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
        """Decrypt and return the last known good copy of the identity; None if there is no such file.

        Args:
            secret: The name of the store's secret that holds the identity.
            now_ms: The current time, in milliseconds since 1970.

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
        # From here on, the head is authentic as well, because the seal covers it.
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
        # SECURITY: these data are sealed with the copy. So a copy of another secret, generation, time or store cannot
        # be opened in its place (tests/unit/settings/test_last_known_good.py).
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
