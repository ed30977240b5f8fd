"""Find a file system in memory, and create a private directory on it for the settings files.

Rules: the kernel (``/proc/self/mountinfo``) must list the file system as ``tmpfs`` or ``ramfs``; its path proves
nothing. The directory belongs to this user alone (owner, mode 0700, not a symbolic link), since every user can write to
most file systems in memory.
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
    "Name a directory on a tmpfs with --memory (in Kubernetes an emptyDir of medium Memory), or say --plain-file, and"
    " the private key lies on the disk."
)


def kind_of(device: int, mounts: str) -> str | None:
    """Return the kind of the file system with this device number, or None where it is not listed.

    Args:
        device: ``st_dev`` of anything on it.
        mounts: The text of ``/proc/self/mountinfo``.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if separator and len(fields) > 2 and fields[2] == wanted:
            return after.split()[0]
    return None


def find_memory(given: Path | None, environ: Mapping[str, str], *, mounts: Path = MOUNTS) -> Path:
    """Return a directory in memory that can be written.

    Args:
        given: The one that the operator names; else systemd's ``RUNTIME_DIRECTORY``, ``XDG_RUNTIME_DIR``, and then
            ``/dev/shm`` are tried.
        environ: The environment.
        mounts: What the kernel says is mounted.

    Raises:
        NotInMemoryError: It is on a disk, or cannot be written, or nothing was found; the hint says what to do.
    """
    if given is not None:
        problem = _find_problem(given, mounts)
        if problem:
            raise NotInMemoryError(f"{given} {problem}", hint=_HINT)
        return given
    names = [*environ.get("RUNTIME_DIRECTORY", "").split(":"), environ.get("XDG_RUNTIME_DIR", "")]
    for place in [*(Path(name) for name in names if name), _SHARED_MEMORY]:
        if _find_problem(place, mounts) is None:
            return place
    raise NotInMemoryError("no directory in memory was found", hint=_HINT)


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
        return "is not a directory that can be written"
    return None


def directory_for(base: Path, data: Path) -> Path:
    """Return the directory in memory that belongs to a data directory: the same one every time, so that it is found."""
    digest = hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]
    return base / f"goatherd-{os.geteuid()}-{digest}"


def make_private(directory: Path) -> None:
    """Make the directory, or make sure that the one that is there is ours alone.

    SECURITY: every user can make names in /dev/shm: another user's directory, or a link, is refused
    (tests/unit/agent/test_memory_directory.py).

    Raises:
        NotInMemoryError: It belongs to another user, others can enter it, it is a link, or it cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise NotInMemoryError(f"{directory} cannot be made: {error.strerror}", hint=_HINT) from error
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    if not ours:
        raise NotInMemoryError(
            f"{directory} is there already, and is not a directory of this user alone",
            hint="Find out who made it, remove it, or name another place with --memory.",
        )


def clear_if_empty(directory: Path) -> None:
    """Remove the directory if nothing was written into it."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def remove_directory(directory: Path) -> None:
    """Remove the directory with everything in it; nothing where there is none, or where it is not ours."""
    try:
        status = directory.lstat()
    except OSError:
        return
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
        shutil.rmtree(directory, ignore_errors=True)
