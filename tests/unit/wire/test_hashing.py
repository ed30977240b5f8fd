"""Hashes and checksums."""

from __future__ import annotations

import math

import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import EncodeError
from goatherd.wire import hashing
from goatherd.wire.hashing import (
    _murmur3_units,
    item_checksum,
    members_text,
    murmur3,
    text_hash,
    value_hash,
    value_text,
)
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet, utf16_units

SEEDS = st.integers(0, 2**53 - 1)


@given(st.text(st.characters(max_codepoint=255)), SEEDS)
def test_latin_1_text_hashes_as_the_standard_does(text: str, seed: int) -> None:
    assert murmur3(text, seed) == mmh3.hash(text.encode("latin-1"), seed & 0xFFFFFFFF, signed=False)
    assert murmur3(text, seed) == _murmur3_units(utf16_units(text), seed & 0xFFFFFFFF)


@given(st.text(st.characters(exclude_categories=[])), SEEDS)
def test_only_the_low_32_bits_of_the_seed_matter(text: str, seed: int) -> None:
    assert murmur3(text, seed) == murmur3(text, seed & 0xFFFFFFFF)
    assert 0 <= murmur3(text, seed) < 2**32


@given(st.text(st.characters(min_codepoint=0x8000, max_codepoint=0xFFFF), min_size=1, max_size=1), SEEDS)
def test_a_tail_whose_third_unit_is_large_is_ignored(unit: str, seed: int) -> None:
    assert murmur3("ab" + unit, seed) == murmur3("xy" + unit, seed)


def test_two_lone_surrogates_hash_as_the_character_that_they_make() -> None:
    assert murmur3("\ud83d" + "\ude00", 1) == murmur3("😀", 1)


def test_collisions_of_the_original_are_kept() -> None:
    assert value_hash({"ab": "c"}) == value_hash({"a": "bc"})
    assert value_hash(1) == value_hash("1")
    assert value_hash(["a", "b"]) == value_hash(["ab"])
    assert value_hash(None) == value_hash("null")
    assert value_hash(JSDate(1500)) == value_hash(1.5)


def test_order_of_members_and_of_set_elements_does_not_matter() -> None:
    assert value_hash({"a": 1, "b": 2}) == value_hash({"b": 2, "a": 1})
    assert value_hash(JSSet([1, "x"])) == value_hash(JSSet(["x", 1]))


def test_undefined_members_do_not_count_but_elements_do() -> None:
    assert value_hash({"a": 1, "b": UNDEFINED}) == value_hash({"a": 1})
    assert value_hash([1, UNDEFINED]) != value_hash([1])
    assert value_text([UNDEFINED]) == text_hash("undefined")


def test_numbers_count_by_their_javascript_text() -> None:
    assert [value_text(v) for v in (-0.0, math.nan, math.inf, 1e21, True)] == ["0", "NaN", "Infinity", "1e+21", "true"]


def test_a_map_is_hashed_with_the_default_seed_whatever_the_callers() -> None:
    assert value_text(JSMap(a=1), 7) == value_text(JSMap(a=1))
    assert value_text({"a": 1}, 7) != value_text({"a": 1})


def test_an_item_without_data_has_the_known_checksum() -> None:
    assert item_checksum({}) == "3320765784"


def test_a_value_unknown_to_javascript_has_no_checksum() -> None:
    with pytest.raises(EncodeError):
        value_text(object())


def test_an_object_that_is_met_often_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """SECURITY: with references, a small push can name one long object many times."""
    inner = {"a": 1, "b": [JSMap({"c": 2}), JSSet([3])]}
    outer = {"x": [inner] * 50, "y": JSSet([inner, 1]), "z": JSMap({"i": inner})}
    plain = value_text(outer)
    read: list[object] = []
    monkeypatch.setattr(hashing, "members_text", lambda *a, **k: read.append(a[0]) or members_text(*a, **k))
    assert value_text(outer, texts={}) == plain
    assert len([value for value in read if value is inner]) == 1
