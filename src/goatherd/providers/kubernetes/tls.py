"""TLS contexts for an API server: whom to trust, and a client certificate whose key never becomes a file on a disk."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from goatherd.errors import ConfigurationError


def make_context(authority: str | Path | None, *, source: str) -> ssl.SSLContext:
    """Return a context that trusts one authority and no other. Blocks on disk.

    Args:
        authority: A file; or base64 of PEM; or None for the system's authorities.
        source: Where that stands, for messages.

    Raises:
        ConfigurationError: It cannot be used.
    """
    try:
        if authority is None:
            return ssl.create_default_context()
        if isinstance(authority, Path):
            context = ssl.create_default_context(cafile=str(authority))
        else:
            pem = base64.b64decode(authority, validate=True).decode("ascii")
            context = ssl.create_default_context(cadata=pem)
    except (OSError, ssl.SSLError, binascii.Error, ValueError) as error:
        raise _unusable(source, error) from None
    # Many clusters' own authorities lack an extension that Python asks for by default since 3.13. The chain, the name
    # and the dates are checked all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def use_certificate(context: ssl.SSLContext, cert: Path | bytes, key: Path | bytes, *, source: str) -> None:
    """Show a client certificate on the connections that are made with `context` from now on.

    Args:
        context: Of the API server.
        cert: A file or PEM bytes.
        key: A file or PEM bytes, not encrypted.
        source: Where they stand, for messages.

    Raises:
        ConfigurationError: They cannot be used.
    """
    try:
        with _as_file(cert) as cert_file, _as_file(key) as key_file:
            context.load_cert_chain(cert_file, key_file, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise _unusable(source, error) from None


def _unusable(source: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"{source}: cannot use a certificate or key: {type(error).__name__}")


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask at the terminal


@contextlib.contextmanager
def _as_file(pem: Path | bytes) -> Iterator[str]:
    """Give OpenSSL a path, which is all that it takes.

    SECURITY: bytes get one in memory and never on a disk
    (tests/unit/providers/test_kubernetes_access.py::test_a_key_in_the_kubeconfig_never_becomes_a_file_on_a_disk).
    """
    if isinstance(pem, Path):
        yield str(pem)
        return
    if not hasattr(os, "memfd_create"):
        raise ConfigurationError(
            "a client key that is not in a file of its own can be used on Linux only",
            hint="Name files: client-certificate, client-key.",
        )
    descriptor = os.memfd_create("goatherd", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
