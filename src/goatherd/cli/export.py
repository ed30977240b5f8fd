"""goatherd export: write the identity as a GoatDB settings.json."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from goatherd.cli.main import App, PathType, command
from goatherd.clock import SystemClock
from goatherd.config.build import open_store
from goatherd.errors import IdentityExistsError
from goatherd.files import create_file, read_file, replace_file
from goatherd.identity.session import Session
from goatherd.identity.settings_json import to_settings

if TYPE_CHECKING:
    pass


@command(example="goatherd export settings.json --provider file:///srv/keys/root --data /srv/goatdb/localhost")
@click.argument("file", type=PathType(path_type=Path, dir_okay=False))
@click.option(
    "--data",
    type=PathType(path_type=Path, file_okay=False),
    help="Data directory of the server; sessions of its /sys/sessions log become `trustedSessions`.",
)
@click.option("--replace", is_flag=True, help="Overwrite FILE, including the private key in it.")
@click.option("--unsafe-short-life", is_flag=True, help="Allow a root with less than 15 days left.")
def export(app: App, file: Path, data: Path | None, replace: bool, unsafe_short_life: bool) -> None:
    """Write the identity as a GoatDB settings.json.

    The command writes FILE atomically, readable by its owner only. FILE holds only what a GoatDB server reads, and
    never the key of the next root. The command rejects a root with less than 15 days left, because a GoatDB server
    would extend it automatically and then expose its private key to unauthenticated requests.
    """
    asyncio.run(_export(app, file, data, replace=replace, unsafe_short_life=unsafe_short_life))


async def _export(app: App, file: Path, data: Path | None, *, replace: bool, unsafe_short_life: bool) -> None:
    async with open_store(app.options) as store:
        version, document = await store.read()
    sessions: tuple[Session, ...] = ()
    if data is not None:
        from goatherd.operations.migration_files import verified_sessions

        sessions = verified_sessions(data, document, store.org)
    text = to_settings(document, sessions, now_ms=None if unsafe_short_life else SystemClock().now_ms())
    write_settings(file, text, replace=replace)
    shape = {
        "file": str(file),
        "version": version.id,
        "current": document.current.id,
        "roots": len(document.roots),
        "trustedSessions": len(sessions),
    }
    app.out.result(
        shape,
        [f"wrote {file}: root {document.current.id}, {len(document.roots)} roots, {len(sessions)} user sessions"],
    )


def write_settings(file: Path, text: bytes, *, replace: bool) -> None:
    """Write a file that holds a key: mode 0600, whole or not at all. The same content again is no change.

    Raises:
        IdentityExistsError: There is another file, and `replace` is False.
    """
    if replace:
        replace_file(file, text)
        return
    try:
        create_file(file, text)
    except IdentityExistsError as error:
        if read_file(file) == text:
            return
        error.hint = "It was not touched. --replace overwrites it, and the key in it."
        raise
