"""The same P-384 keys every time, one after the other, and the idealised signatures made with them.

What it is: the list that `tests.simulation.dice` deals from. What it is not: cryptography. The private
numbers are in this file for everybody to read, and consecutive. Only points are added here, since
`goatherd.crypto` can make a key by chance only; it reads and checks each one (``x`` and ``y`` must belong to ``d``).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any, Final

from goatherd.crypto import SIGNATURE_BYTES, PrivateKey, PublicKey
from goatherd.errors import InvalidSignatureError

Point = tuple[int, int]

# SP 800-186, 3.2.1.4: the field, and the base point of the curve y^2 = x^3 - 3x + b.
_FIELD: Final = 2**384 - 2**128 - 2**96 + 2**32 - 1
_BASE: Final = (
    0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7,
    0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F,
)
_FIRST_BITS: Final = 300
"""The first private number is two to the power of this; the next ones follow it."""

_made: list[PrivateKey] = []
_secrets: dict[bytes, bytes] = {}


def keys() -> Iterator[PrivateKey]:
    """Return the keys in order, always the same ones; they are made at the first call in this process."""
    number = 0
    while True:
        if number == len(_made):
            _make_more()
        yield _made[number]
        number += 1


def ideal_sign(self: PrivateKey, data: bytes) -> bytes:
    """Stand in for `PrivateKey.sign`."""
    return _ideal(_secrets[self.public_key.raw], data)


def ideal_verify(self: PublicKey, signature: bytes, data: bytes) -> None:
    """Stand in for `PublicKey.verify`."""
    secret = _secrets.get(self.raw)
    if len(signature) != SIGNATURE_BYTES or secret is None or _ideal(secret, data) != signature:
        raise InvalidSignatureError("the signature does not match the data and the key")


def _ideal(secret: bytes, data: bytes) -> bytes:
    first = hashlib.sha384(secret + data).digest()
    return first + hashlib.sha384(first + secret).digest()


_points: list[Point] = []


def _make_more() -> None:
    if _points:
        point = _add(_points[-1], _BASE)
    else:
        point = _BASE
        for _ in range(_FIRST_BITS):
            point = _add(point, point)
    secret = 2**_FIRST_BITS + len(_points)
    _points.append(point)
    jwk: dict[str, Any] = {"kty": "EC", "crv": "P-384", "d": _text(secret), "x": _text(point[0]), "y": _text(point[1])}
    key = PrivateKey.from_jwk(jwk)
    _secrets[key.public_key.raw] = secret.to_bytes(48, "big")
    _made.append(key)


def _add(one: Point, other: Point) -> Point:
    if one == other:
        slope = (3 * one[0] * one[0] - 3) * pow(2 * one[1], -1, _FIELD)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, _FIELD)
    x = (slope * slope - one[0] - other[0]) % _FIELD
    return x, (slope * (one[0] - x) - one[1]) % _FIELD


def _text(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(48, "big")).decode()
