"""Generate random identifiers; no other module of Goatherd does.

Pure modules take ids as arguments; their callers generate them here. The ids have the form of those that GoatDB takes
from ``Math.random``, but come from the operating system's random source. `goatherd.wire.derived_ids` derives ids from a
string.
"""

from __future__ import annotations

import secrets

from goatherd.wire.derived_ids import ALPHABET, LENGTH

_SEED_BITS = 53
# Larger bytes are discarded, so that each character has the same probability: 252 is 7 times 36.
_FAIR = 256 // len(ALPHABET) * len(ALPHABET)
_CHARACTERS = bytes(ord(ALPHABET[byte % len(ALPHABET)]) for byte in range(256))
_UNFAIR = bytes(range(_FAIR, 256))


def new_id() -> str:
    """Return a random id: 24 characters drawn uniformly from a-z and 0-9 (about 124 bits)."""
    drawn = b""
    while len(drawn) < LENGTH:
        drawn += secrets.token_bytes(LENGTH + 8).translate(_CHARACTERS, _UNFAIR)
    return drawn[:LENGTH].decode("ascii")


def new_seeds(count: int) -> tuple[int, ...]:
    """Return `count` random Bloom filter seeds, integers in [0, 2^53-1)."""
    return tuple([secrets.randbelow(2**_SEED_BITS - 1) for _ in range(count)])
