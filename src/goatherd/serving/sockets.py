"""Bind TCP sockets to listen on, and find the addresses of this machine."""

from __future__ import annotations

import errno
import re
import socket
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from goatherd.errors import ConfigurationError, NodeError

_OTHER_FILES: Final = 512
"""Open files other than callers' connections: logs, the store, peers, the server behind a door."""
_LOCAL_V4: Final = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")


def bind(host: str, port: int) -> tuple[socket.socket, int, str]:
    """Bind a TCP socket to an address without listening yet.

    Args:
        host: A numeric address or a host name; an IPv6 address without brackets.
        port: Port to bind; 0 selects a free one.

    Returns:
        The socket, which the caller must close; the port; and the URL, with the actual port.

    Raises:
        ConfigurationError: The port is not an integer from 0 to 65535.
        NodeError: The address cannot be bound.
    """
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigurationError(
            f"port must be an integer from 0 to 65535, not {port!r}",
            hint="Convert a string, such as the value of an environment variable, by int(…). 0 selects a free port.",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's delay off only for sockets that say that they are TCP; it costs 40 ms an answer.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise cannot_listen(f"{host}:{port}", error) from error
    port = taken.getsockname()[1]
    return taken, port, f"http://{f'[{host}]' if ':' in host else host}:{port}"


def cannot_listen(address: str, error: OSError) -> NodeError:
    """Return the error to raise for an address that could not be bound."""
    if error.errno == errno.EADDRINUSE:
        hint = "Another process listens on this port. Stop that process, or choose another port; 0 selects a free port."
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "Only root may use ports below 1024. Choose a port from 1024 to 65535."
    else:
        hint = "Give an address that this machine has, such as 127.0.0.1; 0.0.0.0 means all of them."
    return NodeError(f"cannot listen on {address}: {error.strerror or error}", hint=hint)


def find_machine_addresses() -> list[str]:
    """Return this machine's numeric addresses, except loopback, at which other machines may reach it.

    On Linux the result has all such addresses, on other systems only some.
    """
    found: dict[str, None] = {}
    with suppress(OSError):
        for _, _, _, _, address in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            found[str(address[0]).partition("%")[0]] = None
    with suppress(OSError):
        found |= dict.fromkeys(_LOCAL_V4.findall(Path("/proc/net/fib_trie").read_text()))
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found[str(IPv6Address(bytes.fromhex(line.split()[0])))] = None
    return [one for one in found if _is_reachable(one)]


def allow_open_files(connections: int) -> int:
    """Raise this process's limit of open files to suit a number of connections; return how many connections fit in it.

    Shells and service managers often start a process with a limit of 1024 files, which the process may raise itself.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return connections if soft == resource.RLIM_INFINITY else soft - _OTHER_FILES


def _is_reachable(address: str) -> bool:
    found = ip_address(address)
    # A link-local address needs the name of an interface, which a URL cannot have.
    return not (found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified)
