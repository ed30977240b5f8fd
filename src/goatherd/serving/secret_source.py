"""Read a secret, such as a sealing key or a PIN, from a file, an environment variable or a systemd credential.

The configuration, a URI or an error names the place of the secret, and never contains the secret itself.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Self

from goatherd.errors import ConfigurationError

CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"

_LONGEST: Final = 4096
_KEY_HINT: Final = "A key is 32 random bytes as base64 or hexadecimal: `openssl rand -base64 32`."
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")


@dataclass(frozen=True, slots=True)
class SecretSource:
    """The place where the operator keeps a secret.

    Attributes:
        kind: ``file``, ``env`` or ``credential``.
        name: A path, or the name of an environment variable or of a systemd credential.
        subject: What the secret is, for errors; a subclass sets it.
    """

    kind: str
    name: str
    subject: ClassVar[str] = "the secret"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse ``file:/run/keys/seal``, ``env:GOATHERD_SEAL_KEY`` or ``credential:seal``.

        Raises:
            ConfigurationError: The string has another form. SECURITY: it is not quoted, since a user may have given the
                secret itself (tests/unit/settings/test_last_known_good.py, tests/unit/serving/test_secret_source.py).
        """
        kind, _, name = text.partition(":")
        is_fine = (kind == "file" and Path(name).is_absolute()) or (
            kind in ("env", "credential") and _NAME.fullmatch(name) is not None and name.strip(".") != ""
        )
        if not is_fine:
            hint = "Give the place where the secret is, not the secret itself: a configuration must not contain it."
            raise ConfigurationError(
                f"the source of {cls.subject} must be file:/PATH, env:NAME or credential:NAME",
                hint="After `file:`, write an absolute path." if kind == "file" else hint,
            )
        return cls(kind, name)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def read_bytes(self, environ: Mapping[str, str]) -> bytes:
        """Read and return the secret's bytes as they are stored.

        Raises:
            ConfigurationError: The secret is missing, or other users can read or change its file.
        """
        if self.kind == "env":
            text = environ.get(self.name, "")
            if not text:
                raise self._error(
                    "the environment variable is not set",
                    hint=f"Set {self.name}, or name another place: file:/PATH, env:NAME or credential:NAME.",
                )
            return text.encode("utf-8", "surrogateescape")
        if self.kind == "file":
            return self._read_file(Path(self.name), forbidden=0o077)
        directory = environ.get(CREDENTIALS_VARIABLE, "")
        if not directory:
            raise self._error(f"{CREDENTIALS_VARIABLE} is not set", hint="Use LoadCredential= in the systemd unit.")
        # systemd may grant the service's user access by an ACL, which shows as bits of the group.
        return self._read_file(Path(directory) / self.name, forbidden=0o007)

    def read_key(self, environ: Mapping[str, str], length: int) -> bytes:
        """Return a random key of `length` bytes that is stored as base64 or hexadecimal.

        Raises:
            ConfigurationError: The key is missing or malformed, or other users can read or change its file.
        """
        # SECURITY: raw bytes are not accepted, because 32 characters that a user typed are not a random key
        # (tests/unit/serving/test_secret_source.py).
        text = self.read_bytes(environ).strip()
        try:
            key = bytes.fromhex(text.decode()) if len(text) == 2 * length else _from_base64(text)
        except (ValueError, binascii.Error):
            key = b""
        if len(key) != length or len(set(key)) < length // 2:
            raise self._error(f"the value must be {length} random bytes as base64 or hexadecimal", hint=_KEY_HINT)
        return key

    def _read_file(self, path: Path, *, forbidden: int) -> bytes:
        try:
            # O_NONBLOCK: if the path names a pipe, opening it must not block the start. Links are followed, because
            # Kubernetes mounts its secrets as links.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise self._error(f"{path} is not a regular file", hint="Name the file that holds the secret.")
                # SECURITY: a file that other users can read or write is rejected, because its key would protect nothing
                # (tests/unit/settings/test_last_known_good.py).
                if status.st_mode & forbidden or status.st_uid not in (os.geteuid(), 0):
                    mode = stat.S_IMODE(status.st_mode)
                    hint = f"Give the file to the server's user with chown, and run chmod 0600 {path}."
                    raise self._error(f"other users can read or change {path} (mode {mode:04o})", hint=hint)
                return os.read(descriptor, _LONGEST)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._error(
                f"{path} cannot be read: {error.strerror or type(error).__name__}",
                hint="Check the path, and whether the user of this process may read the file.",
            ) from error

    def _error(self, problem: str, *, hint: str) -> ConfigurationError:
        return ConfigurationError(f"{self.subject}, {self}: {problem}", hint=hint)


class PageToken(SecretSource):
    """The place where the operator keeps the token that a reader of the web page must give."""

    subject: ClassVar[str] = "the token of the page"


def _from_base64(text: bytes) -> bytes:
    padded = text.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    return base64.b64decode(padded + b"=" * (-len(padded) % 4), validate=True)
