"""How deep JSON is nested, found without recursion, which deep JSON would exhaust.

Pure. What it is not: an opinion on how deep is too deep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def levels(value: Any) -> Iterator[list[Any]]:
    """Yield the objects and arrays at each depth of parsed JSON, the outermost first; nothing for anything else."""
    level = [value] if type(value) is dict or type(value) is list else []
    while level:
        yield level
        inner: list[Any] = []
        for item in level:
            members = item.values() if type(item) is dict else item
            inner += [each for each in members if type(each) is dict or type(each) is list]
        level = inner
