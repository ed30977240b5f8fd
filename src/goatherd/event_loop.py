"""Run a coroutine without an event loop if it never has to wait.

Importing asyncio takes longer than all the rest of a short command. A coroutine that only reads files has nothing to
wait for: it runs from its first line to its last without an event loop. The coroutine has the same code with and
without an event loop; it calls `find_running_loop` to find out whether it can use the threads and timeouts of a loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

Result = TypeVar("Result")


class EventLoopNeededError(RuntimeError):
    """A coroutine was run without an event loop, but needs one.

    The coroutine must raise the error before it does anything else, because `run_reader` then runs it again in an event
    loop.
    """


def find_running_loop() -> AbstractEventLoop | None:
    """Return the running event loop; None if there is none. Does not import asyncio."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        loop: AbstractEventLoop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop


def run_reader(start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine that only reads a store: without an event loop if the store needs none, else with asyncio.

    Args:
        start: Makes the coroutine. It is called again if the store needs an event loop.
    """
    try:
        return _run_without_loop(start())
    except EventLoopNeededError:
        import asyncio

        return asyncio.run(start())


def _run_without_loop(coroutine: Coroutine[Any, Any, Result]) -> Result:
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine without an event loop has waited for something")
