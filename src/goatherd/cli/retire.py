"""`goatherd retire`: destroy old private keys whose grace period has ended."""

from __future__ import annotations

import asyncio

import click

from goatherd.cli.main import (
    EXIT_FINDINGS,
    App,
    allow_lagging_option,
    audit_log,
    audit_option,
    command,
    config_flag,
    distrust_option,
)
from goatherd.cli.process import run_interruptible
from goatherd.cli.text.key_inventory import (
    due_lines,
    inventory_data,
    inventory_lines,
    retirement_lines,
    would_retire_lines,
)
from goatherd.cli.text.rotation import report_data
from goatherd.clock import SystemClock
from goatherd.config.build import build_policy, open_nodes, open_store
from goatherd.key_inventory import KeyInventory
from goatherd.operations.retire import read_key_inventory
from goatherd.operations.retire import retire as operation
from goatherd.telemetry import describe_count


@command(
    example="goatherd retire --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080",
    nodes=True,
)
@distrust_option
@allow_lagging_option
@config_flag("--grace", "rotation_grace")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="Show what would be done; destroy nothing.")
@audit_option
def retire(app: App, yes: bool, dry_run: bool) -> int:
    """Destroy old private keys whose grace period has ended.

    The command permanently destroys stored versions whose private keys have not signed for longer than the grace
    period. The public keys of these roots stay trusted.

    If this machine's clock differs from the store's (for a file store or Google: from the servers'), the command
    destroys nothing.

    The command keeps and lists versions that have a label other than `current` and `stable`; the exit code is then 11.

    With stores in several regions, the command searches all of them. If one cannot be searched, no root is recorded as
    retired, and the exit code is 11.

    If a listed server has used a later identity than the one in the store, the store was probably restored from a
    backup, and the command destroys nothing.
    """
    if dry_run:
        return _show_plan(app)
    if not yes:
        _confirm_destruction(app)
    return run_interruptible(app, _retire_keys(app), note="run `goatherd retire` again to destroy the rest")


def _confirm_destruction(app: App) -> None:
    keys = asyncio.run(_read_keys(app))
    due = [f"  {line}" for line in due_lines(keys, SystemClock().now_ms())]
    # A store that answers again a moment later may hold versions that are due.
    unread = keys.problem or " ".join(one.problem or "" for one in keys.unsearched)
    if due or unread:
        if not app.out.may_ask:
            raise click.UsageError(
                "nothing can be confirmed without a terminal; give --yes to destroy the private keys"
            )
        kinds = [describe_count(len(due), "version")] if due else []
        kinds += [f"all versions that are due and could not be listed ({unread})"] if unread else []
        click.echo("\n".join(due), err=True)
        click.confirm(f"Permanently destroy {', and '.join(kinds)}?", abort=True, err=True)


async def _read_keys(app: App) -> KeyInventory:
    async with open_store(app.options) as store:
        return await read_key_inventory(store, build_policy(app.options))


def _show_plan(app: App) -> int:
    keys, now_ms = asyncio.run(_read_keys(app)), SystemClock().now_ms()
    due = [one.version.id for one in keys.holdings_due(now_ms)]
    data = {"dryRun": True, "wouldDestroy": due, "privateKeys": inventory_data(keys, now_ms)}
    app.out.result(data, [*would_retire_lines(keys, now_ms), "", *inventory_lines(keys, app.out, now_ms)])
    return 0


async def _retire_keys(app: App) -> int:
    options = app.options
    async with open_store(options) as store, open_nodes(options) as nodes:
        done = await operation(store, nodes, build_policy(options), confirmed=True, audit_log=audit_log(app))
    now_ms = SystemClock().now_ms()
    data = report_data(done.report) | {"privateKeys": inventory_data(done.keys, now_ms)}
    app.out.result(data, [*retirement_lines(done), "", *inventory_lines(done.keys, app.out, now_ms)])
    return EXIT_FINDINGS if done.report.kept or done.keys.unsearched else 0
