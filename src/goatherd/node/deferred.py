"""Commits that peers sent and that could not be believed yet.

Their signers may become known later: then they are looked at again (`goatherd.node.database`). Bounded; what does not
fit is not lost, since the peer still has it and our filters say that we have not.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

import orjson

from goatherd.node.peer import FIRST_PATHS
from goatherd.wire.json import to_json_bytes

DEFERRED_COMMITS: Final = 10_000
DEFERRED_BYTES: Final = 64 * 1024 * 1024
RETRY_REST: Final = 4
"""How many times as long as a look at them took nothing is looked at again."""


class Deferred:
    """Commits that peers sent and that could not be believed yet, within bounds; the oldest go first."""

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
        while len(self._commits) > DEFERRED_COMMITS or self._bytes > DEFERRED_BYTES:
            dropped, _ = self._commits.popitem(last=False)
            self._bytes -= len(dropped)

    def take_all(self) -> dict[str, list[Any]]:
        """Return everything by repository, ``/sys/sessions`` first, and forget it."""
        by_path: dict[str, list[Any]] = {}
        for path, commit in self._commits.values():
            by_path.setdefault(path, []).append(commit)
        self._commits.clear()
        self._bytes = 0
        return dict(sorted(by_path.items(), key=lambda pair: pair[0] not in FIRST_PATHS))


def fingerprint_of(path: str, raw: Any) -> bytes:
    """Return a text that is the same only for the same commit of the same repository; no id is trusted to be that."""
    try:
        return path.encode() + b"\0" + orjson.dumps(raw, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate
        return path.encode() + b"\0" + to_json_bytes(raw)
