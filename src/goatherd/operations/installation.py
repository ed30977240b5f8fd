"""Describe the installation: versions of Goatherd, Python and OpenSSL, and the extras that are installed."""

from __future__ import annotations

import platform
import re
import ssl
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import goatherd
from goatherd.crypto import library_versions

PACKAGE = "goatherd"
BUNDLES = frozenset({"all"})
"""Extras that consist of other extras."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Versions of Goatherd and of what it runs on.

    Attributes:
        version: Version of Goatherd.
        python: Version and implementation of Python.
        platform: The operating system and the processor.
        cryptography: Version of the library that makes and verifies signatures.
        openssl: Version of the OpenSSL in that library.
        awscrt: Version of the library with AWS-LC, which verifies signatures in servers; None if it is not installed.
        tls: Version of the OpenSSL that Python uses for connections.
        extras: Extras whose libraries are all installed.
        missing: Extras of which at least one library is not installed.
    """

    version: str
    python: str
    platform: str
    cryptography: str
    openssl: str
    awscrt: str | None
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
            "awscrt": self.awscrt,
            "tls": self.tls,
            "extras": list(self.extras),
            "missingExtras": list(self.missing),
        }

    def lines(self) -> list[str]:
        """Return the versions as human-readable lines."""
        return [
            f"goatherd, version {self.version}",
            f"python      {self.python}, {self.platform}",
            f"signatures  {self.openssl} (cryptography {self.cryptography})",
            *([f"servers     verify signatures with AWS-LC (awscrt {self.awscrt})"] if self.awscrt else []),
            f"tls         {self.tls}",
            f"extras      {', '.join(self.extras) or 'none'}",
            *([f"missing     {', '.join(self.missing)}: pip install 'goatherd[NAME]'"] if self.missing else []),
        ]


def describe_installation() -> Installation:
    """Return the versions of what is installed. Extras are looked up in package metadata; no provider is imported."""
    library, openssl = library_versions()
    try:
        about = metadata.metadata(PACKAGE)
        extras = [extra for extra in about.get_all("Provides-Extra") or [] if extra not in BUNDLES]
        needs = _group_by_extra(metadata.requires(PACKAGE) or [])
    except metadata.PackageNotFoundError:  # run from a directory, without having been installed
        extras, needs = [], {}
    installed = {extra: all(_find_version(name) for name in needs.get(extra, ())) for extra in extras}
    return Installation(
        version=goatherd.__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        platform=f"{platform.system()} {platform.machine()}",
        cryptography=library,
        openssl=openssl,
        awscrt=_find_version("awscrt"),
        tls=ssl.OPENSSL_VERSION,
        extras=tuple(extra for extra, is_there in sorted(installed.items()) if is_there),
        missing=tuple(extra for extra, is_there in sorted(installed.items()) if not is_there),
    )


def _group_by_extra(requirements: list[str]) -> dict[str, list[str]]:
    """Return the libraries of each extra on this machine, from the requirements in the package's metadata."""
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", requirement)
        machines = re.search(r"""platform_machine in ["']([^"']+)["']""", requirement)
        if machines is not None and platform.machine() not in machines[1]:
            continue  # pip does not install it on this machine
        if name is not None and extra is not None:
            found.setdefault(extra[1], []).append(name[0])
    return found


def _find_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
