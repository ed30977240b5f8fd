"""Write and read GoatDB's ``.jsonl`` commit logs. Pure: bytes in, bytes out.

The format is in docs/reference/goatdb-formats.md#logs. Writing follows GoatDB byte for byte, and reading accepts the
same records as GoatDB. The repair is Goatherd's own: a log is cut after its last good line, so that an incomplete write
never costs an earlier record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from goatherd.errors import DecodeError
from goatherd.wire.json import parse_json, to_json_bytes


def frame_records(records: Iterable[Any]) -> bytes:
    """Return the bytes of one append: each record preceded by a blank line; two newlines when there is none.

    Args:
        records: JSON values, or the compact JSON of one already made, as bytes.
    """
    texts = [record if isinstance(record, bytes) else to_json_bytes(record) for record in records]
    return b"\n" + b"\n\n".join(texts) + b"\n"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log that is not blank.

    Attributes:
        start: Offset of its first byte.
        end: Offset behind its last byte, the newline left out.
        record: The JSON object in it; None where it holds none: the line is damaged.
        is_finished: Whether a newline follows; without one it is what a crash leaves of a write.
    """

    start: int
    end: int
    record: dict[str, Any] | None
    is_finished: bool


def read_lines(data: bytes) -> Iterator[LogLine]:
    """Yield every line that is not blank, damaged ones and those behind them included."""
    position, length = 0, len(data)
    while position < length:
        newline = data.find(b"\n", position)
        if newline < 0:
            yield LogLine(position, length, None, is_finished=False)
            return
        if newline > position:
            yield LogLine(position, newline, _parse_record(data[position:newline]), is_finished=True)
        position = newline + 1


def _parse_record(line: bytes) -> dict[str, Any] | None:
    try:
        record = parse_json(line)
    except DecodeError:
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a log holds.

    Attributes:
        records: The JSON values of the good lines, in file order, up to the first bad one.
        good_end: Length to truncate to before appending: the end of the last good line, newline included.
        damage: What follows `good_end` in words, None when nothing does.
        records_after_damage: Lines behind the first bad one that are complete JSON: above 0, this is no torn write and
            truncating would destroy data.
    """

    records: list[Any]
    good_end: int
    damage: str | None
    records_after_damage: int


def scan_log(data: bytes) -> Scan:
    """Read a whole log. Blank lines are skipped, as is a lone trailing run of newlines."""
    records: list[Any] = []
    position = good_end = 0
    length = len(data)
    while position < length:
        newline = data.find(b"\n", position)
        if newline < 0:
            return Scan(records=records, good_end=good_end, damage="unfinished last line", records_after_damage=0)
        if newline > position:
            try:
                records.append(parse_json(data[position:newline]))
            except DecodeError:
                after = _count_good(data, newline + 1)
                damage = f"the line at byte {position} is not JSON"
                return Scan(records=records, good_end=good_end, damage=damage, records_after_damage=after)
        position = newline + 1
        good_end = position
    return Scan(records=records, good_end=good_end, damage=None, records_after_damage=0)


def _count_good(data: bytes, position: int) -> int:
    count = 0
    *lines, _unfinished = data[position:].split(b"\n")
    for line in lines:
        if line:
            try:
                parse_json(line)
            except DecodeError:
                continue
            count += 1
    return count
