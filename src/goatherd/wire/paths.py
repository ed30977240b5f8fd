"""Check repository and item paths (docs/reference/goatdb-formats.md#paths).

`check_repository_path` and `check_item_path` are stricter than GoatDB: Goatherd's server checks with them each path
that it opens or writes.
"""

from __future__ import annotations

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

_REPOSITORY = re.compile(r"/([a-z0-9_-]+)/([a-z0-9_-]+)")
_ITEM = re.compile(r"(/[a-z0-9_-]+/[a-z0-9_-]+)/([a-z0-9_-]+)")


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
