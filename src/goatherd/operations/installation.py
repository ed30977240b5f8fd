"""Say what Goatherd runs on: its version, Python, OpenSSL, and which extras are installed."""

from __future__ import annotations

import platform
import re
import ssl
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import goatherd
from goatherd.crypto import library_versions

__all__ = ["Installation", "describe_installation"]

PACKAGE = "goatherd"
BUNDLES = frozenset({"all"})
"""Extras that hold other extras."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What Goatherd runs on.

    Attributes:
        version: Goatherd's own.
        python: Version and implementation of Python.
        platform: The operating system and the processor.
        cryptography: Version of the library that makes and verifies signatures.
        openssl: The OpenSSL in it.
        tls: The OpenSSL that Python uses for connections.
        extras: Extras whose libraries are all installed.
        missing: Extras of which at least one library is not installed.
    """

    version: str
    python: str
    platform: str
    cryptography: str
    openssl: str
    tls: str
    extras: tuple[str, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "python": self.python,
            "platform": self.platform,
            "cryptography": self.cryptography,
            "openssl": self.openssl,
            "tls": self.tls,
            "extras": list(self.extras),
            "missingExtras": list(self.missing),
        }

    def lines(self) -> list[str]:
        """Return the same for people."""
        return [
            f"goatherd, version {self.version}",
            f"python      {self.python}, {self.platform}",
            f"signatures  {self.openssl} (cryptography {self.cryptography})",
            f"tls         {self.tls}",
            f"extras      {', '.join(self.extras) or 'none'}",
            *([f"missing     {', '.join(self.missing)}: pip install 'goatherd[NAME]'"] if self.missing else []),
        ]


def describe_installation() -> Installation:
    """Look up the versions of what is installed. Imports no provider."""
    library, openssl = library_versions()
    try:
        about = metadata.metadata(PACKAGE)
        extras = [extra for extra in about.get_all("Provides-Extra") or [] if extra not in BUNDLES]
        needs = _libraries(metadata.requires(PACKAGE) or [])
    except metadata.PackageNotFoundError:  # run from a directory, without having been installed
        extras, needs = [], {}
    installed = {extra: all(_is_installed(name) for name in needs.get(extra, ())) for extra in extras}
    return Installation(
        version=goatherd.__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        platform=f"{platform.system()} {platform.machine()}",
        cryptography=library,
        openssl=openssl,
        tls=ssl.OPENSSL_VERSION,
        extras=tuple(extra for extra, is_there in sorted(installed.items()) if is_there),
        missing=tuple(extra for extra, is_there in sorted(installed.items()) if not is_there),
    )


def _libraries(requirements: list[str]) -> dict[str, list[str]]:
    """Return the libraries of each extra, from what the package's metadata says."""
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", requirement)
        if name is not None and extra is not None:
            found.setdefault(extra[1], []).append(name[0])
    return found


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
