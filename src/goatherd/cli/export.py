"""`goatherd export`: write the identity as a GoatDB settings.json."""

from __future__ import annotations

from pathlib import Path

import click

from goatherd.cli.main import DIRECTORY, FILE, App, command
from goatherd.config.build import open_store
from goatherd.operations.export import export_settings
from goatherd.telemetry import describe_count


@command(example="goatherd export settings.json --provider file:///srv/keys/root --data /srv/goatdb/localhost")
@click.argument("file", type=FILE)
@click.option(
    "--data",
    type=DIRECTORY,
    help="Data directory of the server; sessions of its /sys/sessions log become `trustedSessions`.",
)
@click.option("--replace", is_flag=True, help="Overwrite an existing FILE and the private key in it.")
@click.option("--unsafe-short-life", is_flag=True, help="Export the root although it has less than 15 days left.")
async def export(app: App, file: Path, data: Path | None, replace: bool, unsafe_short_life: bool) -> None:
    """Write the identity as a GoatDB settings.json.

    The command writes FILE atomically, readable by its owner only, without the key of the next root. It refuses the
    data directory of a running server that takes its identity from a store. It does not export
    a root with less than 15 days left: a GoatDB server would extend that root, and then expose its private key to
    unauthenticated requests.
    """
    async with open_store(app.options, is_reader=True) as store:
        done = await export_settings(store, file, data=data, replace=replace, unsafe_short_life=unsafe_short_life)
    shape = {
        "file": str(done.file),
        "version": done.version_id,
        "current": done.current_id,
        "roots": done.roots,
        "trustedSessions": done.sessions,
    }
    roots, sessions = describe_count(done.roots, "root"), describe_count(done.sessions, "user session")
    app.out.result(shape, [f"wrote {file}: root {done.current_id}, {roots}, {sessions}"])
