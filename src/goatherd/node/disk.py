"""When commits are on the disk: group commit over the logs of one database.

Not the writing itself (`goatherd.node.storage`). A log that is tracked says when something was appended to it, and
`Disk.durable` waits for everything appended so far, by whomever. One flush runs at a time, in a thread of its own, and
serves all who wait when it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from goatherd.errors import GoatherdError
from goatherd.node.repository import Log


class TrackedLog:
    """A log that says when something was appended."""

    __slots__ = ("_log", "_on_append")

    def __init__(self, log: Log, on_append: Callable[[Log], None]) -> None:
        self._log = log
        self._on_append = on_append

    @property
    def damaged(self) -> int:
        return self._log.damaged

    @property
    def unflushed(self) -> int:
        return self._log.unflushed

    def records(self) -> Sequence[Mapping[str, Any]]:
        return self._log.records()

    def append(self, record: Mapping[str, Any]) -> None:
        self._log.append(record)
        self._on_append(self._log)

    def flush(self) -> None:
        self._log.flush()


class Disk:
    """Group commit: one thread, one flush at a time, shared by everybody who waits when it begins."""

    def __init__(self) -> None:
        self._dirty: dict[Log, None] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="goatherd-disk")

    def touch(self, log: Log) -> None:
        """Note that a log has something to write. Called on the event loop's thread."""
        self._dirty[log] = None

    async def durable(self) -> None:
        """Wait until everything appended so far, by whomever, is on the disk.

        Raises:
            StorageError: It could not be written; the next flush tries again.
        """
        running = self._flushing is not None and not self._flushing.done()
        # A next flush that has not begun yet, although the one before it has ended, is the one to wait for as well:
        # whoever waits for it already must be told what becomes of what was appended.
        if self._next is None and self._dirty:
            if running:
                self._next = asyncio.create_task(self._flush(self._flushing))
            else:
                self._flushing = asyncio.create_task(self._flush(None))
                running = True
        task = self._next or (self._flushing if running else None)
        if task is not None:
            await asyncio.shield(task)

    async def _flush(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
            self._flushing, self._next = self._next, None
        logs, self._dirty = list(self._dirty), {}
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, _flush_all, logs)
        except BaseException:
            self._dirty = {**dict.fromkeys(logs), **self._dirty}
            raise

    def close(self) -> None:
        self._thread.shutdown()


def _flush_all(logs: Sequence[Log]) -> None:
    failure: GoatherdError | None = None
    for log in logs:
        try:
            log.flush()
        except GoatherdError as error:
            failure = failure or error
    if failure is not None:
        raise failure
