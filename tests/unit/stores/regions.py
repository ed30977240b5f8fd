"""Stores of several regions in memory, whose replication lags, fails and is cut off when a test says so.

A primary store records its state after each change, and replicas show one of these states (the way
``platform``), and stores of their own (the way ``goatherd``). No platform is imitated; AWS's own answers are tested on
the wire (tests/contract/aws/test_replicas.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from goatherd.errors import UnavailableError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.providers.base import Call, RetryPolicy
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.providers.values import CURRENT, STABLE, Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.stores import RegionalReader, ReplicatedStore, Replication, StoreMember
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


class Replica(RegionStore):
    """A store that the platform fills: it shows what the primary store held `lag` changes ago.

    Attributes:
        lag: How many changes the replica is behind.
        is_stalled: Whether its replication has ended: it answers, and shows what it showed before.
        is_promoted: Whether it has become a store of its own.
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
        if not self.is_promoted and call.operation not in ("read", "versions"):
            self.is_promoted = True  # the platform's own promotion comes first

    def catch_up(self) -> None:
        """Show the changes that replication has copied; a read never shows an earlier state again."""
        if not (self.is_promoted or self.is_cut_off or self.is_stalled):
            self.shown = max(self.shown, len(self.primary.states) - 1 - self.lag)
            found = self.primary.states[self.shown]
            self.store.secrets = dict(found.secrets)

    def show_again(self, change: int) -> None:
        """Show what the primary store held after its change number `change`, as a restored replica does."""
        self.is_promoted = True
        found = self.primary.states[change]
        self.store.secrets = dict(found.secrets)


class Regions:
    """A primary store in ``eu``, a replica in ``us``, and a store of its own in ``ap``."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.eu = RegionStore(clock=clock)
        self.us = Replica(self.eu, clock=clock)
        self.ap = RegionStore(clock=clock)
        self.stores: Mapping[str, RegionStore] = {"eu": self.eu, "us": self.us, "ap": self.ap}

    def members(self, primary: str = "eu") -> list[StoreMember]:
        """Return the stores as a configuration names them, after a promotion with another primary store."""
        ways = {"us": Replication.PLATFORM if primary == "eu" else Replication.GOATHERD}
        regions = [primary, *(name for name in self.stores if name != primary)]
        return [
            StoreMember(
                region=name,
                provider=self.stores[name],
                template=SECRET,
                replication=None if name == primary else ways.get(name, Replication.GOATHERD),
            )
            for name in regions
        ]

    def reader(self, region: str | None = None) -> RegionalReader:
        return RegionalReader(self.members(), region=region, clock=self.clock)

    def writer(self, primary: str = "eu", *, allowed: Sequence[str] = ()) -> ReplicatedStore:
        return ReplicatedStore(self.members(primary), allowed=allowed, clock=self.clock)
