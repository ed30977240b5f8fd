"""`goatherd retire`: destroy old private keys whose grace period has ended."""

from __future__ import annotations

import asyncio

import click

from goatherd.cli.auditing import audit_option, audited
from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.process import run_interruptible
from goatherd.cli.rotate import distrust_option
from goatherd.cli.text.key_inventory import due_lines, inventory_data, inventory_lines
from goatherd.cli.text.rotation import (
    report_data,
)
from goatherd.clock import SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.config.build import build_policy, open_store
from goatherd.key_inventory import KeyInventory, describe_kept, take_key_inventory
from goatherd.operations.runs import current_actor
from goatherd.rotation.rotator import Rotator
from goatherd.times import format_duration


@command(
    example="goatherd retire --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080",
    nodes=True,
)
@distrust_option()
@click.option(
    "--grace",
    "rotation_grace",
    metavar="TIME",
    help="Age that a rotation must have reached before its old key is destroyed (default: 30d).",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="List the versions that would be destroyed; destroy nothing.")
@audit_option()
def retire(app: App, yes: bool, dry_run: bool) -> int:
    """Destroy old private keys whose grace period has ended.

    The command permanently destroys stored versions whose private keys have not signed for longer than the grace
    period. The public keys of these roots stay trusted. Running the command again is harmless.

    If the store has no clock, such as a directory of files, the command reads the clocks of the servers. If this
    machine's clock is wrong, it destroys nothing.

    The command keeps and lists versions with labels other than Goatherd's own; the exit code is then 11.

    The command destroys nothing while a listed server has used a later identity than the store holds: the store was
    then restored from a backup, and the key may be needed.
    """
    grace = format_duration(app.options.rotation_grace)
    if dry_run:
        return asyncio.run(_show_retirement(app, grace))
    if not yes:
        if not app.out.may_ask:
            raise click.UsageError(
                "nothing can be confirmed without a terminal; give --yes to destroy the private keys"
            )
        due = [f"  {line}" for line in due_lines(asyncio.run(_find_due(app)), SystemClock().now_ms())]
        if due:
            click.echo("\n".join(due), err=True)
            click.confirm(f"Destroy {_count(len(due), 'version')} for good?", abort=True, err=True)
    return run_interruptible(app, _retire(app, grace), note="what was destroyed is; `goatherd retire` does the rest")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


async def _find_due(app: App) -> KeyInventory:
    async with open_store(app.options) as store:
        _, document = await store.read()
        return await take_key_inventory(store.provider, store.secret_id, document, app.options.rotation_grace)


async def _show_retirement(app: App, grace: str) -> int:
    keys, now_ms = await _find_due(app), SystemClock().now_ms()
    lines = [f"would destroy {line}" for line in due_lines(keys, now_ms)]
    lines += [describe_kept(one.version.id, one.foreign_labels) for one in keys.kept(now_ms)]
    lines = lines or [f"nothing to destroy: no version holds a private key that was replaced over {grace} ago"]
    data = {
        "dryRun": True,
        "wouldDestroy": [one.version.id for one in keys.due(now_ms)],
        "privateKeys": inventory_data(keys, now_ms),
    }
    app.out.result(data, [*lines, "", *inventory_lines(keys, app.out, now_ms)])
    return 0


async def _retire(app: App, grace: str) -> int:
    addresses = tuple(dict.fromkeys((*app.options.nodes, *app.options.rotation_bare)))
    async with (
        open_store(app.options) as store,
        NodeDirectory(addresses, timeout=app.options.timeout, org=app.options.org) as directory,
    ):
        async with audited(app, store, "retire", {"grace": app.options.rotation_grace}) as journal:
            rotator = Rotator(
                store.provider,
                store.secret_id,
                directory if directory.is_discovered else await directory(),
                org=store.org,
                policy=build_policy(app.options, is_discovered=directory.is_discovered),
                started_by=current_actor(),
                on_event=journal.told,
            )
            report = await rotator.retire()
        _, document = await store.read()
        keys = await take_key_inventory(store.provider, store.secret_id, document, app.options.rotation_grace)
    found = list(report.destroyed)
    lines = [f"destroyed version {version}" for version in found]
    lines += [f"gave up version {version}: {keys.copies}" for version in report.given_up]
    lines += [describe_kept(one.version, one.labels) for one in report.kept]
    lines = lines or [f"nothing to destroy: no version holds a private key that was replaced over {grace} ago"]
    now_ms = SystemClock().now_ms()
    app.out.result(
        report_data(report) | {"privateKeys": inventory_data(keys, now_ms)},
        [*lines, "", *inventory_lines(keys, app.out, now_ms)],
    )
    return EXIT_FINDINGS if report.kept else 0
