"""Servers that fail on purpose, for signers that speak HTTP: cut, slow and unreachable, on a port of this machine.

A world runs its checks in an event loop of its own, so these servers run in threads.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol


class Silenceable(Protocol):
    """A fake that answers once the event `silence` is set, if there is one."""

    silence: threading.Event | None


@contextmanager
def silent(fake: Silenceable) -> Iterator[None]:
    """Let a fake answer only after the block."""
    fake.silence = over = threading.Event()
    yield
    fake.silence = None
    over.set()


@contextmanager
def unreachable() -> Iterator[int]:
    """Yield a port that refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """Yield the port of a server that gives the same bytes to every request, then closes; with None it says nothing."""
    if answer is not None:
        # Otherwise the client may send its next request on the connection that is just being closed.
        answer = answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        held: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    held.append(client)
                    if answer is not None:
                        _read_request(client)
                        client.sendall(answer)
                        client.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            for client in held:
                client.close()
            thread.join()


def _read_request(client: socket.socket) -> None:
    """Read a whole request: a socket that is closed with bytes unread resets the connection, and the answer is lost."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += (more := client.recv(65536))
        if not more:
            return
    head, _, body = found.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    left = int(length[1]) - len(body) if length else 0
    while left > 0 and (more := client.recv(65536)):
        left -= len(more)


CUT_JSON = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"data": {"signature": "va'
