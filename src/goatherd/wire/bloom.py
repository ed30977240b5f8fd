"""GoatDB's Bloom filter, which states the commits that a peer holds (docs/reference/goatdb-formats.md#bloom-filter).

Pure: the random seeds are an argument (`goatherd.ids.new_seeds`). A filter without seeds contains everything; the
caller decides whether to accept such a filter.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import mmh3
import pybase64

from goatherd.errors import DecodeError
from goatherd.wire.encoders import check_members
from goatherd.wire.hashing import murmur3

DEFAULT_FPR = 0.25
# SECURITY: the strictest filter of GoatDB for 50 000 members has 31 hash functions. A filter with thousands is
# rejected, because each lookup would compute all of them (tests/unit/wire/test_bloom.py).
MAX_SEEDS = 1024

_MAX_SEED = 2**53
_SAMPLE = 4 * 1024
_LN2 = math.log(2)
_STEP = math.log(1 / 2**_LN2)
_ASCII_SPACE = str.maketrans("", "", "\t\n\f\r ")


def filter_size(size: int, fpr: float) -> tuple[int, float]:
    """Return the size of GoatDB's Bloom filter for `size` members and the false-positive rate `fpr`, as ``(m, k)``.

    `m` is the number of bits, `k` the unrounded number of hash functions.
    """
    members = max(1, size)
    bits = math.ceil((members * math.log(fpr)) / _STEP)
    return bits, (bits / members) * _LN2


def seed_count(size: int, fpr: float) -> int:
    """Return the number of seeds for a Bloom filter with `size` members and false-positive rate `fpr`."""
    return max(0, math.ceil(filter_size(size, fpr)[1]))


class BloomFilter:
    """A Bloom filter: a set of strings that may report a string as present that is not, but never the reverse.

    Attributes:
        bits: The bit field; bit i is bit ``i % 8`` of byte ``i // 8``.
        seeds: The seeds of the hash functions, one for each.
    """

    __slots__ = ("_seeds32", "bits", "seeds")

    bits: bytearray
    seeds: tuple[int, ...]

    def __init__(self, bits: bytes | bytearray, seeds: tuple[int, ...]) -> None:
        self.bits = bits if isinstance(bits, bytearray) else bytearray(bits)
        self.seeds = seeds
        self._seeds32 = [seed & 0xFFFFFFFF for seed in seeds]

    @classmethod
    def for_size(cls, size: int, fpr: float, seeds: Iterable[int]) -> BloomFilter:
        """Create an empty Bloom filter for `size` members; the number of `seeds` must be `seed_count(size, fpr)`.

        Raises:
            ValueError: The number of seeds is wrong.
        """
        chosen = tuple(seeds)
        bits, _ = filter_size(size, fpr)
        if len(chosen) != seed_count(size, fpr):
            raise ValueError(f"this filter takes {seed_count(size, fpr)} seeds, not {len(chosen)}")
        return cls(bytearray((bits + 7) // 8), chosen)

    def add(self, member: str) -> None:
        """Add a string to the filter."""
        self.update((member,))

    def update(self, members: Iterable[str]) -> None:
        """Add many strings to the filter, faster than one by one."""
        bits, seeds, murmur = self.bits, self._seeds32, mmh3.hash
        count = len(bits) * 8
        if not count:
            return
        for member in members:
            if member.isascii():
                raw = member.encode("ascii")
                for seed in seeds:
                    index = murmur(raw, seed, False) % count
                    bits[index >> 3] |= 1 << (index & 7)
            else:
                for seed in seeds:
                    index = murmur3(member, seed) % count
                    bits[index >> 3] |= 1 << (index & 7)

    def __contains__(self, member: str) -> bool:
        return not self.find_missing((member,))

    def find_missing(self, members: Sequence[str], most_hashes: int | None = None) -> list[int]:
        """Return the positions of the strings that the filter does not contain, faster than one by one.

        If only the first `most_hashes` hash functions are used, each missing string is found with a lower probability.
        """
        bits, seeds, murmur = self.bits, self._seeds32[:most_hashes], mmh3.hash
        count = len(bits) * 8
        if not count:
            return list(range(len(members))) if seeds else []
        missing: list[int] = []
        for position, member in enumerate(members):
            if member.isascii():
                raw = member.encode("ascii")
                for seed in seeds:
                    index = murmur(raw, seed, False) % count
                    if not bits[index >> 3] & (1 << (index & 7)):
                        missing.append(position)
                        break
            else:
                for seed in seeds:
                    index = murmur3(member, seed) % count
                    if not bits[index >> 3] & (1 << (index & 7)):
                        missing.append(position)
                        break
        return missing

    @property
    def error_rate(self) -> float:
        """The filter's false-positive rate, estimated from the share of set bits in its first 4 KiB."""
        sample = self.bits[:_SAMPLE]
        if not sample:
            return 0.0 if self.seeds else 1.0
        return float((int.from_bytes(sample, "big").bit_count() / (len(sample) * 8)) ** len(self.seeds))

    @classmethod
    def from_json(cls, encoded: Any) -> BloomFilter:
        """Decode a Bloom filter from ``{"d": base64, "s": [seeds]}``; other members are ignored.

        Raises:
            DecodeError: The value is not such an object, ``d`` is not standard base64, a seed is invalid, there are
                more than `MAX_SEEDS`, or GoatDB cannot read the members.
        """
        if type(encoded) is not dict:
            raise DecodeError("a Bloom filter must be a JSON object")
        check_members(encoded)
        text, seeds = encoded.get("d"), encoded.get("s")
        if not isinstance(text, str) or not isinstance(seeds, list):
            raise DecodeError("a Bloom filter must have a string d (its bits) and an array s (its seeds)")
        if len(seeds) > MAX_SEEDS:
            raise DecodeError(f"a Bloom filter must have at most {MAX_SEEDS} seeds, not {len(seeds)}")
        return cls(_from_base64(text), tuple([_read_seed(seed) for seed in seeds]))

    def to_json(self) -> dict[str, Any]:
        """Encode the Bloom filter as ``{"d": base64, "s": [seeds]}``."""
        return {"d": pybase64.b64encode_as_string(self.bits), "s": list(self.seeds)}

    def stable_text(self) -> str:
        """Return the filter's JSON in GoatDB's stable form, in which arrays are written as objects.

        Signatures cover this form.
        """
        order = range(len(self.seeds)) if len(self.seeds) <= 10 else sorted(range(len(self.seeds)), key=str)
        seeds = ",".join([f'"{index}":{self.seeds[index]}' for index in order])
        return f'{{"d":"{pybase64.b64encode_as_string(self.bits)}","s":{{{seeds}}}}}'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BloomFilter) and self.bits == other.bits and self.seeds == other.seeds

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"BloomFilter({len(self.bits)} bytes, {len(self.seeds)} seeds)"


def _read_seed(value: Any) -> int:
    if type(value) is int and 0 <= value <= _MAX_SEED:
        return value
    if type(value) is float and 0 <= value <= _MAX_SEED and value.is_integer():
        return int(value)
    raise DecodeError("a Bloom filter's seed must be an integer from 0 to 2^53")


def _from_base64(text: str) -> bytearray:
    """Decode base64 like JavaScript's ``atob``: padding is optional, white space and unused bits are ignored."""
    with contextlib.suppress(ValueError):
        # Base64 as GoatDB writes it.
        return pybase64.b64decode_as_bytearray(text, validate=True)
    compact = text.translate(_ASCII_SPACE)
    if len(compact) % 4 == 0:
        compact = compact[:-2] if compact.endswith("==") else compact.removesuffix("=")
    if len(compact) % 4 == 1 or "=" in compact:
        raise DecodeError("a Bloom filter's bits must be base64")
    try:
        return pybase64.b64decode_as_bytearray(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError:
        raise DecodeError("a Bloom filter's bits must be base64") from None
