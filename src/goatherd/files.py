"""Read, create, atomically replace, remove and lock private files.

The module does not interpret the contents. Rules: files have mode 0600 from their creation. A reader sees the complete
old file or the complete new one, also after a crash at any system call. Such a crash can leave a file named like
``.settings.json.….new``, which the next write or removal of the file deletes. Calls block.

`System` is the file store's interface to the operating system; tests replace it, to stop the process after any call or
to make any call fail (`goatherd.providers.file.layout` has the order of writes). Its methods take names relative to an
open directory, so that an attacker cannot replace a part of the path. Below the base directory, no symbolic link is
followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from goatherd.errors import IdentityExistsError, SettingsError

if sys.platform != "win32":
    import fcntl

_ABANDONED: Final = 600.0
"""Seconds after which a temporary file is taken for one of a killed writer."""


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        SettingsError: The file is missing or cannot be read.
    """
    raw = read_if_there(path)
    if raw is None:
        raise SettingsError(
            f"{path} does not exist",
            hint="No new identity was created. Create one with `goatherd init`, or import an existing one with"
            " `goatherd migrate`.",
        )
    return raw


def read_if_there(path: Path) -> bytes | None:
    """Return a file's bytes, or None if there is no file.

    Raises:
        SettingsError: The file exists and cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error


def create_file(path: Path, data: bytes) -> None:
    """Create a file with this content, atomically; the file must not exist yet.

    Raises:
        IdentityExistsError: The file exists and was not changed.
        SettingsError: The file cannot be written.
    """
    _write_new(path, data, _link_new)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file atomically, or create it if it does not exist.

    Raises:
        SettingsError: The file cannot be written; the old one is unchanged.
    """
    _write_new(path, data, os.replace)


def remove_file(path: Path) -> None:
    """Remove a file, and the temporary files of killed writers. The removal survives a crash of the machine.

    Raises:
        SettingsError: The file cannot be removed.
    """
    try:
        path.unlink()
        _remove_abandoned(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise SettingsError(f"cannot remove {path}: {error.strerror or type(error).__name__}") from error


def lock_file(path: Path, *, create: bool = True) -> int:
    """Open a file and take its exclusive lock, without waiting; the lock ends when the descriptor is closed.

    Args:
        path: The file; its content does not matter.
        create: Whether to create a missing file, with mode 0600.

    Raises:
        BlockingIOError: Another process has the lock.
        OSError: The file is missing or cannot be opened, or is a symbolic link.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _link_new(new: Path, path: Path) -> None:
    try:
        os.link(new, path)
    except FileExistsError:
        raise IdentityExistsError(f"{path} already exists", hint="The file was not changed.") from None


def _write_new(path: Path, data: bytes, publish: Callable[[Path, Path], None]) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                written_at = os.fstat(file.fileno()).st_mtime
            publish(new, path)
        finally:
            # SECURITY: nothing that holds the key is left behind, whatever failed (tests/unit/settings).
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
        with contextlib.suppress(OSError):
            _remove_abandoned(path, before=written_at - _ABANDONED)
        _sync_directory(path.parent)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror or type(error).__name__}") from error


def _remove_abandoned(path: Path, *, before: float = float("inf")) -> None:
    """Remove the temporary files that killed writers of `path` have left, if last changed before `before` (seconds)."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.new")
    for one in path.parent.iterdir():
        if ours.fullmatch(one.name) and one.lstat().st_mtime < before:
            one.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
SUPPORTED = sys.platform != "win32"
_CHUNK = 1 << 16
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
# O_NONBLOCK: a pipe planted in place of a file must not make the open wait.
_READ = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0)
_CREATE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
_LOCK = os.O_RDWR | os.O_CREAT | _NO_LINK | getattr(os, "O_NONBLOCK", 0)


class System:
    """The operating system's calls that the file store needs, as methods. Every method may raise `OSError`."""

    def run_call(
        self, operation: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run one system call; tests override this method."""
        return operation(*args, **kwargs)

    def effective_user(self) -> int:
        """Return the effective user id."""
        return os.geteuid()

    def may_write(self, path: str) -> bool:
        """Return whether the process may create files in a directory; False on a read-only file system."""
        return self.run_call(os.access, path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)

    def free_bytes(self, path: str) -> int:
        """Return how many bytes an ordinary user may still write to a path's file system."""
        status = self.run_call(os.statvfs, path)
        return status.f_bavail * status.f_frsize

    def open_base(self, path: str) -> int:
        """Open a directory by path. Symbolic links in the path are followed, because the administrator made them."""
        return self.run_call(os.open, path, _DIRECTORY)

    def open_directory(self, name: str, parent: int) -> int:
        """Open the directory `name` in the open directory `parent`; fail if it is a symbolic link."""
        return self.run_call(os.open, name, _DIRECTORY | _NO_LINK, dir_fd=parent)

    def open_read(self, name: str, directory: int) -> int:
        """Open the file `name` in an open directory for reading, and return the descriptor."""
        return self.run_call(os.open, name, _READ, dir_fd=directory)

    def open_new(self, name: str, directory: int) -> int:
        """Create a file that must not exist yet, with mode 0600, and return its descriptor."""
        return self.run_call(os.open, name, _CREATE_NEW, 0o600, dir_fd=directory)

    def open_lock(self, name: str, directory: int) -> int:
        """Open a lock file; create it with mode 0600 if missing."""
        return self.run_call(os.open, name, _LOCK, 0o600, dir_fd=directory)

    def try_lock(self, descriptor: int) -> bool:
        """Take the exclusive lock on an open file without waiting; False when another process has it."""
        try:
            self.run_call(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def file_status(self, descriptor: int) -> os.stat_result:
        """Return the status of an open file (fstat)."""
        return self.run_call(os.fstat, descriptor)

    def status_of(self, name: str, directory: int) -> os.stat_result:
        """Return the status of a name in a directory (lstat). For a symbolic link, it is that of the link itself."""
        return self.run_call(os.stat, name, dir_fd=directory, follow_symlinks=False)

    def list_names(self, directory: int) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(self.run_call(os.listdir, directory))

    def read_up_to(self, descriptor: int, limit: int) -> bytes:
        """Read an open file to its end, but at most `limit` + 1 bytes, so that the caller can detect a longer file."""
        parts: list[bytes] = []
        left = limit + 1
        while left > 0 and (part := self.run_call(os.read, descriptor, min(left, _CHUNK))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def write_all(self, descriptor: int, data: bytes) -> None:
        """Write all of `data` to a file."""
        view = memoryview(data)
        while view:
            written = self.run_call(os.write, descriptor, view)
            if written == 0:
                raise OSError(errno.EIO, "nothing was written")
            view = view[written:]

    def sync_file(self, descriptor: int) -> None:
        """Flush an open file or directory to the disk (fsync)."""
        if sys.platform == "darwin":
            # macOS: fsync leaves the data in the drive's cache; this one does not.
            self.run_call(fcntl.fcntl, descriptor, fcntl.F_FULLFSYNC)
        else:
            self.run_call(os.fsync, descriptor)

    def rename_file(self, old: str, new: str, directory: int) -> None:
        """Rename a file in a directory from `old` to `new` atomically; an existing `new` is replaced."""
        self.run_call(os.rename, old, new, src_dir_fd=directory, dst_dir_fd=directory)

    def unlink_file(self, name: str, directory: int) -> None:
        """Remove a file."""
        self.run_call(os.unlink, name, dir_fd=directory)

    def make_base(self, path: str) -> None:
        """Create a directory by path, with mode 0700."""
        self.run_call(os.mkdir, path, 0o700)

    def make_directory(self, name: str, parent: int) -> None:
        """Create the directory `name` in the open directory `parent`, with mode 0700."""
        self.run_call(os.mkdir, name, 0o700, dir_fd=parent)

    def remove_directory(self, name: str, parent: int) -> None:
        """Remove an empty directory."""
        self.run_call(os.rmdir, name, dir_fd=parent)

    def close_file(self, descriptor: int) -> None:
        """Close a descriptor. Closing that of the lock file also releases the lock."""
        self.run_call(os.close, descriptor)
