"""Stores of several regions in memory, whose replication lags, fails and is cut off when a test says so.

A primary store records its state after each change, and one follower, which another process fills, shows one of these
states. The commands under test write the other follower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from goatherd.errors import ConflictError, UnavailableError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.providers.base import Call, RetryPolicy
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import CURRENT, STABLE, Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.stores import RegionalReader, ReplicatedStore, StoreMember
from tests.fakes.herd import FakeClock

SECRET: Final = "cluster/root"


class RegionStore(MemorySecretProvider):
    """The store of one region.

    Attributes:
        is_cut_off: Whether no call gets through.
        states: The state after each change.
        calls: How many calls have arrived, cut off or not.
        before_change: Called before each change.
    """

    def __init__(self, *, clock: FakeClock) -> None:
        super().__init__(clock=clock, retry=RetryPolicy(attempts=1))
        self.is_cut_off = False
        self.states: list[MemoryStore] = [self._copied()]
        self.calls = 0
        self.before_change: Callable[[], None] = lambda: None

    def _copied(self) -> MemoryStore:
        return MemoryStore(self.store.secrets)

    def _arrive(self, call: Call) -> None:
        self.calls += 1
        if self.is_cut_off:
            raise call.error(UnavailableError, "cut off")

    def _changed(self) -> None:
        self.states.append(self._copied())

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        self._arrive(call)
        made = await super()._create(call, value, label)
        self._changed()
        return made

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        self._arrive(call)
        return await super()._read(call, at)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        self._arrive(call)
        return await super()._versions(call)

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        self._arrive(call)
        self.before_change()
        made = await super()._write(call, value, label, expected)
        self._changed()
        return made

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        self._arrive(call)
        self.before_change()
        await super()._label(call, label, version, expected)
        self._changed()

    async def _destroy(self, call: Call, version: VersionId) -> None:
        self._arrive(call)
        self.before_change()
        await super()._destroy(call, version)
        self._changed()

    def contents(self) -> tuple[bytes | None, ...]:
        """Return the values of the labels `current` and `stable`, without faults."""
        secret = self.store.secrets.get(SECRET)
        held = {} if secret is None else {label: secret.values[n].reveal() for label, n in secret.record.labels.items()}
        return held.get(CURRENT), held.get(STABLE)

    def document(self) -> IdentityDocument:
        """Return the current identity, without faults."""
        secret = self.store.secrets[SECRET]
        return decode_document(secret.values[secret.record.labels[CURRENT]].reveal())


class FilledStore(RegionStore):
    """A follower that another process fills: it shows what the primary store held `lag` changes ago.

    A command that copies a value to it loses the race with that process.

    Attributes:
        lag: How many changes the follower is behind.
        is_stalled: Whether the other process has ended: the follower answers, and shows what it showed before.
        is_promoted: Whether only the commands under test write it.
    """

    def __init__(self, primary: RegionStore, *, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.primary = primary
        self.lag = 0
        self.is_stalled = False
        self.shown = 0
        self.is_promoted = False

    def _arrive(self, call: Call) -> None:
        super()._arrive(call)
        self.catch_up()

    def _lose_race(self, call: Call) -> None:
        if not self.is_promoted:
            raise call.error(ConflictError, "another process fills this store")

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        self._arrive(call)
        self._lose_race(call)
        return await super()._create(call, value, label)

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        self._arrive(call)
        if any(value in secret.values.values() for state in self.primary.states for secret in state.secrets.values()):
            self._lose_race(call)
        self.is_promoted = True
        return await super()._write(call, value, label, expected)

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        self._arrive(call)
        self._lose_race(call)
        await super()._label(call, label, version, expected)

    async def _destroy(self, call: Call, version: VersionId) -> None:
        self.is_promoted = True
        await super()._destroy(call, version)

    def catch_up(self) -> None:
        """Show the changes that the other process has copied; a read never shows an earlier state again."""
        if not (self.is_promoted or self.is_cut_off or self.is_stalled):
            self.shown = max(self.shown, len(self.primary.states) - 1 - self.lag)
            found = self.primary.states[self.shown]
            self.store.secrets = dict(found.secrets)

    def show_again(self, change: int) -> None:
        """Show what the primary store held after its change number `change`, as a restored store does."""
        self.is_promoted = True
        found = self.primary.states[change]
        self.store.secrets = dict(found.secrets)


class Regions:
    """A primary store in ``eu``, a follower that another process fills in ``us``, and another follower in ``ap``."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.eu = RegionStore(clock=clock)
        self.us = FilledStore(self.eu, clock=clock)
        self.ap = RegionStore(clock=clock)
        self.stores: Mapping[str, RegionStore] = {"eu": self.eu, "us": self.us, "ap": self.ap}

    def members(self, primary: str = "eu") -> list[StoreMember]:
        """Return the stores as a configuration names them, after a promotion with another primary store."""
        if primary != "eu":
            self.us.is_promoted = True
        regions = [primary, *(name for name in self.stores if name != primary)]
        return [
            StoreMember(region=name, provider=self.stores[name], template=SECRET, is_primary=name == primary)
            for name in regions
        ]

    def reader(self, region: str | None = None) -> RegionalReader:
        return RegionalReader(self.members(), region=region, clock=self.clock)

    def writer(self, primary: str = "eu", *, allowed: Sequence[str] = ()) -> ReplicatedStore:
        return ReplicatedStore(self.members(primary), allowed=allowed, clock=self.clock)
