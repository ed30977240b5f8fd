"""When the caller of a request is cancelled, wait briefly for the answer to that request.

A write that was already sent can take effect after its caller has stopped waiting. Once its answer has arrived, the
next read reliably shows whether the write took effect. The caller sets the deadline of the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

MOMENT: Final = timedelta(seconds=1)


async def finish_request(work: Awaitable[Result], moment: timedelta = MOMENT) -> Result:
    """Await a request to a store. If cancelled, wait up to `moment` for its answer, then cancel it and re-raise."""
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
    """Retrieve the outcome of an asyncio task that is not awaited, so that asyncio does not warn about it."""
    if not running.cancelled():
        running.exception()
