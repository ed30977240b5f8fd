"""The door's pure parts: what a request must look like, who is counted, what leaves, what the server survives."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goatherd.admission.commits import is_nested_deeper
from goatherd.clock import SystemClock
from goatherd.door import request_checks
from goatherd.door.commit_index import FirstSeen, RepositoryIndex
from goatherd.door.delivery import parents_first
from goatherd.door.key_filter import KeyFilter, filter_session_answer, script_with_server_url
from goatherd.door.limits import DoorLimits
from goatherd.door.repository_reader import Rounds
from goatherd.door.request_checks import (
    DroppedError,
    Rule,
    check_headers,
    check_target,
    read_batch,
    read_commit,
)
from goatherd.errors import DecodeError, NodeUnreachableError
from goatherd.serving.caller_limits import Rate, RefusedError, TokenBuckets, find_caller
from goatherd.wire.commit import Commit
from goatherd.wire.json import parse_json, to_json_bytes
from goatherd.wire.messages import decode_request_element
from goatherd.wire.paths import repository_id
from goatherd.wire.schema import Registry, Schema, SchemaField
from tests.cluster.door_world import A, X
from tests.deadlines import HANG
from tests.unit.goats import NOW, ORG, commit_by, element, key_of, new_id

LIMITS = DoorLimits()


# --- paths and headers ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "host", [b"", b"h/", b"h?x", b"h#x", b"u@h", b"h\\x", b"h:x", b"h h", b"[::1", b"h%2f"], ids=str
)
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
    """There the original throws while it finds out what is asked for."""
    with pytest.raises(RefusedError) as caught:
        check_headers([(b"host", host)])
    assert caught.value.status == 400


# --- bodies -----------------------------------------------------------------------------------------------------------


def tried(read: Callable[[], Any]) -> Any:
    """Return what was read, or the refusal; nothing else may come out."""
    try:
        return read()
    except (RefusedError, DroppedError) as refusal:
        return refusal


PATHS = st.text(alphabet="ab/.-_ A0\\", max_size=12)


@given(PATHS)
def test_a_path_that_is_taken_is_the_repository_that_the_server_opens(path: str) -> None:
    outcome = tried(lambda: read_batch(to_json_bytes([element(path)]), LIMITS))
    if isinstance(outcome, RefusedError):
        assert outcome.rule is Rule.PATH
    else:
        assert repository_id(path) == outcome[0].path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["path", "msg", "c", "f", "s", "id", "k", "p", "r", "e", "b", "d", "sig", "af", "__t", "__v", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


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
def test_the_short_way_for_polls_lets_nothing_through_that_the_long_way_refuses(
    changes: dict[str, Any], inner: dict[str, Any]
) -> None:
    message = {**MESSAGE, "f": {"__t": "E", "__v": {"d": "AA==", "s": [1, 2], **inner}}, **changes}
    # Python writes what no JSON has; a number this large is what JavaScript reads as infinite.
    raw = parse_json(json.dumps({"path": "/a/b", "msg": message}).replace("Infinity", "1e999"))
    if request_checks._is_as_always(raw, LIMITS):
        decode_request_element(raw)
        assert not is_nested_deeper({name: value for name, value in raw["msg"].items() if name != "c"}, LIMITS.depth)


def test_what_clients_send_goes_the_short_way() -> None:
    assert request_checks._is_as_always(element("/data/x"), LIMITS)


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
    assert outcome.rule is Rule.MESSAGE


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
    assert outcome.rule is Rule.CONTENTS
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
    assert outcome.rule is Rule.COMMIT


@given(
    st.dictionaries(st.sampled_from(sorted(COMMIT)), JSON, max_size=3),
    st.lists(st.sampled_from(sorted(COMMIT)), max_size=2),
)
def test_any_commit_is_read_or_taken_out(changes: dict[str, Any], removed: list[str]) -> None:
    raw = {name: value for name, value in {**COMMIT, **changes}.items() if name not in removed}
    outcome = tried(lambda: read_commit(raw, "/data/notes", org=ORG, limits=LIMITS, now_ms=NOW))
    if isinstance(outcome, DroppedError):
        assert outcome.rule in Rule
    else:
        assert (outcome.id, outcome.key) == (raw["id"], raw["k"])


@given(JSON)
def test_whatever_is_no_commit_is_taken_out(raw: Any) -> None:
    with pytest.raises(DroppedError):
        read_commit(raw, "/data/notes", org=ORG, limits=LIMITS, now_ms=NOW)


# --- how much ---------------------------------------------------------------------------------------------------------


def test_a_bucket_fills_up_again_and_never_beyond_its_size() -> None:
    buckets = TokenBuckets(Rate(per_second=2, burst=3))
    assert [buckets.take("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b", 100.0) == 0
    assert buckets.take("a", 100.5) == 0
    assert [buckets.take("a", 10_000.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("c", 1.0, 50) == 0, "more than the burst is the burst"
    assert buckets.take("c", 1.0, 50) == 1.5


def test_the_table_of_buckets_does_not_grow_without_end() -> None:
    buckets = TokenBuckets(Rate(per_second=1, burst=1), capacity=10)
    for number in range(1000):
        buckets.take(str(number), 1.0)
    assert len(buckets) == 10


TRUSTED = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128"))


@pytest.mark.parametrize(
    ("address", "forwarded", "expected"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("10.1.1.1", "198.51.100.1", "198.51.100.1"),
        ("10.1.1.1", "198.51.100.1, 10.2.2.2", "198.51.100.1"),
        ("10.1.1.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.1.1.1", "203.0.113.9, nonsense", "10.1.1.1"),
        ("10.1.1.1", "", "10.1.1.1"),
        ("::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8::1", "", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "", "192.0.2.7"),
        ("fe80::1%eth0", "", "fe80::/64"),
        ("", "", ""),
    ],
)
def test_the_caller_is_who_the_nearest_trusted_proxy_says(address: str, forwarded: str, expected: str) -> None:
    assert find_caller(address, forwarded, TRUSTED) == expected


# --- what leaves ------------------------------------------------------------------------------------------------------


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
    """Return how many times as long four times the work takes."""

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
    assert json.loads(body)["roots"] == []
    assert (leaked, untrusted) == (["root-a"], ["root-a"])


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"session":{}}', b'{"session":{},"roots":[5]}', b'{"session":{},"roots":[{"id":"a"}]}'],
    ids=["nothing", "list", "no roots", "a number", "no key"],
)
def test_an_answer_of_auth_session_that_is_none_does_not_leave(body: bytes) -> None:
    with pytest.raises(DecodeError):
        filter_session_answer(body, lambda *_: True)


# --- what the server survives -----------------------------------------------------------------------------------------


class Held:
    """A repository that answers as a server does, until it is told not to."""

    def __init__(self, *commits: Commit) -> None:
        self.commits = list(commits)
        self.asked = 0
        self.is_away = False
        self.server_generation = 0

    async def ask(self, body: bytes, signature: str) -> tuple[int, bytes]:
        self.asked += 1
        if self.is_away:
            raise NodeUnreachableError("away")
        held = {each.id for each in self.commits}
        for raw in json.loads(body)[0]["msg"]["c"]:
            if raw["id"] not in held:
                self.commits.append(Commit.from_json(raw, org=ORG))
        commits = [each.to_json() for each in self.commits]
        return 200, to_json_bytes([{"path": "/d/x", "res": {"c": commits, "s": len(commits)}}])


def index_of(held: Held) -> RepositoryIndex:
    return RepositoryIndex(
        "/d/x", ask=held.ask, signer=lambda: A, clock=SystemClock(), server_generation=lambda: held.server_generation
    )


def note(key: str, commit_id: str | None = None, parents: tuple[str, ...] = ()) -> Commit:
    return commit_by(X, key, {"text": "x"}, commit_id=commit_id, parents=parents)


async def test_a_second_creation_waits_for_the_first_and_is_admitted_when_that_was_not_stored() -> None:
    index = index_of(Held())
    await index.refresh()
    first, second = note("k"), note("k")
    assert await index.hold_accepted([first]) == [None]
    later = asyncio.create_task(index.hold_accepted([second]))
    await asyncio.sleep(0.05)
    assert not later.done()
    index.settle_commits([first], is_stored=False)
    assert await later == [None]


async def test_a_second_creation_whose_first_one_never_settles_is_not_taken_for_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goatherd.door.commit_index._SETTLING_SECONDS", 0.05)
    index = index_of(Held())
    await index.refresh()
    assert await index.hold_accepted([note("k")]) == [None]
    with pytest.raises(NodeUnreachableError):
        await index.hold_accepted([note("k")])


async def test_what_the_child_has_left_out_does_not_keep_the_key_from_others() -> None:
    """A rule of the application's may have refused it, silently; else anybody could take any key."""
    held = Held()
    index = index_of(held)
    await index.refresh()
    refused, good = note("k"), note("k")
    assert await index.hold_accepted([refused]) == [None]
    index.settle_commits([refused], is_stored=True)
    assert await index.hold_accepted([good]) == [None]
    index.settle_commits([good], is_stored=True)
    held.commits.append(good)
    assert await index.hold_accepted([refused]) == [None]
    (child,) = [each for each in held.commits if each.parents]
    assert child.parents == (good.id,)


class Merging(Held):
    """A model of `Repository.mergeIfNeeded`: which order of commits ends a GoatDB server.

    Attributes:
        now: The server's clock in milliseconds.
        died: Whether it has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.died = False

    async def ask(self, body: bytes, signature: str) -> tuple[int, bytes]:
        ((element,),) = [json.loads(body)]
        self.receive([Commit.from_json(raw, org=ORG) for raw in element["msg"]["c"]])
        return await super().ask(body, signature)

    def receive(self, commits: Sequence[Commit]) -> None:
        held = {each.id for each in self.commits}
        fresh = sorted((each for each in commits if each.id not in held), key=lambda each: each.ts)
        for at in range(0, len(fresh), 50):  # GoatDB stores so many, then looks at each
            batch = fresh[at : at + 50]
            self.commits += batch
            for each in batch:
                self.merge_if_needed(each.key)

    def merge_if_needed(self, key: str) -> None:
        parents = {parent for each in self.commits for parent in each.parents}
        of_key = [each for each in self.commits if each.key == key]
        leaves = [each for each in of_key if each.id not in parents]
        recent = {each.session for each in leaves if abs(self.now - each.ts) <= 5_000}
        if len(leaves) < 2 or (recent and A.id not in recent):
            return
        if not any(each.id in parents for each in of_key):
            self.died = True
            return
        self.commits.append(commit_by(A, key, {"text": "merged"}, ts=self.now, parents=[each.id for each in leaves]))


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "edit", "both"]),
        st.sampled_from(["k", "j"]),
        st.sampled_from([0, 4_000, 5_001, 100_000]),
        st.sampled_from([0, 3_000, 10_000]),
    ),
    min_size=1,
    max_size=12,
)


@given(_STEPS, st.integers(1, 4))
async def test_no_order_of_creations_and_edits_ends_the_server_and_none_is_lost(
    steps: list[tuple[str, str, int, int]], size: int
) -> None:
    held = Merging()
    index = index_of(held)
    await index.refresh()
    mine: list[Commit] = []
    for at in range(0, len(steps), size):
        push: list[Commit] = []
        for kind, key, age, pause in steps[at : at + size]:
            held.now += pause
            of_key = [each for each in (*mine, *push) if each.key == key]
            if kind != "create" and of_key:
                push.append(commit_by(X, key, {"text": "e"}, ts=held.now - age, parents=[of_key[-1].id]))
            if kind != "edit" or not of_key:
                push.append(commit_by(X, key, {"text": "c"}, ts=held.now - age))
        assert await index.hold_accepted(push) == [None] * len(push)
        held.receive(push)
        index.settle_commits(push, is_stored=True)
        mine += push
        assert not held.died
    assert {each.id for each in mine} <= {each.id for each in held.commits}


async def test_a_commit_that_the_filter_hides_is_not_taken_for_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    index = index_of(held)
    await index.refresh()
    stored = note("k")
    assert await index.hold_accepted([stored]) == [None]
    index.settle_commits([stored], is_stored=True)
    index._reader._filter.add(stored.id)  # by mistake
    read = index._reader.read_new

    async def unless_hidden() -> list[dict[str, Any]]:
        if not index._reader.hides_commit(stored.id):
            held.commits = [stored]
        return await read()

    monkeypatch.setattr(index._reader, "read_new", unless_hidden)
    await index.refresh()
    assert await index.hold_accepted([note("k", parents=(stored.id,))]) == [None]


async def test_what_others_have_brought_is_found_out_before_a_refusal() -> None:
    held = Held()
    index = index_of(held)
    await index.refresh()
    parent = note("k")
    held.commits.append(parent)
    index._read_at = SystemClock().monotonic() - 1
    assert await index.hold_accepted([note("k", parents=(parent.id,))]) == [None]


async def test_a_server_that_has_started_again_is_read_before_anything_is_judged() -> None:
    birth, lost = note("k"), note("j")
    held = Held(birth, lost)
    index = index_of(held)
    await index.refresh()
    on_both = [note("k", parents=(birth.id,)), note("j", parents=(lost.id,))]
    assert await index.hold_accepted(on_both) == [None, None]
    index.settle_commits(on_both, is_stored=False)
    held.commits, held.server_generation = [birth], 1
    assert [each and each.rule for each in await index.hold_accepted(on_both)] == [None, Rule.BIRTH]
    assert await index.hold_accepted([note("j")]) == [None], "nothing of that key is there any more"


async def test_a_server_that_has_started_again_and_cannot_be_read_gets_nothing() -> None:
    birth = note("k")
    held = Held(birth)
    index = index_of(held)
    await index.refresh()
    held.server_generation, held.is_away = 1, True
    with pytest.raises(NodeUnreachableError):
        await index.hold_accepted([note("k", parents=(birth.id,))])


async def test_a_server_that_has_started_again_with_all_that_it_had_is_not_read_anew() -> None:
    held = Held(note("k"), note("j"))
    index = index_of(held)
    await index.refresh()
    asked, held.server_generation = held.asked, 1
    assert await index.hold_accepted([note("i")]) == [None]
    assert held.asked == asked + 1
    assert await index.hold_accepted([note("h")]) == [None]
    assert held.asked == asked + 1, "once"


async def test_a_parent_that_was_missing_may_come_later() -> None:
    """A server may hold a commit whose parents have not reached it yet."""
    late = note("k", "late")
    index = index_of(Held(note("k", parents=("late",))))
    await index.refresh()
    assert await index.hold_accepted([late]) == [None]
    assert await index.hold_accepted([note("k", "other")]) == [None], "some commit of that key has a child"


async def test_a_commit_that_comes_twice_in_a_message_is_one() -> None:
    index = index_of(Held())
    await index.refresh()
    assert [each and each.rule for each in await index.hold_accepted([note("k", "a"), note("j", "a")])] == [
        None,
        Rule.COMMIT,
    ]


async def test_what_another_push_delivers_is_waited_for_and_not_delivered_twice() -> None:
    index = index_of(Held())
    await index.refresh()
    first, other = note("k").to_json(), note("j").to_json()
    assert index.claim_commits([first], "A") == ([first], [])
    assert index.claim_commits([first, other], "B") == ([other], [first])
    waiting = asyncio.create_task(index.wait_for_claims([first], "B"))
    await asyncio.sleep(0)
    assert not waiting.done()
    index.release_claims([first["id"]], "B")
    await asyncio.sleep(0)
    assert not waiting.done(), "only who has claimed it releases it"
    index.release_claims([first["id"]], "A")
    await asyncio.wait_for(waiting, HANG)
    assert not index.holds_id(first["id"]), "the delivery failed: another push may deliver it"
    assert index.claim_commits([first], "B") == ([first], [])


async def test_a_commit_under_the_id_of_one_that_is_being_delivered_is_not_taken_for_that_one() -> None:
    index = index_of(Held())
    await index.refresh()
    genuine = note("k").to_json()
    forged = {**genuine, "k": "other"}
    assert index.claim_commits([forged], "attacker") == ([forged], [])
    assert index.claim_commits([genuine], "owner") == ([genuine], [])
    index.release_claims([genuine["id"]], "owner")
    assert index.find_claimant(genuine["id"]) == "attacker"


async def test_what_the_server_has_is_not_delivered_again_but_another_commit_of_its_id_is_judged() -> None:
    index = index_of(Held())
    await index.refresh()
    first = note("k")
    assert not index.holds_commit(first)
    assert await index.hold_accepted([first]) == [None]
    assert not index.holds_commit(first), "it is on its way"
    index.settle_commits([first], is_stored=True)
    assert index.holds_commit(first)
    assert not index.holds_commit(note("j", first.id))


@given(st.lists(st.lists(st.integers(0, 11), max_size=3), min_size=12, max_size=12), st.permutations(range(12)))
def test_a_push_is_put_into_an_order_in_which_parents_come_first(links: list[list[int]], order: list[int]) -> None:
    raws: list[dict[str, Any]] = []
    for number, others in enumerate(links):
        earlier = [str(each) for each in others if each < number]
        raws.append({"id": str(number), "p": earlier, "c": {"b": earlier[0]} if earlier else {"r": {}}})
    found = parents_first([raws[number] for number in order])
    assert sorted(found, key=lambda raw: int(raw["id"])) == raws
    at = {raw["id"]: position for position, raw in enumerate(found)}
    for raw in raws:
        assert all(at[each] < at[raw["id"]] for each in raw["p"])


def test_the_order_of_commits_that_wait_for_nothing_stays_and_circles_and_nonsense_are_kept() -> None:
    plain: list[Any] = [{"id": "b"}, {"id": "a"}, None, {"id": 1}, {"id": "c", "p": ["a", 7], "c": []}]
    assert parents_first(plain) == plain
    circle: list[Any] = [{"id": "a", "p": ["b"]}, {"id": "b", "p": ["a"]}, {"id": "c", "p": ["c"]}]
    assert sorted(map(str, parents_first(circle))) == sorted(map(str, circle))


async def test_a_commit_that_is_on_its_way_keeps_its_id() -> None:
    index = index_of(Held())
    await index.refresh()
    first = note("k", "a")
    assert await index.hold_accepted([first]) == [None]
    assert await index.hold_accepted([first]) == [None]
    assert [each and each.rule for each in await index.hold_accepted([note("j", "a")])] == [Rule.COMMIT]


def test_no_more_ids_are_remembered_than_there_is_room_for() -> None:
    first_seen = FirstSeen(2)
    for commit_id in ("a", "b", "c"):
        first_seen.record_commit(commit_id, "/d/x")
    assert [first_seen.is_elsewhere(each, "/d/y") for each in ("a", "b", "c")] == [False, True, True]


async def test_a_repository_that_cannot_be_read_is_not_an_empty_one() -> None:
    held = Held()
    held.is_away = True
    with pytest.raises(NodeUnreachableError):
        await index_of(held).refresh()


@given(st.permutations(range(8)))
async def test_a_history_is_admitted_in_any_order(order: list[int]) -> None:
    chain = [note("k", new_id())]
    for _ in range(7):
        chain.append(note("k", parents=(chain[-1].id,)))
    index = index_of(Held())
    await index.refresh()
    assert await index.hold_accepted([chain[position] for position in order]) == [None] * 8


async def test_many_who_ask_at_once_share_one_round_and_never_one_that_began_before() -> None:
    began: list[int] = []
    go_on = asyncio.Event()

    async def work() -> None:
        began.append(len(began))
        await go_on.wait()

    rounds = Rounds(work, "test")
    first = asyncio.create_task(rounds.run())
    await asyncio.sleep(0)
    others = [asyncio.create_task(rounds.run()) for _ in range(10)]
    await asyncio.sleep(0)
    others[0].cancel()
    go_on.set()
    await asyncio.wait([first, *others])
    assert began == [0, 1]
    await rounds.aclose()


@pytest.mark.parametrize("junk", [b"[],", b"{},", b'{"a":0},'])
def test_a_batch_of_more_values_than_any_has_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    """SECURITY: guards `read_batch`: parsed, such a body takes hundreds of times its size in memory."""
    body = to_json_bytes([element("/data/x", [])]).replace(b'"c":[]', b'"c":[' + (junk * 200_001)[:-1] + b"]")
    monkeypatch.setattr("goatherd.door.request_checks.parse_json", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(RefusedError) as refused:
        read_batch(body, LIMITS)
    assert (refused.value.rule, refused.value.status) == (Rule.BODY, 400)
