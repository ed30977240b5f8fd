"""A repository's log without a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from goatherd.wire.json import parse_json


class MemoryLog:
    """A repository's log that is kept in memory only; its records are lost when the process ends."""

    def __init__(self, records: Sequence[Mapping[str, Any]] = ()) -> None:
        self._records: list[Mapping[str, Any] | bytes] = list(records)
        self._unflushed = 0

    def read_records(self) -> list[Mapping[str, Any]]:
        return [parse_json(record) if isinstance(record, bytes) else record for record in self._records]

    @property
    def index(self) -> None:
        return None

    def read_lines(self, start: int = 0) -> Iterator[Mapping[str, Any] | bytes]:
        yield from self._records[start:]

    def append_record(self, record: Mapping[str, Any] | bytes) -> None:
        self._records.append(record)
        self._unflushed += 1

    @property
    def unflushed(self) -> int:
        return self._unflushed

    def flush(self) -> None:
        self._unflushed = 0
