"""What the records of all stores have in common, and records in every format that a store has had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from goatherd.providers.azure import records as azure
from goatherd.providers.file import layout
from goatherd.providers.kubernetes import record as kubernetes
from goatherd.providers.values import Label, SecretBytes
from goatherd.providers.vault import records as vault
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    RecordedVersion,
    VersionedRecord,
    decode_record,
    digest_of,
    encode_record,
    entry_for,
    matches_entry,
    must_be_equal,
    parse_record,
    record_content,
    record_of,
    with_digest,
)

KEPT = Path(__file__).with_name("stored_records")
"""Written by the builds that introduced each format. Never changed: a store may hold them."""

ENTRIES = st.builds(
    RecordedVersion,
    created_ms=st.integers(0, 2**53),
    request=st.text(max_size=40),
    digest=st.text("0123456789abcdef", max_size=64),
    size=st.integers(0, 2**20),
    destroyed=st.booleans(),
)


@st.composite
def ledgers(draw: st.DrawFn) -> VersionedRecord:
    entries = draw(st.dictionaries(st.integers(1, 10**6), ENTRIES, min_size=1, max_size=5))
    labels = draw(st.dictionaries(st.sampled_from(["current", "stable", "mine"]), st.sampled_from(sorted(entries))))
    return VersionedRecord(
        versions=MappingProxyType(entries),
        labels=MappingProxyType({Label(name): number for name, number in labels.items()}),
    )


def vault_again(data: dict[str, Any]) -> object:
    return vault.encode_pointer(vault.decode_pointer(data))


def vault_value_again(data: dict[str, Any]) -> object:
    stored = vault.decode_value(data)
    return vault.encode_value(stored.value, stored.request)


def azure_again(text: str) -> str:
    pointer = azure.decode_pointer(text)
    content = azure._earlier_content if '"goatherd-azure-pointer/1"' in text else azure._pointer_content
    return azure._encode_content(json.loads(text)["format"], content(pointer))


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("file-1.json", lambda raw: encode_record(decode_record(raw, layout.FORM), layout.FORM)),
        ("kubernetes-1.json", lambda raw: kubernetes.encode_pointer(kubernetes.decode_pointer(raw))),
        ("azure-1.json", lambda raw: azure_again(raw.decode().rstrip("\n")).encode() + b"\n"),
        ("azure-2.json", lambda raw: azure_again(raw.decode().rstrip("\n")).encode() + b"\n"),
    ],
)
def test_the_bytes_of_a_kept_record_are_those_that_are_written_today(name: str, again: Callable[[bytes], bytes]):
    raw = (KEPT / name).read_bytes()
    assert again(raw) == raw


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("vault-pointer-1.json", vault_again),
        ("vault-pointer-2.json", vault_again),
        ("vault-pointer-2-binary.json", vault_again),
        ("vault-value-1.json", vault_value_again),
    ],
)
def test_the_members_of_a_kept_record_are_those_that_are_written_today(name: str, again: Callable[[Any], object]):
    data = json.loads((KEPT / name).read_text())
    assert again(data) == data


def test_kept_records_of_one_ledger_say_the_same_in_every_store():
    found = {
        "file": decode_record((KEPT / "file-1.json").read_bytes(), layout.FORM),
        "kubernetes": kubernetes.decode_pointer((KEPT / "kubernetes-1.json").read_bytes()),
        "vault": vault.decode_pointer(json.loads((KEPT / "vault-pointer-2.json").read_text())).ledger,
        "vault 1": vault.decode_pointer(json.loads((KEPT / "vault-pointer-1.json").read_text())).ledger,
    }
    assert found["file"].labels == {"stable": 1, "current": 10}
    assert found["file"].versions[2] == RecordedVersion(
        created_ms=1795536327039, request=f"{2:032x}", digest="", size=0, destroyed=True
    )
    assert all(ledger == found["file"] for ledger in found.values())


@given(ledgers())
def test_a_ledger_comes_back_whatever_the_order_of_the_members(ledger: VersionedRecord):
    for members in (("created", "destroyed", "request", "sha256", "size"), layout.FORM.members):
        record = with_digest("x/1", record_content(ledger, members))
        again = parse_record(json.dumps(record), "x/1")
        assert record_of(again) == ledger
        must_be_equal(with_digest("x/1", record_content(record_of(again), members)), again)


@given(ledgers(), st.data())
def test_a_member_that_is_missing_or_changed_is_damage(ledger: VersionedRecord, data: st.DataObject):
    document = with_digest("x/1", record_content(ledger))
    number = data.draw(st.sampled_from(sorted(document["versions"])))
    where = data.draw(st.sampled_from([document, document["versions"], document["versions"][number]]))
    before = where.pop(member := data.draw(st.sampled_from(sorted(where))))
    junk = data.draw(st.sampled_from([..., None, [], "x", float("inf")]))
    if junk is not ...:
        assume(junk != before)
        where[member] = junk
    with pytest.raises((DamagedRecordError, ForeignRecordError)):
        must_be_equal(
            with_digest("x/1", record_content(record_of(parse_record(json.dumps(document), "x/1")))), document
        )


def test_a_record_without_versions_or_with_a_label_to_nowhere_is_damaged():
    for content in ({"versions": {}, "labels": {}}, {"versions": {}, "labels": {"current": 1}}):
        with pytest.raises(DamagedRecordError, match="points at a version that does not exist"):
            record_of(content)
    with pytest.raises(DamagedRecordError, match="points at a version that does not exist"):
        record_of(content, may_be_empty=True)
    assert decode_record(encode_record(VersionedRecord(), layout.FORM), layout.FORM) == VersionedRecord(), (
        "a file store writes one before the first value"
    )


@pytest.mark.parametrize("stored", ["", "{", b"\xff", "[" * 100_000])
def test_what_is_not_json_is_damaged(stored: str | bytes):
    with pytest.raises(DamagedRecordError, match="not JSON"):
        parse_record(stored, "x/1")


@pytest.mark.parametrize("stored", ["[]", "1", '"x/1"', "{}", '{"format": 1}', '{"format": "x/3"}'])
def test_what_is_in_no_known_format_is_foreign(stored: str):
    with pytest.raises(ForeignRecordError, match="it is not in the format x/2"):
        parse_record(stored, "x/2", "x/1")


def test_an_entry_fits_its_value_only():
    value = SecretBytes(b"a value")
    entry = entry_for(value, request="r", now_ms=5)
    assert (entry.created_ms, entry.request, entry.digest, entry.size) == (5, "r", digest_of(value), 7)
    assert matches_entry(value, entry)
    assert not matches_entry(SecretBytes(b"a valuf"), entry)
    assert not matches_entry(SecretBytes(b"a value "), entry)
