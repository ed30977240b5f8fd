"""Decide who may see the status page: readers on this machine, with the token over TLS, or through a named proxy."""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from goatherd.errors import ConfigurationError
from goatherd.serving.certificate_files import CertificateFiles
from goatherd.serving.secret_source import PageToken

SHORTEST_TOKEN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAddress:
    """The address of the status page, and the readers that may see the page. Create it with `check_address`.

    Attributes:
        host, port: Address to listen on; port 0 takes a free one.
        token_digest: SHA-256, in hexadecimal, of the token that a reader must give; None if none is needed.
        certificate, key: Files with the TLS certificate and its key; None to serve HTTP.
        proxies: Networks of the reverse proxies that may connect; empty if any address may.
    """

    host: str
    port: int
    token_digest: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    proxies: tuple[str, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to the address."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(
    host: str,
    port: int,
    *,
    token: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    proxies: tuple[str, ...] = (),
    environ: Mapping[str, str] = os.environ,
) -> PageAddress:
    """Read the token, check that only the intended readers can see the page, and return the address.

    Args:
        host, port: Address to listen on.
        token: Source of the token: ``file:/PATH``, ``env:NAME`` or ``credential:NAME``; None if readers need none.
        certificate, key: Files with the TLS certificate and its key.
        proxies: Networks of the reverse proxies in front of the page; only these proxies may connect, if there are any.
        environ: The environment variables, from which ``env:NAME`` is read.

    Raises:
        ConfigurationError: Other machines could see the page without a token and TLS; or the token, the certificate or
            the key cannot be used.
    """
    if (certificate is None) != (key is None):
        missing = "web.certificate" if certificate is None else "web.certificate_key"
        raise ConfigurationError(f"{missing} is missing", hint="TLS needs both the certificate and its key.")
    # SECURITY: the page shows the names of servers, stores and operators. So other machines get it only with a token
    # and TLS, or through a reverse proxy (tests/unit/web/test_access.py).
    if not is_loopback(host) and not proxies and (token is None or certificate is None):
        raise ConfigurationError(
            f"other machines could read the page at {host} without signing in",
            hint="Set web.token, web.certificate and web.certificate_key (options of `goatherd web`: --token,"
            " --certificate, --certificate-key). Or name a reverse proxy that signs readers in by web.proxies (--behind"
            " NETWORK). Or listen on 127.0.0.1.",
        )
    digest = None
    if token is not None:
        value = PageToken.from_text(token).read_bytes(environ).strip()
        if len(value) < SHORTEST_TOKEN:
            raise ConfigurationError(
                f"the token of the page has fewer than {SHORTEST_TOKEN} characters",
                hint="Write a new one: `openssl rand -base64 32`.",
            )
        digest = hashlib.sha256(value).hexdigest()
    address = PageAddress(host=host, port=port, token_digest=digest, certificate=certificate, key=key, proxies=proxies)
    open_tls(address)
    return address


def open_tls(address: PageAddress) -> CertificateFiles | None:
    """Load the certificate with which the page is served, and its key; None if the page is served by HTTP.

    Raises:
        ConfigurationError: The certificate or its key cannot be used.
    """
    if address.certificate is None or address.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    files = CertificateFiles(context, address.certificate, address.key)
    try:
        files.load()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the certificate {address.certificate} with the key {address.key} cannot be used: {error}",
            hint="Give PEM files: the certificate with its chain, and its key without a passphrase.",
        ) from error
    return files
