"""Server and door check the form of a commit with the same function, and the door names the rule."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from goatherd.admission.commits import CommitFault, NotAdmittedError, decode_commit, is_nested_deeper
from goatherd.admission.requests import RequestLimits
from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import DoorRule, DroppedError
from goatherd.door.request_checks import read_commit as read_at_door
from goatherd.node.commit_checks import read_commit as read_at_node
from goatherd.node.views import SyncLimits
from goatherd.wire.bloom import BloomFilter
from tests.unit.goats import NOW, ORG, Node, commit_by, introduction, owned, root

A, X = root("root-a"), owned("x")
COMMIT = commit_by(X, "k", {"text": "x"}).to_json()
AHEAD_MS = RequestLimits().ahead / timedelta(milliseconds=1)
WIDE = BloomFilter(b"\1", tuple(range(RequestLimits().seeds + 1))).to_json()


def of_text(value: Any) -> dict[str, Any]:
    return {"r": {"s": "note/1", "d": {"text": value}, "n": True, "cs": "1"}}


FAULTS = [
    pytest.param({"id": "no id"}, CommitFault.COMMIT, id="id"),
    pytest.param({"k": "No Key"}, CommitFault.COMMIT, id="key"),
    pytest.param({"ts": 0}, CommitFault.TIME, id="no time"),
    pytest.param({"ts": NOW + AHEAD_MS + 1}, CommitFault.TIME, id="future"),
    pytest.param({"p": [COMMIT["id"]]}, CommitFault.ANCESTORS, id="its own parent"),
    pytest.param({"p": [f"p{n}" for n in range(RequestLimits().parents + 1)]}, CommitFault.ANCESTORS, id="parents"),
    pytest.param({"af": WIDE}, CommitFault.ANCESTORS, id="filter"),
    pytest.param({"ac": -1}, CommitFault.ANCESTORS, id="ancestors count"),
    pytest.param({"c": {"r": {"s": "null", "d": {}, "n": True, "cs": "1"}}}, CommitFault.CONTENTS, id="null item"),
    pytest.param({"c": of_text({"__rId": 0})}, CommitFault.CONTENTS, id="reference"),
    pytest.param({"c": of_text([{"__r": [{}], "__d": {}}, {"__rId": 0}])}, CommitFault.CONTENTS, id="later reference"),
    pytest.param({"zz": [{"__rId": 1.5, "x": 1}]}, CommitFault.CONTENTS, id="reference in an unknown member"),
    pytest.param({"c": introduction(X, A).to_json()["c"]}, CommitFault.SESSION_ITEM, id="session elsewhere"),
    pytest.param({"c": {"b": "x", "e": {"c": {}, "s": "sessions"}}}, CommitFault.SESSION_ITEM, id="delta of a session"),
]


@pytest.mark.parametrize(("change", "fault"), FAULTS)
def test_node_and_door_reject_the_same_form(change: dict[str, Any], fault: CommitFault) -> None:
    raw = {**COMMIT, **change}
    with pytest.raises(NotAdmittedError) as at_node:
        read_at_node(raw, Node(A, A).engine.get_repository("/data/a"), SyncLimits(), NOW)
    with pytest.raises(DroppedError) as at_door:
        read_at_door(raw, "/data/a", org=ORG, limits=DoorLimits(), now_ms=NOW)
    assert at_node.value.fault is fault
    assert at_door.value.rule is DoorRule(fault.value)
    assert str(at_door.value) == str(at_node.value)


@pytest.mark.parametrize("value", [{"hasOwnProperty": 1}, [[{"__t": "E", "__v": {}}]]], ids=["method", "marker"])
def test_values_that_goatdb_cannot_write_again_are_rejected_in_an_unknown_schema(value: Any) -> None:
    with pytest.raises(NotAdmittedError) as caught:
        decode_commit({**COMMIT, "c": of_text({"x": value})}, "/data/a", org=ORG, limits=RequestLimits(), now_ms=NOW)
    assert caught.value.fault is CommitFault.CONTENTS


@pytest.mark.parametrize(
    "text",
    [
        {
            "__r": [{"text": "x"}],
            "__d": {"root": {"children": [{"__rId": 0}]}, "more": {"__r": [], "__d": {"__rId": 1}}},
        },
        {"__rId": "0"},
        [{"__r": {}, "__rId": True}],
    ],
    ids=["rich text with a pointer", "a string", "no number"],
)
def test_references_in_their_place_are_accepted(text: Any) -> None:
    raw = {**COMMIT, "c": of_text(text)}
    assert decode_commit(raw, "/data/a", org=ORG, limits=RequestLimits(), now_ms=NOW).contents == raw["c"]


def test_a_session_repository_holds_sessions_only() -> None:
    with pytest.raises(NotAdmittedError) as caught:
        decode_commit(COMMIT, "/sys/sessions", org=ORG, limits=RequestLimits(), now_ms=NOW)
    assert caught.value.fault is CommitFault.SESSION_ITEM


def test_every_fault_is_a_rule_of_the_door() -> None:
    assert {fault.value for fault in CommitFault} <= {rule.value for rule in DoorRule}


def test_the_same_limits_apply_unless_one_of_the_two_says_otherwise() -> None:
    node, door = SyncLimits(), DoorLimits()
    names = RequestLimits.__dataclass_fields__
    assert {name for name in names if getattr(node, name) != getattr(door, name)} == {"elements"}


@pytest.mark.parametrize(("depth", "expected"), [(1, True), (2, True), (3, False), (64, False)])
def test_nesting_is_counted_in_objects_and_arrays(depth: int, expected: bool) -> None:
    assert is_nested_deeper({"a": [{"b": 1}]}, depth) is expected


def test_a_forbidden_member_is_found_at_any_depth() -> None:
    assert is_nested_deeper({"a": [{"__proto__": 1}]}, 64, ("__proto__",))
    assert not is_nested_deeper({"a": ["__proto__"]}, 64, ("__proto__",))
