"""Decide which stored versions `goatherd retire` destroys, and which roots it records as retired.

Pure. A run that retires keys (`goatherd.rotation.machine`) and the commands that show what such a run would do
(`goatherd.key_inventory`) use this one rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

from goatherd.times import milliseconds


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


class StoredKeys(Protocol):
    """The interface of a stored version, with what is known of its keys; `goatherd.key_inventory.Holding` has it."""

    @property
    def version(self) -> _Identified: ...

    @property
    def private_ids(self) -> frozenset[str]: ...

    @property
    def retired_ms(self) -> int: ...

    @property
    def rotation_id(self) -> str | None: ...

    @property
    def is_unknown_leftover(self) -> bool: ...

    @property
    def is_used_elsewhere(self) -> bool: ...

    @property
    def problem(self) -> str | None: ...


Stored = TypeVar("Stored", bound=StoredKeys)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetirementRule:
    """The rule by which stored private keys are retired, for one state of the identity.

    Attributes:
        signing: Ids of the roots whose private keys are needed.
        in_use: Ids of the versions that are needed, such as the one with label ``current``.
        cancelled: Ids of the cancelled rotations.
        grace: How long a key is kept after its root was replaced.
    """

    signing: frozenset[str]
    in_use: frozenset[str]
    cancelled: frozenset[str]
    grace: timedelta

    def is_retired(self, one: StoredKeys) -> bool:
        """Return whether a version holds a private key that no longer signs, or unknown keys, and is not needed."""
        # What a killed writer has left is not needed, and may hold any key.
        holds_retired = bool(one.private_ids - self.signing) or one.is_unknown_leftover
        return holds_retired and one.version.id not in self.in_use and not one.is_used_elsewhere

    def due_ms(self, one: StoredKeys, now_ms: int) -> int:
        """Return when a retired version may be destroyed, in milliseconds since 1970."""
        if one.rotation_id in self.cancelled:
            # Its next root has signed nothing, so it is due, even if a clock that is ahead recorded a later time.
            return min(one.retired_ms, now_ms)
        return one.retired_ms + milliseconds(self.grace)

    def find_due(self, versions: Iterable[Stored], now_ms: int) -> list[Stored]:
        """Return the versions that are to be destroyed now, if no label of another tool protects them."""
        return [one for one in versions if self.is_retired(one) and self.due_ms(one, now_ms) <= now_ms]

    def find_recordable(
        self, unretired: Iterable[tuple[str, int]], versions: Sequence[StoredKeys], now_ms: int
    ) -> tuple[str, ...]:
        """Return the ids of the roots to record as retired now: no version holds their private keys.

        A version that could not be read may hold any key, so then there is no such root.

        Args:
            unretired: Roots that are not recorded as retired, each with the time at which it last signed.
            versions: All versions.
            now_ms: Milliseconds since 1970.
        """
        if any(one.problem is not None for one in versions):
            return ()
        held = frozenset[str]().union(*(one.private_ids for one in versions))
        ended_ms = now_ms - milliseconds(self.grace)
        return tuple(root for root, since_ms in unretired if root not in held and since_ms <= ended_ms)
