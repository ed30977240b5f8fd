"""The fault proxy does what each mode says, so that the tests behind it prove something."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.deadlines import HANG
from tests.fakes.faults import Fault, FaultProxy, Mode


class Echo:
    """Answers each line with ten bytes, and records the lines."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.got.append(line)
                writer.write(b"0123456789")
        except ConnectionResetError:
            pass
        finally:
            writer.close()
            await asyncio.sleep(0)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    async with server:
        yield echo


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


async def say(proxy: FaultProxy, line: bytes = b"hello\n", *, patience: float = HANG) -> bytes:
    """Send a line; return what comes back until ten bytes or the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(line)
        async with asyncio.timeout(patience):
            return await reader.readexactly(10)
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_ok_passes_both_ways(proxy: FaultProxy, echo: Echo):
    assert await say(proxy) == b"0123456789"
    assert (echo.got, proxy.hits, proxy.connections) == ([b"hello\n"], 0, 1)


async def test_a_reset_reaches_the_client_and_nothing_the_server(proxy: FaultProxy, echo: Echo):
    proxy.fault = Fault(mode=Mode.RESET)
    with pytest.raises(ConnectionResetError):
        await say(proxy)
    assert echo.got == []


@pytest.mark.slow
async def test_a_black_hole_swallows(proxy: FaultProxy, echo: Echo):
    proxy.fault = Fault(mode=Mode.BLACK_HOLE)
    with pytest.raises(TimeoutError):
        await say(proxy, patience=0.5)
    assert proxy.hits == 1
    assert echo.got == []


async def test_a_lost_reply_is_of_something_that_took_effect(proxy: FaultProxy, echo: Echo):
    proxy.fault = Fault(mode=Mode.REPLY_LOST)
    with pytest.raises(ConnectionResetError):
        await say(proxy)
    assert echo.got == [b"hello\n"]


@pytest.mark.parametrize("after", [0, 4, 9, 10])
async def test_a_cut_lets_so_many_bytes_through(proxy: FaultProxy, echo: Echo, after: int):
    proxy.fault = Fault(mode=Mode.CUT, after=after)
    assert await say(proxy) == b"0123456789"[:after]
    assert echo.got == [b"hello\n"]


async def test_a_delay_comes_late(proxy: FaultProxy):
    proxy.fault = Fault(mode=Mode.DELAY, delay=timedelta(milliseconds=100))
    begun = asyncio.get_running_loop().time()
    assert await say(proxy) == b"0123456789"
    assert asyncio.get_running_loop().time() - begun >= 0.1


async def test_a_fault_befalls_what_matches_and_so_often_as_it_says(proxy: FaultProxy, echo: Echo):
    proxy.fault = Fault(mode=Mode.CUT, after=1, match=b"POST", times=2)
    said = [await say(proxy, line) for line in (b"GET\n", b"POST\n", b"GET\n", b"POST\n", b"POST\n")]
    assert [len(each) for each in said] == [10, 1, 10, 1, 10]
    assert (proxy.hits, proxy.fault.mode) == (2, Mode.OK)


async def test_a_stopped_proxy_refuses(proxy: FaultProxy):
    await proxy.stop()
    with pytest.raises(ConnectionRefusedError):
        await say(proxy)
