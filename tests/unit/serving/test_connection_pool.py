"""Whenever a request or the closing of a pool is cancelled, no connection stays open."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from goatherd.serving.connection_pool import ConnectionPool
from tests.open_connections import connections_left_open

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REQUESTS = 3

Cancelled = Callable[[ConnectionPool, Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]


async def one_more_request(pool: ConnectionPool, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await ask()


async def the_closing(pool: ConnectionPool, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await pool.aclose()


async def cancelled_after(steps: int, cancelled: Cancelled, *, is_server_gone: bool) -> bool:
    """Make some connections, and cancel what uses them after `steps` turns of the loop; return whether it had ended."""
    accepted: list[asyncio.StreamWriter] = []
    all_sent = asyncio.Barrier(REQUESTS)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                if len(accepted) <= REQUESTS:
                    await all_sent.wait()
                writer.write(ANSWER)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = "http://{}:{}/".format(*server.sockets[0].getsockname())
        pool = ConnectionPool(httpx2.AsyncClient(trust_env=False, timeout=60))

        async def ask() -> None:
            async def exchange(http: httpx2.AsyncClient) -> None:
                assert (await http.get(url)).content == b"ok"

            await pool.run(exchange)

        await asyncio.gather(*(ask() for _ in range(REQUESTS)))
        assert len(accepted) == REQUESTS
        if is_server_gone:
            for writer in accepted:
                writer.close()
                await writer.wait_closed()
        task = asyncio.create_task(cancelled(pool, ask))
        for _ in range(steps):
            await asyncio.sleep(0)
        has_ended = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await pool.aclose()
        for writer in accepted:
            writer.close()
    return has_ended


@pytest.mark.parametrize(
    ("cancelled", "is_server_gone"), [(one_more_request, True), (the_closing, False)], ids=["request", "closing"]
)
def test_no_connection_stays_open_whenever_it_is_cancelled(cancelled: Cancelled, is_server_gone: bool) -> None:
    for steps in range(12):
        asyncio.run(cancelled_after(steps, cancelled, is_server_gone=is_server_gone))
        assert connections_left_open() == [], f"cancelled after {steps} turns of the event loop"


async def test_what_is_cancelled_has_ended_and_other_requests_go_on() -> None:
    ended = asyncio.Event()
    pool = ConnectionPool(httpx2.AsyncClient(trust_env=False))

    async def never(http: httpx2.AsyncClient) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def later(http: httpx2.AsyncClient) -> str:
        await ended.wait()
        return "done"

    first, second = asyncio.create_task(pool.run(never)), asyncio.create_task(pool.run(later))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await pool.aclose()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert ended.is_set()
    assert await second == "done"
    assert pool.http.is_closed


async def test_the_error_of_an_exchange_whose_caller_was_cancelled_is_not_logged() -> None:
    begun, reported = asyncio.Event(), list[object]()

    async def exchange(_: httpx2.AsyncClient) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise httpx2.ConnectError("all connection attempts failed") from None

    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    pool = ConnectionPool(httpx2.AsyncClient(trust_env=False))
    task = asyncio.create_task(pool.run(exchange))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    await asyncio.sleep(0)  # the loop refers to it until then
    gc.collect()
    assert reported == []
    await pool.aclose()


async def test_the_error_of_an_exchange_is_the_caller_s() -> None:
    pool = ConnectionPool(httpx2.AsyncClient(trust_env=False), is_closed=True)

    async def failing(http: httpx2.AsyncClient) -> None:
        raise httpx2.ReadError("cut")

    with pytest.raises(httpx2.ReadError, match="cut"):
        await pool.run(failing)
    assert pool.http.is_closed
