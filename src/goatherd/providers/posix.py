"""The system calls of the file store, one thin object.

What it is: the seam at which a test stops the process after any call, or lets any call fail. What it is not: policy;
`goatherd.providers.directory` decides what is called when. Rules: every call goes through `System.call`; names are
relative to a descriptor where a path could be swapped; nothing follows a symbolic link below the base directory.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

if sys.platform != "win32":
    import fcntl

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
    """The operating system, as far as the file store needs it. Every method may raise `OSError`."""

    def call(self, operation: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Do one system call."""
        return operation(*args, **kwargs)

    def user(self) -> int:
        """Return the effective user id."""
        return os.geteuid()

    def may_write(self, path: str) -> bool:
        """Return whether the process may create files in a directory; False on a read-only file system."""
        return self.call(os.access, path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)

    def room(self, path: str) -> int:
        """Return how many bytes an ordinary user may still write to a path's file system."""
        status = self.call(os.statvfs, path)
        return status.f_bavail * status.f_frsize

    def open_base(self, path: str) -> int:
        """Open a directory by path; links on the way are the administrator's and are followed."""
        return self.call(os.open, path, _DIRECTORY)

    def open_directory(self, name: str, parent: int) -> int:
        """Open a directory inside another; a symbolic link fails."""
        return self.call(os.open, name, _DIRECTORY | _NO_LINK, dir_fd=parent)

    def open_read(self, name: str, directory: int) -> int:
        """Open a file for reading."""
        return self.call(os.open, name, _READ, dir_fd=directory)

    def open_new(self, name: str, directory: int) -> int:
        """Create a file that must not exist, mode 0600."""
        return self.call(os.open, name, _CREATE_NEW, 0o600, dir_fd=directory)

    def open_lock(self, name: str, directory: int) -> int:
        """Open a lock file, made with mode 0600 where there is none."""
        return self.call(os.open, name, _LOCK, 0o600, dir_fd=directory)

    def lock(self, descriptor: int) -> bool:
        """Take the exclusive lock on an open file without waiting; False when somebody else has it."""
        try:
            self.call(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def status(self, descriptor: int) -> os.stat_result:
        """Return the status of an open file."""
        return self.call(os.fstat, descriptor)

    def status_of(self, name: str, directory: int) -> os.stat_result:
        """Return the status of a name, of the link itself where it is one."""
        return self.call(os.stat, name, dir_fd=directory, follow_symlinks=False)

    def names(self, directory: int) -> list[str]:
        """List a directory, sorted."""
        return sorted(self.call(os.listdir, directory))

    def read(self, descriptor: int, limit: int) -> bytes:
        """Read to the end, or to one byte past `limit`."""
        parts: list[bytes] = []
        left = limit + 1
        while left > 0 and (part := self.call(os.read, descriptor, min(left, _CHUNK))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def write(self, descriptor: int, data: bytes) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            written = self.call(os.write, descriptor, view)
            if written == 0:
                raise OSError(errno.EIO, "nothing was written")
            view = view[written:]

    def sync(self, descriptor: int) -> None:
        """Return when the file or directory is on the medium."""
        if sys.platform == "darwin":
            # macOS: fsync leaves the data in the drive's cache; this one does not.
            self.call(fcntl.fcntl, descriptor, fcntl.F_FULLFSYNC)
        else:
            self.call(os.fsync, descriptor)

    def rename(self, old: str, new: str, directory: int) -> None:
        """Replace `new` by `old` in one step."""
        self.call(os.rename, old, new, src_dir_fd=directory, dst_dir_fd=directory)

    def unlink(self, name: str, directory: int) -> None:
        """Remove a file."""
        self.call(os.unlink, name, dir_fd=directory)

    def make_base(self, path: str) -> None:
        """Make a directory by path, mode 0700."""
        self.call(os.mkdir, path, 0o700)

    def make_directory(self, name: str, parent: int) -> None:
        """Make a directory inside another, mode 0700."""
        self.call(os.mkdir, name, 0o700, dir_fd=parent)

    def remove_directory(self, name: str, parent: int) -> None:
        """Remove an empty directory."""
        self.call(os.rmdir, name, dir_fd=parent)

    def close(self, descriptor: int) -> None:
        """Close a descriptor; closing the lock file releases the lock."""
        self.call(os.close, descriptor)
