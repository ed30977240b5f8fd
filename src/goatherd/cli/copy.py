"""`goatherd copy`: copy an identity from one store to another."""

from __future__ import annotations

import click

from goatherd.cli.main import App, command
from goatherd.cli.text.migration import copy_json, copy_lines
from goatherd.config.build import open_two_stores
from goatherd.operations.copy import copy_secret


@command(
    example="goatherd copy file:///srv/keys/root aws://eu-west-1/goatdb/prod/root --dry-run\n"
    "goatherd copy file:///srv/keys/root aws://eu-west-1/goatdb/prod/root",
    store=False,
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@click.option("--resume", is_flag=True, help="Resume a copy that was interrupted.")
async def copy(app: App, source: str, destination: str, dry_run: bool, resume: bool) -> None:
    """Copy an identity from one store to another.

    SRC and DST are the addresses of secrets; SRC stays unchanged, and DST must not exist. The command copies every
    readable version, oldest first, then the labels, `current` last, and compares all copies with the originals.
    --resume completes an interrupted copy. While a rotation is in progress, the command copies nothing.
    """

    def print_copied(old: str, new: str) -> None:
        app.out.event("copied", {"from": old, "to": new}, f"copied version {old} as {new}")

    async with open_two_stores(app.options, source, destination) as (first, second):
        second.check_durable("copy")
        done = await copy_secret(first, second, dry_run=dry_run, resume=resume, progress=print_copied)
    app.out.result(
        {"source": source, "destination": destination, "org": app.options.org, **copy_json(done)},
        copy_lines(done, app.out),
    )
