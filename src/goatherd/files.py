"""Read, create, atomically replace, remove and lock private files.

The module does not interpret the contents. Rules: files have mode 0600 from their creation. If root creates a file or
directory in a directory of another user, it belongs to that user. A reader sees the complete old file or the complete
new one, also after a crash at any system call. Such a crash can leave a file named like ``.settings.json.….new``, which
the next write or removal of the file deletes. Calls block.

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
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from goatherd.errors import ConfigurationError, IdentityExistsError, SettingsError

if sys.platform != "win32":
    import fcntl

OWNER_HINT: Final = "Run as the owner of the file, or change its owner with chown."
_MAKING: Final = threading.Lock()
_ABANDONED: Final = 600.0
"""Seconds after which a temporary file is taken for one of a killed writer, in a file system without locks."""


def check_path(given: object, subject: str, *, hint: str = "Write a path such as /srv/goatdb.") -> None:
    """Check that an argument is a path. A URI would be taken for a path below the working directory.

    Args:
        given: The argument.
        subject: What the path is of; the error message begins with it.
        hint: The hint of the error.

    Raises:
        ConfigurationError: The argument is a URI, empty, or no path.
    """
    if not isinstance(given, str | os.PathLike) or not os.fspath(given) or "://" in str(given):
        raise ConfigurationError(f"{subject} must be a path, not {given!r}", hint=hint)


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
        SettingsError: The file exists and cannot be read, or is a pipe, a device or a socket.
    """
    _refuse_special(path)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            _check_regular(os.fstat(file.fileno()), path)  # another file may have been put there meanwhile
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error


def read_with_owner(path: Path) -> tuple[bytes, int | None]:
    """Return a regular file's bytes, and the ID of the user who may have chosen them; None if only root may have.

    Links that another user has made are not followed (`flag_for_link`).

    Raises:
        FileNotFoundError: There is no file.
        OSError: The file cannot be read, or is such a link, a pipe, a device or a socket.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    with os.fdopen(open_or_create(path, flags, create=False, may_be_below_link=False), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(), status.st_uid or None


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
        SettingsError: The file cannot be written, or is a pipe, a device or a socket; the old one is unchanged.
    """
    _refuse_special(path)
    _write_new(path, data, _replace_by_new)


def replace_link(link: Path, target: Path) -> None:
    """Replace a file by a symbolic link to `target` atomically, or create the link if there is no file.

    Raises:
        OSError: The link cannot be created.
    """
    new = f".{link.name}.{secrets.token_hex(8)}.new"
    with _open_directory(link.parent) as directory:
        os.symlink(target, new, dir_fd=directory)
        try:
            os.replace(new, link.name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=directory)


def _refuse_special(path: Path) -> None:
    """Refuse a pipe, a device or a socket, such as ``/dev/stdout``: to read it may never end, and to replace it removes
    it, which can break the machine."""
    try:
        status = path.stat()
    except OSError:
        return  # it is missing, or whatever opens it reports the error
    _check_regular(status, path)


def _check_regular(status: os.stat_result, path: Path) -> None:
    # A link in /dev may lead to a regular file, if that is the process's standard output.
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) or path.parent.resolve() == Path("/dev"):
        raise SettingsError(f"{path} is not a regular file", hint="It was not changed. Name another file.")


def _open_at_once(path: str, flags: int) -> int:
    """Open a file, also a pipe that no process writes to, without waiting."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def remove_file(path: Path) -> None:
    """Remove a file, if it exists, and the temporary files of killed writers.

    The removal survives a crash of the machine.

    Raises:
        SettingsError: The file cannot be removed.
    """
    try:
        with _open_directory(path.parent) as directory:
            try:
                _remove_abandoned(path.name, directory)  # first: once the file is missing, nothing calls this again
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=directory)
            os.fsync(directory)
    except OSError as error:
        raise SettingsError(f"cannot remove {path}: {error.strerror or type(error).__name__}") from error


def lock_file(path: Path, *, create: bool = True) -> int:
    """Open a file and take its exclusive lock, without waiting; the lock ends when the descriptor is closed.

    On a read-only file system, the lock is a shared one.

    Args:
        path: The file; its content does not matter.
        create: Whether to create a missing file, with mode 0600. Otherwise the file may be on a read-only file system.

    Raises:
        BlockingIOError: Another process has the lock.
        OSError: The file is missing or cannot be opened, or is a symbolic link.
    """
    flags, lock = os.O_NOFOLLOW | os.O_CLOEXEC, fcntl.LOCK_EX
    try:
        descriptor = open_or_create(path, os.O_RDWR | flags) if create else os.open(path, os.O_RDWR | flags)
    except OSError as error:
        if create or error.errno != errno.EROFS:
            raise
        # NFS locks exclusively only what is open for writing; a shared lock conflicts with a writer's, too.
        descriptor, lock = os.open(path, os.O_RDONLY | flags), fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_or_create(path: Path, flags: int, *, create: bool = True, may_be_below_link: bool = True) -> int:
    """Open a file, or create it with mode 0600 if it is missing, and return the descriptor.

    Args:
        path: The file, in a directory that exists.
        flags: How to open it, without O_CREAT.
        create: Whether to create a missing file.
        may_be_below_link: Whether the directory may be a link that another user has made (`flag_for_link`).

    Raises:
        OSError: The file cannot be opened or created, or is a link that another user has made.
    """
    with open_directory(path.parent, may_be_link=may_be_below_link) as directory:
        flags |= flag_for_link(path)
        with contextlib.nullcontext() if not create else contextlib.suppress(FileNotFoundError):
            return os.open(path.name, flags, dir_fd=directory)
        try:
            descriptor = os.open(path.name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
        except FileExistsError:
            return os.open(path.name, flags, dir_fd=directory)
        _give_to_owner(descriptor, directory)
        return descriptor


def flag_for_link(path: Path) -> int:
    """Return the flag with which `os.open` fails at a link, unless root or this process's user has made the link.

    SECURITY: a process of root that works in another user's directory, such as an agent or a repair, must not follow a
    link of this user, which could lead to a file that only root may change (tests/unit/node/test_log_storage.py,
    tests/unit/settings/test_data_directory.py).
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return os.O_NOFOLLOW
    return 0 if stat.S_ISLNK(status.st_mode) and status.st_uid in (0, os.geteuid()) else os.O_NOFOLLOW


@contextlib.contextmanager
def open_directory(path: Path, *, may_be_link: bool) -> Iterator[int]:
    """Open a directory while the block runs, and yield the descriptor.

    Args:
        path: The directory.
        may_be_link: Whether it may be a link that another user has made (`flag_for_link`).

    Raises:
        OSError: The directory cannot be opened, or is such a link.
    """
    descriptor = os.open(path, _DIRECTORY | (0 if may_be_link else flag_for_link(path)))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory with mode 0700, and its parents, unless it exists. It survives a crash of the machine.

    Raises:
        OSError: The directory cannot be created.
    """
    # Another thread must not write into the directory before its owner is set: the files would belong to the superuser.
    with _MAKING:
        _make_missing(path)


def _make_missing(path: Path) -> None:
    if path.is_dir():
        return
    _make_missing(path.parent)
    with _open_directory(path.parent) as parent:
        try:
            os.mkdir(path.name, 0o700, dir_fd=parent)
        except FileExistsError:
            if path.is_dir():
                return
            raise
        with contextlib.suppress(OSError), _open_directory(Path(path.name), dir_fd=parent) as directory:
            # Another user may have put another directory there meanwhile.
            if not os.listdir(directory):  # noqa: PTH208 - it is open
                _give_to_owner(directory, parent)
        os.fsync(parent)


def _give_to_owner(descriptor: int, directory: int) -> None:
    """Give a file that root has just created to the owner of its directory, so that a server of this user can read it.

    COMPAT: GoatDB treats a settings.json that it cannot read as missing, and creates a new root.

    SECURITY: the owner is changed through the descriptors of the new file and of its directory. So the owner of the
    directory cannot make a process of root give away another file (tests/unit/test_files.py).
    """
    owner = os.fstat(directory)
    if os.geteuid() == 0 and owner.st_uid != 0:
        # Where this is not allowed, as in some containers, the server runs as this user, too.
        with contextlib.suppress(OSError):
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def _open_directory(path: Path, *, dir_fd: int | None = None) -> Iterator[int]:
    """Open a directory while the block runs, and yield the descriptor.

    SECURITY: a process of root, such as an agent in the data directory of another user, does not work in a directory
    to which this user has made a link meanwhile (tests/unit/test_files.py).
    """
    is_followed = dir_fd is None and (os.geteuid() != 0 or not flag_for_link(path))
    descriptor = os.open(path, _DIRECTORY | (0 if is_followed else _NO_LINK), dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _link_new(new: str, path: Path, directory: int) -> None:
    try:
        os.link(new, path.name, src_dir_fd=directory, dst_dir_fd=directory)
    except FileExistsError:
        raise IdentityExistsError(f"{path} already exists", hint="The file was not changed.") from None


def _replace_by_new(new: str, path: Path, directory: int) -> None:
    os.replace(new, path.name, src_dir_fd=directory, dst_dir_fd=directory)


def _write_new(path: Path, data: bytes, publish: Callable[[str, Path, int], None]) -> None:
    try:
        make_directory(path.parent)
        with _open_directory(path.parent) as directory:
            new, descriptor = _open_temporary(path.name, directory)
            made_at = os.fstat(descriptor).st_mtime
            try:
                with os.fdopen(descriptor, "wb") as file:
                    _give_to_owner(file.fileno(), directory)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    publish(new, path, directory)  # while the file is locked
            finally:
                # SECURITY: the temporary file, which may hold a key, is removed even if writing or renaming it failed
                # (tests/unit/settings).
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new, dir_fd=directory)
                with contextlib.suppress(OSError):
                    _remove_abandoned(path.name, directory, before=made_at - _ABANDONED)
            os.fsync(directory)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror or type(error).__name__}") from error


def _open_temporary(name: str, directory: int) -> tuple[str, int]:
    """Create the temporary file of a writer of `name`, locked; return its name and its descriptor.

    The kernel releases the lock when the writer is killed. So other writers can tell what such a writer has left.
    """
    while True:
        new = f".{name}.{secrets.token_hex(8)}.new"
        descriptor = os.open(new, _CREATE_NEW, 0o600, dir_fd=directory)
        with contextlib.suppress(OSError):  # not in every file system
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return new, descriptor
        os.close(descriptor)  # another writer was faster to lock it, and has removed it


def _remove_abandoned(name: str, directory: int, *, before: float = float("inf")) -> None:
    """Remove the temporary files that killed writers of `name` have left.

    Where they cannot be locked, those count that were last changed before `before` (seconds).
    """
    ours = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.new")
    for one in filter(ours.fullmatch, os.listdir(directory)):
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:  # its writer was faster
            try:
                descriptor = os.open(one, os.O_RDWR | os.O_NONBLOCK | _NO_LINK, dir_fd=directory)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # a writer holds the lock, or the file system has no locks
                if os.stat(one, dir_fd=directory, follow_symlinks=False).st_mtime >= before:
                    continue
            os.unlink(one, dir_fd=directory)


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
