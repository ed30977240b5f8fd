"""Whether a git repository has a private key: as the settings.json that it tracks, or anywhere in its history.

What it is: questions to the ``git`` command that only read. What it is not: a search of other machines' clones, nor of
what git has deleted. Rules: the key is never an argument of a process: what git holds is read and compared here; "could
not be checked" is never "no".
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
"""What a settings.json is called after it was renamed, moved or copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitFinding:
    """What a repository was found to hold.

    Attributes:
        repository: Its top directory.
        path: The file that git tracks, or that a commit holds; None where it could not be checked.
        problem: Why it could not be checked.
    """

    repository: Path
    path: str | None = None
    problem: str | None = None


class _GitError(Exception):
    """Git gave no answer."""


def find_in_git(settings: Path, secret: bytes) -> GitFinding | None:
    """Return what the repository around a settings.json holds of it; None where it lies in none, or is not in it.

    Args:
        settings: The file, not through a link.
        secret: What only the file's private key contains; looked for in files of other names too.
    """
    top = next((one for one in settings.parents if (one / ".git").exists()), None)
    if top is None:
        return None
    try:
        path = _find(settings, secret)
    except _GitError as error:
        return GitFinding(repository=top, problem=str(error))
    return None if path is None else GitFinding(repository=top, path=path)


def _find(settings: Path, secret: bytes) -> str | None:
    at, name = settings.parent, settings.name
    if _ask(at, "ls-files", "--", name).strip():
        return name
    if _ask(at, "rev-list", "--all", "-1", "--", name).strip():
        return name
    for path, content in _contents(at):
        if secret in content:
            return path
    return None


def _contents(at: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what the index and the history hold under a name that a settings.json may have had."""
    paths: dict[bytes, str] = {}
    commits = _ask(at, "rev-list", "--all", "--full-history", "--", *_NAMES)
    options = ("-r", "-m", "-z", "--root", "--raw", "--no-abbrev", "--no-commit-id", "--no-renames")
    changes = _ask(at, "diff-tree", "--stdin", *options, "--", *_NAMES, given=commits).split(b"\0")
    for about, path in zip(changes[::2], changes[1::2], strict=False):
        paths.setdefault(about.split()[3], path.decode(errors="replace"))
    for entry in _ask(at, "ls-files", "-s", "-z", "--full-name", "--", *_NAMES).split(b"\0"):
        staged, _, path = entry.partition(b"\t")
        if path:
            paths.setdefault(staged.split()[1], path.decode(errors="replace"))
    sizes = _ask(at, "cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize)", given=_lines(paths))
    total = 0
    wanted = []
    for line in sizes.splitlines():
        blob, kind, *rest = line.split()
        if kind == b"blob" and int(rest[0]) <= _LARGEST:  # "missing" for none, and in a partial clone
            total += int(rest[0])
            wanted.append(blob)
    if total > _MOST:
        raise _GitError("its history is too large to be searched")
    found = _ask(at, "cat-file", "--batch", given=_lines(wanted))
    position = 0
    for blob in wanted:
        end = found.index(b"\n", position)
        size = int(found[position:end].split()[2])
        yield paths[blob], found[end + 1 : end + 1 + size]
        position = end + 1 + size + 1


def _lines(names: Sequence[bytes] | dict[bytes, str]) -> bytes:
    return b"".join(name + b"\n" for name in names)


def _ask(at: Path, *words: str, given: bytes = b"") -> bytes:
    """Return the output of a git command that only reads.

    Raises:
        _GitError: There is no git, it refuses (a repository of another user, say), or it does not answer in time.
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
        raise _GitError(f"git gave no answer within {_TIMEOUT} s") from None
    except OSError as error:
        raise _GitError(f"git cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _GitError(f"git says: {said[0] if said else f'exit status {done.returncode}'}")
    return done.stdout
