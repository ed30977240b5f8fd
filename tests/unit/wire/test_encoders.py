"""Marked JSON: the encoders, the decoder, schemas and equality."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError, EncodeError
from goatherd.wire import richtext
from goatherd.wire.encoders import Decoder, Encoded, encode_cyclical, encode_plain, keeps_rich_text_element
from goatherd.wire.equality import core_equal, loose_equal
from goatherd.wire.hashing import value_text
from goatherd.wire.items import data_checksum, encode_data, normalize_data, patch_data
from goatherd.wire.javascript_values import UNDEFINED, JSDate, JSMap, JSSet
from goatherd.wire.json import to_json
from goatherd.wire.richtext import rich_text_checksum
from goatherd.wire.schema import BUILTIN, NULL_SCHEMA, SESSIONS, Registry, Schema, SchemaField
from tests.fakes.goatdb_rules import upgrade_data
from tests.vectors.diff import diff_data, wrap_changes

from .test_json import JSON_VALUES

ALL = Schema(
    ns="all",
    version=1,
    fields=(
        SchemaField(name="s", type="string", required=True),
        SchemaField(name="d", type="date"),
        SchemaField(name="set", type="set"),
        SchemaField(name="map", type="map", default=lambda _data: JSMap(k=1)),
        SchemaField(name="rt", type="richtext"),
    ),
)


@given(JSON_VALUES)
def test_plain_json_is_left_alone(value: Any) -> None:
    assert encode_plain(value) is value
    assert encode_cyclical(value) == value


@pytest.mark.parametrize(
    "value", [{"a": {"hasOwnProperty": 1}}, JSSet([{"hasOwnProperty": 1}]), [{"hasOwnProperty": 1}]]
)
def test_an_object_that_hides_a_method_is_not_encoded(value: Any) -> None:
    with pytest.raises(EncodeError, match="hasOwnProperty"):
        encode_plain(value)
    with pytest.raises(EncodeError, match="hasOwnProperty"):
        encode_cyclical(value)


def test_an_object_that_hides_a_method_is_not_encoded_beside_a_shared_object_even_in_a_map() -> None:
    """GoatDB copies a value with shared objects, Maps included, and finds the members to copy with that method."""
    shared = {"x": 1}
    hiding = JSMap({"m": {"hasOwnProperty": 1}})
    assert encode_cyclical({"a": shared, "b": hiding}) == {"a": shared, "b": {"m": {"hasOwnProperty": 1}}}
    with pytest.raises(EncodeError, match="hasOwnProperty"):
        encode_cyclical({"a": shared, "b": hiding, "c": shared})


def test_an_object_that_hides_a_method_is_decoded_below_the_first_level() -> None:
    """GoatDB's decoder looks for members with that method at the first level only."""
    for value in ({"a": {"hasOwnProperty": 1}}, [{"hasOwnProperty": []}], {"hasOwnProperty": {}}):
        assert Decoder().decode(value) == value


def test_an_object_met_twice_becomes_a_reference() -> None:
    shared = {"x": 1}
    value = {"a": shared, "b": [shared]}
    encoded = encode_cyclical(value)
    assert encoded == {"__r": [{"x": 1}], "__d": {"a": {"__rId": 0}, "b": [{"__rId": 0}]}}
    decoded = Decoder().decode(encoded)
    assert decoded == value
    assert decoded["a"] is decoded["b"][0]


def test_objects_inside_a_shared_one_are_numbered_too() -> None:
    inner = {"y": 1}
    outer = {"inner": inner}
    encoded = encode_cyclical({"a": outer, "b": outer})
    assert encoded["__r"] == [{"inner": {"y": 1}}, {"y": 1}]


def test_a_cycle_does_not_hang() -> None:
    loop: dict[str, Any] = {}
    loop["me"] = {"back": loop}
    with pytest.raises(RecursionError):
        encode_plain(loop)


@pytest.mark.parametrize("number", [1, 0.5, -1, math.inf, -math.inf])
def test_a_reference_to_nothing_is_undefined(number: float) -> None:
    decoded = Decoder().decode({"__r": [{}], "__d": {"a": {"__rId": number}}})
    assert decoded["a"] is UNDEFINED


def test_references_do_not_make_much_of_little() -> None:
    """SECURITY: guards `goatherd.wire.encoders.Decoder`."""
    record = {"text": "x" * 100_000}
    pointers = [{"node": {"__rId": 0}} for _ in range(1000)]
    assert Decoder().decode({"__r": [record], "__d": {"p": pointers}})["p"][999]["node"] is record
    with pytest.raises(DecodeError):
        Decoder().decode({"__r": [[0] * 200], "__d": {"p": [{"__rId": 0} for _ in range(200)]}})


def test_a_stray_reference_after_a_finished_object_is_refused() -> None:
    decoder = Decoder()
    decoder.decode({"__r": [{}], "__d": {}})
    with pytest.raises(DecodeError):
        decoder.decode({"a": {"__rId": 0}})


def test_references_inside_references_mean_the_records_around_them() -> None:
    inner = {"__r": [{"b": 2}], "__d": {"i": {"__rId": 0}}}
    outer = {"__r": [{"a": 1}], "__d": {"x": inner, "y": {"__rId": 0}}}
    assert Decoder().decode(outer) == {"x": {"i": {"b": 2}}, "y": {"a": 1}}


def test_what_stands_for_the_whole_object_is_a_reference_but_no_marker() -> None:
    assert Decoder().decode({"__r": [1], "__d": {"__rId": 0}}) == 1
    assert Decoder().decode({"__r": [], "__d": {"__t": "S", "__v": [1]}}) == {"__t": "S", "__v": [1]}


def test_a_map_beside_a_shared_object_is_converted_one_level_later_too() -> None:
    shared = {"a": 1}
    encoded = encode_cyclical({"m": JSMap({"d": JSDate(1000)}), "x": shared, "y": shared})
    assert to_json(encoded["__d"]["m"]) == '{"d":"1970-01-01T00:00:01.000Z"}'


def test_markers_need_content_of_their_kind() -> None:
    for value in ({"__t": "S", "__v": 5}, {"__t": "D", "__v": "5"}, {"__t": "E", "__v": []}, {"__t": "X", "__v": 5}):
        assert Decoder().decode(value) == value
    assert Decoder().decode({"__t": "E", "__v": {"a": 1}}) == Encoded({"a": 1})


def test_a_decoder_that_is_not_cyclical_knows_no_references() -> None:
    value = {"__r": [], "__d": {"a": 1}}
    assert Decoder(cyclical=False).decode(value) == value


def test_maps_are_converted_one_level_later() -> None:
    value = JSMap(d=JSDate(1000))
    assert to_json(encode_plain(value)) == '{"d":"1970-01-01T00:00:01.000Z"}'
    assert encode_data({"map": value}, ALL) == {"map": {"d": {"__t": "D", "__v": 1}}}


def test_local_rich_text_is_not_written() -> None:
    tree = {"root": {"children": [{"text": "a"}, {"text": "b", "isLocal": True}, "stray"]}}
    assert encode_data({"rt": tree}, ALL)["rt"] == {"root": {"children": [{"text": "a"}]}}
    assert not keeps_rich_text_element("text")
    only = {"root": {"children": [{"text": "a"}]}}
    assert rich_text_checksum(tree) != rich_text_checksum({"root": {"children": []}})
    assert rich_text_checksum({"root": {"children": [*tree["root"]["children"][:2]]}}) == rich_text_checksum(only)


@pytest.mark.parametrize("tree", [None, {}, {"root": None}, {"root": {"children": 5}}])
def test_what_is_no_tree_has_no_rich_text_checksum(tree: Any) -> None:
    with pytest.raises(EncodeError):
        rich_text_checksum(tree)


@pytest.mark.parametrize(
    ("text", "offset", "checksum"),
    [
        ("", 0, "3123013384"),
        ("", 1, "2785458810"),
        ("", 5, "2785458810"),
        ("ab", 1, "1295542058"),
        ("ab", 2, "1750610294"),
        ("ab", 3, "1750610294"),
        ("ab", 9, "1750610294"),
    ],
)
def test_a_pointer_beyond_its_text_follows_an_empty_one(text: str, offset: int, checksum: str) -> None:
    node = {"text": text}
    pointers = JSSet([{"key": "u", "type": "anchor", "dir": 0, "node": node, "offset": offset}])
    assert rich_text_checksum({"root": {"children": [node]}, "pointers": pointers}) == checksum


@pytest.mark.parametrize(
    ("node", "same"),
    [
        ({"text": "a", "children": [{"text": "b"}]}, {"text": "a"}),
        ({"text": "a", "see": {"node": {"text": "b"}, "offset": 1}}, {"text": "a", "see": {}}),
        ({"text": "a", "see": JSSet([{"children": [1], "x": 1}])}, {"text": "a", "see": JSSet([{"x": 1}])}),
    ],
)
def test_links_between_parts_of_rich_text_are_not_hashed(node: dict[str, Any], same: dict[str, Any]) -> None:
    assert rich_text_checksum({"root": {"children": [node]}}) == rich_text_checksum({"root": {"children": [same]}})


def test_what_only_looks_like_a_pointer_is_hashed() -> None:
    one, two = ({"text": "a", "see": {"key": "u", "type": "anchor", "offset": offset}} for offset in (1, 2))
    assert rich_text_checksum({"root": {"children": [one]}}) != rich_text_checksum({"root": {"children": [two]}})


@pytest.mark.parametrize("odd", ["x", [], {}, True, math.inf, math.nan, None, -5, 1e9])
def test_a_pointer_that_is_none_does_not_stop_a_reader(odd: Any) -> None:
    node = {"text": "abc"}
    pointer = {"key": "u", "type": "anchor", "dir": 0, "node": node, "offset": 1}
    pointers = JSSet([pointer, {**pointer, "dir": odd}, {**pointer, "offset": odd}, {**pointer, "key": odd}])
    assert rich_text_checksum({"root": {"children": [node]}, "pointers": pointers}).isdigit()


def test_a_node_is_read_once_however_many_pointers_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """SECURITY: guards `goatherd.wire.richtext`; with references, a small push can name one long node many times."""
    read: list[Any] = []
    monkeypatch.setattr(richtext, "value_text", lambda value: read.append(value) or value_text(value))
    node = {"text": "abc"}
    pointers = JSSet([{"key": str(n), "type": "anchor", "dir": 0, "node": node, "offset": 0} for n in range(50)])
    assert rich_text_checksum({"root": {"children": [node]}, "pointers": pointers}).isdigit()
    assert len([value for value in read if value == node]) == 1


def test_unknown_fields_cannot_be_written() -> None:
    with pytest.raises(EncodeError):
        encode_data({"zzz": 1}, ALL)


def test_normalization_drops_empty_sets_and_fills_defaults() -> None:
    assert normalize_data({"set": JSSet(), "s": UNDEFINED}, ALL) == {"map": {"k": 1}}
    for name in ("set", "map", "rt"):
        with pytest.raises(EncodeError):
            normalize_data({name: None}, ALL)


def test_validation_speaks_goatdbs_words() -> None:
    assert ALL.problem({}) == 'Missing required field "s"'
    assert ALL.problem({"s": "x", "q": 1}) == "Unknown field q"
    assert ALL.problem({"s": 5}) == 'Invalid value for field "s". Expected string'
    assert ALL.problem({"s": "x", "isDeleted": True, "d": JSDate(None), "set": JSSet(), "map": JSMap()}) is None
    strict = Schema(
        ns="q", version=1, fields=(SchemaField(name="s", type="string", validate=lambda value: value == "x"),)
    )
    assert strict.problem({"s": "y"}) == 'Field "s" failed custom schema validation'


def test_a_marker_without_a_version_means_the_latest() -> None:
    registry = Registry([ALL, Schema(ns="all", version=3, fields=())])
    versions = {
        marker: registry.from_marker(marker)
        for marker in ("all", "all/0", "all/x", "all/1", "all/3/9", "all/2", f"all/{'9' * 5000}", f"all/{'0' * 5000}1")
    }
    assert [schema and schema.version for schema in versions.values()] == [3, 3, 3, 1, 3, None, None, 1]
    assert registry.from_marker("null") is NULL_SCHEMA
    assert registry.from_marker("sessions/1") is SESSIONS
    assert registry.from_marker(None) is None


def test_a_marker_s_version_is_read_as_javascript_reads_an_integer() -> None:
    registry = Registry([Schema(ns="up", version=1, fields=()), Schema(ns="up", version=16, fields=())])
    for text, version in (("0x10", 16), ("\ufeff1", 1), ("1e1", 1), ("+1", 1), ("0x", 16), ("-1", None), ("\x1c1", 16)):
        found = registry.from_marker(f"up/{text}")
        assert (None if found is None else found.version) == version, text


@pytest.mark.parametrize("digits", ["f" * 300, "f" * 5000, "9" * 5000])
def test_a_version_beyond_every_number_is_no_version(digits: str) -> None:
    for text in (f"0x{digits}", f"-0x{digits}"):
        assert BUILTIN.from_marker(f"sessions/{text}") is None


def test_only_an_empty_set_or_map_of_its_own_kind_of_field_is_dropped() -> None:
    schema = Schema(ns="n", version=1, fields=(SchemaField(name="s", type="string"), SchemaField(name="m", type="map")))
    normal = normalize_data({"s": JSSet(), "m": JSSet()}, schema)
    assert list(normal) == ["s"]


def test_a_date_field_that_holds_none_has_no_checksum() -> None:
    schema = Schema(ns="n", version=1, fields=(SchemaField(name="d", type="date"),))
    for value in (None, "soon", True):
        with pytest.raises(EncodeError):
            data_checksum({"d": value}, schema)


def test_a_required_field_that_is_there_and_undefined_is_of_a_wrong_type() -> None:
    schema = Schema(ns="n", version=1, fields=(SchemaField(name="s", type="string", required=True),))
    assert schema.problem({"s": UNDEFINED}) == 'Invalid value for field "s". Expected string'
    assert schema.problem({}) == 'Missing required field "s"'


def test_registering_twice_keeps_the_first_and_the_null_schema_is_no_entry() -> None:
    registry = Registry([ALL, Schema(ns="all", version=1, fields=())])
    assert registry.get("all", 1) is ALL
    with pytest.raises(ValueError, match="namespace"):
        registry.register(NULL_SCHEMA)


def test_upgrading_runs_every_version_on_the_way() -> None:
    steps = [
        Schema(
            ns="u",
            version=version,
            fields=(SchemaField(name="n", type="number"),),
            upgrade=lambda d: {"n": d.get("n", 0) + 1},
        )
        for version in (1, 2, 3)
    ]
    registry = Registry(steps)
    assert upgrade_data({}, NULL_SCHEMA, steps[2], registry) == ({"n": 3}, steps[2])
    with pytest.raises(EncodeError):
        upgrade_data({}, NULL_SCHEMA, steps[2], Registry(steps[:1]))


class TestEquality:
    def test_numbers_within_the_epsilon_are_equal(self) -> None:
        assert core_equal(1e-17, 3e-17)
        assert not core_equal(float("nan"), float("nan"))
        assert not core_equal(True, 1)
        assert not core_equal("1", 1)

    def test_maps_compare_their_values_by_identity(self) -> None:
        assert core_equal(JSMap(a=1), JSMap(a=1.0))
        assert not core_equal(JSMap(a=[1]), JSMap(a=[1]))

    def test_falsy_values_are_loosely_equal(self) -> None:
        assert loose_equal({"a": 0}, {"a": ""})
        assert loose_equal(None, UNDEFINED)
        assert not core_equal({"a": 0}, {"a": ""})
        assert not loose_equal(JSDate(1), JSDate(1))


FIELDS = st.fixed_dictionaries(
    {"s": st.text(max_size=3)},
    optional={
        "d": st.integers(0, 10**9).map(lambda seconds: JSDate(seconds * 1000)),
        "set": st.lists(st.integers(0, 5) | st.text(max_size=1), min_size=1, max_size=4).map(JSSet),
        "map": st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), min_size=1).map(JSMap),
    },
)


@given(FIELDS, FIELDS)
def test_a_patch_with_the_difference_gives_the_target(old: dict[str, Any], new: dict[str, Any]) -> None:
    bare = Schema(ns="bare", version=1, fields=(*ALL.fields[:3], SchemaField(name="map", type="map")))
    patched = patch_data(old, wrap_changes(diff_data(old, new, bare)), bare)
    assert patched.keys() == new.keys()
    assert all(core_equal(patched[name], new[name]) for name in new)


def test_rich_text_and_invalid_items_are_not_diffed() -> None:
    with pytest.raises(EncodeError):
        diff_data({}, {"s": "x", "rt": {"root": {"children": []}}}, ALL)
    with pytest.raises(EncodeError):
        diff_data({}, {}, ALL)
