"""Store the ``settings.json`` of one organization for a GoatDB server to read.

By default the file is in memory, and the path that GoatDB reads is a symbolic link to it. If the operator allows it, a
plain file is written at that path instead. The module does not interpret the content. Rules: the file has mode 0600; a
reader sees the complete old file or the complete new one; every call blocks, so call it in a thread.

COMPAT: GoatDB rewrites its file in place, so it writes through the link to memory. A server that replaces the file by
rename (Goatherd's own does) replaces the link by a plain file: `read_state` detects this, and `repair_link` moves the
file back into memory.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from goatherd.errors import SettingsError
from goatherd.files import make_directory, read_if_there, remove_file, replace_file, replace_link


class FileState(StrEnum):
    """What is stored at the path from which GoatDB reads its settings.json."""

    OURS = "ours"
    REPLACED = "replaced"
    """A plain file has replaced the link, so the private key is on the disk."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Identifies one state of a file by its inode, size and time of change."""

    inode: int
    size: int
    changed_ns: int


class SettingsFile:
    """One organization's settings.json.

    Args:
        link: The path that GoatDB reads.
        target: The file in memory; None for a plain file at `link`.
    """

    def __init__(self, *, link: Path, target: Path | None) -> None:
        self.link = link
        self.target = target

    @property
    def bytes_at(self) -> Path:
        """The path of the file that holds the content: in memory, or at `link` if a plain file is allowed."""
        return self.target or self.link

    def check_room(self, size: int) -> None:
        """Check that a file of `size` bytes can be written beside the present one. Leaves nothing behind.

        Raises:
            SettingsError: The disk or the memory is full, or cannot be written.
        """
        probe = self.bytes_at.with_name(f".{self.bytes_at.name}.room")
        try:
            replace_file(probe, bytes(size))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def write(self, text: bytes) -> Stamp:
        """Write the settings.json atomically, and create the link to it if necessary.

        Raises:
            SettingsError: The file cannot be written.
        """
        try:
            make_directory(self.link.parent)
            replace_file(self.bytes_at, text)
            self._write_link()
        except OSError as error:
            raise SettingsError(f"cannot write {self.link}: {error.strerror or type(error).__name__}") from error
        stamp = self.stamp()
        if stamp is None:
            raise SettingsError(f"{self.link} was removed while the agent wrote it")
        return stamp

    def read(self) -> bytes | None:
        """Return the bytes that GoatDB would read now, or None if there is no file.

        Raises:
            SettingsError: The file exists and cannot be read, or is a pipe, a device or a socket.
        """
        return read_if_there(self.link)

    def stamp(self) -> Stamp | None:
        """Return the inode, size and change time of the file that GoatDB would read now, or None without a file."""
        try:
            status = self.link.stat()
        except OSError:
            return None
        return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)

    def read_state(self) -> FileState:
        """Return what is stored at the path that GoatDB reads."""
        try:
            status = self.link.lstat()
        except OSError:
            return FileState.MISSING
        if self.target is None:
            return FileState.OURS
        if not stat.S_ISLNK(status.st_mode):
            return FileState.REPLACED
        if str(self.link.readlink()) != str(self.target):
            return FileState.REPLACED
        return FileState.OURS if self.target.exists() else FileState.MISSING

    def repair_link(self) -> None:
        """Move a plain file that replaced the link back into memory, with the content that the server wrote.

        Raises:
            SettingsError: The file cannot be written.
        """
        text = self.read()
        if text is not None:
            self.write(text)

    def move_in(self, is_ours: Callable[[Path], bool]) -> Path | None:
        """Move in the content of the file to which settings.json links, if an earlier run wrote that file elsewhere.

        The content is then at `bytes_at`, and the earlier file is removed.

        Args:
            is_ours: Returns whether an agent for this data directory has made the directory of the given file.

        Returns:
            The directory of the earlier file; None if settings.json does not link to such a file.

        Raises:
            SettingsError: The content cannot be read or written. The earlier file stays unchanged.
        """
        if not self.link.is_symlink():
            return None
        before = self.link.readlink()
        if before == self.target or not is_ours(before):
            return None
        self.repair_link()
        with contextlib.suppress(SettingsError):
            remove_file(before)
        return before.parent

    def remove(self) -> None:
        """Remove the settings.json in memory, the link to it, and what killed writers of either have left."""
        for path in filter(None, (self.link, self.target)):
            with contextlib.suppress(SettingsError):
                remove_file(path)

    def _write_link(self) -> None:
        if self.target is None:
            return
        if self.link.is_symlink() and str(self.link.readlink()) == str(self.target):
            return
        replace_link(self.link, self.target)
