"""MurmurHash3 as GoatDB computes it, and GoatDB's checksums of values.

Pure. The rules are in docs/reference/goatdb-formats.md#checksums. Signatures protect integrity; these checksums do not,
since they have 32 bits, and do not distinguish types (`1` and `"1"`) or where one value ends and the next begins.
"""

from __future__ import annotations

from typing import Any

import mmh3

from goatherd.errors import EncodeError
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet, number_text, unit_key, utf16_units

DEFAULT_SEED = 3172939476544195
_MASK = 0xFFFFFFFF
_C1, _C2 = 0xCC9E2D51, 0x1B873593


def murmur3(text: str, seed: int) -> int:
    """Return GoatDB's 32-bit MurmurHash3 of a string's UTF-16 code units; only ``seed mod 2^32`` matters.

    COMPAT: GoatDB hashes each code unit as a byte. Units of 0x100 and above overlap their neighbours, and a tail whose
    third unit is 0x8000 or more is ignored, so only a Latin-1 string gives the hash of a standard MurmurHash3.
    """
    try:
        return mmh3.hash(text.encode("latin-1"), seed & _MASK, signed=False)
    except UnicodeEncodeError:
        return _murmur3_units(utf16_units(text), seed & _MASK)


def _murmur3_units(u: list[int], h: int) -> int:
    count = len(u)
    whole = count & ~3
    for i in range(0, whole, 4):
        k = (u[i] ^ u[i + 1] << 8 ^ u[i + 2] << 16 ^ (u[i + 3] & 0xFF) << 24 ^ u[i + 3] >> 8) & _MASK
        k = k * _C1 & _MASK
        k = (k << 15 | k >> 17) & _MASK
        h ^= k * _C2 & _MASK
        h = (h << 13 | h >> 19) & _MASK
        h = (h * 5 + 0xE6546B64) & _MASK
    k = 0
    for position, unit in enumerate(u[whole:]):
        k ^= unit << 8 * position
    k &= _MASK
    if 0 < k < 2**31:
        k = k * _C1 & _MASK
        k = (k << 15 | k >> 17) & _MASK
        h ^= k * _C2 & _MASK
    h ^= count & _MASK
    h ^= h >> 16
    h = h * 0x85EBCA6B & _MASK
    h ^= h >> 13
    h = h * 0xC2B2AE35 & _MASK
    return h ^ h >> 16


def text_hash(text: str, seed: int = DEFAULT_SEED) -> str:
    """Return GoatDB's hash of a string, as a decimal string."""
    return str(murmur3(text, seed))


def value_text(value: Any, seed: int = DEFAULT_SEED, texts: dict[int, str] | None = None) -> str:
    """Return the string that represents a JavaScript value in GoatDB's checksums.

    Args:
        texts: A cache of the strings of objects that were already processed, by the ``id()`` of the object.

    Raises:
        EncodeError: The value is of a kind for which GoatDB uses a random string.
    """
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is int or kind is float:
        return number_text(value)
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return "null"
    if value is UNDEFINED:
        return "undefined"
    if isinstance(value, JSDate):
        return number_text(value.seconds)
    if isinstance(value, list | tuple):
        return text_hash("".join([value_text(item, seed, texts) for item in value]), seed)
    if isinstance(value, JSSet):
        return text_hash("".join(sorted([value_hash(item, seed, texts) for item in value])), seed)
    if isinstance(value, JSMap):
        # COMPAT: GoatDB hashes a Map with the default seed, even if the caller gives another one.
        return text_hash(members_text(value, texts=texts if seed == DEFAULT_SEED else None))
    if isinstance(value, dict):
        if texts is None:
            return text_hash(members_text(value, seed), seed)
        if id(value) not in texts:
            texts[id(value)] = text_hash(members_text(value, seed, texts), seed)
        return texts[id(value)]
    raise EncodeError(f"a value of type {kind.__name__} has no checksum in GoatDB")


def members_text(value: dict[str, Any], seed: int = DEFAULT_SEED, texts: dict[int, str] | None = None) -> str:
    """Return the string that GoatDB hashes for an object or Map: the names with their values' strings, concatenated.

    The names are sorted by their UTF-16 code units; members that are undefined are left out.
    """
    keys = [key for key, item in value.items() if item is not UNDEFINED]
    keys.sort(key=unit_key)
    return "".join([key + value_text(value[key], seed, texts) for key in keys])


def value_hash(value: Any, seed: int = DEFAULT_SEED, texts: dict[int, str] | None = None) -> str:
    """Return GoatDB's hash of a JavaScript value, as a decimal string: the hash of `value_text`."""
    return text_hash(value_text(value, seed, texts), seed)


def item_checksum(texts: dict[str, str]) -> str:
    """Return the checksum of an item as a decimal string, given the checksum string of each present field."""
    return text_hash("".join([name + texts[name] for name in sorted(texts, key=unit_key)]))
