"""Read the JSON of the identity document strictly, and write it as ``JSON.stringify(value, null, 2)`` does.

Pure. The module converts between bytes and JSON values and finds private keys in them; the meaning of the document's
members is defined in `document`. Invalid or ambiguous input is rejected. SECURITY: an error neither quotes nor
references the input. So the errors of `json` and of UTF-8 decoding, which hold the input, are never chained
(tests/unit/identity/test_document_properties.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import orjson

from goatherd.errors import MalformedIdentityError
from goatherd.wire.javascript_values import number_text
from goatherd.wire.json import orjson_agrees

MAX_DEPTH = 16

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_json_string = json.encoder.encode_basestring


class _NotStrictError(ValueError):
    """A value is valid JSON, but not allowed in an identity document. The message quotes no input."""


def parse_object(raw: bytes | str, *, max_bytes: int) -> dict[str, Any]:
    """Parse a JSON object by strict rules: repeated members and other ambiguous input are rejected.

    Args:
        raw: The JSON in UTF-8; a byte order mark is skipped, as GoatDB does.
        max_bytes: The maximum size of the input in bytes; larger input is rejected without parsing.

    Raises:
        MalformedIdentityError: The input is too large, not UTF-8, not JSON, not an object, or nested deeper than
            `MAX_DEPTH`; or has a repeated member or a number outside of JavaScript's range.
    """
    value, problem = _parse_value(raw, max_bytes)
    # SECURITY: the error is raised outside of the parser's `except`, so that no exception in its context holds the
    # text, which may contain a key (tests/unit/identity/test_document_properties.py).
    if problem is not None:
        raise MalformedIdentityError(problem)
    if not isinstance(value, dict):
        raise MalformedIdentityError("the identity must be a JSON object")
    if _is_too_deep(value):
        raise MalformedIdentityError(f"the identity is nested deeper than {MAX_DEPTH} levels")
    return value


def _parse_value(raw: bytes | str, max_bytes: int) -> tuple[Any, str | None]:
    if len(raw) > max_bytes:
        return None, f"the identity has {len(raw)} bytes, more than {max_bytes}"
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw.removeprefix("\ufeff")
        value = json.loads(
            text,
            object_pairs_hook=_object_of_pairs,
            parse_float=_finite_float,
            parse_int=_javascript_integer,
            parse_constant=_refuse_constant,
        )
    except _NotStrictError as error:
        return None, str(error)
    except UnicodeDecodeError:
        return None, "the identity is not UTF-8"
    except RecursionError:
        return None, f"the identity is nested deeper than {MAX_DEPTH} levels"
    except ValueError:
        return None, "the identity is not JSON"
    return value, None


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _NotStrictError("an object in the identity must not have the same member twice")
    return value


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotStrictError("the identity holds a number that is out of JavaScript's range")
    return value


def _javascript_integer(text: str) -> int | float:
    if len(text) > 308:
        raise _NotStrictError("the identity holds a number that is out of JavaScript's range")
    value = int(text)
    return value if abs(value) <= 2**53 else float(value)


def _refuse_constant(_: str) -> NoReturn:
    raise _NotStrictError("the identity holds a number that is not finite (NaN or Infinity)")


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        containers = [member for member in level if isinstance(member, dict | list)]
        if not containers:
            return False
        level = [member for each in containers for member in (each.values() if isinstance(each, dict) else each)]
    return True


def to_pretty_json(value: Any) -> bytes:
    """Return a value as indented JSON in UTF-8, as JavaScript's ``JSON.stringify(value, null, 2)``.

    Members keep their order, even those whose names are numbers, which JavaScript would move. No final newline.
    """
    if orjson_agrees(value, are_names_in_order=True):
        return orjson.dumps(value, option=orjson.OPT_INDENT_2)
    return _indent_value(value, "\n").encode()


def _indent_value(value: Any, newline: str) -> str:
    if isinstance(value, str):
        return string_text(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return number_text(value)
    inner = newline + "  "
    if isinstance(value, Mapping):
        members = [f"{string_text(name)}: {_indent_value(member, inner)}" for name, member in value.items()]
        opening, closing = "{", "}"
    else:
        members = [_indent_value(member, inner) for member in value]
        opening, closing = "[", "]"
    if not members:
        return opening + closing
    return opening + inner + ("," + inner).join(members) + newline + closing


def to_canonical_json(value: Any) -> bytes:
    """Return a JSON value in canonical form (RFC 8785): no white space, members sorted by their UTF-16 code units.

    A lone surrogate, which RFC 8785 does not allow, is escaped.
    """
    if orjson_agrees(value, are_names_in_order=True):
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return _canonical_text(value).encode()


def _canonical_text(value: Any) -> str:
    if isinstance(value, Mapping):
        names = sorted(value, key=_utf16_key)
        return "{" + ",".join(f"{string_text(name)}:{_canonical_text(value[name])}" for name in names) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_canonical_text(member) for member in value) + "]"
    return _indent_value(value, "")


def _utf16_key(name: str) -> bytes:
    return name.encode("utf-16-be", "surrogatepass")


def string_text(text: str) -> str:
    """Return a string as a JSON string literal, escaped as ``JSON.stringify`` does, including lone surrogates."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", _json_string(text))


def all_strings(value: Any) -> list[str]:
    """Return every string inside a JSON value, member names included, in no particular order."""
    strings: list[str] = []
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            strings.append(each)
        elif isinstance(each, dict | Mapping):
            strings += each
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
    return strings


def holds_private_key(value: Any) -> bool:
    """Return whether a JSON value contains anything that is or looks like a private key.

    A private key is a member ``privateKey``, a JWK with ``d``, a PEM private key, or a string that contains one of the
    first two as JSON. An object without a key type whose ``d`` is short or not a string does not count: GoatDB's Bloom
    filters are written as ``{"d", "s"}``.
    """
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            if "PRIVATE KEY-----" in each or '"privateKey"' in each or ('"d"' in each and '"kty"' in each):
                return True
        elif isinstance(each, dict | Mapping):
            if "privateKey" in each or ("d" in each and _is_private_jwk(each)):
                return True
            left += each
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
    return False


def _is_private_jwk(value: Mapping[str, Any]) -> bool:
    """Return whether an object with a member ``d`` is a private key: it has a key type or a curve, or ``d`` is long."""
    return "kty" in value or "crv" in value or (isinstance(value["d"], str) and len(value["d"]) >= 43)
