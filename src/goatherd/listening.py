"""An address to listen on: the one place that binds a TCP socket. It accepts nothing."""

from __future__ import annotations

import socket


def bind(host: str, port: int) -> tuple[socket.socket, int, str]:
    """Take an address without listening yet.

    Args:
        host: A numeric address or a name; IPv6 without brackets.
        port: 0 takes a free one.

    Returns:
        The socket, which is the caller's to close; the port; and the URL, with the port that was taken.

    Raises:
        OSError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's delay off only for sockets that say that they are TCP; it costs 40 ms an answer.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except BaseException:
        taken.close()
        raise
    port = taken.getsockname()[1]
    return taken, port, f"http://{f'[{host}]' if ':' in host else host}:{port}"
