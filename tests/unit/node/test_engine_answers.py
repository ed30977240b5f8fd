"""The engine's answers: who may read what, and the cost of an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from goatherd.admission.access import Access, AccessRule
from goatherd.node.views import SyncLimits
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from goatherd.wire.messages import VERSION
from tests.unit.goats import (
    NOW,
    Node,
    commit_by,
    element,
    introduction,
    owned,
    root,
    signed_header,
)

A, B = root("root-a"), root("root-b")
X, Y, U = owned("anon-x"), owned("anon-y"), owned("user-s", "u1")


def note(author: Any, key: str = "k", text: str = "x", **more: Any) -> Commit:
    return commit_by(author, key, {"text": text}, **more)


def ids(message: dict[str, Any]) -> set[str]:
    return {each["id"] for each in message["c"]}


def test_a_reply_holds_what_the_filter_lacks_and_a_truthful_filter(node: Node) -> None:
    commits = [note(X, f"k{number}") for number in range(20)]
    held = BloomFilter(bytes(256), (1, 2, 3))
    held.bits[:] = bytes(256)
    for commit in commits[:10]:
        held.add(commit.id)
    node.sync(X, commits=commits)
    answer = node.sync(Y, held=held)
    assert ids(answer) == {commit.id for commit in commits[10:]}
    assert (answer["s"], answer["ver"]) == (20, VERSION)
    mine = BloomFilter.from_json(answer["f"]["__v"])
    assert all(commit.id in mine for commit in commits)


def test_an_introduction_that_a_log_holds_outside_the_sessions_is_sent_to_no_client() -> None:
    introduced, mine = introduction(B, A), note(A)
    node = Node(A, A, logs={"/data/test": [mine.to_json(), introduced.to_json()]})
    node.pool.add_session_commit(introduction(X, A))
    assert node.stored() == {introduced.id, mine.id}
    assert ids(node.sync(X)) == {mine.id}


@pytest.mark.parametrize("version", [VERSION - 256, None, "x"])
def test_an_older_build_gets_a_count_and_nothing_else(node: Node, version: Any) -> None:
    node.sync(X, commits=[note(X)])
    answer = node.sync(X, version=version)
    assert (answer["c"], answer["s"]) == ([], 1)
    assert not any(BloomFilter.from_json(answer["f"]["__v"]).bits)


def test_a_count_that_cannot_be_true_does_not_size_our_filter(node: Node) -> None:
    for size in (10**8, 10**300, -5, "x", None):
        answer = node.send([element("/data/test", size=size)], signed_header(X))
        assert len(answer.body) < 8000


def test_the_answer_to_new_commits_is_sized_for_one_round(node: Node) -> None:
    commits = [note(X, f"k{number}") for number in range(100)]
    first = BloomFilter.from_json(node.sync(X, commits=commits)["f"]["__v"])
    second = BloomFilter.from_json(node.sync(X, commits=commits)["f"]["__v"])
    assert len(first.bits) > 2 * len(second.bits)


def test_the_same_path_twice_and_paths_as_given_are_answered_in_order(node: Node) -> None:
    commit = note(X)
    paths = ["data/test", "/data/test/some-key", "/data/test"]
    response = node.send([element(path, [commit]) for path in paths], signed_header(X))
    answers = json.loads(response.body)
    assert [answer["path"] for answer in answers] == paths
    assert [answer["res"]["s"] for answer in answers] == [1, 1, 1]


def test_a_reply_is_capped_and_the_rest_follows() -> None:
    node = Node(A, A, limits=SyncLimits(reply_commits=7))
    node.sync(A, commits=[note(A, f"k{number}") for number in range(20)])
    held = BloomFilter(bytearray(512), (1, 2, 3))
    rounds = 0
    while missing := node.sync(A, held=held)["c"]:
        assert len(missing) <= 7
        for each in missing:
            held.add(each["id"])
        rounds += 1
    assert rounds == 3


def test_the_commits_of_a_reply_are_bounded_in_bytes_and_the_rest_follows() -> None:
    commits = [note(A, f"k{number}", "x" * 1000) for number in range(20)]
    node = Node(A, A, limits=SyncLimits(reply_commit_bytes=7000))
    node.sync(A, commits=commits)
    held = BloomFilter(bytearray(512), (1, 2, 3))
    rounds = 0
    while missing := node.sync(A, held=held)["c"]:
        assert len(json.dumps(missing)) < 8000
        held.update([each["id"] for each in missing])
        rounds += 1
    assert rounds >= 4
    assert all(commit.id in held for commit in commits)


def test_a_commit_that_is_larger_than_the_bound_is_sent_alone() -> None:
    large, small = note(A, "large", "x" * 10_000), note(A, "small", "x")
    node = Node(A, A, limits=SyncLimits(reply_commit_bytes=7000))
    node.sync(A, commits=[large, small])
    assert [each["id"] for each in node.sync(A)["c"]] == [large.id]


def test_an_answer_that_everything_is_asked_for_a_hundred_times_stays_bounded() -> None:
    node = Node(A, A, limits=SyncLimits(reply_bytes=20_000))
    commits = [note(A, f"k{number}") for number in range(30)]
    node.sync(A, commits=commits)
    response = node.send([element("/data/test")] * 100, signed_header(A))
    answers = [answer["res"] for answer in json.loads(response.body)]
    assert [answer["s"] for answer in answers] == [30] * 100
    assert len(response.body) < 20_000 + 100 * 200, "what is left of an element is next to nothing"
    shown = {answer["f"]["__v"]["d"] for answer in answers}
    assert "AA==" in shown, "beyond the limit a filter claims nothing; it never claims too much"
    held = BloomFilter(bytearray(512), (1, 2, 3))
    while missing := node.sync(A, held=held)["c"]:
        held.update([each["id"] for each in missing])
    assert all(commit.id in held for commit in commits)


@pytest.mark.slow
def test_an_answer_that_is_asked_for_a_thousand_times_is_looked_for_a_few_times_and_stays_true_otherwise() -> None:
    node = Node(A, A, limits=SyncLimits(reply_lookups=30 * 66 * 5))
    commits = [note(A, f"k{number}") for number in range(30)]
    node.sync(A, commits=commits)
    dear = BloomFilter(bytearray(4096), tuple(range(64)))
    response = node.send([element("/data/test", held=dear)] * 1000, signed_header(A))
    answers = [answer["res"] for answer in json.loads(response.body)]
    assert sorted(len(answer["c"]) for answer in answers) == [0] * 995 + [30] * 5
    for answer in answers:
        shown = BloomFilter.from_json(answer["f"]["__v"])
        assert answer["s"] == 30
        assert all(commit.id in shown for commit in commits)


def test_no_repository_waits_for_ever_behind_the_others_of_its_batch_nor_one_that_is_too_large_for_an_answer() -> None:
    node = Node(A, A, limits=SyncLimits(reply_lookups=100))
    paths = ["/data/a", "/data/b", "/data/c"]
    for path in paths:
        node.sync(A, path, commits=[note(A, f"k{number}") for number in range(20)])
    held = {path: BloomFilter(bytearray(512), (1, 2, 3, 4)) for path in paths}
    lacking = set(paths)
    for _ in range(200):
        if not lacking:
            break
        response = node.send([element(path, held=held[path]) for path in paths], signed_header(A))
        answers = {answer["path"]: answer["res"]["c"] for answer in json.loads(response.body)}
        assert sum(bool(commits) for commits in answers.values()) <= 1
        for path, commits in answers.items():
            held[path].update([each["id"] for each in commits])
        lacking -= {path for path, commits in answers.items() if commits}
    assert not lacking


def test_a_commit_larger_than_an_answer_may_be_is_answered_alone() -> None:
    node = Node(A, A, limits=SyncLimits(reply_bytes=100))
    commits = [note(A, f"k{number}") for number in range(2)]
    node.sync(A, commits=commits)
    assert ids(node.sync(A)) == {commits[0].id}


def test_a_filter_over_many_commits_is_used_again_and_stays_truthful(node: Node) -> None:
    records = [note(A, f"k{number}").to_json() for number in range(250)]
    big = Node(A, A, logs={"/data/test": records})
    first = big.sync(A)["f"]
    assert big.sync(A)["f"] == first
    extra = note(A, "extra")
    big.sync(A, commits=[extra])
    assert extra.id in BloomFilter.from_json(big.sync(A)["f"]["__v"])
    assert big.sync(A, now_ms=NOW + 1001)["f"] != first


def test_one_who_only_pushes_gets_the_same_filter_extended_and_one_who_asks_for_filters_gets_new_ones() -> None:
    everything = BloomFilter(bytearray(2), ())
    big = Node(A, A, logs={"/data/test": [note(A, f"k{number}").to_json() for number in range(250)]})

    def push(number: int) -> BloomFilter:
        commit = note(A, f"new-{number}")
        answer = big.sync(A, commits=[commit], held=everything, now_ms=NOW + number * 60_000)
        assert (answer["s"], answer["c"]) == (251 + number, [])
        found = BloomFilter.from_json(answer["f"]["__v"])
        assert all(held in found for held in big.stored())
        return found

    assert {push(number).seeds for number in range(3)} == {push(3).seeds}
    asked = [big.sync(A, held=everything, now_ms=NOW + number * 60_000)["f"]["__v"] for number in range(4, 7)]
    assert len({BloomFilter.from_json(each).seeds for each in asked}) == 3


def test_application_rules_decide_reads_by_owner_and_writes_by_author() -> None:
    def allow(access: Access) -> bool:
        if access.operation == "write":
            return access.session.id == X.id
        return access.key.startswith("open") or access.session.owner == "u1"

    node = Node(A, A, rules=[AccessRule("/data/test", allow)])
    node.create_item("/sys/users", "u1", "user/1", {"name": "Ann"}, NOW)
    for session in (X, Y, U):
        node.pool.add_session_commit(introduction(session, A))
    mine, secret, others = note(X, "open-1"), note(X, "shut"), note(Y, "open-2")
    assert ids(node.sync(Y, commits=[mine, secret, others])) == {mine.id}
    assert ids(node.sync(U)) == {mine.id, secret.id}
    assert node.sync(A)["s"] == 2


def test_an_owner_of_a_big_private_repository_is_not_asked_about_key_by_key(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.create_item("/sys/users", "u1", "user/1", {"email": "u1@goats.test"}, NOW)
    commits = [note(U, f"k{number}") for number in range(20)]
    asked: list[str] = []
    monkeypatch.setattr("goatherd.node.views.apply_rule", lambda _, access: asked.append(access.key) or True)
    assert ids(node.sync(U, "/user/u1", commits)) == {commit.id for commit in commits}
    assert node.sync(X, "/user/u1")["s"] == 0
    assert node.sync(A, "/user/u1")["s"] == 20
    assert not asked


def test_a_rule_that_raises_allows_nothing_and_affects_no_other_repository() -> None:
    def broken(access: Access) -> bool:
        raise RuntimeError(access.key)

    node = Node(A, A, rules=[AccessRule("/data/test", broken)])
    node.pool.add_session_commit(introduction(X, A))
    assert node.sync(X, commits=[note(X)])["s"] == 0
    assert node.sync(X, "/data/other", [note(X)])["s"] == 1
