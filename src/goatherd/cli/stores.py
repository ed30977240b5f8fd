"""`goatherd stores`: show the stores of several regions, update those that are behind, or promote another one."""

from __future__ import annotations

import asyncio

import click

from goatherd.cli.main import EXIT_FINDINGS, App, audit_log, audit_option, command
from goatherd.cli.process import run_interruptible
from goatherd.cli.text.stores import (
    promotion_data,
    promotion_lines,
    regions_data,
    regions_lines,
    sync_data,
    sync_lines,
)
from goatherd.config.build import listed_nodes, open_nodes, open_store
from goatherd.operations.stores import promote_store, read_regions, sync_stores


@command(
    example="goatherd stores status\ngoatherd stores sync\ngoatherd stores promote us --node http://10.0.0.1:8080",
    nodes=True,
)
@click.argument(
    "action",
    type=click.Choice(["status", "sync", "promote"]),
    default="status",
    metavar="[status|sync|promote]",
)
@click.argument("region", required=False)
@click.option(
    "--force-generation",
    is_flag=True,
    help="Promote the store although another store or a server has shown a later identity.",
)
@audit_option
def stores(app: App, action: str, region: str | None, force_generation: bool) -> int:
    """Show the stores of several regions, or promote one.

    The section [stores] of goatherd.toml names the stores (how-to page: More than one region).

    `status`, the default, shows each region's store, or the single store: whether it answers, its generation and
    labels, and since when it lags. `sync` updates every follower to what the primary store holds; it never overwrites a
    later or an untrusted identity.

    `promote REGION` makes a follower the primary store. The follower must hold the highest generation that any store or
    listed server has shown. The command writes a new version to this store, and prints the [stores] section for
    goatherd.toml.

    The exit code is 11 if a store does not answer, lags, or holds another history or an untrusted identity.
    """
    if (region is not None) != (action == "promote"):
        needs = "promote needs the region of a follower" if region is None else f"{action} takes no region"
        raise click.UsageError(f"{needs}: goatherd stores promote REGION")
    if force_generation and action != "promote":
        raise click.UsageError("--force-generation needs `promote`")
    if action == "status":
        return asyncio.run(_show_stores(app))
    changing = _sync_stores(app) if action == "sync" else _promote_region(app, region or "", force=force_generation)
    return run_interruptible(app, changing, note="run the same command again to complete it")


async def _show_stores(app: App) -> int:
    async with open_store(app.options, is_reader=True) as store:
        found = await read_regions(store)
    app.out.result(regions_data(found), regions_lines(found, app.out))
    return 0 if all(one.is_in_step for one in found) else EXIT_FINDINGS


async def _sync_stores(app: App) -> int:
    async with open_store(app.options) as store:
        report = await sync_stores(store, audit_log=audit_log(app))
    app.out.result(sync_data(report), sync_lines(report))
    return 0 if report.is_complete else EXIT_FINDINGS


async def _promote_region(app: App, region: str, *, force: bool) -> int:
    options = app.options
    async with open_store(options, is_reader=True) as store, open_nodes(options) as nodes:
        listed = nodes if listed_nodes(options) else None
        report = await promote_store(store, region, listed, force=force, audit_log=audit_log(app))
    app.out.result(promotion_data(report), promotion_lines(report, options.stores))
    return 0
