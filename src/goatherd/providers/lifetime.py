"""Open a shared resource for its first user and close it after its last, or at the end of the event loop.

The module counts the users. A resource belongs to the event loop in which it was opened, and is not used while it is
being opened or closed. asyncio is imported only when there is something to wait for, because a short command runs
without an event loop (`goatherd.event_loop`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from goatherd.event_loop import find_running_loop

if TYPE_CHECKING:
    import asyncio

Work = Callable[[], Awaitable[None]]

_holders: set[asyncio.Task[None]] = set()
"""The tasks that hold resources open until their event loops end. An event loop itself has only weak references."""


class LifetimeMisuseError(Exception):
    """A resource was used after it was closed, or in another event loop. The message completes "the provider …"."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def _closed_error() -> LifetimeMisuseError:
    return LifetimeMisuseError("is closed", "Make the call inside its `async with` block, or enter it again.")


class SharedLifetime:
    """Opens a shared resource, such as a connection pool, on first use, and closes it after the last use.

    It counts the ``async with`` blocks that use the resource. If opening fails, the block that opened it gets the
    error, and the next block tries again. A caller outside the context manager uses `hold_open`.
    """

    def __init__(self) -> None:
        self._users = 0
        self._busy: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._holder: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[None] | None = None
        self._is_closed = False

    async def enter_resource(self, opening: Work) -> None:
        """Begin to use the shared resource: the first user opens it with `opening`; others wait until it is open."""
        self._forget_ended_loop()
        while self._busy is not None:
            import asyncio

            await asyncio.wait({self._busy})
        if self._users == 0:
            await self._run_alone(opening)
            self._loop, self._is_closed = find_running_loop(), False
        self._users += 1

    async def leave_resource(self, closing: Work) -> None:
        """Stop using the shared resource: the last user closes it with `closing`, and later calls are rejected."""
        self._users -= 1
        if self._users == 0:
            self._is_closed = True
            await self._run_alone(closing)

    async def hold_open(self, opening: Work, closing: Work) -> None:
        """Open the shared resource for a caller without ``async with``; it is closed when the event loop ends.

        Raises:
            LifetimeMisuseError: The resource was closed, or is open in another event loop.
        """
        import asyncio

        self._forget_ended_loop()
        if self._is_closed:
            raise _closed_error()
        if self._users:
            if self._loop is not asyncio.get_running_loop():
                raise LifetimeMisuseError(
                    "is open in another event loop",
                    "Connections belong to the event loop that opened them. Make one provider for each thread.",
                )
            return
        if self._opened is None or self._holder is None or self._holder.done():
            self._opened = asyncio.get_running_loop().create_future()
            self._holder = asyncio.create_task(
                self._hold_resource(opening, closing, self._opened), name="hold a store open"
            )
            _holders.add(self._holder)
            self._holder.add_done_callback(_holders.discard)
        # A caller that is cancelled must not take the opening from the others.
        await asyncio.shield(self._opened)

    async def release(self) -> None:
        """Close the resource that `hold_open` opened for callers without ``async with``."""
        self._forget_ended_loop()
        holder, self._holder = self._holder, None
        if holder is not None and not holder.done():
            import asyncio

            holder.cancel()
            await asyncio.wait({holder})
        self._is_closed = self._users == 0

    async def _hold_resource(self, opening: Work, closing: Work, opened: asyncio.Future[None]) -> None:
        import asyncio

        try:
            await self.enter_resource(opening)
        except BaseException as error:
            is_closed = isinstance(error, asyncio.CancelledError)
            # By `release`: the callers that wait are not cancelled.
            opened.set_exception(_closed_error() if is_closed else error)
            opened.exception()  # read here, in case every caller was cancelled
            if is_closed:
                raise
            return
        try:
            opened.set_result(None)
            await asyncio.get_running_loop().create_future()  # until `release`, or the end of the loop
        finally:
            await self.leave_resource(closing)
            self._is_closed = False

    def _forget_ended_loop(self) -> None:
        """Reset the state if the event loop has ended without closing the resource, which is then unusable."""
        if self._loop is not None and self._loop.is_closed():
            self._users, self._busy, self._loop, self._holder = 0, None, None, None

    async def _run_alone(self, work: Work) -> None:
        loop = find_running_loop()
        if loop is None:  # nothing else can run meanwhile
            await work()
            return
        busy = self._busy = loop.create_future()
        try:
            await work()
        finally:
            self._busy = None
            busy.set_result(None)
