"""GoatDB's functions for paths, with their bugs: for the fake of an unmodified server, and to check paths with."""

from __future__ import annotations

import posixpath
import re

from goatherd.errors import PathError

_VALID = re.compile(r"/(?:[a-z0-9_-]*/){0,3}[a-z0-9_-]*")


def is_valid_path(path: str) -> bool:
    """Return whether GoatDB's own code may create an item at this path.

    For received commits GoatDB has another rule.
    """
    return _VALID.fullmatch(path) is not None


def path_part(path: str, index: int) -> str | None:
    """Return a part of an item's path as GoatDB does; None if GoatDB returns undefined.

    Index 0 is the type, 1 the repository, 2 the item, and 3 the embed.
    """
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
    """Return the normal form of a path, as GoatDB does. COMPAT: a missing type or repository becomes ``undefined``."""
    if path.startswith("/"):
        return path.removesuffix("/")
    parts = [path_part(path, index) for index in range(4)]
    kind, repository = ("undefined" if part is None else part for part in parts[:2])
    return f"/{kind}/{repository}/{parts[2] or ''}" + (f"/{parts[3]}" if parts[3] else "")


def repository_id(path: str) -> str:
    """Return the id ``/type/repo`` of the repository to which a path of any form belongs.

    Raises:
        PathError: The path has no type or no repository.
    """
    normalized = normalize_path(path)
    kind, repository = path_part(normalized, 0), path_part(normalized, 1)
    if kind is None or repository is None:
        raise PathError(f"{path!r} is not a valid repository path")
    joined = f"{kind}/{repository}"
    return (joined if joined.startswith("/") else f"/{joined}").removesuffix("/")


def log_file(repository: str) -> str:
    """Return the path of GoatDB's log file for a repository id, relative to the data directory.

    With ``..`` in the repository id, the path leads out of the data directory.

    Raises:
        PathError: The id does not have exactly two components.
    """
    components = repository.lstrip("/").split("/")
    if len(components) != 2:
        raise PathError(f"{repository!r} is not a valid repository id")
    # COMPAT: to GoatDB, a backslash separates the parts of a path, too.
    return posixpath.normpath(re.sub(r"[/\\]+", "/", f"{components[0]}/{components[1]}.jsonl"))
