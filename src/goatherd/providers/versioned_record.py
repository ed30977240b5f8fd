"""A JSON record of versions and labels, and its rules, for stores that have no versions or labels of their own.

Pure. `LabelledVersions` has the rules by which labels move. A `VersionedRecord` lists the versions and where each label
points, for the memory, file, Vault and Kubernetes stores; Azure's pointers use the same JSON. Each store's module
decides where the record is stored, and a store that writes it as bytes describes the layout with a `RecordForm`. AWS
and Google have versions and labels of their own.

A record holds no values. It contains a SHA-256 of its other members, because most stores have no checksums. A record
that differs from what was written counts as damaged, and is not repaired.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar

from goatherd.errors import ConflictError, SecretExistsError, SecretNotFoundError, VersionDisabledError
from goatherd.providers.base import Call
from goatherd.providers.values import Label, SecretBytes, SecretVersion, VersionId, VersionState

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")

RECENT: Final = 64
"""A destroyed version leaves the record when so many later ones were written."""
_MEMBERS: Final = ("created", "destroyed", "request", "sha256", "size")

_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


class ForeignRecordError(ValueError):
    """A stored record was not written by Goatherd, or was written by a later version of it."""


class DamagedRecordError(ValueError):
    """A stored record is not as Goatherd wrote it; the message says why and quotes nothing."""


def parse_number(version: str) -> int:
    """Parse a version id of a secret into its number; 0 if it is not a number."""
    return int(version) if _NUMBER.fullmatch(version) else 0


class RecordedVersion(NamedTuple):
    """What the record of a secret's versions contains about one version.

    Attributes:
        created_ms: When the version was written, in milliseconds since 1970.
        request: The `Call.request` of the call that wrote the version, by which a repeated attempt is recognized.
        digest: SHA-256 of the value in hex.
        size: The value's length in bytes.
        destroyed: Whether the value was permanently destroyed.
    """

    created_ms: int
    request: str
    digest: str
    size: int
    destroyed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledVersions(Generic[Key, Kept]):
    """The versions and labels of one secret, and the compare-and-swap rules by which labels move. Immutable.

    A subclass for each kind of store defines the keys of the versions and what is recorded of a version.

    Attributes:
        versions: The entry of each version, by its key.
        labels: For each label, the key of the version that it points at.
    """

    versions: Mapping[Key, Kept] = field(default_factory=lambda: MappingProxyType({}))
    labels: Mapping[Label, Key] = field(default_factory=lambda: MappingProxyType({}))

    def must_exist(self, call: Call) -> None:
        """Raise `SecretNotFoundError` unless the secret exists."""

    def find_version(self, call: Call, at: Label | VersionId) -> Key:
        """Find the version that a label or a version id names, check that it can be read, and return its key.

        Raises:
            SecretNotFoundError: There is no such secret or version, or no version has the label.
            VersionDisabledError: The version's value was disabled or destroyed.
        """
        self.must_exist(call)
        if isinstance(at, VersionId):
            key = self.parse_version(call, at)
        elif at in self.labels:
            key = self.labels[at]
        else:
            raise call.missing_label_error(at)
        if (how := self.how_withdrawn(key)) is not None:
            raise call.error(VersionDisabledError, f"version {key} was {how}")
        return key

    def with_label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> Self:
        """Return the record of versions and labels with `label` moved to another version.

        Raises:
            SecretNotFoundError: There is no such secret or version.
            VersionDisabledError: The version's value was disabled or destroyed.
            ConflictError: `label` does not point at the version `expected`.
        """
        key = self.find_version(call, version)
        call.check_holder(label, self.labels.get(label), expected)
        return replace(self, labels=MappingProxyType({**self.labels, label: key}))

    def without_label(self, call: Call, label: Label, expected: VersionId) -> Self:
        """Return the record of versions and labels without `label`.

        Raises:
            SecretNotFoundError: There is no such secret.
            ConflictError: `label` does not point at the version `expected`.
        """
        self.must_exist(call)
        call.check_holder(label, self.labels.get(label), expected)
        left = {name: key for name, key in self.labels.items() if name != label}
        return replace(self, labels=MappingProxyType(left))

    def require_unlabelled(self, call: Call, version: VersionId) -> Key:
        """Check that no label points at a version, so that its value may be destroyed, and return the version's key.

        Raises:
            SecretNotFoundError: There is no such secret or version.
            ConflictError: A label points at the version.
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
        """Return the labels that point at one version of the secret."""
        return frozenset(label for label, holder in self.labels.items() if holder == key)

    def parse_version(self, call: Call, version: VersionId) -> Key:
        """Return the key in the record of the version with the given id.

        Raises:
            SecretNotFoundError: There is no such version.
        """
        raise NotImplementedError

    def how_withdrawn(self, key: Key) -> str | None:
        """Return why a version's value cannot be read, such as ``destroyed``; None if it can be read."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionedRecord(LabelledVersions[int, RecordedVersion]):
    """All versions and labels of one secret, for a store whose versions Goatherd numbers; empty if there is no secret.

    Version ids are the numbers 1, 2, 3…; callers pass them as strings, which are parsed before they are compared.
    """

    labels: Mapping[Label, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def exists(self) -> bool:
        """Whether the secret exists, that is, has a version."""
        return bool(self.versions)

    @property
    def next_number(self) -> int:
        """The number that the secret's next version gets."""
        return max(self.versions, default=0) + 1

    def describe_version(self, number: int) -> SecretVersion:
        """Return a version of the secret as the `SecretVersion` that callers of the provider get."""
        entry = self.versions[number]
        return SecretVersion(
            id=VersionId(number),
            labels=self.labels_of(number),
            created_ms=entry.created_ms,
            state=VersionState.DESTROYED if entry.destroyed else VersionState.ENABLED,
        )

    def newest_first(self) -> list[SecretVersion]:
        """Return all versions of the secret, sorted by number, highest first."""
        return [self.describe_version(number) for number in sorted(self.versions, reverse=True)]

    def must_exist(self, call: Call) -> None:
        """Raise `SecretNotFoundError` unless the secret exists."""
        if not self.exists:
            raise call.error(SecretNotFoundError, "there is no such secret")

    def made_by(self, request: str) -> int | None:
        """Return the number of the version that the call with `request` has already written, if there is one."""
        newest = self.next_number - 1
        return next((n for n in range(newest, max(0, newest - RECENT), -1) if self._request_of(n) == request), None)

    def with_first_version(self, call: Call, entry: RecordedVersion, label: Label) -> VersionedRecord:
        """Return the record of a new secret with one version and its label.

        Raises:
            SecretExistsError: The secret exists already.
        """
        if self.exists:
            raise call.error(SecretExistsError, "the secret exists already")
        return self._add_version(entry, label)

    def with_version(
        self, call: Call, entry: RecordedVersion, label: Label, expected: VersionId | None
    ) -> VersionedRecord:
        """Return the record of versions with one more version, to which `label` points.

        Raises:
            SecretNotFoundError: The secret does not exist.
            ConflictError: `label` does not point at the version `expected`.
        """
        self.must_exist(call)
        call.check_holder(label, self.labels.get(label), expected)
        return self._add_version(entry, label)

    def without_value(self, call: Call, version: VersionId) -> VersionedRecord:
        """Return the record with a version marked as destroyed; a version that is already destroyed is not changed.

        Raises:
            SecretNotFoundError: There is no such secret or version.
            ConflictError: A label points at the version.
        """
        number = self.require_unlabelled(call, version)
        if self.versions[number].destroyed:
            return self
        gone = self.versions[number]._replace(destroyed=True, digest="", size=0)
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
        # Without a limit, the record would grow with each rotation.
        kept = {n: one for n, one in self.versions.items() if not one.destroyed or n > number - RECENT}
        return VersionedRecord(
            versions=MappingProxyType({**kept, number: entry}),
            labels=MappingProxyType({**self.labels, label: number}),
        )


Growth = Callable[[VersionedRecord, RecordedVersion], VersionedRecord]
"""Adds a version to the record of a secret, with the entry of the version."""


class RecordForm(NamedTuple):
    """How a store encodes the record of a secret's versions (`VersionedRecord`) as bytes.

    Attributes:
        name: The name of the format, which is stored in the record.
        members: The members of a version in the order in which they are written, which is part of the format.
        may_be_empty: Whether the store writes a record before the first version exists.
        is_alone: Whether only Goatherd writes where the record is stored, so that a record in another format counts as
            damaged.
    """

    name: str
    members: tuple[str, ...] = _MEMBERS
    may_be_empty: bool = False
    is_alone: bool = False


def encode_record(record: VersionedRecord, form: RecordForm) -> bytes:
    """Encode the record of a secret's versions and labels as bytes."""
    return json.dumps(with_digest(form.name, record_content(record, form.members)), indent=1).encode() + b"\n"


def decode_record(raw: bytes, form: RecordForm) -> VersionedRecord:
    """Decode the record of a secret's versions and labels from the bytes `raw`.

    Raises:
        ForeignRecordError: The record is in another format.
        DamagedRecordError: The record is not what `encode_record` wrote.
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
    """Encode a secret value as base64, for stores that hold strings."""
    return base64.b64encode(raw).decode()


def decode_base64(encoded: object) -> bytes:
    """Decode a secret value that is stored as base64 into bytes.

    Raises:
        DamagedRecordError: The string is not base64.
    """
    try:
        return base64.b64decode(str(encoded), validate=True)
    except (binascii.Error, ValueError):
        raise DamagedRecordError("a value must be base64") from None


def digest_of(value: SecretBytes) -> str:
    """Return the SHA-256 of a secret value in hex."""
    return hashlib.sha256(value.reveal()).hexdigest()


def entry_for(value: SecretBytes, *, request: str, now_ms: int) -> RecordedVersion:
    """Create the record's entry for a new version from its value, its request and the time."""
    return RecordedVersion(created_ms=now_ms, request=request, digest=digest_of(value), size=value.size)


def matches_entry(value: SecretBytes, entry: RecordedVersion) -> bool:
    """Return whether a value has the size and digest that the record's entry of its version states."""
    return value.size == entry.size and digest_of(value) == entry.digest


def with_digest(form: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a record, preceded by the name of its format and the SHA-256 of the content."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"format": form, "sha256": digest, **content}


def parse_record(stored: str | bytes, *formats: str) -> dict[str, Any]:
    """Parse a stored record of versions from JSON and return its members.

    The digest in the record is not checked here, but later by `must_be_equal`.

    Args:
        stored: The record as JSON.
        formats: The names of the known formats, the present one first.

    Raises:
        DamagedRecordError: The record is not JSON.
        ForeignRecordError: The record is in none of the formats.
    """
    try:
        document = json.loads(stored)
    except (ValueError, RecursionError):
        raise DamagedRecordError("it is not JSON") from None
    must_be_in_format(document, *formats)
    return dict(document)


def must_be_in_format(document: object, *formats: str) -> None:
    """Raise `ForeignRecordError` unless a stored record is in one of the given formats."""
    if not isinstance(document, Mapping) or document.get("format") not in formats:
        raise ForeignRecordError(f"it is not in the format {formats[0]}")


@contextlib.contextmanager
def reading_members() -> Iterator[None]:
    """Raise `DamagedRecordError` if the ``with`` block finds a record's member missing or of the wrong type."""
    try:
        yield
    except DamagedRecordError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # the last: `Infinity` is JSON here
        raise DamagedRecordError("a member is missing or has the wrong type") from None


def must_be_equal(written: object, stored: object) -> None:
    """Raise `DamagedRecordError` unless a stored record equals its decoded content, encoded again with the digest."""
    if written != stored:
        raise DamagedRecordError("its digest does not match its content")


def record_content(ledger: VersionedRecord, members: tuple[str, ...] = _MEMBERS) -> dict[str, Any]:
    """Encode a secret's versions and labels as the members of a record, in the form of JSON data.

    Args:
        ledger: The versions and labels of the secret.
        members: The order of a version's members, which is part of the format of a store that compares bytes.
    """
    return {
        "labels": {str(label): ledger.labels[label] for label in sorted(ledger.labels)},
        "versions": {
            str(number): {member: _encode_entry(entry)[member] for member in members}
            for number, entry in sorted(ledger.versions.items())
        },
    }


def record_of(document: Mapping[str, Any], *, may_be_empty: bool = False) -> VersionedRecord:
    """Decode a secret's versions and labels from the members of a stored record.

    Args:
        document: The members of the record.
        may_be_empty: Whether the store writes a record before the first version exists.

    Raises:
        DamagedRecordError: A member is missing or of the wrong type, a label points at a missing version, or there is
            no version although `may_be_empty` is False.
    """
    with reading_members():
        ledger = VersionedRecord(
            versions=MappingProxyType({int(n): _decode_entry(entry) for n, entry in document["versions"].items()}),
            labels=MappingProxyType({Label(name): int(n) for name, n in document["labels"].items()}),
        )
    if not (ledger.versions or may_be_empty) or not set(ledger.labels.values()) <= set(ledger.versions):
        raise DamagedRecordError("it has no versions, or a label points at a version that does not exist")
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
