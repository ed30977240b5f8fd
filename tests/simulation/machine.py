"""A simulated machine: its clock, which may be wrong, and its disk, which outlives its processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from goatherd.wire.json import parse_json, to_json_bytes
from tests.simulation.dice import Dice
from tests.simulation.loop import VirtualLoop, check_alive

EPOCH_MS: Final = 1_790_000_000_000


class MachineClock:
    """The time of day as one machine has it; a `goatherd.clock.Clock`.

    Attributes:
        skew: How far it is ahead of the true time; may be changed at any time, as an operator or NTP does.
    """

    def __init__(self, loop: VirtualLoop, skew: timedelta = timedelta(0)) -> None:
        self.skew = skew
        self._loop = loop

    def now_ms(self) -> int:
        return EPOCH_MS + int(self._loop.time() * 1000) + self.skew // timedelta(milliseconds=1)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, duration: timedelta) -> None:
        check_alive()
        await asyncio.sleep(duration.total_seconds())


class MachineDisk:
    """Logs that survive a crash as far as they were flushed; a `goatherd.node.database.DataDirectory`."""

    def __init__(self) -> None:
        self._logs: dict[str, _Log] = {}
        self._kept: dict[str, list[Mapping[str, Any]]] = {}

    def acquire(self) -> None:
        """Start after a crash: what was not flushed is lost."""
        self._logs = {}

    def close(self) -> None:
        check_alive()
        for log in self._logs.values():
            log.flush()

    def open_log(self, repository: str) -> _Log:
        if repository not in self._logs:
            self._logs[repository] = _Log(self._kept.setdefault(repository, []))
        return self._logs[repository]

    def read_log(self, repository: str) -> Sequence[Mapping[str, Any]]:
        return list(self._kept.get(repository, ()))

    def repository_paths(self) -> list[str]:
        return sorted(path for path, records in self._kept.items() if records)

    def crash(self, dice: Dice) -> None:
        """Let some of what was being written reach the disk, in order; the rest is lost."""
        for log in self._logs.values():
            log.tear(dice)


class _Log:
    """One repository's; `kept` is what is on the disk."""

    def __init__(self, kept: list[Mapping[str, Any]]) -> None:
        self._kept = kept
        self._pending: list[Mapping[str, Any]] = []

    @property
    def unflushed(self) -> int:
        return len(self._pending)

    def read_records(self) -> Sequence[Mapping[str, Any]]:
        return list(self._kept)

    @property
    def index(self) -> None:
        return None

    def read_lines(self, start: int = 0) -> Iterator[Mapping[str, Any] | bytes]:
        yield from [to_json_bytes(record) for record in self._kept]

    def append_record(self, record: Mapping[str, Any] | bytes) -> None:
        self._pending.append(parse_json(record) if isinstance(record, bytes) else record)

    def flush(self) -> None:
        self._kept += self._pending
        self._pending = []

    def tear(self, dice: Dice) -> None:
        self._kept += self._pending[: dice.randint(0, len(self._pending))]
        self._pending = []
