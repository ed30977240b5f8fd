"""A clock that a test advances, and a store that counts calls and fails on demand."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from goatherd.errors import GoatherdError, UnavailableError
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.providers.base import Call
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId

NOW = 1_795_000_000_000
SECRET = "goatdb/root"


class HandClock:
    """A clock that advances only in `turn`, which wakes the tasks that sleep until then."""

    def __init__(self) -> None:
        self._now_ms = NOW
        self._sleepers: list[tuple[int, asyncio.Event]] = []
        self.waits: list[timedelta] = []

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._now_ms / 1000

    async def sleep(self, duration: timedelta) -> None:
        self.waits.append(duration)
        woken = asyncio.Event()
        self._sleepers.append((self._now_ms + duration // timedelta(milliseconds=1), woken))
        await woken.wait()

    async def turn(self, duration: timedelta) -> None:
        self._now_ms += duration // timedelta(milliseconds=1)
        for when, woken in list(self._sleepers):
            if when <= self._now_ms:
                self._sleepers.remove((when, woken))
                woken.set()
        await settle()


async def settle() -> None:
    """Run every task that can run without the clock or the disk."""
    for _ in range(50):
        await asyncio.sleep(0)


async def store_with(document: IdentityDocument) -> CountingProvider:
    """Return a store that holds an identity, and has counted no call yet."""
    provider = CountingProvider()
    await provider.create(SECRET, encode_document(document))
    provider.writes = 0
    return provider


class CountingProvider(MemorySecretProvider):
    """Counts what reaches the store. `failures` are raised by the next reads, `hold` makes reads wait."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.writes = 0
        self.failures: list[type[GoatherdError]] = []
        self.hold: asyncio.Event | None = None
        self.is_answer_lost = False

    async def _read(self, call: Call, at: Label | VersionId) -> SecretValue:
        self.reads += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.failures:
            error = call.error(self.failures.pop(0), "the store has a bad day", final=True)  # type: ignore[type-var]
            raise error
        return await super()._read(call, at)

    async def _create(self, call: Call, value: SecretBytes, label: Label) -> SecretVersion:
        self.writes += 1
        return await super()._create(call, value, label)

    async def _write(self, call: Call, value: SecretBytes, label: Label, expected: VersionId | None) -> SecretVersion:
        self.writes += 1
        version = await super()._write(call, value, label, expected)
        if self.is_answer_lost:
            self.is_answer_lost = False
            raise call.error(UnavailableError, "the answer got lost", final=True)
        return version

    async def _label(self, call: Call, label: Label, version: VersionId, expected: VersionId | None) -> None:
        self.writes += 1
        await super()._label(call, label, version, expected)

    async def put(self, value: IdentityDocument | bytes) -> str:
        """Write a value as another client would, without a compare-and-swap."""
        raw = value if isinstance(value, bytes) else encode_document(value)
        holder = next((one.id for one in await self.versions(SECRET) if CURRENT in one.labels), None)
        return str((await self.write(SECRET, raw, expected=holder)).id)
