"""The vectors' notation for what JSON cannot express, and for schemas and sessions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from goatherd.crypto import PublicKey
from goatherd.identity.session import Session
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet, utf16_characters
from goatherd.wire.schema import Data, Registry, Schema, SchemaField

_CONSTANTS: dict[str, Any] = {
    "undefined": UNDEFINED,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
    "-0": -0.0,
    # A function or symbol prints as the same bare word in the only text that the vectors make of one.
    "function": UNDEFINED,
    "symbol": UNDEFINED,
}


class BigInt:
    """A JavaScript bigint, which no code of Goatherd accepts."""


def value_of(encoded: Any, objects: dict[int, Any] | None = None) -> Any:
    """Return the JavaScript value of tagged notation.

    Args:
        objects: Values shared by identity so far, by their number.

    Raises:
        ValueError: An unknown tag.
    """
    known = {} if objects is None else objects
    if isinstance(encoded, list):
        return [value_of(item, known) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if "$" not in encoded:
        return {key: value_of(item, known) for key, item in encoded.items()}
    return _tagged(encoded["$"], encoded, known)


def _tagged(tag: Any, encoded: dict[str, Any], known: dict[int, Any]) -> Any:
    if tag in _CONSTANTS:
        return _CONSTANTS[tag]
    if tag == "ref":
        return known[encoded["id"]]
    if tag == "date":
        return JSDate(None if encoded["ms"] == "NaN" else int(encoded["ms"]))
    if tag == "bigint":
        return BigInt()
    value = encoded["v"]
    if tag == "def":
        known[encoded["id"]] = decoded = value_of(value, known)
        return decoded
    if tag == "set":
        return JSSet([value_of(item, known) for item in value])
    if tag == "map":
        return JSMap({key: value_of(item, known) for key, item in value})
    if tag == "object":
        return {key: value_of(item, known) for key, item in value}
    if tag == "boxed":
        return utf16_characters(value) if isinstance(value, str) else {}
    if tag == "array":
        # With holes; the stable text knows arrays as objects keyed by index, without the holes.
        return {str(index): value_of(item, known) for index, item in enumerate(value) if item != {"$": "hole"}}
    raise ValueError(f"unknown tag {tag!r}")


def dense(encoded: Any) -> Any:
    """Return tagged notation with undefined where an array has a hole: only the stable form distinguishes them."""
    if isinstance(encoded, list):
        return [dense(item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if encoded.get("$") == "array":
        return [{"$": "undefined"} if item == {"$": "hole"} else dense(item) for item in encoded["v"]]
    return {key: dense(item) for key, item in encoded.items()}


def registry_of(document: dict[str, Any]) -> Registry:
    """Return the schemas that a vector file declares."""
    return Registry([schema_of(encoded) for encoded in document.get("schemas") or []])


def schema_of(encoded: dict[str, Any]) -> Schema:
    """Return one declared schema."""
    fields = [
        SchemaField(
            name=each["name"],
            type=each["type"],
            required=bool(each.get("required")),
            default=_constant(value_of(each["default"])) if "default" in each else None,
        )
        for each in encoded["fields"]
    ]
    upgrade = encoded.get("upgrade")
    return Schema(
        ns=encoded["ns"],
        version=encoded["version"],
        fields=tuple(fields),
        upgrade=_upgrade(upgrade) if upgrade else None,
    )


def _constant(value: Any) -> Callable[[Data], Any]:
    return lambda _data: copy.deepcopy(value)


def _upgrade(rules: dict[str, Any]) -> Callable[[Data], Data]:
    def upgrade(data: Data) -> Data:
        upgraded = dict(data)
        rename = rules.get("rename") or {}
        pairs = [(rename["from"], rename["to"])] if set(rename) == {"from", "to"} else list(rename.items())
        for old, new in pairs:
            if old in upgraded:
                upgraded[new] = upgraded.pop(old)
        for name, value in (rules.get("set_missing") or {}).items():
            if upgraded.get(name, UNDEFINED) is UNDEFINED:
                upgraded[name] = value_of(value)
        return upgraded

    return upgrade


def session_of(encoded: dict[str, Any]) -> Session:
    """Return one declared session."""
    return Session(
        id=encoded["id"],
        public_key=PublicKey.from_jwk(encoded["public_key"]),
        owner=encoded.get("owner"),
        expiration_ms=encoded["expiration_ms"],
    )
