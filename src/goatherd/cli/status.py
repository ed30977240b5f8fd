"""`goatherd status`: show the cluster's state, every server, and what to do next; with --restart-lease, the lease."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from goatherd.cli.main import EXIT_FINDINGS, FILE, App, command, config_flag, exit_code
from goatherd.cli.text.identity import roots_lines
from goatherd.cli.text.status import status_data, status_lines, unreadable_data, unreadable_lines, versions_lines
from goatherd.config.build import build_policy, build_schedule, listed_nodes, open_nodes, open_store
from goatherd.config.options import Options
from goatherd.errors import GoatherdError
from goatherd.operations.identity_store import Store
from goatherd.operations.status import ClusterStatus, decide_next_rotation, read_reports, read_status
from goatherd.times import format_utc, iso
from goatherd.web.view import State, View, make_view

if TYPE_CHECKING:
    from goatherd.cluster.discovery import NodeDirectory

WATCH: Final = timedelta(seconds=5)
"""Pause between two readings with --watch."""


@command(
    example="goatherd status --provider file:///srv/keys/root --node http://10.0.0.1:8080\n"
    "goatherd status --watch\n"
    "goatherd status --html status.html",
    nodes=True,
)
@click.option("--roots", is_flag=True, help="Also list the roots.")
@click.option("--versions", is_flag=True, help="Also list the stored versions and the private keys in each.")
@click.option("--watch", is_flag=True, help="Show the status again every 5 seconds, until Ctrl-C.")
@click.option(
    "--html", type=FILE, help="File to write the status to as a page for a browser; an existing file is replaced."
)
def status(app: App, roots: bool, versions: bool, watch: bool, html: Path | None) -> int:
    """Show the state of the cluster, every server, and what to do next.

    The first word is the verdict: well, rotating, degraded, failed, or unknown if no server is listed. If the store
    cannot be read, the servers are still asked what they report about themselves.

    With --versions, the report states which stored version holds which private key, and when `goatherd retire` may
    destroy it. With credentials that can read only the current version, it states what it cannot read.

    The exit code is 0 if the verdict is well or rotating, else 11; if the store cannot be read, it is that of the
    error.
    """
    if watch and app.out.as_json:
        raise click.UsageError("--watch cannot be combined with --json")
    try:
        return asyncio.run(_show_status(app, roots=roots, versions=versions, watch=watch, html=html))
    except KeyboardInterrupt:
        if watch:
            return 0
        raise


async def _show_status(app: App, *, roots: bool, versions: bool, watch: bool, html: Path | None) -> int:
    options, out = app.options, app.out
    hidden = sorted(set(options.rotation_bare) - set(options.nodes))
    store: Store | None = None
    nodes: NodeDirectory | None = None
    found: ClusterStatus | None = None
    async with AsyncExitStack() as stack:
        while True:
            try:
                if store is None:
                    store = await stack.enter_async_context(open_store(options, is_reader=True))
                    if listed_nodes(options):
                        nodes = await stack.enter_async_context(open_nodes(options))
                policy, grace = build_policy(options), options.rotation_grace
                found = await read_status(store, nodes, policy, grace=grace, hidden=hidden, known=found)
            except GoatherdError as error:
                code = await _show_servers(app, error, is_again=watch and found is not None)
            else:
                view = _make_view(found, store, options)
                if html is not None:
                    from goatherd.web.file import write_status_file

                    write_status_file(html, view)
                lines = status_lines(view, found, out, hidden=hidden)
                if roots:
                    lines += ["", *roots_lines(out, found.document, found.at_ms, found.unlisted_roots)]
                if versions:
                    lines += ["", *versions_lines(found, out)]
                if watch:
                    out.clear_screen()
                out.result(status_data(found, view), lines)
                code = 0 if view.state in (State.WELL, State.ROTATING) else EXIT_FINDINGS
            if not watch:
                return code
            await asyncio.sleep(WATCH.total_seconds())


def _make_view(found: ClusterStatus, store: Store, options: Options) -> View:
    schedule, trail = build_schedule(options), None
    if options.audit_log is not None:
        from goatherd.audit.records import Anchors  # here, since usually there is no audit trail to read
        from goatherd.web.collector import read_trail_view

        trail = read_trail_view(options.audit_log, Anchors.from_document(found.document), found.at_ms)
    return make_view(
        found,
        org=store.org,
        guarantees=store.provider.guarantees,
        schedule=schedule,
        decision=decide_next_rotation(found, schedule),
        trail=trail,
    )


async def _show_servers(app: App, error: GoatherdError, *, is_again: bool) -> int:
    """Show why the store could not be read, and what the servers report; return the exit code.

    Raises:
        GoatherdError: `error` does not concern the store or the identity in it, or no server is listed.
    """
    from goatherd.cluster.discovery import NodeDirectory  # here, since a status without servers needs no HTTP

    options = app.options
    if error.code.partition(".")[0] not in ("provider", "identity") or not listed_nodes(options):
        raise error
    async with NodeDirectory(listed_nodes(options), timeout=options.timeout, org=options.org) as nodes:
        servers = await read_reports(nodes)
    if is_again:
        app.out.clear_screen()
    app.out.result(unreadable_data(error, servers), unreadable_lines(error, servers, app.out))
    return exit_code(error)


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
    state = "free" if record.holder is None else f"held by {record.holder} until {format_utc(record.until_ms)}"
    app.out.result(data, [f"{name} {'was created, and ' if is_new else ''}is {state}"])
