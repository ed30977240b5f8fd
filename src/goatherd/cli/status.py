"""`goatherd status`: show the store, the identity, and the state of every server."""

from __future__ import annotations

import asyncio

from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.text.status import status_data, status_lines
from goatherd.config.build import build_policy, open_nodes, open_store
from goatherd.operations.status import read_status


@command(example="goatherd status --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def status(app: App) -> int:
    """Show the store, the identity, and the state of every server.

    The report covers every stored version: the private keys that it holds, and since when each key could be destroyed.
    It also states how the last rotation ended, and why. Credentials that can read only the current version do not allow
    this; the report then says so.

    The exit code is 11 if a server does not answer, does not trust the current root, or signs with another root.
    """
    return asyncio.run(_status(app))


async def _status(app: App) -> int:
    options = app.options
    hidden = set(options.rotation_bare) - set(options.nodes)
    async with open_store(options) as store, open_nodes(options) as nodes:
        found = await read_status(store, nodes, build_policy(options), hidden=hidden)
    app.out.result(status_data(found), status_lines(found, app.out))
    return 0 if found.is_in_step else EXIT_FINDINGS
