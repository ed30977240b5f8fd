"""Compact commits have the values of decoded ones, and those of a log are read as the decoder does."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import DecodeError
from goatherd.wire.commit import Commit, new_commit
from goatherd.wire.json import parse_json, to_json, to_json_bytes
from goatherd.wire.schema import BUILTIN, Registry, Schema, SchemaField

NOTE = Schema(
    ns="note",
    version=1,
    fields=(
        SchemaField(name="text", type="string"),
        SchemaField(name="at", type="date"),
        SchemaField(name="tags", type="set"),
        SchemaField(name="n", type="number"),
    ),
)
REGISTRIES = {"builtin": BUILTIN, "notes": Registry([NOTE])}

NUMBERS = (
    st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, -0.0, 1.0, 1e-5, 9e-6, 1e-7, 1e15, 1e16, 1e21, 1e22, 2**53, 2**53 + 1, 0.1, 100, 1.5e300])
)
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["", '"', "\\", "1e5", "a.0,", '","sig":"x","cid":"y"}', "é", "\u2028", "\x7f"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(["1", "01", "10"]), inner, max_size=3)
    ),
    max_leaves=6,
)
DATA = st.dictionaries(st.sampled_from(["text", "at", "tags", "n", "x", "7"]), VALUES, max_size=4)
CONTENTS = st.fixed_dictionaries(
    {
        "r": st.fixed_dictionaries(
            {
                "s": st.sampled_from(["note/1", "other/1", "sessions/1", "null"]),
                "d": DATA,
                "n": st.just(True),
                "cs": TEXTS,
            },
        )
    },
    optional={"z": VALUES},
) | st.fixed_dictionaries(
    {
        "b": TEXTS,
        "e": st.fixed_dictionaries(
            {
                "sc": TEXTS,
                "dc": TEXTS,
                "c": st.dictionaries(
                    TEXTS,
                    st.lists(
                        st.fixed_dictionaries(
                            {
                                "__t": st.just("E"),
                                "__v": st.fixed_dictionaries(
                                    {
                                        "changeType": st.sampled_from(["fd", "fd", "zz"]),
                                        "vType": st.sampled_from(["string", "number", "set", "date"]),
                                        "value": VALUES,
                                    }
                                ),
                            }
                        ),
                        max_size=2,
                    ),
                    max_size=2,
                ),
                "s": st.just("note/1"),
            }
        ),
    }
)
FILTERS = st.fixed_dictionaries(
    {
        "d": st.sampled_from(["", "AA==", "AB==", "AAA=", "AAB=", "AAAA", "A", "AA"]),
        "s": st.lists(st.integers(0, 2**53) | st.sampled_from([2**53 + 1, 9 * 10**15, -1, 1.0, 1.5]), max_size=3),
    }
)
RECORDS = st.fixed_dictionaries(
    {"ver": st.just(50595584) | NUMBERS, "id": TEXTS, "k": TEXTS, "s": TEXTS, "ts": st.just(1795000000000) | NUMBERS},
    optional={
        "org": st.sampled_from(["o", "other"]),
        "p": st.lists(TEXTS, max_size=3),
        "af": FILTERS,
        "ac": st.integers(0, 3) | NUMBERS,
        "c": CONTENTS,
        "sig": TEXTS,
        "mb": TEXTS,
        "ml": st.sampled_from(["leader", ""]),
        "revert": st.sampled_from(["leader", "other", ""]),
        "cid": TEXTS,
        "zzz": VALUES,
    },
)

PLAIN = new_commit(
    commit_id="id",
    key="key",
    session_id="session",
    ts=1795000000000,
    org="o",
    data={"text": "a", "n": 1.5},
    schema_marker="other/1",
    connection="connection",
    parents=("p1", "p2"),
    checksum="7",
).with_signature("sig")


def canonical(record: dict[str, Any], registry: Registry) -> bytes | None:
    try:
        return to_json_bytes(Commit.from_json(record, org="o", registry=registry).to_json())
    except DecodeError:
        return None


def outcome(read: Callable[[], Commit]) -> Commit | None:
    try:
        return read()
    except DecodeError:
        return None


@given(
    RECORDS,
    st.sampled_from(sorted(REGISTRIES)),
    st.sampled_from(["as it is", "canonical", "spaced", "escaped", "sorted"]),
)
def test_a_record_of_a_log_is_read_as_the_decoder_reads_it(record: dict[str, Any], which: str, form: str) -> None:
    registry = REGISTRIES[which]
    line = to_json_bytes(record)
    if form == "canonical":
        line = canonical(parse_json(line), registry) or line
    elif form == "spaced":
        line = json.dumps(record).encode(errors="surrogatepass")
    elif form == "escaped":
        line = to_json(record).replace("e", "\\u0065").encode()
    elif form == "sorted":
        line = json.dumps(record, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
    expected = outcome(lambda: Commit.from_json(parse_json(line), org="o", registry=registry))
    found = outcome(lambda: Commit.from_stored(line, org="o", registry=registry))
    assert found == expected
    if expected is not None and found is not None:
        assert not found.is_compact or Commit.from_json(found.to_json(), org="o", registry=registry) == expected
        assert found.signed_object() == expected.signed_object()
        assert (found.schema, found.base, found.is_delta) == (expected.schema, expected.base, expected.is_delta)
        assert (found.data, found.edit, found.checksum) == (expected.data, expected.edit, expected.checksum)


@given(RECORDS)
def test_a_commit_that_becomes_compact_keeps_its_value(record: dict[str, Any]) -> None:
    record = parse_json(to_json_bytes(record))  # 0.0 and 0 are one number in JSON, and would differ in `repr`.
    read = outcome(lambda: Commit.from_json(record, org="o"))
    again = outcome(lambda: Commit.from_json(record, org="o"))
    if read is None or again is None:
        return
    encoded = to_json_bytes(again.to_json())
    read.compact()
    assert read == again
    assert read.encoded == encoded
    assert replace(read, id="other") == replace(again, id="other")
    assert repr(read) == repr(again)


@pytest.mark.parametrize(
    "line",
    [
        PLAIN.encoded,
        replace(PLAIN, parents=()).encoded,
        replace(PLAIN, merge_base="b", merge_leader="l").encoded,
        replace(PLAIN, merge_leader="l", revert=True).encoded,
        json.dumps(PLAIN.to_json(), sort_keys=True).encode(),
        PLAIN.encoded.replace(b'"n":1.5', b'"n": 1E16'),
    ],
)
def test_a_full_commit_of_an_application_s_item_is_not_decoded(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Commit, "from_json", lambda *_, **__: pytest.fail("it was decoded"))
    found = Commit.from_stored(line, org="o")
    assert found.is_compact
    assert found.encoded is line


@pytest.mark.parametrize("member", [b'"age":7', b'"x":{"__t":"E"}'])
def test_members_that_no_commit_has_are_not_sent_on(member: bytes) -> None:
    assert Commit.from_stored(PLAIN.encoded[:-1] + b"," + member + b"}", org="o").encoded == PLAIN.encoded


@pytest.mark.parametrize("change", [(b"a", b"root"), (b'"a"', b' "root"'), (b'"a"', b'"\\u0072oot"')])
def test_a_string_is_found_however_it_is_written(change: tuple[bytes, bytes]) -> None:
    line = PLAIN.encoded.replace(b'"text":"a"', b'"text":"a"'.replace(*change))
    assert Commit.from_stored(PLAIN.encoded, org="o").may_contain("session")
    assert not Commit.from_stored(PLAIN.encoded, org="o").may_contain("root")
    assert Commit.from_stored(line, org="o").may_contain("root")


@pytest.mark.parametrize("member", ["version", "ancestors_count"])
def test_what_is_signed_of_a_compact_commit_has_no_number_in_another_form(member: str) -> None:
    # Text with a lone surrogate is parsed by another parser, for which integers of 16 digits are doubles.
    contents = {"r": {"s": "other/1", "d": {"x": "\ud800"}, "n": True, "cs": "7"}}
    commit = replace(PLAIN, contents=contents, **{member: 1_000_000_000_000_000})
    text = commit.signed_text("signer")
    commit.compact()
    assert commit.is_compact
    assert commit.signed_text("signer") == text


def test_a_record_of_another_organization_is_read_as_ones_own() -> None:
    assert Commit.from_stored(PLAIN.encoded, org="elsewhere") == replace(PLAIN, org="elsewhere")


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b"{", PLAIN.encoded[:-1], PLAIN.encoded + b" x", b"\xff" + PLAIN.encoded]
)
def test_a_damaged_record_is_an_error(line: bytes) -> None:
    with pytest.raises(DecodeError):
        Commit.from_stored(line, org="o")


def test_contents_that_hold_the_end_of_a_record_are_read_whole() -> None:
    tricky = replace(PLAIN, contents={"r": {**(PLAIN.record or {}), "d": {"sig": "x", "cid": "y", "z": {"sig": "1"}}}})
    assert Commit.from_stored(tricky.encoded, org="o") == tricky
    two = PLAIN.encoded.replace(b',"sig":"sig"', b',"c":{"r":{"s":"a/1","d":{}}},"sig":"sig"')
    assert Commit.from_stored(two, org="o").schema == "a/1"


def test_a_commit_whose_bytes_read_back_otherwise_stays_decoded() -> None:
    commit = replace(PLAIN, contents={"r": {"s": "other/1", "d": {"x": float("inf")}, "n": True, "cs": "7"}})
    commit.compact()
    assert not commit.is_compact
    assert (commit.data or {})["x"] == float("inf")


@pytest.mark.parametrize("is_compact", [False, True])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda commit: pickle.loads(pickle.dumps(commit))])
def test_a_duplicate_is_equal_and_only_a_shallow_one_shares_the_contents(
    duplicate: Callable[[Commit], Commit], is_compact: bool
) -> None:
    commit = new_commit(
        commit_id="i", key="k", session_id="s", ts=1, org="o", data={"n": 1}, schema_marker="note/1", connection="c"
    )
    if is_compact:
        commit.compact()
    assert commit.is_compact is is_compact
    other = duplicate(commit)
    assert other == commit
    assert other.encoded == commit.encoded
    assert (other.contents is commit.contents) is (duplicate is copy.copy and not is_compact)
