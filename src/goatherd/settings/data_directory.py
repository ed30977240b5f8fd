"""Inspect a GoatDB data directory: which organizations it holds, and whether this version can read their files.

A data directory holds one directory for each organization, with its logs (``<type>/<repository>.jsonl``) and, for a
GoatDB server, ``settings.json``. Only `prepare_logs` changes anything. The checks read the names of files, their first
bytes, and the type of the cryptographic keys in them. Every command that uses a data directory makes these checks
first. So files of another GoatDB version, or a mistyped path, cause an error and not an empty database. Calls block.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import orjson

from goatherd.errors import ConfigurationError, DecodeError, NewerFormatError, StorageError
from goatherd.files import open_or_create
from goatherd.identity.settings_json import SETTINGS_NAME
from goatherd.telemetry import Event, event_text
from goatherd.wire.commit import Commit, decode_commits
from goatherd.wire.commit_log import Scan, read_lines, scan_log
from goatherd.wire.json import parse_json

LOG_SUFFIX: Final = ".jsonl"
DAMAGED_SUFFIX: Final = ".damaged"
REMAINS: Final = "settings.json.migrated"
"""The note, without the key, that replaces a settings.json whose key `goatherd migrate` has removed."""
SESSIONS_LOG: Final = Path("sys/sessions.jsonl")
SEEN_NAME: Final = ".goatherd.seen.json"
"""File in an organization's directory with the generation and public keys of the last used identity."""

_log = logging.getLogger("goatherd.agent")

_SERVER_FILES: Final = ".goatherd.*"
"""Files of a Goatherd server in an organization's directory. Those in the data directory are ``.goatherd-agent.*``."""
_NEWER_SUFFIX: Final = ".goat"
_SHARD_MAGIC: Final = (b"TAOG", b"GOAT")
_LARGEST_RECORD: Final = 256 * 1024 * 1024
_SMALLEST_RECORD: Final = 36
_NEWER_KEY: Final = "OKP"
_QUOTED_KEYS: Final = (f'"{_NEWER_KEY}'.encode(), f"\\u0022{_NEWER_KEY}".encode())
"""Both ways in which JSON writes a quotation mark. Without it, the letters occur in many a key by chance."""
_SUPPORTED: Final = "Goatherd supports GoatDB 0.5.1"
_NEWER_HINT: Final = (
    "Nothing was changed. Run the newer GoatDB without Goatherd, or restore the backup of this directory from before "
    "the upgrade."
)


def read_records(log: Path) -> Iterator[dict[str, Any]]:
    """Read a log's file now, and return an iterator over its records; it is empty if there is no file.

    As in a Goatherd server, damaged lines are skipped, and the records after them are returned. A line is decoded when
    the iterator gets there.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        raw = log.read_bytes()
    except FileNotFoundError:
        return iter(())
    except OSError as error:
        raise StorageError(f"cannot read {log}: {error.strerror}") from error
    return (line.record for line in read_lines(raw) if line.record is not None)


def read_commits(log: Path, org: str) -> list[Commit]:
    """Return the commits of a log, except those that cannot be decoded; none if there is no log.

    Raises:
        StorageError: The log cannot be read, or good records follow a damaged one.
    """
    try:
        found = scan_log(log.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{log} cannot be read: {error.strerror}") from error
    if found.records_after_damage:
        raise StorageError(
            f"{log}: {found.damage}, and {found.records_after_damage} good records follow it",
            hint=f"Run `goatherd doctor --data repair {log.parent.parent}` first. Otherwise GoatDB deletes these"
            " records at its next start.",
        )
    return decode_commits(found.records, org)


def organization_directories(data: Path) -> list[Path]:
    """Return the directories of the organizations in a data directory, sorted by name.

    Raises:
        StorageError: The directory cannot be read.
    """
    return [path for path in list_entries(data) if path.is_dir() and is_organization_directory(path)]


def list_entries(directory: Path) -> list[Path]:
    """Return the entries of a directory, except hidden files and the ``lost+found`` of a file system.

    Raises:
        StorageError: The directory cannot be read.
    """
    try:
        found = sorted(directory.iterdir())
    except OSError as error:
        raise StorageError(f"{directory} cannot be read: {error.strerror}") from error
    return [path for path in found if not path.name.startswith(".") and path.name != _LOST_AND_FOUND]


def is_organization_directory(path: Path) -> bool:
    """Return whether a directory looks like an organization's: it holds a log, a settings.json or files of Goatherd.

    Raises:
        StorageError: The directory cannot be read.
    """
    return any(path.glob(_SERVER_FILES)) or holds_server_data(path)


def holds_server_data(path: Path) -> bool:
    """Return whether a directory holds a log or a settings.json.

    Goatherd's own files do not count: they also remain of a start that named a wrong organization.

    Raises:
        StorageError: The directory cannot be read.
    """
    if os.path.lexists(path / SETTINGS_NAME):
        return True
    return any(path.glob(f"*/*{LOG_SUFFIX}")) or any(path.glob(f"*/*{_NEWER_SUFFIX}"))


def check_understood(directory: Path) -> None:
    """Check that one organization's directory holds nothing that a newer GoatDB wrote.

    A server that skipped such files would serve an empty database. The check reads the first bytes of each file, and
    the whole ``/sys/sessions`` log.

    Raises:
        NewerFormatError: The directory holds such a file; the message names it.
        StorageError: A file cannot be read, or this process runs as root and another user has replaced the directory by
            a link.
    """
    try:
        # SECURITY: the server's user owns the data directory, and may be compromised. A process of root must not work
        # on what this user has linked there (tests/unit/settings/test_data_directory.py).
        if os.geteuid() == 0 and directory.is_symlink() and directory.lstat().st_uid != 0:
            raise StorageError(
                f"{directory} is a link that another user has made",
                hint="Find out which user made it. Remove it, or replace it by a link of your own.",
            )
        _check_settings(directory / SETTINGS_NAME)
        for path in _walk_files(directory):
            if path.suffix == _NEWER_SUFFIX or _is_newer_log(path):
                raise NewerFormatError(
                    f"{path} is a log of a newer GoatDB, in a format that Goatherd cannot read. {_SUPPORTED}, whose"
                    f" logs are files of JSON lines (*{LOG_SUFFIX})",
                    hint=_NEWER_HINT,
                )
        sessions = directory / SESSIONS_LOG
        if sessions.exists():
            _check_sessions(sessions, _version_of(sessions.stat()))
    except OSError as error:
        raise StorageError(f"{error.filename or directory} cannot be read: {error.strerror}") from error


def check_logs_whole(directory: Path) -> None:
    """Check that a GoatDB server can be started on an organization's logs without losing records.

    COMPAT: GoatDB 0.5.1 cuts a log off at its first damaged line, and so loses every good record after this line.

    Raises:
        StorageError: Records would be lost (the message names the log and the line), or a log cannot be read.
    """
    _find_torn_logs(directory)


def prepare_logs(directory: Path) -> None:
    """Check an organization's logs as `check_logs_whole` does, and cut off what a crash left at the end of a log.

    No server may run on the directory.

    COMPAT: at its start, GoatDB 0.5.1 cuts off one more byte for each record of such a log. It appends to the damaged
    record that this leaves, and cuts off all that it appended at its next start.

    Raises:
        StorageError: Records would be lost (the message names the log and the line), or a log cannot be read or
            written.
    """
    for path, found in _find_torn_logs(directory):
        try:
            size = path.stat().st_size - found.good_end
            _cut_off(path, found.good_end)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise StorageError(
                    f"{path} was not repaired: it, or its directory, is a link that another user has made",
                    hint="Find out which user made it. Remove it, or replace it by a link of your own.",
                ) from error
            raise StorageError(f"cannot remove the unfinished last line of {path}: {error.strerror}") from error
        _log.info("%s", event_text(Event.DATA_TORN, file=path, bytes=size))


def _cut_off(path: Path, length: int) -> None:
    """Cut a log off at this length. A link that another user has made is not followed (`goatherd.files`)."""
    log = open_or_create(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC, create=False, may_be_below_link=False)
    try:
        os.ftruncate(log, length)
    finally:
        os.close(log)


def _find_torn_logs(directory: Path) -> list[tuple[Path, Scan]]:
    """Return the logs that end with a damaged line.

    Raises:
        StorageError: Good records follow a damaged line, or a log cannot be read.
    """
    torn = []
    for path in sorted(directory.glob(f"*/*{LOG_SUFFIX}")):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}") from error
        if data[-1:] in {b"", b"\n"} and all(map(_is_json, data.split(b"\n"))):
            continue
        found = scan_log(data)
        if found.records_after_damage:
            raise StorageError(
                f"{path}: {found.damage}, and {found.records_after_damage} good records follow it; a GoatDB server"
                " would cut off all of them at its start",
                hint=f"`goatherd doctor --data repair {directory}` moves the damaged line aside and keeps the others.",
            )
        if found.damage is not None:
            torn.append((path, found))
    return torn


def check_data_directory(data: Path, orgs: Sequence[str], *, create: bool) -> None:
    """Check that a data directory is the one that the operator means, before anything is created in it.

    An empty directory is accepted: an operator, systemd or a volume has created it for this purpose.

    Args:
        data: The data directory.
        orgs: The names of the organizations' directories in it.
        create: Whether the operator has asked for a new data directory, or a new organization in it.

    Raises:
        ConfigurationError: The directory is missing, holds something else, or lacks one of the organizations; or it is
            the directory of one organization.
        NewerFormatError: A newer GoatDB has written to the directory.
        StorageError: The directory cannot be read.
    """
    logs = [data / "sys" / f"{name}{suffix}" for name in ("sessions", "users") for suffix in _LOG_SUFFIXES]
    if any(log.is_file() for log in logs) or any(data.glob(_SERVER_FILES)):
        directory = Path(os.path.abspath(data))  # noqa: PTH100 - a link has the organization's name
        raise ConfigurationError(
            f"{directory} is the directory of one organization, not the data directory that contains it",
            hint=f"Give its parent directory: --data {directory.parent} --org {directory.name}",
        )
    for org in orgs:
        if (data / org).is_dir():
            check_understood(data / org)
    if create:
        return
    if not data.exists():
        raise ConfigurationError(
            f"the data directory {data} does not exist",
            hint="Check the path, and check that the volume is mounted. To create an empty database there, add"
            " --create.",
        )
    present = list_entries(data)
    for org in orgs:
        directory = data / org
        if directory.is_dir() and (not list_entries(directory) or is_organization_directory(directory)):
            continue
        if directory.exists():
            raise ConfigurationError(
                f"{directory} contains files, but no GoatDB data",
                hint="Check --data and --org. To create an empty database there, add --create.",
            )
        if present:
            names = ", ".join(path.name for path in organization_directories(data)[:_FEW])
            held = f"it holds the organizations {names}" if names else "it holds other files"
            raise ConfigurationError(
                f"{data} holds no data of organization {org!r}; {held}",
                hint="Check --data and --org. To create an empty database for this organization, add --create.",
            )


def refuse_unnamed_organizations(data: Path, orgs: Sequence[str]) -> None:
    """Check that `orgs` names every organization in a data directory, before a GoatDB server is started on it.

    An organization that is not named gets no settings.json from Goatherd.

    COMPAT: GoatDB 0.5.1 creates a new root for every organization that it serves and that has no settings.json.

    Args:
        data: The data directory.
        orgs: The organizations that the operator has named, by the names of their directories.

    Raises:
        ConfigurationError: The directory holds an organization that is not named; the message says which.
        StorageError: The directory cannot be read.
    """
    if not data.is_dir():
        return
    unnamed = [
        path.name for path in organization_directories(data) if path.name not in orgs and holds_server_data(path)
    ]
    if not unnamed:
        return
    named = ", ".join(orgs)
    options = " ".join(f"--org {name}" for name in (*orgs, *unnamed[:_FEW]))
    raise ConfigurationError(
        f"{data} holds organizations that are not named with --org: {', '.join(unnamed[:_FEW])} (named: {named}). The"
        " server would create a new root for each of them that has no settings.json, so it was not started",
        hint=f"If the server serves them, name them all: {options}. If it does not, move"
        f" {', '.join(str(data / name) for name in unnamed[:_FEW])} out of the data directory.",
    )


def refuse_running(data: Path) -> None:
    """Check that no other process has a file of a data directory open for writing.

    GoatDB takes no lock. So on systems with ``/proc``, the check reads the open files of all processes that it may see.
    A GoatDB server has its logs open, and a Goatherd server its lock file. A process that only reads, such as a backup,
    is no server. A process in a container has other paths, so a file is also recognized by its inode.

    Raises:
        StorageError: A process has a file of the directory open for writing.
    """
    directory = str(data.resolve()) + os.sep
    files = _list_inodes(data)
    names = {path.name for path in files.values()}
    mounts = _find_mounts(Path("/proc/self"))
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        for entry, target in _list_written(process):
            # In another mount namespace, such as a container's, the same path is another file.
            is_below = target.startswith(directory) and _find_mounts(process) == mounts
            held: Path | str | None = target if is_below else None
            # Only files of the same name: the status of a file on a network file system may take forever.
            if held is None and os.path.basename(target) in names:  # noqa: PTH119 - it need not be a path here
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    held = files.get((status.st_dev, status.st_ino))
            if held is not None:
                raise StorageError(
                    f"process {process.name} holds {held} open; nothing was changed",
                    hint="Stop this process, then run the command again.",
                )


# --- inside -----------------------------------------------------------------------------------------------------------

_LOG_SUFFIXES: Final = (LOG_SUFFIX, _NEWER_SUFFIX)
_LOST_AND_FOUND: Final = "lost+found"
_FEW: Final = 5
_PART_BYTES: Final = 1024 * 1024


def _list_inodes(data: Path) -> dict[tuple[int, int], Path]:
    """Return the files in a directory by device and inode."""
    found = {}
    for folder, _, names in os.walk(data):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):  # it was removed meanwhile, or is a link to nowhere
                status = path.stat()
                found[status.st_dev, status.st_ino] = path
    return found


def _find_mounts(process: Path) -> Path | None:
    """Return the mount namespace of a process; None if unknown."""
    try:
        return (process / "ns/mnt").readlink()
    except OSError:
        return None


def _list_written(process: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files that a process has open for writing: the entry in ``/proc``, and the path as the process has it.

    There are none if the process has ended or may not be seen.
    """
    try:
        entries = list((process / "fd").iterdir())
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):  # it was closed meanwhile
            if entry.lstat().st_mode & stat.S_IWUSR:
                yield entry, str(entry.readlink())


def _walk_files(directory: Path) -> Iterator[Path]:
    """Yield the files of an organization, except hidden files and files of damaged lines that were set aside.

    Raises:
        OSError: A directory cannot be read: the logs in it would seem not to exist.
    """
    for folder, folders, names in os.walk(directory, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != _LOST_AND_FOUND)
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix != DAMAGED_SUFFIX and path.is_file():
                yield path


def _raise(error: OSError) -> None:
    raise error


def _is_newer_log(path: Path) -> bool:
    """Return whether a file begins like a binary log of a newer GoatDB.

    Such a log begins with a length, ``G`` and a version, or with the mark of a shard.
    """
    with path.open("rb") as file:
        head = file.read(6)
    if head[:4] in _SHARD_MAGIC:
        return True
    length = int.from_bytes(head[:4], "big")
    return len(head) == 6 and head[4:5] == b"G" and head[5] <= 1 and _SMALLEST_RECORD <= length <= _LARGEST_RECORD


def _check_settings(path: Path) -> None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return
    tree = _parse_object(raw)
    sessions = [tree.get("currentSession")]
    for name in ("roots", "trustedSessions"):
        listed = tree.get(name)
        sessions += listed if isinstance(listed, list) else []
    if any(isinstance(one, Mapping) and _is_newer_key(one.get("publicKey")) for one in sessions):
        raise NewerFormatError(
            f"{path} holds an Ed25519 key, which is a newer GoatDB's key; {_SUPPORTED}, whose keys are P-384",
            hint=_NEWER_HINT,
        )


def _version_of(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers that change whenever a file is written or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=64)
def _check_sessions(path: Path, version: tuple[int, ...]) -> None:
    """Check that a log of ``/sys/sessions`` holds no newer session.

    The result is cached: at its start, a server checks its directory before it creates anything, and again once it has
    locked the directory. An error is not cached.

    Args:
        path: The log.
        version: What `_version_of` returns for the log, so that a log that was changed is checked again.
    """
    del version
    position = 0
    with path.open("rb") as file:
        while part := file.read(_PART_BYTES) + file.readline():
            if any(key in part for key in _QUOTED_KEYS):
                _check_sessions_part(path, part, position)
            position += len(part)


def _check_sessions_part(path: Path, part: bytes, position: int) -> None:
    for line in BytesIO(part):
        if _NEWER_KEY.encode() in line and _is_newer_session(_parse_object(line)):
            raise NewerFormatError(
                f"{path} holds, at byte {position}, a session with an Ed25519 key, which is a newer GoatDB's key;"
                f" {_SUPPORTED}, whose keys are P-384",
                hint=_NEWER_HINT,
            )
        position += len(line)


def _is_newer_session(commit: Mapping[str, Any]) -> bool:
    contents = commit.get("c")
    record = contents.get("r") if isinstance(contents, Mapping) else None
    data = record.get("d") if isinstance(record, Mapping) else None
    key = data.get("publicKey") if isinstance(data, Mapping) else None
    return isinstance(key, str) and _is_newer_key(_parse_object(key.encode(errors="replace")))


def _is_newer_key(jwk: object) -> bool:
    return isinstance(jwk, Mapping) and jwk.get("kty") == _NEWER_KEY


def _is_json(line: bytes) -> bool:
    if not line:
        return True
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _parse_object(raw: bytes) -> Mapping[str, Any]:
    """Parse a JSON object; return an empty one if the text is not a JSON object."""
    try:
        found = parse_json(raw)
    except DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
