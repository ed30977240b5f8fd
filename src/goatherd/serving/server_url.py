"""Parse the addresses that an operator gives: the URL of a server or a health probe, or an address to listen on.

This module parses the addresses in flags, environment variables, the configuration file and Python programs. Pure: no
name is resolved. Addresses that stand for any number of servers (``dns://…``, ``k8s-service://…``) belong to
`goatherd.cluster.discovery`.

SECURITY: a message never repeats a user name, a password or a query (tests/unit/serving/test_server_url.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from goatherd.errors import ConfigurationError

__all__ = [
    "ServerURL",
    "check_http_url",
    "masked",
    "one_or_more",
    "parse_listen_address",
    "parse_listen_host",
    "parse_server_url",
]

FORM: Final = "Write it as a URL with a scheme, such as http://10.0.0.2:8080."

_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MOST_NAME_CHARS: Final = 253


def one_or_more(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return the strings of an argument that takes several; a single string is one, and not its characters."""
    return (given,) if isinstance(given, str) else tuple(given)


class ServerURL(NamedTuple):
    """The URL of one server. Its string form has no slash at the end.

    Attributes:
        scheme: ``http`` or ``https``.
        host: A name, or a numeric address without brackets; lower case.
        port: The port, if the URL has one.
    """

    scheme: str
    host: str
    port: int | None = None

    @property
    def authority(self) -> str:
        """Return the host, in brackets if it is an IPv6 address, and the port if there is one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def connect_port(self) -> int:
        """Return the port to connect to: the URL's port, or else the default port of its scheme."""
        return self.port or (443 if self.scheme == "https" else 80)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_server_url(text: str, *, hint: str = FORM) -> ServerURL:
    """Read the URL of a GoatDB server: scheme, host, and a port if it is not the scheme's own.

    Args:
        text: The URL. A single slash at its end is ignored.
        hint: The hint of the error, unless there is a more specific one.

    Raises:
        ConfigurationError: The text is not such a URL. The message names the part that is wrong.
    """
    scheme, authority, rest = _split_url(text, hint)
    # In the whole text: a password may hold a slash or a question mark, which end the authority.
    if "@" in text:
        problem = "contains a user name or a password; requests to a server are signed and need neither"
        raise _make_error(text, problem, hint)
    if rest not in ("", "/") and "," not in authority:
        part = {"/": "a path", "?": "a query", "#": "a fragment"}[rest[0]]
        raise _make_error(text, f"has {part}; the URL of a server ends after the port", hint)
    return _make_server_url(text, scheme, authority, hint)


def check_http_url(text: str, *, hint: str) -> str:
    """Return `text` if it is an http or https URL; path, query and credentials are allowed.

    Raises:
        ConfigurationError: `text` is not such a URL.
    """
    scheme, authority, _ = _split_url(text, hint)
    _make_server_url(text, scheme, authority.rpartition("@")[2], hint)
    return text


def parse_listen_host(text: str) -> str:
    """Read the address of this machine to listen on: a numeric address, or a name; IPv6 with or without brackets.

    Raises:
        ConfigurationError: The text is a URL, contains a port, or is not a host.
    """
    hint = "Give an address that this machine has, such as 127.0.0.1; 0.0.0.0 is all of them. The port is --port."
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    problem = "is empty" if not text else "is a URL" if "://" in text or "@" in text else _host_problem(host)
    if problem is not None and re.fullmatch(r"(\[.*\]|[^:]*):\d+", text):
        problem = "has a port"
    if problem is not None:
        raise ConfigurationError(f"the address to listen on {_mask_authority(text)} {problem}", hint=hint)
    return host


def parse_listen_address(text: str) -> tuple[str, int]:
    """Parse ``ADDRESS:PORT``, such as ``127.0.0.1:9464`` or ``[::1]:9464``; port 0 selects a free one.

    Raises:
        ConfigurationError: The text is not of this form.
    """
    hint = "Write ADDRESS:PORT, such as 127.0.0.1:9464; 0.0.0.0 is all addresses of this machine, port 0 a free one."
    host, colon, port = text.rpartition(":")
    if "://" in text or "@" in text:
        problem: str | None = "is a URL"
    elif not colon or (":" in host and not host.startswith("[")):
        problem = "has no port" if _host_problem(text) is None else "is not ADDRESS:PORT"
    else:
        problem = _port_problem(port, lowest=0)
    if problem is not None:
        raise ConfigurationError(f"the address to listen on {_mask_authority(text)} {problem}", hint=hint)
    return parse_listen_host(host), int(port)


def masked(text: str) -> str:
    """Return an address in a form that a message may show: without user name, password and query."""
    scheme, colon, rest = text.partition("://")
    if not colon:
        scheme, rest = "", text
    if "@" in rest:
        rest = "…@" + rest.rpartition("@")[2]
    rest, question, _ = rest.partition("?")
    return f"{scheme}{colon}{rest}{'?…' if question else ''}"


def _split_url(text: str, hint: str) -> tuple[str, str, str]:
    """Split a URL into its scheme, its authority and the rest."""
    if not isinstance(text, str):
        raise ConfigurationError(f"the URL must be a string, not a {type(text).__name__}", hint=hint)
    if not text.strip():
        raise ConfigurationError("the URL is empty", hint=hint)
    match = _URL.fullmatch(text)
    if match is None:
        scheme, colon, _ = text.partition("://")
        if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
            raise _make_error(text, f"has the scheme {scheme!r}; it must be http:// or https://", hint)
        if re.match(r"https?:", text, re.IGNORECASE):
            raise _make_error(text, "needs two slashes after the scheme", hint)
        raise _make_error(text, "has no scheme; it must begin with http:// or https://", hint)
    if any(char.isspace() or not char.isprintable() for char in text):
        raise _make_error(text, "contains a space or a control character", hint)
    return match["scheme"].lower(), match["authority"], match["rest"]


def _make_server_url(text: str, scheme: str, authority: str, hint: str) -> ServerURL:
    if "," in authority:
        several = "Give the URL of each server by itself. Only in an environment variable a comma separates them."
        raise _make_error(text, "names several servers", several)
    if authority.startswith("["):
        host, bracket, tail = authority[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise _make_error(text, "has a bracket that does not close", hint)
        colon, port = tail[:1], tail[1:]
        problem = _host_problem(host) if ":" in host else "has brackets around what is not an IPv6 address"
    else:
        if authority.count(":") > 1:
            raise _make_error(text, "needs brackets around its IPv6 address", "Write it as http://[2001:db8::2]:8080.")
        host, colon, port = authority.partition(":")
        problem = "has no host" if not host else _host_problem(host)
    problem = problem or (_port_problem(port, lowest=1) if colon else None)
    if problem is not None:
        raise _make_error(text, problem, hint)
    return ServerURL(scheme, host.lower(), int(port) if colon else None)


def _host_problem(host: str) -> str | None:
    if ":" in host:
        try:
            IPv6Address(host)
        except ValueError:
            return f"has {host!r} where an IPv6 address must be"
        return None
    if not host.isascii():
        try:
            ascii_name = host.encode("idna").decode("ascii")
        except UnicodeError:
            return f"has a host that is not a valid name: {host!r}"
        return f"has a host that is not in ASCII; write {ascii_name}"
    if re.fullmatch(r"[0-9.]+", host):
        try:
            IPv4Address(host)
        except ValueError:
            return f"has {host!r} where an IPv4 address must be"
        return None
    labels = host.removesuffix(".").split(".")
    if len(host) > _MOST_NAME_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        return f"has a host that is not a valid name: {host[:60]!r}"
    return None


def _port_problem(port: str, *, lowest: int) -> str | None:
    if not port:
        return "has a colon without a port"
    if not port.isascii() or not port.isdecimal():
        return f"has {port[:20]!r} where the port must be a number"
    if len(port) > 5 or not lowest <= int(port) <= 65_535:
        return f"has the port {port[:20]}; a port is {lowest} to 65535"
    return None


def _make_error(text: str, problem: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"the URL {_mask_authority(text)} {problem}", hint=hint)


def _mask_authority(text: str) -> str:
    return repr(masked(text)[:200])
