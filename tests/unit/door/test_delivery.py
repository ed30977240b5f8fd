"""The order in which the commits of a push are delivered."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from goatherd.door.delivery import parents_first


@given(st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=12, max_size=12), st.permutations(range(12)))
def test_a_push_is_put_into_an_order_in_which_parents_come_first(links: list[list[int]], order: list[int]) -> None:
    raws: list[dict[str, Any]] = []
    for number, others in enumerate(links):
        earlier = [str(each) for each in others if each < number]
        raws.append({"id": str(number), "p": earlier, "c": {"b": earlier[0]} if earlier else {"r": {}}})
    found = parents_first([raws[number] for number in order])
    assert sorted(found, key=lambda raw: int(raw["id"])) == raws
    at = {raw["id"]: position for position, raw in enumerate(found)}
    for raw in raws:
        assert all(at[each] < at[raw["id"]] for each in raw["p"])


def test_the_order_of_commits_that_wait_for_nothing_stays_and_circles_and_nonsense_are_kept() -> None:
    plain: list[Any] = [{"id": "b"}, {"id": "a"}, None, {"id": 1}, {"id": "c", "p": ["a", 7], "c": []}]
    assert parents_first(plain) == plain
    circle: list[Any] = [{"id": "a", "p": ["b"]}, {"id": "b", "p": ["a"]}, {"id": "c", "p": ["c"]}]
    assert sorted(map(str, parents_first(circle))) == sorted(map(str, circle))
