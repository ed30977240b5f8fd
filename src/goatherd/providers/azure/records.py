"""Encode the values and pointers of a secret in Azure Key Vault, and decide which pointer is valid.

Pure; `provider` decides the order of writes. A `Pointer` lists a secret's versions and labels. It carries a digest of
itself and of every value, because Key Vault provides none. A record that differs from what was written counts as
damaged, and is not repaired.

Key Vault has no compare-and-swap, but it keeps every version of a secret with a timestamp. So each written pointer is
a proposal: "number n+1, after the version with that id". Of the proposals that follow one decided pointer, the
earliest wins; of several with the same second, the one with the highest id. A reader waits until no earlier proposal
can appear. From then on, all readers find the same winner (`decide_proposals`).

One version in Key Vault can hold a pointer and after it a new value. The id of the value is then the id of that
version, which Key Vault assigns at the write; so the pointer contains `ITSELF` in its place.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from goatherd.errors import SecretNotFoundError
from goatherd.providers.base import Call
from goatherd.providers.values import Label, SecretBytes, SecretVersion, VersionId, VersionState
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    LabelledVersions,
    digest_of,
    must_be_equal,
    parse_record,
    reading_members,
    with_digest,
)

POINTER_FORMAT: Final = "goatherd-azure-pointer/1"
TEXT_TYPE: Final = "text/plain; charset=utf-8; by=goatherd"
BASE64_TYPE: Final = "application/octet-stream; encoding=base64; by=goatherd"
POINTER_TYPE: Final = "application/json; by=goatherd"
WITH_TEXT_TYPE: Final = f"{TEXT_TYPE}; after=pointer"
WITH_BASE64_TYPE: Final = f"{BASE64_TYPE}; after=pointer"
VALUE_TYPES: Final = frozenset({TEXT_TYPE, BASE64_TYPE})
"""A value and nothing else."""
WITH_VALUE_TYPES: Final = frozenset({WITH_TEXT_TYPE, WITH_BASE64_TYPE})
"""A pointer, the end of a line, and a value."""
MAX_STORED: Final = 25 * 1024
"""learn.microsoft.com/azure/key-vault/secrets/about-secrets: a value has at most 25k bytes."""
MAX_VALUE: Final = MAX_STORED // 4 * 3
"""What of it is left for bytes that are no text, in base64."""
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters for which a value is stored in base64.

Other characters that are not printable, such as a no-break space in a reason, are text: readers without Goatherd need
the identity document as it is.
"""
MAX_LISTED: Final = 64
HISTORY: Final = 40
MOST_LEFTOVERS: Final = 16
"""So many values that no pointer had named stay in the pointer once they are switched off: longer than any writer that
could still name one works, since each takes a change of three seconds."""

ITSELF: Final = VersionId("itself")
"""In a pointer that brings a value with it: the version of that value."""

_AFTER_LEFTOVERS: Final = 1 << 40
"""Greater than any epoch."""

NUMBER_TAG: Final = "goatherd-number"
REQUEST_TAG: Final = "goatherd-request"
_EPOCH_TAG: Final = "goatherd-epoch"
_PARENT_TAG: Final = "goatherd-parent"
_LABEL_TAG: Final = "goatherd-label"
_DIGEST_TAG: Final = "goatherd-sha256"
_NO_PARENT: Final = "none"
_ID = re.compile(r"[0-9a-f]{32}")


class Home(StrEnum):
    """Where in Azure Key Vault the value of a version is stored."""

    POINTER = "pointer"
    """In the secret of the pointers, after the pointer that brought it."""
    ALONE = "alone"
    """In the secret of the pointers, as a version of its own: it is too long to go with one."""

    def content_type(self, *, text: bool) -> str:
        """Return the content type with which Goatherd stores a value in this place, as text or as base64."""
        if self is Home.POINTER:
            return WITH_TEXT_TYPE if text else WITH_BASE64_TYPE
        return TEXT_TYPE if text else BASE64_TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the pointer (the record of versions and labels) holds about one version of the value.

    Attributes:
        number: The version's number, 1, 2, 3…, by which the versions are sorted, since Key Vault's ids have no order
            and its timestamps are in whole seconds. Negative if no pointer listed the value before it was disabled;
            a value that was disabled later has the higher number.
        created: When the value was written: seconds since 1970, by Key Vault's clock.
        request: The `goatherd.providers.base.Call.request` of the call that wrote the value.
        digest: SHA-256 of the value in hex.
        text: Whether the value is stored unchanged; False if it is stored in base64.
        home: Where the value is stored.
        disabled: Whether the version was disabled.
    """

    number: int
    created: int
    request: str
    digest: str
    text: bool
    home: Home = Home.POINTER
    disabled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer(LabelledVersions[VersionId, Entry]):
    """The versions and labels of one secret in Azure Key Vault, as one record.

    Attributes:
        epoch: 1 for the first pointer, and one more for each following one.
        parent: The version id, in the pointer secret, of the pointer that this one follows; empty for the first.
        request: The `Call.request` of the call that proposes the pointer.
        versions: The versions of the value.
        labels: The version that each label points at.
    """

    epoch: int
    parent: str
    request: str

    def describe_version(self, version: VersionId) -> SecretVersion:
        """Return a version of the secret as the `SecretVersion` that callers of the provider get."""
        entry = self.versions[version]
        return SecretVersion(
            id=version,
            labels=self.labels_of(version),
            created_ms=entry.created * 1000,
            state=VersionState.DISABLED if entry.disabled else VersionState.ENABLED,
        )

    @property
    def next_number(self) -> int:
        """The number of the next version that is added to the secret."""
        return max((known.number for known in self.versions.values()), default=0) + 1

    def newest_first(self) -> list[SecretVersion]:
        """Return all versions of the secret, sorted by number, highest first."""
        return [self.describe_version(version) for version in self._in_order()]

    def made_by(self, request: str) -> VersionId | None:
        """Return the id of the version that the call with `request` has already written, if there is one."""
        return next((version for version, entry in self.versions.items() if entry.request == request), None)

    def with_version(self, label: Label, version: VersionId, entry: Entry) -> Pointer:
        """Return the pointer with one more version, which gets `label`; the oldest unlabelled versions are dropped."""
        grown = replace(
            self,
            versions=MappingProxyType({**self.versions, version: replace(entry, number=self.next_number)}),
            labels=MappingProxyType({**self.labels, label: version}),
        )
        holders = set(grown.labels.values())
        free = [each for each in grown._in_order() if each not in holders]
        kept = {*holders, *free[: max(HISTORY, MAX_LISTED - len(holders))]}
        return replace(
            grown, versions=MappingProxyType({each: grown.versions[each] for each in grown.versions if each in kept})
        )

    def without_value(self, call: Call, version: VersionId) -> Pointer:
        """Return the pointer with a version marked as disabled; a version that is already disabled is not changed.

        Raises:
            SecretNotFoundError: There is no such version.
            ConflictError: A label points at the version.
        """
        known = self.require_unlabelled(call, version)
        if self.versions[known].disabled:
            return self
        off = replace(self.versions[known], disabled=True)
        return replace(self, versions=MappingProxyType({**self.versions, known: off}))

    def with_leftover(self, version: VersionId, *, created: int, text: bool, home: Home) -> Pointer:
        """Return the pointer with a disabled entry for a value that no pointer listed, so that no writer adds it later.

        Only the latest few of such entries are kept, so that any number of unlisted values can be destroyed.
        """
        number = self.epoch - _AFTER_LEFTOVERS
        entry = Entry(number=number, created=created, request="", digest="", text=text, home=home)
        past = [one for one in self._in_order() if self.versions[one].number < 0 and self.versions[one].disabled]
        dropped = {*past[MOST_LEFTOVERS - 1 :]} - set(self.labels.values())
        kept = {one: known for one, known in self.versions.items() if one not in dropped}
        return replace(self, versions=MappingProxyType({**kept, version: entry}))

    def with_version_id(self, version: VersionId, created: int) -> Pointer:
        """Return the pointer with the id of the Key Vault version that holds it instead of the placeholder `ITSELF`."""
        if ITSELF not in self.versions:
            return self
        versions = {known: entry for known, entry in self.versions.items() if known != ITSELF}
        versions[version] = replace(self.versions[ITSELF], created=created)
        labels = {label: version if holder == ITSELF else holder for label, holder in self.labels.items()}
        return replace(self, versions=MappingProxyType(versions), labels=MappingProxyType(labels))

    def parse_version(self, call: Call, version: VersionId) -> VersionId:
        if version not in self.versions:
            raise call.error(SecretNotFoundError, f"there is no version {version[:40]!r}")
        return version

    def how_withdrawn(self, key: VersionId) -> str | None:
        return "disabled" if self.versions[key].disabled else None

    def _in_order(self) -> list[VersionId]:
        return sorted(self.versions, key=lambda version: self.versions[version].number, reverse=True)


NOTHING: Final = Pointer(epoch=0, parent="", request="", versions=MappingProxyType({}), labels=MappingProxyType({}))
"""What the first pointer follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One version of the pointer secret: a pointer that has been written, but not necessarily decided.

    Attributes:
        id: The Key Vault version id; empty for `BEGINNING`.
        created: When it was written: seconds since 1970, by Key Vault's clock.
        pointer: The proposed pointer, a record of versions and labels.
        is_read: Whether `pointer` was read. If not, only its epoch, parent and request are known: it has not been read
            yet, or is disabled (see `links_of`).
    """

    id: str
    created: int
    pointer: Pointer
    is_read: bool = True

    @classmethod
    def unread_proposal(cls, version: str, created: int, epoch: int) -> Proposal:
        """Return a proposal that is known to be decided, without reading its pointer from the vault.

        The proposal's parent stays empty: only an undecided proposal needs its parent.
        """
        return cls(id=version, created=created, pointer=replace(NOTHING, epoch=epoch), is_read=False)


BEGINNING: Final = Proposal(id="", created=0, pointer=NOTHING)
"""What is decided before there is any proposal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which of the listed proposals (pointers that were written) are decided, and which one is still pending.

    Attributes:
        chain: The decided proposals, oldest first, beginning with the one from which the search started.
        pending: The earliest proposal that follows the last decided one, if it is too recent to be decided.
    """

    chain: tuple[Proposal, ...]
    pending: Proposal | None = None

    @property
    def last(self) -> Proposal:
        """The newest decided proposal: its pointer is in effect."""
        return self.chain[-1]


def decide_proposals(
    start: Proposal,
    proposals: Iterable[Proposal],
    *,
    now: int,
    settle: int,
) -> Decision:
    """Find which proposed pointers are decided: of those that follow the same one, the earliest wins.

    Args:
        start: A proposal that is known to be decided.
        proposals: All proposals that were stored at the time `now`, and possibly later ones. Proposals older than
            `start` may be missing.
        now: The time by Key Vault's clock before the proposals were listed, in seconds since 1970.
        settle: After this many seconds from a proposal's timestamp, no proposal with an earlier timestamp can appear.
    """
    listed = list(proposals)
    chain = [start]
    while True:
        last = chain[-1]
        rivals = [p for p in listed if p.pointer.parent == last.id and p.pointer.epoch == last.pointer.epoch + 1]
        if not rivals:
            return Decision(chain=tuple(chain))
        first = min(rivals, key=lambda p: (p.created, -int(p.id, 16)))
        if now - first.created < settle:
            return Decision(chain=tuple(chain), pending=first)
        chain.append(first)


def is_version_id(text: object) -> bool:
    """Return whether `text` has the form of a Key Vault version id: 32 hexadecimal digits."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def encode_value(value: SecretBytes) -> tuple[str, bool]:
    """Encode a secret value for Key Vault; return the string, and whether it is the value itself (otherwise base64)."""
    raw = value.reveal()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text.strip() and _CONTROLS.search(text) is None:
        return text, True
    return base64.b64encode(raw).decode("ascii"), False


def decode_value(stored: str, entry: Entry) -> SecretBytes:
    """Decode a value that Key Vault stores as text or base64, and check its digest.

    Raises:
        DamagedRecordError: The value is not the one that was written.
    """
    value = decode_leftover(stored, text=entry.text)
    if digest_of(value) != entry.digest:
        raise DamagedRecordError("its digest does not match the value")
    return value


def decode_leftover(stored: str, *, text: bool) -> SecretBytes:
    """Decode a stored value, which is text or base64, without a digest: no record of versions lists the value.

    Raises:
        DamagedRecordError: The value is not base64.
    """
    try:
        return SecretBytes(stored.encode() if text else base64.b64decode(stored, validate=True))
    except (binascii.Error, ValueError):
        raise DamagedRecordError("the value is not in base64") from None


def encode_pointer(pointer: Pointer) -> str:
    """Encode a pointer (the record of versions and labels) as one line of text, as it is stored."""
    content = {
        "epoch": pointer.epoch,
        "parent": pointer.parent,
        "request": pointer.request,
        "labels": {str(label): str(version) for label, version in pointer.labels.items()},
        # A list each, so that a document of usual length has room after the pointer.
        "versions": {
            str(version): [
                entry.number,
                entry.created,
                entry.request,
                entry.digest,
                "text" if entry.text else "base64",
                str(entry.home),
                "disabled" if entry.disabled else "enabled",
            ]
            for version, entry in pointer.versions.items()
        },
    }
    return json.dumps(with_digest(POINTER_FORMAT, content), sort_keys=True, separators=(",", ":"))


def value_after_pointer(stored: str) -> str:
    """Return the value that is stored in the same Key Vault version as a pointer, after the pointer's line."""
    return stored.partition("\n")[2]


def decode_pointer(stored: str) -> Pointer:
    """Decode a stored pointer (the record of versions and labels); a value may follow it in the same string.

    Raises:
        ForeignRecordError: Goatherd did not write the record.
        DamagedRecordError: Goatherd wrote the record, but it is damaged.
    """
    stored = stored.partition("\n")[0]
    try:
        data = parse_record(stored, POINTER_FORMAT)
    except DamagedRecordError as error:
        raise ForeignRecordError(str(error)) from None  # any program may write text
    with reading_members():
        pointer = Pointer(
            epoch=int(data["epoch"]),
            parent=str(data["parent"]),
            request=str(data["request"]),
            versions=MappingProxyType({VersionId(v): _decode_entry(entry) for v, entry in data["versions"].items()}),
            labels=MappingProxyType({Label(name): VersionId(v) for name, v in data["labels"].items()}),
        )
    must_be_equal(encode_pointer(pointer), stored)
    return pointer


def tags_of(pointer: Pointer) -> dict[str, str]:
    """Return the Key Vault tags for a pointer (the record of versions and labels), at most 15.

    Most tags are for humans only. The others repeat what the pointer adds to the record, if it is stored together with
    a new value. If that value is destroyed, the pointer is disabled with it, and its content is rebuilt from these
    tags.
    """
    tags = {_EPOCH_TAG: str(pointer.epoch), _PARENT_TAG: pointer.parent or _NO_PARENT}
    if (brought := pointer.versions.get(ITSELF)) is not None:
        label = next(label for label, holder in pointer.labels.items() if holder == ITSELF)
        tags |= value_tags(brought.number, pointer.request) | {_LABEL_TAG: label, _DIGEST_TAG: brought.digest}
    shown: Sequence[tuple[Label, VersionId]] = sorted(pointer.labels.items())[: 15 - 6]
    return tags | {f"label-{label}": str(version) for label, version in shown}


def value_tags(number: int, request: str) -> dict[str, str]:
    """Return the Key Vault tags for a version that holds a value and no pointer."""
    return {NUMBER_TAG: str(number), REQUEST_TAG: request}


def links_of(version: str, created: int, tags: Mapping[str, str]) -> Proposal:
    """Return a disabled proposal with what its tags contain: its parent, epoch and request, but no versions and labels.

    Raises:
        ForeignRecordError: The tags are not those of a proposal.
    """
    try:
        parent, epoch, request = tags[_PARENT_TAG], int(tags[_EPOCH_TAG]), tags[REQUEST_TAG]
    except (KeyError, ValueError):
        raise ForeignRecordError("the version is disabled, and its tags are not those of a pointer") from None
    pointer = replace(NOTHING, epoch=epoch, parent="" if parent == _NO_PARENT else parent, request=request)
    return Proposal(id=version, created=created, pointer=pointer, is_read=False)


def rebuild_pointer(links: Proposal, parent: Pointer, tags: Mapping[str, str], *, text: bool) -> Proposal:
    """Return a disabled proposal with its pointer, rebuilt from its parent's pointer and its own tags.

    Raises:
        ForeignRecordError: The tags are not those of a proposal.
    """
    try:
        label, digest = Label(tags[_LABEL_TAG]), tags[_DIGEST_TAG]
    except KeyError:
        raise ForeignRecordError("the version is disabled, and its tags are not those of a pointer") from None
    entry = Entry(number=0, created=links.created, request=links.pointer.request, digest=digest, text=text)
    pointer = replace(
        parent.with_version(label, VersionId(links.id), entry),
        epoch=links.pointer.epoch,
        parent=links.pointer.parent,
        request=links.pointer.request,
    )
    return replace(links, pointer=pointer, is_read=True)


def _decode_entry(encoded: Sequence[Any]) -> Entry:
    number, created, request, digest, encoding, home, state = encoded
    return Entry(
        number=int(number),
        created=int(created),
        request=str(request),
        digest=str(digest),
        text=encoding == "text",
        home=Home(home),
        disabled=state == "disabled",
    )
