"""When GoatDB calls two values equal (formats 11.1). Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from goatherd.wire.encoding import UNDEFINED, JSDate, JSMap, JSSet

EPSILON = 2.220446049250313e-16


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(a: float, b: float) -> bool:
    return a == b or abs(a - b) < EPSILON


def _identical(a: Any, b: Any) -> bool:
    """JavaScript's ``===``."""
    if _is_number(a) and _is_number(b):
        return bool(a == b)
    if isinstance(a, str | bool) and type(a) is type(b):
        return bool(a == b)
    return a is b


def core_equal(a: Any, b: Any) -> bool:
    """GoatDB's core equality: what diffs and patches compare with.

    COMPAT: numbers closer than `EPSILON` are equal (T34); Maps compare their values by identity (T33).
    """
    if _identical(a, b):
        return True
    if _is_number(a) and _is_number(b):
        return _close(a, b)
    if isinstance(a, JSDate) and isinstance(b, JSDate):
        return a.ms is not None and b.ms is not None and _close(a.ms, b.ms)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(core_equal, a, b))
    if isinstance(a, JSSet) and isinstance(b, JSSet):
        return len(a) == len(b) and all(any(core_equal(x, y) for y in b) for x in a)
    if isinstance(a, JSMap) and isinstance(b, JSMap):
        return len(a) == len(b) and all(
            key in b and item is not UNDEFINED and _identical(item, b[key]) for key, item in a.items()
        )
    if type(a) is dict and type(b) is dict:
        return a.keys() == b.keys() and all(core_equal(item, b[key]) for key, item in a.items())
    return False


def _falsy(value: Any) -> bool:
    return (
        value is None
        or value is UNDEFINED
        or (isinstance(value, str | bool | int | float) and not value)
        or value != value
    )


def loose_equal(a: Any, b: Any) -> bool:
    """GoatDB's loose equality, only used when adding to a set (T41)."""
    if _identical(a, b) or (_falsy(a) and _falsy(b)):
        return True
    if _is_number(a) and _is_number(b):
        return _close(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(loose_equal, a, b))
    if isinstance(a, JSSet) and isinstance(b, JSSet):
        return len(a) == len(b) and all(any(loose_equal(x, y) for y in b) for x in a)
    if (isinstance(a, JSMap) and isinstance(b, JSMap)) or (type(a) is dict and type(b) is dict):
        return a.keys() == b.keys() and all(loose_equal(item, b[key]) for key, item in a.items())
    return False


def _is_primitive(value: Any) -> bool:
    return value is None or value is UNDEFINED or isinstance(value, str | bool | int | float)


def set_add(items: Iterable[Any], added: Iterable[Any]) -> JSSet:
    """Return the union: primitives by value, objects by loose equality, new ones appended."""
    union = JSSet(items)
    for item in added:
        if _is_primitive(item) or not any(loose_equal(item, known) for known in union):
            union.add(item)
    return union


def set_remove(items: Iterable[Any], removed: Iterable[Any]) -> JSSet:
    """Return the difference: primitives by value, objects by core equality."""
    gone = JSSet(removed)
    return JSSet([item for item in items if item not in gone and (_is_primitive(item) or not _among(item, gone))])


def _among(item: Any, others: Iterable[Any]) -> bool:
    return any(core_equal(item, other) for other in others)
