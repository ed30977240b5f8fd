"""`goatherd audit`: verify an audit trail, or show it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from goatherd.audit.records import Anchors, Head
from goatherd.cli.main import App, command
from goatherd.cli.text.audit import checked_json, checked_lines, record_json, record_line
from goatherd.config.build import is_store_named, open_store
from goatherd.errors import ConfigurationError, DecodeError
from goatherd.operations.audit import read_trail, verify_trail
from goatherd.telemetry import describe_count


@command(
    example="goatherd audit verify /var/log/goatherd/audit.jsonl --provider file:///srv/keys/root\n"
    "goatherd audit show /var/log/goatherd/audit.jsonl --last 20",
)
@click.argument("words", nargs=-1, required=True, metavar="[verify|show] FILE")
@click.option(
    "--offline",
    is_flag=True,
    help="Do not read the store; trust the root that signed the first record. Only with verify.",
)
@click.option(
    "--checkpoint",
    metavar="N:SHA256",
    help="With verify: head that an earlier verify printed; detects records that are missing at the end.",
)
@click.option("--last", metavar="N", type=click.IntRange(min=1), help="With show: show only the last N records.")
def audit(
    app: App,
    words: tuple[str, ...],
    offline: bool,
    checkpoint: str | None,
    last: int | None,
) -> int:
    """Check an audit trail, or show it.

    `verify`, the default, reports the first record that was changed, removed, moved, repeated or cut short (unless the
    next record states that a crash cut it short), or that is not signed by a root of the identity in the store. It
    prints the head of the trail: the number and digest of the last record. Keep the head in another place, and give it
    as --checkpoint later: nothing else detects records that are missing at the end.

    `show` prints the records without verifying them.
    """
    action, file = _read_words(words)
    if action == "show":
        if offline or checkpoint is not None:
            raise click.UsageError("--offline and --checkpoint are options of `audit verify`")
        return _show_records(app, file, last)
    if last is not None:
        raise click.UsageError("--last is an option of `audit show`")
    return _verify_trail(app, file, offline=offline, checkpoint=checkpoint)


def _read_words(words: tuple[str, ...]) -> tuple[str, Path]:
    """Return what to do and with which file; without a verb, the file is verified."""
    if len(words) == 2 and words[0] in ("verify", "show"):
        return words[0], Path(words[1])
    if len(words) == 1 and words[0] not in ("verify", "show"):
        return "verify", Path(words[0])
    raise click.UsageError("give a file: goatherd audit [verify|show] FILE")


def _verify_trail(app: App, file: Path, *, offline: bool, checkpoint: str | None) -> int:
    try:
        head = None if checkpoint is None else Head.from_text(checkpoint)
    except DecodeError as error:
        raise click.UsageError(str(error)) from None
    options = app.options
    if not offline and not is_store_named(options):
        raise ConfigurationError(
            "no store is named, so the roots that may sign the trail are not known",
            hint="Give --provider URI, or --offline to trust the file's first signer.",
        )
    anchors = None if offline else asyncio.run(_read_anchors(app))
    checked = verify_trail(file, anchors=anchors, checkpoint=head)
    app.out.result(checked_json(checked, file), checked_lines(checked, file, has_checkpoint=head is not None))
    return 0


async def _read_anchors(app: App) -> Anchors:
    async with open_store(app.options, is_reader=True) as store:
        _, document = await store.read()
    return Anchors.from_document(document)


def _show_records(app: App, file: Path, last: int | None) -> int:
    found = read_trail(file, last=last)
    shape = {"records": [record_json(record) for record in found.records], "unreadable": found.unreadable}
    app.out.result(shape, [record_line(record) for record in found.records] or ["no records"])
    if found.unreadable:
        lines = describe_count(found.unreadable, "line", "is no record and was", "are no records and were")
        app.out.write_note(f"note: {lines} left out; `goatherd audit verify` says which")
    return 0
