"""GoatDB's version numbers: four bytes packed into a signed 32-bit integer. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def pack_version(parts: Iterable[int]) -> int:
    """Pack a.b.c.d, each masked to a byte, into a signed 32-bit integer."""
    a, b, c, d = parts
    packed = (a & 255) << 24 | (b & 255) << 16 | (c & 255) << 8 | d & 255
    return packed - 2**32 if packed & 2**31 else packed


def unpack_version(packed: int) -> tuple[int, int, int, int]:
    """Return the four parts of a packed version."""
    return (packed >> 24 & 255, packed >> 16 & 255, packed >> 8 & 255, packed & 255)
