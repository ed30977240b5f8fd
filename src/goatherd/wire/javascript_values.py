"""JavaScript's values in Python: undefined, Date, Set, Map, strings, numbers and the order of keys.

Pure. The rules are in docs/reference/goatdb-formats.md#javascript-values. A JavaScript number is a Python ``int``
(within 2^53) or ``float``, a string is ``str`` (compared by UTF-16 unit), null is ``None``, undefined is `UNDEFINED`,
an array is a list, a plain object a dict; a Date, a Set and a Map are the classes below. `goatherd.wire.json` writes
them as plain JSON, and `goatherd.wire.encoders` writes Dates and Sets as JSON objects with a type marker.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from goatherd.errors import DecodeError

MAX_SAFE_INTEGER = 2**53
_MAX_DATE_MS = 8.64e15


class Undefined:
    """JavaScript's undefined: distinct from null and from an absent member. It is falsy."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined()


class JSDate:
    """A JavaScript Date: integer milliseconds since 1970, or None if invalid. Dates are compared by identity."""

    __slots__ = ("ms",)

    def __init__(self, ms: int | None) -> None:
        self.ms = ms

    @property
    def seconds(self) -> float:
        """The date in seconds since 1970, its serialized form; NaN if it is invalid."""
        return math.nan if self.ms is None else self.ms / 1000

    def __repr__(self) -> str:
        return f"JSDate({self.ms})"


class JSSet:
    """A JavaScript Set: values in insertion order.

    Primitives are compared by value (0 equals -0), objects by identity.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._items: dict[Any, Any] = {}
        for item in items:
            self.add(item)

    @staticmethod
    def _key(item: Any) -> Any:
        kind = type(item)
        if kind is str:
            return item
        if kind is int or kind is float:
            return ("number", "NaN" if item != item else float(item))
        if kind is bool or item is None or item is UNDEFINED:
            return ("constant", str(item))
        return ("object", id(item))

    def add(self, item: Any) -> None:
        self._items.setdefault(self._key(item), item)

    def __contains__(self, item: object) -> bool:
        return self._key(item) in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"JSSet({list(self)!r})"


class JSMap(dict[str, Any]):
    """A JavaScript Map with string keys, in insertion order.

    It is a dict, but not what JavaScript calls a plain object.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"JSMap({dict(self)!r})"


def is_truthy(value: Any) -> bool:
    """Return whether JavaScript treats the value as true: empty arrays and objects count as true, NaN as false."""
    if value is None or value is UNDEFINED:
        return False
    if isinstance(value, str | bool | int | float):
        return bool(value) and value == value
    return True


SURROGATE = re.compile("[\ud800-\udfff]")


def unit_key(text: str) -> bytes:
    """Return a sort key for a string, by which strings are ordered by UTF-16 code unit, as JavaScript compares them."""
    return text.encode("utf-16-be", "surrogatepass")


def utf16_units(text: str) -> list[int]:
    """Return the UTF-16 code units of a string; a lone surrogate is one code unit."""
    raw = text.encode("utf-16-le", "surrogatepass")
    return [raw[index] | raw[index + 1] << 8 for index in range(0, len(raw), 2)]


def join_surrogates(text: str) -> str:
    """Return a string in which each pair of adjacent surrogates is joined into one character, as in JavaScript."""
    if SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def is_array_index(key: str) -> bool:
    """Return whether JavaScript orders this object key as an array index (an integer below 2^32 - 1), before others."""
    if not key or key[0] not in "0123456789" or not key.isascii() or not key.isdigit():
        return False
    return (key[0] != "0" or len(key) == 1) and len(key) <= 10 and int(key) < 2**32 - 1


def own_keys(value: dict[str, Any]) -> list[str]:
    """Return an object's keys in JavaScript's own order: array indices ascending, then the rest as inserted."""
    keys = list(value)
    for key in keys:
        if key[:1].isdigit() and is_array_index(key):
            indices = sorted([key for key in keys if is_array_index(key)], key=int)
            return indices + [key for key in keys if not is_array_index(key)]
    return keys


def number_text(value: float) -> str:
    """Return a number as the string that JavaScript's ``String(x)`` returns for it."""
    if isinstance(value, int):
        if -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
            return str(int(value))
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    if not exponent and fraction != "0" and whole != "0":
        return sign + mantissa
    digits = whole + ("" if fraction == "0" else fraction)
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


def utf16_characters(text: str) -> dict[str, str]:
    """Return what JavaScript's ``Object.entries`` lists for a string: one entry per UTF-16 code unit, by its index."""
    return {str(index): chr(unit) for index, unit in enumerate(utf16_units(text))}


def text_order(count: int) -> Iterable[int]:
    """Return the numbers below `count` in the order of their decimal strings: 0, 1, 10, 2.

    No sort function is called, because one call for a large `count` would block other threads.
    """
    return range(count) if count <= 10 else _text_order(count)


def _text_order(count: int) -> Iterator[int]:
    yield 0
    number = 1
    for _ in range(count - 1):
        yield number
        if number * 10 < count:
            number *= 10
        else:
            if number + 1 >= count:
                number //= 10
            number += 1
            while number % 10 == 0:
                number //= 10


_FLOAT_PREFIX = re.compile(r"[+-]?(?:Infinity|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_INTEGER_PREFIX = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|([0-9]+))")
JS_SPACE = (
    "\t\n\v\f\r \xa0\u1680"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
)


def seconds_from_ms(ms: float) -> float:
    """Convert a date from milliseconds to seconds, its serialized form."""
    return ms / 1000


def parse_float(text: str) -> float:
    """Parse a number like JavaScript's ``parseFloat``: the longest numeric prefix, or NaN."""
    match = _FLOAT_PREFIX.match(text.lstrip(JS_SPACE))
    return math.nan if match is None else float(match[0])


def parse_integer(text: str) -> float:
    """Parse an integer like JavaScript's ``parseInt``: a decimal prefix, hexadecimal after ``0x``, or NaN."""
    match = _INTEGER_PREFIX.match(text.lstrip(JS_SPACE))
    if match is None:
        return math.nan
    sign, hexadecimal, decimal = match.groups()
    # By way of a double, as in JavaScript: Python refuses to make an integer of thousands of digits.
    try:
        number = float.fromhex(hexadecimal) if hexadecimal else float(decimal)
    except OverflowError:
        number = math.inf
    return -number if sign == "-" else number


def date_from_json(value: Any) -> JSDate:
    """Decode a date from its serialized form. A value that JavaScript calls an invalid date gives an invalid `JSDate`.

    Raises:
        DecodeError: The value is not a number, a string or a date.
    """
    if isinstance(value, JSDate):
        return value
    if isinstance(value, str):
        value = parse_float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DecodeError("a date must be a number or a string")
    try:
        number = float(value)
    except OverflowError:
        return JSDate(None)
    if number < 1e12:
        number *= 1000
    return JSDate(int(number) if abs(number) <= _MAX_DATE_MS else None)


def ms_from_seconds(value: float | str) -> int:
    """Convert a serialized date to milliseconds, truncated toward zero. A number below 1e12 is in seconds.

    Raises:
        DecodeError: The value is not a date, or is outside of JavaScript's range.
    """
    ms = date_from_json(value).ms
    if ms is None:
        raise DecodeError("a date is out of the range of JavaScript's dates")
    return ms


def exact_date_ms(ms: int) -> int:
    """Return the latest date up to `ms` that its serialized form stores without rounding.

    COMPAT: a date is written in seconds, as a float, and truncated to milliseconds when it is read. In 2004, and from
    2038 on (2**31 seconds), one in four values is read back one millisecond lower, and signatures over it do not
    verify.
    """
    while ms_from_seconds(seconds_from_ms(ms)) != ms:
        ms -= 1
    return ms
