"""Verify an audit trail, or read its records.

`goatherd.audit` writes the trail. If a file is no audit trail at all, such as after a mistyped path, the error says so,
and does not call the file a damaged trail.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from goatherd.audit.records import Anchors, Checked, Head, Record, read_record, verify
from goatherd.audit.trail import is_trail, read_lines
from goatherd.errors import AuditBrokenError, DecodeError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailRecords:
    """The unverified records of an audit trail, and the number of its lines that cannot be parsed as records."""

    records: tuple[Record, ...]
    unreadable: int


def verify_trail(file: Path, *, anchors: Anchors | None, checkpoint: Head | None = None) -> Checked:
    """Verify every record of an audit trail: its place in the hash chain, and its signature.

    Args:
        file: The file of the trail.
        anchors: The roots that may sign the records; None to trust the first signer in the file.
        checkpoint: Number and hash of a record of this trail, stored elsewhere; if the file no longer holds that
            record, its end is missing. None for no such check.

    Raises:
        AuditBrokenError: A record was changed, removed or moved, or has no signature of a trusted root; or the file is
            no audit trail.
        AuditError: The file cannot be read.
    """
    try:
        return verify(read_lines(file), anchors=anchors, checkpoint=checkpoint)
    except AuditBrokenError as error:
        if error.line == 1 and not is_trail(file):
            raise _describe_other_file(file) from None
        raise


def read_trail(file: Path, *, last: int | None = None) -> TrailRecords:
    """Return the records of an audit trail without verifying them.

    Args:
        file: The file of the trail.
        last: How many of the newest records to return; None for all.

    Raises:
        AuditBrokenError: The file is no audit trail.
        AuditError: The file cannot be read.
    """
    records, unreadable = [], 0
    for line in read_lines(file):
        try:
            records.append(read_record(line))
        except DecodeError:
            unreadable += 1
    if unreadable and not records and not is_trail(file):
        raise _describe_other_file(file)
    return TrailRecords(records=tuple(records if last is None else records[-last:]), unreadable=unreadable)


def _describe_other_file(file: Path) -> AuditBrokenError:
    return AuditBrokenError(
        f"{file} is not an audit trail: it does not begin with a record",
        line=1,
        hint="Check the path. If this file was an audit trail, its beginning was cut off or overwritten.",
    )
