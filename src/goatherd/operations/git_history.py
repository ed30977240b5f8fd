"""Search all objects of a git repository for a private key (`goatherd migrate`), or read them (`goatherd scan`).

The module runs only ``git`` commands that read, and none that a repository's configuration can turn into another
program. It does not search other clones, objects that git has deleted, or the inside of archives. It never passes the
key to another process: it reads the objects and searches them itself. A repository that could not be checked is never
reported as clean.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_TIMEOUT: Final = 20
_WINDOW: Final = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class GitFinding:
    """A git repository that holds a private key, or that could not be checked.

    Attributes:
        repository: The repository's top directory.
        path: The file with the key, which a commit or the index holds, or a description of an object that is no file;
            None if the repository could not be checked.
        problem: Why the repository could not be checked; None if the key was found.
    """

    repository: Path
    path: str | None = None
    problem: str | None = None


class GitUnreadableError(Exception):
    """Git could not be run, or a git command failed. Callers in `goatherd.operations` always catch this error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitPlace:
    """Where a git repository holds an object.

    Attributes:
        commit: Id of the oldest commit that has it; None if no branch, tag, stash or reflog leads to one.
        path: Path of the file; None for an object that is no file of a commit, such as a commit's own message.
    """

    commit: str | None = None
    path: str | None = None


class ObjectReader:
    """Reads the content of one object from ``git cat-file --batch``."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """Return at most `size` bytes of the object, or all that are left if `size` is negative; empty at its end."""
        found = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(found)
        return found


def find_in_git(settings: Path, secret: bytes) -> GitFinding | None:
    """Search the git repository around a settings.json for its private key; None if there is no repository or no key.

    Args:
        settings: The file itself, not a link to it.
        secret: Bytes that only the private key contains. They are searched for in every object, whatever its name.
    """
    top = next((one for one in settings.parents if (one / ".git").exists()), None)
    if top is None:
        return None
    try:
        found = [name for name, reader in read_objects(top) if _holds_secret(reader, secret)]
        if found:
            return GitFinding(repository=top, path=_describe_place(locate_objects(top, found)))
        if is_shallow(top):
            return GitFinding(repository=top, problem="it is a shallow clone, which has only a part of the history")
    except GitUnreadableError as error:
        return GitFinding(repository=top, problem=str(error))
    return None


def _holds_secret(reader: ObjectReader, secret: bytes) -> bool:
    kept = b""
    while more := reader.read(_WINDOW):
        if secret in (window := kept + more):
            return True
        kept = window[-len(secret) :]
    return False


def _describe_place(places: Mapping[str, GitPlace]) -> str:
    """Return the path of one of several objects; if none has a path, its id."""
    paths = (place.path for place in places.values() if place.path is not None)
    return next(paths, f"object {next(iter(places))}")


def _join_lines(names: Iterable[bytes]) -> bytes:
    return b"".join(name + b"\n" for name in names)


def read_objects(repository: Path) -> Iterator[tuple[str, ObjectReader]]:
    """Yield the id of every object in the repository except directories (trees), and a reader of the object's content.

    Objects to which no branch leads are among them, since git keeps the remains of a rebase or a deleted branch for
    weeks.

    Raises:
        GitUnreadableError: Git is not installed, or fails.
    """
    listing = ("--batch-all-objects", "--unordered", "--batch-check=%(objectname) %(objecttype)")
    listed = _run_git(repository, "cat-file", *listing, timeout=None)
    wanted = [line.split()[0] for line in listed.splitlines() if not line.endswith(b" tree")]
    try:
        with _open_scratch() as names:  # a pipe would fill up while its other end is read
            names.write(_join_lines(wanted))
            names.seek(0)
            process = subprocess.Popen(  # noqa: S603 - a fixed command, without a shell
                _git_command(repository, "cat-file", "--batch", "--buffer"),
                stdin=names,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_git_environ(),
            )
    except OSError as error:
        raise GitUnreadableError(f"git cannot be run: {error.strerror}") from error
    with process:
        assert process.stdout is not None
        try:
            for name in wanted:
                header = process.stdout.readline().split()
                if len(header) != 3 or header[0] != name:
                    raise GitUnreadableError(f"git could not read object {name.decode()}")
                reader = ObjectReader(process.stdout, int(header[2]))
                yield name.decode(), reader
                while reader.read(1 << 20):
                    pass
                process.stdout.read(1)
        finally:
            process.kill()


def _open_scratch() -> IO[bytes]:
    """Open a file without a name; in memory if possible, since a container may have no directory to write to."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("names"), "w+b")
    return tempfile.TemporaryFile()


def locate_objects(repository: Path, ids: Collection[str]) -> dict[str, GitPlace]:
    """Return where each object is, by id: in the oldest commit that holds it, else in the index, else nowhere.

    Raises:
        GitUnreadableError: Git is not installed, or fails.
    """
    found = {name: GitPlace() for name in ids}
    for entry in _run_git(repository, "ls-files", "-s", "-z", "--full-name", timeout=None).split(b"\0"):
        staged, _, path = entry.partition(b"\t")
        if path and (name := staged.split()[1].decode()) in found:
            found[name] = GitPlace(path=path.decode(errors="replace"))
    commits = _run_git(repository, "rev-list", "--all", "--reflog", "--reverse", timeout=None)
    options = ("-r", "-m", "-z", "--root", "--raw", "--no-abbrev", "--no-renames")
    commit = ""
    words = iter(_run_git(repository, "diff-tree", "--stdin", *options, given=commits, timeout=None).split(b"\0"))
    for word in words:
        if not word.startswith(b":"):
            commit = word.decode()
            continue
        name, changed = word.split()[3].decode(), next(words).decode(errors="replace")
        if name in found and found[name].commit is None:
            found[name] = GitPlace(commit=commit, path=changed)
    for name in commits.decode().split():
        if name in found:
            found[name] = GitPlace(commit=name)
    return found


def is_shallow(repository: Path) -> bool:
    """Whether the clone holds only the newest part of the history.

    Raises:
        GitUnreadableError: Git is not installed, or fails.
    """
    return _run_git(repository, "rev-parse", "--is-shallow-repository").strip() == b"true"


def _git_command(at: Path, *words: str) -> list[str]:
    return ["git", "-c", "core.fsmonitor=false", "-C", str(at), *words]


def _git_environ() -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # SECURITY: a partial clone names a command that git runs to fetch missing objects. Before 2.45, git knows no
    # GIT_NO_LAZY_FETCH, but it allows no other protocol than the listed ones (tests/unit/cli/test_scan.py).
    no_fetch = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
    return environ | no_fetch | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def _run_git(at: Path, *words: str, given: bytes = b"", timeout: float | None = _TIMEOUT) -> bytes:
    """Run a git command that only reads, with `given` as its standard input, and return its output.

    Raises:
        GitUnreadableError: Git is not installed, takes too long, or fails, such as for a repository of another user.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command, without a shell
            _git_command(at, *words), input=given, capture_output=True, timeout=timeout, check=False, env=_git_environ()
        )
    except FileNotFoundError:
        raise GitUnreadableError("there is no git command on this machine") from None
    except subprocess.TimeoutExpired:
        raise GitUnreadableError(f"git did not answer within {_TIMEOUT} s") from None
    except OSError as error:
        raise GitUnreadableError(f"git cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        messages = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitUnreadableError(f"git reported: {messages[0] if messages else f'exit status {done.returncode}'}")
    return done.stdout
