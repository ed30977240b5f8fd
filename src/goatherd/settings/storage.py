"""One file that holds a private key: read whole, made once, replaced in one step, removed for good.

What it is not: it does not know what is in the file. Rules: mode 0600 from the first moment; a reader sees the old file
or the new one; a crash at any call leaves one of them whole, and at most a file named like ``.settings.json.….new``,
which a later write or the removal takes away.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from goatherd.errors import IdentityExistsError, SettingsError

_ABANDONED: Final = 600.0
"""Seconds after which a new file that was never published is that of a writer who was killed."""


def read_file(path: Path) -> bytes:
    """Return the file's bytes.

    Raises:
        SettingsError: It is missing, or cannot be read.
    """
    raw = read_if_there(path)
    if raw is None:
        raise SettingsError(
            f"there is no {path}",
            hint="No identity is made up in its place. Make one with `goatherd init`, or bring one with"
            " `goatherd migrate`.",
        )
    return raw


def read_if_there(path: Path) -> bytes | None:
    """Return the file's bytes, or None where there is none. What cannot be read is not absent.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error


def create_file(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet.

    Raises:
        IdentityExistsError: It exists; it was not touched.
        SettingsError: It cannot be written.
    """
    _put(path, data, _link_new)


def replace_file(path: Path, data: bytes) -> None:
    """Replace the file, or make it.

    Raises:
        SettingsError: It cannot be written; the old one is as it was.
    """
    _put(path, data, os.replace)


def remove_file(path: Path) -> None:
    """Remove the file and what killed writers left of it, for good also where the machine stops right after.

    Raises:
        SettingsError: It cannot be removed.
    """
    try:
        path.unlink()
        _clear(path)
        _sync(path.parent)
    except OSError as error:
        raise SettingsError(f"cannot remove {path}: {error.strerror or type(error).__name__}") from error


def _link_new(new: Path, path: Path) -> None:
    try:
        os.link(new, path)
    except FileExistsError:
        raise IdentityExistsError(f"{path} exists already", hint="It was left as it is.") from None


def _put(path: Path, data: bytes, publish: Callable[[Path, Path], None]) -> None:
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
            _clear(path, before=written_at - _ABANDONED)
        _sync(path.parent)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror or type(error).__name__}") from error


def _clear(path: Path, *, before: float = float("inf")) -> None:
    """Remove the new files of writers who were killed; `before` is in seconds, by the file system's own clock."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.new")
    for one in path.parent.iterdir():
        if ours.fullmatch(one.name) and one.lstat().st_mtime < before:
            one.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
