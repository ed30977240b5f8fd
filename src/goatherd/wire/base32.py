"""Base32 as GoatDB writes and reads it: RFC 4648 in lower case, with the first ``=`` of the padding written as ``_``.

Pure. The rules are in docs/reference/goatdb-formats.md#base32.
"""

from __future__ import annotations

import functools

from goatherd.errors import DecodeError

_B32_VALUES = dict(
    zip(
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567abcdefghijklmnopqrstuvwxyz",
        b"0123456789ABCDEFGHIJKLMNOPQRSTUV0123456789ABCDEFGHIJKLMNOP",
        strict=True,
    )
)
_B32_DIGITS = bytes(_B32_VALUES.get(code, ord("!")) for code in range(256))
_B32_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567" + bytes(224)
_B32_PADDING = {1: 1, 2: 3, 3: 4, 4: 6}
_B32_BAD_TAILS = frozenset({1, 3, 6})


def base32_encode(raw: bytes) -> str:
    """Encode bytes as GoatDB's base32: lower case, and only the first ``=`` of the padding is replaced by ``_``."""
    padding = -len(raw) % 5
    if padding:
        raw += bytes(padding)
    blocks = len(raw) // 5
    spread = bytearray(8 * blocks)
    for place in range(5):
        spread[place + 3 :: 8] = raw[place::5]
    # Every 40 bits stand in 64 now; halves move apart three times, until 5 bits stand in 8.
    bits = int.from_bytes(spread, "big")
    for shift, low, high in _b32_masks(blocks):
        bits = bits & low | (bits & high) << shift
    text = bits.to_bytes(8 * blocks, "big").translate(_B32_ALPHABET).decode("ascii")
    return text[: -_B32_PADDING[padding]] + "_======"[: _B32_PADDING[padding]] if padding else text


@functools.lru_cache(maxsize=64)
def _b32_masks(blocks: int) -> tuple[tuple[int, int, int], ...]:
    """Return, for each of the three steps of `base32_encode`, the shift, the bits that stay and the bits that move."""
    steps = []
    for bits in (20, 10, 5):
        ones, slot = (1 << bits) - 1, bits * 16 // 5
        count = 64 // slot * blocks
        low = sum(ones << slot * index for index in range(count))
        steps.append((slot // 2 - bits, low, low << bits))
    return tuple(steps)


def base32_decode(text: str) -> bytes:
    """Decode GoatDB's base32; accept exactly the strings that GoatDB accepts. Surplus bits at the end are ignored.

    Raises:
        DecodeError: The length, the padding or a character is invalid.
    """
    if not isinstance(text, str):
        text = "?"
    elif not text.isascii():
        text = text.upper()  # as GoatDB does: of some characters, this makes ASCII letters
    padded = text.replace("_", "=", 1).encode("ascii", "replace")
    if len(padded) % 8:
        raise DecodeError("the length of base32 text must be a multiple of 8")
    digits = padded[:-6] + padded[-6:].rstrip(b"=")
    if not digits:
        return b""
    spare = len(digits) * 5 % 8
    try:
        if len(digits) % 8 in _B32_BAD_TAILS:
            raise ValueError
        value = int(digits.translate(_B32_DIGITS), 32)
    except ValueError:
        raise DecodeError("the text is not valid base32 in GoatDB's form") from None
    return (value >> spare).to_bytes(len(digits) * 5 // 8, "big")
