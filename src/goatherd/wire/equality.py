"""Compare two values as GoatDB does (docs/reference/goatdb-formats.md#equality). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from goatherd.errors import DecodeError
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet, is_truthy

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

    COMPAT: numbers that differ by less than `EPSILON` are equal; the values of two Maps are compared by `===`.
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
        return len(a) == len(b) and (all(item in b for item in a) or all(any(core_equal(x, y) for y in b) for x in a))
    if isinstance(a, JSMap) and isinstance(b, JSMap):
        return len(a) == len(b) and all(
            key in b and item is not UNDEFINED and _are_identical(item, b[key]) for key, item in a.items()
        )
    if type(a) is dict and type(b) is dict:
        return a.keys() == b.keys() and all(core_equal(item, b[key]) for key, item in a.items())
    return False


def loose_equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal by the loose equality with which GoatDB adds a member to a set.

    All falsy values are equal, and so are other numbers that differ only by rounding. Dates are equal only if they are
    identical. COMPAT: two objects or Maps of the same size are equal if `b` has each member of `a`, where an absent
    member counts as undefined, so the order of the arguments matters.
    """
    if _are_identical(a, b):
        return True
    if not is_truthy(a) or not is_truthy(b):
        return not is_truthy(a) and not is_truthy(b)
    if _is_number(a) and _is_number(b):
        return _are_close(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(loose_equal, a, b))
    if isinstance(a, JSSet) and isinstance(b, JSSet):
        return _match_elements(a, b)
    if (isinstance(a, JSMap) and isinstance(b, JSMap)) or (type(a) is dict and type(b) is dict):
        return len(a) == len(b) and all(loose_equal(item, b.get(key, UNDEFINED)) for key, item in a.items())
    return False


def _match_elements(a: JSSet, b: JSSet) -> bool:
    """Return whether each element of a set is loosely equal to another element of the other set, in GoatDB's order."""
    if len(a) != len(b):
        return False
    left = list(b)
    for item in a:
        position = next((index for index, other in enumerate(left) if loose_equal(item, other)), None)
        if position is None or left.pop(position) is UNDEFINED:
            return False  # COMPAT: GoatDB takes a match that is undefined for none.
    return True


def _is_primitive(value: Any) -> bool:
    return value is None or value is UNDEFINED or isinstance(value, str | bool | int | float)


def set_add(items: Iterable[Any], added: Iterable[Any], work: Work | None = None) -> JSSet:
    """Return the union of two sets, as GoatDB adds values to a set. New values are appended.

    Primitives are compared by value, objects by loose equality.

    Raises:
        DecodeError: The comparison exceeds the limit `work`, or `MAX_WORK`.
    """
    union = JSSet(items)
    known = _Objects(union, loose_equal, work)
    for item in added:
        if _is_primitive(item):
            union.add(item)
        elif not known.hold(item):
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
    objects = _Objects(gone, core_equal, work)
    return JSSet([item for item in items if item not in gone and (_is_primitive(item) or not objects.hold(item))])


def decoded_equal(a: Any, b: Any, work: Work | None = None) -> bool:
    """Return whether two untrusted values are equal by GoatDB's core equality; the work for this is limited.

    Raises:
        DecodeError: The comparison exceeds the limit `work`, or `MAX_WORK`.
    """
    objects = _Objects((), core_equal, work)
    objects.add(a)
    return objects.hold(b)


class _Objects:
    """An index of a set's objects, each under one of its traits. Only an object with this trait can be equal to it.

    SECURITY: without this index, GoatDB's comparison of each pair of objects would let a push of a few kilobytes block
    a server for minutes (tests/unit/wire/test_equality.py).
    """

    def __init__(self, items: Iterable[Any], equal: Callable[[Any, Any], bool], work: Work | None = None) -> None:
        self._by_trait: dict[Any, list[tuple[Any, int]]] = {}
        self._equal = equal
        self._measured = work
        self._work = Work(MAX_WORK) if work is None else work
        for item in items:
            if not _is_primitive(item):
                self.add(item)

    def add(self, item: Any) -> None:
        traits, size, _ = _measure_value(item)
        if self._measured is not None:
            self._measured.take(size)
        # The rarest trait; of several, an inner one, which more objects lack.
        trait = min(reversed(traits), key=lambda each: len(self._by_trait.get(each, ())), default=None)
        self._by_trait.setdefault(trait, []).append((item, size))

    def hold(self, item: Any) -> bool:
        """Return whether an object of the index is equal to `item`; as in GoatDB, `item` is compared second."""
        traits, size, holds_set = _measure_value(item)
        for trait in (None, *traits):
            for other, other_size in self._by_trait.get(trait, ()):
                self._work.take(size * other_size if holds_set else size)
                if self._equal(other, item):
                    return True
        return False


def _measure_value(value: Any) -> tuple[list[Any], int, bool]:
    """Return a value's traits, the number of values in it, and whether it contains a Set.

    A trait is a part with the hash of its path. If two values are equal, by core or loose equality, the second one has
    each trait of the first. So parts that other parts may equal are no traits: falsy ones, numbers up to 1, and
    elements of Sets.
    """
    traits: list[Any] = []
    size, holds_set = 0, False
    parts: list[tuple[int, Any]] = [(0, value)]
    for path, part in parts:
        size += 1
        if isinstance(part, dict):
            traits.append((path, "map" if isinstance(part, JSMap) else "object", len(part)))
            parts += [(hash((path, key)), item) for key, item in part.items()]
        elif isinstance(part, list):
            traits.append((path, "array", len(part)))
            parts += [(hash((path, index)), item) for index, item in enumerate(part)]
        elif isinstance(part, JSSet):
            traits.append((path, "set", len(part)))
            holds_set = True
            size += sum([_measure_value(item)[1] for item in part])
        elif isinstance(part, JSDate):
            traits.append((path, "date", part.ms))
        elif not _is_primitive(part):
            traits.append((path, "other", id(part)))
        elif is_truthy(part) and (isinstance(part, str | bool) or abs(part) > 1):
            # Beyond 1, no two doubles are closer than `EPSILON`.
            traits.append((path, "primitive", part))
    return traits, size, holds_set
