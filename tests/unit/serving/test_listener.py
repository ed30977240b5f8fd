"""A listener that stops: every connection that it accepted ends, whenever it was accepted."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest
import uvloop

from goatherd.clock import SystemClock
from goatherd.serving.caller_limiter import CallerLimiter, Receive, Scope, Send
from goatherd.serving.caller_limits import CallerLimits
from goatherd.serving.listener import HTTPListener
from tests.deadlines import HANG
from tests.fakes.faults import FaultProxy

Ending = Callable[[], Awaitable[None]]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def listening(how: str) -> AsyncIterator[tuple[int, Ending]]:
    """Listen; yield the port and a function that stops the listener."""
    if how == "proxy":
        async with FaultProxy("127.0.0.1", 9) as proxy:
            yield proxy.port, proxy.stop
        return
    listener = HTTPListener(answer, "127.0.0.1", 0, limiter=CallerLimiter(CallerLimits(), clock=SystemClock()))
    await listener.start()
    yield listener.port, listener.close if how == "close" else lambda: listener.stop(timedelta(0))
    await listener.stop(timedelta(0))


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Disable garbage collection, so that it does not close forgotten connections."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("how", ["stop", "close", "proxy"])
@pytest.mark.parametrize("rounds", range(6))
@pytest.mark.usefixtures("without_collector")
def test_a_client_that_is_just_being_accepted_is_cut_off(
    rounds: int, how: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def connect_and_stop() -> None:
        async with asyncio.timeout(HANG), listening(how) as (port, end):
            with socket.socket() as client:
                client.setblocking(False)
                # On loopback the system connects at once; only accepting takes rounds of the loop.
                assert client.connect_ex(("127.0.0.1", port)) in {0, errno.EINPROGRESS}
                for _ in range(rounds):
                    await asyncio.sleep(0)
                await end()
                with suppress(ConnectionError):
                    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(connect_and_stop())


async def test_the_date_of_answers_is_renewed_at_each_whole_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """`goatherd doctor` compares the servers' clocks by this date."""
    monkeypatch.setattr(SystemClock, "now_ms", lambda _: 1_000_643)
    limiter = CallerLimiter(CallerLimits(), clock=SystemClock())
    listener = HTTPListener(answer, "127.0.0.1", 0, limiter=limiter, has_date=True)
    await listener.start()
    try:
        assert listener._state.default_headers == [(b"date", b"Thu, 01 Jan 1970 00:16:40 GMT")]
        assert listener._clock_timer is not None
        assert listener._clock_timer.when() - asyncio.get_running_loop().time() <= 0.357
    finally:
        await listener.close()
