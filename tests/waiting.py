"""Wait until a condition holds, also on a slow machine."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

from tests.deadlines import HANG


async def until(condition: Callable[[], object], why: Callable[[], str] = lambda: "") -> None:
    """Wait until a condition holds.

    Args:
        condition: Called repeatedly until its result, or the awaited result, is true.
        why: Describes the state at the timeout, for the error.

    Raises:
        AssertionError: The condition did not hold in time.
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
