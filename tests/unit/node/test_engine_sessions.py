"""Sessions that an engine creates."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from goatherd.crypto import PrivateKey
from tests.unit.goats import (
    DAY,
    NOW,
    Node,
    introduction,
    owned,
    root,
)

A, B = root("root-a"), root("root-b")
X, Y, U = owned("anon-x"), owned("anon-y"), owned("user-s", "u1")


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
    session = node.pool.get_session(answer["session"]["id"])
    assert (session.owner, session.public_key) == (None, key.public_key)
    (commit,) = node.repository("/sys/sessions")
    assert (commit.key, commit.session, commit.parents) == (session.id, A.id, ())
    again = Node(A, A, logs={"/sys/sessions": node.logs["/sys/sessions"].read_records()})
    assert again.pool.get_session(session.id) == session


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
        ({"publicKey": {**GOOD_JWK, "ext": 0}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "key_ops": ["sign"]}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "key_ops": []}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "key_ops": ["verify", {}]}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "alg": "ES256"}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "use": "enc"}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "crv": "P-256"}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "x": "short"}}, "InvalidPublicKey"),
        ({"publicKey": {**GOOD_JWK, "x": GOOD_JWK["y"]}}, "InvalidPublicKey"),
    ],
    ids=[
        *("no body", "no JSON", "null", "no members", "an array"),
        *("a text", "a null key", "an empty key", "an array key"),
        *("a private key", "not extractable", "not extractable either", "for signing", "for nothing", "for an object"),
        *("another algorithm", "for encryption", "another curve", "a short x", "off the curve"),
    ],
)
def test_a_key_that_is_none_is_400_and_leaves_no_session(body: Any, error: str) -> None:
    node = Node(A, A)
    response = create(node, body)
    assert (response.status, json.loads(response.body)) == (400, {"error": error})
    assert not node.stored("/sys/sessions")


@pytest.mark.parametrize(
    "members",
    [
        {"key_ops": ["sign", "verify"]},
        {"key_ops": ["verify", "verify"]},
        {"key_ops": None, "ext": None, "alg": None, "use": None, "d": None},
        {"use": "sig", "kid": 5},
    ],
    ids=str,
)
def test_a_key_that_goatdb_takes_is_taken(members: dict[str, Any]) -> None:
    node = Node(A, A)
    response = create(node, {"publicKey": {**GOOD_JWK, **members}})
    assert response.status == 200
    assert json.loads(response.body)["session"]["publicKey"] == GOOD_JWK


def test_no_session_is_born_under_an_expired_root() -> None:
    node = Node(root("root-a", expiration_ms=NOW))
    refused = create(node, {"publicKey": GOOD_JWK}, NOW + 1)
    assert (refused.status, refused.body, refused.cors) == (503, b"", False)


def test_a_session_can_be_introduced_again_with_more_time() -> None:
    node = Node(A, A)
    first = node.introduce_session(X.session, NOW)
    second = node.introduce_session(replace(X.session, expiration_ms=NOW + 90 * DAY), NOW + 1)
    assert second.parents == (first.id,)
    assert node.pool.get_session(X.id).expiration_ms == NOW + 90 * DAY


def test_the_second_birth_of_a_session_key_is_merged_and_stays_that_session() -> None:
    node = Node(A, A, B)
    later = replace(X.session, expiration_ms=NOW + 90 * DAY)
    node.sync(A, "/sys/sessions", [introduction(X, A), introduction(later, B, ts=NOW + 1)])
    repository = node.repository("/sys/sessions")
    (leaf,) = repository.find_leaves(X.id)
    assert len(leaf.parents) == 2
    assert node.pool.get_session(X.id) == later
    assert Node(A, A, logs={"/sys/sessions": node.logs["/sys/sessions"].read_records()}).pool.get_session(X.id) == later
