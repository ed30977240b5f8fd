"""The content of a Secret: a strict codec, and old versions that make room for new ones."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.providers.base import MAX_VALUE_BYTES, Call
from goatherd.providers.kubernetes.record import (
    BUDGET,
    HISTORY,
    MOST_UNLABELLED,
    NoRoomError,
    SecretObject,
    decode_object,
    decode_pointer,
    encode_pointer,
    new_object,
    trim_record,
)
from goatherd.providers.values import CURRENT, Label, SecretBytes
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    RecordedVersion,
    VersionedRecord,
    entry_for,
)

CALL = Call(provider="k8s", secret_id="ns/root", operation="write")


def entry(size: int = 100, *, destroyed: bool = False) -> RecordedVersion:
    size, digest = (0, "") if destroyed else (size, "d" * 64)
    return RecordedVersion(created_ms=1, request="r" * 32, digest=digest, size=size, destroyed=destroyed)


def ledger(sizes: dict[int, int], labels: dict[str, int]) -> VersionedRecord:
    return VersionedRecord(
        versions=MappingProxyType({number: entry(size, destroyed=size < 0) for number, size in sizes.items()}),
        labels=MappingProxyType({Label(name): number for name, number in labels.items()}),
    )


SIZES = st.dictionaries(
    st.integers(1, 200), st.one_of(st.integers(1, MAX_VALUE_BYTES), st.just(-1)), min_size=1, max_size=80
)


@given(sizes=SIZES, holders=st.lists(st.integers(0, 79), max_size=6))
def test_what_is_kept_fits_and_holds_every_label_and_the_newest(sizes: dict[int, int], holders: list[int]):
    living = sorted(number for number, size in sizes.items() if size > 0)
    labels = {f"label-{i}": living[holder % len(living)] for i, holder in enumerate(holders) if living}
    before = ledger(sizes, labels)
    after = trim_record(before)
    assert set(after.labels.values()) <= set(after.versions)
    assert max(after.versions) == max(before.versions), "a number would be given twice"
    assert sum(one.size for one in after.versions.values()) + len(encode_pointer(after)) <= BUDGET
    assert after.labels == before.labels
    loose = [n for n in living if n not in labels.values()]
    kept = [n for n in loose if n in after.versions]
    assert kept == loose[len(loose) - len(kept) :], "the oldest go first"
    assert len(kept) >= min(len(loose), HISTORY)
    assert len([n for n in kept if n != max(before.versions)]) <= MOST_UNLABELLED
    assert trim_record(after) is after


def test_labels_alone_can_be_too_much():
    with pytest.raises(NoRoomError):
        trim_record(ledger(dict.fromkeys(range(1, 17), MAX_VALUE_BYTES), {f"label-{n}": n for n in range(1, 17)}))


def test_what_is_pinned_stays_though_it_is_the_oldest():
    many = ledger(dict.fromkeys(range(1, 60), 10), {"current": 59})
    assert 1 not in trim_record(many).versions
    assert 1 in trim_record(many, {1}).versions


@given(sizes=SIZES)
def test_the_pointer_reads_back(sizes: dict[int, int]):
    before = ledger(sizes, {"current": min(sizes)})
    assert decode_pointer(encode_pointer(before)) == before


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_changed_byte_in_the_pointer_is_noticed(position: int, byte: int):
    raw = bytearray(encode_pointer(ledger({1: 5, 2: 6}, {"current": 2, "stable": 1})))
    position %= len(raw)
    if raw[position] == byte:
        return
    raw[position] = byte
    with pytest.raises((DamagedRecordError, ForeignRecordError)):
        decode_pointer(bytes(raw))


def test_another_format_is_foreign_and_not_damaged():
    later = {**json.loads(encode_pointer(ledger({1: 5}, {"current": 1}))), "format": "goatherd-k8s-pointer/2"}
    with pytest.raises(ForeignRecordError):
        decode_pointer(json.dumps(later).encode())
    for content in ({}, {"data": None}, {"data": {}}, {"data": {"tls.crt": "eA=="}}):
        with pytest.raises(ForeignRecordError):
            decode_object(content)


def test_nothing_shows_a_value():
    value = SecretBytes(b"S3CRET")
    made = VersionedRecord().with_first_version(CALL, entry_for(value, request="r", now_ms=0), CURRENT)
    record = SecretObject(ledger=made, content=new_object("ns", "root", made, value))
    assert record.read_value(1) == value
    assert "S3CRET" not in repr(record)
    assert "UzNDUkVU" not in repr(record)
