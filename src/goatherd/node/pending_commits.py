"""Hold commits from peers whose signers are not trusted yet.

A signer may become trusted later: then its commits are verified again (`goatherd.node.database`). The number of commits
is bounded; a dropped commit is not lost, since the peer still holds it and this server's filters show it as missing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import orjson

from goatherd.node.peer import FIRST_PATHS
from goatherd.wire.json import to_json_bytes

PENDING_COMMITS: Final = 10_000
PENDING_BYTES: Final = 64 * 1024 * 1024
RETRY_REST: Final = 4
"""Pause after a verification of all pending commits, as a multiple of its duration."""


class PendingCommits:
    """Hold commits whose signers are not trusted yet, within bounds; the oldest are dropped first."""

    def __init__(self) -> None:
        self._commits: OrderedDict[bytes, tuple[str, Any]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._commits)

    def __contains__(self, fingerprint: bytes) -> bool:
        return fingerprint in self._commits

    def add(self, fingerprint: bytes, path: str, commit: Any) -> None:
        if fingerprint in self._commits:
            return
        self._commits[fingerprint] = (path, commit)
        self._bytes += len(fingerprint)
        while len(self._commits) > PENDING_COMMITS or self._bytes > PENDING_BYTES:
            dropped, _ = self._commits.popitem(last=False)
            self._bytes -= len(dropped)

    def take_all(self) -> dict[str, list[Any]]:
        """Return all commits by repository, ``/sys/sessions`` first, and clear the store."""
        by_path: dict[str, list[Any]] = {}
        for path, commit in self._commits.values():
            by_path.setdefault(path, []).append(commit)
        self._commits.clear()
        self._bytes = 0
        return dict(sorted(by_path.items(), key=lambda pair: pair[0] not in FIRST_PATHS))


def fingerprint_of(path: str, raw: Any) -> bytes:
    """Return bytes that identify a commit of a repository by its whole content; its id alone does not."""
    try:
        return path.encode() + b"\0" + orjson.dumps(raw, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate
        return path.encode() + b"\0" + to_json_bytes(raw)
