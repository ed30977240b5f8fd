"""Read and write JSON as JavaScript does, and write the stable form that GoatDB signs, including its bugs.

Pure. ``JSON.parse``, ``JSON.stringify`` and GoatDB's stable serialization
(docs/reference/goatdb-formats.md#stable-stringify) of the values of `goatherd.wire.javascript_values`. The library
orjson is used wherever it is known to write the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from goatherd.errors import DecodeError, EncodeError
from goatherd.times import iso
from goatherd.wire.javascript_values import (
    MAX_SAFE_INTEGER,
    SURROGATE,
    UNDEFINED,
    JSDate,
    JSMap,
    JSSet,
    join_surrogates,
    number_text,
    own_keys,
    text_order,
    unit_key,
    utf16_characters,
)

MAX_DEPTH = 200
"""Deepest nesting that `parse_json` takes. GoatDB has no bound; real items stay below ten."""
_encode_string = json.encoder.encode_basestring


class TooDeepError(DecodeError):
    """JSON is nested deeper than this module reads, which GoatDB writes and reads all the same."""


def json_string(text: str) -> str:
    """Return a string as JSON, as JavaScript's ``JSON.stringify`` writes it.

    Only quotes, backslashes, control characters and lone surrogates are escaped.
    """
    if text.isascii() or SURROGATE.search(text) is None:
        return _encode_string(text)
    return SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", _encode_string(join_surrogates(text)))


def json_number(value: float) -> str:
    """Return a number as JSON, as JavaScript writes it; a number that is not finite gives ``null``."""
    text = number_text(value)
    return "null" if text[-1] in "yN" else text


def stable_stringify(value: Any) -> str:
    """Return the string that GoatDB signs for `value`, its stable form. In general, this string is not JSON.

    Raises:
        EncodeError: The value contains a null or a type that JavaScript does not have, or is nested too deeply.
    """
    try:
        if isinstance(value, str):
            return stable_stringify(utf16_characters(value))
        return _stable_object(value)
    except RecursionError:
        raise EncodeError("the value is nested too deeply to be signed") from None


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
    raise EncodeError(f"a value of type {type(value).__name__} cannot be signed")


def stable_member(value: Any) -> str:
    """Return GoatDB's stable form of one member's value; see `stable_stringify`."""
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


_MOST_CONTAINERS: Final = 10_000
"""Bounds the search in a value that contains itself, and the memory that orjson takes: 256 bytes for each object."""
_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER


def _safe_float(value: float) -> bool:
    """Return whether the library orjson certainly writes this number as JavaScript does."""
    return 1e-5 <= abs(value) < 1e15 and not value.is_integer()


def _is_flat(value: dict[str, Any]) -> bool:
    """Return whether an object's JSON with sorted names is its stable form, the string that GoatDB signs.

    That is so for objects with ASCII names and scalar values, without null and unusual floats.
    """
    for item in value.values():
        kind = type(item)
        if kind is not str and kind is not bool and kind is not int and (kind is not float or not _safe_float(item)):
            return False
    return "".join(value).isascii()


def orjson_agrees(value: Any, *, are_names_in_order: bool = False) -> bool:
    """Return whether the library orjson is known to write `value` byte for byte as JavaScript does.

    The result may be False although orjson writes the same bytes, but is never wrongly True.

    Args:
        value: A JSON value of exactly the types dict, list and scalars.
        are_names_in_order: Whether the order of names in `value` is the wanted one, which orjson keeps. If not, names
            that may be array indices, which JavaScript puts first, give False.
    """
    kind = type(value)
    if kind is not dict and kind is not list:
        return kind is str and value.isascii()
    pending = [value]
    for container in pending:
        if type(container) is dict:
            for key in container:
                if not key.isascii() or (key[:1] <= "9" and not are_names_in_order):
                    return False
            values: Iterable[Any] = container.values()
        else:
            values = container
        for item in values:
            kind = type(item)
            if kind is str:
                if not item.isascii() and SURROGATE.search(item) is not None:
                    return False
            elif kind is dict or kind is list:
                pending.append(item)
            elif kind is int:
                if not -MAX_SAFE_INTEGER <= item <= MAX_SAFE_INTEGER:
                    return False
            elif kind is float:
                if not _safe_float(item):
                    return False
            elif kind is not bool and item is not None:
                return False
        if len(pending) > _MOST_CONTAINERS:
            return False
    return True


def to_json_bytes(value: Any) -> bytes:
    """Return a value as compact JSON in UTF-8, as JavaScript's ``JSON.stringify(value)`` writes it."""
    if orjson_agrees(value):
        try:
            return orjson.dumps(value)
        except orjson.JSONEncodeError:
            pass
    return to_json(value).encode()


def to_json(value: Any) -> str:
    """Return a value as compact JSON, as JavaScript's ``JSON.stringify(value)`` writes it.

    For a top-level undefined, return the word ``undefined``.

    Raises:
        EncodeError: The value contains a type that JavaScript does not have, or is nested too deeply.
    """
    if orjson_agrees(value):
        try:
            return orjson.dumps(value).decode()
        except orjson.JSONEncodeError:
            pass
    try:
        return _json_value(value)
    except RecursionError:
        raise EncodeError("the value is nested too deeply to be written") from None


def _json_value(value: Any) -> str:
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
    if isinstance(value, JSMap | JSSet):
        return "{}"
    if isinstance(value, dict):
        members = [
            f"{json_string(key)}:{_json_value(value[key])}" for key in own_keys(value) if value[key] is not UNDEFINED
        ]
        return f"{{{','.join(members)}}}"
    if isinstance(value, list | tuple):
        items = ["null" if item is UNDEFINED else _json_value(item) for item in value]
        return f"[{','.join(items)}]"
    if isinstance(value, JSDate):
        return "null" if value.ms is None else f'"{iso(value.ms)}"'
    raise EncodeError(f"a value of type {type(value).__name__} cannot be written as JSON")


def parse_json(text: bytes | str) -> Any:
    """Parse JSON as JavaScript does.

    Of repeated members the last one counts, numbers become doubles, and lone surrogates are allowed.

    Args:
        text: Bytes are decoded as UTF-8 like a request body: a byte order mark is dropped, invalid bytes are replaced.

    Raises:
        TooDeepError: The text is nested deeper than `MAX_DEPTH`.
        DecodeError: The text is not JSON.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = _parse_slowly(text)
    return _as_javascript(value)


def parse_plain_json(text: bytes) -> Any:
    """Parse JSON that every parser reads in the same way; the result is that of `parse_json`.

    Raises:
        DecodeError: The bytes are not valid UTF-8, are no JSON by RFC 8259, have a lone surrogate, or are nested deeper
            than `MAX_DEPTH`.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DecodeError(f"the text is not JSON: error at character {error.pos}") from None
    return _as_javascript(value)


def _parse_slowly(text: bytes | str) -> Any:
    """Parse JSON that orjson rejects and JavaScript may accept: lone surrogates, infinite numbers, damaged UTF-8."""
    if not isinstance(text, str):
        text = bytes(text).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    try:
        return _PARSER.decode(text)
    except RecursionError:
        raise TooDeepError("JSON is nested too deeply") from None
    except ValueError as error:
        position = f": error at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise DecodeError(f"the text is not JSON{position}") from None


def _parse_integer(digits: str) -> float:
    return int(digits) if len(digits) <= 15 else float(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


_PARSER = json.JSONDecoder(parse_int=_parse_integer, parse_constant=_refuse_constant)


def _as_javascript(value: Any) -> Any:
    """Return a parsed value with its numbers as JavaScript has them: integers beyond 2^53 become doubles.

    Raises:
        TooDeepError: The value is nested too deeply.
    """
    kind = type(value)
    if kind is dict or kind is list:
        return _as_doubles(value)
    return float(value) if kind is int and not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER else value


def _as_doubles(value: Any) -> Any:
    """Check how deeply parsed JSON is nested, and convert integers beyond 2^53 to doubles.

    The value is changed in place, level by level.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                for key, item in container.items():
                    kind = type(item)
                    if kind is dict or kind is list:
                        below.append(item)
                    elif kind is int and not -MAX_SAFE_INTEGER <= item <= MAX_SAFE_INTEGER:
                        container[key] = float(item)
            else:
                for index, item in enumerate(container):
                    kind = type(item)
                    if kind is dict or kind is list:
                        below.append(item)
                    elif kind is int and not -MAX_SAFE_INTEGER <= item <= MAX_SAFE_INTEGER:
                        container[index] = float(item)
        if not below:
            return value
        level = below
    raise TooDeepError(f"JSON is nested deeper than {MAX_DEPTH}")


def nesting_depth(value: Any) -> Iterator[list[Any]]:
    """Yield the objects and arrays in parsed JSON as one list for each nesting level, the outermost level first.

    A value that is neither an object nor an array has no level.
    """
    level = [value] if type(value) is dict or type(value) is list else []
    while level:
        yield level
        inner: list[Any] = []
        for item in level:
            members = item.values() if type(item) is dict else item
            inner += [each for each in members if type(each) is dict or type(each) is list]
        level = inner
