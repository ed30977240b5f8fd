"""When commits are on the disk: group commit over the logs of one database.

Not the writing itself (`goatherd.node.storage`). A log that is tracked says when something was appended to it, and
`Disk.durable` waits for everything appended so far, by whomever. One flush runs at a time, in a thread of its own, and
serves all who wait when it begins.

A log that cannot be written does not stop the others. It is listed in `Disk.failing` and not flushed again until
`Disk.retry`; who waits for it gets the error, and nobody else does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from goatherd.errors import GoatherdError
from goatherd.node.repository import Log
from goatherd.node.unused import UnusedLog


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


class TrackedUnusedLog(TrackedLog):
    """As `TrackedLog`, for a log that can be written anew."""

    __slots__ = ("_rewritten",)

    def __init__(self, log: UnusedLog, on_append: Callable[[Log], None]) -> None:
        super().__init__(log, on_append)
        self._rewritten = log

    def rewrite(self, records: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._rewritten.rewrite(records)
        self._on_append(self._rewritten)


class Disk:
    """Group commit: one thread, one flush at a time, shared by everybody who waits when it begins.

    Args:
        on_change: Called with a repository's path, and whether its log can be written, whenever that has changed.
    """

    def __init__(self, on_change: Callable[[str, bool], None] = lambda _path, _can_be_written: None) -> None:
        self._on_change = on_change
        self._dirty: dict[Log, str] = {}
        self._broken: dict[Log, str] = {}
        self._errors: dict[str, GoatherdError] = {}
        self._flushing: asyncio.Task[bool] | None = None
        self._next: asyncio.Task[bool] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="goatherd-disk")
        self.failure_count = 0
        """How many flushes have failed. An answer made before the last one may show what is not on the disk."""

    @property
    def failing(self) -> Mapping[str, GoatherdError]:
        """Why logs cannot be written, by the repository's path."""
        return self._errors

    def touch(self, log: Log, path: str) -> None:
        """Note that the log of a repository has something to write. Called on the event loop's thread."""
        if log not in self._broken:
            self._dirty[log] = path

    async def durable(self, paths: Collection[str] = ()) -> bool:
        """Wait until everything appended so far, by whomever, is on the disk or has failed to get there.

        Args:
            paths: Repositories that must be on the disk.

        Returns:
            Whether everything that was waited for is on the disk.

        Raises:
            StorageError: One of `paths` could not be written; `retry` tries again.
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
        is_whole = task is None or await asyncio.shield(task)
        for path in paths:
            if path in self._errors:
                raise self._errors[path].with_traceback(None)
        return is_whole

    async def _flush(self, before: asyncio.Task[bool] | None) -> bool:
        if before is not None:
            await asyncio.wait({before})
            self._flushing, self._next = self._next, None
        logs, self._dirty = self._dirty, {}
        try:
            failed = await self._run(logs)
        except BaseException:
            self._dirty = {**logs, **self._dirty}
            raise
        self.failure_count += bool(failed)
        for log, error in failed.items():
            self._dirty.pop(log, None)
            self._broken[log] = logs[log]
            self._errors[logs[log]] = error
            self._on_change(logs[log], False)
        return not failed

    async def retry(self) -> None:
        """Try to write the logs that could not be written."""
        logs = dict(self._broken)
        failed = await self._run(logs)
        for log, path in logs.items():
            if log in failed:
                self._errors[path] = failed[log]
                continue
            del self._broken[log], self._errors[path]
            if log.unflushed:  # appended meanwhile
                self._dirty[log] = path
            self._on_change(path, True)
        await self.durable()

    async def _run(self, logs: Iterable[Log]) -> dict[Log, GoatherdError]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _flush_all, list(logs))

    def close(self) -> None:
        self._thread.shutdown()


def _flush_all(logs: Sequence[Log]) -> dict[Log, GoatherdError]:
    failed: dict[Log, GoatherdError] = {}
    for log in logs:
        try:
            log.flush()
        except GoatherdError as error:
            failed[log] = error
    return failed
