"""JavaScript's texts: numbers, JSON both ways, the stable form, base32, dates."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError, EncodeError
from goatherd.times import iso
from goatherd.wire import javascript_values
from goatherd.wire import json as wire_json
from goatherd.wire.base32 import base32_decode, base32_encode
from goatherd.wire.javascript_values import (
    UNDEFINED,
    JSDate,
    JSMap,
    JSSet,
    date_from_json,
    ms_from_seconds,
    number_text,
    own_keys,
    seconds_from_ms,
    unit_key,
)
from goatherd.wire.json import json_string, parse_json, stable_stringify, to_json, to_json_bytes, to_pretty_json
from goatherd.wire.versions import pack_version, unpack_version

# Text as JavaScript may hold it: lone surrogates are single units and never neighbours that would be a pair.
TEXT = st.text(st.characters(exclude_categories=[]), max_size=12).map(javascript_values.join_surrogates)
NUMBERS = st.one_of(
    st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e-4, 1e-4)
)
SCALARS = st.one_of(TEXT, NUMBERS, st.booleans())
JSON_VALUES = st.recursive(
    st.one_of(SCALARS, st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=12), st.dictionaries(TEXT, inner, max_size=6)),
    max_leaves=20,
)
SIGNABLE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=12), st.dictionaries(TEXT, inner, max_size=6)),
    max_leaves=20,
)


def slow_stable(value: object) -> str:
    """The stable form from the definition, with nothing clever in it."""
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: list(struct.iter_unpack(">H", key.encode("utf-16-be", "surrogatepass"))))
        return "{" + ",".join(json_string(key) + ":" + slow_stable(value[key]) for key in keys) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return json_string(value) if isinstance(value, str) else number_text(value)  # type: ignore[arg-type]


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


class TestStableStringify:
    @given(st.dictionaries(TEXT, SIGNABLE, max_size=8))
    def test_equals_the_definition_whatever_shortcut_is_taken(self, value: dict[str, object]) -> None:
        assert stable_stringify(value) == slow_stable(value)

    def test_sorts_by_utf16_unit_not_by_code_point(self) -> None:
        assert stable_stringify({"\uffff": 1, "😀": 2}) == '{"😀":2,"\uffff":1}'
        assert unit_key("😀") < unit_key("\uffff")

    def test_writes_an_array_as_an_object_with_its_indices_sorted_as_text(self) -> None:
        assert stable_stringify(list(range(11))) == (
            '{"0":0,"1":1,"10":10,"2":2,"3":3,"4":4,"5":5,"6":6,"7":7,"8":8,"9":9}'
        )

    def test_does_not_tell_empty_containers_apart(self) -> None:
        assert stable_stringify({"a": [], "b": {}, "c": JSSet([1]), "d": JSMap(a=1), "e": JSDate(5)}) == (
            '{"a":{},"b":{},"c":{},"d":{},"e":{}}'
        )

    @pytest.mark.parametrize("value", [None, {"a": None}, {"a": [None]}, {"a": {"b": [1, {"c": None}]}}, UNDEFINED])
    def test_refuses_null_anywhere(self, value: object) -> None:
        with pytest.raises(EncodeError):
            stable_stringify(value)

    def test_writes_undefined_as_the_bare_word(self) -> None:
        assert stable_stringify({"a": UNDEFINED}) == '{"a":undefined}'

    def test_writes_numbers_that_json_has_no_word_for_as_null(self) -> None:
        assert stable_stringify({"a": math.nan, "b": math.inf}) == '{"a":null,"b":null}'

    def test_escapes_lone_surrogates_and_leaves_pairs(self) -> None:
        assert stable_stringify({"a": "\ud800x", "b": "\ud83d\ude00"}) == '{"a":"\\ud800x","b":"😀"}'

    def test_of_a_text_has_one_member_per_unit(self) -> None:
        assert stable_stringify("a😀") == '{"0":"a","1":"\\ud83d","2":"\\ude00"}'

    def test_names_a_value_that_nests_without_end_instead_of_dying(self) -> None:
        loop: dict[str, object] = {}
        loop["a"] = loop
        with pytest.raises(EncodeError):
            stable_stringify(loop)


class TestJSON:
    @given(JSON_VALUES)
    def test_text_reads_back_as_the_same_value(self, value: object) -> None:
        assert parse_json(to_json(value)) == value
        assert parse_json(to_json_bytes(value)) == value

    @given(JSON_VALUES)
    def test_the_fast_path_writes_the_bytes_of_the_slow_one(self, value: object) -> None:
        slow = wire_json._json_value(value, "", "")
        assert to_json(value) == slow
        assert to_json_bytes(value) == slow.encode()

    @given(JSON_VALUES)
    def test_pretty_text_is_the_same_json(self, value: object) -> None:
        assert json.loads(to_pretty_json(value)) == json.loads(to_json(value))

    def test_writes_array_indices_first_and_ascending(self) -> None:
        value = {"b": 1, "10": 2, "9": 3, "01": 4, "-1": 5, "4294967295": 6, "4294967294": 7, "a": 8}
        assert own_keys(value) == ["9", "10", "4294967294", "b", "01", "-1", "4294967295", "a"]
        assert to_json({"b": 1, "10": 2, "9": 3}) == '{"9":3,"10":2,"b":1}'

    def test_leaves_out_undefined_members_and_nulls_undefined_elements(self) -> None:
        assert to_json({"a": UNDEFINED, "b": [UNDEFINED, 1]}) == '{"b":[null,1]}'

    def test_writes_dates_as_iso_text_and_sets_and_maps_as_empty(self) -> None:
        assert (
            to_json([JSDate(5000), JSDate(None), JSSet([1]), JSMap(a=1)]) == '["1970-01-01T00:00:05.000Z",null,{},{}]'
        )

    def test_keeps_delete_and_the_line_separators_raw(self) -> None:
        assert to_json("\x7f\u2028\u2029</&") == '"\x7f\u2028\u2029</&"'

    def test_escapes_controls_as_javascript_does(self) -> None:
        assert to_json('\b\t\n\f\r\x0b\x1f"\\') == '"\\b\\t\\n\\f\\r\\u000b\\u001f\\"\\\\"'

    def test_the_last_of_duplicate_members_wins(self) -> None:
        assert parse_json('{"a":1,"b":2,"a":3}') == {"a": 3, "b": 2}

    def test_dunder_proto_is_an_ordinary_member(self) -> None:
        assert to_json(parse_json('{"__proto__":{"a":1}}')) == '{"__proto__":{"a":1}}'

    @pytest.mark.parametrize("text", ["9007199254740993", "[9007199254740993]", '{"a":[9007199254740993]}'])
    def test_integers_beyond_2_to_53_are_doubles(self, text: str) -> None:
        assert to_json(parse_json(text)) == text.replace("993", "992")

    def test_integers_of_any_length_are_doubles(self) -> None:
        assert parse_json("123456789012345678901234567890") == 1.2345678901234568e29
        assert parse_json("1" + "0" * 5000) == math.inf
        assert parse_json("1e400") == math.inf

    def test_lone_surrogates_pass(self) -> None:
        assert parse_json(rb'"\ud800"') == "\ud800"
        assert parse_json(rb'"\ud83d\ude00"') == "😀"

    def test_bytes_are_read_like_a_request_body(self) -> None:
        assert parse_json(b"\xef\xbb\xbf[1]") == [1]
        assert parse_json(b'"\xff"') == "\ufffd"

    @pytest.mark.parametrize(
        "text", ["", "{", "[1,]", "01", "NaN", "[Infinity]", "-Infinity", "'a'", '"\x01"', "\ufeff1", "1 2", '"\\x"']
    )
    def test_what_javascript_refuses_is_refused(self, text: str) -> None:
        with pytest.raises(DecodeError):
            parse_json(text)

    @pytest.mark.parametrize("depth", [201, 1000, 100_000])
    @pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
    def test_deep_nesting_is_an_error_and_no_recursion(self, depth: int, opening: str, closing: str) -> None:
        with pytest.raises(DecodeError):
            parse_json(opening * depth + "1" + closing * depth)

    def test_the_deepest_nesting_taken_can_be_written_signed_and_compared(self) -> None:
        value = parse_json('{"a":' * 200 + "1" + "}" * 200)
        limit = sys.getrecursionlimit()
        assert limit >= 1000
        assert to_json(value).count("{") == 200
        assert stable_stringify(value).count("{") == 200

    @given(st.text(max_size=30) | st.binary(max_size=30))
    def test_never_raises_anything_else(self, text: str | bytes) -> None:
        with contextlib.suppress(DecodeError):
            parse_json(text)


class TestBase32:
    @given(st.binary(max_size=300))
    def test_is_rfc_4648_with_the_first_padding_replaced(self, raw: bytes) -> None:
        text = base32_encode(raw)
        assert text == base64.b32encode(raw).decode().replace("=", "_", 1).lower()
        assert base32_decode(text) == raw
        assert base32_decode(text.upper()) == raw
        assert base32_decode(text.replace("_", "=")) == raw

    def test_ignores_spare_bits(self) -> None:
        assert base32_decode("mf_=====") == base32_decode("me_=====") == b"a"

    @pytest.mark.parametrize(
        "text", ["me", "me======x", "m_______", "_=======", "mez_====", "mezd____", "a1======", "a=a====="]
    )
    def test_refuses_bad_length_padding_and_characters(self, text: str) -> None:
        with pytest.raises(DecodeError):
            base32_decode(text)

    def test_refuses_what_is_no_text(self) -> None:
        with pytest.raises(DecodeError):
            base32_decode(None)  # type: ignore[arg-type]


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


class TestSetsAndVersions:
    def test_a_set_tells_primitives_apart_as_javascript_does(self) -> None:
        values = [1, "1", True, "true", None, "None", 1.0, 0, -0.0, math.nan, math.nan, UNDEFINED, UNDEFINED]
        assert list(JSSet(values))[:6] == [1, "1", True, "true", None, "None"]
        assert len(JSSet(values)) == 9

    def test_a_set_tells_objects_apart_by_identity(self) -> None:
        one = {"a": 1}
        assert len(JSSet([one, one, {"a": 1}])) == 2

    @given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
    def test_versions_pack_into_a_signed_32_bit_integer(self, a: int, b: int, c: int, d: int) -> None:
        packed = pack_version((a, b, c, d))
        assert -(2**31) <= packed < 2**31
        assert unpack_version(packed) == (a, b, c, d)


def test_orjson_still_refuses_what_sends_us_to_the_slow_path() -> None:
    for text in (b'"\\ud800"', b"NaN", b"1e400"):
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(text)
    with pytest.raises(orjson.JSONEncodeError):
        orjson.dumps("\ud800")
