"""Parse and check repository and item paths (docs/reference/goatdb-formats.md#paths).

The functions that are named after GoatDB's reproduce it bug for bug, undefined parts included. Paths that a server of
Goatherd opens or writes are checked by `check_repository_path` and `check_item_path`, which are strict.
"""

from __future__ import annotations

import re
from typing import Final

from goatherd.errors import PathError

SESSIONS_PATH: Final = "/sys/sessions"
"""The repository of the sessions; the key of an item is the id of the session that it introduces."""
USERS_PATH: Final = "/sys/users"
"""The repository of the users."""

_VALID = re.compile(r"/(?:[a-z0-9_-]*/){0,3}[a-z0-9_-]*")
_REPOSITORY = re.compile(r"/([a-z0-9_-]+)/([a-z0-9_-]+)")
_ITEM = re.compile(r"(/[a-z0-9_-]+/[a-z0-9_-]+)/([a-z0-9_-]+)")


def is_valid_path(path: str) -> bool:
    """Return whether GoatDB's own code may create an item at `path`. For received commits GoatDB has another rule."""
    return _VALID.fullmatch(path) is not None


def path_part(path: str, index: int) -> str | None:
    """Extract a part of a path as GoatDB does: 0 type, 1 repository, 2 item, 3 embed; None means undefined."""
    if not path:
        return None
    length = len(path)
    position = 1 if path[0] == "/" else 0
    for _ in range(index):
        position = path.find("/", position)
        if position < 0:
            return None
        position += 1
    if position < length and path[position] == "/":
        position += 1
    if position >= length:
        return ""
    end = path.find("/", position + 1)
    return path[position:] if end < 0 else path[position:end]


def normalize_path(path: str) -> str:
    """Return GoatDB's normal form of a path; undefined parts become the word ``undefined`` (COMPAT)."""
    if path.startswith("/"):
        return path.removesuffix("/")
    parts = [path_part(path, index) for index in range(4)]
    kind, repository = ("undefined" if part is None else part for part in parts[:2])
    return f"/{kind}/{repository}/{parts[2] or ''}" + (f"/{parts[3]}" if parts[3] else "")


def repository_id(path: str) -> str:
    """Return the repository id ``/type/repo`` of any path.

    Raises:
        PathError: The type or the repository is missing.
    """
    normalized = normalize_path(path)
    kind, repository = path_part(normalized, 0), path_part(normalized, 1)
    if kind is None or repository is None:
        raise PathError(f"not a repository path: {path!r}")
    joined = f"/{kind}/{repository}"
    return joined.removesuffix("/")


def log_file(repository: str) -> str:
    """Return GoatDB's log file for a repository id, relative to the data directory. Dots may lead outside of it.

    Raises:
        PathError: The id does not have exactly two components.
    """
    components = repository.lstrip("/").split("/")
    if len(components) != 2:
        raise PathError(f"not a repository id: {repository!r}")
    directory = "" if components[0] == "." else f"{components[0]}/"
    return f"{directory}{components[1]}.jsonl"


def join_path(prefix: str, suffix: str) -> str:
    """Join two parts of a path with exactly one slash."""
    return prefix.removesuffix("/") + "/" + suffix.removeprefix("/")


def check_repository_path(path: str) -> tuple[str, str]:
    """Return ``(type, id)`` of a repository path that this server opens.

    SECURITY: this is the only way from a peer's string to a file name (tests/unit/wire/test_paths.py).

    Raises:
        PathError: The path is not two components of a-z, 0-9, ``-`` and ``_`` (one trailing slash is allowed).
    """
    match = _REPOSITORY.fullmatch(path.removesuffix("/")) if isinstance(path, str) else None
    if match is None:
        raise PathError(f"not a repository path that this server opens: {path!r:.200}")
    return match[1], match[2]


def check_item_path(repository: str, key: str) -> str:
    """Return the joined path of an item that is written locally.

    Raises:
        PathError: The path is not valid or does not have three components.
    """
    joined = join_path(repository, key)
    if _ITEM.fullmatch(joined) is None:
        raise PathError(f"not an item path: {joined!r:.200}")
    return joined
