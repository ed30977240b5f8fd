"""Every regular expression in `src` takes time in proportion to the text, whatever the text is.

Looked at is the parsed pattern: a part that repeats without a bound must not stand where the part before it could have
taken the same characters in many ways, nor begin a search. Both make the time grow with the square of the length.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest

SOURCES = Path(__file__).parents[2] / "src"
UNBOUNDED = 1000
EVERY = frozenset(map(chr, range(256)))
_SEARCHES = {"search", "sub", "subn", "finditer", "findall", "split"}


def characters(item: tuple[Any, Any]) -> frozenset[str]:
    """Return the characters below U+0100 that one item of a parsed pattern can take; none for an assertion."""
    code, value = str(item[0]), item[1]
    if code == "LITERAL":
        return frozenset({chr(value)} if value < 256 else ())
    if code == "NOT_LITERAL":
        return EVERY - {chr(value)}
    if code == "ANY":
        return EVERY
    if code == "IN":
        return _characters_of_set(value)
    if code in ("MAX_REPEAT", "MIN_REPEAT"):
        return characters_of(value[2])
    if code == "SUBPATTERN":
        return characters_of(value[3])
    if code == "BRANCH":
        return frozenset().union(*map(characters_of, value[1]))
    return frozenset()


def characters_of(items: Any) -> frozenset[str]:
    return frozenset().union(*map(characters, items))


def _characters_of_set(members: list[tuple[Any, Any]]) -> frozenset[str]:
    found: set[str] = set()
    negated = False
    for code, value in members:
        match str(code):
            case "NEGATE":
                negated = True
            case "LITERAL":
                found.add(chr(value))
            case "RANGE":
                found.update(chr(number) for number in range(value[0], min(value[1], 255) + 1))
            case "CATEGORY":
                letter = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[str(value).rsplit("_", 1)[1]]
                sign = "^" if "NOT" in str(value) else ""
                found.update(each for each in EVERY if re.fullmatch(f"[{sign}\\{letter}]", each))
    return EVERY - found if negated else frozenset(found)


def is_nullable(item: tuple[Any, Any]) -> bool:
    code, value = str(item[0]), item[1]
    if code in ("MAX_REPEAT", "MIN_REPEAT"):
        return value[0] == 0 or all(map(is_nullable, value[2]))
    if code == "SUBPATTERN":
        return all(map(is_nullable, value[3]))
    if code == "BRANCH":
        return any(all(map(is_nullable, branch)) for branch in value[1])
    return code in ("AT", "ASSERT", "ASSERT_NOT")


def flat(items: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Yield every way through a pattern as a list of items, repeated groups written out twice, branches taken apart."""
    paths: list[list[tuple[Any, Any]]] = [[]]
    for item in items:
        code, value = str(item[0]), item[1]
        inner: list[list[tuple[Any, Any]]] = [[item]]
        if code == "SUBPATTERN":
            inner = list(flat(value[3]))
        elif code == "BRANCH":
            inner = [path for branch in value[1] for path in flat(branch)]
        elif code in ("MAX_REPEAT", "MIN_REPEAT") and not (len(value[2]) == 1 and _is_single(value[2][0])):
            bodies = list(flat(value[2]))
            inner = [[*body] for body in bodies] + ([[]] if value[0] == 0 else [])
            if value[1] >= 2:
                inner += [[*first, *second] for first in bodies for second in bodies]
        paths = [[*path, *more] for path in paths for more in inner]
        assert len(paths) < 20_000
    yield from paths


def _is_single(item: tuple[Any, Any]) -> bool:
    return str(item[0]) in ("LITERAL", "NOT_LITERAL", "ANY", "IN")


def problems(pattern: str | bytes, *, searches: bool) -> set[str]:
    found = set()
    for path in flat(parser.parse(pattern)):
        for place, item in enumerate(path):
            if not _repeats(item):
                continue
            own = characters(item)
            if searches and all(map(is_nullable, path[:place])) and _can_fail(path, place):
                found.add("a search begins with a part that repeats: each place in its run is tried anew")
            for at, later in enumerate(path[place + 1 :], place + 1):
                if _repeats(later) and own & characters(later) and (_can_fail(path, at) or characters(later) != EVERY):
                    found.add("two parts that repeat can share what stands between them in many ways")
                if not is_nullable(later) and not own & characters(later):
                    break
    return found


def _can_fail(path: list[tuple[Any, Any]], place: int) -> bool:
    """Whether the match can still fail once the item has taken all that it can."""
    return not all(map(is_nullable, path[place + 1 :]))


def _repeats(item: tuple[Any, Any]) -> bool:
    return str(item[0]) in ("MAX_REPEAT", "MIN_REPEAT") and item[1][1] >= UNBOUNDED


def _patterns() -> Iterator[tuple[str, str, str | bytes, bool]]:
    for path in sorted(SOURCES.rglob("*.py")):
        text = path.read_text()
        if "re.compile(" not in text:
            continue
        tree = ast.parse(text)
        used: dict[str, set[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used.setdefault(node.value.id, set()).add(node.attr)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Assign | ast.AnnAssign) or not _compiles(node.value):
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            pattern: Any = node.value.args[0]  # type: ignore[union-attr]
            if isinstance(pattern, ast.Constant) and isinstance(target, ast.Name):
                searches = bool(used.get(target.id, set()) & _SEARCHES)
                yield path.relative_to(SOURCES).as_posix(), target.id, pattern.value, searches


def _compiles(call: Any) -> bool:
    return isinstance(call, ast.Call) and ast.unparse(call.func) == "re.compile"


@pytest.mark.slow
def test_a_pattern_takes_time_in_proportion_to_the_text() -> None:
    patterns = {(path, name): problems(pattern, searches=searches) for path, name, pattern, searches in _patterns()}
    assert len(patterns) > 70
    assert {place: found for place, found in patterns.items() if found} == {}


@pytest.mark.parametrize(
    ("pattern", "searches"),
    [
        (r"[0-9]+\.?[0-9]*", False),
        (rb"\{[^{}]*kty[^{}]*\}", True),
        (rb'\\*"d', True),
        (r"(?:a+)+b", False),
        (r"(?:a|b)*(?:b|c)*d", False),
    ],
)
def test_what_takes_longer_is_found(pattern: str | bytes, searches: bool) -> None:
    assert problems(pattern, searches=searches)
