"""Write and read GoatDB's ``.jsonl`` commit logs. Pure: bytes in, bytes out.

The format is in docs/reference/goatdb-formats.md#logs. Writing produces the same bytes as GoatDB, and reading accepts
the same records. Only the repair after an incomplete write differs from GoatDB's: a log is cut after its last good
line, so no earlier record is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from goatherd.errors import DecodeError
from goatherd.wire.json import TooDeepError, parse_json, to_json_bytes


def frame_records(records: Iterable[Any]) -> bytes:
    """Return the bytes to append to a log for `records`: a blank line before each; without records, two newlines.

    Args:
        records: The records as JSON values, or as compact JSON in bytes.
    """
    texts = [record if isinstance(record, bytes) else to_json_bytes(record) for record in records]
    return b"\n" + b"\n\n".join(texts) + b"\n"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a repository's log; blank lines are not included.

    Attributes:
        start: Offset of the line's first byte.
        end: Offset after the line's last byte, without the newline.
        record: The JSON object in the line; None if the line is damaged.
        is_finished: Whether a newline follows; a line without one was cut short by a crash.
    """

    start: int
    end: int
    record: dict[str, Any] | None
    is_finished: bool


def read_lines(data: bytes) -> Iterator[LogLine]:
    """Yield every line of a log that is not blank, including damaged lines and those after them."""
    position, length = 0, len(data)
    while position < length:
        newline = data.find(b"\n", position)
        if newline < 0:
            yield LogLine(position, length, None, is_finished=False)
            return
        if newline > position:
            yield LogLine(position, newline, parse_record(data[position:newline]), is_finished=True)
        position = newline + 1


def parse_record(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in one line of a log; None if the line is damaged."""
    try:
        record = parse_json(line)
    except DecodeError:
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The result of reading a repository's log.

    Attributes:
        records: The JSON values of the good lines, in file order, up to the first damaged line; without those that are
            nested too deeply for this module.
        good_end: The length to truncate the log to before appending: the end of the last good line, with its newline.
        damage: A description of what follows `good_end`; None if nothing does.
        records_after_damage: The number of complete JSON lines after the first damaged line. Above 0, the damage is not
            an incomplete write, and truncating the log would destroy data.
    """

    records: list[Any]
    good_end: int
    damage: str | None
    records_after_damage: int


def scan_log(data: bytes) -> Scan:
    """Read a repository's log up to the first damaged line, and describe the damage.

    Blank lines and trailing newlines are skipped.
    """
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
            except TooDeepError:
                pass  # COMPAT: GoatDB reads this line, and does not cut the log off there
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
            except TooDeepError:
                pass
            except DecodeError:
                continue
            count += 1
    return count
