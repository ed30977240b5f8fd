"""Encode the Secret object that holds a secret: the values, and a list of versions and labels (the pointer).

Pure; `provider` decides the order of requests. The key ``identity-7.json`` holds the bytes of version 7 unchanged. The
key ``pointer.json`` holds the list of versions, the labels, and a digest of itself. The module also chooses which old
versions are removed to make room. An object that differs from what was written counts as damaged, and is not repaired.
Other keys, labels and annotations of the object survive every change.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from goatherd.providers import versioned_record
from goatherd.providers.base import MAX_VALUE_BYTES
from goatherd.providers.values import SecretBytes
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    RecordedVersion,
    RecordForm,
    VersionedRecord,
    decode_base64,
    encode_base64,
    matches_entry,
)

FORM: Final = RecordForm(name="goatherd-k8s-pointer/1")
POINTER: Final = "pointer.json"

MAX_OBJECT_BYTES: Final = 1 << 20
"""What all values of one Secret may add up to: https://kubernetes.io/docs/concepts/configuration/secret/#restriction-data-size."""
BUDGET: Final = MAX_OBJECT_BYTES - (16 << 10)
MOST_UNLABELLED: Final = 32
MOST_DESTROYED: Final = 32
HISTORY: Final = 8
"""With values of the greatest length, so many unlabelled versions fit beside seven labelled ones."""

_VALUE = re.compile(r"identity-([1-9][0-9]{0,17})\.json", re.ASCII)


class NoRoomError(ValueError):
    """The Kubernetes Secret has no space for one more version, because the versions with labels fill it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretObject:
    """One Kubernetes Secret with the record of versions and labels (the pointer) that was decoded from it.

    Attributes:
        ledger: The versions and labels.
        content: The Kubernetes object as the API server sent it. It holds the secret values, so it must not be shown.
    """

    ledger: VersionedRecord
    content: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Record({len(self.ledger.versions)} versions)"

    @property
    def size(self) -> int:
        """The bytes of all values in the Kubernetes Secret, as Kubernetes counts them: decoded from base64.

        Raises:
            DamagedRecordError: A value is not base64.
        """
        return sum(len(decode_base64(encoded)) for encoded in self.content["data"].values())

    def read_value(self, number: int) -> SecretBytes:
        """Return the secret value of a version that is not destroyed, after checking its digest.

        Raises:
            DamagedRecordError: The bytes are missing, or are not those that were written.
        """
        encoded = self.content["data"].get(key_of(number))
        return check_value(number, self.ledger.versions[number], None if encoded is None else decode_base64(encoded))

    def leftover_numbers(self) -> set[int]:
        """Return the numbers of the values in the Kubernetes Secret that its record of versions does not list.

        Goatherd leaves no such values. They appear if an older state of the Secret is merged into it, for example by a
        restore.
        """
        numbers = {int(match[1]) for key in self.content["data"] if (match := _VALUE.fullmatch(key)) is not None}
        return numbers - {number for number, entry in self.ledger.versions.items() if not entry.destroyed}

    def leftover_value(self, number: int) -> SecretBytes:
        """Return a value in the Kubernetes Secret that its record of versions does not list.

        Raises:
            DamagedRecordError: The value is not base64.
        """
        return SecretBytes(decode_base64(self.content["data"][key_of(number)]))


def key_of(number: int) -> str:
    """Return the key in a Kubernetes Secret's ``data`` under which a version's value is stored."""
    return f"identity-{number}.json"


def check_value(number: int, entry: RecordedVersion, raw: bytes | None) -> SecretBytes:
    """Return a version's value, after checking it against the digest in the record of versions.

    Raises:
        DamagedRecordError: The bytes are missing or do not match.
    """
    if raw is None:
        raise DamagedRecordError(f"the value of version {number} is missing")
    if not matches_entry(value := SecretBytes(raw), entry):
        raise DamagedRecordError(f"the digest of version {number} does not match its value")
    return value


def decode_object(content: Mapping[str, Any]) -> SecretObject:
    """Decode a Kubernetes Secret into a `SecretObject`, with the record of its versions and labels.

    Raises:
        ForeignRecordError: Goatherd did not write the Secret.
        DamagedRecordError: Goatherd wrote the Secret, but it is damaged.
    """
    data = content.get("data") or {}
    if not isinstance(data, Mapping):
        raise DamagedRecordError("its field data is not a map")
    if POINTER not in data:
        raise ForeignRecordError(f"it has no key {POINTER}")
    return SecretObject(ledger=decode_pointer(decode_base64(data[POINTER])), content=content)


def new_object(namespace: str, name: str, ledger: VersionedRecord, value: SecretBytes) -> dict[str, Any]:
    """Build the Kubernetes Secret for a new secret with one version."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "goatherd"},
        },
        "data": {
            key_of(ledger.next_number - 1): encode_base64(value.reveal()),
            POINTER: encode_base64(encode_pointer(ledger)),
        },
    }


def encode_changes(
    record: SecretObject, ledger: VersionedRecord, new: SecretBytes | None, pinned: Collection[int]
) -> SecretObject:
    """Build a Kubernetes Secret with changed versions and labels; values that are no longer needed are removed.

    Args:
        record: The Secret as it was read.
        ledger: The new versions and labels.
        new: The value of the newest version, if the change adds one.
        pinned: The numbers of versions that are kept even without a label.

    Raises:
        NoRoomError: The versions that must be kept take too much room.
    """
    content = copy.deepcopy(dict(record.content))
    data: dict[str, str] = content["data"]
    foreign = sum(len(decode_base64(data[key])) for key in data if key != POINTER and not _VALUE.fullmatch(key))
    ledger = trim_record(ledger, pinned, foreign)
    if new is not None:
        data[key_of(ledger.next_number - 1)] = encode_base64(new.reveal())
    for key in list(data):
        match = _VALUE.fullmatch(key)
        if match is not None:
            entry = ledger.versions.get(int(match[1]))
            if entry is None or entry.destroyed:
                del data[key]
    data[POINTER] = encode_base64(encode_pointer(ledger))
    return SecretObject(ledger=ledger, content=content)


def trim_record(ledger: VersionedRecord, pinned: Collection[int] = (), foreign: int = 0) -> VersionedRecord:
    """Remove a secret's oldest versions, so that their number and size stay within the limits; return the rest.

    Args:
        ledger: The versions and labels.
        pinned: The numbers of versions that are kept, like the newest version and those with a label.
        foreign: The bytes in the Secret that belong to other tools; they count towards the size.

    Raises:
        NoRoomError: The versions that must be kept exceed the limits.
    """
    kept = dict(ledger.versions)
    stay = {*ledger.labels.values(), *pinned, max(kept, default=0)}
    loose = sorted(number for number in kept if number not in stay)
    destroyed = [number for number in loose if kept[number].destroyed]
    living = [number for number in loose if not kept[number].destroyed]
    for number in destroyed[: max(0, len(destroyed) - MOST_DESTROYED)]:
        del kept[number]
    droppable = iter(living)
    surplus = max(0, len(living) - MOST_UNLABELLED)
    while True:
        while surplus > 0:
            del kept[next(droppable)]
            surplus -= 1
        smaller = replace(ledger, versions=MappingProxyType(kept))
        size = foreign + sum(entry.size for entry in kept.values()) + len(encode_pointer(smaller))
        if size <= BUDGET:
            return smaller if len(kept) < len(ledger.versions) else ledger
        oldest = next(droppable, None)
        if oldest is None:
            raise NoRoomError(f"the versions to keep take {size} bytes, but a Secret holds at most {MAX_OBJECT_BYTES}")
        del kept[oldest]


def encode_pointer(ledger: VersionedRecord) -> bytes:
    """Encode the record of versions and labels as the bytes of ``pointer.json`` in a Kubernetes Secret."""
    return versioned_record.encode_record(ledger, FORM)


def decode_pointer(raw: bytes) -> VersionedRecord:
    """Decode the record of versions and labels from ``pointer.json`` in a Kubernetes Secret.

    Raises:
        ForeignRecordError: The record is in another format.
        DamagedRecordError: The record is not what `encode_pointer` wrote.
    """
    try:
        return versioned_record.decode_record(raw, FORM)
    except (ForeignRecordError, DamagedRecordError) as error:
        raise type(error)(f"{POINTER}: {error}") from None


assert BUDGET // MAX_VALUE_BYTES >= HISTORY + 7, "the promised history has to fit"
