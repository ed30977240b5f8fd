"""Find a file system in memory, and create a private directory on it for the settings files.

Rules: the kernel (``/proc/self/mountinfo``) must list the file system as ``tmpfs`` or ``ramfs``, because its path alone
proves nothing. The directory belongs to this user alone (owner, mode 0700, not a symbolic link), since every user can
write to most file systems in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from goatherd.errors import NotInMemoryError

KINDS: Final = frozenset({"tmpfs", "ramfs"})
MOUNTS: Final = Path("/proc/self/mountinfo")
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - what is made there is checked
_HINT: Final = (
    "Name a directory on a tmpfs with --memory (in Kubernetes an emptyDir of medium Memory), or allow with --plain-file"
    " that the private key is stored on the disk."
)


def kind_of(device: int, mounts: str) -> str | None:
    """Return the kind of a file system, such as ``tmpfs``, or None if the kernel does not list the file system.

    Args:
        device: ``st_dev`` of any file on the file system.
        mounts: The text of ``/proc/self/mountinfo``, the kernel's list of mounted file systems.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if separator and len(fields) > 2 and fields[2] == wanted:
            return after.split()[0]
    return None


def find_memory(given: Path | None, environ: Mapping[str, str], *, mounts: Path = MOUNTS) -> Path:
    """Return the absolute path of a writable directory on a file system in memory.

    Args:
        given: The directory that the operator names. Without it, systemd's ``RUNTIME_DIRECTORY``, ``XDG_RUNTIME_DIR``,
            and ``/dev/shm`` are tried in this order.
        environ: The environment variables.
        mounts: Path of the kernel's list of mounted file systems.

    Raises:
        NotInMemoryError: The directory is on a disk, or cannot be written, or none was found; the hint says what to do.
    """
    if given is not None:
        problem = _find_problem(given, mounts)
        if problem:
            raise NotInMemoryError(f"{given} {problem}", hint=_HINT)
        return given.absolute()  # a link in the data directory will point there
    names = [*environ.get("RUNTIME_DIRECTORY", "").split(":"), environ.get("XDG_RUNTIME_DIR", "")]
    for place in [*(Path(name) for name in names if name), _SHARED_MEMORY]:
        if _find_problem(place, mounts) is None:
            return place.absolute()
    raise NotInMemoryError("no directory in memory (tmpfs) was found", hint=_HINT)


def _find_problem(place: Path, mounts: Path) -> str | None:
    try:
        status = place.stat()
        text = mounts.read_text(errors="replace")
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    kind = kind_of(status.st_dev, text)
    if kind not in KINDS:
        return f"is not in memory: it is on {kind or 'a file system that the kernel does not list'}"
    if not stat.S_ISDIR(status.st_mode) or not os.access(place, os.W_OK | os.X_OK):
        return "is not a writable directory"
    return None


def directory_for(base: Path, data: Path) -> Path:
    """Return the directory below `base` for the settings files of a data directory.

    It is the same at every call, so that a later agent finds the files of an earlier one.
    """
    digest = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
    return base / f"goatherd-{os.geteuid()}-{digest}"


def make_private(directory: Path) -> None:
    """Create the directory, or check that the existing one belongs to this user alone.

    SECURITY: every user can create names in /dev/shm, so another user's directory or a symbolic link is rejected
    (tests/unit/agent/test_memory_directory.py).

    Raises:
        NotInMemoryError: The directory belongs to another user, is open to others, is a link, or cannot be created.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise NotInMemoryError(f"{directory} cannot be created: {error.strerror}", hint=_HINT) from error
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    if not ours:
        raise NotInMemoryError(
            f"{directory} already exists, and is not a directory that only this user can access",
            hint="Find out which user created it. Then remove it, or name another directory with --memory.",
        )


def clear_if_empty(directory: Path) -> None:
    """Remove the directory if it is empty."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def remove_directory(directory: Path) -> None:
    """Remove the directory with its contents, if it exists and belongs to this user."""
    try:
        status = directory.lstat()
    except OSError:
        return
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
        shutil.rmtree(directory, ignore_errors=True)
