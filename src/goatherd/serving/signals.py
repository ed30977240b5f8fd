"""Handle the signals that stop a process, and end the tasks that run inside it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar

from goatherd.errors import ConfigurationError

T = TypeVar("T")

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Record the signals to stop (SIGTERM, SIGINT) that a process receives.

    Attributes:
        stop: Event that the first signal sets.
        hurry: Event that the second signal sets, to stop at once.
        on_repeat: Called for the second signal and for every later one.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.on_repeat: list[Callable[[], object]] = []

    def receive_signal(self) -> None:
        """Record that the process has received one signal to stop."""
        if self.stop.is_set():
            self.hurry.set()
            for action in self.on_repeat:
                action()
        self.stop.set()


@contextmanager
def handle_signals(handlers: Mapping[int, Callable[[], object]]) -> Iterator[None]:
    """Call a function for each signal that arrives while the ``with`` block runs.

    Raises:
        ConfigurationError: The event loop is not that of the main thread.
    """
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for number, handler in handlers.items():
            try:
                loop.add_signal_handler(number, handler)
            except (RuntimeError, ValueError) as error:
                raise ConfigurationError(
                    "signals can be handled in the main thread only",
                    hint="Make the call in the main thread. `async with server.listen():` serves in any thread.",
                ) from error
            stack.callback(loop.remove_signal_handler, number)
        yield


@contextmanager
def watch_stop_signals() -> Iterator[StopSignals]:
    """Record SIGTERM and SIGINT while the ``with`` block runs, so that these signals do not end the process."""
    received = StopSignals()
    with handle_signals(dict.fromkeys(STOP_SIGNALS, received.receive_signal)):
        yield received


async def cancel_tasks(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel those tasks that are not done, and wait for their end."""
    running = [task for task in tasks if task is not None and not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


async def run_unless_set(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Run a coroutine and return its result; once `stop` is set, cancel it, wait for its end and return None."""
    running, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return running.result() if running.done() else None
    finally:
        running.cancel()
        stopping.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)
