"""Keep one secret in one file, replaced in such an order that a crash at any point leaves the old or the new state.

These are the synchronous steps of the file store; `goatherd.providers.file.provider` adds asyncio and the errors for
`OSError`. The layout of ``base/secret_id/``, a directory of 0700 with files of 0600::

    secret.json     the record of versions and labels, and the values
    lock            writers hold flock() on it

Rules:
- A writer writes ``secret.new``, syncs it, renames it to ``secret.json``, and syncs the directory. The rename is the
  only commit point. If the disk is full, the write fails before it.
- A reader takes no lock. It syncs the directory after it has read: if the writer died before its own sync, a power
  failure could bring the earlier file back after the reader has acted on the new one.
- A killed writer can leave ``secret.new``. The next reader that may write, or the next writer, removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from goatherd.errors import ConflictError, ProviderConfigurationError, UnavailableError
from goatherd.files import System

CONTENT: Final = "secret.json"
NEW: Final = "secret.new"
LOCK: Final = "lock"

_MAX_BYTES: Final = 16 << 20
_CANNOT_SYNC = frozenset({errno.EROFS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def _parent_of(path: str) -> str:
    return str(PurePosixPath(path).parent)


class _Opened(NamedTuple):
    """The open directory of a secret: its file descriptor, its parent's descriptor, and its name in the parent."""

    descriptor: int
    parent: int
    name: str


class SecretDirectory:
    """Reads and changes the directory of one secret in the file store.

    Every method may raise `OSError`. Methods that write raise `ConflictError` while another writer is at work, or if
    the file is not in the state that the token identifies: the SHA-256 of its bytes, None if there is no file.

    Args:
        base: The base directory, which contains the secret's directory.
        secret_id: The secret's name in it.
        system: The functions of the operating system that are called.
    """

    def __init__(self, base: str, secret_id: str, system: System) -> None:
        self._base = base
        self._secret_id = secret_id
        self._system = system
        self._path = f"{base.rstrip('/')}/{secret_id}"

    def read_content(self) -> bytes | None:
        """Return the bytes of the secret's file; None if there is no such secret."""
        with contextlib.ExitStack() as stack:
            try:
                here = stack.enter_context(self._open_directory())
            except FileNotFoundError:
                return None
            self._remove_abandoned(here)
            raw = self._content(here)
            try:
                self._system.sync_file(here.descriptor)
            except OSError as error:
                if error.errno not in _CANNOT_SYNC:
                    raise
                # Usually a read-only file system, without writers. A writer gets this error.
            return raw

    def replace_content(self, raw: bytes, token: str | None) -> None:
        """Replace the secret's file; without a token, create it, and first any directory that is missing."""
        if token is None:
            self._make_directory()
        with self._lock_directory() as here:
            self._check_token(here, token)
            with contextlib.suppress(FileNotFoundError):
                self._system.unlink_file(NEW, here.descriptor)
            try:
                self._write_file(here, NEW, raw)
                self._system.rename_file(NEW, CONTENT, here.descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    self._system.unlink_file(NEW, here.descriptor)
                raise
            self._system.sync_file(here.descriptor)

    def remove_content(self, token: str) -> None:
        """Delete the secret: one step hides it from all readers, then what else is in the directory is deleted."""
        with self._lock_directory() as here:
            self._check_token(here, token)
            self._system.unlink_file(CONTENT, here.descriptor)
            with contextlib.suppress(FileNotFoundError):
                self._system.unlink_file(NEW, here.descriptor)
            self._system.sync_file(here.descriptor)
            # A writer that waits for this lock sees that its name is gone, and starts again.
            self._system.unlink_file(LOCK, here.descriptor)
            with contextlib.suppress(OSError):
                # The directory is not empty: another writer creates the secret again, or another tool has files in it.
                self._system.remove_directory(here.name, here.parent)
            self._system.sync_file(here.parent)

    def _remove_abandoned(self, here: _Opened) -> None:
        """Remove the new file of a writer that was killed before it renamed it, unless a writer is at work."""
        with contextlib.suppress(OSError):  # there is none; or this user may not write, and no writer runs here
            self._system.status_of(NEW, here.descriptor)
            lock = self._system.open_lock(LOCK, here.descriptor)
            try:
                if self._system.try_lock(lock):
                    self._system.unlink_file(NEW, here.descriptor)
                    self._system.sync_file(here.descriptor)
            finally:
                self._system.close_file(lock)

    def _check_token(self, here: _Opened, token: str | None) -> None:
        raw = self._content(here)
        if (None if raw is None else token_of(raw)) != token:
            raise ConflictError(f"another writer has changed {self._path}")

    def _write_file(self, here: _Opened, name: str, raw: bytes) -> None:
        descriptor = self._system.open_new(name, here.descriptor)
        try:
            self._system.write_all(descriptor, raw)
            self._system.sync_file(descriptor)
        finally:
            self._system.close_file(descriptor)

    def _content(self, here: _Opened) -> bytes | None:
        try:
            descriptor = self._system.open_read(CONTENT, here.descriptor)
        except FileNotFoundError:
            return None
        try:
            status = self._system.file_status(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ProviderConfigurationError(
                    f"{self._path}/{CONTENT} is not a file", hint=f"Remove it, and restore {self._path} from a backup."
                )
            self._check_private(status, f"{self._path}/{CONTENT}", "600")
            raw = self._system.read_up_to(descriptor, _MAX_BYTES)
        finally:
            self._system.close_file(descriptor)
        if len(raw) > _MAX_BYTES:
            raise UnavailableError(f"{self._path}/{CONTENT} is longer than Goatherd writes it", final=True)
        return raw

    # --- the directory and its lock -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open_directory(self) -> Iterator[_Opened]:
        """Open the secret's directory, beginning at the base directory, and check each component of the path.

        Raises:
            FileNotFoundError: The directory does not exist.
            ProviderConfigurationError: A path component is a symbolic link, or other users have access.
        """
        *above, name = self._secret_id.split("/")
        with contextlib.ExitStack() as stack:
            try:
                parent = self._system.open_base(self._base)
                stack.callback(self._system.close_file, parent)
                self._check_parent(parent, self._base)
                for step, component in enumerate(above):
                    parent = self._system.open_directory(component, parent)
                    stack.callback(self._system.close_file, parent)
                    self._check_parent(parent, "/".join([self._base.rstrip("/"), *above[: step + 1]]))
                descriptor = self._system.open_directory(name, parent)
            except NotADirectoryError:
                raise self._not_a_directory() from None
            stack.callback(self._system.close_file, descriptor)
            # SECURITY: other users could read or replace the key if they could enter the secret's directory
            # (tests/unit/providers/file/test_provider.py).
            self._check_private(self._system.file_status(descriptor), self._path, "700")
            yield _Opened(descriptor, parent, name)

    @contextlib.contextmanager
    def _lock_directory(self) -> Iterator[_Opened]:
        """Open the secret's directory and take its lock."""
        held = ConflictError(f"another writer holds the lock of {self._path}")
        with contextlib.ExitStack() as stack:
            try:
                here = stack.enter_context(self._open_directory())
                lock = self._system.open_lock(LOCK, here.descriptor)
            except FileNotFoundError:
                raise held from None  # another process has just deleted the secret
            except IsADirectoryError:
                raise ProviderConfigurationError(f"{self._path}/{LOCK} is not a file") from None
            stack.callback(self._system.close_file, lock)
            mine = self._system.file_status(lock)
            self._check_private(mine, f"{self._path}/{LOCK}", "600")
            if not self._system.try_lock(lock):
                raise held
            try:
                named = self._system.status_of(LOCK, here.descriptor)
            except FileNotFoundError:
                raise held from None
            if (mine.st_dev, mine.st_ino) != (named.st_dev, named.st_ino):
                raise held  # this is the lock of a secret that was deleted meanwhile
            yield here

    def _make_directory(self) -> None:
        """Create missing directories on the path to the secret, each with mode 0700 and synced before the next one."""
        missing: list[str] = []
        path = self._base
        while not os.path.lexists(path):
            missing.append(path)
            path = _parent_of(path)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                self._system.make_base(path)
            self._sync_base(_parent_of(path))
        with contextlib.ExitStack() as stack:
            path, parent = self._base, self._system.open_base(self._base)
            stack.callback(self._system.close_file, parent)
            for component in self._secret_id.split("/"):
                self._check_parent(parent, path)  # before anything is made that would stay there
                path = f"{path.rstrip('/')}/{component}"
                try:
                    self._system.make_directory(component, parent)
                except FileExistsError:
                    pass
                else:
                    self._system.sync_file(parent)
                try:
                    parent = self._system.open_directory(component, parent)
                except FileNotFoundError:
                    raise ConflictError(f"another process has just deleted {path}") from None
                except NotADirectoryError:
                    raise self._not_a_directory() from None
                stack.callback(self._system.close_file, parent)

    def _sync_base(self, path: str) -> None:
        descriptor = self._system.open_base(path)
        try:
            self._system.sync_file(descriptor)
        finally:
            self._system.close_file(descriptor)

    def _check_private(self, status: os.stat_result, path: str, mode: str) -> None:
        if status.st_uid != self._system.effective_user():
            raise ProviderConfigurationError(
                f"{path} belongs to user {status.st_uid}, this process runs as {self._system.effective_user()}",
                hint="Run as the owner of the file, or change its owner with chown.",
            )
        if status.st_mode & _OTHERS:
            raise ProviderConfigurationError(
                f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o})", hint=f"chmod {mode} {path}"
            )

    def _check_parent(self, descriptor: int, path: str) -> None:
        """Reject a parent directory in which other users could replace the secret's directory."""
        status = self._system.file_status(descriptor)
        if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
            raise ProviderConfigurationError(
                f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})", hint=f"chmod go-w {path}"
            )
        if status.st_uid not in (0, self._system.effective_user()):
            raise ProviderConfigurationError(
                f"{path} belongs to user {status.st_uid}, not to this user or root",
                hint="Run the command as that user, or use a directory that this user or root owns.",
            )

    def _not_a_directory(self) -> ProviderConfigurationError:
        return ProviderConfigurationError(
            f"a file or a symbolic link is where a directory must be, on the way to {self._path}",
            hint="Choose another path for the secret, or move that file away.",
        )


def token_of(raw: bytes) -> str:
    """Return what identifies the state of a secret's file: the SHA-256 of its bytes."""
    return hashlib.sha256(raw).hexdigest()
