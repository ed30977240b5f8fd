"""Find out whether a git repository holds a private key: in a settings.json that it tracks, or in its history.

Only ``git`` commands that read are run. Other clones, and objects that git has deleted, are not searched. The key is
never passed to a process as an argument: this module reads the objects and compares them itself. A repository that
could not be checked is never reported as clean.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
        path: The file that git tracks, or that a commit holds; None if the repository could not be checked.
        problem: Why the repository could not be checked.
    """

    repository: Path
    path: str | None = None
    problem: str | None = None


class _GitError(Exception):
    """The git command could not be run, or failed."""


def find_in_git(settings: Path, secret: bytes) -> GitFinding | None:
    """Search the git repository around a settings.json for its private key; None if there is no repository or no key.

    Args:
        settings: The file itself, not a link to it.
        secret: Bytes that only the private key contains; files with other names are searched for them, too.
    """
    top = next((one for one in settings.parents if (one / ".git").exists()), None)
    if top is None:
        return None
    try:
        path = _find_secret(settings, secret)
    except _GitError as error:
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
    """Yield the path and the content of each git object that may be a settings.json by its name."""
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
        raise _GitError("its history is too large to be searched")
    found = _run_git(at, "cat-file", "--batch", given=_join_lines(wanted))
    position = 0
    for blob in wanted:
        end = found.index(b"\n", position)
        size = int(found[position:end].split()[2])
        yield paths[blob], found[end + 1 : end + 1 + size]
        position = end + 1 + size + 1


def _join_lines(names: Sequence[bytes] | dict[bytes, str]) -> bytes:
    return b"".join(name + b"\n" for name in names)


def _run_git(at: Path, *words: str, given: bytes = b"") -> bytes:
    """Run a git command that only reads, and return its output.

    Raises:
        _GitError: Git is not installed, takes too long, or fails, such as for a repository of another user.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(at), *words]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command, without a shell
            command, input=given, capture_output=True, timeout=_TIMEOUT, check=False, env=environ
        )
    except FileNotFoundError:
        raise _GitError("there is no git command on this machine") from None
    except subprocess.TimeoutExpired:
        raise _GitError(f"git did not answer within {_TIMEOUT} s") from None
    except OSError as error:
        raise _GitError(f"git cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        messages = done.stderr.decode(errors="replace").strip().splitlines()
        raise _GitError(f"git reported: {messages[0] if messages else f'exit status {done.returncode}'}")
    return done.stdout
