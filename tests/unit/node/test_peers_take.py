"""Peers accept every commit that a server makes or stores; otherwise replicas would differ permanently."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

import pytest

from goatherd.errors import ItemExistsError, ItemNotFoundError
from goatherd.node import concurrent_creation
from goatherd.node.engine import drive_inline
from goatherd.wire.schema import Registry
from tests.unit.goats import NOW, Node, commit_by, introduction, owned, root
from tests.unit.node.test_fuzz import NOTE

A, X = root("root-a"), owned("anon-x")
PATHS = ("/sys/sessions", "/data/known", "/data/unknown")
VALUES: dict[str, list[Any]] = {
    "text": ["", "x", "\u00e4\ud83d\ude00"],
    "tags": [{"__t": "S", "__v": each} for each in ([1], ["a", 1, {"b": 0.5}], [[], {}])],
    "more": [{"a": 1}, {"b": {"c": []}, "a": 2}, {}],
    "at": [1_700_000_000.5, 0],
}


def node() -> Node:
    made = Node(A, A, registry=Registry([NOTE]))
    made.pool.add_session_commit(introduction(X, A))
    return made


def data(lots: Random) -> dict[str, Any]:
    return {name: lots.choice(values) for name, values in VALUES.items() if lots.random() < 0.7} | {"text": "t"}


def act(made: Node, lots: Random, now_ms: int) -> None:
    """Perform random pushes of clients and writes of the server."""
    path, key = lots.choice(PATHS[1:]), lots.choice("abc")
    schema = "note/1" if path == "/data/known" else "other/7"
    kind = lots.randrange(5)
    with suppress(ItemExistsError, ItemNotFoundError):
        if kind == 0:
            made.create_item(path, key, schema, data(lots), now_ms)
        elif kind == 1:
            made.set_item(path, key, data(lots), now_ms)
        elif kind == 2:
            made.delete_item(path, key, now_ms)
        elif kind == 3:
            pushed = [
                commit_by(X, key, data(lots), schema=schema, ts=now_ms - n, registry=made.engine.registry)
                for n in range(lots.randint(1, 9))
            ]
            made.sync(X, path, commits=pushed, now_ms=now_ms)
        else:
            made.introduce_session(owned(f"user-{lots.randrange(3)}").session, now_ms)


@pytest.mark.parametrize("seed", range(15))
def test_whatever_a_server_makes_its_peers_take_in_any_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent_creation, "PORTION", 3)
    lots = Random(seed)
    one, other = node(), node()
    for step in range(30):
        act(one, lots, NOW + 1000 * step)
    for path in PATHS:
        made = [commit.to_json() for commit in one.repository(path)]
        lots.shuffle(made)
        done = drive_inline(other.engine.ingest_commits(path, made, NOW + 60_000))
        assert done.refused == []
        assert set(one.repository(path).ids) <= set(other.repository(path).ids)
