"""GoatDB's own log handle with its repair: what the vectors record and Goatherd does not do."""

from __future__ import annotations

from typing import Any

from goatherd.errors import DecodeError
from goatherd.wire.commit_log import frame_records
from goatherd.wire.json import parse_json

_BUFFER = 1 << 20
_PAGE = 100


class UpstreamLog:
    """One open handle over the bytes of a file."""

    def __init__(self, data: bytes, *, write: bool = True) -> None:
        self.data = data
        self._write = write
        self._known: set[str] = set()

    def append(self, records: list[Any]) -> None:
        """Append one batch; records without an id, or with one known to this handle, are skipped."""
        fresh: list[Any] = []
        for record in records:
            identifier = record.get("id") if isinstance(record, dict) else None
            if isinstance(identifier, str) and identifier not in self._known:
                self._known.add(identifier)
                fresh.append(record)
        self.data += frame_records(fresh)

    def scan(self) -> list[Any]:
        """Return the records, and truncate like GoatDB: blank lines are not counted."""
        records: list[Any] = []
        page: list[Any] = []
        kept = position = 0
        boundary = _BUFFER
        while True:
            newline = self.data.find(b"\n", position)
            end = len(self.data) if newline < 0 else newline
            while boundary <= end:
                if len(page) > _PAGE:
                    self._learn(page)
                    page = []
                boundary += _BUFFER
            if newline < 0:
                if position < len(self.data):
                    self._truncate(kept)
                return records
            line = self.data[position:newline]
            position = newline + 1
            if not line:
                continue
            try:
                record = parse_json(line)
            except DecodeError:
                self._learn(page)
                self._truncate(kept)
                return records
            records.append(record)
            page.append(record)
            kept += len(line) + 1

    def _learn(self, page: list[Any]) -> None:
        self._known.update(r["id"] for r in page if isinstance(r, dict) and isinstance(r.get("id"), str))

    def _truncate(self, length: int) -> None:
        if self._write:
            self.data = self.data[:length]
