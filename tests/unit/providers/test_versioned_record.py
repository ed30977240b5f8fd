"""The record of versions and labels: its codec, damage, and old versions that make room for new ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from goatherd.providers.base import MAX_VALUE_BYTES, Call
from goatherd.providers.file.provider import HISTORY as FILE_HISTORY
from goatherd.providers.file.provider import FileStore
from goatherd.providers.kubernetes.provider import HISTORY as KUBERNETES_HISTORY
from goatherd.providers.kubernetes.provider import KubernetesStore
from goatherd.providers.record_provider import ObjectStore
from goatherd.providers.values import CURRENT, Label, SecretBytes
from goatherd.providers.vault.provider import HISTORY as VAULT_HISTORY
from goatherd.providers.vault.provider import MAX_VALUE_BYTES as VAULT_MAX_VALUE_BYTES
from goatherd.providers.vault.provider import VaultStore
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    NoRoomError,
    RecordedSecret,
    RecordedVersion,
    VersionedRecord,
    decode_members,
    decode_record,
    decode_secret,
    digest_of,
    encode_members,
    encode_record,
    encode_secret,
    entry_for,
    matches_entry,
    parse_json,
    parse_record,
    trim_secret,
    with_digest,
)

KEPT = Path(__file__).with_name("stored_records")
"""Never changed: a store may hold them."""

VALUES = st.one_of(st.binary(min_size=1, max_size=60), st.text(min_size=1, max_size=40).map(str.encode))


@st.composite
def secrets(draw: st.DrawFn) -> RecordedSecret:
    values = draw(st.dictionaries(st.integers(1, 10**6), st.one_of(st.none(), VALUES), min_size=1, max_size=5))
    living = {number: SecretBytes(value) for number, value in values.items() if value is not None}
    gone = RecordedVersion(created_ms=5, request="", digest="", size=0, destroyed=True)
    entries = {
        number: entry_for(living[number], request=draw(st.text(max_size=40)), now_ms=draw(st.integers(0, 2**53)))
        if number in living
        else gone._replace(destroyed=draw(st.booleans()))
        for number in values
    }
    names = st.sampled_from(["current", "stable", "mine"])
    labels = draw(st.dictionaries(names, st.sampled_from(sorted(living)))) if living else {}
    return RecordedSecret(
        record=VersionedRecord(
            versions=MappingProxyType(entries),
            labels=MappingProxyType({Label(name): number for name, number in labels.items()}),
        ),
        values=MappingProxyType(living),
        others=MappingProxyType(draw(st.dictionaries(st.sampled_from(["ca.pem", "v0", "Value"]), st.just(b"x")))),
    )


def test_the_bytes_of_a_kept_secret_are_those_that_are_written_today():
    raw = (KEPT / "record-1.json").read_text()
    found = decode_secret(json.loads(raw))
    assert json.dumps(encode_secret(found), indent=1, ensure_ascii=False) + "\n" == raw
    assert found.record.labels == {"current": 3, "stable": 1}
    assert [found.read_value(number).reveal() for number in (1, 3)] == [b"\xff\x00", '{"é": 1}\n'.encode()]
    assert found.record.versions[2].destroyed


@given(secrets())
def test_a_secret_comes_back_and_so_does_what_another_tool_put_beside_it(secret: RecordedSecret):
    assert decode_members(encode_members(secret)) == secret
    text = RecordedSecret(record=secret.record, values=secret.values, others={"note": "x"})
    assert decode_secret(json.loads(json.dumps(encode_secret(text)))) == text


@given(secrets(), st.data())
def test_a_member_that_is_missing_or_changed_is_damage(secret: RecordedSecret, data: st.DataObject):
    document = encode_record(secret.record)
    number = data.draw(st.sampled_from(sorted(document["versions"])))
    where = data.draw(st.sampled_from([document, document["versions"], document["versions"][number]]))
    before = where.pop(member := data.draw(st.sampled_from(sorted(where))))
    junk = data.draw(st.sampled_from([..., None, [], "x", float("inf")]))
    if junk is not ...:
        assume(junk != before)
        where[member] = junk
    with pytest.raises((DamagedRecordError, ForeignRecordError)):
        decode_record(json.loads(json.dumps(document)))


@given(secrets(), st.data())
def test_a_damaged_value_spoils_no_other(secret: RecordedSecret, data: st.DataObject):
    assume(secret.values)
    document = encode_secret(secret)
    names = sorted(name for name in document if name == "value" or (name[1:].isdecimal() and name != "v0"))
    name = data.draw(st.sampled_from(names))
    document[name] = data.draw(
        st.sampled_from(["another", 7, None, [], {}, {"base64": "*"}, {"base64": "eA=="}, "\ud800"])
    )
    found = decode_secret(document)
    spoilt = [number for number in sorted(secret.values) if found.values.get(number) != secret.values[number]]
    assert len(spoilt) == 1
    for number in secret.values:
        if number in spoilt:
            with pytest.raises(DamagedRecordError):
                found.read_value(number)
        else:
            assert found.read_value(number) == secret.values[number]


def test_a_record_without_versions_or_with_a_label_to_nowhere_is_damaged():
    gone = {"created": 1, "destroyed": True, "request": "", "sha256": "", "size": 0}
    for content in (
        {"versions": {}, "labels": {}},
        {"versions": {}, "labels": {"current": 1}},
        {"versions": {"1": gone}, "labels": {"current": 1}},
    ):
        with pytest.raises(DamagedRecordError, match="points at a version that does not exist"):
            decode_record(with_digest("goatherd-record/1", content))


@pytest.mark.parametrize("stored", ["", "{", b"\xff", "[" * 100_000])
def test_what_is_not_json_is_damaged(stored: str | bytes):
    with pytest.raises(DamagedRecordError, match="not JSON"):
        parse_json(stored)


@pytest.mark.parametrize("stored", ["[]", "1", '"x/1"', "{}", '{"format": 1}', '{"format": "x/3"}'])
def test_what_is_in_no_known_format_is_foreign(stored: str):
    with pytest.raises(ForeignRecordError, match="it is not in the format x/2"):
        parse_record(stored, "x/2", "x/1")


@pytest.mark.parametrize("document", [None, [], {}, {"record": None}, {"record": {"format": "goatherd-record/2"}}])
def test_an_object_in_another_format_is_foreign_and_not_damaged(document: Any):
    with pytest.raises(ForeignRecordError):
        decode_secret(document)
    with pytest.raises(ForeignRecordError):
        decode_members({"tls.crt": b"x"})


def test_an_entry_fits_its_value_only():
    value = SecretBytes(b"a value")
    entry = entry_for(value, request="r", now_ms=5)
    assert (entry.created_ms, entry.request, entry.digest, entry.size) == (5, "r", digest_of(value), 7)
    assert matches_entry(value, entry)
    assert not matches_entry(SecretBytes(b"a valuf"), entry)


def test_nothing_shows_a_value():
    value = SecretBytes(b"S3CRET")
    call = Call(provider="k8s", secret_id="ns/root", operation="write")
    made = VersionedRecord().with_first_version(call, entry_for(value, request="r", now_ms=0), CURRENT)
    shown = repr(RecordedSecret(record=made, values={1: value}, others={"theirs": b"S3CRET"}))
    assert "S3CRET" not in shown


# --- room -------------------------------------------------------------------------------------------------------------

STORES: list[tuple[type[ObjectStore], int, int]] = [
    (FileStore, FILE_HISTORY, MAX_VALUE_BYTES),
    (KubernetesStore, KUBERNETES_HISTORY, MAX_VALUE_BYTES),
    (VaultStore, VAULT_HISTORY, VAULT_MAX_VALUE_BYTES),
]


def sized(sizes: dict[int, int], labels: dict[str, int]) -> RecordedSecret:
    """Return a secret with versions of these sizes; 0 for one that is destroyed."""
    values = {number: SecretBytes(b"\xff" * size) for number, size in sizes.items() if size}
    gone = RecordedVersion(created_ms=1, request="r" * 32, digest="", size=0, destroyed=True)
    entries = {
        number: entry_for(values[number], request="r" * 32, now_ms=1) if size else gone
        for number, size in sizes.items()
    }
    record = VersionedRecord(
        versions=MappingProxyType(entries),
        labels=MappingProxyType({Label(name): number for name, number in labels.items()}),
    )
    return RecordedSecret(record=record, values=MappingProxyType(values))


def trimmed(kind: type[ObjectStore], secret: RecordedSecret, *pinned: int) -> RecordedSecret:
    """Return what a store keeps of a secret; it must be within the store's limit."""
    store = kind.__new__(kind)
    kept = trim_secret(
        secret, pinned, max_bytes=kind.max_bytes, max_unlabelled=kind.max_unlabelled, size_of=store.size_of
    )
    assert kind.max_bytes is not None
    assert store.size_of(kept) <= kind.max_bytes
    return kept


@pytest.mark.parametrize(("kind", "history", "longest"), STORES)
def test_what_a_store_promises_fits_with_values_of_the_greatest_length(
    kind: type[ObjectStore], history: int, longest: int
):
    labels = {"current": 60, **{f"label-{number}": number for number in range(1, 7)}}
    kept = trimmed(kind, sized(dict.fromkeys(range(1, 61), longest), labels))
    loose = [number for number in kept.record.versions if number not in labels.values()]
    assert loose == list(range(60 - len(loose), 60)), "the oldest go first"
    assert len(loose) >= history
    assert set(kept.values) == set(kept.record.versions)


@given(
    sizes=st.dictionaries(st.integers(1, 200), st.integers(0, 900), min_size=1, max_size=60),
    holders=st.lists(st.integers(0, 59), max_size=6),
)
def test_what_is_kept_holds_every_label_and_the_newest(sizes: dict[int, int], holders: list[int]):
    living = sorted(number for number, size in sizes.items() if size)
    labels = {f"label-{i}": living[holder % len(living)] for i, holder in enumerate(holders) if living}
    before = sized(sizes, labels)
    after = trimmed(KubernetesStore, before)
    assert set(after.record.labels.values()) <= set(after.record.versions)
    assert max(after.record.versions) == max(before.record.versions), "a number would be given twice"
    assert after.record.labels == before.record.labels
    loose = [n for n in living if n not in labels.values() and n != max(sizes)]
    kept = [n for n in loose if n in after.record.versions]
    assert kept == loose[len(loose) - len(kept) :], "the oldest go first"
    assert len(kept) == min(len(loose), 32)
    assert len(after.record.versions) - len(after.values) <= 33
    assert trimmed(KubernetesStore, after) is after


@pytest.mark.parametrize(("kind", "history", "longest"), STORES)
def test_labels_alone_can_be_too_much(kind: type[ObjectStore], history: int, longest: int):
    numbers = range(1, history + 25)
    with pytest.raises(NoRoomError):
        trimmed(kind, sized(dict.fromkeys(numbers, longest), {f"label-{n}": n for n in numbers}))


def test_what_is_pinned_or_being_destroyed_stays_though_it_is_the_oldest():
    many = sized(dict.fromkeys(range(1, 60), 10), {"current": 59})
    assert 1 not in trimmed(KubernetesStore, many).record.versions
    assert 1 in trimmed(KubernetesStore, many, 1).record.versions
    entry = many.record.versions[1]._replace(digest="", size=0)
    withdrawn = many.with_record(
        VersionedRecord(versions={**many.record.versions, 1: entry}, labels=many.record.labels)
    )
    assert 1 in trimmed(KubernetesStore, withdrawn).record.versions
