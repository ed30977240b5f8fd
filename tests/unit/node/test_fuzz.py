"""Malformed commits from a client affect only themselves: the batch is answered, and the repository can be opened."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from goatherd.errors import DecodeError, EncodeError
from goatherd.identity.session import sign_commit
from goatherd.node.concurrent_creation import merge_creations, unmerged_creations
from goatherd.node.repository import Repository
from goatherd.wire.commit import Commit
from goatherd.wire.schema import BUILTIN, Registry, Schema, SchemaField
from tests.fakes.memory_log import MemoryLog
from tests.unit.goats import NOW, ORG, Node, commit_by, element, introduction, new_id, owned, root, signed_header

A, X = root("root-a"), owned("anon-x")
PATH = "/data/test"
NOTE = Schema(
    ns="note",
    version=1,
    fields=tuple(
        SchemaField(name=name, type=kind)
        for name, kind in (("text", "string"), ("tags", "set"), ("more", "map"), ("at", "date"), ("body", "richtext"))
    ),
)
DATA: dict[str, Any] = {
    "text": "x",
    "tags": {"__t": "S", "__v": ["a", 1]},
    "more": {"a": 1},
    "at": 1_700_000_000.5,
    "body": {"root": {"tagName": "ref", "children": [{"text": "hi"}]}},
}
NONSENSE: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e308, 2**70, "", "x", "\ud800", "__proto__", "null/0", [], [[]], {}),
    *({"__t": "S"}, {"__t": "S", "__v": 5}, {"__t": "D", "__v": "x"}, {"__t": "E", "__v": {}}, {"__rId": 0}),
    *({"__r": [], "__d": {}}, {"hasOwnProperty": 1}, {"root": {"children": [5]}}, {"d": "AA==", "s": []}),
]


def change(kind: str, value: Any) -> dict[str, Any]:
    return {"__t": "E", "__v": {"changeType": "fd", "operation": 1, "vType": kind, "value": value}}


def delta(base: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {"b": base, "e": {"c": changes, "sc": "1", "dc": "2"}}


def signed(contents: Any, **more: Any) -> Any:
    """A commit with these contents, signed by X if it can be."""
    raw = {**commit_by(X, "k", {"text": "x"}, ts=NOW - 9000).to_json(), "id": new_id(), "c": contents, **more}
    try:
        return sign_commit(X, Commit.from_json(raw, org=ORG), now_ms=NOW - 9000).to_json()
    except (DecodeError, EncodeError):
        return raw


def node_of(registry: Registry = BUILTIN, **logs: Any) -> Node:
    node = Node(A, A, registry=registry, logs=logs.get("logs"))
    assert node.pool.add_session_commit(introduction(X, A))
    return node


def look(node: Node, commits: list[Any]) -> None:
    """Push commits, read what is stored, and open the repository again from its log."""
    body = json.dumps([element(PATH, commits)]).encode()
    assert node.send(body, signed_header(X)).status == 200
    node.repository(PATH).find_item("k")
    again = node_of(node.engine.registry, logs={PATH: json.loads(json.dumps(node.logs[PATH].read_records()))})
    assert again.stored(PATH) == node.stored(PATH)


@pytest.mark.parametrize(
    "contents",
    [
        {"r": {"s": "note/1", "d": {"tags": {"__t": "S"}}, "n": True, "cs": "1"}},
        {"r": {"s": "note/1", "d": {"tags": {"__t": "S", "__v": 5}}, "n": True, "cs": "1"}},
        {"r": {"s": "note/1", "d": {"tags": 5}, "n": True, "more": 1}},
    ],
    ids=["a set without elements", "a set of a number", "a record with another member in place of its checksum"],
)
def test_two_births_with_broken_contents_close_no_repository(contents: Any) -> None:
    node = node_of()
    look(node, [signed(contents), signed(contents)])
    assert len(node.stored(PATH)) == 3, "two births and their merge"


@pytest.mark.parametrize("wrong", [{"vType": {}}, {"vType": "set"}, {"vType": "map"}, {"vType": "map", "value": None}])
def test_a_delta_of_nonsense_is_refused_or_reads_as_its_base(wrong: dict[str, Any]) -> None:
    node = node_of()
    base = signed({"r": {"s": "note/1", "d": DATA, "n": True, "cs": "1"}})
    broken = {"__t": "E", "__v": {"changeType": "fd", "operation": 1, **wrong}}
    good = signed({"r": {"s": "note/1", "d": DATA, "n": True, "cs": "1"}}, k="other")
    look(node, [base, signed(delta(base["id"], {"tags": [broken]})), good])
    assert {base["id"], good["id"]} <= node.stored(PATH)
    item = node.repository(PATH).find_item("k")
    assert item is not None
    assert item.data == DATA


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield (*path, name)
        yield from places(one, (*path, name))


def spoilt(value: Any, dice: Random) -> Any:
    """Return the value with one to three places removed or replaced by random values."""
    value = copy.deepcopy(value)
    for _ in range(dice.randrange(1, 4)):
        *way, last = dice.choice(list(places(value)) or [("",)])
        inner = value
        for name in way:
            inner = inner[name]
        if last == "" or (dice.random() < 0.3 and len(inner) > 1):
            inner.pop(last, None) if isinstance(inner, dict) else inner.pop()
        else:
            inner[last] = copy.deepcopy(dice.choice(NONSENSE))
    return value


@pytest.mark.parametrize("registry", [BUILTIN, Registry([NOTE])], ids=["unknown schema", "known schema"])
@pytest.mark.parametrize("seed", range(4))
def test_spoilt_commits_cause_nothing_but_their_own_refusal(seed: int, registry: Registry) -> None:
    dice = Random(seed)
    record = {"s": "note/1", "d": DATA, "n": True, "cs": "1"}
    edit = delta("base", {"tags": [change("set", {"__t": "S", "__v": [1]})], "more": [change("map", {"a": 2})]})
    for _ in range(150):
        frame = {"k": "k", "s": "s", "ts": 1, "cid": "x", "ver": 1}
        raws = [
            {**frame, "id": "base", "c": {"r": spoilt(record, dice) if dice.random() < 0.5 else record}},
            {**frame, "id": "delta", "c": spoilt(edit, dice)},
            {**frame, "id": "birth", "c": {"r": spoilt(record, dice)}},
        ]
        found = Repository(
            PATH, MemoryLog(raws), org=ORG, connection="here", own_session=lambda: A.id, registry=registry
        )
        found.load_log()
        found.find_item("k")
        births = unmerged_creations(found, "k")
        if births:
            merge_creations(births, found, A.id)
        for commit in found:
            with suppress(EncodeError):
                commit.signed_text(X.id)
    node = node_of(registry)
    look(node, [spoilt(signed({"r": spoilt(record, dice)}), dice) for _ in range(10)])
    look(node, [signed({"r": spoilt(record, dice)}) for _ in range(10)])
