"""The ``settings.json`` of one organization: where its bytes lie, and what GoatDB sees of them.

Two ways: in memory, with a link where GoatDB looks (the rule), or a plain file there (only when told so). What it is
not: it does not know what is in the file. Rules: mode 0600; a reader sees the old bytes or the new ones; blocking, so
call it in a thread.

COMPAT: GoatDB rewrites its file in place, so through the link it writes to memory. A server that replaces the file by
rename (Goatherd's own does) puts a plain file in the link's place: `look` notices, `mend` brings it back into memory.
"""

from __future__ import annotations

import contextlib
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from goatherd.errors import SettingsError
from goatherd.files import replace_file


class Place(StrEnum):
    """What stands where GoatDB looks."""

    OURS = "ours"
    REPLACED = "replaced"
    """A plain file where a link was: the private key is on the disk."""
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Tells one state of the bytes from another."""

    inode: int
    size: int
    changed_ns: int


class SettingsFile:
    """One organization's settings.json.

    Args:
        link: Where GoatDB looks.
        target: The file in memory; None for a plain file at `link`.
    """

    def __init__(self, *, link: Path, target: Path | None) -> None:
        self.link = link
        self.target = target

    @property
    def bytes_at(self) -> Path:
        """Where the bytes are written."""
        return self.target or self.link

    def write(self, text: bytes) -> Stamp:
        """Write the bytes, and see to it that GoatDB finds them.

        Raises:
            SettingsError: It cannot be written.
        """
        try:
            self.link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.bytes_at, text)
            self._point()
        except OSError as error:
            raise SettingsError(f"cannot write {self.link}: {error.strerror or type(error).__name__}") from error
        stamp = self.stamp()
        if stamp is None:
            raise SettingsError(f"{self.link} vanished while it was being written")
        return stamp

    def read(self) -> bytes | None:
        """Return what GoatDB would read now, or None where there is nothing.

        Raises:
            SettingsError: It is there and cannot be read.
        """
        try:
            return self.link.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SettingsError(f"cannot read {self.link}: {error.strerror}") from error

    def stamp(self) -> Stamp | None:
        """Return the state of what GoatDB would read now, or None where there is nothing."""
        try:
            status = self.link.stat()
        except OSError:
            return None
        return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)

    def look(self) -> Place:
        """Return what stands where GoatDB looks."""
        try:
            status = self.link.lstat()
        except OSError:
            return Place.GONE
        if self.target is None:
            return Place.OURS
        if not stat.S_ISLNK(status.st_mode):
            return Place.REPLACED
        if str(self.link.readlink()) != str(self.target):
            return Place.REPLACED
        return Place.OURS if self.target.exists() else Place.GONE

    def mend(self) -> None:
        """Bring what a server put in the link's place back into memory; what it wrote is kept.

        Raises:
            SettingsError: It cannot be written.
        """
        text = self.read()
        if text is not None:
            self.write(text)

    def move_in(self, is_ours: Callable[[Path], bool]) -> Path | None:
        """Bring the bytes here from another place in memory that the link leads to, and remove them there.

        Args:
            is_ours: Whether an agent for this data directory has put a file there.

        Returns:
            The directory in which they were; None where the link leads nowhere else, or there is none.

        Raises:
            SettingsError: They cannot be read, or written here. They are where they were.
        """
        if not self.link.is_symlink():
            return None
        before = self.link.readlink()
        if before == self.target or not is_ours(before):
            return None
        self.mend()
        with contextlib.suppress(OSError):
            before.unlink()
        return before.parent

    def remove(self) -> None:
        """Remove the bytes, and what stands where GoatDB looks. What is not there is no error."""
        for path in filter(None, (self.link, self.target)):
            with contextlib.suppress(OSError):
                path.unlink()

    def _point(self) -> None:
        if self.target is None:
            return
        if self.link.is_symlink() and str(self.link.readlink()) == str(self.target):
            return
        new = self.link.with_name(f".{self.link.name}.{secrets.token_hex(8)}.new")
        try:
            new.symlink_to(self.target)
            new.replace(self.link)
        finally:
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
