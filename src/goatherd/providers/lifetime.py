"""Open a shared resource for its first user and close it after its last, or at the end of the event loop.

The module counts the users. A resource belongs to the event loop in which it was opened. It is not used before opening
has ended, or while it closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Work = Callable[[], Awaitable[None]]


class LifetimeMisuseError(Exception):
    """A resource was used after it was closed, or in another event loop. The message completes "the provider …"."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class SharedLifetime:
    """Opens a shared resource on first use and closes it after the last.

    It counts the users of one async context manager. If opening fails, the user that opened gets the error, and the
    next user tries again. A caller outside the context manager uses `hold_open`.
    """

    def __init__(self) -> None:
        self._users = 0
        self._busy: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._holder: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._is_closed = False

    async def enter_resource(self, opening: Work) -> None:
        """Begin to use the resource: the first user runs `opening`; the others wait until it has ended."""
        self._forget_ended_loop()
        while self._busy is not None:
            await asyncio.wait({self._busy})
        if self._users == 0:
            await self._run_alone(opening)
            self._loop, self._is_closed = asyncio.get_running_loop(), False
        self._users += 1

    async def leave_resource(self, closing: Work) -> None:
        """Stop using the resource: the last user runs `closing`; calls are then rejected until it is entered again."""
        self._users -= 1
        if self._users == 0:
            self._is_closed = True
            await self._run_alone(closing)

    async def hold_open(self, opening: Work, closing: Work) -> None:
        """Open the resource for a caller outside the context manager; it is closed when the event loop ends.

        Raises:
            LifetimeMisuseError: The resource was closed, or is open in another event loop.
        """
        self._forget_ended_loop()
        if self._is_closed:
            raise LifetimeMisuseError("is closed", "Make the call inside its `async with` block, or enter it again.")
        if self._users:
            if self._loop is not asyncio.get_running_loop():
                raise LifetimeMisuseError(
                    "is open in another event loop",
                    "Connections belong to the event loop that opened them. Make one provider for each thread.",
                )
            return
        if self._opened is None or self._holder is None or self._holder.done():
            self._opened = asyncio.get_running_loop().create_future()
            self._holder = asyncio.create_task(self._hold(opening, closing, self._opened), name="hold a store open")
        # A caller that is cancelled must not take the opening from the others.
        await asyncio.shield(self._opened)

    async def release(self) -> None:
        """Close what `hold_open` opened. If no users are left, reject calls until the resource is entered again."""
        self._forget_ended_loop()
        holder, self._holder = self._holder, None
        if holder is not None and not holder.done():
            holder.cancel()
            await asyncio.wait({holder})
        self._is_closed = self._users == 0

    async def _hold(self, opening: Work, closing: Work, opened: asyncio.Future[None]) -> None:
        try:
            await self.enter_resource(opening)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                opened.cancel()
                raise
            opened.set_exception(error)
            opened.exception()  # read here, in case every caller was cancelled
            return
        try:
            opened.set_result(None)
            await asyncio.get_running_loop().create_future()  # until `release`, or the end of the loop
        finally:
            await self.leave_resource(closing)
            self._is_closed = False

    def _forget_ended_loop(self) -> None:
        """Reset the state if the event loop ended without closing: its resources can no longer be used or closed."""
        if self._loop is not None and self._loop.is_closed():
            self._users, self._busy, self._loop, self._holder = 0, None, None, None

    async def _run_alone(self, work: Work) -> None:
        busy = self._busy = asyncio.get_running_loop().create_future()
        try:
            await work()
        finally:
            self._busy = None
            busy.set_result(None)
