"""Store commits in one GoatDB log file for each repository, or in memory, and make them durable by group commit.

A log (`goatherd.node.repository.Log`) stores JSON records and does not interpret them. Appending does not write to the
disk. `flush` writes all appended records with one write and one fsync, so one flush serves every request that waits for
it. The file format is GoatDB's (docs/reference/goatdb-formats.md#logs).

Torn writes. A last line without a newline is a write that a crash interrupted before it was confirmed. Only this line
is removed. (GoatDB also removes good lines: docs/reference/goatdb-formats.md#defects.) A damaged line that is followed
by other lines is not a torn write: it stays in the file, and is skipped. Each append begins with a newline,
so that an unfinished line before it cannot damage it.

Other programs. If one has removed a log or cut it off while a server holds its records, the next flush writes the log
again from memory, at the latest when the server stops.

Group commit. A `TrackedLog` reports each append to `GroupCommit`. `GroupCommit.wait_until_durable` waits for everything
appended so far. One flush runs at a time, in a separate thread, and serves every request that waits when it begins. A
log that cannot be written does not stop the others: `GroupCommit.failing` lists it, requests that need it get the
error, and `GroupCommit.retry_failed` flushes it again.

Rules: directories have mode 0700, files 0600. Only the lock file stays open. A repository without commits has no file.
`check_repository_path` checks every path, so that no file is outside of the directory. Calls block, so the server makes
them in threads. One `LogDirectory` and its logs can be used from several threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from goatherd.errors import GoatherdError, PathError, StorageError
from goatherd.files import OWNER_HINT, flag_for_link, make_directory, open_directory, open_or_create
from goatherd.node.repository import Log
from goatherd.node.unused_sessions import UnusedLog
from goatherd.serving.garbage_collection import pause_collection
from goatherd.settings.data_directory import DAMAGED_SUFFIX, LOG_SUFFIX, check_understood, read_records
from goatherd.telemetry import Event, event_text
from goatherd.wire.commit_log import LogLine, frame_records, parse_record
from goatherd.wire.paths import NAME_LENGTH, check_repository_path

LOCK_NAME = ".goatherd.lock"
UNUSED_NAME = ".goatherd.unused-sessions"
QUERY_CACHE_SUFFIX = ".cache.json"

_log = logging.getLogger("goatherd.node")


class FileLog:
    """A repository's log in one ``.jsonl`` file, opened by `LogDirectory.open_log`.

    The first flush that has records to write creates the file.

    Args:
        file: Path of the file.
        held: Returns all records of the log as JSON, so that a flush can write the log again if another program has
            removed it or cut it off; None if they are not held. The thread that writes calls it.
    """

    def __init__(self, file: Path, held: Callable[[], Sequence[bytes] | None] = lambda: None) -> None:
        self.file = file
        # The directory of an organization may be a link of the administrator.
        self._may_be_below_link = file.name == UNUSED_NAME
        self._held = held
        self._size = 0  # the least that the file must have now
        self._has_kept_cache = False
        self._pending: list[Mapping[str, Any] | bytes] = []
        self._anew: Callable[[], Iterable[Mapping[str, Any]]] | None = None
        self._taken = 0
        self._pending_lock = threading.Lock()
        self._write_lock = threading.Lock()

    def read_records(self) -> list[Mapping[str, Any]]:
        """Read every undamaged record of the log, in order, and cut off a torn last line.

        Raises:
            StorageError: The log cannot be read.
        """
        return [record for line in self.read_lines() if (record := parse_record(line)) is not None]

    def read_lines(self) -> Iterator[bytes]:
        with self._write_lock, pause_collection():
            end = 0
            rest = b""
            try:
                with self.file.open("rb") as file:
                    for line in file:
                        if not line.endswith(b"\n"):
                            rest = line
                            break
                        end += len(line)
                        if len(line) > 1:
                            yield line[:-1]
            except FileNotFoundError:
                return
            except OSError as error:
                raise StorageError(f"cannot read {self.file}: {error.strerror}") from error
            if rest:
                self._cut_torn_line(end, len(rest))
            self._size = max(self._size, end)

    def read_bytes(self) -> bytes:
        """Return the present bytes of the log file without waiting for a write in progress; empty if there is no file.

        Raises:
            StorageError: The file cannot be read.
        """
        return _read_or_empty(self.file)

    def read_size(self) -> int:
        """Return the present size of the log file in bytes; 0 if there is no file.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            return self.file.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(f"cannot read {self.file}: {error.strerror}") from error

    def read_part(self, start: int, size: int) -> bytes:
        """Return whole lines of the log file from byte `start` on: about `size` bytes, or more if a line is longer.

        The last line of the file may be unfinished, because the call does not wait for a write in progress. The result
        is empty at the end of the file.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            with self.file.open("rb") as file:
                file.seek(start)
                part = file.read(size)
                return part if part.endswith(b"\n") else part + file.readline()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError(f"cannot read {self.file}: {error.strerror}") from error

    @property
    def set_aside_file(self) -> Path:
        """Path of the file to which `set_aside` moves lines of this log."""
        return self.file.with_name(self.file.name + DAMAGED_SUFFIX)

    def read_set_aside(self) -> bytes:
        """Return the bytes of `set_aside_file`; empty if there is no such file.

        Raises:
            StorageError: The file cannot be read.
        """
        return _read_or_empty(self.set_aside_file)

    def set_aside(self, lines: Sequence[LogLine]) -> None:
        """Move lines unchanged from the log file to the end of `set_aside_file`. All other bytes stay as they are.

        Each file is replaced atomically, with the log's owner and mode. After a crash every line is in one of the two
        files, or in both. Repeating the call then completes the move without duplicates.

        Args:
            lines: Lines that `goatherd.wire.commit_log.read_lines` found in the bytes that `read_bytes` returned. The
                log must not have been written since then.

        Raises:
            StorageError: The move failed; no line is lost.
        """
        with self._write_lock:
            data = self.read_bytes()
            moved = [data[line.start : line.end] for line in lines]
            try:
                status = self.file.stat()
                aside = _read_own(self.set_aside_file)
                present = set(aside.split(b"\n"))
                fresh = [text for text in dict.fromkeys(moved) if text not in present]
                if fresh:
                    start = aside if aside.endswith(b"\n") or not aside else aside + b"\n"
                    _replace_file(self.set_aside_file, start + b"".join(text + b"\n" for text in fresh), status)
                self._size = 0
                self._delete_query_cache()
                _replace_file(self.file, _without_lines(data, lines), status)
            except OSError as error:
                raise StorageError(f"cannot rewrite {self.file}: {error.strerror}; run the command again") from error

    def append_record(self, record: Mapping[str, Any] | bytes) -> None:
        # It becomes JSON when it is written: large records take long, and this runs on the event loop.
        with self._pending_lock:
            self._pending.append(record)

    def rewrite_records(self, records: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Make the next flush replace the whole log with these records and those that are appended from now on.

        Args:
            records: Returns the records that replace the log. The next flush calls it, in the thread that writes.
        """
        with self._pending_lock:
            self._anew, self._pending = records, []

    @property
    def unflushed(self) -> int:
        with self._pending_lock:
            return len(self._pending) + self._taken + (self._anew is not None)

    def flush(self) -> None:
        with self._write_lock:
            with self._pending_lock:
                records, self._pending = self._pending, []
                anew, self._anew = self._anew, None
                self._taken = len(records)
            try:
                if anew is not None:
                    self._replace_records([*anew(), *records])
                elif not self._write_again() and records:
                    self._append_bytes(frame_records(records))
            except Exception as error:
                with self._pending_lock:
                    if self._anew is None:
                        self._anew = anew
                        self._pending[:0] = records
                if isinstance(error, OSError):
                    raise StorageError(f"cannot write {self.file}: {error.strerror}") from error
                raise
            finally:
                with self._pending_lock:
                    self._taken = 0

    def _write_again(self) -> bool:
        """Write the log again if another program has removed it or cut it off; return whether it was written.

        The records that are held include those that were to be appended.
        """
        lacking = self._size - (self.file.stat().st_size if self.file.exists() else 0)
        if lacking <= 0 or (held := self._held()) is None:
            return False
        self._replace_records(held)
        _log.error("%s", event_text(Event.DATA_CUT_OFF, file=self.file, bytes=lacking))
        return True

    def _replace_records(self, records: Sequence[Mapping[str, Any] | bytes]) -> None:
        data = frame_records(records)
        if self.file.exists():
            self._delete_query_cache()
            _replace_file(self.file, data, self.file.stat(), may_be_below_link=self._may_be_below_link)
            self._size = len(data)
        else:
            self._append_bytes(data)

    def _delete_query_cache(self) -> None:
        """Delete the file in which GoatDB has stored results of its queries of this repository, if there is one.

        COMPAT: GoatDB trusts this file after a start, so its queries would never show an item that another program
        has written to the log (docs/reference/goatdb-formats.md#defects).
        """
        if self.file.suffix == LOG_SUFFIX:
            cache = self.file.with_suffix(QUERY_CACHE_SUFFIX)
            try:
                with open_directory(self.file.parent, may_be_link=False) as directory:
                    os.unlink(cache.name, dir_fd=directory)
                    os.fsync(directory)
            except FileNotFoundError:
                return
            except OSError as error:
                if not self._has_kept_cache:  # it matters to a later GoatDB only: commits are written all the same
                    _log.warning("%s", event_text(Event.DATA_QUERY_CACHE, file=cache, reason=error.strerror))
                self._has_kept_cache = True

    def _append_bytes(self, data: bytes) -> None:
        self._delete_query_cache()
        fresh = not self.file.exists()
        if fresh:
            make_directory(self.file.parent)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        descriptor = open_or_create(self.file, flags, may_be_below_link=self._may_be_below_link)
        try:
            start = os.fstat(descriptor).st_size
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
                self._size = start + len(data)
            except OSError:
                # Half a record must not stay: what was appended is written again by the next flush.
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, start)
                raise
        finally:
            os.close(descriptor)
        if fresh:
            _sync_directory(self.file.parent)

    def _cut_torn_line(self, length: int, size: int) -> None:
        try:
            flags = os.O_WRONLY | os.O_CLOEXEC
            below_link = self._may_be_below_link
            descriptor = open_or_create(self.file, flags, create=False, may_be_below_link=below_link)
            try:
                os.ftruncate(descriptor, length)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"cannot remove the unfinished last line of {self.file}: {error.strerror}") from error
        _log.info("%s", event_text(Event.DATA_TORN, file=self.file, bytes=size))


class LogDirectory:
    """The data directory of one organization, with its log files, locked against use by a second server.

    A context manager: entering it takes the lock; leaving it flushes every open log and releases the lock.

    Args:
        path: The directory.
        only_reads: Whether nothing will be written, so that the directory may be on a read-only file system.

    Attributes:
        held_records: Returns all records of a repository's log as JSON, or None; see `FileLog`.
    """

    def __init__(self, path: Path, *, only_reads: bool = False) -> None:
        self.path = path
        self._only_reads = only_reads
        self.held_records: Callable[[str], Sequence[bytes] | None] = lambda _: None
        self._lock: int | None = None
        self._logs: WeakValueDictionary[str, FileLog] = WeakValueDictionary()
        self._guard = threading.Lock()

    def __enter__(self) -> LogDirectory:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def acquire(self) -> None:
        """Create the data directory if it is missing, and lock it.

        Raises:
            NewerFormatError: A newer GoatDB has written to the directory. Nothing was changed.
            StorageError: Another process (named by its PID) holds the lock, or the directory cannot be used.
        """
        if self._lock is not None:
            return
        if self.path.is_dir():
            check_understood(self.path)
        try:
            make_directory(self.path)
        except OSError as error:
            raise StorageError(f"cannot create {self.path}: {error.strerror}") from error
        try:
            descriptor, lock = self._open_lock()
        except OSError as error:
            hint = OWNER_HINT if isinstance(error, PermissionError) else None
            raise StorageError(f"cannot open {self.path / LOCK_NAME}: {error.strerror}", hint=hint) from error
        try:
            fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
        except OSError:
            holder = ""
            with contextlib.suppress(OSError):  # a directory
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StorageError(
                f"{self.path} is in use by process {holder or 'unknown'}",
                hint="Stop that server, or use another data directory.",
            ) from None
        # The lock counts without the process id, for which a full disk may have no room.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def _open_lock(self) -> tuple[int, int]:
        file = self.path / LOCK_NAME
        try:
            return open_or_create(file, os.O_RDWR | os.O_CLOEXEC), fcntl.LOCK_EX
        except OSError as error:
            if not self._only_reads or error.errno != errno.EROFS:
                raise
        try:
            # A server may run where the directory can be written. NFS locks exclusively only what is open for writing.
            return os.open(file, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH
        except FileNotFoundError:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_SH

    def close(self) -> None:
        """Flush every open log and release the lock on the data directory.

        Raises:
            StorageError: A log could not be written. The lock is released even then.
        """
        try:
            for log in list(self._logs.values()):
                log.flush()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            self._logs.clear()

    def open_log(self, repository: str) -> FileLog:
        """Return the log of a repository, without creating a file.

        As long as the log is referenced, each call returns the same object.

        Raises:
            PathError: The path is not one that this server allows for a repository.
            StorageError: The directory is not locked.
        """
        # SECURITY: a path must not lead out of the directory (tests/unit/test_upstream_traps.py).
        kind, name = check_repository_path(repository)
        path = f"/{kind}/{name}"
        return self._open_file(path, self.path / kind / f"{name}{LOG_SUFFIX}", lambda: self.held_records(path))

    def read_log(self, repository: str) -> list[Any]:
        """Return the records in a repository's log file at present. Damaged lines are skipped. Nothing is changed.

        Raises:
            PathError: The path is not one that this server allows for a repository.
            StorageError: The file cannot be read.
        """
        kind, name = check_repository_path(repository)
        return list(read_records(self.path / kind / f"{name}{LOG_SUFFIX}"))

    def open_unused(self) -> FileLog:
        """Return the log of the sessions that have not signed a request yet, without creating a file.

        See `goatherd.node.unused_sessions`.

        Raises:
            StorageError: The directory is not locked.
        """
        return self._open_file(UNUSED_NAME, self.path / UNUSED_NAME, lambda: None)

    def _open_file(self, name: str, file: Path, held: Callable[[], Sequence[bytes] | None]) -> FileLog:
        if self._lock is None:
            raise StorageError(f"the data directory {self.path} is not open")
        with self._guard:
            log = self._logs.get(name)
            if log is None:
                log = self._logs[name] = FileLog(file, held)
            return log

    def repository_paths(self, *, is_whole: bool = False) -> list[str]:
        """Return the sorted paths of the repositories that have a log file and that this server can open.

        Args:
            is_whole: Whether a log of GoatDB that this server cannot open, because its name is too long, is an error.

        Raises:
            PathError: See `is_whole`.
        """
        found = []
        for file in sorted(self.path.glob(f"*/*{LOG_SUFFIX}")):
            path = f"/{file.parent.name}/{file.name.removesuffix(LOG_SUFFIX)}"
            try:
                check_repository_path(path)
            except PathError:
                if is_whole and max(map(len, path.split("/"))) > NAME_LENGTH:
                    raise
            else:
                found.append(path)
        return found


def _read_or_empty(path: Path) -> bytes:
    """Return a file's bytes; empty if there is no such file.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _read_own(path: Path) -> bytes:
    """Return a file's bytes, or none if it is missing. A link that another user has made is not followed."""
    try:
        descriptor = open_or_create(path, os.O_RDONLY | os.O_CLOEXEC, create=False, may_be_below_link=False)
    except FileNotFoundError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _without_lines(data: bytes, lines: Sequence[LogLine]) -> bytes:
    """Return a log's bytes without the given lines, and without the blank line directly before each of them."""
    kept, position = [], 0
    for line in sorted(lines, key=lambda one: one.start):
        has_blank = data[max(0, line.start - 2) : line.start] in (b"\n\n", b"\n")
        start = line.start - 1 if has_blank else line.start
        kept.append(data[position : max(position, start)])
        position = line.end + 1
    return b"".join([*kept, data[position:]])


def _replace_file(path: Path, data: bytes, like: os.stat_result, *, may_be_below_link: bool = False) -> None:
    """Replace a file atomically and durably; the new file gets the mode and owner given in `like`.

    Its directory may be a link that another user has made only if `may_be_below_link` is True.
    """
    if not flag_for_link(path):
        path = path.resolve()  # such a link stays
    start, end = f".{path.name}.", ".new"
    new = f"{start}{secrets.token_hex(8)}{end}"
    with open_directory(path.parent, may_be_link=may_be_below_link) as directory:
        for left in os.listdir(directory):  # noqa: PTH208 - it is open
            if left.startswith(start) and left.endswith(end):
                os.unlink(left, dir_fd=directory)  # of a process that was killed: the directory's lock is ours
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(new, flags, 0o600, dir_fd=directory), "wb") as file:
                os.fchmod(file.fileno(), like.st_mode & 0o7777)
                mine = os.fstat(file.fileno())
                if (mine.st_uid, mine.st_gid) != (like.st_uid, like.st_gid):
                    os.fchown(file.fileno(), like.st_uid, like.st_gid)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=directory)
        os.fsync(directory)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class TrackedLog:
    """A repository's log that reports each append to `GroupCommit`, so that the next flush includes it."""

    __slots__ = ("_log", "_on_append")

    def __init__(self, log: Log, on_append: Callable[[Log], None]) -> None:
        self._log = log
        self._on_append = on_append

    @property
    def unflushed(self) -> int:
        return self._log.unflushed

    def read_lines(self) -> Iterator[Mapping[str, Any] | bytes]:
        return self._log.read_lines()

    def append_record(self, record: Mapping[str, Any] | bytes) -> None:
        self._log.append_record(record)
        self._on_append(self._log)

    def flush(self) -> None:
        self._log.flush()


class TrackedUnusedLog(TrackedLog):
    """The log of unused sessions: reports each append or rewrite to `GroupCommit`, for the next flush."""

    __slots__ = ("_rewritten",)

    def __init__(self, log: UnusedLog, on_append: Callable[[Log], None]) -> None:
        super().__init__(log, on_append)
        self._rewritten = log

    def read_records(self) -> Sequence[Mapping[str, Any]]:
        return self._rewritten.read_records()

    def rewrite_records(self, records: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._rewritten.rewrite_records(records)
        self._on_append(self._rewritten)


class GroupCommit:
    """Write logs to the disk by group commit: one flush, in one thread, for all requests that wait when it begins.

    Args:
        on_change: Called when a repository's log begins or ceases to be writable, with the repository's path and
            whether the log can be written now.
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
        """Number of failed flushes. An answer built before the last failure may show commits that were not written."""

    @property
    def failing(self) -> Mapping[str, GoatherdError]:
        """The errors of the logs that cannot be written, by the path of their repository."""
        return self._errors

    def mark_dirty(self, log: Log, path: str) -> None:
        """Note that the log of a repository has records that must be written to the disk.

        Call this on the event loop's thread.
        """
        if log not in self._broken:
            self._dirty[log] = path

    async def wait_until_durable(self, paths: Collection[str] = ()) -> bool:
        """Wait until all records that were appended so far are on the disk, or writing them has failed.

        Args:
            paths: Paths of the repositories whose records must be on the disk. If the log of another repository fails,
                the result is False, but no error is raised.

        Returns:
            Whether all logs that were waited for are on the disk.

        Raises:
            StorageError: The log of one of `paths` could not be written; `retry_failed` tries again later.
        """
        running = self._flushing is not None and not self._flushing.done()
        # Data that were appended after the previous flush began are covered only by the next flush, so wait for that
        # one, too, even if it has not begun.
        if self._next is None and self._dirty:
            if running:
                self._next = asyncio.create_task(self._flush_after(self._flushing))
            else:
                self._flushing = asyncio.create_task(self._flush_after(None))
                running = True
        task = self._next or (self._flushing if running else None)
        is_whole = task is None or await asyncio.shield(task)
        for path in paths:
            if path in self._errors:
                raise self._errors[path].with_traceback(None)
        return is_whole

    async def _flush_after(self, before: asyncio.Task[bool] | None) -> bool:
        if before is not None:
            await asyncio.wait({before})
            self._flushing, self._next = self._next, None
        logs, self._dirty = self._dirty, {}
        try:
            failed = await self._flush_logs(logs)
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

    async def retry_failed(self) -> None:
        """Try again to write the logs whose last write failed."""
        logs = dict(self._broken)
        failed = await self._flush_logs(logs)
        for log, path in logs.items():
            if log in failed:
                self._errors[path] = failed[log]
                continue
            del self._broken[log], self._errors[path]
            if log.unflushed:  # appended meanwhile
                self._dirty[log] = path
            self._on_change(path, True)
        await self.wait_until_durable()

    async def _flush_logs(self, logs: Iterable[Log]) -> dict[Log, GoatherdError]:
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
