"""`goatherd status`: show the store, the identity, and every server; with --restart-lease, the restart lease."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import click

from goatherd.cli.main import EXIT_FINDINGS, FILE, App, command, config_flag
from goatherd.cli.text.status import status_data, status_lines
from goatherd.config.build import build_policy, build_schedule, listed_nodes, open_nodes, open_store
from goatherd.event_loop import run_reader
from goatherd.operations.status import read_status
from goatherd.times import iso


@command(
    example="goatherd status --provider file:///srv/keys/root --node http://10.0.0.1:8080\n"
    "goatherd status --html status.html",
    nodes=True,
)
@click.option(
    "--html", type=FILE, help="File to write the status to as a page for a browser; an existing file is replaced."
)
def status(app: App, html: Path | None) -> int:
    """Show the store, the identity, and the state of every server.

    The report lists every stored version with the private keys in it, when `goatherd retire` may destroy them, and how
    the last rotation ended. With credentials that can read only the current version, it states what it cannot read.

    The exit code is 11 if a server does not answer, does not trust the current root, or signs with another root.
    """
    if not listed_nodes(app.options) and html is None:
        return run_reader(lambda: _show_status(app, html))
    import asyncio  # here, since the status of a file store alone needs no event loop

    return asyncio.run(_show_status(app, html))


async def _show_status(app: App, html: Path | None) -> int:
    options = app.options
    grace = options.rotation_grace
    hidden = sorted(set(options.rotation_bare) - set(options.nodes))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(options, is_reader=True))
        if listed_nodes(options):
            nodes = await stack.enter_async_context(open_nodes(options, store))
            found = await read_status(store, nodes, build_policy(options), grace=grace, hidden=hidden)
        else:
            found = await read_status(store, grace=grace)
        if html is not None:
            from goatherd.web.file import write_status_file

            write_status_file(
                html,
                found,
                org=store.org,
                guarantees=store.provider.guarantees,
                schedule=build_schedule(options),
                audit_log=options.audit_log,
            )
    lines = status_lines(found, app.out)
    if hidden:
        urls = " ".join(hidden)
        lines.append(f"not shown, because they are restarted by hand: {urls} (`goatherd doctor` checks them)")
    app.out.result(status_data(found), lines)
    return 0 if found.is_in_step else EXIT_FINDINGS


@command(example="goatherd status --restart-lease --provider k8s://prod/goatdb-root --make")
@config_flag("--lease", "agent_lease", "URI of the secret for the restart lease (default: `<secret>-lease`).")
@click.option("--make", is_flag=True, help="Create the lease if there is none.")
async def lease(app: App, make: bool) -> None:
    """Show which server holds the restart lease, or create the lease.

    An agent restarts its server only while it holds the restart lease, a small secret beside the identity without a
    key. The first agent creates the lease if its credentials allow that. Otherwise, run this command with --make and
    with credentials that may create secrets.
    """
    # Imported here, because the status of a file store alone needs no agent.
    from goatherd.agent.restart_lease import read_lease
    from goatherd.config.build_servers import build_lease_secret

    provider, name = build_lease_secret(app.options)
    async with provider:
        record, is_new = await read_lease(provider, name, make=make)
    until = None if record.holder is None else iso(record.until_ms)
    data = {"lease": name, "made": is_new, "holder": record.holder, "until": until}
    state = "free" if record.holder is None else f"held by {record.holder} until {until}"
    app.out.result(data, [f"{name} {'was created, and ' if is_new else ''}is {state}"])
