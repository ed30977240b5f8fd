"""Texts that slow down a careless parser: each shape in any size, alone and inside a valid sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Shape = Callable[[int], bytes]

HOLE = "HOLE-FOR-A-SHAPE"


def _repeated(unit: bytes, before: bytes = b"", after: bytes = b"") -> Shape:
    return lambda size: before + unit * max(1, (size - len(before) - len(after)) // len(unit)) + after


def _members(size: int) -> bytes:
    return json.dumps({f"m{number}": number for number in range(size // 12)}).encode()


def _nested(size: int) -> bytes:
    return b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6)


SHAPES: dict[str, Shape] = {
    "open brackets": _repeated(b"["),
    "brackets": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "open braces": _repeated(b'{"a":'),
    "nested objects": _nested,
    "many members": _members,
    "one member many times": _repeated(b'"a":1,', b"{", b'"b":1}'),
    "empty objects": _repeated(b"{},", b"[", b"{}]"),
    "empty lists": _repeated(b"[],", b"[", b"[]]"),
    "nulls": _repeated(b"null,", b"[", b"null]"),
    "numbers": _repeated(b"1e300,", b"[", b"1]"),
    "digits": _repeated(b"1"),
    "decimals": _repeated(b"1", b"0."),
    "exponent": _repeated(b"9", b"1e"),
    "negative digits": _repeated(b"9", b"-"),
    "a text": _repeated(b"x", b'"', b'"'),
    "an open text": _repeated(b"x", b'"'),
    "backslashes": _repeated(b"\\\\", b'"', b'"'),
    "open backslashes": _repeated(b"\\"),
    "escapes": _repeated(b"\\u0041", b'"', b'"'),
    "lone surrogates": _repeated(b"\\ud800", b'"', b'"'),
    "quotes": _repeated(b'\\"', b'"', b'"'),
    "spaces": _repeated(b" "),
    "spaces and a letter": _repeated(b" ", b"a", b"a"),
    "line feeds": _repeated(b"\n"),
    "broken lines": _repeated(b"{}x\n"),
    "torn lines": _repeated(b'{"id":"\n'),
    "zero bytes": _repeated(b"\0"),
    "high bytes": _repeated(b"\xff"),
    "two-byte characters": _repeated("é".encode(), b'"', b'"'),
    "four-byte characters": _repeated("🐐".encode(), b'"', b'"'),
    "letters": _repeated(b"a"),
    "key types": _repeated(b"kty", b"{"),
    "key types with braces": _repeated(b"{kty"),
    "key members": _repeated(b'"d":"A",', b'{"kty":"EC",', b'"x":"y"}'),
    "key members, open": _repeated(b'"d":"', b'{"kty":"EC",'),
    "slashes": _repeated(b"/"),
    "dots": _repeated(b"../", b"/"),
    "percent signs": _repeated(b"%2e", b"/"),
    "colons": _repeated(b"1:"),
    "at signs": _repeated(b"a@", b"http://"),
    "commas": _repeated(b"a,"),
    "equals signs": _repeated(b"a="),
    "dates": _repeated(b"2026-", b'"', b'"'),
    "a long year": _repeated(b"0", b'"2026-01-01T00:00:00.', b'Z"'),
    "base64": _repeated(b"QUFB", b'"', b'"'),
    "padding": _repeated(b"=", b'"QUE', b'"'),
    "server URLs": _repeated(b'"serverURL":"', b""),
    "assignments": _repeated(b"a = 1\n"),
    "dotted keys": _repeated(b"a.", b"", b"a = 1\n"),
    "tables": _repeated(b"[a.b]\n"),
    "YAML anchors": _repeated(b"- &a [*a]\n", b"a:\n"),
    "quoted lines": _repeated(b"'''\n", b"a = "),
}
"""By name."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every member of some JSON, the inner ones too."""
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from leaves(value[name], (*path, name))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from leaves(value[index], (*path, index))


def member(value: Any, path: tuple[Any, ...]) -> Any:
    """Return what is at `path` in some JSON."""
    for step in path:
        value = value[step]
    return value


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of some JSON with another value at `path`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def inside(sample: bytes) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """Yield the places for a shape: alone, after a sample, and at each member if the sample is JSON."""
    yield "alone", lambda shape: shape
    yield "after a good one", lambda shape: sample + shape
    try:
        value = json.loads(sample)
    except ValueError:
        lines = sample.splitlines()
        if len(lines) == 1 and b"=" not in sample:
            half = len(sample) // 2
            yield "in the middle", lambda shape: sample[:half] + shape + sample[half:]
        return
    seen = set()
    for path in leaves(value):
        alike = tuple("*" if isinstance(step, int) else step for step in path)
        if path and alike not in seen:
            seen.add(alike)
            before, after = json.dumps(replaced(value, path, HOLE)).encode().split(b'"' + HOLE.encode() + b'"')
            name = "/".join(map(str, path))
            yield f"at {name}", partial(_put_between, before, after)
            if isinstance(member(value, path), str):
                # As a text of its own, too: the readers of ids, keys, dates and numbers see it.
                yield f"as a text at {name}", partial(_quote_between, before, after)


def _put_between(before: bytes, after: bytes, shape: bytes) -> bytes:
    return before + shape + after


def _quote_between(before: bytes, after: bytes, shape: bytes) -> bytes:
    return before + _quoted(shape) + after


def _quoted(shape: bytes) -> bytes:
    return json.dumps(shape.decode("utf-8", "replace")).encode()
