"""Search files, image layers and git histories for private keys.

Every file is searched, whatever its name: an archive (tar, zip) or a compressed file (gzip, bzip2, xz) is unpacked in
memory, as are the archives in it, so a saved image is searched layer by layer. Nothing is written, and no output holds
a key. A link or a pipe is read if it is named, but not if it is in a directory. What could not be searched is listed
and never counts as clean. `goatherd.operations.live_keys` finds out which of the keys servers accept.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, Protocol

from goatherd.crypto import PrivateKey
from goatherd.identity.leaked_keys import LONGEST, LeakedKey, find_private_keys
from goatherd.operations.git_history import GitUnreadableError, is_shallow, locate_objects, read_objects

CURRENT, NEXT, TRUSTED, FORMER = "current root", "next root", "trusted root", "former root"
"""How the store lists a key that is live: servers accept what is signed with it. A former root is in older versions."""
REVOKED, UNKNOWN = "revoked root", "not trusted"
"""How the store lists a key that servers reject."""
UNLISTED: Final = "not listed"
"""The identity does not say whether servers trust the key: it lists no user sessions, and not every previous root."""
LIVE: Final = frozenset({CURRENT, NEXT, TRUSTED, FORMER})

_WINDOW: Final = 1 << 22
_DEEPEST: Final = 8
_PIECE: Final = 1 << 16
_READS_AFTER_END: Final = 100
_LONGEST_HEADER: Final = 1 << 24
_MEMORY: Final = 1 << 26
"""How many bytes of zip archives, one in the other, are kept in memory at most; xz may use twice as much to unpack."""
_GZIP: Final = b"\x1f\x8b"
_BZIP2: Final = re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")
_XZ: Final = b"\xfd7zXZ\x00"
_ZIP: Final = b"PK\x03\x04"
_PACKED: Final = {
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x02\x21\x4c\x18": "LZ4",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"LZIP\x01": "lzip",
    b"\x1f\x9d": "compress",
}
"""First bytes of formats that the standard library cannot unpack."""
_UNPACK: Final = "unpack it and scan the result"
_GIT_OBJECT: Final = re.compile(r"[0-9a-f]{2}/[0-9a-f]{38,62}|pack/pack-[0-9a-f]{40,64}\.pack")
"""The path, below ``objects/``, of a compressed git object or of a pack of them."""


class Readable(Protocol):
    """A source of bytes: a file, a member of an archive, or a git object."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFinding:
    """A private key, and one place where it is.

    Attributes:
        key: The private key, which no output shows.
        path: The file; for a member of an archive, the archive, ``!`` and the member's name; for a git object, the path
            in the repository, or a description if the object has no path.
        line: Number of the line in the file, from 1.
        repository: The git repository whose history holds the key; None for a file on the disk.
        commit: The oldest commit that holds the key; None for a file on the disk, and for an object of no commit.
        blob: Id of the git object; None for a file on the disk.
        root: Id of the session that the key belongs to; None if unknown.
        fingerprint: Fingerprint of the public key.
        is_root: Whether the key is that of a root, as the text around it or the store shows.
        is_settings: Whether the key is in a settings file of GoatDB, or in an identity document.
        in_store: How the identity in the store lists the key, such as `CURRENT`, or `UNLISTED`; None if no store was
            given.
        accepted_by: URLs of the servers that have accepted a request signed with the key.
        is_rejected: Whether every listed server has rejected such a request, and accepted one of the current root.
    """

    key: PrivateKey = field(repr=False, compare=False)
    path: str
    line: int
    root: str | None
    fingerprint: str
    is_root: bool
    is_settings: bool
    repository: str | None = None
    commit: str | None = None
    blob: str | None = None
    in_store: str | None = None
    accepted_by: tuple[str, ...] = ()
    is_rejected: bool = False

    @property
    def is_live(self) -> bool | None:
        """Whether servers accept what the key signs; None if neither the store nor the servers can tell."""
        if self.accepted_by:
            return True
        if self.is_rejected and self.in_store in (FORMER, UNLISTED):
            return False
        return None if self.in_store in (None, UNLISTED) else self.in_store in LIVE

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "line": self.line,
            "repository": self.repository,
            "commit": self.commit,
            "object": self.blob,
            "root": self.root,
            "fingerprint": self.fingerprint,
            "isRoot": self.is_root,
            "isSettings": self.is_settings,
            "inStore": self.in_store,
            "acceptedBy": list(self.accepted_by),
            "live": self.is_live,
        }


@dataclass(slots=True)
class ScanReport:
    """What a scan found.

    Attributes:
        findings: The keys, in the order of the paths.
        unsearched: What could not be searched, and why.
        notes: What limits the result although nothing failed, such as a shallow clone.
        files: How many files and members of archives were searched.
        objects: How many git objects were searched.
        with_history: Whether the histories of git repositories are to be searched.
    """

    findings: list[KeyFinding] = field(default_factory=list)
    unsearched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    objects: int = 0
    with_history: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "findings": [one.to_json() for one in self.findings],
            "unsearched": self.unsearched,
            "notes": self.notes,
            "files": self.files,
            "objects": self.objects,
        }


def scan_paths(paths: Sequence[Path], *, with_history: bool) -> ScanReport:
    """Search files and directories, and the history of each git repository among the directories.

    Args:
        paths: Files, pipes, directories, bare git repositories, or links to one of these. One that does not exist is
            listed among what could not be searched.
        with_history: Whether to search the histories of git repositories, too.
    """
    report = ScanReport(with_history=with_history)
    for path in paths:
        if path.is_dir():
            _scan_directory(report, path)
        elif path.is_file() or path.is_fifo():
            _scan_file(report, path)
        else:
            report.unsearched.append(f"{path}: {'neither a file nor a pipe' if path.exists() else 'does not exist'}")
    return report


def _scan_directory(report: ScanReport, top: Path) -> None:
    def note(error: OSError) -> None:
        report.unsearched.append(f"{error.filename}: {error.strerror}")

    for name, directories, files in os.walk(top, onerror=note):
        directory = Path(name)
        directories.sort()
        if ".git" in directories or ".git" in files:
            if ".git" in directories:
                directories.remove(".git")
            if report.with_history:
                _scan_history(report, directory)
        elif _is_bare_repository(directory, directories, files):
            directories.clear()
            if report.with_history:
                _scan_history(report, directory)
            continue
        for file in sorted(files):
            _scan_entry(report, directory / file)


def _is_bare_repository(directory: Path, directories: Sequence[str], files: Sequence[str]) -> bool:
    return {"objects", "refs"} <= set(directories) and "HEAD" in files and (directory / "HEAD").is_file()


def _scan_entry(report: ScanReport, path: Path) -> None:
    """Search an entry of a directory, unless it is a link, a pipe, a socket or a device."""
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
    except OSError as error:
        report.unsearched.append(f"{path}: {error.strerror or error}")
    else:
        if is_file:
            _scan_file(report, path)


def _scan_file(report: ScanReport, path: Path) -> None:
    try:
        with path.open("rb") as file:
            _scan_stream(report, str(path), file)
    except OSError as error:
        report.unsearched.append(f"{path}: {error.strerror or error}")


def _scan_stream(report: ScanReport, name: str, stream: Readable, depth: int = 0, room: int | None = None) -> None:
    """Search one file or, if it is an archive, the files in it; add what is found to `report`.

    Args:
        report: Where findings are added.
        name: The file's path, with the archives that it is in.
        stream: The file's content.
        depth: How many archives the file is in.
        room: How many bytes of zip archives may be held in memory, besides those that the file is in; None for
            `_MEMORY`.
    """
    room = _MEMORY if room is None else room
    reader = _Peekable(stream)
    try:
        head = reader.peek(512)
        if depth > _DEEPEST:
            report.unsearched.append(f"{name}: archives within archives, more than {_DEEPEST}")
        elif head.startswith(_GZIP):
            _scan_stream(report, name, gzip.GzipFile(fileobj=reader), depth + 1, room)
        elif _BZIP2.match(head):
            _scan_stream(report, name, _Unpacked(reader, bz2.BZ2Decompressor), depth + 1, room)
        elif head.startswith(_XZ):
            unpacked = _Unpacked(reader, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * _MEMORY))
            _scan_stream(report, name, unpacked, depth + 1, room)
        elif head.startswith(_ZIP):
            _scan_zip(report, name, reader, depth, room)
        elif head[257:262] == b"ustar":
            _scan_tar(report, name, reader, depth, room)
        elif head.startswith(tuple(_PACKED)):
            kind = next(kind for magic, kind in _PACKED.items() if head.startswith(magic))
            report.unsearched.append(f"{name}: compressed with {kind}; {_UNPACK}")
        else:
            report.files += 1
            for key, line in _find_keys(reader):
                finding = KeyFinding(
                    key=key.key,
                    path=name,
                    line=line,
                    root=key.session_id,
                    fingerprint=key.fingerprint,
                    is_root=key.is_root,
                    is_settings=key.is_settings,
                )
                report.findings.append(finding)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, _UnpackError) as error:
        report.unsearched.append(f"{name}: cannot be unpacked: {error}")


def _scan_member(report: ScanReport, archive: str, member: str, stream: Readable, depth: int, room: int) -> None:
    """Search a member of an archive, or list it as not searched if it belongs to a git history."""
    content = _Peekable(stream)
    if not _is_git_object(report, archive, member, content):
        _scan_stream(report, f"{archive}!{member}", content, depth + 1, room)


def _is_git_object(report: ScanReport, archive: str, member: str, content: _Peekable) -> bool:
    """Return whether a member of an archive belongs to a git history, which is then listed as not searched."""
    repository, found, path = f"/{member}".rpartition("/objects/")
    if not found or not _GIT_OBJECT.fullmatch(path):
        return False
    head = content.peek(4)
    if head != b"PACK" and (head[:1] != b"x" or int.from_bytes(head[:2], "big") % 31):
        return False  # neither a pack nor zlib: another program's files, named by their digest
    line = f"{archive}!{repository[1:] or '.'}: a git history in an archive; {_UNPACK}"
    if report.with_history and line not in report.unsearched:
        report.unsearched.append(line)
    return True


def _scan_tar(report: ScanReport, name: str, reader: _Peekable, depth: int, room: int) -> None:
    try:
        with tarfile.open(fileobj=(stream := _TarStream(reader)), mode="r|") as archive:
            for member in archive:
                stream.header_room = sys.maxsize
                if (content := _open_member(archive, member)) is not None:
                    _scan_member(report, name, member.name, content, depth, room)
                    while content.read(_PIECE):
                        pass
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps each, also of a stream
                stream.header_room = _LONGEST_HEADER
    except (OverflowError, ValueError) as error:  # such as from the map of a sparse file
        raise _UnpackError(str(error)) from error


def _open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
    """Return the content of a file in a tar archive, of a sparse file without its holes; None if it is no file."""
    if not member.isreg() and member.type in tarfile.SUPPORTED_TYPES:
        return None
    parts: list[tuple[int, int]] | None = getattr(member, "sparse", None)
    if parts is not None:  # a hole may be so large that its zeros have no end
        member.size, member.sparse = sum([size for _, size in parts]), None
    return archive.extractfile(member)


def _scan_zip(report: ScanReport, name: str, reader: _Peekable, depth: int, room: int) -> None:
    content = reader.read(room + 1)
    if len(content) > room:
        report.unsearched.append(f"{name}: zip archives of more than {_MEMORY >> 20} MiB; {_UNPACK}")
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                # zipfile unpacks other methods in pieces of any size: a small archive could fill the memory.
                if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    report.unsearched.append(f"{name}!{member.filename}: encrypted, or not compressed with deflate")
                elif not member.filename.endswith("/"):
                    with archive.open(member) as file:
                        _scan_member(report, name, member.filename, file, depth, room - len(content))
    except (NotImplementedError, OverflowError, ValueError, struct.error) as error:
        raise _UnpackError(str(error)) from error


class _UnpackError(Exception):
    """Compressed data is damaged, or takes too much memory to unpack. `_scan_stream` always catches this error."""


class _Unpacked:
    """Unpacks bzip2 or xz in pieces, so that the size of the content does not matter.

    Unlike the classes of the standard library it limits the memory, and does not ignore what follows the first stream.
    """

    def __init__(self, stream: Readable, start: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._stream = stream
        self._start = start
        self._unpacker = start()

    def read(self, size: int = -1, /) -> bytes:
        found = bytearray()
        while size < 0 or len(found) < size:
            packed = b""
            if self._unpacker.eof:
                packed = self._unpacker.unused_data.lstrip(b"\0")
                while not packed and (more := self._stream.read(_PIECE)):
                    packed = more.lstrip(b"\0")
                if not packed:
                    break
                self._unpacker = self._start()
            elif self._unpacker.needs_input and not (packed := self._stream.read(_PIECE)):
                raise EOFError("the end is missing")
            try:
                found += self._unpacker.decompress(packed, _PIECE if size < 0 else size - len(found))
            except (OSError, lzma.LZMAError) as error:
                raise _UnpackError(str(error)) from error
        return bytes(found)


class _Peekable(io.RawIOBase):
    """Reads from a stream, and can show its first bytes before they are read."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (more := self._stream.read(size - len(self._ahead))):
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int = -1, /) -> bytes:
        found, self._ahead = (self._ahead, b"") if size < 0 else (self._ahead[:size], self._ahead[size:])
        if size < 0 or len(found) < size:
            found += self._stream.read(-1 if size < 0 else size - len(found))
        return found


class _TarStream(io.RawIOBase):
    """Reads a tar archive, and stops where the standard library would read on and on, or fill the memory.

    A damaged header gives a file any size, and tarfile reads on after the end of the archive. It also reads a long name
    or the map of a sparse file into memory, however long it is.

    Attributes:
        header_room: How many bytes may be read before the next file begins.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._reads_left = _READS_AFTER_END
        self.header_room = _LONGEST_HEADER

    def read(self, size: int = -1, /) -> bytes:
        found = self._stream.read(size)
        self.header_room -= len(found)
        if self.header_room < 0:
            raise _UnpackError(f"a header has more than {_LONGEST_HEADER >> 20} MiB")
        if not found:
            self._reads_left -= 1
            if self._reads_left < 0:
                raise EOFError("the end is missing")
        return found


def _find_keys(stream: Readable) -> Iterator[tuple[LeakedKey, int]]:
    """Yield each private key in a stream of any length, with its line number; a key repeated in one line only once."""
    kept, lines, seen = b"", 1, set[tuple[str, int]]()
    while True:
        more = stream.read(_WINDOW)
        window = kept + more
        # What identifies a key may be in the next window, which begins before this one ends.
        end = len(window) - LONGEST // 2 if more else len(window)
        for key in find_private_keys(window):
            line = lines + window.count(b"\n", 0, key.offset)
            if key.offset < end and (key.fingerprint, line) not in seen:
                seen.add((key.fingerprint, line))
                yield key, line
        if not more:
            return
        kept = window[-LONGEST:]
        lines += window.count(b"\n", 0, len(window) - len(kept))


def _scan_history(report: ScanReport, repository: Path) -> None:
    found: dict[str, ScanReport] = {}
    try:
        for name, reader in read_objects(repository):
            report.objects += 1
            inner = ScanReport()
            _scan_stream(inner, "", reader)
            if inner.findings or inner.unsearched:
                found[name] = inner
        if is_shallow(repository):
            report.notes.append(f"{repository} is a shallow clone: only its part of the history was searched")
        places = locate_objects(repository, found)
    except GitUnreadableError as error:
        report.unsearched.append(f"{repository}: its git history: {error}")
        return
    for name, inner in found.items():
        place = places[name]
        path = place.path or ("(commit message)" if place.commit == name else f"object {name}")
        for one in inner.findings:
            report.findings.append(
                replace(one, path=path + one.path, repository=str(repository), commit=place.commit, blob=name)
            )
        report.unsearched += [f"{repository}: {path} of its git history{reason}" for reason in inner.unsearched]
