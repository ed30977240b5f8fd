"""Commits, records and edits."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError, EncodeError
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit, apply_edit, encoded_checksum, new_commit
from goatherd.wire.items import canonical_edit, canonical_record, record_data
from goatherd.wire.json import parse_json, stable_stringify, to_json, to_json_bytes
from goatherd.wire.schema import Registry, Schema, SchemaField

from .test_json import SIGNABLE, TEXT

REGISTRY = Registry(
    [
        Schema(
            ns="all",
            version=1,
            fields=(
                SchemaField(name="s", type="string"),
                SchemaField(name="n", type="number"),
                SchemaField(name="d", type="date"),
                SchemaField(name="set", type="set"),
                SchemaField(name="map", type="map"),
                SchemaField(name="rt", type="richtext"),
            ),
        )
    ]
)
VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "commits.json").read_text())


def wire(data: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    record = {"s": "all/1", "d": {"s": "x"} if data is None else data, "n": True, "cs": "1"}
    encoded = {"ver": 50595584, "id": "i", "k": "key", "s": "me", "ts": 5, "org": "o", "c": {"r": record}, "cid": "c"}
    return {name: value for name, value in {**encoded, **members}.items() if value is not ...}


def read(encoded: Any, **options: Any) -> Commit:
    return Commit.from_json(encoded, org="o", registry=REGISTRY, **options)


COMMITS = st.builds(
    Commit,
    id=TEXT,
    key=TEXT,
    session=TEXT,
    ts=st.integers(1, 2**53) | st.floats(1, 1e13),
    version=st.integers(1, 2**31),
    org=TEXT,
    connection=TEXT,
    contents=st.fixed_dictionaries(
        {
            "r": st.fixed_dictionaries(
                {"s": TEXT, "d": st.dictionaries(TEXT, SIGNABLE, max_size=5), "n": st.just(True), "cs": SIGNABLE}
            )
        }
    )
    | st.fixed_dictionaries({"b": TEXT, "e": st.dictionaries(TEXT, SIGNABLE, max_size=3)}),
    parents=st.lists(TEXT, max_size=13).map(tuple),
    ancestors_filter=st.none()
    | st.builds(BloomFilter, st.binary(max_size=9), st.lists(st.integers(0, 2**53), max_size=13).map(tuple)),
    ancestors_count=st.integers(0, 2**53),
    merge_base=st.none() | TEXT,
    merge_leader=st.none() | TEXT,
    revert=st.booleans(),
)


class TestSignedText:
    @pytest.mark.slow
    @given(COMMITS, TEXT)
    def test_is_the_stable_form_of_the_signed_object(self, commit: Commit, signer: str) -> None:
        expected = stable_stringify({"extData": commit.signed_object(), "sessionId": signer})
        assert commit.signed_text(signer) == expected

    def test_refuses_a_null_in_the_data(self) -> None:
        with pytest.raises(EncodeError):
            read(wire({"s": None})).signed_text("me")


class TestReading:
    @given(COMMITS)
    def test_a_commit_of_an_unknown_schema_reads_back_as_it_was_sent(self, commit: Commit) -> None:
        sent = parse_json(to_json(commit.with_signature("sig").to_json()))
        if commit.is_delta or "/" not in str(commit.schema):
            return
        if commit.revert and commit.merge_leader == "":
            return  # every reader leaves out an empty `revert`, so no reader can verify such a commit
        again = Commit.from_json(sent, org=commit.org)
        assert stable_stringify(again.signed_object()) == stable_stringify(commit.signed_object())
        assert again.signature == "sig"

    def test_unknown_members_vanish_everywhere_but_in_unknown_schemas(self) -> None:
        encoded = wire({"s": "x", "zzz": 1}, zzz=1, af={"d": "AA==", "s": [1], "zzz": 1}, age=7)
        encoded["c"]["r"]["zzz"] = 1
        assert "zzz" not in to_json(read(encoded).to_json())
        assert "age" not in read(encoded).to_json()

    def test_members_come_out_in_goatdbs_order_whatever_order_they_came_in(self) -> None:
        encoded = wire(p=["p"], af={"d": "AA==", "s": [1]}, ac=2, sig="sig", mb="b", ml="l", revert="l")
        order = ["ver", "id", "k", "s", "ts", "org", "p", "af", "ac", "c", "sig", "mb", "ml", "revert", "cid"]
        shuffled = dict(reversed(list(encoded.items())))
        assert list(read(shuffled).to_json()) == order

    def test_the_organisation_is_the_readers(self) -> None:
        assert read(wire(org="elsewhere")).signed_object()["org"] == "o"

    def test_revert_is_written_as_the_leader_and_not_at_all_without_one(self) -> None:
        assert read(wire(revert="x", ml="leader")).to_json()["revert"] == "leader"
        assert "revert" not in read(wire(revert="x")).to_json()

    @pytest.mark.parametrize("members", [{"p": []}, {"ac": 0}, {"mb": ""}, {"ml": None}, {"revert": ""}])
    def test_empty_members_are_dropped(self, members: dict[str, Any]) -> None:
        (name,) = members
        assert name not in read(wire(**members)).to_json()

    def test_dates_come_back_as_whole_milliseconds_in_seconds(self) -> None:
        for given_date in (1700000000.123, 1700000000123, {"__t": "D", "__v": 1700000000.123}):
            assert (read(wire({"d": given_date})).data or {})["d"] == 1700000000.123
        assert (read(wire({"d": 1.001})).data or {})["d"] == 1

    @pytest.mark.parametrize("date", [1e300, -1e300, {"__t": "D", "__v": 1e300}])
    def test_a_date_out_of_range_is_signed_as_null_and_cannot_be_read_again(self, date: Any) -> None:
        commit = read(wire({"d": date}))
        assert '"d":{"d":null}' in commit.signed_text("me")
        assert to_json(commit.data) == '{"d":null}'
        assert not commit.is_finite
        with pytest.raises(DecodeError):
            commit.check_lasting(REGISTRY)

    def test_sets_lose_repetitions_and_take_the_old_form(self) -> None:
        encoded = {"__t": "S", "__v": ["a", 1]}
        assert (read(wire({"set": {"__t": "S", "__v": ["a", "a", 1, 1.0]}})).data or {})["set"] == encoded
        assert (read(wire({"set": ['"a"', "1"]})).data or {})["set"] == encoded

    def test_an_absent_checksum_is_computed_and_a_wrong_one_kept(self) -> None:
        encoded = wire({"s": "hello"})
        del encoded["c"]["r"]["cs"]
        assert read(encoded).checksum == "2229497959"
        assert read(wire({"s": "hello"})).checksum == "1"

    def test_a_schema_that_is_not_known_is_kept_verbatim_unless_told_otherwise(self) -> None:
        encoded = wire()
        encoded["c"]["r"] = {"s": "nobody/3", "d": {"x": [1, {"__t": "D", "__v": 1.001}]}, "n": True, "cs": "7", "q": 1}
        assert read(encoded).contents == encoded["c"]
        with pytest.raises(DecodeError):
            read(encoded, like_goatdb=True)

    @pytest.mark.parametrize(
        "encoded",
        [
            None,
            [],
            {},
            wire(id=...),
            wire(id=5),
            wire(k=None),
            wire(s=...),
            wire(ts="5"),
            wire(ts=True),
            wire(ver=1.5),
            wire(ver=2**54),
            wire(ver=None),
            wire(ver=""),
            wire(ver=False),
            wire(p="x"),
            wire(p=[1]),
            wire(af="x"),
            wire(af=[1]),
            wire(ac="1"),
            wire(mb=5),
            wire(ml={"a": 1}),
            wire(sig=5),
            wire(mb=[]),
            wire(ml={}),
            wire(af={}),
            wire(af=None),
            wire(af=""),
            wire(af=0),
            wire(af=False),
            wire(ts=float("inf")),
            wire(c={"r": {}, "b": "x", "e": {"c": {}}}),
            wire(c={"r": None, "b": "x", "e": {"c": {}}}),
            wire(c={"r": False, "b": "x", "e": {"c": {}}}),
            wire(c=...),
            wire(c=[]),
            wire(c={}),
            wire(c={"r": 5}),
            wire(c={"r": {"s": 5, "d": {}}}),
            wire(c={"b": "x"}),
            wire(c={"b": 5, "e": {"c": {}}}),
            wire(c={"b": "x", "e": {"c": "text"}}),
            wire(c={"b": "x", "e": {"c": {"__t": "E", "__v": {}}}}),
            wire(c={"b": "x", "e": {"c": [1]}}),
            wire({"set": "x"}),
            wire({"set": {"a": 1}}),
            wire({"set": [{}]}),
            wire({"map": None}),
            wire({"map": "x" * 1001}),
            wire({"d": "soon"}),
            wire({"d": None}),
            wire({"map": {"a": {"__t": "E", "__v": {}}}}),
            wire({"map": {"hasOwnProperty": 1}}),
        ],
    )
    def test_what_goatdb_cannot_read_or_write_again_is_refused(self, encoded: Any) -> None:
        with pytest.raises(DecodeError):
            read(encoded)

    @pytest.mark.parametrize("like_goatdb", [False, True])
    @pytest.mark.parametrize(
        "place",
        ["", "af", "c", "c r", "c r d", "c r d map", "c r cs", "e", "e c", "e sc", "e c s 0 __v", "e c s 0 __v value"],
    )
    def test_a_member_that_hides_the_method_of_that_name_is_refused(self, place: str, like_goatdb: bool) -> None:
        encoded = wire({"s": "x", "map": {}}, af={"d": "AA==", "s": [1]})
        encoded["c"]["r"]["cs"] = {"a": 1}
        if place.startswith("e"):
            change = {"changeType": "fd", "operation": 1, "vType": "map", "value": {}}
            encoded["c"] = {"b": "x", "e": {"sc": {}, "dc": "2", "c": {"s": [{"__t": "E", "__v": change}]}}}
            place = f"c {place}"
        read(encoded, like_goatdb=like_goatdb)
        holder = encoded
        for step in place.split():
            holder = holder[int(step) if step.isdigit() else step]
        holder["hasOwnProperty"] = []
        with pytest.raises(DecodeError, match="hasOwnProperty"):
            read(encoded, like_goatdb=like_goatdb)

    @pytest.mark.parametrize("schema", ["all/1", "unknown/1"])
    @pytest.mark.parametrize("place", ["af", "c", "c r", "c r d", "c e"])
    def test_an_object_in_whose_place_goatdb_reads_another_is_refused(self, place: str, schema: str) -> None:
        encoded = wire({"s": "x"}, af={"d": "AA==", "s": [1]})
        encoded["c"]["r"]["s"] = schema
        if place == "c e":
            encoded["c"] = {"b": "x", "e": {"sc": "1", "dc": "2", "c": {}, "s": schema}}
        read(encoded)
        holder = encoded
        for step in place.split():
            holder = holder[step]
        holder |= {"__t": "E", "__v": {"s": "sessions/1", "d": {}, "n": True, "cs": "1"}}
        with pytest.raises(DecodeError, match="marker"):
            read(encoded)

    def test_a_member_that_hides_a_method_is_ignored_in_an_unknown_member(self) -> None:
        hiding = {"hasOwnProperty": 1}
        encoded = wire({"s": "x", "zzz": hiding, "set": {"__t": "S", "__v": [1], **hiding}}, zzz=hiding)
        encoded["c"]["r"]["zzz"] = hiding
        assert read(encoded) == read(wire({"s": "x", "set": {"__t": "S", "__v": [1]}}))

    @pytest.mark.parametrize("edit", [None, 0, "", "text", False, [], {}, {"c": None}, {"c": []}, {"c": 5}, {"c": ""}])
    def test_an_edit_without_members_or_changes_changes_nothing(self, edit: Any) -> None:
        for like_goatdb in (False, True):
            commit = read(wire(c={"b": "x", "e": edit}), like_goatdb=like_goatdb)
            assert commit.contents == {"b": "x", "e": {"c": {}}}

    def test_a_member_that_was_not_signed_is_not_in_the_text(self) -> None:
        for name in ("ver", "id", "k", "s"):
            commit = read(wire(**{name: ...}), like_goatdb=True)
            members = wire(**{name: ...})
            assert commit.signed_text("me") == stable_stringify({"extData": members, "sessionId": "me"})
            assert commit.to_json() == members

    def test_only_the_version_may_be_absent_where_a_commit_is_kept(self) -> None:
        assert read(wire(ver=...)).version is None
        for name in ("id", "k", "s"):
            with pytest.raises(DecodeError):
                read(wire(**{name: ...}))

    def test_an_item_without_data_has_none_and_keeps_what_stands_for_normalized(self) -> None:
        record = read(wire(c={"r": {"s": "all/1", "n": 7, "cs": "1"}})).record
        assert record == {"s": "all/1", "d": {}, "n": 7, "cs": "1"}
        assert read(wire(c={"r": {"s": "null", "d": {}, "n": True, "cs": "1"}})).contents["r"]["n"] is True
        assert read(wire(c={"r": {"s": "null", "d": {}, "cs": "1"}})).contents["r"]["n"] is False

    def test_an_empty_leader_is_written_as_what_a_revert_names_and_nowhere_else(self) -> None:
        encoded = read(wire(ml="", revert="x"), like_goatdb=True).signed_object()
        assert encoded["revert"] == ""
        assert "ml" not in encoded
        assert "revert" not in read(wire(revert="x")).signed_object()

    def test_a_set_field_that_holds_none_is_read_as_goatdb_reads_it_only_where_that_is_asked_for(self) -> None:
        data = {"set": {"__v": ["a"]}}
        assert read(wire(data), like_goatdb=True).data == data
        with pytest.raises(DecodeError, match="a set field holds no set"):
            read(wire(data))

    @given(st.sampled_from(VECTORS["cases"]), st.data())
    def test_a_mutated_commit_is_read_or_refused_and_nothing_else(
        self, case: dict[str, Any], data: st.DataObject
    ) -> None:
        encoded = parse_json(case["wire"])
        path: Any = encoded
        while isinstance(path, dict) and path:
            key = data.draw(st.sampled_from(sorted(path)))
            if not isinstance(path[key], dict) or data.draw(st.booleans()):
                path[key] = data.draw(
                    st.sampled_from([None, 0, "", "x", [], {}, [None], {"__t": "S", "__v": [{}]}, True])
                )
                break
            path = path[key]
        try:
            commit = read(encoded)
            commit.signed_text("me")
        except (DecodeError, EncodeError):
            return
        again = parse_json(to_json_bytes(commit.to_json()))
        assert read(again).signed_text("me") == commit.signed_text("me")

    def test_a_commit_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            read(wire()).id = "other"  # type: ignore[misc]


class TestNewCommit:
    def make(self, **members: Any) -> Commit:
        options: dict[str, Any] = {"data": {"title": "x"}, "schema_marker": "note/1", **members}
        return new_commit(
            commit_id="i", key="k", session_id="s", ts=1, org="o", connection="c", registry=REGISTRY, **options
        )

    def test_is_what_a_reader_makes_of_it(self) -> None:
        commit = self.make(
            data={"s": "x", "d": 1.5, "set": {"__t": "S", "__v": [1]}}, schema_marker="all/1", parents=["q", "p"]
        )
        assert commit.parents == ("q", "p")
        assert read(parse_json(to_json(commit.to_json()))) == commit

    def test_computes_the_checksum(self) -> None:
        assert self.make(data={"s": "hello"}).checksum == "2229497959"
        assert encoded_checksum({}) == "3320765784"

    @pytest.mark.parametrize("data", [{"n": math.inf}, {"map": {"a": [-math.inf]}}, {"d": math.nan}])
    def test_holds_no_number_that_json_cannot_represent(self, data: dict[str, Any]) -> None:
        with pytest.raises(EncodeError, match="infinite number"):
            self.make(data=data, schema_marker="all/1")

    def test_knows_its_contents(self) -> None:
        commit = self.make()
        assert (commit.schema, commit.namespace, commit.data, commit.base, commit.edit, commit.is_delta) == (
            "note/1",
            "note",
            {"title": "x"},
            None,
            None,
            False,
        )


def change(kind: str, operation: int, value: Any) -> dict[str, Any]:
    return {"__t": "E", "__v": {"changeType": "fd", "operation": operation, "vType": kind, "value": value}}


class TestEdits:
    def record(self, **data: Any) -> dict[str, Any]:
        return canonical_record({"s": "all/1", "d": data, "n": True}, REGISTRY)

    def edit(self, base: dict[str, Any], target: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        return {"sc": base["cs"], "dc": target["cs"], "c": changes}

    def test_every_field_type_but_rich_text_is_patched(self) -> None:
        base = self.record(s="a", n=1, d=5, set={"__t": "S", "__v": [1, "x"]}, map={"a": 1, "b": 2})
        target = self.record(s="b", d=6.5, set={"__t": "S", "__v": [1, "y"]}, map={"a": 3, "c": [1]})
        changes = {
            "s": [change("string", 1, "b")],
            "n": [change("number", -1, 1)],
            "d": [change("date", 1, 6.5)],
            "set": [change("set", 1, {"__t": "S", "__v": ["y"]}), change("set", -1, {"__t": "S", "__v": ["x"]})],
            "map": [change("map", 1, {"a": 3, "c": [1]}), change("map", -1, {"b": 2})],
            "unknown": [change("string", 1, "ignored")],
        }
        assert apply_edit(base, self.edit(base, target, changes), REGISTRY) == target

    def test_a_deletion_of_another_value_changes_nothing(self) -> None:
        base = self.record(s="a", map={"k": 1})
        changes = {"s": [change("string", -1, "z")], "map": [change("map", -1, {"k": 2})]}
        assert apply_edit(base, self.edit(base, base, changes), REGISTRY) == base

    def test_an_edit_of_an_unknown_schema_is_applied_by_its_own_types(self) -> None:
        base = {
            "s": "unknown/1",
            "d": {"a": "x", "when": 1.5},
            "n": True,
            "cs": encoded_checksum({"a": "x", "when": 1.5}),
        }
        target = {"a": "y", "when": 2.5, "set": {"__t": "S", "__v": [1]}}
        changes = {
            "a": [change("string", 1, "y")],
            "when": [change("date", 1, 2.5)],
            "set": [change("set", 1, {"__t": "S", "__v": [1]})],
        }
        edit = {"sc": base["cs"], "dc": encoded_checksum(target), "c": changes}
        assert apply_edit(base, edit, REGISTRY)["d"] == target

    def test_a_change_is_applied_by_the_type_of_its_field(self) -> None:
        base = self.record(s="a", d=5, set={"__t": "S", "__v": [1]})
        target = self.record(s={}, d=6, set={"__t": "S", "__v": [1]})
        changes = {
            "s": [change("map", 1, {})],
            "d": [change("number", 1, 6)],
            "set": [change("set", -1, {"__t": "S", "__v": [2]})],
        }
        assert apply_edit(base, self.edit(base, target, changes), REGISTRY) == target
        for wrong in ({"set": [change("string", 1, "a")]}, {"map": [change("set", 1, {"__t": "S", "__v": [[1, 2]]})]}):
            with pytest.raises(DecodeError):
                apply_edit(base, self.edit(base, base, wrong), REGISTRY)

    @pytest.mark.parametrize("operation", [0, 2, True, "1", None, [1]])
    def test_a_change_that_neither_inserts_nor_deletes_is_ignored(self, operation: Any) -> None:
        base = self.record(s="a", n=1, set={"__t": "S", "__v": [1]})
        rich = {"__t": "E", "__v": {"changeType": "rt", "op": 1, "start": 0, "values": [{"text": "x"}]}}
        changes = {
            "s": [change("string", operation, "a"), rich],
            "n": [change("number", operation, 2)],
            "set": [change("set", operation, {"__t": "S", "__v": [1, 2]})],
        }
        assert apply_edit(base, self.edit(base, base, changes), REGISTRY) == base

    @pytest.mark.parametrize("marker", ["sessions/1", "null", "unknown/1"])
    def test_an_edit_is_applied_in_the_schema_of_its_base(self, marker: str) -> None:
        base, target = self.record(s="a"), self.record(s="b")
        edit = self.edit(base, target, {"s": [change("string", 1, "b")]})
        assert apply_edit(base, {**edit, "s": marker}, REGISTRY) == target

    def test_the_marker_of_an_unknown_schema_is_kept_but_goatdb_leaves_it_out(self) -> None:
        edit = {"sc": "1", "dc": "2", "c": {}}
        for like_goatdb in (False, True):
            assert canonical_edit({**edit, "s": "all"}, REGISTRY, like_goatdb=like_goatdb) == {**edit, "s": "all/1"}
            for marker in (None, 5, ["all/1"]):
                assert canonical_edit({**edit, "s": marker}, REGISTRY, like_goatdb=like_goatdb) == edit
        assert canonical_edit({**edit, "s": "unknown/7"}, REGISTRY) == {**edit, "s": "unknown/7"}
        assert canonical_edit({**edit, "s": "unknown/7"}, REGISTRY, like_goatdb=True) == edit

    @pytest.mark.parametrize("member", ["sc", "dc"])
    def test_both_checksums_are_checked(self, member: str) -> None:
        base, target = self.record(s="a"), self.record(s="b")
        edit = self.edit(base, target, {"s": [change("string", 1, "b")]})
        assert apply_edit(base, edit, REGISTRY) == target
        with pytest.raises(DecodeError):
            apply_edit(base, {**edit, member: "0"}, REGISTRY)

    def test_rich_text_edits_say_so(self) -> None:
        base = self.record(rt={"root": {"children": []}})
        edit = self.edit(base, base, {"rt": [{"__t": "E", "__v": {"changeType": "rt", "op": -1, "start": 0}}]})
        assert canonical_edit(edit, REGISTRY) == edit
        with pytest.raises(DecodeError, match="rich text"):
            apply_edit(base, edit, REGISTRY)

    @pytest.mark.parametrize(
        "node",
        [
            {"text": "!", "marks": ["bold"]},
            {"text": "!", "comments": [{"id": 1, "isLocal": True}]},
            {"tagName": "p", "isLocal": True, "children": []},
            {"text": "!", "seen": {"__t": "S", "__v": [{"__t": "D", "__v": 5}]}},
            "stray",
        ],
    )
    def test_all_nodes_and_attributes_of_a_rich_text_change_are_kept(self, node: Any) -> None:
        change = {"changeType": "rt", "op": 1, "start": 0, "values": [node]}
        edit = {"sc": "1", "dc": "2", "c": {"rt": [{"__t": "E", "__v": change}]}}
        assert canonical_edit(edit, REGISTRY) == edit
        assert canonical_edit(edit, REGISTRY, like_goatdb=True) == edit

    @pytest.mark.parametrize(
        "wrapped",
        [
            None,
            {},
            {"changeType": "fd"},
            {"__t": "E", "__v": {"changeType": "qq"}},
            {"__t": "E", "__v": {"changeType": "fd"}},
            {"__t": "E", "__v": {"changeType": "fd", "vType": ["set"]}},
            {"__t": "E", "__v": {"changeType": "rt", "values": [{"__t": "E", "__v": {}}]}},
        ],
    )
    def test_malformed_changes_are_refused(self, wrapped: Any) -> None:
        with pytest.raises(DecodeError):
            canonical_edit({"c": {"s": [wrapped]}}, REGISTRY)

    def test_a_change_of_a_set_without_a_value_makes_a_corrupted_commit(self) -> None:
        base = self.record(s="x")
        changes = {"set": [{"__t": "E", "__v": {"changeType": "fd", "operation": 1, "vType": "set"}}]}
        edit = canonical_edit(self.edit(base, base, changes), like_goatdb=True)
        assert edit["c"] == changes
        with pytest.raises(DecodeError):
            apply_edit(base, edit, REGISTRY)

    @pytest.mark.parametrize("kind", ["map", "date"])
    def test_a_change_of_a_map_or_date_without_a_value_cannot_be_read(self, kind: str) -> None:
        change = {"__t": "E", "__v": {"changeType": "fd", "operation": 1, "vType": kind}}
        with pytest.raises(DecodeError):
            canonical_edit({"c": {kind: [change]}})

    def test_a_set_never_takes_an_equal_object_twice(self) -> None:
        base = self.record(set={"__t": "S", "__v": [{"a": 0}]})
        changes = {"set": [change("set", 1, {"__t": "S", "__v": [{"a": ""}, {"a": 1}]})]}
        target = self.record(set={"__t": "S", "__v": [{"a": 0}, {"a": 1}]})
        assert apply_edit(base, self.edit(base, target, changes), REGISTRY) == target

    def test_data_of_an_unknown_schema_are_all_members(self) -> None:
        assert record_data({"s": "unknown/1", "d": {"a": 1, "b": None}}) == {"a": 1, "b": None}
