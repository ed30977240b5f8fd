"""Parse and check repository and item paths (docs/reference/goatdb-formats.md#paths).

Most functions behave exactly like GoatDB's functions, including their bugs. `check_repository_path` and
`check_item_path` are stricter: Goatherd's server checks with them each path that it opens or writes.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final

from goatherd.errors import PathError

DEFAULT_ORG: Final = "localhost"
"""The organization of a GoatDB server that was given no other. Its id is part of every signed commit."""
SESSIONS_PATH: Final = "/sys/sessions"
"""The repository of the sessions; the key of an item is the id of the session that it introduces."""
USERS_PATH: Final = "/sys/users"
"""The repository of the users."""

NAME_LENGTH: Final = 100
"""Maximum length of each of the two names in the path of a repository that this server accepts."""

_VALID = re.compile(r"/(?:[a-z0-9_-]*/){0,3}[a-z0-9_-]*")
_REPOSITORY = re.compile(r"/([a-z0-9_-]+)/([a-z0-9_-]+)")
_ITEM = re.compile(r"(/[a-z0-9_-]+/[a-z0-9_-]+)/([a-z0-9_-]+)")


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

    SECURITY: with ``..`` in the repository id, the path leads out of the data directory. So check the id first
    (`check_repository_path`).

    Raises:
        PathError: The id does not have exactly two components.
    """
    components = repository.lstrip("/").split("/")
    if len(components) != 2:
        raise PathError(f"{repository!r} is not a valid repository id")
    # COMPAT: to GoatDB, a backslash separates the parts of a path, too.
    return posixpath.normpath(re.sub(r"[/\\]+", "/", f"{components[0]}/{components[1]}.jsonl"))


def join_path(prefix: str, suffix: str) -> str:
    """Join two parts of a path with exactly one slash."""
    return prefix.removesuffix("/") + "/" + suffix.removeprefix("/")


def check_repository_path(path: str) -> tuple[str, str]:
    """Check that the server allows a repository at this path, and return the path's ``(type, id)``.

    SECURITY: every path from a peer passes this check before it becomes a file name (tests/unit/wire/test_paths.py).

    Raises:
        PathError: The path is not two components of a-z, 0-9, ``-`` and ``_`` (one trailing slash is allowed), or a
            component is longer than `NAME_LENGTH`.
    """
    match = _REPOSITORY.fullmatch(path.removesuffix("/")) if isinstance(path, str) else None
    if match is None:
        raise PathError(f"{path!r:.200} is not a repository path that this server accepts")
    kind, name = match.groups()
    if len(kind) > NAME_LENGTH or len(name) > NAME_LENGTH:
        raise PathError(f"a name in a repository path must have at most {NAME_LENGTH} characters: {path!r:.120}")
    return kind, name


def check_item_path(repository: str, key: str) -> str:
    """Check the path of an item that this process writes, and return it: the joined repository path and key.

    Raises:
        PathError: The path is not valid or does not have three components.
    """
    joined = join_path(repository, key)
    if _ITEM.fullmatch(joined) is None:
        raise PathError(f"{joined!r:.200} is not a valid item path")
    return joined
