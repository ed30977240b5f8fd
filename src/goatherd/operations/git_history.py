"""Search a git repository's history for a private key (`goatherd migrate`), or read all objects (`goatherd scan`).

The module runs only ``git`` commands that read, and none that a repository's configuration can turn into another
program. It does not search other clones, or objects that git has deleted. It never passes the key to another process:
it reads the objects and searches them itself. A repository that could not be checked is never reported as clean.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_TIMEOUT: Final = 20
_LARGEST: Final = 16 * 1024 * 1024
_MOST: Final = 512 * 1024 * 1024
_NAMES: Final = (":(top,icase)*settings*", ":(top,icase)*.json*")
"""Names that a settings.json may have after it was renamed, moved or copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitFinding:
    """A git repository that holds a private key, or that could not be checked.

    Attributes:
        repository: The repository's top directory.
        path: The file with the key, which git tracks or a commit holds; None if the repository could not be checked.
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
        secret: Bytes that only the private key contains. They are searched for in files with similar names, too, since
            the file may have been renamed or copied.
    """
    top = next((one for one in settings.parents if (one / ".git").exists()), None)
    if top is None:
        return None
    try:
        path = _find_secret(settings, secret)
    except GitUnreadableError as error:
        return GitFinding(repository=top, problem=str(error))
    return None if path is None else GitFinding(repository=top, path=path)


def _find_secret(settings: Path, secret: bytes) -> str | None:
    at, name = settings.parent, settings.name
    if _run_git(at, "ls-files", "--", name).strip():
        return name
    if _run_git(at, "rev-list", "--all", "-1", "--", name).strip():
        return name
    for path, content in _read_contents(at):
        if secret in content:
            return path
    return None


def _read_contents(at: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each object in the history or the index whose name suggests a settings.json."""
    paths: dict[bytes, str] = {}
    commits = _run_git(at, "rev-list", "--all", "--full-history", "--", *_NAMES)
    options = ("-r", "-m", "-z", "--root", "--raw", "--no-abbrev", "--no-commit-id", "--no-renames")
    changes = _run_git(at, "diff-tree", "--stdin", *options, "--", *_NAMES, given=commits).split(b"\0")
    for about, path in zip(changes[::2], changes[1::2], strict=False):
        paths.setdefault(about.split()[3], path.decode(errors="replace"))
    for entry in _run_git(at, "ls-files", "-s", "-z", "--full-name", "--", *_NAMES).split(b"\0"):
        staged, _, path = entry.partition(b"\t")
        if path:
            paths.setdefault(staged.split()[1], path.decode(errors="replace"))
    sizes = _run_git(
        at, "cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize)", given=_join_lines(paths)
    )
    total = 0
    wanted = []
    for line in sizes.splitlines():
        blob, kind, *rest = line.split()
        if kind == b"blob" and int(rest[0]) <= _LARGEST:  # "missing" for none, and in a partial clone
            total += int(rest[0])
            wanted.append(blob)
    if total > _MOST:
        raise GitUnreadableError("the repository's history is too large to be searched")
    found = _run_git(at, "cat-file", "--batch", given=_join_lines(wanted))
    position = 0
    for blob in wanted:
        end = found.index(b"\n", position)
        size = int(found[position:end].split()[2])
        yield paths[blob], found[end + 1 : end + 1 + size]
        position = end + 1 + size + 1


def _join_lines(names: Sequence[bytes] | dict[bytes, str]) -> bytes:
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
    with tempfile.TemporaryFile() as names:  # a pipe would fill up while its other end is read
        names.write(_join_lines(wanted))
        names.seek(0)
        process = subprocess.Popen(  # noqa: S603 - a fixed command, without a shell
            _git_command(repository, "cat-file", "--batch", "--buffer"),
            stdin=names,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_git_environ(),
        )
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
    return environ | {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


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
