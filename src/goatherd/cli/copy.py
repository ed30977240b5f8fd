"""The command that copies an identity from one store to another."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from goatherd.cli.main import App, command
from goatherd.config.build import open_two_stores
from goatherd.operations.copy import CopyReport, check_addresses, check_lasting, copy_secret
from goatherd.providers.values import shown_label, shown_labels


@command(
    example="goatherd copy file:///srv/keys/root aws://eu-west-1/goatdb/prod/root --dry-run\n"
    "goatherd copy file:///srv/keys/root aws://eu-west-1/goatdb/prod/root"
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--dry-run", is_flag=True, help="Show what would be copied; write nothing.")
@click.option("--resume", is_flag=True, help="Resume a copy that was interrupted.")
def copy(app: App, source: str, destination: str, dry_run: bool, resume: bool) -> None:
    """Copy an identity from one store to another.

    SRC and DST are addresses. The command copies every readable version, oldest first, then the labels, `current` last,
    and finally reads everything back and compares it. DST must not exist. --resume completes an interrupted copy if DST
    holds the first of the same versions. The copies get new version ids, which the command lists. It copies nothing
    while a rotation is in progress. SRC stays unchanged.
    """
    check_addresses(source, destination)
    done = asyncio.run(_copy(app, source, destination, dry_run=dry_run, resume=resume))
    app.out.result(
        {"source": source, "destination": destination, "org": app.options.org, **_data(done)}, _lines(app, done)
    )


async def _copy(app: App, source: str, destination: str, *, dry_run: bool, resume: bool) -> CopyReport:
    def told(old: str, new: str) -> None:
        app.out.event("copied", {"from": old, "to": new}, f"copied version {old} as {new}")

    async with open_two_stores(app.options, source, destination) as (first, second):
        check_lasting(second)
        return await copy_secret(first, second, dry_run=dry_run, resume=resume, progress=told)


def _data(done: CopyReport) -> dict[str, Any]:
    return {
        "dryRun": done.is_dry,
        "complete": not done.is_dry,
        "alreadyThere": done.present,
        "versions": [
            {"from": item.source, "to": item.target, "labels": done.labels_of(item)} for item in done.plan.items
        ],
        "skipped": [each.to_json() for each in done.plan.skipped],
        "leftLabels": [{"label": label, "version": holder} for label, holder in done.plan.left_labels.items()],
    }


def _lines(app: App, done: CopyReport) -> list[str]:
    rows = [(item.source, item.target or "-", shown_labels(done.labels_of(item))) for item in done.plan.items]
    lines = app.out.table(("FROM VERSION", "TO VERSION", "LABELS"), rows)
    lines += [f"skipped version {each.id}: {each.reason}" for each in done.plan.skipped]
    lines += [
        f"skipped label {shown_label(label)} of version {holder}: the destination does not take it"
        for label, holder in done.plan.left_labels.items()
    ]
    count = len(rows)
    if not done.is_dry:
        return [*lines, f"copied and read back: {count} versions, {len(done.plan.labels)} labels"]
    lines.append(f"would copy {count - done.present} of {count} versions; nothing was written")
    if done.shows_current_early:
        lines.append("until the copy is complete, its `current` is an older version: start no server from it before")
    return lines
