"""Signals to stop: the first requests a graceful stop, the second ends it at once, and afterwards Python's handlers are
restored."""

from __future__ import annotations

import asyncio
import os
import signal

from goatherd.serving.signals import handle_signals, run_unless_set, watch_stop_signals
from tests.deadlines import HANG


async def test_the_first_signal_stops_and_the_second_hurries() -> None:
    repeated: list[int] = []
    with watch_stop_signals() as received:
        received.on_repeat.append(lambda: repeated.append(1))
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(HANG):
            await received.stop.wait()
        assert not received.hurry.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(HANG):
            await received.hurry.wait()
        assert repeated == [1]


async def test_work_has_its_result_unless_a_signal_ends_it() -> None:
    begun = asyncio.Event()

    async def work(seconds: float) -> float:
        begun.set()
        await asyncio.sleep(seconds)
        return seconds

    with watch_stop_signals() as received:
        assert await run_unless_set(received.stop, work(0)) == 0
        begun.clear()
        running = asyncio.create_task(run_unless_set(received.stop, work(10 * HANG)))
        async with asyncio.timeout(HANG):
            await begun.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            assert await running is None


async def test_after_the_block_signals_have_python_s_own_handlers() -> None:
    with watch_stop_signals():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_each_signal_has_its_own_handler() -> None:
    heard: list[str] = []
    done = asyncio.Event()
    with handle_signals({signal.SIGUSR1: lambda: heard.append("one"), signal.SIGUSR2: done.set}):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        async with asyncio.timeout(HANG):
            await done.wait()
    assert heard == ["one"]
