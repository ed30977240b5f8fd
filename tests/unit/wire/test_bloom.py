"""Bloom filters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError
from goatherd.ids import new_seeds
from goatherd.wire.bloom import MAX_SEEDS, BloomFilter, filter_size, seed_count
from goatherd.wire.json import stable_stringify

MEMBERS = st.lists(st.text(st.characters(exclude_categories=[]), max_size=30), max_size=30)


def empty(size: int, fpr: float = 0.25) -> BloomFilter:
    return BloomFilter.for_size(size, fpr, new_seeds(seed_count(size, fpr)))


@given(MEMBERS, st.sampled_from([0.5, 0.25, 0.01]))
def test_never_denies_a_member(members: list[str], fpr: float) -> None:
    holder = empty(len(members), fpr)
    for member in members:
        holder.add(member)
    assert all(member in holder for member in members)
    again = BloomFilter.from_json(holder.to_json())
    assert again == holder
    assert all(member in again for member in members)


def test_claims_about_as_much_too_much_as_it_was_made_for() -> None:
    holder = empty(1000, 0.01)
    for index in range(1000):
        holder.add(f"member-{index}")
    wrong = sum(f"other-{index}" in holder for index in range(10_000))
    assert wrong < 300


def test_its_error_rate_is_how_often_it_claims_what_it_does_not_hold() -> None:
    holder = empty(100, 0.25)
    holder.update([f"member-{index}" for index in range(100)])
    wrong = sum(f"other-{index}" in holder for index in range(10_000)) / 10_000
    assert 0.8 < wrong / holder.error_rate < 1.25
    assert (BloomFilter(b"\xff", (1,)).error_rate, BloomFilter(b"", (1,)).error_rate) == (1.0, 0.0)


@given(st.lists(st.integers(0, 2**53 - 1), max_size=14).map(tuple), st.binary(max_size=20))
def test_its_signed_text_is_the_stable_form_of_its_json(seeds: tuple[int, ...], bits: bytes) -> None:
    holder = BloomFilter(bits, seeds)
    assert holder.stable_text() == stable_stringify(holder.to_json())


def test_without_seeds_holds_everything_and_without_bytes_nothing() -> None:
    assert "x" in BloomFilter(b"\0", ())
    assert "x" in BloomFilter(b"", ())
    assert "x" not in BloomFilter(b"", (1,))


def test_sizes_below_one_count_as_one() -> None:
    assert filter_size(0, 0.25) == filter_size(1, 0.25)
    assert (len(empty(0).bits), len(empty(0).seeds)) == (1, 3)


def test_the_number_of_seeds_is_not_a_matter_of_taste() -> None:
    with pytest.raises(ValueError, match="seeds"):
        BloomFilter.for_size(1, 0.25, [1])


@pytest.mark.parametrize("text", ["AAA=", "AAA", "A A\tA\n", "AAF="])
def test_base64_may_lack_padding_hold_space_and_spare_bits(text: str) -> None:
    assert len(BloomFilter.from_json({"d": text, "s": []}).bits) == 2


@pytest.mark.parametrize("text", ["_-__", "A", "A===", "AA=A", "AA\xa0==", "é"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        BloomFilter.from_json({"d": text, "s": []})


@pytest.mark.parametrize(
    "encoded",
    [
        None,
        [],
        {},
        {"d": "AA==", "s": None},
        {"d": 5, "s": []},
        {"d": "", "s": ["1"]},
        {"d": "", "s": [True]},
        {"d": "", "s": [-1]},
        {"d": "", "s": [1.5]},
        {"d": "", "s": [2**53 + 2]},
        {"d": "", "s": [float("nan")]},
    ],
)
def test_malformed_filters_are_refused(encoded: object) -> None:
    with pytest.raises(DecodeError):
        BloomFilter.from_json(encoded)  # type: ignore[arg-type]


def test_a_filter_that_wants_our_time_is_refused() -> None:
    with pytest.raises(DecodeError):
        BloomFilter.from_json({"d": "AA==", "s": [1] * (MAX_SEEDS + 1)})


def test_a_seed_written_as_a_double_is_an_integer() -> None:
    assert BloomFilter.from_json({"d": "AA==", "s": [5.0]}).seeds == (5,)
