"""The content of the two entries of a secret: its values, and the pointer that says which of them count.

Pure. What it is: the codec of both. What it is not: the order in which they are written (`provider`). Rules: each
carries a digest of itself, because Vault gives none; what is not exactly as written is damaged; nothing is repaired.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from goatherd.providers.base import Label, SecretBytes
from goatherd.providers.ledger import Entry, Ledger

VALUE_FORMAT: Final = "goatherd-vault-value/1"
POINTER_FORMAT: Final = "goatherd-vault-pointer/1"


class ForeignRecordError(ValueError):
    """The entry was not written by Goatherd, or by a later one."""


class DamagedRecordError(ValueError):
    """The entry is not as it was written; the text says why and quotes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredValue:
    """One version of the entry of values.

    Attributes:
        value: The bytes.
        digest: Their SHA-256 in hex, checked.
        request: The `goatherd.providers.base.Call.request` that wrote it.
    """

    value: SecretBytes
    digest: str
    request: str


def digest_of(value: SecretBytes) -> str:
    """Return the SHA-256 of a value in hex."""
    return hashlib.sha256(value.reveal()).hexdigest()


def encode_value(value: SecretBytes, request: str) -> dict[str, str]:
    """Return what is stored for one value."""
    return {
        "format": VALUE_FORMAT,
        "request": request,
        "sha256": digest_of(value),
        "value": base64.b64encode(value.reveal()).decode(),
    }


def decode_value(data: Mapping[str, Any]) -> StoredValue:
    """Return the value that an entry holds.

    Raises:
        ForeignRecordError: It is not one of ours.
        DamagedRecordError: It is one of ours, but not whole.
    """
    if data.get("format") != VALUE_FORMAT:
        raise ForeignRecordError(f"it is not in the format {VALUE_FORMAT}")
    encoded, digest, request = data.get("value"), data.get("sha256"), data.get("request")
    if not isinstance(encoded, str) or not isinstance(digest, str) or not isinstance(request, str):
        raise DamagedRecordError("a member is missing or of the wrong kind")
    try:
        value = SecretBytes(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        raise DamagedRecordError("its value is not base64") from None
    if digest_of(value) != digest:
        raise DamagedRecordError("its digest does not fit its value")
    return StoredValue(value=value, digest=digest, request=request)


def encode_pointer(ledger: Ledger) -> dict[str, Any]:
    """Return what is stored for versions and labels."""
    content = _content(ledger)
    return {"format": POINTER_FORMAT, "sha256": _digest(content), **content}


def decode_pointer(data: Mapping[str, Any]) -> Ledger:
    """Return the versions and labels that an entry holds.

    Raises:
        ForeignRecordError: It is not one of ours.
        DamagedRecordError: It is one of ours, but not whole.
    """
    if data.get("format") != POINTER_FORMAT:
        raise ForeignRecordError(f"it is not in the format {POINTER_FORMAT}")
    try:
        ledger = Ledger(
            entries=MappingProxyType({int(n): _entry(entry) for n, entry in data["versions"].items()}),
            labels=MappingProxyType({Label(name): int(n) for name, n in data["labels"].items()}),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # the last: `Infinity` is JSON here
        raise DamagedRecordError("a member is missing or of the wrong kind") from None
    if not ledger.entries or not set(ledger.labels.values()) <= set(ledger.entries):
        raise DamagedRecordError("a label points at no version")
    if encode_pointer(ledger) != data:
        raise DamagedRecordError("its digest does not fit its content")
    return ledger


def _content(ledger: Ledger) -> dict[str, Any]:
    return {
        "labels": {str(label): number for label, number in ledger.labels.items()},
        "versions": {
            str(number): {
                "created": entry.created_ms,
                "destroyed": entry.destroyed,
                "request": entry.request,
                "sha256": entry.digest,
                "size": entry.size,
            }
            for number, entry in ledger.entries.items()
        },
    }


def _entry(encoded: Mapping[str, Any]) -> Entry:
    return Entry(
        created_ms=int(encoded["created"]),
        request=str(encoded["request"]),
        digest=str(encoded["sha256"]),
        size=int(encoded["size"]),
        destroyed=bool(encoded["destroyed"]),
    )


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
