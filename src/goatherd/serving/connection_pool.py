"""A connection pool of an HTTP client that loses no connection, whenever a task is cancelled or the pool is closed.

The library httpx2 closes connections one after another, and expects to be cancelled only through the scopes of the
library anyio. If a task is cancelled meanwhile in the way of asyncio, the other connections stay open. They also do if
a pool is closed while a request opens a connection; and the other requests of the pool fail.

Known limit: a connection whose TLS handshake is cancelled is closed only by the garbage collector or by the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")


class ConnectionPool:
    """A connection pool; also an async context manager for a request, which returns the HTTP client.

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

    async def __aexit__(self, *_: object) -> None:
        self._requests -= 1
        await self._close_unused()

    async def run(self, exchange: Callable[[httpx2.AsyncClient], Awaitable[T]]) -> T:
        """Send a request and read its answer with `exchange`; return what it returns.

        The exchange runs in its own task. If the caller is cancelled, the exchange is cancelled too, and has ended when
        this method ends.
        """
        async with self as http:
            return await _run_to_its_end(lambda: exchange(http))

    async def aclose(self) -> None:
        """Close the connections now, or at the end of the last request that uses them."""
        self._is_closed = True
        await self._close_unused()

    async def _close_unused(self) -> None:
        if self._is_closed and not self._requests:
            await _run_to_its_end(self.http.aclose)


async def _run_to_its_end(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` in a task; if the caller is cancelled, cancel the task through a scope of anyio, and wait for it."""
    import anyio

    scope = anyio.CancelScope()

    async def run() -> T:
        with scope:
            return await work()
        raise asyncio.CancelledError

    task = asyncio.create_task(run())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        scope.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # or asyncio would log it: it may have failed at the same time
        raise
