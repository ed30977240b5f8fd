"""Versions and labels for stores that have none of their own: a record that holds both as JSON, and its rules.

Pure. `LabelledVersions` has the rules by which labels move. A `VersionedRecord` lists the versions and where each label
points, for the memory, file, Vault and Kubernetes stores; Azure's pointers share its format. Each store's module
decides where the record is stored. A store that writes it as bytes describes the layout with a `RecordForm`. AWS and
Google have versions and labels of their own.

A record holds no values. It carries its own SHA-256, because most stores provide none. A record that is not exactly as
written is damaged, and is not repaired.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Generic, Self, TypeVar

from goatherd.errors import ConflictError, SecretExistsError, SecretNotFoundError, VersionDisabledError
from goatherd.providers.base import Call
from goatherd.providers.values import Label, SecretBytes, SecretVersion, VersionId, VersionState

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")

_MEMBERS: Final = ("created", "destroyed", "request", "sha256", "size")

_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


class ForeignRecordError(ValueError):
    """The record was not written by Goatherd, or by a later one."""


class DamagedRecordError(ValueError):
    """The record is not as it was written; the text says why and quotes nothing."""


def parse_number(version: str) -> int:
    """Return the number that a version id is; 0 where it is none."""
    return int(version) if _NUMBER.fullmatch(version) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedVersion:
    """One version.

    Attributes:
        created_ms: Milliseconds since 1970.
        request: The `Call.request` that wrote it, so that a repeated attempt is recognized.
        digest: SHA-256 of the value in hex.
        size: The value's length in bytes.
        destroyed: Whether the value is gone for good.
    """

    created_ms: int
    request: str
    digest: str
    size: int
    destroyed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledVersions(Generic[Key, Kept]):
    """Versions and labels of one secret, and the rules of compare-and-swap by which labels move. Immutable.

    What a store numbers or names its versions by, and what it keeps of one, is the store's.

    Attributes:
        versions: What is kept of each version.
        labels: Which version holds which label.
    """

    versions: Mapping[Key, Kept] = field(default_factory=lambda: MappingProxyType({}))
    labels: Mapping[Label, Key] = field(default_factory=lambda: MappingProxyType({}))

    def must_exist(self, call: Call) -> None:
        """Raise `SecretNotFoundError` unless there is a secret."""

    def find_version(self, call: Call, at: Label | VersionId) -> Key:
        """Return the key of a readable version.

        Raises:
            SecretNotFoundError: No such secret or version, or no version holds the label.
            VersionDisabledError: Its value was withdrawn.
        """
        self.must_exist(call)
        if isinstance(at, VersionId):
            key = self.parse_version(call, at)
        elif at in self.labels:
            key = self.labels[at]
        else:
            raise call.error(SecretNotFoundError, f"no version holds the label {at!r}")
        if (how := self.how_withdrawn(key)) is not None:
            raise call.error(VersionDisabledError, f"version {key} was {how}")
        return key

    def check_expected(self, call: Call, label: Label, expected: VersionId | None) -> None:
        """Raise `ConflictError` unless `label` is where `expected` says."""
        holder = self.labels.get(label)
        if (None if holder is None else str(holder)) != expected:
            found = "no version" if holder is None else f"version {holder}"
            wanted = "none" if expected is None else f"version {expected[:40]}"
            raise call.error(ConflictError, f"{found} holds the label {label!r}; expected: {wanted}")

    def with_label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> Self:
        """Return the record with `label` moved.

        Raises:
            SecretNotFoundError: No such secret or version.
            VersionDisabledError: The version's value was withdrawn.
            ConflictError: `label` is not where `expected` says.
        """
        key = self.find_version(call, version)
        self.check_expected(call, label, expected)
        return replace(self, labels=MappingProxyType({**self.labels, label: key}))

    def without_label(self, call: Call, label: Label, expected: VersionId) -> Self:
        """Return the record without `label`.

        Raises:
            SecretNotFoundError: No such secret.
            ConflictError: `label` is not where `expected` says.
        """
        self.must_exist(call)
        self.check_expected(call, label, expected)
        left = {name: key for name, key in self.labels.items() if name != label}
        return replace(self, labels=MappingProxyType(left))

    def require_unlabelled(self, call: Call, version: VersionId) -> Key:
        """Return the key of a version that no label holds, so that its value may be withdrawn.

        Raises:
            SecretNotFoundError: No such secret or version.
            ConflictError: A label points at it.
        """
        self.must_exist(call)
        key = self.parse_version(call, version)
        holders = sorted(self.labels_of(key))
        if holders:
            raise call.error(
                ConflictError,
                f"the label {holders[0]!r} points at version {key}",
                hint="Move the label to another version first.",
            )
        return key

    def labels_of(self, key: Key) -> frozenset[Label]:
        """Return the labels that a version holds."""
        return frozenset(label for label, holder in self.labels.items() if holder == key)

    def parse_version(self, call: Call, version: VersionId) -> Key:
        """Return the key of a version id.

        Raises:
            SecretNotFoundError: There is no such version.
        """
        raise NotImplementedError

    def how_withdrawn(self, key: Key) -> str | None:
        """Return what was done to a version's value, such as ``destroyed``; None where it can be read."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionedRecord(LabelledVersions[int, RecordedVersion]):
    """All versions and labels of one secret in a store that we number; an empty one stands for no secret.

    Version ids are the numbers 1, 2, 3…, parsed at the edge and never compared as text.
    """

    labels: Mapping[Label, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def exists(self) -> bool:
        """Whether there is a secret."""
        return bool(self.versions)

    @property
    def next_number(self) -> int:
        """The number that the next version gets."""
        return max(self.versions, default=0) + 1

    def describe_version(self, number: int) -> SecretVersion:
        """Return what a caller is told of version `number`."""
        entry = self.versions[number]
        return SecretVersion(
            id=VersionId(number),
            labels=self.labels_of(number),
            created_ms=entry.created_ms,
            state=VersionState.DESTROYED if entry.destroyed else VersionState.ENABLED,
        )

    def newest_first(self) -> list[SecretVersion]:
        """Return all versions by number, highest first."""
        return [self.describe_version(number) for number in sorted(self.versions, reverse=True)]

    def must_exist(self, call: Call) -> None:
        """Raise `SecretNotFoundError` unless there is a secret."""
        if not self.exists:
            raise call.error(SecretNotFoundError, "there is no such secret")

    def made_by(self, request: str) -> int | None:
        """Return the version that an earlier attempt of the same call wrote, if there is one."""
        newest = self.next_number - 1
        return next((n for n in range(newest, max(0, newest - 64), -1) if self._request_of(n) == request), None)

    def with_first_version(self, call: Call, entry: RecordedVersion, label: Label) -> VersionedRecord:
        """Return the ledger of a new secret.

        Raises:
            SecretExistsError: There is one.
        """
        if self.exists:
            raise call.error(SecretExistsError, "the secret exists already")
        return self._add_version(entry, label)

    def with_version(
        self, call: Call, entry: RecordedVersion, label: Label, expected: VersionId | None
    ) -> VersionedRecord:
        """Return the ledger with one more version that holds `label`.

        Raises:
            SecretNotFoundError: There is no secret.
            ConflictError: `label` is not where `expected` says.
        """
        self.must_exist(call)
        self.check_expected(call, label, expected)
        return self._add_version(entry, label)

    def without_value(self, call: Call, version: VersionId) -> VersionedRecord:
        """Return the ledger with a version's value gone; itself when it is gone already.

        Raises:
            SecretNotFoundError: No such secret or version.
            ConflictError: A label points at it.
        """
        number = self.require_unlabelled(call, version)
        if self.versions[number].destroyed:
            return self
        gone = replace(self.versions[number], destroyed=True, digest="", size=0)
        return replace(self, versions=MappingProxyType({**self.versions, number: gone}))

    def _request_of(self, number: int) -> str | None:
        entry = self.versions.get(number)
        return entry.request if entry else None

    def parse_version(self, call: Call, version: VersionId) -> int:
        number = parse_number(version)
        if number not in self.versions:
            raise call.error(SecretNotFoundError, f"there is no version {version[:40]!r}")
        return number

    def how_withdrawn(self, key: int) -> str | None:
        return "destroyed" if self.versions[key].destroyed else None

    def _add_version(self, entry: RecordedVersion, label: Label) -> VersionedRecord:
        number = self.next_number
        return VersionedRecord(
            versions=MappingProxyType({**self.versions, number: entry}),
            labels=MappingProxyType({**self.labels, label: number}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordForm:
    """How a store writes a `VersionedRecord` as bytes.

    Attributes:
        name: The name of the format, which is in the record.
        members: The order of the members of a version, which is part of the format.
        may_be_empty: Whether the store writes a record before it has a version.
        is_alone: Whether only this store writes such an object, so that a foreign record is a damaged one.
    """

    name: str
    members: tuple[str, ...] = _MEMBERS
    may_be_empty: bool = False
    is_alone: bool = False


def encode_record(record: VersionedRecord, form: RecordForm) -> bytes:
    """Return the bytes of a record."""
    return json.dumps(with_digest(form.name, record_content(record, form.members)), indent=1).encode() + b"\n"


def decode_record(raw: bytes, form: RecordForm) -> VersionedRecord:
    """Return the record that `raw` holds.

    Raises:
        ForeignRecordError: It is in another format.
        DamagedRecordError: It is not what `encode` wrote.
    """
    try:
        record = record_of(parse_record(raw, form.name), may_be_empty=form.may_be_empty)
    except ForeignRecordError as error:
        if form.is_alone:
            raise DamagedRecordError(str(error)) from None
        raise
    must_be_equal(encode_record(record, form), raw)
    return record


def encode_base64(raw: bytes) -> str:
    """Return the base64 of a value, as stores that take text hold it."""
    return base64.b64encode(raw).decode()


def decode_base64(encoded: object) -> bytes:
    """Return the bytes of a value that is stored as base64.

    Raises:
        DamagedRecordError: It is no base64.
    """
    try:
        return base64.b64decode(str(encoded), validate=True)
    except (binascii.Error, ValueError):
        raise DamagedRecordError("a value is not base64") from None


def digest_of(value: SecretBytes) -> str:
    """Return the SHA-256 of a value in hex."""
    return hashlib.sha256(value.reveal()).hexdigest()


def entry_for(value: SecretBytes, *, request: str, now_ms: int) -> RecordedVersion:
    """Return what a ledger keeps of a new version."""
    return RecordedVersion(created_ms=now_ms, request=request, digest=digest_of(value), size=value.size)


def matches_entry(value: SecretBytes, entry: RecordedVersion) -> bool:
    """Whether a value is the one that a ledger's entry was made for."""
    return value.size == entry.size and digest_of(value) == entry.digest


def with_digest(form: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its format and its digest before it."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"format": form, "sha256": digest, **content}


def parse_record(stored: str | bytes, *formats: str) -> dict[str, Any]:
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


def record_content(ledger: VersionedRecord, members: tuple[str, ...] = _MEMBERS) -> dict[str, Any]:
    """Return the members of a record that hold a ledger.

    Args:
        ledger: The versions and labels.
        members: The order of the members of a version, which is part of a store's format where bytes are compared.
    """
    return {
        "labels": {str(label): ledger.labels[label] for label in sorted(ledger.labels)},
        "versions": {
            str(number): {member: _encode_entry(entry)[member] for member in members}
            for number, entry in sorted(ledger.versions.items())
        },
    }


def record_of(document: Mapping[str, Any], *, may_be_empty: bool = False) -> VersionedRecord:
    """Return the ledger that a record holds.

    Args:
        document: The record's members.
        may_be_empty: Whether the store writes a record before it has a version.

    Raises:
        DamagedRecordError: A member is missing or of the wrong kind, or a label points at no version.
    """
    with reading_members():
        ledger = VersionedRecord(
            versions=MappingProxyType({int(n): _decode_entry(entry) for n, entry in document["versions"].items()}),
            labels=MappingProxyType({Label(name): int(n) for name, n in document["labels"].items()}),
        )
    if not (ledger.versions or may_be_empty) or not set(ledger.labels.values()) <= set(ledger.versions):
        raise DamagedRecordError("a label points at no version")
    return ledger


def _encode_entry(entry: RecordedVersion) -> dict[str, Any]:
    return {
        "created": entry.created_ms,
        "destroyed": entry.destroyed,
        "request": entry.request,
        "sha256": entry.digest,
        "size": entry.size,
    }


def _decode_entry(encoded: Mapping[str, Any]) -> RecordedVersion:
    return RecordedVersion(
        created_ms=int(encoded["created"]),
        request=str(encoded["request"]),
        digest=str(encoded["sha256"]),
        size=int(encoded["size"]),
        destroyed=bool(encoded["destroyed"]),
    )
