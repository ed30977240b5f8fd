"""Wait until something holds, however slow the machine is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

from tests.deadlines import HANG


async def until(condition: Callable[[], object], why: Callable[[], str] = lambda: "") -> None:
    """Wait until a condition holds, which may be asynchronous.

    Raises:
        AssertionError: It did not hold in time; `why` says how things are then.
    """
    try:
        async with asyncio.timeout(2 * HANG) as limit:
            while True:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"it did not happen: {why()}") from None
