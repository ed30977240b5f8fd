"""JavaScript's values: numbers, dates and sets."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError
from goatherd.times import iso
from goatherd.wire.javascript_values import (
    UNDEFINED,
    JSSet,
    date_from_json,
    ms_from_seconds,
    number_text,
    seconds_from_ms,
)
from goatherd.wire.json import to_json


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (123456789012345680000.0, "123456789012345680000"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1.5e-7, "1.5e-7"),
            (5e-324, "5e-324"),
            (2.0**53, "9007199254740992"),
            (2**53 + 1, "9007199254740992"),
            (10**400, "Infinity"),
            (math.nan, "NaN"),
            (-math.inf, "-Infinity"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
        ],
    )
    def test_are_laid_out_as_javascript_does(self, value: float, text: str) -> None:
        assert number_text(value) == text

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_round_trip_with_no_digit_too_many(self, value: float) -> None:
        text = number_text(value)
        assert float(text) == value
        digits = text.lstrip("-").partition("e")[0].replace(".", "").strip("0")
        assert len(digits) <= len(repr(value).lstrip("-").partition("e")[0].replace(".", "").strip("0"))

    def test_booleans_are_no_numbers_in_json(self) -> None:
        assert to_json([True, False, 1, 0]) == "[true,false,1,0]"


class TestDates:
    @given(st.integers(-8_640_000_000_000_000, 999_999_999_999_999))
    def test_lose_at_most_one_millisecond_toward_zero(self, ms: int) -> None:
        again = ms_from_seconds(seconds_from_ms(ms))
        assert abs(again) <= abs(ms)
        assert abs(again - ms) <= 1

    @given(st.integers(-8_640_000_000_000, 999_999_999_999))
    def test_whole_seconds_are_safe(self, seconds: int) -> None:
        assert ms_from_seconds(seconds_from_ms(seconds * 1000)) == seconds * 1000

    def test_a_value_of_1e12_or_more_is_milliseconds(self) -> None:
        assert ms_from_seconds(1e12) == 10**12
        assert ms_from_seconds(999_999_999_999) == 999_999_999_999_000

    @pytest.mark.parametrize(
        ("value", "ms"), [("12", 12000), (" \n1.5e1x", 15000), ("-.5", -500), ("0x10", 0), (0.0015, 1), (-1.5, -1500)]
    )
    def test_read_text_like_parse_float(self, value: object, ms: int) -> None:
        assert ms_from_seconds(value) == ms  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", ["abc", "", "Infinity", math.nan, 1e20, 10**400])
    def test_that_are_invalid_in_javascript_are_invalid(self, value: object) -> None:
        assert date_from_json(value).ms is None
        with pytest.raises(DecodeError):
            ms_from_seconds(value)  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", [None, True, {}, []])
    def test_of_another_kind_are_refused(self, value: object) -> None:
        with pytest.raises(DecodeError):
            date_from_json(value)

    @pytest.mark.parametrize(
        ("ms", "text"),
        [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951782400000, "2000-02-29T00:00:00.000Z"),
            (253402300800000, "+010000-01-01T00:00:00.000Z"),
            (-62198755200000, "-000001-01-01T00:00:00.000Z"),
            (8640000000000000, "+275760-09-13T00:00:00.000Z"),
        ],
    )
    def test_print_as_iso_text(self, ms: int, text: str) -> None:
        assert iso(ms) == text


class TestSets:
    def test_a_set_tells_primitives_apart_as_javascript_does(self) -> None:
        values = [1, "1", True, "true", None, "None", 1.0, 0, -0.0, math.nan, math.nan, UNDEFINED, UNDEFINED]
        assert list(JSSet(values))[:6] == [1, "1", True, "true", None, "None"]
        assert len(JSSet(values)) == 9

    def test_a_set_tells_objects_apart_by_identity(self) -> None:
        one = {"a": 1}
        assert len(JSSet([one, one, {"a": 1}])) == 2
