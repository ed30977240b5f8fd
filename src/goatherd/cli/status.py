"""`goatherd status`: show the store, the identity, and the state of every server."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.text.status import status_data, status_lines
from goatherd.config.build import build_policy, listed_nodes, open_nodes, open_store
from goatherd.operations.status import read_status


@command(example="goatherd status --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def status(app: App) -> int:
    """Show the store, the identity, and the state of every server.

    The report lists every stored version with the private keys in it, and when `goatherd retire` may destroy them. It
    states how the last rotation ended, and why. With credentials that can read only the current version, the report
    leaves out what it cannot read, and says so.

    The exit code is 11 if a server does not answer, does not trust the current root, or signs with another root.
    """
    return asyncio.run(_status(app))


async def _status(app: App) -> int:
    options = app.options
    grace = options.rotation_grace
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(options))
        if listed_nodes(options):
            nodes = await stack.enter_async_context(open_nodes(options))
            hidden = set(options.rotation_bare) - set(options.nodes)
            found = await read_status(store, nodes, build_policy(options), grace=grace, hidden=hidden)
        else:
            found = await read_status(store, grace=grace)
    app.out.result(status_data(found), status_lines(found, app.out))
    return 0 if found.is_in_step else EXIT_FINDINGS
