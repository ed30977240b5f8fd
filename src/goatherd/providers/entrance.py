"""Opens for the first who comes in and closes behind the last.

What it is: the count behind an async context manager that several enter. What it is not: a lock; those who are inside
do not wait for each other. Rules: nobody is inside before opening has ended, or while it closes; where opening fails,
it fails for whoever did it, and the next one tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Work = Callable[[], Awaitable[None]]


class Entrance:
    """Who is inside, of one thing that is opened and closed."""

    def __init__(self) -> None:
        self._inside = 0
        self._busy: asyncio.Future[None] | None = None

    async def enter(self, opening: Work) -> None:
        """Come in; do `opening` if nobody is there, and wait for whoever does it already."""
        while self._busy is not None:
            await asyncio.wait({self._busy})
        if self._inside == 0:
            await self._alone(opening)
        self._inside += 1

    async def leave(self, closing: Work) -> None:
        """Go out; do `closing` if nobody else is there."""
        self._inside -= 1
        if self._inside == 0:
            await self._alone(closing)

    async def _alone(self, work: Work) -> None:
        busy = self._busy = asyncio.get_running_loop().create_future()
        try:
            await work()
        finally:
            self._busy = None
            busy.set_result(None)
