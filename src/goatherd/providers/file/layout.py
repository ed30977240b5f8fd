"""Store one secret in a directory, with writes in such an order that a crash at any point leaves the old or new state.

These are the synchronous steps of the file provider; `goatherd.providers.file.provider` adds asyncio, retries and the
errors for `OSError`. The layout of ``base/secret_id/``, all files 0600 in a directory of 0700::

    manifest.json   labels, versions, the digest of each value, a digest of itself; replaced in one rename
    7.value         the bytes of version 7; never changed once the manifest names it
    lock            writers hold flock() on it
    reserve.bin     filler that a writer removes when the disk is full (`SecretDirectory.reserve_room`)

Rules:
- The rename of ``manifest.json`` is the only commit point. A value is synced to the disk before the manifest names it,
  and leaves the manifest before it is deleted.
- A reader syncs the directory before it uses a manifest: if the writer died before its own sync, a power failure could
  bring the previous manifest back after the reader has acted on the new one.
- Readers take no lock: they read the manifest, then the value, and start again if the manifest changed in between.
- A killed writer can leave a value that the manifest does not name. `versions` lists such a value, `read` can read it
  by its number, and the next writer removes it under the lock.
- A directory that has values but no manifest is a damaged secret, not a missing one: an empty manifest is written
  before the first value and removed after the last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from goatherd.errors import (
    ProviderConfigurationError,
    SecretNotFoundError,
    UnavailableError,
)
from goatherd.files import System
from goatherd.providers.base import Call
from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    Growth,
    RecordForm,
    VersionedRecord,
    decode_record,
    encode_record,
    entry_for,
    matches_entry,
    parse_number,
)

MANIFEST: Final = "manifest.json"
FORM: Final = RecordForm(
    name="goatherd-file-secret/1",
    members=("created", "request", "sha256", "size", "destroyed"),
    may_be_empty=True,
    is_alone=True,
)
LOCK: Final = "lock"
NEW_MANIFEST: Final = "manifest.new"
RESERVE: Final = "reserve.bin"
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
VALUE: Final = re.compile(r"([1-9][0-9]{0,17})\.value", re.ASCII)

_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_ATTEMPTS = 100
_RESERVED_BYTES = 128 * 1024
"""A rotation writes six documents of at most 10 KB, and a new list of versions with each."""
_CANNOT_SYNC = frozenset({errno.EROFS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


_WAY_OUT: Final = (
    " Without one, `label` in Python makes an earlier version the current one (how-to page: The store was restored from"
    " a backup)."
)


@lru_cache(maxsize=1)
def _decode_manifest(raw: bytes) -> VersionedRecord:
    """Decode a manifest. It grows with the number of versions, and `status` and `retire` read it once for each."""
    return decode_record(raw, FORM)


def _living_numbers(ledger: VersionedRecord) -> set[int]:
    return {number for number, entry in ledger.versions.items() if not entry.destroyed}


def _parent_of(path: str) -> str:
    return str(PurePosixPath(path).parent)


Durable = dict[str, tuple[int, ...]]


class LockHeldError(Exception):
    """Another writer holds the lock of a secret's directory or replaced the directory; the caller must try again."""


class _Opened(NamedTuple):
    """The open directory of a secret: its file descriptor, its parent's descriptor, and its name in the parent."""

    descriptor: int
    parent: int
    name: str


class SecretDirectory:
    """Reads and changes the directory of one secret in the file store, during one provider call.

    Every method may raise `OSError`, and `UnavailableError` if a file is damaged; methods that write may raise
    `LockHeldError`.

    Args:
        call: The provider call that uses the directory.
        base: The base directory, which contains the secret's directory.
        system: The functions of the operating system that are called.
        durable: For each path, the last manifest (record of versions and labels) that this process knows to be synced
            to disk; shared by all its calls.
    """

    def __init__(self, call: Call, base: str, system: System, durable: Durable | None = None) -> None:
        self._call = call
        self._base = base
        self._system = system
        self._durable: Durable = {} if durable is None else durable
        self._path = f"{base.rstrip('/')}/{call.secret_id}"

    # --- reading --------------------------------------------------------------------------------------------------

    def read_version(self, at: Label | VersionId) -> SecretValue:
        """Read one version of the secret with its value, by label or id."""
        for _ in range(_ATTEMPTS):
            with self._open_directory() as here:
                raw, ledger = self._load_record(here)
                if isinstance(at, VersionId) and (left := self._read_leftover(here, ledger, at)) is not None:
                    return left
                number = ledger.find_version(self._call, at)
                entry = ledger.versions[number]
                try:
                    value = SecretBytes(self._read_content(here, f"{number}.value", entry.size))
                except FileNotFoundError:
                    problem = "its file is missing"
                else:
                    if matches_entry(value, entry):
                        return SecretValue(version=ledger.describe_version(number), value=value)
                    problem = "its bytes do not fit the digest in the manifest"
                # A writer may have destroyed it, or replaced the whole secret, since the manifest was read.
                if self._load_record(here)[0] == raw and raw is not None:
                    raise self._damaged_error(f"version {number} is damaged: {problem}", way_out=_WAY_OUT)
        raise self._call.error(UnavailableError, "the secret changed faster than it could be read")

    def list_versions(self) -> list[SecretVersion]:
        """List the versions of the secret, newest first, including values that a killed writer left."""
        with self._open_directory() as here:
            _, ledger = self._load_record(here)
            ledger.must_exist(self._call)
            if not self._find_leftovers(here, ledger):
                return ledger.newest_first()
            # These files were left by a killed writer, or belong to a writer that is at work and holds the lock. Where
            # no lock is possible, as on a read-only file system, there is no writer.
            with contextlib.ExitStack() as stack:
                with contextlib.suppress(OSError):
                    lock = self._system.open_lock(LOCK, here.descriptor)
                    stack.callback(self._system.close_file, lock)
                    if not self._system.try_lock(lock):
                        return ledger.newest_first()
                _, ledger = self._load_record(here)
                ledger.must_exist(self._call)
                found = {int(version.id): version for version in ledger.newest_first()}
                for number in self._find_leftovers(here, ledger):
                    status = self._system.status_of(f"{number}.value", here.descriptor)
                    created_ms = int(status.st_mtime * 1000)
                    found[number] = SecretVersion(id=VersionId(number), created_ms=created_ms, is_leftover=True)
                return [found[number] for number in sorted(found, reverse=True)]

    def _find_leftovers(self, here: _Opened, ledger: VersionedRecord) -> set[int]:
        """Return the numbers of the stored values that the secret's record `ledger` does not list."""
        names = (VALUE.fullmatch(name) for name in self._system.list_names(here.descriptor))
        return {int(name[1]) for name in names if name is not None} - _living_numbers(ledger)

    def _read_leftover(self, here: _Opened, ledger: VersionedRecord, version: VersionId) -> SecretValue | None:
        number = parse_number(version)
        if not ledger.exists or not number or number in _living_numbers(ledger):
            return None
        try:
            value = self._read_content(here, f"{number}.value", _MAX_MANIFEST_BYTES)
            created_ms = int(self._system.status_of(f"{number}.value", here.descriptor).st_mtime * 1000)
        except FileNotFoundError:
            return None
        described = SecretVersion(id=VersionId(number), created_ms=created_ms, is_leftover=True)
        return SecretValue(version=described, value=SecretBytes(value))

    # --- writing --------------------------------------------------------------------------------------------------

    def add_version(self, value: SecretBytes, now_ms: int, change: Growth, *, creates: bool = False) -> SecretVersion:
        """Add a version to the secret, by the record of versions and labels that `change` makes of the present one.

        With `creates`, missing directories are created first.
        """
        if creates:
            self._make_directory()
        with self._lock_directory() as here:
            raw, ledger = self._load_and_clean(here)
            made = ledger.made_by(self._call.request)
            if made is not None:
                # The rename was done but its answer was lost: make sure of the medium, and answer.
                self._system.sync_file(here.descriptor)
                return ledger.describe_version(made)
            changed = change(ledger, entry_for(value, request=self._call.request, now_ms=now_ms))
            if raw is None:
                self._replace_record(here, ledger)
            number = ledger.next_number
            self._write_new(here, f"{number}.value", value.reveal())
            try:
                self._system.sync_file(here.descriptor)
                self._replace_record(here, changed)
            except OSError:
                self._remove_quietly(here, f"{number}.value")
                raise
            return changed.describe_version(number)

    def move_labels(self, change: Callable[[VersionedRecord], VersionedRecord]) -> None:
        """Replace the record of versions and labels by the one that `change` makes of it."""
        with self._lock_directory() as here:
            _, ledger = self._load_and_clean(here)
            self._replace_record(here, change(ledger))

    def destroy_version(self, version: VersionId) -> None:
        """Destroy a version's value: mark it in the manifest (the record of versions), then delete its file."""
        with self._lock_directory() as here:
            _, ledger = self._load_record(here)
            is_left = parse_number(version) in self._find_leftovers(here, ledger)
            _, ledger = self._load_and_clean(here)
            if is_left and ledger.exists:
                return
            changed = ledger.without_value(self._call, version)
            if changed is not ledger:
                self._replace_record(here, changed)
                self._remove_leftovers(here, changed)

    def delete_secret(self) -> None:
        """Delete the secret: one step hides it from all readers, then its files are deleted."""
        with self._lock_directory() as here:
            _, ledger = self._load_and_clean(here)
            ledger.must_exist(self._call)
            self._replace_record(here, VersionedRecord())
            self._remove_leftovers(here, VersionedRecord())
            self._forget_reserve(here)
            self._system.unlink_file(MANIFEST, here.descriptor)
            # A writer that waits for this lock sees that its name is gone, and starts again.
            self._system.unlink_file(LOCK, here.descriptor)
            with contextlib.suppress(OSError):
                # The directory is not empty: another writer creates the secret again, or another tool has files in it.
                self._system.remove_directory(here.name, here.parent)
            self._system.sync_file(here.parent)

    def reserve_room(self) -> None:
        """Create the secret's reserve file if it is missing: space that a command can use if the disk becomes full.

        A write that finds the disk full deletes the file and tries once more.
        """
        with self._lock_directory() as here:
            _, ledger = self._load_record(here)
            ledger.must_exist(self._call)
            with contextlib.suppress(FileNotFoundError):
                if self._system.status_of(RESERVE, here.descriptor).st_size >= _RESERVED_BYTES:
                    return
            self._forget_reserve(here)
            # Bytes that no file system compresses or leaves out.
            self._write_once(here, RESERVE, os.urandom(_RESERVED_BYTES))
            self._system.sync_file(here.descriptor)

    def _forget_reserve(self, here: _Opened) -> bool:
        """Delete the reserve file, which frees disk space; return whether there was one."""
        try:
            self._system.unlink_file(RESERVE, here.descriptor)
        except FileNotFoundError:
            return False
        self._system.sync_file(here.descriptor)
        return True

    def _replace_record(self, here: _Opened, ledger: VersionedRecord) -> None:
        """Replace the manifest (the record of versions and labels) atomically: this commits a change of the secret."""
        self._write_new(here, NEW_MANIFEST, encode_record(ledger, FORM))
        try:
            self._system.rename_file(NEW_MANIFEST, MANIFEST, here.descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                self._system.unlink_file(NEW_MANIFEST, here.descriptor)
            raise
        self._system.sync_file(here.descriptor)

    def _write_new(self, here: _Opened, name: str, data: bytes) -> None:
        try:
            self._write_once(here, name, data)
        except OSError as error:
            if error.errno not in FULL or not self._forget_reserve(here):
                raise
            self._write_once(here, name, data)

    def _write_once(self, here: _Opened, name: str, data: bytes) -> None:
        descriptor = self._system.open_new(name, here.descriptor)
        try:
            try:
                self._system.write_all(descriptor, data)
                self._system.sync_file(descriptor)
            finally:
                self._system.close_file(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                self._system.unlink_file(name, here.descriptor)
            raise

    def _remove_quietly(self, here: _Opened, name: str) -> None:
        """Delete the file `name` of a value whose commit failed, unless the manifest lists the value; ignore errors."""
        with contextlib.suppress(OSError, UnavailableError, ProviderConfigurationError):
            _, ledger = self._load_record(here)
            self._remove_leftovers(here, ledger, only=name)

    def _load_and_clean(self, here: _Opened) -> tuple[bytes | None, VersionedRecord]:
        """Read the secret's manifest, and delete the values that a killed writer left. The caller holds the lock."""
        raw, ledger = self._load_record(here)
        self._remove_leftovers(here, ledger)
        return raw, ledger

    def _remove_leftovers(self, here: _Opened, ledger: VersionedRecord, *, only: str | None = None) -> None:
        """Delete value files, or only the file `only`, that `ledger` does not list; keep files of other tools."""
        live = {f"{number}.value" for number in _living_numbers(ledger)}
        removed = False
        for name in self._system.list_names(here.descriptor):
            ours = name == NEW_MANIFEST or VALUE.fullmatch(name) is not None
            if ours and name not in live and only in (None, name):
                self._system.unlink_file(name, here.descriptor)
                removed = True
        if removed:
            self._system.sync_file(here.descriptor)

    # --- the files ------------------------------------------------------------------------------------------------

    def _load_record(self, here: _Opened) -> tuple[bytes | None, VersionedRecord]:
        """Read the manifest; return its bytes (None if there is none) and the record of versions and labels in it."""
        for _ in range(_ATTEMPTS):
            try:
                raw, seen = self._content_and_identity(here, MANIFEST, _MAX_MANIFEST_BYTES)
            except FileNotFoundError:
                if not any(VALUE.fullmatch(name) for name in self._system.list_names(here.descriptor)):
                    return None, VersionedRecord()
                continue  # A creator may have come by between the two looks.
            try:
                ledger = _decode_manifest(raw)
            except DamagedRecordError as error:
                raise self._damaged_error(f"{MANIFEST} is damaged: {error}") from error
            self._make_durable(here, seen)
            return raw, ledger
        raise self._damaged_error(f"{MANIFEST} is missing although the directory holds values")

    def _make_durable(self, here: _Opened, seen: tuple[int, ...]) -> None:
        """Sync the manifest that was read, so that it survives a power failure; `seen` identifies its state.

        A state that was synced before is not synced again.
        """
        if self._durable.get(self._path) == seen:
            return
        try:
            self._system.sync_file(here.descriptor)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise
            # A file system that cannot sync a directory is usually read-only, without writers; a writer gets an error.
        self._durable[self._path] = seen

    def _read_content(self, here: _Opened, name: str, limit: int) -> bytes:
        return self._content_and_identity(here, name, limit)[0]

    def _content_and_identity(self, here: _Opened, name: str, limit: int) -> tuple[bytes, tuple[int, ...]]:
        """Read up to `limit` bytes of a file; return them, and attributes by which a replaced file is recognized."""
        descriptor = self._system.open_read(name, here.descriptor)
        try:
            status = self._system.file_status(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise self._configuration_error(
                    f"{name} is not a file", hint=f"Remove {name}, and restore {self._path} from a backup."
                )
            self._check_private(status, f"{self._path}/{name}", "600")
            identity = (status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)
            return self._system.read_up_to(descriptor, limit), identity
        finally:
            self._system.close_file(descriptor)

    # --- the directory and its lock -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _open_directory(self) -> Iterator[_Opened]:
        """Open the secret's directory, beginning at the base directory, and check each component of the path.

        Raises:
            SecretNotFoundError: The directory does not exist.
            ProviderConfigurationError: A path component is a symbolic link, or other users have access.
        """
        *above, name = self._call.secret_id.split("/")
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
            except FileNotFoundError:
                raise self._call.error(SecretNotFoundError, "there is no such secret") from None
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
        with self._open_directory() as here:
            try:
                lock = self._system.open_lock(LOCK, here.descriptor)
            except FileNotFoundError:
                raise LockHeldError from None  # The directory was removed under us.
            except IsADirectoryError:
                raise self._configuration_error(f"{LOCK} is not a file") from None
            try:
                mine = self._system.file_status(lock)
                self._check_private(mine, f"{self._path}/{LOCK}", "600")
                if not self._system.try_lock(lock):
                    raise LockHeldError
                try:
                    named = self._system.status_of(LOCK, here.descriptor)
                except FileNotFoundError:
                    raise LockHeldError from None
                if (mine.st_dev, mine.st_ino) != (named.st_dev, named.st_ino):
                    raise LockHeldError  # We hold the lock of a secret that was deleted meanwhile.
                yield here
            finally:
                self._system.close_file(lock)

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
            for component in self._call.secret_id.split("/"):
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
                    raise LockHeldError from None  # another process has just deleted the secret
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
            raise self._configuration_error(
                f"{path} belongs to user {status.st_uid}, this process runs as {self._system.effective_user()}",
                hint="Run as the owner of the file, or change its owner with chown.",
            )
        if status.st_mode & _OTHERS:
            raise self._configuration_error(
                f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o})", hint=f"chmod {mode} {path}"
            )

    def _check_parent(self, descriptor: int, path: str) -> None:
        """Reject a parent directory in which other users could replace the secret's directory."""
        status = self._system.file_status(descriptor)
        if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
            raise self._configuration_error(
                f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})", hint=f"chmod go-w {path}"
            )
        if status.st_uid not in (0, self._system.effective_user()):
            raise self._configuration_error(
                f"{path} belongs to user {status.st_uid}, not to this user or root",
                hint="Run the command as that user, or use a directory that this user or root owns.",
            )

    def _not_a_directory(self) -> ProviderConfigurationError:
        return self._configuration_error(
            f"a file or a symbolic link is where a directory must be, on the way to {self._path}",
            hint="Choose another path for the secret, or move that file away.",
        )

    def _configuration_error(self, message: str, *, hint: str | None = None) -> ProviderConfigurationError:
        return self._call.error(ProviderConfigurationError, message, hint=hint)

    def _damaged_error(self, message: str, *, way_out: str = "") -> UnavailableError:
        hint = f"Restore {self._path} from a backup.{way_out}"
        return self._call.error(UnavailableError, message, hint=hint, final=True)
