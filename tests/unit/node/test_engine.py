"""Requests to the engine and its answers: who is authorized, and what is stored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from goatherd.admission.commits import NotAdmittedError
from goatherd.errors import AccessDeniedError, DecodeError, ItemExistsError, StorageError, VerificationError
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.session import OwnedSession, sign_commit, verify_commit
from goatherd.identity.session_commits import session_fields
from goatherd.node.engine import EngineStep, EngineSteps, Response, drive_inline, drive_steps
from goatherd.node.repository import Repository
from goatherd.node.views import SyncLimits
from goatherd.trust import Verification
from goatherd.wire.bloom import BloomFilter
from goatherd.wire.commit import Commit
from goatherd.wire.schema import Registry, Schema, SchemaField
from tests.fakes.memory_log import MemoryLog
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


def note(author: Any, key: str = "k", text: str = "x", **more: Any) -> Commit:
    return commit_by(author, key, {"text": text}, **more)


# --- who gets in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"[", b"{}", b"null", b'"x"', b"\xff"])
def test_a_body_that_is_no_array_is_400(node: Node, body: bytes) -> None:
    assert node.send(body, signed_header(X)).status == 400


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'"["', b" \n5", b"\xff["])
@pytest.mark.parametrize("header", [signed_header(owned("nobody")), "no signature"], ids=["unknown", "malformed"])
def test_a_body_that_is_no_array_is_400_whatever_its_signature(node: Node, body: bytes, header: str) -> None:
    response = node.send(body, header)
    assert (response.status, response.cors) == (400, True)


@pytest.mark.parametrize("body", [b"[]", b"\xef\xbb\xbf \t\r\n[]"])
def test_the_signature_of_an_array_is_checked(node: Node, body: bytes) -> None:
    assert node.send(body, signed_header(owned("nobody"))).status == 403
    assert node.send(body, signed_header(X)).status == 200


@pytest.mark.parametrize("header", [None, ""])
def test_a_missing_signature_is_400(node: Node, header: str | None) -> None:
    assert node.send([], header).status == 400


def test_an_unknown_session_is_403_without_cors_and_without_effect(node: Node) -> None:
    response = node.send([element("/data/new", [note(X)])], signed_header(owned("nobody")))
    assert (response.status, response.body, response.cors) == (403, b"", False)
    assert "/data/new" not in node.logs


def test_an_expired_session_is_403_but_what_it_signed_in_time_is_stored(node: Node) -> None:
    late = NOW + 31 * DAY
    node.introduce_session(replace(Y.session, id="late", expiration_ms=late + DAY), NOW)
    assert node.send([], signed_header(X, late), now_ms=late).status == 403
    sender = replace(Y, session=node.pool.get_session("late"))
    node.sync(sender, commits=[note(X)], now_ms=late)
    assert len(node.stored()) == 1


def test_a_session_with_an_owner_needs_a_user_who_is_there_and_not_deleted(node: Node) -> None:
    assert node.send([], signed_header(U)).status == 403
    node.create_item("/sys/users", "u1", "user/1", {"name": "Ann"}, NOW)
    assert node.send([], signed_header(U)).status == 200
    node.delete_item("/sys/users", "u1", NOW + 1)
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


# --- what is written --------------------------------------------------------------------------------------------------


def test_what_peers_would_reject_is_not_written(node: Node) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    node.create_item("/data/test", "k", "note/1", {"text": "x"}, NOW)
    node.delete_item("/data/test", "k", NOW + 1)
    for key, schema, data in (
        ("k", "task/1", {"text": "another schema"}),
        ("k" * 201, "note/1", {"text": "a long key"}),
        ("null", "null", {}),
        ("deep", "note/1", deep),
    ):
        with pytest.raises(NotAdmittedError):
            node.create_item("/data/test", key, schema, data, NOW + 2)
    node.create_item("/data/test", "k" * 200, "note/1", {"text": ("x", "y")}, NOW + 2)
    peer = Node(A, A)
    peer.sync(A, commits=[commit.to_json() for commit in node.repository("/data/test")], now_ms=NOW + 2)
    assert peer.stored() == node.stored()
    assert len(node.stored()) == 3


# --- what is stored ---------------------------------------------------------------------------------------------------


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


def test_of_two_requests_that_bring_the_same_commits_at_once_one_brings_them(node: Node) -> None:
    # With fewer commits, no thread would verify them, and the requests could not overlap.
    body = json.dumps([element("/data/test", [note(X, f"k{n}") for n in range(3)])]).encode()
    requests = [node.engine.batch_sync(signed_header(X), body, NOW) for _ in range(2)]
    reading = [next(request) for request in requests]
    verifying = [request.send(step.run()) for request, step in zip(requests, reading, strict=True)]
    news: list[frozenset[str]] = []
    for request, step in zip(requests, verifying, strict=True):
        with pytest.raises(StopIteration) as done:
            request.send(step.run())
        news.append(done.value.value.changed_paths)
    assert news == [{"/data/test"}, set()]


@pytest.mark.parametrize(
    ("text", "count", "expected"), [("x", 1, 0), ("x", 3, 1), ("\u0101" * 4000, 1, 2), ("x" * 600_000, 1, 3)]
)
async def test_only_what_takes_long_is_done_in_threads(node: Node, text: str, count: int, expected: int) -> None:
    node.repository("/data/test")  # reads the log, which a thread does otherwise
    held = BloomFilter(bytearray(300_000), (1, 2, 3))
    commits = [note(X, f"k{n}", text) for n in range(count)]
    body = json.dumps([element("/data/test", commits, held=held)], separators=(",", ":")).encode()
    taken: list[EngineStep] = []

    async def run(step: EngineStep) -> Any:
        taken.append(step)
        return step.run()

    response = await drive_steps(node.engine.batch_sync(signed_header(X), body, NOW), run)
    assert response.changed_paths == {"/data/test"}
    assert len(taken) == expected
    assert node.stored("/data/test") == {commit.id for commit in commits}


def test_the_log_holds_what_was_stored_and_a_restart_finds_it(node: Node) -> None:
    commit = note(X)
    node.sync(X, commits=[commit])
    again = Node(A, A, logs={"/data/test": node.logs["/data/test"].read_records()})
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


def test_only_a_root_may_write_sessions(node: Node) -> None:
    node.sync(X, "/sys/sessions", [introduction(owned("friend"), X), introduction(owned("evil", "root"), X)])
    assert not node.stored("/sys/sessions")


def with_key(member: str) -> dict[str, Any]:
    """Return the fields of X's session with one more member in the JSON of its key."""
    fields = session_fields(X.session)
    return {**fields, "publicKey": f"{fields['publicKey'][:-1]},{member}}}"}


@pytest.mark.parametrize(
    "commit",
    [
        commit_by(A, "thing", {"text": "x"}),
        commit_by(A, "thing", {"id": "thing"}, schema="sessions/1"),
        introduction(X, A, key="thing"),
        commit_by(A, X.id, with_key('"ext":false'), schema="sessions/1"),
        commit_by(A, X.id, with_key('"use":"enc"'), schema="sessions/1"),
        commit_by(A, X.id, with_key('"n":NaN'), schema="sessions/1"),
    ],
    ids=[
        "another schema",
        "no session",
        "another key",
        "a hidden key",
        "a key for encryption",
        "a key that is no JSON",
    ],
)
def test_what_is_no_session_is_not_stored_among_sessions_even_for_a_root(node: Node, commit: Commit) -> None:
    node.sync(A, "/sys/sessions", [commit])
    assert not node.stored("/sys/sessions")


def test_no_introduction_is_stored_outside_the_sessions_not_even_a_genuine_one_that_anyone_can_send_again() -> None:
    node = Node(A, A)
    node.pool.add_session_commit(introduction(X, A))
    genuine = introduction(B, A)
    node.sync(A, "/sys/sessions", [genuine])
    node.pool.replace_roots(current=A, roots=[A.session], revoked=["root-b"])
    assert node.sync(X, "/data/test", [genuine])["c"] == []
    assert not node.stored()
    with pytest.raises(NotAdmittedError, match="must not be a session"):
        node.create_item("/data/test", "root-b", "sessions/1", session_fields(B.session), NOW)


def test_a_root_revoked_while_its_commits_are_being_verified_gets_nothing_in() -> None:
    node = Node(A, A, B)
    steps = node.engine.batch_sync(signed_header(A), json.dumps([element("/data/test", [note(B)])]).encode(), NOW)
    step = next(steps)
    while True:
        result = step.run()
        node.pool.replace_roots(current=A, roots=[A.session, B.session], revoked=["root-b"])
        try:
            step = steps.send(result)
        except StopIteration:
            break
    assert not node.stored()


def test_two_requests_at_once_over_a_new_repository_share_it(node: Node) -> None:
    bodies = [json.dumps([element("/data/new", [note(X, f"k{n}")])]).encode() for n in range(2)]
    running = [node.engine.batch_sync(signed_header(X), body, NOW) for body in bodies]
    steps: list[EngineStep | None] = [next(each) for each in running]
    while any(steps):
        for number, step in enumerate(steps):
            if step is not None:
                try:
                    steps[number] = running[number].send(step.run())
                except StopIteration:
                    steps[number] = None
    assert node.repository("/data/new").item_keys() == ["k0", "k1"]
    assert len(node.logs["/data/new"].read_records()) == 2


def test_a_log_that_cannot_be_read_is_an_error_and_leaves_nothing_open(node: Node) -> None:
    def broken(path: str) -> Any:
        raise StorageError(f"{path}: broken")

    node.engine._open_log = broken  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        node.send([element("/data/test"), element("/data/other")], signed_header(X))
    assert set(node.engine.repositories) == {"/sys/sessions", "/sys/users"}


def test_only_repositories_without_records_are_closed_after_a_request(node: Node) -> None:
    node.logs["/data/damaged"] = MemoryLog([{"damaged": True}])
    node.send([element("/data/damaged"), element("/data/absent")], signed_header(X))
    assert set(node.engine.repositories) == {"/sys/sessions", "/sys/users", "/data/damaged"}


def test_steps_run_in_threads_and_their_errors_come_back(node: Node) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as workers, ThreadPoolExecutor(2) as verifiers:

            async def run(step: EngineStep) -> Any:
                return await loop.run_in_executor(workers, step.run, verifiers)

            commits = [note(X, f"k{number}") for number in range(40)]
            body = json.dumps([element("/data/test", commits)]).encode()
            response = await drive_steps(node.engine.batch_sync(signed_header(X), body, NOW), run)
            assert response.status == 200
            assert len(node.stored()) == 40

            def broken(path: str) -> Any:
                raise StorageError(path)

            node.engine._open_log = broken  # type: ignore[method-assign]
            with pytest.raises(StorageError):
                await drive_steps(node.engine.open_in_steps("/data/broken"), run)

    asyncio.run(work())


def test_pulled_commits_pass_the_same_checks_as_pushed_ones(node: Node) -> None:
    good, forged = note(X), note(X, claimed=A.id)
    done = drive_inline(node.engine.ingest_commits("/data/test", [good.to_json(), forged.to_json(), 5], NOW))
    assert done.accepted == [good]
    assert [commit_id for commit_id, _ in done.refused] == ["", forged.id]
    assert isinstance(done.refused[1][1], VerificationError)


def test_a_commit_that_a_server_brings_while_it_is_being_verified_is_left_out_but_not_another_one_of_its_id(
    node: Node,
) -> None:
    good = note(X)
    forged = replace(good, key="other")
    first = node.engine.ingest_commits("/data/test", [forged.to_json()], NOW)
    step = next(first)
    while not node.engine._in_verification:
        step = first.send(step.run(None))
    again = drive_inline(node.engine.ingest_commits("/data/test", [forged.to_json(), good.to_json()], NOW))
    assert (again.accepted, again.refused) == ([good], [])
    step.run(None)
    first.close()
    assert not node.engine._in_verification


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
    done = drive_inline(node.engine.ingest_commits("/data/test", [{**note(X).to_json(), **changes}], NOW))
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
        [
            Schema(
                ns="task", version=1, fields=(SchemaField(name="at", type="date"), SchemaField(name="tags", type="set"))
            )
        ]
    )
    node = Node(A, A, registry=registry)
    raw = commit_by(A, "k", fields, schema="task/1").to_json()
    signed = Commit.from_json(raw, org="localhost", registry=registry)
    raw["sig"] = sign_commit(A, signed, now_ms=NOW).signature
    verify_commit(A.session, Commit.from_json(raw, org="localhost", registry=registry))
    done = drive_inline(node.engine.ingest_commits("/data/test", [raw], NOW))
    assert "read again" in str(done.refused[0][1])
    same = commit_by(A, "k", {"at": 1700000000000, "tags": {"__t": "S", "__v": [1, 1]}}, schema="task/1").to_json()
    same["sig"] = sign_commit(A, Commit.from_json(same, org="localhost", registry=registry), now_ms=NOW).signature
    assert drive_inline(node.engine.ingest_commits("/data/test", [same], NOW)).refused == []


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
        node.engine.ingest_commits("/data/test", [note(X, "k2").to_json() | {"c": contents}, good.to_json()], NOW)
    )
    assert done.accepted == [good]
    assert len(done.refused) == 1


def test_contents_nested_without_end_are_refused(node: Node) -> None:
    deep: Any = "x"
    for _ in range(70):
        deep = {"n": deep}
    done = drive_inline(
        node.engine.ingest_commits("/data/test", [note(X, schema="deep/1").to_json() | {"c": deep}], NOW)
    )
    assert "nested" in str(done.refused[0][1])


@pytest.mark.parametrize(
    "contents",
    [
        {"r": {"s": "note/1", "d": {"tags": {"__t": "S", "__v": [{"__IS_MAP_OBJ": True}]}}, "n": True, "cs": "1"}},
        {"b": "b", "e": {"c": {"tags": [{"__t": "E", "__v": {"changeType": "fd", "value": {"__IS_MAP_OBJ": 1}}}]}}},
    ],
    ids=["record", "delta"],
)
def test_an_object_that_goatdb_takes_for_a_map_is_refused(node: Node, contents: Any) -> None:
    """GoatDB fails with an exception when it compares two such objects, in a merge or a patch of a set."""
    done = drive_inline(node.engine.ingest_commits("/data/test", [note(X).to_json() | {"c": contents}], NOW))
    assert "__IS_MAP_OBJ" in str(done.refused[0][1])


def test_a_key_keeps_its_schema_and_known_schemas_are_checked() -> None:
    schema = Schema(ns="task", version=1, fields=(SchemaField(name="title", type="string", required=True),))
    node = Node(A, A, registry=Registry([schema]))
    good = commit_by(A, "k", {"title": "x"}, schema="task/1")
    other = commit_by(A, "k", {"text": "x"}, schema="note/1", parents=[good.id])
    empty = commit_by(A, "k2", {}, schema="task/1")
    wrong = commit_by(A, "k3", {"title": 5}, schema="task/1")
    node.sync(A, commits=[good, other, empty, wrong])
    assert node.stored() == {good.id}


# --- from Python ------------------------------------------------------------------------------------------------------


def test_items_are_written_signed_by_the_root_of_the_moment(node: Node) -> None:
    first = node.create_item("/data/test", "k", "note/1", {"text": "1"}, NOW)
    node.pool.replace_roots(current=B, roots=[A.session, B.session])
    second = node.set_item("/data/test", "k", {"text": "2"}, NOW + 1)
    assert (first.session, second.session) == ("root-a", "root-b")
    item = node.engine.get_item("/data/test", "k")
    assert item is not None
    assert item.data == {"text": "2"}
    assert node.pool.verify_commits([first, second]) == [None, None]
    node.delete_item("/data/test", "k", NOW + 2)
    assert node.engine.get_item("/data/test", "k") is None
    assert node.engine.get_item("/data/test", "other") is None


def test_who_may_not_write_is_told_only_in_the_refusals(node: Node) -> None:
    done = drive_inline(node.engine.ingest_commits("/sys/stats", [note(X).to_json()], NOW))
    assert isinstance(done.refused[0][1], AccessDeniedError)


def test_what_is_no_session_does_not_get_into_the_sessions_from_python_either(node: Node) -> None:
    """With such a commit in the log, GoatDB could not start any more."""
    fields = session_fields(owned("new").session)
    for key, schema, data in (
        ("new", "note/1", {"text": "x"}),
        ("new", "sessions/1", {**fields, "publicKey": "no key"}),
        ("other", "sessions/1", fields),
    ):
        with pytest.raises(NotAdmittedError, match=f"/sys/sessions/{key} must be a valid session"):
            node.create_item("/sys/sessions", key, schema, data, NOW)
    node.create_item("/sys/sessions", "new", "sessions/1", fields, NOW)
    with pytest.raises(NotAdmittedError):
        node.set_item("/sys/sessions", "new", {**fields, "id": "other"}, NOW)
    with pytest.raises(NotAdmittedError):
        node.delete_item("/sys/sessions", "new", NOW)
    item = node.engine.get_item("/sys/sessions", "new")
    assert item is not None
    assert item.data == fields
    assert node.pool.get_session("new").id == "new"


def kms(signer: OwnedSession) -> OwnedSession:
    """Return the same root, with its key in a KMS."""
    key = RemoteKey(signer.session.public_key, lambda _key, data: signer.signer.sign(data))
    return replace(signer, signer=key)


@pytest.mark.parametrize("is_by_client", [True, False])
def test_an_item_that_is_created_while_a_kms_signs_its_creation_is_not_created_again(is_by_client: bool) -> None:
    node = Node(kms(A), A)
    node.pool.add_session_commit(introduction(X, A))
    creating = [
        node.engine.create_item_in_steps("/data/test", "k", "note/1", {"text": text}, NOW) for text in ("one", "two")
    ]
    signing = [next(steps) for steps in creating]
    assert all(step.is_remote for step in signing)
    if is_by_client:
        node.sync(X, commits=[note(X)])
    else:
        with pytest.raises(StopIteration):
            creating[0].send(signing[0].run())
    with pytest.raises(ItemExistsError):
        creating[1].send(signing[1].run())
    assert len(node.stored()) == 1


def test_a_session_that_another_root_introduces_while_a_kms_signs_is_shown_when_both_are_merged() -> None:
    node = Node(kms(A), A, B)
    node.pool.add_session_commit(introduction(X, A))
    session = owned("new").session
    introducing = node.engine.introduce_in_steps(session, NOW)
    step = next(introducing)
    other = introduction(replace(session, expiration_ms=session.expiration_ms + 60_000), B)
    node.sync(B, "/sys/sessions", [other])
    with contextlib.suppress(StopIteration):
        while True:
            step = introducing.send(step.run())
    assert len(node.stored("/sys/sessions")) == 2
    assert {each["id"] for each in node.sync(X, "/sys/sessions")["c"]} == {other.id}
    drive_inline(node.engine.merge_withheld())
    assert len(node.sync(X, "/sys/sessions")["c"]) == 3


def test_a_client_sees_that_its_commit_is_here_while_creations_of_another_item_are_merged(node: Node) -> None:
    births = [commit_by(X, "both", {"text": text}) for text in ("one", "two")]
    body = json.dumps([element("/data/test", births)]).encode()
    merging = node.engine.batch_sync(signed_header(X), body, NOW)
    step = next(merging)
    while not any(birth.id in node.repository("/data/test") for birth in births):
        step = merging.send(step.run())
    mine, again = commit_by(X, "mine", {"text": "x"}), commit_by(X, "both", {"text": "three"})
    reply = node.sync(X, commits=[mine])
    assert {commit["id"] for commit in reply["c"]} == {mine.id}, "what is not merged yet is shown to no client"
    assert mine.id in BloomFilter.from_json(reply["f"]["__v"])
    # A client that pushes one more creation of the same item causes a merge of all creations, and gets all of them.
    reply = node.sync(X, commits=[again])
    shown = {commit["id"] for commit in reply["c"]}
    assert {mine.id, again.id, *(birth.id for birth in births)} < shown
    with contextlib.suppress(StopIteration):
        while True:
            step = merging.send(step.run())
    assert set(node.repository("/data/test").shown_ids) == node.stored()
    assert all(leaf.parents for leaf in node.repository("/data/test").find_leaves("both")), (
        "no creation is left unmerged"
    )


def test_of_two_creations_that_two_requests_bring_none_is_shown_before_the_second_request_has_merged_them(
    node: Node,
) -> None:
    births = [note(X, "k", text) for text in ("one", "two")]
    node.sync(X, "/data/other", [note(X, "k", "one")])
    # The first one brings its creation while nothing is to be merged, and then waits for the merge of another item.
    brought = [[element("/data/test", births[:1]), element("/data/other", [note(X, "k", "two")])]]
    brought += [[element("/data/test", births[1:])]]
    merging: list[tuple[EngineSteps[Response], EngineStep]] = []
    for birth, body in zip(births, brought, strict=True):
        steps = node.engine.batch_sync(signed_header(X), json.dumps(body).encode(), NOW)
        step = next(steps)
        while birth.id not in node.repository("/data/test"):
            step = steps.send(step.run())
        merging.append((steps, step))
    answers: list[set[str]] = []
    for steps, step in merging:
        response: Response | None = None
        while response is None:
            try:
                step = steps.send(step.run())
            except StopIteration as done:
                response = done.value
        answers.append({commit["id"] for commit in json.loads(response.body)[0]["res"]["c"]})
    both = {birth.id for birth in births}
    assert answers[0] == set(), "the second request still merges them"
    assert answers[1] > both, "they come with their merge"
    assert set(node.repository("/data/test").shown_ids) == answers[1]


def test_a_portion_is_decoded_and_the_previous_one_stored_while_another_is_verified(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for name in ("start", "finish"):
        method = getattr(Verification, name)
        monkeypatch.setattr(
            Verification, name, lambda self, ex=None, *, _m=method, _n=name: (steps.append(_n), _m(self, ex))[1]
        )
    store = Repository.add_commit
    monkeypatch.setattr(Repository, "add_commit", lambda self, one: (steps.append("store"), store(self, one))[1])
    monkeypatch.setattr("goatherd.node.engine.PORTION_COMMITS", 1)
    node.sync(X, commits=[note(X, "a"), note(X, "b"), note(X, "c")])
    assert steps == ["start", "start", "finish", "store", "start", "finish", "store", "finish", "store"]


def test_portions_have_the_result_of_one_body(monkeypatch: pytest.MonkeyPatch) -> None:
    good = [note(X, f"k{number}") for number in range(6)]
    forged = [replace(one, contents=note(X, one.key, "forged").contents) for one in good]
    stranger = note(owned("stranger"), "s")
    sent = [forged[0], good[1], good[0], stranger, forged[1], good[2], good[2], good[3], forged[4], good[5], good[4]]

    def take(size: int) -> tuple[set[str], list[str], list[str]]:
        monkeypatch.setattr("goatherd.node.engine.PORTION_COMMITS", size)
        node = Node(A, A)
        node.pool.add_session_commit(introduction(X, A))
        done = drive_inline(node.engine.ingest_commits("/data/test", [one.to_json() for one in sent], NOW))
        refused = sorted(type(error).__name__ for _, error in done.refused if not isinstance(error, DecodeError))
        texts = [str((one.data or {})["text"]) for one in node.repository("/data/test")]
        return node.stored(), refused, texts

    whole = take(100)
    assert whole[0] == {one.id for one in good}
    assert set(whole[2]) == {"x"}
    for size in (1, 2, 3, 7):
        stored, refused, texts = take(size)
        assert (stored, texts) == (whole[0], whole[2])
        assert "UnknownSignerError" in refused
