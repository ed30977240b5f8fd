"""A web server whose health check answers as a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class HealthPage:
    """The health check.

    Attributes:
        url: Where it is.
        requests: How many requests it has answered.
    """

    url: str = ""
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serve_health(is_healthy: Callable[[int], bool]) -> Iterator[HealthPage]:
    """Serve a health check on loopback: status 200 if `is_healthy` says so of the number of the request, else 503.

    Args:
        is_healthy: Called with 1 for the first request, 2 for the second, and so on.
    """
    page = HealthPage()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with page.lock:
                page.requests += 1
                number = page.requests
            self.send_response(200 if is_healthy(number) else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        page.url = f"http://127.0.0.1:{server.server_port}/healthy"
        try:
            yield page
        finally:
            server.shutdown()
            thread.join()
