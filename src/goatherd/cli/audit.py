"""The command that reads an audit trail: audit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from goatherd.audit.records import Anchors, Checked, Head, Record, read_record, verify
from goatherd.audit.trail import is_trail, read_lines
from goatherd.cli.main import App, PathType, command
from goatherd.config.build import open_store
from goatherd.errors import AuditBrokenError, ConfigurationError, DecodeError
from goatherd.times import iso

WIDTH = 100


@command(
    example="goatherd audit verify /var/log/goatherd/audit.jsonl --provider file:///srv/keys/root\n"
    "goatherd audit show /var/log/goatherd/audit.jsonl --last 20",
)
@click.argument("action", type=click.Choice(["verify", "show"]), metavar="verify|show")
@click.argument("file", type=PathType(path_type=Path, dir_okay=False))
@click.option("--offline", is_flag=True, help="With verify: do not read the store; trust the first signer in the file.")
@click.option(
    "--checkpoint",
    metavar="N:SHA256",
    help="With verify: a checkpoint of this trail from another place, such as the log; detects a truncated trail.",
)
@click.option("--last", metavar="N", type=click.IntRange(min=1), help="With show: show only the last N records.")
def audit(
    app: App,
    action: str,
    file: Path,
    offline: bool,
    checkpoint: str | None,
    last: int | None,
) -> int:
    """Check an audit trail, or show it.

    verify reports the first record that was changed, removed, moved, repeated, torn without a note in the next record,
    or not signed by a root of the identity in the store. It prints the head of the trail. Keep the head in another
    place as a checkpoint: only a checkpoint detects records that are missing at the end.

    show prints the records without verifying them.
    """
    if action == "show":
        if offline or checkpoint is not None:
            raise click.UsageError("--offline and --checkpoint belong to `audit verify`")
        return _show(app, file, last)
    if last is not None:
        raise click.UsageError("--last belongs to `audit show`")
    return _verify(app, file, offline=offline, checkpoint=checkpoint)


def _verify(app: App, file: Path, *, offline: bool, checkpoint: str | None) -> int:
    try:
        head = None if checkpoint is None else Head.from_text(checkpoint)
    except DecodeError as error:
        raise click.UsageError(str(error)) from None
    options = app.options
    is_named = options.provider is not None or options.cloud_config is not None
    if not is_named and not offline:
        raise ConfigurationError(
            "no store is named, so the roots that may sign the trail are not known",
            hint="Give --provider URI, or --offline to trust the file's first signer.",
        )
    anchors = None if offline else asyncio.run(_anchors(app))
    try:
        checked = verify(read_lines(file), anchors=anchors, checkpoint=head)
    except AuditBrokenError as error:
        if error.line == 1 and not is_trail(file):
            raise _not_a_trail(file) from None
        raise
    app.out.result(_data(checked, file), _lines(checked, file, has_checkpoint=head is not None))
    return 0


async def _anchors(app: App) -> Anchors:
    async with open_store(app.options) as store:
        _, document = await store.read()
    return Anchors.of(document)


def _data(checked: Checked, file: Path) -> dict[str, Any]:
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
    }


def _lines(checked: Checked, file: Path, *, has_checkpoint: bool) -> list[str]:
    lines = [
        f"{file}: {checked.head.seq} records, {iso(checked.first_ms)} to {iso(checked.last_ms)}, as they were written",
        f"signed by   {', '.join(checked.signers)}",
        f"head        {checked.head}",
    ]
    if checked.rests_on is not None:
        lines.append(f"note: all of it rests on root {checked.rests_on}; no store was asked whether that is yours")
    lines += [f"note: line {line} was torn by a crash, and the record after it states so" for line in checked.torn]
    if checked.lost:
        lines.append(f"note: {checked.lost} records could not be written at the time, as those after them say")
    if checked.by_revoked:
        lines.append(
            f"note: the last {checked.by_revoked} records are signed by a root that was revoked: whoever has its key "
            "could have written them anew"
        )
    if not has_checkpoint:
        lines.append("note: whether records are missing at the end can be seen only with a --checkpoint kept elsewhere")
    return lines


def _show(app: App, file: Path, last: int | None) -> int:
    records, unreadable = [], 0
    for line in read_lines(file):
        try:
            records.append(read_record(line))
        except DecodeError:
            unreadable += 1
    if unreadable and not records and not is_trail(file):
        raise _not_a_trail(file)
    records = records[-last:] if last is not None else records
    shape = {"records": [_record(record) for record in records], "unreadable": unreadable}
    app.out.result(shape, [_line(record) for record in records] or ["no records"])
    if unreadable:
        app.out.note(f"note: {unreadable} lines are no records and were left out; `goatherd audit verify` says which")
    return 0


def _not_a_trail(file: Path) -> AuditBrokenError:
    return AuditBrokenError(
        f"{file} is not an audit trail: it does not begin with a record",
        line=1,
        hint="Check the path. If this file was an audit trail, its beginning was cut off or overwritten.",
    )


def _record(record: Record) -> dict[str, Any]:
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


def _line(record: Record) -> str:
    text = ", ".join(f"{name}={value}" for name, value in record.data.items() if value not in (None, [], "", {}))
    text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
    printable = "".join(char if char.isprintable() else "?" for char in f"{record.actor}  {record.event}  {text}")
    return f"{record.seq:>6}  {iso(record.at_ms)}  {printable}"
