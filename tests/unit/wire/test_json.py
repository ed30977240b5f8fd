"""JSON as JavaScript reads and writes it, and the stable form."""

from __future__ import annotations

import contextlib
import math
import struct
import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError, EncodeError
from goatherd.wire import javascript_values
from goatherd.wire import json as wire_json
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet, number_text, own_keys, unit_key
from goatherd.wire.json import json_string, parse_json, stable_stringify, to_json, to_json_bytes

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
    """Return the stable form by its definition, without optimizations."""
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: list(struct.iter_unpack(">H", key.encode("utf-16-be", "surrogatepass"))))
        return "{" + ",".join(json_string(key) + ":" + slow_stable(value[key]) for key in keys) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return json_string(value) if isinstance(value, str) else number_text(value)  # type: ignore[arg-type]


class TestStableStringify:
    @pytest.mark.slow
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

    @pytest.mark.slow
    @given(JSON_VALUES)
    def test_the_fast_path_writes_the_bytes_of_the_slow_one(self, value: object) -> None:
        slow = wire_json._json_value(value)
        assert to_json(value) == slow
        assert to_json_bytes(value) == slow.encode()

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


def test_orjson_still_refuses_what_sends_us_to_the_slow_path() -> None:
    for text in (b'"\\ud800"', b"NaN", b"1e400"):
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(text)
    with pytest.raises(orjson.JSONEncodeError):
        orjson.dumps("\ud800")
