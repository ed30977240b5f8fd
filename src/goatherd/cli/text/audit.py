"""Format the output of `goatherd audit`: the result of a verification, and the records of a trail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from goatherd.audit.records import Checked, Record
from goatherd.telemetry import describe_count
from goatherd.times import format_utc, iso

WIDTH: Final = 100


def checked_json(checked: Checked, file: Path) -> dict[str, Any]:
    """Return the result of verifying an audit trail, as JSON."""
    return {
        "file": str(file),
        "whole": True,
        "records": checked.head.seq,
        "head": str(checked.head),
        "first": iso(checked.first_ms),
        "last": iso(checked.last_ms),
        "signers": list(checked.signers),
        "restsOn": checked.rests_on,
        "torn": list(checked.torn),
        "lost": checked.lost,
        "byRevoked": checked.by_revoked,
        "afterRevocation": list(checked.after_revocation),
    }


def checked_lines(checked: Checked, file: Path, *, has_checkpoint: bool) -> list[str]:
    """Return the result of verifying an audit trail, as lines."""
    records = describe_count(checked.head.seq, "record")
    lines = [
        f"{file}: {records}, {format_utc(checked.first_ms)} to {format_utc(checked.last_ms)}, as they were written",
        f"signed by   {', '.join(checked.signers)}",
        f"head        {checked.head}",
    ]
    if checked.rests_on is not None:
        lines.append(
            f"note: the trail was verified with root {checked.rests_on}, which the file itself names; no store has"
            " confirmed it"
        )
    lines += [f"note: line {line} was torn by a crash, and the record after it states so" for line in checked.torn]
    if checked.lost:
        lines.append(
            f"note: {describe_count(checked.lost, 'record')} could not be written at the time; later records state so"
        )
    if checked.by_revoked:
        records = describe_count(checked.by_revoked, "record")
        lines.append(
            f"note: a root that was revoked has signed the end of the trail ({records}):"
            " an attacker who has its key could have replaced that part"
        )
    if checked.after_revocation:
        records = describe_count(len(checked.after_revocation), "record")
        lines.append(
            f"note: a root has signed {records} after it was revoked, from line {checked.after_revocation[0]} on: by a"
            " process that had not read the revocation yet, or by an attacker who has its key and can write the file"
        )
    if not has_checkpoint:
        lines.append(
            "note: only a --checkpoint that is kept in another place shows whether records are missing at the end"
        )
    return lines


def record_json(record: Record) -> dict[str, Any]:
    """Return a record of an audit trail as JSON."""
    return {
        "seq": record.seq,
        "at": iso(record.at_ms),
        "actor": record.actor,
        "event": record.event,
        "data": dict(record.data),
        "by": record.by,
        "lost": record.lost,
        "sha256": record.head.digest,
    }


def record_line(record: Record) -> str:
    """Return a record of an audit trail as one line, shortened if it is long."""
    found = {name: value for name, value in record.data.items() if value not in (None, [], "", {})}
    text = ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in found.items()
    )
    text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
    printable = "".join(char if char.isprintable() else "?" for char in f"{record.actor}  {record.event}  {text}")
    return f"{record.seq:>6}  {format_utc(record.at_ms)}  {printable}"
