"""A secret store far away that fails as stores do, within what it promises.

What it is: `SimulatedStore`, a provider over the memory store's ledger, one object for each process, so that deadlines,
retries and error guarantees are the real ones of `goatherd.providers.base`. What it is not: more generous than a
platform: what a guarantee leaves open happens here.

What can go wrong: a call takes long, hangs, is throttled or refused with "unavailable" before it has an effect, or has
its effect and loses its answer; a machine is cut off from the store; a read shows what was true a while ago, as far as
`Guarantees.read_consistency` allows; a write is two calls to the platform, and a process that dies in between leaves a
version that no label points at; a store that keeps no request ids meets its own write with a conflict.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import formatdate
from types import MappingProxyType
from typing import Final, Self, TypeVar

from goatherd.errors import SecretNotFoundError, ThrottledError, UnavailableError, VersionDisabledError
from goatherd.providers.base import Call, Guarantees, ReadConsistency, SecretProvider
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.providers.versioned_record import RecordedVersion, VersionedRecord
from tests.simulation.dice import Dice
from tests.simulation.loop import VirtualLoop, check_alive, current_process
from tests.simulation.machine import MachineClock
from tests.simulation.trace import Trace

R = TypeVar("R")

FAST: Final = (0.001, 0.02)
PATIENCE: Final = timedelta(seconds=3)
NOTICED: Final = 0.1
"""Seconds after which a call that hangs has noticed that the store is back, and fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The kind of a store.

    Attributes:
        consistency: What a read may show.
        in_two: Whether a write is two calls.
        forgets: Whether it keeps no request ids, so that a repeated write meets its own first attempt.
        is_timeless: Whether it has no clock, as a directory of files: its answers bear no date, and versions have the
            time of their writers.
        is_best_effort: Whether it promises compare-and-swap only while it is well, as it is here.
    """

    consistency: ReadConsistency = ReadConsistency.STRONG
    in_two: bool = False
    forgets: bool = False
    is_timeless: bool = False
    is_best_effort: bool = False

    def __str__(self) -> str:
        more = ["writes in two calls"] * self.in_two + ["keeps no request ids"] * self.forgets
        more += ["has no clock"] * self.is_timeless
        more += ["lets two writers win when it is not well"] * self.is_best_effort
        return ", ".join([f"reads {self.consistency}", *more])


@dataclass(slots=True)
class Trouble:
    """The present faults of the store.

    Attributes:
        down: It answers no request.
        hangs: While `down`, it does not answer at all.
        cut: Machines that it does not answer.
        throttles: The chance that a call is throttled.
        loses_answers: The chance that an answer is lost after the effect.
        slow: By which factor it is slower.
        lag: How old what a read shows may be, in seconds; where its guarantee allows it.
        blips: How many seconds apart single calls fail, each with all of its attempts; 0 for never.
        next_blip: The time of the next failing call.
        blip: The number of the last failing call.
    """

    down: bool = False
    hangs: bool = False
    cut: set[str] = field(default_factory=set)
    throttles: float = 0.0
    loses_answers: float = 0.0
    slow: float = 1.0
    lag: float = 0.0
    blips: float = 0.0
    next_blip: float = 0.0
    blip: str = ""


@dataclass(frozen=True, slots=True)
class Backup:
    """All that the store held at a moment."""

    ledger: VersionedRecord
    values: Mapping[int, SecretBytes]

    @property
    def current(self) -> tuple[int, SecretBytes]:
        """Number and content of the version that label ``current`` was on."""
        number = self.ledger.labels[CURRENT]
        return number, self.values[number]


@dataclass(slots=True)
class Platform:
    """The platform behind all providers of one run.

    Attributes:
        clock: The store's own clock.
        kind: The kind of store.
        trouble: The present faults.
        calls: How many calls came in, attempts counted one by one.
        on_current: Called, in order, with each version that label ``current`` was moved to.
        on_destroyed: Called with each version that is destroyed, and its content.
        parents: From what each content has grown, by digest: what its writer had read under the id that it expected.
    """

    loop: VirtualLoop
    clock: MachineClock
    dice: Dice
    trace: Trace
    kind: Kind
    on_current: Callable[[str, SecretBytes], None]
    on_destroyed: Callable[[str, SecretBytes], None]
    trouble: Trouble = field(default_factory=Trouble)
    calls: int = 0
    values: dict[int, SecretBytes] = field(default_factory=dict)
    past: list[tuple[float, VersionedRecord]] = field(default_factory=lambda: [(0.0, VersionedRecord())])
    parents: dict[str, str | None] = field(default_factory=dict)

    @property
    def ledger(self) -> VersionedRecord:
        """The truth."""
        return self.past[-1][1]

    def become(self, ledger: VersionedRecord) -> None:
        """Make a change take effect."""
        before = self.ledger.labels.get(CURRENT)
        self.past.append((self.loop.time(), ledger))
        now = ledger.labels.get(CURRENT)
        if now is not None and now != before:
            self.on_current(str(now), self.values[now])

    def back_up(self) -> Backup:
        """Return what there is now."""
        return Backup(self.ledger, MappingProxyType(dict(self.values)))

    def restore(self, backup: Backup) -> None:
        """Restore a backup exactly: version ids continue from there, and no read shows a later state."""
        self.values = dict(backup.values)
        self.past = [(0.0, backup.ledger)]

    def seen(self, *, by_label: bool) -> VersionedRecord:
        """Return the true state, or an earlier one where the kind of store allows that."""
        consistency = self.kind.consistency
        may_lag = consistency is ReadConsistency.EVENTUAL or (
            by_label and consistency is ReadConsistency.STRONG_BY_VERSION
        )
        if not may_lag or not self.trouble.lag:
            return self.ledger
        moment = self.loop.time() - self.dice.uniform(0, self.trouble.lag)
        return next((ledger for since, ledger in reversed(self.past) if since <= moment and ledger.exists), self.ledger)


class SimulatedStore(SecretProvider):
    """One process's way to the platform.

    Address: none; it is made.
    Credentials: none.
    Permissions: none.
    Guarantees: compare-and-swap always; reads as `Kind` says.
    """

    scheme = "simulated"

    def __init__(self, platform: Platform, clock: MachineClock) -> None:
        super().__init__(timeout=PATIENCE, clock=clock)
        self._platform = platform
        self._contents: dict[str, str] = {}

    @classmethod
    def from_uri(cls, uri: str) -> tuple[Self, str]:
        raise NotImplementedError(uri)

    @property
    def guarantees(self) -> Guarantees:
        kind = self._platform.kind
        return Guarantees(
            cas=not kind.is_best_effort,
            best_effort_cas=kind.is_best_effort,
            read_consistency=kind.consistency,
            durable=False,
        )

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        raise NotImplementedError("the world makes the secret")

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        def work() -> SecretValue:
            seen = self._platform.seen(by_label=isinstance(at, Label))
            number = seen.find_version(call, at)
            if number not in self._platform.values:
                raise call.error(VersionDisabledError, f"version {number} was destroyed")
            return SecretValue(version=seen.describe_version(number), value=self._platform.values[number])

        found = await self._call(call, str(at), work)
        self._contents[found.version.id] = digest_of(found.value)
        return found

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        platform = self._platform
        platform.parents.setdefault(digest_of(value), self._contents.get(expected or ""))
        written = await self._written(call, value, label, expected)
        self._contents[written.id] = digest_of(value)
        return written

    async def _written(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        platform = self._platform
        number = None if platform.kind.forgets else platform.ledger.made_by(call.request)
        if not platform.kind.in_two:
            return await self._call(call, label, lambda: self._put_and_label(call, value, label, expected))
        if number is None:
            number = await self._call(call, "put", lambda: self._put(call, value))
        made = number
        return await self._call(call, label, lambda: self._point(call, label, made, expected))

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        def work() -> None:
            self._platform.become(self._platform.ledger.with_label(call, label, version, expected))

        await self._call(call, f"{label} to {version}", work)

    async def _versions(self, call: Call) -> Sequence[SecretVersion]:
        def work() -> Sequence[SecretVersion]:
            seen = self._platform.seen(by_label=False)
            seen.must_exist(call)
            return seen.newest_first()

        return await self._call(call, "", work)

    async def _destroy(self, call: Call, version: VersionId) -> None:
        def work() -> None:
            self._platform.become(self._platform.ledger.without_value(call, version))
            value = self._platform.values.pop(int(version), None)
            if value is not None:
                self._platform.on_destroyed(version, value)

        await self._call(call, version, work)

    async def _delete(self, call: Call) -> None:
        raise call.error(SecretNotFoundError, "no command deletes the secret of a run")

    # --- effects ------------------------------------------------------------------------------------------------------

    def _put_and_label(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        platform = self._platform
        made = None if platform.kind.forgets else platform.ledger.made_by(call.request)
        if made is not None:
            return platform.ledger.describe_version(made)
        ledger = platform.ledger.with_version(call, self._entry(call, value), label, expected)
        platform.values[ledger.next_number - 1] = value
        platform.become(ledger)
        return ledger.describe_version(ledger.next_number - 1)

    def _put(self, call: Call, value: SecretBytes) -> int:
        ledger, number = self._platform.ledger, self._platform.ledger.next_number
        ledger.must_exist(call)
        entries = {**ledger.versions, number: self._entry(call, value)}
        self._platform.values[number] = value
        self._platform.become(replace(ledger, versions=MappingProxyType(entries)))
        return number

    def _point(self, call: Call, label: Label, number: int, expected: VersionId | None) -> SecretVersion:
        ledger = self._platform.ledger
        if ledger.labels.get(label) != number:
            ledger = ledger.with_label(call, label, VersionId(number), expected)
            self._platform.become(ledger)
        return ledger.describe_version(number)

    def _entry(self, call: Call, value: SecretBytes) -> RecordedVersion:
        clock = self.clock if self._platform.kind.is_timeless else self._platform.clock
        return RecordedVersion(
            created_ms=clock.now_ms(), request=call.request, digest=digest_of(value), size=value.size
        )

    # --- the network to the store -------------------------------------------------------------------------------------

    async def _call(self, call: Call, what: str, work: Callable[[], R]) -> R:
        platform, trouble = self._platform, self._platform.trouble
        check_alive()
        platform.calls += 1
        process = current_process()
        name = "world" if process is None else process.name
        told = f"store {call.operation} {what}".rstrip()
        began = self.clock.monotonic()
        await self._travel()
        if trouble.down or name.partition("/")[0] in trouble.cut:
            platform.trace.detail(name, f"{told}: unavailable")
            await self._until_back(call)
        now = platform.loop.time()
        if trouble.blips and now >= trouble.next_blip and call.request != trouble.blip:
            # Not each one that comes late enough: a server that polls seldom would never be answered.
            trouble.blip = call.request if platform.dice.chance(0.85) else ""
            trouble.next_blip = now + trouble.blips
        if trouble.blips and call.request == trouble.blip:
            platform.trace.detail(name, f"{told}: fails this once")
            raise call.error(UnavailableError, "this call failed, and no other")
        if platform.dice.chance(trouble.throttles):
            platform.trace.detail(name, f"{told}: throttled")
            raise call.error(ThrottledError, "too many requests")
        try:
            result = work()
        except Exception as error:
            platform.trace.detail(name, f"{told}: {type(error).__name__}")
            raise
        if platform.dice.chance(trouble.loses_answers):
            platform.trace.detail(name, f"{told}: done, answer lost")
            raise call.error(UnavailableError, "the connection was lost")
        platform.trace.detail(name, f"{told}: done")
        date = platform.clock.now_ms()
        await self._travel()
        if not platform.kind.is_timeless:
            self.store_clock.note_date(formatdate(date / 1000, usegmt=True), began=began)
        return result

    async def _until_back(self, call: Call) -> None:
        end = self._platform.loop.time() + PATIENCE.total_seconds()
        while self._platform.trouble.hangs and self._platform.loop.time() < end:
            await asyncio.sleep(NOTICED)
        raise call.error(UnavailableError, "the store does not answer")

    async def _travel(self) -> None:
        await asyncio.sleep(self._platform.dice.uniform(*FAST) * self._platform.trouble.slow)
        check_alive()


def digest_of(value: SecretBytes) -> str:
    return hashlib.sha256(value.reveal()).hexdigest()
