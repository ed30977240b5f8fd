"""`goatherd status --restart-lease`: show or create the restart lease."""

from __future__ import annotations

import asyncio

import click

from goatherd.cli.main import App, command
from goatherd.config.build_servers import build_lease_secret
from goatherd.times import iso


@command(example="goatherd status --restart-lease --provider k8s://prod/goatdb-root --make")
@click.option(
    "--lease",
    "agent_lease",
    metavar="URI",
    help="URI of the secret that holds the restart lease (default: beside the identity).",
)
@click.option("--make", is_flag=True, help="Create the lease if there is none.")
def lease(app: App, make: bool) -> None:
    """Show which server holds the restart lease, or create the lease.

    The agents of `goatherd run` and `goatherd run --watch` restart their servers one at a time: an agent restarts its
    server only while it holds the restart lease, a small secret that is stored beside the identity and holds no key.
    The first agent creates the lease if its credentials allow that. Otherwise, create it with --make and credentials
    that do.
    """
    from goatherd.operations.run_agent import open_and_read_lease

    provider, name = build_lease_secret(app.options)
    record, is_new = asyncio.run(open_and_read_lease(provider, name, make=make))
    until = None if record.holder is None else iso(record.until_ms)
    data = {"lease": name, "made": is_new, "holder": record.holder, "until": until}
    state = "free" if record.holder is None else f"held by {record.holder} until {until}"
    app.out.result(data, [f"{name} {'was created, and ' if is_new else ''}is {state}"])
