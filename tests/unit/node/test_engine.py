"""Request in, response out: who gets in, what is stored, who sees what."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from goatherd.admission.access import Access, AccessRule
from goatherd.admission.commits import NotAdmittedError
from goatherd.crypto import PrivateKey
from goatherd.errors import AccessDeniedError, DecodeError, StorageError, VerificationError
from goatherd.identity.session import sign_commit, verify_commit
from goatherd.identity.session_commits import session_fields
from goatherd.node.engine import Step, drive, drive_inline
from goatherd.node.views import SyncLimits
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from goatherd.wire.messages import VERSION
from goatherd.wire.schema import Field, Registry, Schema
from tests.unit.goats import (
    DAY,
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


@pytest.fixture
def node() -> Node:
    made = Node(A, A)
    for session in (X, Y, U):
        assert made.pool.add_session_commit(introduction(session, A))
    return made


def note(author: Any, key: str = "k", text: str = "x", **more: Any) -> Commit:
    return commit_by(author, key, {"text": text}, **more)


def ids(message: dict[str, Any]) -> set[str]:
    return {each["id"] for each in message["c"]}


# --- who gets in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"[", b"{}", b"null", b'"x"', b"\xff"])
def test_a_body_that_is_no_array_is_400(node: Node, body: bytes) -> None:
    assert node.send(body, signed_header(X)).status == 400


@pytest.mark.parametrize("header", [None, ""])
def test_a_missing_signature_is_400(node: Node, header: str | None) -> None:
    assert node.send([], header).status == 400


def test_an_unknown_session_is_403_without_cors_and_without_effect(node: Node) -> None:
    response = node.send([element("/data/new", [note(X)])], signed_header(owned("nobody")))
    assert (response.status, response.body, response.cors) == (403, b"", False)
    assert "/data/new" not in node.logs


def test_an_expired_session_is_403_but_what_it_signed_in_time_is_stored(node: Node) -> None:
    late = NOW + 31 * DAY
    node.engine.introduce(replace(Y.session, id="late", expiration_ms=late + DAY), NOW)
    assert node.send([], signed_header(X, late), now_ms=late).status == 403
    sender = replace(Y, session=node.pool.session("late"))
    node.sync(sender, commits=[note(X)], now_ms=late)
    assert len(node.stored()) == 1


def test_a_session_with_an_owner_needs_a_user_who_is_there_and_not_deleted(node: Node) -> None:
    assert node.send([], signed_header(U)).status == 403
    node.engine.create("/sys/users", "u1", "user/1", {"name": "Ann"}, NOW)
    assert node.send([], signed_header(U)).status == 200
    node.engine.delete("/sys/users", "u1", NOW + 1)
    assert node.send([], signed_header(U)).status == 403


@pytest.mark.parametrize(
    "bad",
    [
        None,
        5,
        {},
        {"path": "/data/x"},
        {"path": "/data/x", "msg": None},
        {"path": "/data/x", "msg": {}},
        {"path": 5, "msg": element("/data/x")["msg"]},
        {"path": "/data/x", "msg": {**element("/data/x")["msg"], "c": None}},
        {"path": "/data/x", "msg": {**element("/data/x")["msg"], "f": {"d": "***", "s": [1]}}},
        {"path": "/data/x", "msg": {**element("/data/x")["msg"], "f": {"d": "AA==", "s": list(range(65))}}},
        element("/data/../x"),
        element("/data"),
    ],
    ids=str,
)
def test_one_malformed_element_refuses_the_batch_before_anything_happens(node: Node, bad: Any) -> None:
    assert node.send([element("/data/test", [note(X)]), bad], signed_header(X)).status == 400
    assert "/data/test" not in node.logs


def test_a_batch_of_too_many_elements_is_refused() -> None:
    node = Node(A, A, limits=SyncLimits(elements=2))
    assert node.send([element("/data/x")] * 2, signed_header(A)).status == 200
    assert node.send([element("/data/x")] * 3, signed_header(A)).status == 400


def test_a_filter_of_too_many_bytes_is_refused() -> None:
    node = Node(A, A, limits=SyncLimits(filter_bytes=8))
    assert node.send([element("/data/x", held=BloomFilter(bytes(8), (1,)))], signed_header(A)).status == 200
    assert node.send([element("/data/x", held=BloomFilter(bytes(9), (1,)))], signed_header(A)).status == 400


# --- what is stored -----------------------------------------------------------------------------------------------


def test_good_commits_are_stored_and_bad_ones_are_silently_refused(node: Node) -> None:
    good = [note(X), note(Y, "k2"), note(A, "k3", schema="unheard-of/3")]
    bad: list[Any] = [
        replace(note(X, "b1"), signature=None),
        replace(note(X, "b2"), ts=NOW + 1),
        note(owned("nobody"), "b3"),
        note(X, "b4", claimed=Y.id),
        note(X, "B5"),
        note(X, "b6", commit_id="with space"),
        5,
        None,
        {},
        {"id": "x"},
    ]
    header, body = signed_header(X), json.dumps([element("/data/test", [*bad, *good])]).encode()
    response = drive_inline(node.engine.batch_sync(header, body, NOW))
    assert response.status == 200
    assert response.flush == response.changed_paths == {"/data/test"}
    assert node.stored() == {commit.id for commit in good}
    assert len(response.refused) == len(bad)


def test_a_request_that_brings_nothing_asks_for_no_flush(node: Node) -> None:
    node.sync(X, commits=[note(X)])
    response = node.send([element("/data/test", [*node.repository("/data/test")])], signed_header(X))
    assert not response.flush
    assert not response.refused


def test_one_commit_in_two_repositories_is_news_in_both(node: Node) -> None:
    commit = note(X)
    response = node.send([element("/data/a", [commit, commit]), element("/data/b", [commit])], signed_header(X))
    assert response.flush == response.changed_paths == {"/data/a", "/data/b"}
    assert node.stored("/data/a") == node.stored("/data/b") == {commit.id}


def test_of_two_requests_that_bring_the_same_commit_at_once_one_brings_it(node: Node) -> None:
    body = json.dumps([element("/data/test", [note(X)])]).encode()
    requests = [node.engine.batch_sync(signed_header(X), body, NOW) for _ in range(2)]
    reading = [next(request) for request in requests]
    verifying = [request.send(step.run()) for request, step in zip(requests, reading, strict=True)]
    news: list[frozenset[str]] = []
    for request, step in zip(requests, verifying, strict=True):
        with pytest.raises(StopIteration) as done:
            request.send(step.run())
        news.append(done.value.value.changed_paths)
    assert news == [{"/data/test"}, set()]


def test_the_log_holds_what_was_stored_and_a_restart_finds_it(node: Node) -> None:
    commit = note(X)
    node.sync(X, commits=[commit])
    again = Node(A, A, logs={"/data/test": node.logs["/data/test"].records()})
    assert list(again.repository("/data/test")) == [commit]


def test_sessions_and_what_they_sign_may_come_in_one_batch_in_any_order() -> None:
    node = Node(A, A)
    newcomer = owned("newcomer")
    batch = [
        element("/data/test", [note(newcomer)]),
        element("/sys/sessions", [introduction(newcomer, B), introduction(B, A)]),
    ]
    assert node.send(batch, signed_header(A)).status == 200
    assert len(node.stored()) == 1
    assert len(node.stored("/sys/sessions")) == 2
    assert node.pool.root_ids == ("root-a", "root-b")


def test_nobody_but_a_root_writes_sessions(node: Node) -> None:
    node.sync(X, "/sys/sessions", [introduction(owned("friend"), X), introduction(owned("evil", "root"), X)])
    assert not node.stored("/sys/sessions")


@pytest.mark.parametrize(
    "commit",
    [
        commit_by(A, "thing", {"text": "x"}),
        commit_by(A, "thing", {"id": "thing"}, schema="sessions/1"),
        introduction(X, A, key="thing"),
    ],
    ids=["another schema", "no session", "another key"],
)
def test_what_is_no_session_is_not_stored_among_sessions_even_for_a_root(node: Node, commit: Commit) -> None:
    node.sync(A, "/sys/sessions", [commit])
    assert not node.stored("/sys/sessions")


def test_a_root_revoked_while_its_commits_are_being_verified_gets_nothing_in() -> None:
    node = Node(A, A, B)
    steps = node.engine.batch_sync(signed_header(A), json.dumps([element("/data/test", [note(B)])]).encode(), NOW)
    step = next(steps)
    while True:
        result = step.run()
        node.pool.replace(current=A, roots=[A.session, B.session], revoked=["root-b"])
        try:
            step = steps.send(result)
        except StopIteration:
            break
    assert not node.stored()


def test_two_requests_at_once_over_a_new_repository_share_it(node: Node) -> None:
    bodies = [json.dumps([element("/data/new", [note(X, f"k{n}")])]).encode() for n in range(2)]
    running = [node.engine.batch_sync(signed_header(X), body, NOW) for body in bodies]
    steps: list[Step | None] = [next(each) for each in running]
    while any(steps):
        for number, step in enumerate(steps):
            if step is not None:
                try:
                    steps[number] = running[number].send(step.run())
                except StopIteration:
                    steps[number] = None
    assert node.repository("/data/new").item_keys() == ["k0", "k1"]
    assert len(node.logs["/data/new"].records()) == 2


def test_a_log_that_cannot_be_read_is_an_error_and_leaves_nothing_open(node: Node) -> None:
    def broken(path: str) -> Any:
        raise StorageError(f"{path}: broken")

    node.engine._open_log = broken  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        node.send([element("/data/test"), element("/data/other")], signed_header(X))
    assert set(node.engine.repositories) == {"/sys/sessions", "/sys/users"}


def test_steps_run_in_threads_and_their_errors_come_back(node: Node) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as workers, ThreadPoolExecutor(2) as verifiers:

            async def run(step: Step) -> Any:
                return await loop.run_in_executor(workers, step.run, verifiers)

            commits = [note(X, f"k{number}") for number in range(40)]
            body = json.dumps([element("/data/test", commits)]).encode()
            response = await drive(node.engine.batch_sync(signed_header(X), body, NOW), run)
            assert response.status == 200
            assert len(node.stored()) == 40

            def broken(path: str) -> Any:
                raise StorageError(path)

            node.engine._open_log = broken  # type: ignore[method-assign]
            with pytest.raises(StorageError):
                await drive(node.engine.opening("/data/broken"), run)

    asyncio.run(work())


def test_pulled_commits_pass_the_same_checks_as_pushed_ones(node: Node) -> None:
    good, forged = note(X), note(X, claimed=A.id)
    done = drive_inline(node.engine.ingest("/data/test", [good.to_json(), forged.to_json(), 5], NOW))
    assert done.accepted == [good]
    assert [commit_id for commit_id, _ in done.refused] == ["", forged.id]
    assert isinstance(done.refused[1][1], VerificationError)


@pytest.mark.parametrize(
    "changes",
    [
        {"ts": "soon"},
        {"ts": -1},
        {"ts": 0},
        {"id": 5},
        {"k": 5},
        {"k": ""},
        {"k": "k" * 201},
        {"p": [f"p{n}" for n in range(1001)]},
        {"ac": -1},
        {"af": {"d": "AA==", "s": list(range(65))}},
        {"c": {}},
        {"c": {"r": {"s": "null", "d": {}, "n": False, "cs": "3320765784"}}},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_what_goatdb_never_writes_is_refused_before_its_signature_is_looked_at(node: Node, changes: Any) -> None:
    done = drive_inline(node.engine.ingest("/data/test", [{**note(X).to_json(), **changes}], NOW))
    assert isinstance(done.refused[0][1], DecodeError)


@pytest.mark.parametrize(
    "fields",
    [
        {"at": 2e15},
        {"tags": {"__t": "S", "__v": [{"__r": [{"x": 1}], "__d": {"a": {"__rId": 0}, "b": {"__rId": 0}}}]}},
    ],
    ids=["a date after the year 33658", "an object met twice"],
)
def test_what_the_next_reader_would_find_changed_is_refused(fields: dict[str, Any]) -> None:
    registry = Registry(
        [Schema(ns="task", version=1, fields=(Field(name="at", type="date"), Field(name="tags", type="set")))]
    )
    node = Node(A, A, registry=registry)
    raw = commit_by(A, "k", fields, schema="task/1").to_json()
    signed = Commit.from_json(raw, org="localhost", registry=registry)
    raw["sig"] = sign_commit(A, signed, now_ms=NOW).signature
    verify_commit(A.session, Commit.from_json(raw, org="localhost", registry=registry))
    done = drive_inline(node.engine.ingest("/data/test", [raw], NOW))
    assert "read again" in str(done.refused[0][1])
    same = commit_by(A, "k", {"at": 1700000000000, "tags": {"__t": "S", "__v": [1, 1]}}, schema="task/1").to_json()
    same["sig"] = sign_commit(A, Commit.from_json(same, org="localhost", registry=registry), now_ms=NOW).signature
    assert drive_inline(node.engine.ingest("/data/test", [same], NOW)).refused == []


@pytest.mark.parametrize(
    "contents",
    [
        {"r": {"s": f"note/{'9' * 5000}", "d": {}, "n": True, "cs": "1"}},
        {"r": {"s": "sessions/1", "d": {"id": {"__r": [], "__d": {"x": {"__rId": math.inf}}}}, "n": True, "cs": "1"}},
        {"r": {"s": "strange/1", "d": {}, "n": True, "age": 1}},
        {"b": "x", "e": {"c": {"m": [{"__t": "E", "__v": {"changeType": "fd", "operation": 1, "vType": []}}]}}},
    ],
    ids=["a version of 5000 digits", "an infinite reference", "no checksum", "a value type that is no text"],
)
def test_odd_contents_harm_nothing_else_in_the_batch(node: Node, contents: Any) -> None:
    good = note(X)
    done = drive_inline(
        node.engine.ingest("/data/test", [note(X, "k2").to_json() | {"c": contents}, good.to_json()], NOW)
    )
    assert done.accepted == [good]
    assert len(done.refused) == 1


def test_contents_nested_without_end_are_refused(node: Node) -> None:
    deep: Any = "x"
    for _ in range(70):
        deep = {"n": deep}
    done = drive_inline(node.engine.ingest("/data/test", [note(X, schema="deep/1").to_json() | {"c": deep}], NOW))
    assert "nested" in str(done.refused[0][1])


def test_a_key_keeps_its_schema_and_known_schemas_are_checked() -> None:
    schema = Schema(ns="task", version=1, fields=(Field(name="title", type="string", required=True),))
    node = Node(A, A, registry=Registry([schema]))
    good = commit_by(A, "k", {"title": "x"}, schema="task/1")
    other = commit_by(A, "k", {"text": "x"}, schema="note/1", parents=[good.id])
    empty = commit_by(A, "k2", {}, schema="task/1")
    wrong = commit_by(A, "k3", {"title": 5}, schema="task/1")
    node.sync(A, commits=[good, other, empty, wrong])
    assert node.stored() == {good.id}


# --- who sees what ------------------------------------------------------------------------------------------------


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


def test_application_rules_decide_reads_by_owner_and_writes_by_author() -> None:
    def allow(access: Access) -> bool:
        if access.operation == "write":
            return access.session.id == X.id
        return access.key.startswith("open") or access.session.owner == "u1"

    node = Node(A, A, rules=[AccessRule("/data/test", allow)])
    node.engine.create("/sys/users", "u1", "user/1", {"name": "Ann"}, NOW)
    for session in (X, Y, U):
        node.pool.add_session_commit(introduction(session, A))
    mine, secret, others = note(X, "open-1"), note(X, "shut"), note(Y, "open-2")
    assert ids(node.sync(Y, commits=[mine, secret, others])) == {mine.id}
    assert ids(node.sync(U)) == {mine.id, secret.id}
    assert node.sync(A)["s"] == 2


def test_an_owner_of_a_big_private_repository_is_not_asked_about_key_by_key(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.engine.create("/sys/users", "u1", "user/1", {"email": "u1@goats.test"}, NOW)
    commits = [note(U, f"k{number}") for number in range(20)]
    asked: list[str] = []
    monkeypatch.setattr("goatherd.node.views.apply_rule", lambda _, access: asked.append(access.key) or True)
    assert ids(node.sync(U, "/user/u1", commits)) == {commit.id for commit in commits}
    assert node.sync(X, "/user/u1")["s"] == 0
    assert node.sync(A, "/user/u1")["s"] == 20
    assert not asked


def test_a_rule_that_raises_allows_nothing_and_harms_nobody_else() -> None:
    def broken(access: Access) -> bool:
        raise RuntimeError(access.key)

    node = Node(A, A, rules=[AccessRule("/data/test", broken)])
    node.pool.add_session_commit(introduction(X, A))
    assert node.sync(X, commits=[note(X)])["s"] == 0
    assert node.sync(X, "/data/other", [note(X)])["s"] == 1


# --- sessions -----------------------------------------------------------------------------------------------------


def create(node: Node, body: Any, now_ms: int = NOW) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return node.engine.create_session(raw, now_ms)


def test_a_new_session_is_stored_trusted_and_told_with_the_roots() -> None:
    node = Node(A, A, B)
    key = PrivateKey.generate()
    response = create(node, {"publicKey": key.public_key.to_jwk(), "owner": "root", "id": "mine"})
    assert (response.status, response.wait_for_peers) == (200, True)
    assert response.flush == response.changed_paths == {"/sys/sessions"}
    answer = json.loads(response.body)
    assert list(answer["session"]) == ["publicKey", "id", "expiration"]
    assert answer["session"]["expiration"] == (NOW + 30 * DAY) / 1000
    session = node.pool.session(answer["session"]["id"])
    assert (session.owner, session.public_key) == (None, key.public_key)
    (commit,) = node.repository("/sys/sessions")
    assert (commit.key, commit.session, commit.parents) == (session.id, A.id, ())
    again = Node(A, A, logs={"/sys/sessions": node.logs["/sys/sessions"].records()})
    assert again.pool.session(session.id) == session


GOOD_JWK = PrivateKey.generate().public_key.to_jwk()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "InvalidPublicKey"),
        (b"{", "InvalidPublicKey"),
        (None, "InvalidPublicKey"),
        ({}, "MissingPublicKey"),
        ([], "MissingPublicKey"),
        ({"publicKey": "x"}, "MissingPublicKey"),
        ({"publicKey": None}, "InvalidPublicKey"),
        ({"publicKey": {}}, "InvalidPublicKey"),
        ({"publicKey": []}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "d": "x"}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "ext": False}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "key_ops": ["sign"]}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "crv": "P-256"}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "x": "short"}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "x": GOOD_JWK["y"]}}, "InvalidPublicKey"),
    ],
    ids=[
        *("no body", "no JSON", "null", "no members", "an array"),
        *("a text", "a null key", "an empty key", "an array key"),
        *("a private key", "not extractable", "for signing", "another curve", "a short x", "off the curve"),
    ],
)
def test_a_key_that_is_none_is_400_and_leaves_no_session(body: Any, error: str) -> None:
    node = Node(A, A)
    response = create(node, body)
    assert (response.status, json.loads(response.body)) == (400, {"error": error})
    assert not node.stored("/sys/sessions")


def test_no_session_is_born_under_an_expired_root() -> None:
    node = Node(root("root-a", expiration_ms=NOW))
    refused = create(node, {"publicKey": GOOD_JWK}, NOW + 1)
    assert (refused.status, refused.body, refused.cors) == (503, b"", False)


def test_a_session_can_be_introduced_again_with_more_time() -> None:
    node = Node(A, A)
    first = node.engine.introduce(X.session, NOW)
    second = node.engine.introduce(replace(X.session, expiration_ms=NOW + 90 * DAY), NOW + 1)
    assert second.parents == (first.id,)
    assert node.pool.session(X.id).expiration_ms == NOW + 90 * DAY


def test_the_second_birth_of_a_session_key_is_merged_and_stays_that_session() -> None:
    node = Node(A, A, B)
    later = replace(X.session, expiration_ms=NOW + 90 * DAY)
    node.sync(A, "/sys/sessions", [introduction(X, A), introduction(later, B, ts=NOW + 1)])
    repository = node.repository("/sys/sessions")
    (leaf,) = repository.leaves(X.id)
    assert len(leaf.parents) == 2
    assert node.pool.session(X.id) == later
    assert Node(A, A, logs={"/sys/sessions": node.logs["/sys/sessions"].records()}).pool.session(X.id) == later


# --- from Python --------------------------------------------------------------------------------------------------


def test_items_are_written_signed_by_the_root_of_the_moment(node: Node) -> None:
    first = node.engine.create("/data/test", "k", "note/1", {"text": "1"}, NOW)
    node.pool.replace(current=B, roots=[A.session, B.session])
    second = node.engine.set("/data/test", "k", {"text": "2"}, NOW + 1)
    assert (first.session, second.session) == ("root-a", "root-b")
    item = node.engine.get("/data/test", "k")
    assert item is not None
    assert item.data == {"text": "2"}
    assert node.pool.verify_commits([first, second]) == [None, None]
    node.engine.delete("/data/test", "k", NOW + 2)
    assert node.engine.get("/data/test", "k") is None
    assert node.engine.get("/data/test", "other") is None


def test_who_may_not_write_is_told_only_in_the_refusals(node: Node) -> None:
    done = drive_inline(node.engine.ingest("/sys/stats", [note(X).to_json()], NOW))
    assert isinstance(done.refused[0][1], AccessDeniedError)


def test_what_is_no_session_does_not_get_into_the_sessions_from_python_either(node: Node) -> None:
    """GoatDB would never start again with it."""
    engine, fields = node.engine, session_fields(owned("new").session)
    for key, schema, data in (
        ("new", "note/1", {"text": "x"}),
        ("new", "sessions/1", {**fields, "publicKey": "no key"}),
        ("other", "sessions/1", fields),
    ):
        with pytest.raises(NotAdmittedError, match=f"/sys/sessions/{key} would be no session"):
            engine.create("/sys/sessions", key, schema, data, NOW)
    engine.create("/sys/sessions", "new", "sessions/1", fields, NOW)
    with pytest.raises(NotAdmittedError):
        engine.set("/sys/sessions", "new", {**fields, "id": "other"}, NOW)
    with pytest.raises(NotAdmittedError):
        engine.delete("/sys/sessions", "new", NOW)
    item = engine.get("/sys/sessions", "new")
    assert item is not None
    assert item.data == fields
    assert node.pool.session("new").id == "new"


def test_a_client_sees_that_its_commit_is_here_while_creations_of_another_item_are_merged(node: Node) -> None:
    births = [commit_by(X, "both", {"text": text}) for text in ("one", "two")]
    body = json.dumps([element("/data/test", births)]).encode()
    merging = node.engine.batch_sync(signed_header(X), body, NOW)
    step = next(merging)
    while not any(birth.id in node.repository("/data/test") for birth in births):
        step = merging.send(step.run())
    mine, again = commit_by(X, "mine", {"text": "x"}), commit_by(X, "both", {"text": "three"})
    reply = node.sync(X, commits=[mine])
    assert {commit["id"] for commit in reply["c"]} == {mine.id}, "what is not merged yet is shown to nobody"
    assert mine.id in BloomFilter.from_json(reply["f"]["__v"])
    # Who brings one more creation of the same item merges all of them, and is told of all.
    reply = node.sync(X, commits=[again])
    shown = {commit["id"] for commit in reply["c"]}
    assert {mine.id, again.id, *(birth.id for birth in births)} < shown
    with contextlib.suppress(StopIteration):
        while True:
            step = merging.send(step.run())
    assert set(node.repository("/data/test").shown_ids) == node.stored()
    assert all(leaf.parents for leaf in node.repository("/data/test").leaves("both")), "no creation is left unmerged"
