"""What a store of ours remembers of one secret, and the rules by which that changes.

What it is: `Ledger`, an immutable record of versions and labels, whose methods return the next one or raise; the memory
and the file provider both follow it, so the rules of compare-and-swap stand in one place. What it is not: it holds no
values and does no I/O. Rules: version ids are the numbers 1, 2, 3…, parsed at the edge and never compared as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from goatherd.errors import ConflictError, SecretExistsError, SecretNotFoundError, VersionDisabledError
from goatherd.providers.base import Call
from goatherd.providers.values import Label, SecretVersion, VersionId, VersionState

_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


def parse_number(version: str) -> int:
    """Return the number that a version id is; 0 where it is none."""
    return int(version) if _NUMBER.fullmatch(version) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
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
class Ledger:
    """All versions and labels of one secret; an empty one stands for a secret that does not exist."""

    entries: Mapping[int, Entry] = field(default_factory=lambda: MappingProxyType({}))
    labels: Mapping[Label, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def exists(self) -> bool:
        """Whether there is a secret."""
        return bool(self.entries)

    @property
    def next_number(self) -> int:
        """The number that the next version gets."""
        return max(self.entries, default=0) + 1

    def describe(self, number: int) -> SecretVersion:
        """Return what a caller is told of version `number`."""
        entry = self.entries[number]
        return SecretVersion(
            id=VersionId(number),
            labels=frozenset(label for label, holder in self.labels.items() if holder == number),
            created_ms=entry.created_ms,
            state=VersionState.DESTROYED if entry.destroyed else VersionState.ENABLED,
        )

    def newest_first(self) -> list[SecretVersion]:
        """Return all versions by number, highest first."""
        return [self.describe(number) for number in sorted(self.entries, reverse=True)]

    def must_exist(self, call: Call) -> None:
        """Raise `SecretNotFoundError` unless there is a secret."""
        if not self.exists:
            raise call.error(SecretNotFoundError, "there is no such secret")

    def find(self, call: Call, at: Label | VersionId) -> int:
        """Return the number of a readable version.

        Raises:
            SecretNotFoundError: No such secret or version, or nobody holds the label.
            VersionDisabledError: It is destroyed.
        """
        self.must_exist(call)
        if isinstance(at, VersionId):
            number = self._number(call, at)
        elif at in self.labels:
            number = self.labels[at]
        else:
            raise call.error(SecretNotFoundError, f"no version holds the label {at!r}")
        if self.entries[number].destroyed:
            raise call.error(VersionDisabledError, f"version {number} was destroyed")
        return number

    def made_by(self, request: str) -> int | None:
        """Return the version that an earlier attempt of the same call wrote, if there is one."""
        newest = self.next_number - 1
        return next((n for n in range(newest, max(0, newest - 64), -1) if self._request(n) == request), None)

    def created(self, call: Call, entry: Entry, label: Label) -> Ledger:
        """Return the ledger of a new secret.

        Raises:
            SecretExistsError: There is one.
        """
        if self.exists:
            raise call.error(SecretExistsError, "the secret exists already")
        return self._added(entry, label)

    def written(self, call: Call, entry: Entry, label: Label, expected: VersionId | None) -> Ledger:
        """Return the ledger with one more version that holds `label`.

        Raises:
            SecretNotFoundError: There is no secret.
            ConflictError: `label` is not where `expected` says.
        """
        self.must_exist(call)
        self._compare(call, label, expected)
        return self._added(entry, label)

    def labelled(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> Ledger:
        """Return the ledger with `label` moved.

        Raises:
            SecretNotFoundError: No such secret or version.
            VersionDisabledError: The version is destroyed.
            ConflictError: `label` is not where `expected` says.
        """
        number = self.find(call, version)
        self._compare(call, label, expected)
        return replace(self, labels=MappingProxyType({**self.labels, label: number}))

    def unlabelled(self, call: Call, label: Label, expected: VersionId) -> Ledger:
        """Return the ledger without `label`.

        Raises:
            SecretNotFoundError: No such secret.
            ConflictError: `label` is not where `expected` says.
        """
        self.must_exist(call)
        self._compare(call, label, expected)
        left = {name: number for name, number in self.labels.items() if name != label}
        return replace(self, labels=MappingProxyType(left))

    def destroyed(self, call: Call, version: VersionId) -> Ledger:
        """Return the ledger with a version's value gone; itself when it is gone already.

        Raises:
            SecretNotFoundError: No such secret or version.
            ConflictError: A label points at it.
        """
        self.must_exist(call)
        number = self._number(call, version)
        holders = sorted(label for label, holder in self.labels.items() if holder == number)
        if holders:
            raise call.error(
                ConflictError,
                f"the label {holders[0]!r} points at version {number}",
                hint="Move the label to another version first.",
            )
        if self.entries[number].destroyed:
            return self
        gone = replace(self.entries[number], destroyed=True, digest="", size=0)
        return replace(self, entries=MappingProxyType({**self.entries, number: gone}))

    def _request(self, number: int) -> str | None:
        entry = self.entries.get(number)
        return entry.request if entry else None

    def _number(self, call: Call, version: VersionId) -> int:
        number = parse_number(version)
        if number not in self.entries:
            raise call.error(SecretNotFoundError, f"there is no version {version[:40]!r}")
        return number

    def _compare(self, call: Call, label: Label, expected: VersionId | None) -> None:
        holder = self.labels.get(label)
        if (None if holder is None else str(holder)) != expected:
            found = "nobody" if holder is None else f"version {holder}"
            wanted = "nobody" if expected is None else f"version {expected[:40]}"
            raise call.error(ConflictError, f"{found} holds the label {label!r}, not {wanted}")

    def _added(self, entry: Entry, label: Label) -> Ledger:
        number = self.next_number
        return Ledger(
            entries=MappingProxyType({**self.entries, number: entry}),
            labels=MappingProxyType({**self.labels, label: number}),
        )
