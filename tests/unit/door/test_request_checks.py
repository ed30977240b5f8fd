"""The checks of requests and commits before the server gets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goatherd.admission.commits import is_nested_deeper
from goatherd.door import request_checks
from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import (
    DoorRule,
    DroppedError,
    check_headers,
    check_target,
    read_batch,
    read_commit,
)
from goatherd.serving.caller_limits import RefusedError
from goatherd.wire.batch import SMALL_BODY
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.messages import decode_request_element
from goatherd.wire.schema import Registry, Schema, SchemaField
from tests.cluster.door_world import X
from tests.fakes.goatdb_paths import repository_id
from tests.unit.door.json_values import JSON
from tests.unit.goats import NOW, ORG, commit_by, element

LIMITS = DoorLimits()


@pytest.mark.parametrize(
    "path",
    [
        b"//x/y",
        b"/x/../y",
        b"/..",
        b"/x/.",
        b"/%2e%2e/y",
        b"/.%2E/y",
        b"/x\\y",
        b"/x y",
        b"/x\ty",
        b"/x{",
        b"x",
        b"*",
        b"/\xff",
    ],
    ids=str,
)
def test_a_path_that_browsers_rewrite_is_refused(path: bytes) -> None:
    with pytest.raises(RefusedError):
        check_target(path)


@pytest.mark.parametrize(
    "path", [b"/", b"/Batch-Sync", b"/a.b/...", b"/%2e%2e%2e", b"/a%20b", b"/x//y", b"/@x;y=1"], ids=str
)
def test_any_other_path_is_taken_in_lower_case(path: bytes) -> None:
    assert check_target(path) == path.decode().lower()


@pytest.mark.parametrize(
    "host",
    [
        b"h",
        b"goats.example:80",
        b"goats.example.:65535",
        b"[::1]:8080",
        b"[::ffff:1.2.3.4]",
        b"127.0.0.1",
        b"127.1",
        b"0x7f.1",
        b"010.1",
        b"4294967295",
        b"1.a",
        b"0xg",
        b"AWSALB",
        b"my_service",
        b"xn--bcher-kva.example",
        b"xn--strae-oqa.de",
    ],
    ids=str,
)
def test_a_host_is_a_host(host: bytes) -> None:
    assert check_headers([(b"host", host), (b"cookie", b"a"), (b"cookie", b"b")])[b"host"] == host


def test_an_empty_host_is_none() -> None:
    assert check_headers([(b"host", b""), (b"cookie", b"a")]) == {b"cookie": b"a"}
    with pytest.raises(RefusedError):
        check_headers([(b"host", b""), (b"host", b"h")])


@pytest.mark.parametrize("host", [b"h/", b"h?x", b"h#x", b"u@h", b"h\\x", b"h:x", b"h h", b"[::1", b"h%2f"], ids=str)
def test_a_host_with_more_in_it_is_refused(host: bytes) -> None:
    with pytest.raises(RefusedError):
        check_headers([(b"host", host)])


@pytest.mark.parametrize(
    "host",
    [
        b"h:65536",
        b"h:99999",
        b"256.1.1.1",
        b"1.256.1",
        b"1.2.3.4.5",
        b"1.2.3.256",
        b"4294967296",
        b"0x100000000",
        b"a.1",
        b"a.0x1",
        b"1..2",
        b"08",
        b"1.2.3.09.",
        b"[::1::]",
        b"[1:2]",
        b"[::256.1.1.1]",
        b"xn--a",
        b"xn--.example",
        b"xn---",
        b"xn--99999999",
        b"a" * 300,
    ],
    ids=lambda host: host[:20].decode(),
)
def test_a_host_of_which_no_url_can_be_made_is_refused(host: bytes) -> None:
    """The original fails with an exception when it parses such a host."""
    with pytest.raises(RefusedError) as caught:
        check_headers([(b"host", host)])
    assert caught.value.status == 400


def tried(read: Callable[[], Any]) -> Any:
    """Return what was read, or the rejection; any other exception fails the test."""
    try:
        return read()
    except (RefusedError, DroppedError) as refusal:
        return refusal


PATHS = st.text(alphabet="ab/.-_ A0\\", max_size=12)


@given(PATHS)
def test_a_path_that_is_taken_is_the_repository_that_the_server_opens(path: str) -> None:
    outcome = tried(lambda: read_batch(to_json_bytes([element(path)]), LIMITS))
    if isinstance(outcome, RefusedError):
        assert outcome.rule is DoorRule.PATH
    else:
        assert repository_id(path) == outcome[0].path


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read_or_refused_with_a_status_of_its_own(body: bytes) -> None:
    outcome = tried(lambda: read_batch(body, LIMITS))
    if isinstance(outcome, RefusedError):
        assert outcome.status == 400
    else:
        assert isinstance(parse_json(body), list)
        assert all(each.path.count("/") == 2 for each in outcome)


MESSAGE = {"ver": 1, "f": {"__t": "E", "__v": {"d": "AA==", "s": [1, 2]}}, "s": 0, "c": [], "ad": []}


@given(
    st.dictionaries(st.sampled_from([*MESSAGE, "x"]), JSON, max_size=2),
    st.dictionaries(st.sampled_from(["d", "s", "x"]), JSON | st.text("Aa0+/=", max_size=9), max_size=2),
)
@example({"ver": float("inf")}, {})
@pytest.mark.slow
def test_the_short_way_for_polls_lets_nothing_through_that_the_long_way_refuses(
    changes: dict[str, Any], inner: dict[str, Any]
) -> None:
    message = {**MESSAGE, "f": {"__t": "E", "__v": {"d": "AA==", "s": [1, 2], **inner}}, **changes}
    # Python writes what no JSON has; a number this large is what JavaScript reads as infinite.
    raw = parse_json(json.dumps({"path": "/a/b", "msg": message}).replace("Infinity", "1e999"))
    if request_checks._has_usual_form(raw, LIMITS):
        decode_request_element(raw)
        assert not is_nested_deeper({name: value for name, value in raw["msg"].items() if name != "c"}, LIMITS.depth)


def test_what_clients_send_goes_the_short_way() -> None:
    assert request_checks._has_usual_form(element("/data/x"), LIMITS)


EVIL = {"ver": 1, "f": {"d": "AA==", "s": [1] * 5000}, "s": 10**9, "c": [{"id": "evil"}]}


@pytest.mark.parametrize(
    "given",
    [
        {"path": "/a/b", "msg": MESSAGE, "__r": [], "__d": {"path": "/sys/sessions", "msg": EVIL}},
        {"path": "/a/b", "msg": {**MESSAGE, "__r": [], "__d": EVIL}},
        {"path": "/a/b", "msg": {**MESSAGE, "__t": "E", "__v": EVIL}},
        {"path": "/a/b", "msg": {**MESSAGE, "f": {"d": "AA==", "s": [1], "__r": [], "__d": EVIL["f"]}}},
        {"path": "/a/b", "msg": {**MESSAGE, "f": {"__t": "E", "__v": {"d": "AA==", "s": [1]}, "__r": [], "__d": {}}}},
        {"path": "/a/b", "msg": {**MESSAGE, "f": {"__t": "E", "__v": {"d": "AA==", "s": [1], "__rId": 0}}}},
    ],
    ids=["element", "message", "message as a value", "filter", "wrapped filter", "inside the filter"],
)
def test_nothing_is_hidden_in_a_message_s_wrapping(given: dict[str, Any]) -> None:
    outcome = tried(lambda: read_batch(to_json_bytes([given]), LIMITS))
    assert isinstance(outcome, RefusedError)
    assert outcome.rule is DoorRule.MESSAGE


COMMIT = commit_by(X, "k", {"text": "x"}).to_json()


def change(kind: str, value: Any) -> dict[str, Any]:
    one = {"__t": "E", "__v": {"changeType": "fd", "operation": 1, "vType": kind, "value": value}}
    return {**COMMIT, "c": {"b": "base", "e": {"sc": "1", "dc": "2", "c": {"f": [one]}}}}


TAGS = Registry([Schema(ns="task", version=1, fields=(SchemaField(name="tags", type="set"),))])


TWICE = {"__t": "S", "__v": [{"__r": [{"x": 1}], "__d": {"a": {"__rId": 0}, "b": {"__rId": 0}}}]}


@pytest.mark.parametrize(
    "raw",
    [change("date", 2e15), {**COMMIT, "c": {"r": {"s": "task/1", "d": {"tags": TWICE}, "n": True, "cs": "1"}}}],
    ids=["a late date", "an object met twice"],
)
def test_what_would_be_another_commit_when_it_is_read_again_is_taken_out(raw: dict[str, Any]) -> None:
    outcome = tried(lambda: read_commit(raw, "/a/b", org=ORG, limits=LIMITS, now_ms=NOW, registry=TAGS))
    assert isinstance(outcome, DroppedError)
    assert outcome.rule is DoorRule.CONTENTS
    assert "read again" in str(outcome)


def test_what_is_written_in_another_form_and_stays_the_same_is_let_through() -> None:
    raw = change("set", {"__t": "S", "__v": [1, 1]})
    commit = read_commit(raw, "/a/b", org=ORG, limits=LIMITS, now_ms=NOW)
    assert commit.contents != raw["c"]


@pytest.mark.parametrize(
    "change",
    [
        {"__r": [], "__d": COMMIT},
        {"__t": "E", "__v": COMMIT},
        {"c": {**COMMIT["c"], "__r": [], "__d": {"r": {}}}},
    ],
    ids=["commit", "commit as a value", "contents"],
)
def test_nothing_is_hidden_in_a_commit_s_wrapping(change: dict[str, Any]) -> None:
    outcome = tried(lambda: read_commit({**COMMIT, **change}, "/a/b", org=ORG, limits=LIMITS, now_ms=NOW))
    assert isinstance(outcome, DroppedError)
    assert outcome.rule is DoorRule.COMMIT


@given(
    st.dictionaries(st.sampled_from(sorted(COMMIT)), JSON, max_size=3),
    st.lists(st.sampled_from(sorted(COMMIT)), max_size=2),
)
@pytest.mark.slow
def test_any_commit_is_read_or_taken_out(changes: dict[str, Any], removed: list[str]) -> None:
    raw = {name: value for name, value in {**COMMIT, **changes}.items() if name not in removed}
    outcome = tried(lambda: read_commit(raw, "/data/notes", org=ORG, limits=LIMITS, now_ms=NOW))
    if isinstance(outcome, DroppedError):
        assert outcome.rule in DoorRule
    else:
        assert (outcome.id, outcome.key) == (raw["id"], raw["k"])


@given(JSON)
def test_whatever_is_no_commit_is_taken_out(raw: Any) -> None:
    with pytest.raises(DroppedError):
        read_commit(raw, "/data/notes", org=ORG, limits=LIMITS, now_ms=NOW)


@pytest.mark.slow
@pytest.mark.parametrize("junk", [b"[],", b"{},", b'{"a":0},'])
def test_a_batch_of_more_values_than_any_has_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    """SECURITY: guards `read_batch`: parsed, such a body would take hundreds of times its size in memory."""
    body = to_json_bytes([element("/data/x", [])]).replace(b'"c":[]', b'"c":[' + (junk * 200_001)[:-1] + b"]")
    monkeypatch.setattr("goatherd.door.request_checks.parse_json", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(RefusedError) as refused:
        read_batch(body, LIMITS)
    assert (refused.value.rule, refused.value.status) == (DoorRule.BODY, 400)


LARGE = '"p":"' + "x" * SMALL_BODY + '"'
UNPARSED = {
    "many values": f'{{{LARGE},"a":[{"{}," * 200_000}0]}}',
    "not JSON": f"{{{LARGE} this is not JSON}}",
    "nested": f'{{{LARGE},"a":{"[" * 300}{"]" * 300}}}',
    "forbidden member": f'{{{LARGE},"hasOwnProperty":1}}',
    "small items": "{}," * 10_000 + "0",
}


@pytest.mark.parametrize("items", UNPARSED.values(), ids=UNPARSED.keys())
@pytest.mark.parametrize(
    "place",
    [
        '[{"path":"/a/b","msg":{F,"c":[],"ad":[X]}}]',
        '[{"path":"/a/b","msg":{F,"z":[X]}}]',
        '[{"path":"/a/b","msg":{F,"c":[X],"c":[]}}]',
        '[{"path":"/a/b","msg":{F,"c":[X],"\\u0063":[]}}]',
        '[{"path":"/a/b","msg":{F,"c":[X],"\\u0063":[0]}}]',
        '[{"path":"/a/b","msg":{"c":[X]},"msg":{F,"c":[]}}]',
        '[{"path":"/a/b","msg":{F},"x":{"c":[X]}}]',
    ],
    ids=["ad", "z", "c twice", "c escaped", "c escaped, a number", "message twice", "another member"],
)
@pytest.mark.slow
def test_nothing_in_a_large_batch_reaches_the_server_unparsed(place: str, items: str) -> None:
    """SECURITY: guards `_check_other_lists`: the server parses a body before it authenticates the sender."""
    body = place.replace("F", to_json_bytes(MESSAGE).decode()[1:-1].replace(',"c":[],"ad":[]', "")).replace("X", items)
    outcome = tried(lambda: read_batch(body.encode(), LIMITS))
    assert isinstance(outcome, RefusedError)
    assert outcome.status == 400


def test_empty_arrays_of_a_large_batch_stay_empty() -> None:
    raw = {**element("/a/b", [COMMIT]), "x": {"c": [], "y": []}, "p": "x" * SMALL_BODY}
    (found,) = read_batch(to_json_bytes([raw]), LIMITS)
    assert [each.raw for each in found.commits] == [COMMIT]
    assert found.raw == {**raw, "msg": {**raw["msg"], "c": []}}


def test_no_member_of_an_element_is_one_that_the_server_cannot_decode() -> None:
    for size in (0, SMALL_BODY):
        body = to_json_bytes([{**element("/a/b"), "x": {"hasOwnProperty": 1}, "p": "x" * size}])
        outcome = tried(lambda body=body: read_batch(body, LIMITS))  # type: ignore[misc]
        assert isinstance(outcome, RefusedError)
