"""JavaScript's values as Python holds them, and the texts that GoatDB makes of them.

Stable JSON (the text that is signed), ``JSON.stringify``, ``JSON.parse``, base32, dates and numbers, bug for bug
(formats 0, 1, 3, 4.1). Pure. A JavaScript number is a Python ``int`` (within 2^53) or ``float``, a string is ``str``
(compared by UTF-16 unit), null is ``None``, undefined is `UNDEFINED`, an array is a list, a plain object a dict; a
Date, a Set and a Map are the classes below. What turns Dates and Sets into marked JSON is `goatherd.wire.encoders`.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from goatherd.errors import DecodeError, EncodeError

MAX_DEPTH = 200
"""Deepest nesting that `parse_json` takes. GoatDB has no bound; real items stay below ten."""

_EXACT = 2**53
_MAX_DATE_MS = 8.64e15


class Undefined:
    """JavaScript's undefined: distinct from null and from an absent member. Falsy."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined()


class JSDate:
    """A JavaScript Date: integer milliseconds since 1970, or None when invalid. Compared by identity, like there."""

    __slots__ = ("ms",)

    def __init__(self, ms: int | None) -> None:
        self.ms = ms

    @property
    def seconds(self) -> float:
        """The serialized form: seconds; NaN when invalid."""
        return math.nan if self.ms is None else self.ms / 1000

    def __repr__(self) -> str:
        return f"JSDate({self.ms})"


class JSSet:
    """A JavaScript Set, in insertion order: primitives by value (0 is -0, 1 is not "1"), objects by identity."""

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
    """A JavaScript Map with text keys, in insertion order. A dict that is not a plain object."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"JSMap({dict(self)!r})"


def is_truthy(value: Any) -> bool:
    """Whether JavaScript takes the value for true: empty arrays and objects are, NaN is not."""
    if value is None or value is UNDEFINED:
        return False
    if isinstance(value, str | bool | int | float):
        return bool(value) and value == value
    return True


# --- text ---------------------------------------------------------------------------------------------------------

_SURROGATE = re.compile("[\ud800-\udfff]")
_encode_string = json.encoder.encode_basestring


def unit_key(text: str) -> bytes:
    """Return a sort key that orders strings by UTF-16 code unit, as JavaScript compares them."""
    return text.encode("utf-16-be", "surrogatepass")


def units(text: str) -> list[int]:
    """Return the UTF-16 code units of a text; lone surrogates are units of their own."""
    raw = text.encode("utf-16-le", "surrogatepass")
    return [raw[index] | raw[index + 1] << 8 for index in range(0, len(raw), 2)]


def join_surrogates(text: str) -> str:
    """Return the text with neighbouring lone surrogates joined into the character that they mean in JavaScript."""
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def json_string(text: str) -> str:
    """Return the JSON string that ``JSON.stringify`` writes: raw but for quotes, controls and lone surrogates."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return _encode_string(text)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", _encode_string(join_surrogates(text)))


def is_array_index(key: str) -> bool:
    """Whether JavaScript sorts this key before all others: a canonical integer below 2^32 - 1."""
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
    """Return ``String(x)`` (formats 1.4)."""
    if isinstance(value, int):
        if -_EXACT <= value <= _EXACT:
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


def json_number(value: float) -> str:
    """Return the JSON text of a number: as `number_text`, ``null`` where not finite."""
    text = number_text(value)
    return "null" if text[-1] in "yN" else text


# --- the text that is signed --------------------------------------------------------------------------------------


def stable_stringify(value: Any) -> str:
    """Return the text that GoatDB signs for `value` (formats 3). Not JSON in general.

    Raises:
        EncodeError: A null or a value unknown to JavaScript anywhere inside, or nesting without end.
    """
    try:
        if isinstance(value, str):
            return stable_stringify(utf16_characters(value))
        return _stable_object(value)
    except RecursionError:
        raise EncodeError("nested too deeply to be signed") from None


def utf16_characters(text: str) -> dict[str, str]:
    """Return a string as JavaScript's ``Object.keys`` sees it: one member per UTF-16 unit."""
    return {str(index): chr(unit) for index, unit in enumerate(units(text))}


def _stable_object(value: Any) -> str:
    if isinstance(value, dict):
        if isinstance(value, JSMap) or not value:
            return "{}"
        keys = list(value)
        if len(keys) > 1:
            keys.sort(key=None if "".join(keys).isascii() else unit_key)
        return "{" + ",".join([f"{json_string(key)}:{stable_member(value[key])}" for key in keys]) + "}"
    if isinstance(value, list | tuple):
        return "{" + ",".join([f'"{i}":{stable_member(value[i])}' for i in text_order(len(value))]) + "}"
    if value is None:
        raise EncodeError("null cannot be signed: GoatDB's stable serialization throws on it")
    if isinstance(value, JSDate | JSSet | bool | int | float):
        return "{}"
    raise EncodeError(f"a {type(value).__name__} cannot be signed")


def text_order(count: int) -> Iterable[int]:
    """Return the numbers below `count` in the order of their decimal texts, without one long call of a sort."""
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


def stable_member(value: Any) -> str:
    """Return the text of one member's value; see `stable_stringify`."""
    kind = type(value)
    if kind is str:
        return json_string(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is int or kind is float:
        return json_number(value)
    if value is UNDEFINED:
        return "undefined"
    if kind is dict and value and _is_flat(value):
        try:
            return orjson.dumps(value, option=_SORTED).decode()
        except orjson.JSONEncodeError:  # a lone surrogate, an integer beyond 2^53
            pass
    return _stable_object(value)


# --- JSON.stringify and JSON.parse --------------------------------------------------------------------------------

_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


def _safe_float(value: float) -> bool:
    """Whether orjson writes the number in JavaScript's layout."""
    return 1e-5 <= abs(value) < 1e15 and not value.is_integer()


def _is_flat(value: dict[str, Any]) -> bool:
    """Whether sorted JSON of a non-empty object is its stable form: ASCII names, scalars, no null, no odd float."""
    for item in value.values():
        kind = type(item)
        if kind is not str and kind is not bool and kind is not int and (kind is not float or not _safe_float(item)):
            return False
    return "".join(value).isascii()


def orjson_agrees(value: Any) -> bool:
    """Whether orjson is known to write `value` byte for byte as JavaScript does. False is always a safe answer.

    Args:
        value: JSON values, of dicts, lists and scalars of exactly those types.
    """
    kind = type(value)
    if kind is not dict and kind is not list:
        return kind is str and value.isascii()
    pending = [value]
    for container in pending:
        if type(container) is dict:
            for key in container:
                if not key.isascii() or key[:1] <= "9":
                    return False
            values: Iterable[Any] = container.values()
        else:
            values = container
        for item in values:
            kind = type(item)
            if kind is str:
                if not item.isascii() and _SURROGATE.search(item) is not None:
                    return False
            elif kind is dict or kind is list:
                pending.append(item)
            elif kind is int:
                if not -_EXACT <= item <= _EXACT:
                    return False
            elif kind is float:
                if not _safe_float(item):
                    return False
            elif kind is not bool and item is not None:
                return False
        if len(pending) > 1000:
            return False
    return True


def to_json_bytes(value: Any) -> bytes:
    """Return compact ``JSON.stringify(value)`` as UTF-8; see `to_json`."""
    if orjson_agrees(value):
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError:
            pass
    return to_json(value).encode()


def to_json(value: Any) -> str:
    """Return compact ``JSON.stringify(value)``. A top-level undefined gives the word, as it prints.

    Raises:
        EncodeError: A value unknown to JavaScript, or nesting without end.
    """
    if orjson_agrees(value):
        try:
            return orjson.dumps(value).decode()
        except orjson.JSONEncodeError:
            pass
    try:
        return _json_value(value, "", "")
    except RecursionError:
        raise EncodeError("nested too deeply to be written") from None


def to_pretty_json(value: Any) -> str:
    """Return ``JSON.stringify(value, null, 2)``, the form of settings.json (formats 2.5)."""
    try:
        return _json_value(value, "  ", "\n")
    except RecursionError:
        raise EncodeError("nested too deeply to be written") from None


def _json_value(value: Any, indent: str, margin: str) -> str:
    kind = type(value)
    if kind is str:
        return json_string(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int or kind is float:
        return json_number(value)
    if value is UNDEFINED:
        return "undefined"
    inner = margin + indent
    if isinstance(value, JSMap | JSSet):
        return "{}"
    if isinstance(value, dict):
        colon = ": " if indent else ":"
        parts = [
            f"{json_string(key)}{colon}{_json_value(value[key], indent, inner)}"
            for key in own_keys(value)
            if value[key] is not UNDEFINED
        ]
        return f"{{{inner}{f',{inner}'.join(parts)}{margin}}}" if parts else "{}"
    if isinstance(value, list | tuple):
        parts = ["null" if item is UNDEFINED else _json_value(item, indent, inner) for item in value]
        return f"[{inner}{f',{inner}'.join(parts)}{margin}]" if parts else "[]"
    if isinstance(value, JSDate):
        return "null" if value.ms is None else f'"{date_text(value.ms)}"'
    raise EncodeError(f"a {type(value).__name__} has no JSON")


def date_text(ms: int) -> str:
    """Return JavaScript's ``toISOString`` of milliseconds since 1970, years beyond 9999 and before 0 included."""
    days, rest = divmod(ms, 86_400_000)
    cycles, day = divmod(days + 719_468, 146_097)  # 400-year cycles since 0000-03-01
    moment = datetime(2000, 3, 1, tzinfo=UTC) + timedelta(days=day, milliseconds=rest)
    year = moment.year - 2000 + 400 * cycles
    shown = f"{year:04d}" if 0 <= year <= 9999 else f"{'-' if year < 0 else '+'}{abs(year):06d}"
    return f"{shown}-{moment:%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def parse_json(text: bytes | str) -> Any:
    """Read JSON as JavaScript does: the last of duplicate members wins, numbers are doubles, lone surrogates pass.

    Args:
        text: Bytes are read as UTF-8 like a request body: a byte order mark is dropped, bad bytes are replaced.

    Raises:
        DecodeError: Not JSON, or nested deeper than `MAX_DEPTH`.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = _parse_slowly(text)
    kind = type(value)
    if kind is dict or kind is list:
        return _as_doubles(value)
    return float(value) if kind is int and not -_EXACT <= value <= _EXACT else value


def _parse_slowly(text: bytes | str) -> Any:
    """Read what orjson refuses and JavaScript may take: lone surrogates, infinite numbers, damaged UTF-8."""
    if not isinstance(text, str):
        text = bytes(text).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    try:
        return _PARSER.decode(text)
    except RecursionError:
        raise DecodeError("JSON is nested too deeply") from None
    except ValueError as error:
        position = f" at {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise DecodeError(f"not JSON{position}") from None


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= 15 else float(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


_PARSER = json.JSONDecoder(parse_int=_integer, parse_constant=_refuse_constant)


def _as_doubles(value: Any) -> Any:
    """Check the depth and turn integers beyond 2^53 into doubles, level by level, in place."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                for key, item in container.items():
                    kind = type(item)
                    if kind is dict or kind is list:
                        below.append(item)
                    elif kind is int and not -_EXACT <= item <= _EXACT:
                        container[key] = float(item)
            else:
                for index, item in enumerate(container):
                    kind = type(item)
                    if kind is dict or kind is list:
                        below.append(item)
                    elif kind is int and not -_EXACT <= item <= _EXACT:
                        container[index] = float(item)
        if not below:
            return value
        level = below
    raise DecodeError(f"JSON is nested deeper than {MAX_DEPTH}")


# --- base32 -------------------------------------------------------------------------------------------------------

_B32_DIGITS = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789ABCDEFGHIJKLMNOPQRSTUV")
_B32_TEXT = re.compile("[A-Z2-7]*")
_B32_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567" + bytes(224)
_B32_PADDING = {1: 1, 2: 3, 3: 4, 4: 6}
_B32_BAD_TAILS = frozenset({1, 3, 6})


def base32_encode(raw: bytes) -> str:
    """Return GoatDB's base32: lower case, only the first ``=`` of the padding replaced by ``_`` (formats 4.1)."""
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
    """Return shift, what stays and what moves, for the three steps of `base32_encode` over blocks of 64 bits."""
    steps = []
    for bits in (20, 10, 5):
        ones, slot = (1 << bits) - 1, bits * 16 // 5
        count = 64 // slot * blocks
        low = sum(ones << slot * index for index in range(count))
        steps.append((slot // 2 - bits, low, low << bits))
    return tuple(steps)


def base32_decode(text: str) -> bytes:
    """Read GoatDB's base32 as strictly, and as loosely, as GoatDB does (formats 4.1). Spare bits are ignored.

    Raises:
        DecodeError: Bad length, padding or character.
    """
    upper = text.upper().replace("_", "=", 1) if isinstance(text, str) else "?"
    if len(upper) % 8:
        raise DecodeError("base32 text has a length that is no multiple of 8")
    digits = upper[:-6] + upper[-6:].rstrip("=")
    if not digits:
        return b""
    if len(digits) % 8 in _B32_BAD_TAILS or _B32_TEXT.fullmatch(digits) is None:
        raise DecodeError("not base32 as GoatDB writes it")
    count = len(digits) * 5 // 8
    return (int(digits.translate(_B32_DIGITS), 32) >> (len(digits) * 5 - count * 8)).to_bytes(count, "big")


# --- dates --------------------------------------------------------------------------------------------------------

_FLOAT_PREFIX = re.compile(r"[+-]?(?:Infinity|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_INTEGER_PREFIX = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]+)|([0-9]+))")
JS_SPACE = (
    "\t\n\v\f\r \xa0\u1680"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
)


def seconds_from_ms(ms: float) -> float:
    """Serialize a date: milliseconds to seconds (formats 1.3)."""
    return ms / 1000


def parse_float(text: str) -> float:
    """Return JavaScript's ``parseFloat``: the longest numeric prefix, else NaN."""
    match = _FLOAT_PREFIX.match(text.lstrip(JS_SPACE))
    return math.nan if match is None else float(match[0])


def parse_integer(text: str) -> float:
    """Return JavaScript's ``parseInt``: the integer at the beginning, hexadecimal behind ``0x``, else NaN."""
    match = _INTEGER_PREFIX.match(text.lstrip(JS_SPACE))
    if match is None:
        return math.nan
    sign, hexadecimal, decimal = match.groups()
    # By way of a double, as in JavaScript: Python refuses to make an integer of thousands of digits.
    number = float.fromhex(hexadecimal) if hexadecimal else float(decimal)
    return -number if sign == "-" else number


def date_from_json(value: Any) -> JSDate:
    """Deserialize a date; one that JavaScript calls invalid gives an invalid one (formats 1.3).

    Raises:
        DecodeError: Neither a number nor text nor a date.
    """
    if isinstance(value, JSDate):
        return value
    if isinstance(value, str):
        value = parse_float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DecodeError("not a date")
    try:
        number = float(value)
    except OverflowError:
        return JSDate(None)
    if number < 1e12:
        number *= 1000
    return JSDate(int(number) if abs(number) <= _MAX_DATE_MS else None)


def ms_from_seconds(value: float | str) -> int:
    """Deserialize a date: below 1e12 it is seconds, else milliseconds; truncated toward zero (formats 1.3).

    Raises:
        DecodeError: Not a date, or one beyond JavaScript's range.
    """
    ms = date_from_json(value).ms
    if ms is None:
        raise DecodeError("date out of range")
    return ms


# --- versions -----------------------------------------------------------------------------------------------------


def pack_version(parts: Iterable[int]) -> int:
    """Pack a.b.c.d, each masked to a byte, into a signed 32-bit integer (formats 1.5)."""
    a, b, c, d = parts
    packed = (a & 255) << 24 | (b & 255) << 16 | (c & 255) << 8 | d & 255
    return packed - 2**32 if packed & 2**31 else packed


def unpack_version(packed: int) -> tuple[int, int, int, int]:
    """Return the four parts of a packed version."""
    return (packed >> 24 & 255, packed >> 16 & 255, packed >> 8 & 255, packed & 255)
