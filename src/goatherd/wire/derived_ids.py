"""Derive identifiers from strings, so that every process derives the same identifier from the same string.

The identifiers have the form of GoatDB's random ones, which `goatherd.ids` generates. Pure.
"""

from __future__ import annotations

import hashlib
from typing import Final

ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
LENGTH: Final = 24


def derived_id(kind: str, text: str) -> str:
    """Return an id in GoatDB's form that depends on `kind` and `text` only."""
    return id_of_digest(hashlib.sha256(f"goatherd/{kind}/{text}".encode()).digest())


def id_of_digest(digest: bytes) -> str:
    """Convert a digest to an id: the 24 lowest digits of the digest's number in base 36, the lowest digit first."""
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(LENGTH):
        number, index = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[index])
    return "".join(letters)
