"""Handle the signals that stop a process inside a block, and restore Python's handlers after it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """The signals to stop that a process has received.

    Attributes:
        stop: Set by the first signal.
        hurry: Set by the second one.
        on_repeat: Called by the second signal and by every later one.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.on_repeat: list[Callable[[], object]] = []

    def receive_signal(self) -> None:
        """Record one signal."""
        if self.stop.is_set():
            self.hurry.set()
            for action in self.on_repeat:
                action()
        self.stop.set()


@contextmanager
def handle_signals(handlers: Mapping[int, Callable[[], object]]) -> Iterator[None]:
    """Call a function for each signal that arrives inside the block. Only in the main thread's event loop."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
            stack.callback(loop.remove_signal_handler, number)
        yield


@contextmanager
def watch_stop_signals() -> Iterator[StopSignals]:
    """Record SIGTERM and SIGINT inside the block, instead of ending the process."""
    received = StopSignals()
    with handle_signals(dict.fromkeys(STOP_SIGNALS, received.receive_signal)):
        yield received
