"""Make HTTP clients, and decide whether their requests go through the proxy that the environment names.

Rule: a request to this machine itself (a loopback address, or ``localhost``) never goes through a proxy, as with
Vault's and Kubernetes's own clients. For other hosts the environment decides: ``HTTP_PROXY``, ``HTTPS_PROXY``,
``ALL_PROXY`` and ``NO_PROXY``, also in lower case.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from goatherd.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx2

_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
_WORDS: Final = {
    "DecodingError": "its answer is compressed in a way that is not accepted",
    "ProxyError": "the proxy did not connect to the server",
    "RemoteProtocolError": "the server closed the connection before its answer was complete, or does not speak HTTP",
}
"""Descriptions of errors that have no cause in the system, by the name of the HTTP client's exception."""


def make_http_client(
    url: str,
    *,
    verify: ssl.SSLContext | bool,
    timeout: float | None,
    headers: Mapping[str, str] | None = None,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> httpx2.AsyncClient:
    """Return an HTTP client for requests to the server at `url`. It follows no redirects, and rejects an answer that
    is compressed more than once.

    Args:
        url: The URL of the server.
        verify: The TLS context; True for one that trusts the system's certificate authorities, False for none.
        timeout: Timeout of each operation in seconds; None for no timeout.
        headers: Headers of each request.
        transport: Sends the requests, in a test.

    Raises:
        ConfigurationError: The environment names a proxy that cannot be used.
    """
    import httpx2  # here, since it takes long to import

    # SECURITY: requests to this machine bypass the environment's proxy, which would get requests that a root has
    # signed, and could answer in place of the server (tests/unit/serving/test_http_client.py).
    asks_environment = not _is_this_machine(urlsplit(url).hostname or "")
    if verify is True:
        verify = httpx2.create_ssl_context()  # with the authorities that SSL_CERT_FILE names, for this machine too
    try:
        return httpx2.AsyncClient(
            verify=verify,
            timeout=timeout,
            headers=headers,
            transport=transport,
            trust_env=asks_environment,
            event_hooks={"response": [_check_encoding]},
        )
    except (ImportError, ValueError, httpx2.InvalidURL):
        # SECURITY: the error repeats neither the proxy's URL, which may hold a password, nor the cause
        # (tests/unit/serving/test_http_client.py).
        raise ConfigurationError(
            "the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used",
            hint="Name a proxy as http://HOST:PORT; SOCKS proxies are not supported. NO_PROXY lists hosts that are"
            " reached without a proxy, separated by commas.",
        ) from None


async def _check_encoding(answer: httpx2.Response) -> None:
    """Reject an answer that is compressed more than once.

    SECURITY: 64 KiB that are compressed three times can decompress to terabytes of nothing, which exceed no limit on
    the size, and stop the event loop for minutes (tests/unit/serving/test_http_client.py).

    Raises:
        httpx2.DecodingError: The answer has more than one content encoding.
    """
    import httpx2

    if "," in answer.headers.get("content-encoding", ""):  # repeated headers are joined by commas
        raise httpx2.DecodingError("the answer is compressed more than once", request=answer.request)


def causes_of(error: BaseException) -> list[BaseException]:
    """Return an exception and the chain of exceptions that led to it, from `error` itself to the first cause."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(cause)
    return found


def describe_failure(error: BaseException) -> str:
    """Return in a few words why a request got no answer: what the system or TLS reported, or an exception's name.

    The words hold no part of the request.

    Args:
        error: What the HTTP client raised.
    """
    for cause in causes_of(error):
        one = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause  # one for each address of a host
        if isinstance(one, ssl.SSLError) and not type(one).__module__.startswith("ssl"):
            continue  # aiohttp's, which has none of the attributes; its cause is the one of the standard library
        if isinstance(one, socket.gaierror):
            return "the name of the host cannot be resolved"
        if isinstance(one, TimeoutError):
            return "timeout"
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"the server's certificate is not trusted: {one.verify_message}"
        if isinstance(one, ssl.SSLError):
            if one.reason in _NO_TLS:
                return "the port does not speak TLS; is the URL http:// and not https://?"
            return f"the TLS handshake failed: {(one.reason or 'no reason given').replace('_', ' ').lower()}"
        if isinstance(one, OSError) and one.errno:
            return os.strerror(one.errno).lower()
    return _WORDS.get(type(error).__name__, type(error).__name__)


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
