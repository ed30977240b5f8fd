"""Wait a moment for the answer to a request whose caller was cancelled.

A write that was sent may take effect after its caller has stopped waiting. Once its answer has arrived, the next read
sees whether it was done. The caller sets the deadline of the request itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

MOMENT: Final = timedelta(seconds=1)


async def finish_request(work: Coroutine[Any, Any, Result], moment: timedelta = MOMENT) -> Result:
    """Await a request. If cancelled, wait a moment for its answer, then abandon it and pass the cancellation on."""
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        try:
            await asyncio.wait({running}, timeout=moment.total_seconds())
        finally:
            running.add_done_callback(retrieve_outcome)
            running.cancel()
        raise


def retrieve_outcome(running: asyncio.Future[Any]) -> None:
    """Retrieve the outcome of a task that is not awaited, so that asyncio does not warn about it."""
    if not running.cancelled():
        running.exception()
