"""The commit graph: order, leaves, heads and values as in GoatDB, and writes that build on them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from goatherd.errors import DecodeError, EncodeError, ItemExistsError, ItemNotFoundError, PathError
from goatherd.identity.session import sign_commit
from goatherd.node.concurrent_creation import merge_creations, unmerged_creations
from goatherd.node.repository import MAX_CHAIN, Authorship, Repository
from goatherd.wire.commit import Commit
from goatherd.wire.schema import Registry, Schema, SchemaField
from tests.fakes.memory_log import MemoryLog
from tests.unit.goats import NOW, ORG, commit_by, introduction, new_id, new_seeds, owned, root

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/orders.json").read_text())
A, X = root("root-a"), owned("anon-x")
NOTE = Schema(
    ns="note",
    version=1,
    fields=(
        SchemaField(name="text", type="string", required=True),
        SchemaField(name="tags", type="set"),
        SchemaField(name="at", type="date"),
        SchemaField(name="kind", type="string", default=lambda _: "plain"),
    ),
)


def registry_of_the_vectors() -> Registry:
    return Registry(
        [
            Schema(
                ns=schema["ns"],
                version=schema["version"],
                fields=tuple(
                    SchemaField(name=f["name"], type=f["type"]) for f in schema["fields"] if f["name"] != "isDeleted"
                ),
            )
            for schema in VECTORS["schemas"]
            if schema["ns"]
        ]
    )


def repository(records: list[Any] | None = None, *, registry: Registry | None = None, **more: Any) -> Repository:
    raw = [each.to_json() if isinstance(each, Commit) else each for each in records or []]
    settings = {"connection": "here", "own_session": lambda: A.id, **more}
    found = Repository("/data/test", MemoryLog(raw), org=ORG, registry=registry or Registry([NOTE]), **settings)
    found.load_log()
    return found


def authorship(ts: int = NOW) -> Authorship:
    return Authorship(commit_id=new_id(), session_id=A.id, ts=ts, seeds=new_seeds)


def write(into: Repository, unsigned: Commit) -> Commit:
    signed = sign_commit(A, unsigned, now_ms=int(unsigned.ts))
    assert into.add_commit(signed)
    return signed


@pytest.mark.parametrize("graph", VECTORS["graphs"], ids=lambda graph: graph["name"])
def test_order_leaves_head_and_value_are_goatdbs(graph: dict[str, Any]) -> None:
    found = repository(
        graph["commits"], registry=registry_of_the_vectors(), connection="LOCAL", own_session=lambda: "ME"
    )
    assert [commit.id for commit in found.commits_of("k")] == graph["descending"]
    assert [commit.id for commit in found.find_leaves("k")] == graph["leaves"]
    head = found.find_head("k")
    assert (head.id if head else None) == graph["head"]
    assert {commit.id: found.is_readable(commit) for commit in found} == graph["has_item"]
    for commit_id, corrupted in graph["corrupted"].items():
        commit = found.get(commit_id)
        assert commit is not None
        assert (found.is_readable(commit) and found.build_record(commit) is None) == corrupted
    item = found.find_item("k")
    assert (item.data if item else None) == graph["value"]["d"]


def test_adding_twice_or_another_commit_of_the_same_id_changes_nothing() -> None:
    found = repository()
    first, second = (
        commit_by(X, "k", {"text": "1"}, commit_id="same"),
        commit_by(X, "k", {"text": "2"}, commit_id="same"),
    )
    assert found.add_commit(first)
    version = found.version
    assert not found.add_commit(first)
    assert not found.add_commit(second)
    assert (found.version, found.ids) == (version, ["same"])
    assert found.get("same") is first


def test_what_was_added_is_read_again_from_the_log() -> None:
    found = repository()
    commits = [commit_by(X, f"k{number}", {"text": "x"}) for number in range(3)]
    for commit in commits:
        found.add_commit(commit)
    again = repository(found.log.read_records())  # type: ignore[arg-type]
    assert list(again) == commits


def test_leaves_are_what_nothing_lists_as_a_parent_in_whatever_order_commits_come() -> None:
    dice = Random(7)
    commits: list[Commit] = []
    for number in range(60):
        parents = dice.sample([commit.id for commit in commits[-8:]], k=min(len(commits), dice.randrange(3)))
        commits.append(commit_by(X, f"k{number % 2}", {"text": "x"}, parents=[*parents, *parents[:1]]))
    for _ in range(10):
        found = repository()
        for count, commit in enumerate(dice.sample(commits, k=len(commits)), start=1):
            found.add_commit(commit)
            parents = {parent for one in found for parent in one.parents}
            for key in ("k0", "k1"):
                own = {one.id for one in found if one.key == key}
                assert {leaf.id for leaf in found.find_leaves(key)} == own - parents, count
                assert found.is_linked(key) == bool(own & parents)


def test_a_key_that_is_written_all_the_time_is_not_sorted_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found, last = repository(), ""
    for number in range(50):
        commit = commit_by(X, "k", {"text": "x"}, ts=NOW + number, parents=[last] if last else [])
        found.add_commit(commit)
        last = commit.id
    compared: list[str] = []
    monkeypatch.setattr(
        "goatherd.node.repository._commit_order", lambda commit: compared.append(commit.id) or (commit.ts, commit.id)
    )
    item = found.find_item("k")
    assert item is not None
    assert item.commit.id == last
    assert not unmerged_creations(found, "k")
    assert compared in ([], [last])


def test_create_set_and_delete_build_on_the_head() -> None:
    found = repository()
    first = write(found, found.build_create("k", "note/1", {"text": "1"}, **authorship()))
    second = write(found, found.build_set("k", {"text": "2"}, **authorship()))
    third = write(found, found.build_delete("k", **authorship()))
    assert (first.parents, second.parents, third.parents) == ((), (first.id,), (second.id,))
    assert (first.ancestors_count, second.ancestors_count, third.ancestors_count) == (0, 0, 1)
    assert third.ancestors_filter is not None
    assert first.id in third.ancestors_filter
    item = found.find_item("k")
    assert item is not None
    assert item.deleted
    assert item.data["text"] == "2"
    fourth = write(found, found.build_create("k", "note/1", {"text": "again"}, **authorship()))
    assert fourth.parents == (third.id,)


def test_create_refuses_what_is_there_and_set_and_delete_what_is_not() -> None:
    found = repository()
    with pytest.raises(ItemNotFoundError):
        found.build_set("k", {"text": "1"}, **authorship())
    write(found, found.build_create("k", "note/1", {"text": "1"}, **authorship()))
    with pytest.raises(ItemExistsError):
        found.build_create("k", "note/1", {"text": "1"}, **authorship())
    write(found, found.build_delete("k", **authorship()))
    with pytest.raises(ItemNotFoundError):
        found.build_delete("k", **authorship())


def test_data_of_a_known_schema_are_validated_and_normalized() -> None:
    found = repository()
    built = found.build_create("k", "note/1", {"text": "1", "tags": {"__t": "S", "__v": []}}, **authorship())
    assert built.data == {"text": "1", "kind": "plain"}
    bad: list[dict[str, Any]] = [{}, {"text": 5}, {"text": "1", "more": 1}, {"text": "1", "at": "now"}]
    for data in bad:
        with pytest.raises((EncodeError, DecodeError)):
            found.build_create("k", "note/1", data, **authorship())


@pytest.mark.parametrize("key", ["", "K", "a/b", "a.b", "ä"])
def test_keys_are_those_that_goatdb_allows(key: str) -> None:
    with pytest.raises(PathError):
        repository().build_create(key, "note/1", {"text": "1"}, **authorship())


def test_a_chain_of_deltas_has_an_end() -> None:
    base = commit_by(X, "k", {"text": "x"})
    records = [base.to_json()]
    for number in range(MAX_CHAIN + 5):
        records.append({**base.to_json(), "id": f"d{number}", "c": {"b": records[-1]["id"], "e": {"c": {}}}})
    found = repository(records)
    assert f"d{MAX_CHAIN - 2}" in found
    assert f"d{MAX_CHAIN - 1}" not in found
    assert repository(records[::-1]).find_item("k") is not None


def test_introductions_that_say_the_same_are_not_merged_and_others_are() -> None:
    """GoatDB does not merge equal introductions either, and its clients look only at commits without a child."""
    same = [introduction(root("root-b"), by).to_json() for by in (A, root("root-c"), A)]
    other = introduction(root("root-b", expiration_ms=NOW + 1), A).to_json()
    assert unmerged_creations(repository(same), "root-b") == []
    assert len(unmerged_creations(repository([*same, other]), "root-b")) == 4


def test_the_value_of_births_is_united_field_by_field_and_the_later_one_wins() -> None:
    births = [
        commit_by(
            X, "k", {"text": "1", "a": {"x": 1, "y": 1}, "tags": {"__t": "S", "__v": [1, 2]}}, ts=NOW, schema="free/1"
        ),
        commit_by(
            X,
            "k",
            {"text": "2", "a": {"y": 2}, "tags": {"__t": "S", "__v": [2, 3]}, "rt": {"root": {"children": []}}},
            ts=NOW + 1,
            schema="free/1",
        ),
        commit_by(
            X, "k", {"rt": {"root": {"children": [1]}}, "d": {"__t": "D", "__v": 1}}, ts=NOW + 2, schema="free/1"
        ),
    ]
    found = repository(births[::-1])
    assert unmerged_creations(found, "k") == births
    merge = merge_creations(births, found, A.id)
    assert merge is not None
    assert merge.data == {
        "text": "2",
        "a": {"x": 1, "y": 2},
        "tags": {"__t": "S", "__v": [1, 2, 3]},
        "rt": {"root": {"children": [1]}},
        "d": {"__t": "D", "__v": 1},
    }
    assert merge.parents == tuple(each.id for each in births)
    assert merge.ts == NOW + 3
    found.add_commit(sign_commit(A, merge, now_ms=NOW + 3))
    assert unmerged_creations(found, "k") == []
    assert found.find_head("k") is not None


@pytest.mark.parametrize("odd", [{"__t": "S"}, {"__t": "S", "__v": 5}, {"__t": "S", "__v": {"a": 1}}])
def test_a_marker_without_what_it_marks_does_not_keep_births_from_being_merged(odd: Any) -> None:
    good = {"__t": "S", "__v": [1]}
    for first, second in ((odd, good), (good, odd), (odd, odd)):
        births = [
            commit_by(X, "k", {"tags": each}, ts=NOW + n, schema="free/1") for n, each in enumerate((first, second))
        ]
        merge = merge_creations(births, repository(births), A.id)
        assert merge is not None
        assert merge.data == {"tags": second}


def test_children_of_one_commit_are_not_births() -> None:
    base = commit_by(X, "k", {"text": "0"})
    leaves = [commit_by(X, "k", {"text": str(n)}, parents=[base.id]) for n in range(2)]
    assert unmerged_creations(repository([base, *leaves]), "k") == []
    orphans = [commit_by(X, "k", {"text": str(n)}, parents=["unknown"]) for n in range(2)]
    assert len(unmerged_creations(repository(orphans), "k")) == 2
