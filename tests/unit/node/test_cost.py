"""No request holds the event loop for long, or takes much memory for its size, whatever it contains.

What runs between two steps of the engine runs on the event loop; its CPU time is measured, not the time on the wall.
"""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from goatherd.errors import DecodeError
from goatherd.node.engine import EngineStep, EngineSteps, Response
from goatherd.wire.commit import Commit
from goatherd.wire.messages import VERSION
from tests.unit.goats import NOW, ORG, Node, commit_by, element, introduction, owned, root, signed_header

A, X, U = root("root-a"), owned("anon-x"), owned("user-s", "u1")
LOOP_SECONDS = 0.05
MEMORY_RATIO = 100


def unsigned(number: int, contents: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "ver": VERSION,
        "id": f"unsigned{number}",
        "k": f"k{number}",
        "s": X.id,
        "ts": NOW,
        "org": ORG,
        "c": contents,
        "sig": "x" * 100,
        "cid": "c",
        **more,
    }


def record(data: Any, schema: str = "note/1") -> dict[str, Any]:
    return {"r": {"s": schema, "d": data, "n": False, "cs": "1"}}


def edit(*values: Any) -> dict[str, Any]:
    changes = [
        {"__t": "E", "__v": {"changeType": "fd", "operation": 1, "vType": "set", "value": {"__t": "S", "__v": value}}}
        for value in values
    ]
    return {"b": "base", "e": {"sc": "1", "dc": "1", "c": {"a": changes}}}


BODIES: dict[str, Callable[[], list[Any]]] = {
    "nothing but arrays": lambda: [[]] * 60_000,
    "nothing but objects": lambda: [{}] * 30_000,
    "small objects": lambda: [{"a": "x" * 100}] * 2000,
    "lists in an unknown schema": lambda: [unsigned(0, record({"x": [[]] * 40_000}))],
    "objects in an unknown schema": lambda: [unsigned(0, record({"x": [{"a": n} for n in range(30_000)]}))],
    "a session of lists": lambda: [unsigned(0, record({"id": [[]] * 40_000}, "sessions/1"))],
    "an edit of many changes": lambda: [unsigned(0, edit(*[[1, {}]] * 3000))],
    "an edit of many objects": lambda: [unsigned(0, edit([{"a": n / 1e6} for n in range(30_000)]))],
    "parents": lambda: [unsigned(n, record({}), p=["x"] * 1000) for n in range(100)],
    "signed lists": lambda: [commit_by(X, "k", {"x": [["a"]] * 20_000}).to_json()],
    "large signed texts": lambda: [commit_by(X, f"k{n}", {"x": "\u0101" * 200_000}).to_json() for n in range(4)],
    "many creations of one key": lambda: [commit_by(X, "k", {"x": n}).to_json() for n in range(600)],
    "large creations of one key": lambda: [
        commit_by(X, "k", {"x": {f"{m}-{n}": n for n in range(5000)}}).to_json() for m in range(4)
    ],
}


def drive(steps: EngineSteps[Response]) -> tuple[Response, float]:
    """Run a request; return the answer, and the longest CPU time that it took on the event loop without a break."""
    longest = 0.0
    advance: Callable[[], EngineStep] = partial(next, steps)
    while True:
        began = time.thread_time()
        try:
            step = advance()
        except StopIteration as done:
            return done.value, max(longest, time.thread_time() - began)
        longest = max(longest, time.thread_time() - began)
        try:
            advance = partial(steps.send, step.run())
        except DecodeError as error:
            advance = partial(steps.throw, error)


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_no_body_holds_the_event_loop(name: str) -> None:
    # A processor that others use, too, is slow at times; a body that costs so much does so each time.
    assert any(longest_hold(name) < LOOP_SECONDS for _ in range(3))


def longest_hold(name: str) -> float:
    node = Node(A, A)
    node.pool.add_session_commit(introduction(X, A))
    body = json.dumps([element("/data/test", BODIES[name]())], separators=(",", ":")).encode()
    gc.collect()
    response, longest = drive(node.engine.batch_sync(signed_header(X), body, NOW))
    assert response.status in (200, 400)
    return longest


@pytest.mark.deep
@pytest.mark.parametrize("name", BODIES)
def test_no_body_takes_much_memory_for_its_size(name: str) -> None:
    node = Node(A, A)
    node.pool.add_session_commit(introduction(X, A))
    body = json.dumps([element("/data/test", BODIES[name]())], separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        drive(node.engine.batch_sync(signed_header(X), body, NOW))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_RATIO * len(body)


def test_a_body_is_not_read_for_those_who_may_not_send_one(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(A, A)
    monkeypatch.setattr("goatherd.node.engine.read_batch", lambda *_: pytest.fail("it was read"))
    assert node.send(b"[" * 100, signed_header(X)).status == 403


def test_the_session_in_a_checked_commit_is_not_decoded_again_to_store_it(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(A, A)
    monkeypatch.setattr("goatherd.trust.session_from_commit", lambda _: pytest.fail("it was decoded"))
    node.sync(A, "/sys/sessions", [introduction(X, A).to_json()])
    assert node.pool.knows_session(X.id)


def test_a_user_whose_own_item_takes_long_to_patch_is_looked_up_in_a_thread_and_once() -> None:
    node = Node(A, A)
    node.pool.add_session_commit(introduction(U, A))
    node.create_item("/sys/users", "u1", "user/1", {"name": "Ann"}, NOW)
    users = node.repository("/sys/users")
    (base,) = users
    wrong = {"s": "user/1", "sc": base.checksum, "dc": "0", "c": edit(*[[{"a": n} for n in range(400)]] * 10)["e"]["c"]}
    delta = Commit.from_json(
        {**base.to_json(), "id": "delta", "p": [base.id], "ts": NOW + 1, "c": {"b": base.id, "e": wrong}}, org=ORG
    )
    assert users.add_commit(delta)
    for is_first in (True, False):
        steps = node.engine.batch_sync(signed_header(U), b"[]", NOW)
        response, longest = drive(steps)
        assert response.status == 200
        assert longest < LOOP_SECONDS
        assert len(node.engine._users) == 1, is_first
