"""`goatherd show`: show the identity, without its keys."""

from __future__ import annotations

import asyncio

import click

from goatherd.cli.main import App, command
from goatherd.cli.text.identity import identity_lines
from goatherd.config.build import open_store
from goatherd.identity.redaction import redact_document
from goatherd.providers.values import CURRENT


@command(example="goatherd show --provider file:///srv/keys/root\ngoatherd show --at stable --json")
@click.option("--at", metavar="LABEL|VERSION", help="Label or version to show (default: current).")
def show(app: App, at: str | None) -> None:
    """Show the identity, without its keys."""
    asyncio.run(_show(app, at))


async def _show(app: App, at: str | None) -> None:
    async with open_store(app.options) as store:
        version, document = await store.read(CURRENT if at is None else await store.find(at))
    data = {
        "store": store.name,
        "storeVersion": version.id,
        "labels": sorted(version.labels),
        **redact_document(document),
    }
    app.out.result(data, identity_lines(app.out, store.name, version.id, document))
