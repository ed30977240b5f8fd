"""A secret as one object, with the rules by which its versions and labels change; for stores without versions.

Pure. `LabelledVersions` has the rules by which labels move. A `VersionedRecord` lists the versions and where each label
points; a `RecordedSecret` is the record with the values. The memory, file, Vault and Kubernetes stores keep that as one
object, in the format that docs/reference/record.md describes, and Azure's pointers follow the same rules. AWS and
Google have versions and labels of their own.

A record contains a SHA-256 of its other members and of each value, because most stores have no checksums. A record that
differs from what was written counts as damaged, and is not repaired.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar

from goatherd.errors import ConflictError, SecretExistsError, SecretNotFoundError, VersionDisabledError
from goatherd.providers.base import Call
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretVersion, VersionId, VersionState

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")

FORMAT: Final = "goatherd-record/1"
RECORD: Final = "record"
"""The member of an object that holds the record of versions and labels."""
VALUE: Final = "value"
"""The member that holds the value with the label ``current``; that of version 7 without the label is ``v7``."""
BASE64: Final = "base64"
MOST_DESTROYED: Final = 32
"""So many destroyed versions stay in the record; otherwise it would grow with each rotation."""

_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_MEMBER = re.compile(rf"{RECORD}|{VALUE}|v{_NUMBER.pattern}", re.ASCII)


class ForeignRecordError(ValueError):
    """A stored record was not written by Goatherd, or was written by a later version of it."""


class DamagedRecordError(ValueError):
    """A stored record is not as Goatherd wrote it; the message says why and quotes nothing."""


def parse_number(version: str) -> int:
    """Parse a version id of a secret into its number; 0 if it is not a number."""
    return int(version) if _NUMBER.fullmatch(version) else 0


class NoRoomError(ValueError):
    """A store's object has no space for one more version, because the versions with labels fill it."""


class RecordedVersion(NamedTuple):
    """What the record of a secret's versions contains about one version.

    Attributes:
        created_ms: When the version was written, in milliseconds since 1970.
        request: The `Call.request` of the call that wrote the version, by which a repeated attempt is recognized.
        digest: SHA-256 of the value in hex; empty if the object no longer holds the value.
        size: The value's length in bytes.
        destroyed: Whether the value was permanently destroyed. False without a digest means that the object no longer
            holds the value, but earlier states of the object in the store may.
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
    def living(self) -> set[int]:
        """The numbers of the versions whose values the object holds."""
        return {number for number, entry in self.versions.items() if entry.digest}

    @property
    def next_number(self) -> int:
        """The number that the secret's next version gets."""
        return max(self.versions, default=0) + 1

    def describe_version(self, number: int) -> SecretVersion:
        """Return a version of the secret as the `SecretVersion` that callers of the provider get."""
        entry = self.versions[number]
        state = VersionState.ENABLED if entry.digest else VersionState.DESTROYING
        return SecretVersion(
            id=VersionId(number),
            labels=self.labels_of(number),
            created_ms=entry.created_ms,
            state=VersionState.DESTROYED if entry.destroyed else state,
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
        return next((number for number, entry in self.versions.items() if entry.request == request), None)

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

    def without_value(self, call: Call, version: VersionId, *, destroyed: bool = True) -> VersionedRecord:
        """Return the record with a version marked as destroyed; a version that is already destroyed is not changed.

        Args:
            call: The call.
            version: The version.
            destroyed: False to record only that the object no longer holds the value, while earlier states of the
                object may.

        Raises:
            SecretNotFoundError: There is no such secret or version.
            ConflictError: A label points at the version.
        """
        number = self.require_unlabelled(call, version)
        entry = self.versions[number]
        gone = entry._replace(destroyed=entry.destroyed or destroyed, digest="", size=0)
        return replace(self, versions=MappingProxyType({**self.versions, number: gone}))

    def parse_version(self, call: Call, version: VersionId) -> int:
        number = parse_number(version)
        if number not in self.versions:
            raise call.error(SecretNotFoundError, f"there is no version {version[:40]!r}")
        return number

    def how_withdrawn(self, key: int) -> str | None:
        if self.versions[key].digest:
            return None
        return "destroyed" if self.versions[key].destroyed else "withdrawn: its destruction has begun"

    def _add_version(self, entry: RecordedVersion, label: Label) -> VersionedRecord:
        number = self.next_number
        return VersionedRecord(
            versions=MappingProxyType({**self.versions, number: entry}),
            labels=MappingProxyType({**self.labels, label: number}),
        )


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


def parse_json(stored: str | bytes) -> object:
    """Parse a stored record or object from JSON.

    Raises:
        DamagedRecordError: It is not JSON.
    """
    try:
        return json.loads(stored)
    except (ValueError, RecursionError):
        raise DamagedRecordError("it is not JSON") from None


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
    document = parse_json(stored)
    must_be_in_format(document, *formats)
    assert isinstance(document, Mapping)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSecret:
    """A secret as a store keeps it in one object: the record of its versions and labels, and the values.

    Attributes:
        record: The versions and labels.
        values: The value of each version that is not destroyed, by its number, as it is stored. `read_value` checks it.
        others: Members of the object that another tool has added. They survive every change.
    """

    record: VersionedRecord
    values: Mapping[int, SecretBytes]
    others: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def read_value(self, number: int) -> SecretBytes:
        """Return the value of a version that is not destroyed, after checking its digest.

        Raises:
            DamagedRecordError: The value is missing, or is not the one that was written.
        """
        value = self.values.get(number)
        if value is None:
            raise DamagedRecordError(f"the value of version {number} is missing")
        if not matches_entry(value, self.record.versions[number]):
            raise DamagedRecordError(f"the digest of version {number} does not match its value")
        return value

    def with_record(self, record: VersionedRecord, new: SecretBytes | None = None) -> RecordedSecret:
        """Return the secret with other versions and labels, and only with their values.

        Args:
            record: The versions and labels.
            new: The value of the newest version, if the change adds one.
        """
        values = {number: value for number, value in self.values.items() if number in record.living}
        if new is not None:
            values[record.next_number - 1] = new
        return replace(self, record=record, values=MappingProxyType(values))


def trim_secret(
    secret: RecordedSecret,
    pinned: Collection[int] = (),
    *,
    max_bytes: int | None,
    max_unlabelled: int | None,
    size_of: Callable[[RecordedSecret], int],
) -> RecordedSecret:
    """Remove a secret's oldest versions until it is within the limits of its store; return the rest.

    Args:
        secret: The secret.
        pinned: The numbers of versions that are kept, like the newest version and those with a label.
        max_bytes: How large the object may be; None if any size is allowed.
        max_unlabelled: How many versions without a label are kept; None for all.
        size_of: Returns the size of the object as the store counts it.

    Raises:
        NoRoomError: The versions that must be kept exceed `max_bytes`.
    """
    kept = dict(secret.record.versions)
    withdrawn = {number for number, entry in kept.items() if not entry.destroyed} - secret.record.living
    stay = {*secret.record.labels.values(), *pinned, *withdrawn, max(kept, default=0)}
    loose = sorted(number for number in kept if number not in stay)
    destroyed = [number for number in loose if kept[number].destroyed]
    living = [number for number in loose if not kept[number].destroyed]
    surplus = destroyed[: max(0, len(destroyed) - MOST_DESTROYED)]
    if max_unlabelled is not None:
        surplus += living[: max(0, len(living) - max_unlabelled)]
    droppable = [number for number in living if number not in surplus]
    while True:
        for number in surplus:
            del kept[number]
        if len(kept) < len(secret.record.versions):
            secret = secret.with_record(replace(secret.record, versions=MappingProxyType(dict(kept))))
        if max_bytes is None or (size := size_of(secret)) <= max_bytes:
            return secret
        if not droppable:
            raise NoRoomError(f"the versions to keep take {size} bytes, but there is room for {max_bytes}")
        surplus = [droppable.pop(0)]


def encode_members(secret: RecordedSecret) -> dict[str, bytes]:
    """Encode a secret as named members, for a store whose objects have members that hold bytes."""
    values = {name: secret.values[n].reveal() for n, name in _member_names(secret.record).items() if n in secret.values}
    return {**secret.others, RECORD: json.dumps(encode_record(secret.record), indent=1).encode(), **values}


def decode_members(members: Mapping[str, bytes]) -> RecordedSecret:
    """Decode a secret from its members.

    Raises:
        ForeignRecordError: Goatherd did not write the object.
        DamagedRecordError: Goatherd wrote the object, but its record is damaged.
    """
    if RECORD not in members:
        raise ForeignRecordError(f"it has no member {RECORD}")
    record = decode_record(parse_json(members[RECORD]))
    values = {n: SecretBytes(members[name]) for n, name in _member_names(record).items() if name in members}
    return RecordedSecret(record=record, values=MappingProxyType(values), others=_others_of(members))


def encode_secret(secret: RecordedSecret) -> dict[str, Any]:
    """Encode a secret as JSON data, for a store whose objects are JSON or bytes.

    A value is a string if it is UTF-8 text, unless base64 is shorter.
    """
    record = secret.record
    values = {name: _encode_value(secret.values[n]) for n, name in _member_names(record).items() if n in secret.values}
    return {**secret.others, RECORD: encode_record(record), **values}


def decode_secret(document: object) -> RecordedSecret:
    """Decode a secret from JSON data.

    Raises:
        ForeignRecordError: Goatherd did not write the object.
        DamagedRecordError: Goatherd wrote the object, but its record is damaged.
    """
    if not isinstance(document, Mapping):
        raise ForeignRecordError("it is not an object")
    record = decode_record(document.get(RECORD))
    values = {n: _decode_value(document.get(name)) for n, name in _member_names(record).items()}
    found = {number: value for number, value in values.items() if value is not None}
    return RecordedSecret(record=record, values=MappingProxyType(found), others=_others_of(document))


def encode_record(record: VersionedRecord) -> dict[str, Any]:
    """Encode a secret's versions and labels as JSON data."""
    content = {
        "labels": {str(label): record.labels[label] for label in sorted(record.labels)},
        "versions": {str(number): _encode_entry(entry) for number, entry in sorted(record.versions.items())},
    }
    return with_digest(FORMAT, content)


def decode_record(document: object) -> VersionedRecord:
    """Decode a secret's versions and labels from JSON data.

    Raises:
        ForeignRecordError: The record is in another format.
        DamagedRecordError: The record is not what `encode_record` wrote.
    """
    must_be_in_format(document, FORMAT)
    assert isinstance(document, Mapping)
    with reading_members():
        record = VersionedRecord(
            versions=MappingProxyType({int(n): _decode_entry(entry) for n, entry in document["versions"].items()}),
            labels=MappingProxyType({Label(name): int(n) for name, n in document["labels"].items()}),
        )
    if not record.versions or not set(record.labels.values()) <= record.living:
        raise DamagedRecordError("it has no versions, or a label points at a version that does not exist")
    must_be_equal(encode_record(record), document)
    return record


def _member_names(record: VersionedRecord) -> dict[int, str]:
    """Return the name of the member that holds the value of each version that is not destroyed."""
    current = record.labels.get(CURRENT)
    return {number: VALUE if number == current else f"v{number}" for number in sorted(record.living)}


def _others_of(members: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType({name: member for name, member in members.items() if not _MEMBER.fullmatch(name)})


def _encode_value(value: SecretBytes) -> str | dict[str, str]:
    encoded = encode_base64(value.reveal())
    try:
        text = value.reveal().decode()
    except UnicodeDecodeError:
        return {BASE64: encoded}
    return text if len(json.dumps(text, ensure_ascii=False).encode()) - 2 <= len(encoded) else {BASE64: encoded}


def _decode_value(member: object) -> SecretBytes | None:
    """Return a value of a version; None if it is damaged, which the digest in the record will show."""
    with contextlib.suppress(DamagedRecordError, UnicodeEncodeError):
        if isinstance(member, Mapping):
            return SecretBytes(decode_base64(member.get(BASE64)))
        if isinstance(member, str):
            return SecretBytes(member.encode())
    return None


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
