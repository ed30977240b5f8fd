"""When two values are equal, and the cost of comparing them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError
from goatherd.wire import equality
from goatherd.wire.equality import core_equal, decoded_equal, loose_equal, set_add, set_remove
from goatherd.wire.items import patch_data
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet

NEAR = [0, 1e-17, 3e-17, 1, 0.9999999999999999, 1.0000000000000002, 2, 2.0000000000000004, -1, math.nan, math.inf]
SCALARS = st.sampled_from([*NEAR, "", "a", "0", True, False, None, UNDEFINED])
VALUES = st.recursive(
    SCALARS | st.sampled_from([0, 1, None]).map(JSDate),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(JSMap)
        | st.lists(inner, max_size=3).map(JSSet)
    ),
    max_leaves=5,
)


def is_object(value: Any) -> bool:
    return isinstance(value, list | dict | JSSet | JSDate)


@given(st.lists(VALUES, max_size=5), st.lists(VALUES, max_size=5))
def test_sets_change_as_if_each_element_were_compared_with_each(items: list[Any], changed: list[Any]) -> None:
    union = JSSet(items)
    for item in changed:
        if not is_object(item) or not any(loose_equal(each, item) for each in union):
            union.add(item)
    assert list(map(id, set_add(items, changed))) == list(map(id, union))
    gone = JSSet(changed)
    rest = [
        item
        for item in JSSet(items)
        if item not in gone and not (is_object(item) and any(core_equal(each, item) for each in gone))
    ]
    assert list(map(id, set_remove(JSSet(items), changed))) == list(map(id, rest))


@given(VALUES, VALUES)
def test_values_of_strangers_are_equal_when_others_are(a: Any, b: Any) -> None:
    assert decoded_equal(a, b) == core_equal(a, b)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: {"a": n},
        lambda n: {"kind": "card", "open": True, "at": {"row": 0, "id": f"n{n}"}},
        lambda n: [[0, n]],
        lambda n: JSMap(n=n, x=None),
        lambda n: {"same": True, str(n): n},
    ],
)
def test_objects_of_different_traits_are_not_compared(
    make: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SECURITY: guards `goatherd.wire.equality._Objects`."""
    calls: list[Any] = []
    monkeypatch.setattr(equality, "loose_equal", lambda a, b: calls.append(a) or loose_equal(a, b))
    union = set_add([make(n) for n in range(2, 500)], [make(n) for n in range(400, 900)])
    assert len(union) == 898
    assert 100 <= len(calls) < 5000


class TestAddingToASet:
    def test_an_object_that_has_the_truthy_members_of_another_is_equal_to_it(self) -> None:
        assert loose_equal({"a": ""}, {"b": 1})
        assert not loose_equal({"b": 1}, {"a": ""})
        assert not loose_equal({"a": ""}, {})
        assert loose_equal(JSMap(a=0), JSMap(b="x"))

    def test_an_element_is_compared_with_those_in_the_set(self) -> None:
        assert len(set_add([{"a": 0}], [{"b": 0}])) == 1
        assert len(set_add([{"a": 0}], [{"b": 1}])) == 1
        assert len(set_add([{"b": 1}], [{"a": 0}])) == 2
        assert len(set_add([{"a": 0, "n": 7}], [{"n": 7, "b": "x"}, {"n": 8, "b": "x"}])) == 2

    def test_a_falsy_number_is_not_close_to_another_number(self) -> None:
        assert not loose_equal(0, 3e-17)
        assert not loose_equal({"a": 3e-17}, {})
        assert loose_equal(1e-17, 3e-17)

    def test_elements_of_inner_sets_are_matched_one_to_one(self) -> None:
        assert not loose_equal(JSSet([[1], [1]]), JSSet([[1], [2]]))
        assert loose_equal(JSSet([[2], [1]]), JSSet([[1], [2]]))
        assert not loose_equal(JSSet([[], 0]), JSSet([[], UNDEFINED]))


def test_an_element_of_a_set_is_removed_by_what_goatdb_compares_it_with() -> None:
    twice, different = JSSet([[1], [1]]), JSSet([[1], [2]])
    assert core_equal(twice, different)
    assert not core_equal(different, twice)
    assert core_equal(JSSet([math.nan]), JSSet([math.nan]))
    assert len(set_remove([different], [twice])) == 0
    assert len(set_remove([twice], [different])) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "alike",
    [[{"a": n / 10_000} for n in range(2000)], [JSSet([n / 10_000 for n in range(500)]), JSSet(range(500))]],
    ids=["small numbers", "sets"],
)
def test_what_would_take_too_long_is_refused(alike: list[Any]) -> None:
    """SECURITY: guards `goatherd.wire.equality._Objects`."""
    with pytest.raises(DecodeError):
        set_add([], alike)
    with pytest.raises(DecodeError):
        set_remove(alike[: len(alike) // 2], alike[len(alike) // 2 :])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["set", "map"])
def test_many_changes_of_one_field_are_refused_before_they_take_hours(kind: str) -> None:
    """SECURITY: guards `goatherd.wire.items.patch_data`."""
    value: Any = {"__t": "S", "__v": [1]} if kind == "set" else {"k": 1}
    change = {"__t": "E", "__v": {"changeType": "fd", "operation": 1, "vType": kind, "value": value}}
    data = {"a": JSSet(range(50_000)) if kind == "set" else JSMap({str(n): n for n in range(50_000)})}
    assert len(patch_data(data, {"a": [change] * 2}, None)["a"]) >= 50_000
    with pytest.raises(DecodeError, match="compare"):
        patch_data(data, {"a": [change] * 200}, None)
