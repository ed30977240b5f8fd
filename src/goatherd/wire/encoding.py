"""JavaScript's values as Python holds them, and the texts that GoatDB makes of them.

Stable JSON (the text that is signed), ``JSON.stringify``, base32, dates and numbers, bug for bug (formats 0, 1, 3, 4.1).
Pure. A JavaScript number is a Python ``int`` or ``float`` (never beyond what a double holds), a string is ``str``
(compared by UTF-16 unit), null is ``None``, undefined is `UNDEFINED`, a Date, Set and Map are the classes below.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any, Final

from goatherd.errors import DecodeError, EncodeError


class Undefined:
    """JavaScript's undefined: distinct from null and from an absent member. Falsy."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined()

_B32_TO_DIGITS = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789ABCDEFGHIJKLMNOPQRSTUV")
_json_string = json.encoder.encode_basestring


def unit_key(text: str) -> bytes:
    """Return a sort key that orders strings by UTF-16 code unit, as JavaScript compares them."""
    return text.encode("utf-16-be", "surrogatepass")


def number_text(value: float) -> str:
    """Return ``String(x)`` (formats 1.4)."""
    if isinstance(value, int):
        if abs(value) < 10**21:
            return str(value) if abs(value) <= 2**53 else number_text(float(value))
        value = float(value)
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    if fraction == "0":
        fraction = ""
    digits = whole + fraction
    point = len(whole) + (int(exponent) if exponent else 0)
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    digits = stripped.rstrip("0")
    k, n = len(digits), point
    if k <= n <= 21:
        return sign + digits + "0" * (n - k)
    if 0 < n <= 21:
        return sign + digits[:n] + "." + digits[n:]
    if -6 < n <= 0:
        return sign + "0." + "0" * -n + digits
    e = n - 1
    return sign + digits[0] + ("." + digits[1:] if k > 1 else "") + "e" + ("+" if e >= 0 else "-") + str(abs(e))


def stable_stringify(value: Any) -> str:
    """Return the text that GoatDB signs for `value` (formats 3). Not JSON in general.

    Raises:
        EncodeError: A null anywhere inside.
    """
    if isinstance(value, dict):
        if not value:
            return "{}"
        keys = sorted(value) if all(key.isascii() for key in value) else sorted(value, key=unit_key)
        return "{" + ",".join([_json_string(key) + ":" + _stable_member(value[key]) for key in keys]) + "}"
    if isinstance(value, list | tuple):
        if len(value) <= 10:
            return "{" + ",".join([f'"{i}":{_stable_member(item)}' for i, item in enumerate(value)]) + "}"
        order = sorted(range(len(value)), key=str)
        return "{" + ",".join([f'"{i}":{_stable_member(value[i])}' for i in order]) + "}"
    if value is None:
        raise EncodeError("null cannot be signed: GoatDB's stable serialization throws on it")
    return "{}"


def _stable_member(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _json_string(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is int or kind is float:
        text = number_text(value)
        return "null" if text[-1] in "yN" else text
    if value is UNDEFINED:
        return "undefined"
    return stable_stringify(value)


def to_json(value: Any) -> str:
    """Return compact ``JSON.stringify(value)`` for plain JSON values."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def base32_encode(raw: bytes) -> str:
    """Return GoatDB's base32: lower case, only the first ``=`` of the padding replaced by ``_`` (formats 4.1)."""
    return base64.b32encode(raw).decode("ascii").replace("=", "_", 1).lower()


def base32_decode(text: str) -> bytes:
    """Read GoatDB's base32 as strictly, and as loosely, as GoatDB does (formats 4.1).

    Raises:
        DecodeError: Bad length, padding or character.
    """
    upper = text.upper().replace("_", "=", 1)
    try:
        return base64.b32decode(upper)
    except (binascii.Error, ValueError):
        raise DecodeError("not base32 as GoatDB writes it") from None


def seconds_from_ms(ms: float) -> float:
    """Serialize a date: milliseconds to seconds (formats 1.3)."""
    return ms / 1000


def ms_from_seconds(value: float | str) -> int:
    """Deserialize a date: below 1e12 it is seconds, else milliseconds; truncated toward zero (formats 1.3).

    Raises:
        DecodeError: Not a date.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DecodeError("not a date") from None
    if number < 1e12:
        number *= 1000
    if number != number or abs(number) > 8.64e15:
        raise DecodeError("date out of range")
    return int(number)
