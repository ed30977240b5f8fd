"""The content of the two entries: it is complete, damaged, or not Goatherd's."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.providers.values import Label, SecretBytes
from goatherd.providers.vault.records import (
    FIRST_POINTER_FORMAT,
    StoredPointer,
    decode_pointer,
    decode_value,
    encode_pointer,
    encode_value,
)
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    RecordedVersion,
    VersionedRecord,
    digest_of,
)

ENTRY = RecordedVersion(created_ms=1795536327037, request="r" * 32, digest="d" * 64, size=5)
LEDGER = VersionedRecord(
    versions=MappingProxyType({1: ENTRY, 10: ENTRY}),
    labels=MappingProxyType({Label("current"): 10, Label("stable"): 1}),
)


@given(st.binary(min_size=1, max_size=300))
def test_any_value_comes_back(value: bytes):
    stored = decode_value(json.loads(json.dumps(encode_value(SecretBytes(value), "request"))))
    assert (stored.value.reveal(), stored.request) == (value, "request")


@given(st.binary(min_size=1, max_size=300))
def test_a_pointer_comes_back_with_any_current_value(value: bytes):
    current = SecretBytes(value)
    entries = {**LEDGER.versions, 10: ENTRY._replace(digest=digest_of(current))}
    stored = StoredPointer(ledger=replace(LEDGER, versions=MappingProxyType(entries)), current=current)
    assert decode_pointer(json.loads(json.dumps(encode_pointer(stored)))) == stored


def test_a_pointer_of_the_first_format_comes_back():
    stored = StoredPointer(ledger=LEDGER, format=FIRST_POINTER_FORMAT)
    assert decode_pointer(json.loads(json.dumps(encode_pointer(stored)))) == stored


def test_a_pointer_without_its_current_value_is_damaged():
    with pytest.raises(DamagedRecordError, match="identity"):
        decode_pointer(encode_pointer(StoredPointer(ledger=LEDGER)))


@pytest.mark.parametrize(
    "change",
    [
        {"value": "Zmlyc1Q="},
        {"value": "not base64!"},
        {"value": None},
        {"sha256": "0" * 64},
        {"request": 5},
    ],
)
def test_a_damaged_value_is_told_and_not_quoted(change: dict[str, object]):
    with pytest.raises(DamagedRecordError) as caught:
        decode_value({**encode_value(SecretBytes(b"first"), "r"), **change})
    assert "Zmlyc" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"current": 1, "stable": 1}},
        {"labels": {"current": 7}},
        {"labels": None},
        {"versions": {}},
        {"versions": {"1": {}}},
        {"sha256": "0" * 64},
        {"more": 1},
    ],
)
def test_a_damaged_pointer_is_told(change: dict[str, object]):
    with pytest.raises(DamagedRecordError):
        decode_pointer({**encode_pointer(StoredPointer(ledger=LEDGER, format=FIRST_POINTER_FORMAT)), **change})


@pytest.mark.parametrize("data", [{}, {"format": "goatherd-vault-value/2"}, {"password": "x"}])
def test_what_is_not_ours_is_told_apart(data: dict[str, object]):
    for decode in (decode_value, decode_pointer):
        with pytest.raises(ForeignRecordError):
            decode(data)
