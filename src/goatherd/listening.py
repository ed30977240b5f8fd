"""An address to listen on: the one place that binds a TCP socket. It accepts nothing."""

from __future__ import annotations

import errno
import socket

from goatherd.errors import NodeError


def bind(host: str, port: int) -> tuple[socket.socket, int, str]:
    """Take an address without listening yet.

    Args:
        host: A numeric address or a name; IPv6 without brackets.
        port: 0 takes a free one.

    Returns:
        The socket, which is the caller's to close; the port; and the URL, with the port that was taken.

    Raises:
        NodeError: The address cannot be had.
    """
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
    """Make the error for an address that could not be bound."""
    if error.errno == errno.EADDRINUSE:
        hint = "Another process listens on this port. Stop that process, or choose another port; 0 is a free one."
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "Ports below 1024 need the rights of root. Choose a port from 1024 to 65535."
    else:
        hint = "Give an address that this machine has, such as 127.0.0.1; 0.0.0.0 is all of them."
    return NodeError(f"cannot listen on {address}: {error.strerror or error}", hint=hint)
