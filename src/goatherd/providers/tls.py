"""Make the TLS context that trusts the system's certificate authorities, and cache it, because that takes 10 ms.

A provider that needs its own certificate authority or a client certificate makes its own context; `load_authorities`
loads the authority again when another program has replaced its file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
from pathlib import Path

import httpx2


def default_context() -> ssl.SSLContext:
    """Return the TLS context that httpx uses by default; it checks certificates and host names.

    All callers share the context: do not change it. It uses the present values of the environment variables
    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.
    """
    return _make_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


def load_authorities(context: ssl.SSLContext, file: str | Path) -> None:
    """Let a TLS context also trust the certificate authorities that a PEM file holds now.

    Call it after a server's certificate was not trusted: the next connection succeeds if the file holds the authority
    that has replaced the earlier one. A file that cannot be used changes nothing.
    """
    with contextlib.suppress(OSError):
        context.load_verify_locations(cafile=file)


@functools.lru_cache(maxsize=4)
def _make_context(file: str | None, directory: str | None) -> ssl.SSLContext:
    del file, directory  # httpx reads them itself
    return httpx2.create_ssl_context()
