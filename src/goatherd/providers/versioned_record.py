"""What the records of all stores have in common: a format, a digest of the record, and versions with labels.

Pure. What it is: the JSON of a `Ledger` (file, Vault, Kubernetes), and the format and digest around it, which Azure's
pointers have too. What it is not: where a record is stored, or what else is in it: each store's own module says that.
Rules: a record carries its own SHA-256, because most stores give none; what is not exactly as written is damaged;
nothing is repaired. AWS and Google store no record: they have versions and labels of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from goatherd.providers.ledger import Entry, Ledger
from goatherd.providers.values import Label, SecretBytes

_MEMBERS: Final = ("created", "destroyed", "request", "sha256", "size")


class ForeignRecordError(ValueError):
    """The record was not written by Goatherd, or by a later one."""


class DamagedRecordError(ValueError):
    """The record is not as it was written; the text says why and quotes nothing."""


def digest_of(value: SecretBytes) -> str:
    """Return the SHA-256 of a value in hex."""
    return hashlib.sha256(value.reveal()).hexdigest()


def entry_for(value: SecretBytes, *, request: str, now_ms: int) -> Entry:
    """Return what a ledger keeps of a new version."""
    return Entry(created_ms=now_ms, request=request, digest=digest_of(value), size=value.size)


def fits(value: SecretBytes, entry: Entry) -> bool:
    """Whether a value is the one that a ledger's entry was made for."""
    return value.size == entry.size and digest_of(value) == entry.digest


def sealed(form: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its format and its digest before it."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"format": form, "sha256": digest, **content}


def parse(stored: str | bytes, *formats: str) -> dict[str, Any]:
    """Return the members of a stored record. The digest is not checked: compare the record with what would be written.

    Args:
        stored: JSON.
        formats: Those that are known, the present one first.

    Raises:
        DamagedRecordError: It is not JSON.
        ForeignRecordError: It is in none of the formats.
    """
    try:
        document = json.loads(stored)
    except (ValueError, RecursionError):
        raise DamagedRecordError("it is not JSON") from None
    must_be_in_format(document, *formats)
    return dict(document)


def must_be_in_format(document: object, *formats: str) -> None:
    """Raise `ForeignRecordError` unless the record is in one of the formats."""
    if not isinstance(document, Mapping) or document.get("format") not in formats:
        raise ForeignRecordError(f"it is not in the format {formats[0]}")


@contextlib.contextmanager
def reading_members() -> Iterator[None]:
    """Raise `DamagedRecordError` for a member that is missing or of the wrong kind."""
    try:
        yield
    except DamagedRecordError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # the last: `Infinity` is JSON here
        raise DamagedRecordError("a member is missing or of the wrong kind") from None


def must_be_equal(written: object, stored: object) -> None:
    """Raise `DamagedRecordError` unless a record is stored as its content would be written now, with its digest."""
    if written != stored:
        raise DamagedRecordError("its digest does not fit its content")


def ledger_content(ledger: Ledger, members: tuple[str, ...] = _MEMBERS) -> dict[str, Any]:
    """Return the members of a record that hold a ledger.

    Args:
        ledger: The versions and labels.
        members: The order of the members of a version, which is part of a store's format where bytes are compared.
    """
    return {
        "labels": {str(label): ledger.labels[label] for label in sorted(ledger.labels)},
        "versions": {
            str(number): {member: _encoded(entry)[member] for member in members}
            for number, entry in sorted(ledger.entries.items())
        },
    }


def ledger_of(document: Mapping[str, Any], *, may_be_empty: bool = False) -> Ledger:
    """Return the ledger that a record holds.

    Args:
        document: The record's members.
        may_be_empty: Whether the store writes a record before it has a version.

    Raises:
        DamagedRecordError: A member is missing or of the wrong kind, or a label points at no version.
    """
    with reading_members():
        ledger = Ledger(
            entries=MappingProxyType({int(n): _entry(entry) for n, entry in document["versions"].items()}),
            labels=MappingProxyType({Label(name): int(n) for name, n in document["labels"].items()}),
        )
    if not (ledger.entries or may_be_empty) or not set(ledger.labels.values()) <= set(ledger.entries):
        raise DamagedRecordError("a label points at no version")
    return ledger


def _encoded(entry: Entry) -> dict[str, Any]:
    return {
        "created": entry.created_ms,
        "destroyed": entry.destroyed,
        "request": entry.request,
        "sha256": entry.digest,
        "size": entry.size,
    }


def _entry(encoded: Mapping[str, Any]) -> Entry:
    return Entry(
        created_ms=int(encoded["created"]),
        request=str(encoded["request"]),
        digest=str(encoded["sha256"]),
        size=int(encoded["size"]),
        destroyed=bool(encoded["destroyed"]),
    )
