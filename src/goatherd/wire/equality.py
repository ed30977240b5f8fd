"""Compare two values as GoatDB does (docs/reference/goatdb-formats.md#equality). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from goatherd.errors import DecodeError
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet

EPSILON = 2.220446049250313e-16
MAX_WORK = 200_000
"""Values that one change of a set may compare; GoatDB has no bound."""
MAX_PATCH_WORK = 1_000_000
"""Values that all changes of one edit may compare and copy; GoatDB has no bound."""


class Work:
    """Limit the work of a comparison: count the values that it compares and copies."""

    __slots__ = ("_left",)

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, count: int) -> None:
        """Count further values that are compared or copied.

        Raises:
            DecodeError: The count exceeds the limit.
        """
        self._left -= count
        if self._left < 0:
            raise DecodeError("the sets have too many similar objects to be compared")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_close(a: float, b: float) -> bool:
    return a == b or abs(a - b) < EPSILON


def _are_identical(a: Any, b: Any) -> bool:
    """Return whether two values are equal as in JavaScript's ``===``."""
    if _is_number(a) and _is_number(b):
        return bool(a == b)
    if isinstance(a, str | bool) and type(a) is type(b):
        return bool(a == b)
    return a is b


def core_equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal by GoatDB's core equality, which its diffs and patches use.

    COMPAT: numbers closer than `EPSILON` are equal; Maps compare their values by identity.
    """
    if _are_identical(a, b):
        return True
    if _is_number(a) and _is_number(b):
        return _are_close(a, b)
    if isinstance(a, JSDate) and isinstance(b, JSDate):
        return a.ms is not None and b.ms is not None and _are_close(a.ms, b.ms)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(core_equal, a, b))
    if isinstance(a, JSSet) and isinstance(b, JSSet):
        return len(a) == len(b) and all(any(core_equal(x, y) for y in b) for x in a)
    if isinstance(a, JSMap) and isinstance(b, JSMap):
        return len(a) == len(b) and all(
            key in b and item is not UNDEFINED and _are_identical(item, b[key]) for key, item in a.items()
        )
    if type(a) is dict and type(b) is dict:
        return a.keys() == b.keys() and all(core_equal(item, b[key]) for key, item in a.items())
    return False


def _is_falsy(value: Any) -> bool:
    return (
        value is None
        or value is UNDEFINED
        or (isinstance(value, str | bool | int | float) and not value)
        or value != value
    )


def loose_equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal by the loose equality with which GoatDB adds a member to a set.

    In this comparison all falsy values are equal, and so are numbers that differ only by rounding.
    """
    if _are_identical(a, b) or (_is_falsy(a) and _is_falsy(b)):
        return True
    if _is_number(a) and _is_number(b):
        return _are_close(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(loose_equal, a, b))
    if isinstance(a, JSSet) and isinstance(b, JSSet):
        return len(a) == len(b) and all(any(loose_equal(x, y) for y in b) for x in a)
    if (isinstance(a, JSMap) and isinstance(b, JSMap)) or (type(a) is dict and type(b) is dict):
        return a.keys() == b.keys() and all(loose_equal(item, b[key]) for key, item in a.items())
    return False


def _is_primitive(value: Any) -> bool:
    return value is None or value is UNDEFINED or isinstance(value, str | bool | int | float)


def set_add(items: Iterable[Any], added: Iterable[Any], work: Work | None = None) -> JSSet:
    """Return the union of two sets, as GoatDB adds values to a set. New values are appended.

    Primitives are compared by value, objects by loose equality.

    Raises:
        DecodeError: The comparison exceeds the limit `work`, or `MAX_WORK`.
    """
    union = JSSet(items)
    known = _Objects(union, work)
    for item in added:
        if _is_primitive(item):
            union.add(item)
        elif not known.hold(item, loose_equal):
            union.add(item)
            known.add(item)
    return union


def set_remove(items: Iterable[Any], removed: Iterable[Any], work: Work | None = None) -> JSSet:
    """Return the difference of two sets, as GoatDB removes values from a set.

    Primitives are compared by value, objects by core equality.

    Raises:
        DecodeError: The comparison exceeds the limit `work`, or `MAX_WORK`.
    """
    gone = JSSet(removed)
    objects = _Objects(gone, work)
    return JSSet(
        [item for item in items if item not in gone and (_is_primitive(item) or not objects.hold(item, core_equal))]
    )


def decoded_equal(a: Any, b: Any, work: Work | None = None) -> bool:
    """Return whether two untrusted values are equal by GoatDB's core equality; the work for this is limited.

    Raises:
        DecodeError: The comparison exceeds the limit `work`, or `MAX_WORK`.
    """
    objects = _Objects((), work)
    objects.add(b)
    return objects.hold(a, core_equal)


class _Objects:
    """An index of a set's objects by shape. Only objects of the same shape can be equal and need be compared.

    SECURITY: without the index, a push of a few kilobytes could block a server for minutes
    (tests/unit/wire/test_equality.py).
    """

    def __init__(self, items: Iterable[Any], work: Work | None = None) -> None:
        self._by_shape: dict[Any, list[tuple[Any, int]]] = {}
        self._measured = work
        self._work = Work(MAX_WORK) if work is None else work
        for item in items:
            if not _is_primitive(item):
                self.add(item)

    def add(self, item: Any) -> None:
        shape, size, _ = _measure_value(item)
        if self._measured is not None:
            self._measured.take(size)
        self._by_shape.setdefault(shape, []).append((item, size))

    def hold(self, item: Any, equal: Callable[[Any, Any], bool]) -> bool:
        shape, size, holds_set = _measure_value(item)
        for other, other_size in self._by_shape.get(shape, ()):
            self._work.take(size * other_size if holds_set else size)
            if equal(item, other):
                return True
        return False


def _measure_value(value: Any) -> tuple[Any, int, bool]:
    """Return a value's shape, the number of values in it, and whether it contains a Set.

    Equal values have equal shapes.
    """
    if _is_number(value):
        # Beyond 1, no two doubles are closer than `EPSILON`.
        return (value if abs(value) > 1 else "small"), 1, False
    if isinstance(value, str | bool) or value is None or value is UNDEFINED:
        return (("text", value) if isinstance(value, str) and value else True if value is True else "small"), 1, False
    if isinstance(value, JSDate):
        return ("date", value.ms), 1, False
    if isinstance(value, dict):
        members = {key: _measure_value(item) for key, item in value.items()}
        shape: Any = ("object", frozenset((key, each[0]) for key, each in members.items()))
        parts = list(members.values())
    elif isinstance(value, list | JSSet):
        parts = [_measure_value(item) for item in value]
        shape = ("set", len(value)) if isinstance(value, JSSet) else ("array", *[each[0] for each in parts])
    else:
        return ("other", id(value)), 1, False
    inside = isinstance(value, JSSet) or any(each[2] for each in parts)
    return shape, 1 + sum(each[1] for each in parts), inside
