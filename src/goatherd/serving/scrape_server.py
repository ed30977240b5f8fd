"""Serve a WSGI application, such as that of the metrics, in threads, with a limit on connections and their duration.

It is for processes with few open files and threads to spare, which do not answer clients: the standard library's server
starts a thread for each connection, and waits for its request indefinitely.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

CONNECTIONS: Final = 16
"""Maximum number of open connections; a further one closes the oldest."""
SECONDS: Final = 10.0
"""How long a connection stays open at most, which is the time that Prometheus waits for an answer."""
_POLL_SECONDS: Final = 0.5


class _Handler(WSGIRequestHandler):
    timeout = SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        """Log nothing."""


class ScrapeServer(ThreadingMixIn, WSGIServer):
    """A WSGI server with at most `CONNECTIONS` open connections, none of them longer than `SECONDS`.

    SECURITY: callers must not be able to use up the process's file descriptors and threads
    (tests/unit/serving/test_scrape_server.py).

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 selects a free one.
        app: The WSGI application.

    Raises:
        OSError: The address cannot be bound.
    """

    daemon_threads = True
    request_queue_size = 128  # with the standard library's 5, a scrape waits for seconds beside many connections

    def __init__(self, host: str, port: int, app: Callable[..., Iterable[bytes]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._opened: dict[socket.socket, float] = {}
        super().__init__((host, port), _Handler)
        self.set_app(app)

    @contextmanager
    def running(self) -> Iterator[int]:
        """Answer requests in a thread while the block runs, and yield the port."""
        thread = Thread(target=self.serve_forever, args=(_POLL_SECONDS,), name="scrapes", daemon=True)
        thread.start()
        try:
            yield self.server_port
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        opened = list(self._opened)
        for oldest in opened[: max(0, len(opened) + 1 - CONNECTIONS)]:
            self._end(oldest)
        self._opened[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._opened.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        now = time.monotonic()
        for request, began in list(self._opened.items()):
            if now - began > SECONDS:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing of a connection that was cut off, by the caller or by this server."""
        del request, client_address

    def _end(self, request: socket.socket) -> None:
        """End a connection, whose thread then closes it."""
        self._opened.pop(request, None)
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)
