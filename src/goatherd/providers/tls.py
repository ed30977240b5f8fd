"""Make the TLS context that trusts the system's certificate authorities, and cache it, because that takes 10 ms.

A provider that needs its own certificate authority or a client certificate makes its own context.
"""

from __future__ import annotations

import functools
import os
import ssl

import httpx2


def default_context() -> ssl.SSLContext:
    """Return the TLS context that httpx uses by default; it checks certificates and host names.

    All callers share the context: do not change it. It uses the present values of the environment variables
    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.
    """
    return _make_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.lru_cache(maxsize=4)
def _make_context(file: str | None, directory: str | None) -> ssl.SSLContext:
    del file, directory  # httpx reads them itself
    return httpx2.create_ssl_context()
