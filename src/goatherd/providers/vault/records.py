"""Encode the two Vault entries of a secret: its values, and a list of its versions and labels (the pointer).

Pure; `provider` decides the order of writes. Each entry carries a digest of itself, because Vault provides none. An
entry that differs from what was written counts as damaged, and is not repaired.

The pointer also holds the value with the label ``current`` in the field ``identity``, so that a reader gets this value
with one request, and one write changes the value and the label. Pointers of the first format have no such field. They
can still be read; the next change writes the second format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from goatherd.providers.values import CURRENT, SecretBytes
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    VersionedRecord,
    decode_base64,
    digest_of,
    encode_base64,
    must_be_equal,
    must_be_in_format,
    reading_members,
    record_content,
    record_of,
    with_digest,
)

VALUE_FORMAT: Final = "goatherd-vault-value/1"
POINTER_FORMAT: Final = "goatherd-vault-pointer/2"
FIRST_POINTER_FORMAT: Final = "goatherd-vault-pointer/1"
"""Without the current value. Written by nothing any more."""
TEXT_FIELD: Final = "identity"
BASE64_FIELD: Final = "identity_base64"
"""Instead of `TEXT_FIELD`, for a value that is not UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValue:
    """A secret value as decoded from one version of an entry in Vault.

    Attributes:
        value: The value as bytes.
        digest: The SHA-256 of the value in hex, checked.
        request: The `goatherd.providers.base.Call.request` of the call that wrote the value.
    """

    value: SecretBytes
    digest: str
    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPointer:
    """The content of a pointer entry in Vault: a secret's versions, labels and current value.

    Attributes:
        ledger: The versions and labels.
        current: The value of the version with the label ``current``. None if no version has the label, or if the entry
            is in the first format, which does not contain it.
        format: The format in which the entry was stored.
    """

    ledger: VersionedRecord
    current: SecretBytes | None = None
    format: str = POINTER_FORMAT


def encode_value(value: SecretBytes, request: str) -> dict[str, str]:
    """Encode a secret value as the data of an entry in Vault."""
    return {
        "format": VALUE_FORMAT,
        "request": request,
        "sha256": digest_of(value),
        "value": encode_base64(value.reveal()),
    }


def decode_value(data: Mapping[str, Any]) -> StoredValue:
    """Decode the data of an entry in Vault that holds a secret value.

    Raises:
        ForeignRecordError: Goatherd did not write the entry.
        DamagedRecordError: Goatherd wrote the entry, but it is damaged.
    """
    must_be_in_format(data, VALUE_FORMAT)
    encoded, digest, request = data.get("value"), data.get("sha256"), data.get("request")
    if not isinstance(encoded, str) or not isinstance(digest, str) or not isinstance(request, str):
        raise DamagedRecordError("a member is missing or has the wrong type")
    value = SecretBytes(decode_base64(encoded))
    if digest_of(value) != digest:
        raise DamagedRecordError("its digest does not match its value")
    return StoredValue(value=value, digest=digest, request=request)


def encode_pointer(stored: StoredPointer) -> dict[str, Any]:
    """Encode a secret's versions, labels and current value as the data of an entry in Vault."""
    return {**with_digest(stored.format, record_content(stored.ledger)), **_encode_current(stored.current)}


def decode_pointer(data: Mapping[str, Any]) -> StoredPointer:
    """Decode the data of a pointer entry in Vault: a secret's versions, labels and current value.

    Raises:
        ForeignRecordError: Goatherd did not write the entry.
        DamagedRecordError: Goatherd wrote the entry, but it is damaged.
    """
    must_be_in_format(data, POINTER_FORMAT, FIRST_POINTER_FORMAT)
    ledger = record_of(data)
    with reading_members():
        stored = StoredPointer(ledger=ledger, current=_decode_current(data), format=data["format"])
    must_be_equal(encode_pointer(stored), data)
    if stored.format == POINTER_FORMAT:
        number = ledger.labels.get(CURRENT)
        expected = None if number is None else ledger.versions[number].digest
        if expected != (None if stored.current is None else digest_of(stored.current)):
            raise DamagedRecordError(f"its {TEXT_FIELD} is not the value of the current version")
    return stored


def _encode_current(current: SecretBytes | None) -> dict[str, str]:
    if current is None:
        return {}
    try:
        return {TEXT_FIELD: current.reveal().decode("utf-8")}
    except UnicodeDecodeError:
        return {BASE64_FIELD: encode_base64(current.reveal())}


def _decode_current(data: Mapping[str, Any]) -> SecretBytes | None:
    if TEXT_FIELD in data:
        return SecretBytes(data[TEXT_FIELD].encode())
    if BASE64_FIELD in data:
        return SecretBytes(decode_base64(data[BASE64_FIELD]))
    return None
