"""Encode the values and pointers of a secret in Azure Key Vault, and decide which pointer is valid.

Pure; `provider` decides the order of writes. A `Pointer` holds a secret's labels and the destroyed versions.

Key Vault has no compare-and-swap, but it keeps every version of a secret with a timestamp. So each written pointer is
a proposal: "number n+1, after the version with that id". Of the proposals that follow one decided pointer, the
earliest wins; of several with the same second, the one with the highest id. A reader waits until no earlier proposal
can appear. From then on, all readers find the same winner (`decide_proposals`). The tags of a pointer say what it
follows, so a list of the versions is enough to decide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Self

from goatherd.errors import ConflictError
from goatherd.providers.base import Call
from goatherd.providers.values import Label, SecretBytes, VersionId
from goatherd.providers.versioned_record import (
    DamagedRecordError,
    ForeignRecordError,
    decode_base64,
    encode_base64,
    must_be_equal,
    parse_record,
    reading_members,
    with_digest,
)

POINTER_FORMAT: Final = "goatherd-azure-pointer/1"
TEXT_TYPE: Final = "text/plain; charset=utf-8; by=goatherd"
BASE64_TYPE: Final = "application/octet-stream; encoding=base64; by=goatherd"
POINTER_TYPE: Final = "application/json; by=goatherd"
VALUE_TYPES: Final = frozenset({TEXT_TYPE, BASE64_TYPE})
MAX_STORED: Final = 25 * 1024
"""learn.microsoft.com/azure/key-vault/secrets/about-secrets: a value has at most 25k bytes."""
MAX_VALUE: Final = MAX_STORED // 4 * 3
"""What of it is left for bytes that are no text, in base64."""
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters for which a value is stored in base64.

Other characters that are not printable, such as a no-break space in a reason, are text: readers without Goatherd need
the identity document as it is.
"""
MOST_DESTROYED: Final = 64
"""So many destroyed versions stay in the pointer: it protects one against a writer that has found it readable just
before, and such a writer needs a few seconds."""

REQUEST_TAG: Final = "goatherd-request"
VERSION_TAG: Final = "goatherd-version"
_EPOCH_TAG: Final = "goatherd-epoch"
_PARENT_TAG: Final = "goatherd-parent"
_POINTER_TAG: Final = "goatherd-pointer"
_CREATED_TAG: Final = "goatherd-created"
_NO_PARENT: Final = "none"
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """The labels of one secret in Azure Key Vault, and the versions that were destroyed last.

    Attributes:
        labels: The version that each label points at.
        destroyed: Versions that get no label any more, although they may still be readable; the last ones only.
    """

    labels: Mapping[Label, VersionId] = field(default_factory=lambda: MappingProxyType({}))
    destroyed: tuple[VersionId, ...] = ()

    def labels_of(self, version: VersionId) -> frozenset[Label]:
        """Return the labels that point at a version."""
        return frozenset(label for label, holder in self.labels.items() if holder == version)

    def with_label(self, label: Label, version: VersionId) -> Pointer:
        """Return the pointer with a label at another version."""
        return replace(self, labels=MappingProxyType({**self.labels, label: version}))

    def without_label(self, label: Label) -> Pointer:
        """Return the pointer without a label."""
        return replace(self, labels=MappingProxyType({name: at for name, at in self.labels.items() if name != label}))

    def without_version(self, call: Call, version: VersionId) -> Pointer:
        """Return the pointer with a version marked as destroyed.

        Raises:
            ConflictError: A label points at the version.
        """
        if holders := sorted(self.labels_of(version)):
            raise call.error(
                ConflictError,
                f"the label {holders[0]!r} points at version {version}",
                hint="Move the label to another version first.",
            )
        if version in self.destroyed:
            return self
        return replace(self, destroyed=(*self.destroyed, version)[-MOST_DESTROYED:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """One version of the pointer secret, as the list shows it: a pointer that was written, but may not be decided.

    Attributes:
        id: The Key Vault version id; empty for `BEGINNING`.
        created: When it was written: seconds since 1970, by Key Vault's clock.
        epoch: 1 for the first pointer, and one more for each following one.
        parent: The id of the pointer that this one follows; empty for the first.
        request: The `goatherd.providers.base.Call.request` of the call that proposes it.
    """

    id: str
    created: int
    epoch: int
    parent: str
    request: str

    @classmethod
    def from_tags(cls, version: str, created: int, tags: Mapping[str, str]) -> Self | None:
        """Read a proposal from the tags of a version of the pointer secret; None if they are not those of a pointer."""
        try:
            epoch, parent, request = int(tags[_EPOCH_TAG]), tags[_PARENT_TAG], tags[REQUEST_TAG]
        except (KeyError, ValueError):
            return None
        parent = "" if parent == _NO_PARENT else parent
        return cls(id=version, created=created, epoch=epoch, parent=parent, request=request)


BEGINNING: Final = Proposal(id="", created=0, epoch=0, parent="", request="")
"""What is decided before there is any proposal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which of the listed proposals (pointers that were written) are decided, and which one is still pending.

    Attributes:
        chain: The decided proposals, oldest first, from `BEGINNING` on.
        pending: The earliest proposal that follows the last decided one, if it is too recent to be decided.
    """

    chain: tuple[Proposal, ...]
    pending: Proposal | None = None

    @property
    def last(self) -> Proposal:
        """The newest decided proposal: its pointer is in effect."""
        return self.chain[-1]


def decide_proposals(proposals: Iterable[Proposal], *, now: int, settle: int) -> Decision:
    """Find which proposed pointers are decided: of those that follow the same one, the earliest wins.

    Args:
        proposals: All proposals that were stored at the time `now`, and possibly later ones.
        now: The time by Key Vault's clock before the proposals were listed, in seconds since 1970.
        settle: After this many seconds from a proposal's timestamp, no proposal with an earlier timestamp can appear.
    """
    listed = list(proposals)
    chain = [BEGINNING]
    while True:
        last = chain[-1]
        rivals = [each for each in listed if each.parent == last.id and each.epoch == last.epoch + 1]
        if not rivals:
            return Decision(chain=tuple(chain))
        first = min(rivals, key=lambda each: (each.created, -int(each.id, 16)))
        if now - first.created < settle:
            return Decision(chain=tuple(chain), pending=first)
        chain.append(first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the tags of the view say: which value it is a copy of, and which pointer was decided when it was written.

    Attributes:
        pointer: The id of the decided pointer.
        epoch: Its epoch.
        version: The version that had the label ``current``, whose value the view is.
        created: When that version was written: seconds since 1970, by Key Vault's clock.
    """

    pointer: str
    epoch: int
    version: VersionId
    created: int

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """Read what a view shows from its tags; None if they are not those of a view."""
        try:
            return cls(
                pointer=tags[_POINTER_TAG],
                epoch=int(tags[_EPOCH_TAG]),
                version=VersionId(tags[VERSION_TAG]),
                created=int(tags[_CREATED_TAG]),
            )
        except (KeyError, ValueError):
            return None

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the view."""
        return {
            _POINTER_TAG: self.pointer,
            _EPOCH_TAG: str(self.epoch),
            VERSION_TAG: self.version,
            _CREATED_TAG: str(self.created),
        }


def is_version_id(text: object) -> bool:
    """Return whether `text` has the form of a Key Vault version id: 32 hexadecimal digits."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def encode_value(value: SecretBytes) -> tuple[str, str]:
    """Encode a secret value for Key Vault; return the string and its content type: the value itself, or base64."""
    raw = value.reveal()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text.strip() and _CONTROLS.search(text) is None:
        return text, TEXT_TYPE
    return encode_base64(raw), BASE64_TYPE


def decode_value(stored: str, content_type: str) -> SecretBytes:
    """Decode a value that Key Vault stores as text or base64.

    Raises:
        DamagedRecordError: The value is not base64.
    """
    return SecretBytes(stored.encode() if content_type == TEXT_TYPE else decode_base64(stored))


def encode_pointer(pointer: Pointer) -> str:
    """Encode a pointer (the labels and destroyed versions) as one line of text, as it is stored."""
    content = {"labels": dict(pointer.labels), "destroyed": list(pointer.destroyed)}
    return json.dumps(with_digest(POINTER_FORMAT, content), sort_keys=True, separators=(",", ":"))


def decode_pointer(stored: str) -> Pointer:
    """Decode a stored pointer (the labels and destroyed versions).

    Raises:
        DamagedRecordError: It is not a pointer as Goatherd writes it.
    """
    try:
        data = parse_record(stored, POINTER_FORMAT)
    except ForeignRecordError as error:
        raise DamagedRecordError(str(error)) from None
    with reading_members():
        pointer = Pointer(
            labels=MappingProxyType({Label(name): VersionId(at) for name, at in data["labels"].items()}),
            destroyed=tuple(VersionId(version) for version in data["destroyed"]),
        )
    must_be_equal(encode_pointer(pointer), stored)
    return pointer


def proposal_tags(last: Proposal, request: str) -> dict[str, str]:
    """Return the Key Vault tags of a pointer that follows the decided pointer `last`."""
    return {_EPOCH_TAG: str(last.epoch + 1), _PARENT_TAG: last.id or _NO_PARENT, REQUEST_TAG: request}
