"""`goatherd init`: create an identity in a store that has none."""

from __future__ import annotations

import asyncio

import click

from goatherd.cli.main import App, command
from goatherd.config.build import build_policy, open_store
from goatherd.identity.redaction import redact_document
from goatherd.times import format_duration, iso


@command(example="goatherd init --provider file:///srv/keys/root")
@click.option("--lifetime", "rotation_lifetime", metavar="TIME", help="How long the new root is valid (default: 180d).")
def init(app: App) -> None:
    """Create an identity in a store that has none.

    The command creates a root session with a new key and writes the first identity document. If the store already holds
    an identity, the command fails and changes nothing.
    """
    asyncio.run(_init(app))


async def _init(app: App) -> None:
    # Imported here, because importing the rotation package takes long.
    from goatherd.cli.text.rotation import warn_of_short_life
    from goatherd.operations.init import init_identity
    from goatherd.rotation.policy import check_lifetime

    policy = build_policy(app.options)
    check_lifetime(policy)
    warn_of_short_life(app.out, policy.lifetime)
    async with open_store(app.options) as store:
        version, document = await init_identity(store, policy)
    data = {"store": store.name, "storeVersion": version.id, "created": True, **redact_document(document)}
    app.out.result(
        data,
        [
            f"created root {document.current.id} in {store.name} (version {version.id})",
            f"valid for {format_duration(policy.lifetime)}, until {iso(document.current.session.expiration_ms)}",
        ],
    )
