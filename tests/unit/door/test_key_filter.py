"""No private key passes the door, however the stream is split, and nothing else is changed."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.door.key_filter import KeyFilter, SyncAnswer, filter_session_answer, script_with_server_url
from goatherd.errors import DecodeError
from goatherd.wire.json import to_json_bytes
from tests.cluster.door_world import A, X
from tests.unit.door.json_values import JSON
from tests.unit.goats import introduction, key_of, owned, root


def private(name: str = "root-a") -> dict[str, Any]:
    return key_of(name).to_jwk()


def filtered(text: bytes, cuts: list[int], only: frozenset[bytes] | None = None) -> tuple[bytes, int]:
    keys = KeyFilter(only)
    edges = sorted({0, len(text), *[cut % (len(text) + 1) for cut in cuts]})
    parts = [keys.feed(text[start:end]) for start, end in itertools.pairwise(edges)]
    return b"".join([*parts, keys.close()]), keys.found


@given(JSON, st.lists(st.integers(0, 10_000), max_size=20), st.booleans(), st.integers(0, 3))
def test_a_private_key_is_overwritten_wherever_the_stream_is_cut(
    around: Any, cuts: list[int], is_spaced: bool, nesting: int
) -> None:
    value: Any = [around, {"x": private()}, around]
    text = json.dumps(value, indent=2 if is_spaced else None)
    for _ in range(nesting):
        text = json.dumps({"publicKey": text})
    cleaned, found = filtered(text.encode(), cuts)
    assert private()["d"].encode() not in cleaned
    assert found == 1
    assert len(cleaned) == len(text)
    inner: Any = cleaned
    for _ in range(nesting):
        inner = json.loads(inner)["publicKey"]
    expected = json.loads(text) if not nesting else value
    assert json.loads(inner)[0] == json.loads(json.dumps(expected[0]))


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=10))
def test_what_holds_no_key_passes_byte_for_byte(text: bytes, cuts: list[int]) -> None:
    text = text.replace(b"kty", b"k")
    assert filtered(text, cuts) == (text, 0)


def test_only_the_keys_that_count_are_overwritten() -> None:
    mine, other = private("root-a"), private("anon-x")
    text = json.dumps([mine, other]).encode()
    cleaned, found = filtered(text, [], frozenset({mine["x"].encode()}))
    assert found == 1
    assert json.loads(cleaned)[1] == other
    assert json.loads(cleaned)[0] == {**mine, "d": "A" * 64}


def test_an_object_without_end_is_not_held_back_for_ever() -> None:
    keys = KeyFilter()
    out = sum(len(keys.feed(b'{"x": "' + b"y" * 50_000)) for _ in range(10))
    assert out > 300_000


@pytest.mark.parametrize(
    "text",
    [b"{" + b"kty" * 100_000, b'{"kty":"' + b"\\" * 300_000, b'{"kty":1,"d":' + b" " * 300_000 + b"}", b"{" * 300_000],
)
@pytest.mark.parametrize("end", [b"", b"}", b'"}'])
def test_the_time_that_the_filter_takes_grows_with_the_length_and_not_with_its_square(text: bytes, end: bytes) -> None:
    assert growth(lambda times: filtered((text * times) + end, [])) < 9


@pytest.mark.parametrize("text", [b";" * 100_000, b"}" * 100_000, b"};" * 50_000, b'{"a":' * 20_000])
def test_the_time_that_a_script_takes_grows_with_its_length(text: bytes) -> None:
    def renamed(times: int) -> bytes:
        return script_with_server_url(b";\n;\nglobalThis.GoatDBConfig = " + text * times, lambda address: address)

    assert growth(renamed) < 9


def growth(call: Callable[[int], Any]) -> float:
    """Return the ratio of the times for four times the work and for the work."""

    def least(times: int) -> float:
        spent = []
        for _ in range(3):
            begun = time.process_time()
            call(times)
            spent.append(time.process_time() - begun)
        return min(spent)

    return least(4) / max(least(1), 0.002)


def test_the_answer_of_auth_session_is_written_anew_only_where_it_must_be() -> None:
    session = {"publicKey": X.session.public_key.to_jwk(), "id": "s", "expiration": 1.5}
    clean = to_json_bytes({"session": session, "roots": [A.session.to_json()]})
    assert filter_session_answer(clean, lambda *_: True) == (clean, [], [])
    leaking = to_json_bytes({"session": {**session, "secret": 1}, "roots": [{**A.to_secret_json(), "note": 1}], "x": 1})
    body, leaked, untrusted = filter_session_answer(leaking, lambda *_: True)
    assert json.loads(body) == json.loads(clean)
    assert (leaked, untrusted) == (["root-a"], [])
    body, leaked, untrusted = filter_session_answer(leaking, lambda *_: False)
    assert body is None, "no client starts without a root"
    assert (leaked, untrusted) == (["root-a"], ["root-a"])


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"session":{}}', b'{"session":{},"roots":[5]}', b'{"session":{},"roots":[{"id":"a"}]}'],
    ids=["nothing", "list", "no roots", "a number", "no key"],
)
def test_an_answer_of_auth_session_that_is_none_does_not_leave(body: bytes) -> None:
    with pytest.raises(DecodeError):
        filter_session_answer(body, lambda *_: True)


ROOTS = [introduction(root(f"root-{name}"), A).to_json() for name in "bcd"]
SESSIONS = [introduction(owned(f"anon-{name}"), A).to_json() for name in "xyz"]


def answer_with(*lists: list[Any], path: str = "/sys/sessions", indent: int | None = None) -> bytes:
    elements = [{"path": path, "res": {"ver": 1, "c": each, "s": 3, "ad": []}} for each in lists]
    text = json.dumps(elements, indent=indent, separators=None if indent else (",", ":"))
    return text.encode()


@given(
    st.lists(st.permutations([*ROOTS, *SESSIONS]).flatmap(lambda all_: st.integers(0, 6).map(lambda n: all_[:n]))),
    st.lists(st.sampled_from(ROOTS), max_size=3),
    st.sampled_from([None, 1]),
)
def test_only_introductions_of_roots_are_replaced_in_an_answer(
    lists: list[list[Any]], instead: list[Any], indent: int | None
) -> None:
    body = answer_with([], *lists, indent=indent)
    answer = SyncAnswer(body)
    with_roots = [each for each in lists if any(one in ROOTS for one in each)]
    assert answer.introductions == [[one for one in each if one in ROOTS] for each in with_roots]
    sent = answer.encode([instead for _ in with_roots], KeyFilter(frozenset()))
    expected = [
        [*instead, *(one for one in each if one not in ROOTS)] if each in with_roots else each for each in lists
    ]
    assert json.loads(sent) == json.loads(answer_with([], *expected))


def test_an_answer_whose_introductions_come_first_already_stays_as_it_is() -> None:
    body = answer_with([*ROOTS, *SESSIONS], SESSIONS)
    answer = SyncAnswer(body)
    assert answer.encode(answer.introductions, KeyFilter(frozenset())) is body


@pytest.mark.parametrize("commits", [[], SESSIONS, [*ROOTS, *SESSIONS]], ids=["alone", "sessions", "roots, too"])
@pytest.mark.parametrize("place", [0, -1])
def test_what_may_introduce_a_root_and_cannot_be_read_is_left_out(commits: list[Any], place: int) -> None:
    """Otherwise no client could get a session, because the server sends this introduction to each of them."""
    unreadable = {**ROOTS[0], "id": "deep", "more": "PLACE"}
    mixed = [unreadable, *commits] if place == 0 else [*commits, unreadable]
    nested = b"[" * 300 + b"]" * 300
    answer = SyncAnswer(answer_with(mixed, SESSIONS).replace(b'"PLACE"', nested))
    sent = answer.encode(answer.introductions, KeyFilter(frozenset()))
    assert json.loads(sent) == json.loads(answer_with(commits, SESSIONS))


def test_introductions_of_roots_elsewhere_than_in_the_sessions_stay() -> None:
    body = answer_with([*SESSIONS, *ROOTS], path="/data/x")
    answer = SyncAnswer(body)
    assert answer.introductions == []
    assert answer.encode([], KeyFilter(frozenset())) is body


@pytest.mark.parametrize(
    "body",
    [
        b'{"owner":"root"}',
        b'[{"path":1,"owner":"root"}]',
        b'["owner":"root"]',
        b'[{"owner":"root"',
        answer_with([*ROOTS, 1]),
    ],
    ids=["object", "no path", "not JSON", "incomplete", "a number among commits"],
)
def test_an_answer_with_introductions_that_cannot_be_read_does_not_leave(body: bytes) -> None:
    with pytest.raises(DecodeError):
        SyncAnswer(body)
