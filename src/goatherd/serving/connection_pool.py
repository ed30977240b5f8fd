"""A connection pool of an HTTP client that is closed only when no request uses it any more.

If a pool of the library httpx2 is closed while a request opens a connection, nothing ever closes this connection; and
the other requests of the pool fail.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2


class ConnectionPool:
    """A connection pool; an async context manager for each request, which returns the HTTP client.

    Args:
        http: The HTTP client whose connections these are.
        is_closed: Whether to close the connections at the end of the first request.

    Attributes:
        http: The HTTP client.
    """

    def __init__(self, http: httpx2.AsyncClient, *, is_closed: bool = False) -> None:
        self.http = http
        self._requests = 0
        self._is_closed = is_closed

    async def __aenter__(self) -> httpx2.AsyncClient:
        self._requests += 1
        return self.http

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests -= 1
        await self._close_unused()

    async def aclose(self) -> None:
        """Close the connections now, or at the end of the last request that uses them."""
        self._is_closed = True
        await self._close_unused()

    async def _close_unused(self) -> None:
        if self._is_closed and not self._requests:
            await self.http.aclose()
