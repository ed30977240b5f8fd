"""`goatherd rotate`: replace the root key while the cluster serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import click

from goatherd.cli.main import EXIT_FINDINGS, App, PathType, command
from goatherd.cli.process import give_way, run_interruptible
from goatherd.cli.rotation_run import HOW_TO_RESUME, run_rotation
from goatherd.cli.shared_options import audit_log, audit_option, distrust_option
from goatherd.cli.text.replacement import replaced_event, replacement_data, replacement_lines
from goatherd.cli.text.rotation import (
    add_unrun_command,
    plan_data,
    plan_lines,
    warn_of_short_life,
)
from goatherd.config.build import build_health_signals, build_policy, open_nodes, open_store
from goatherd.operations import rotate as operations
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Phase


@command(
    example="goatherd rotate --plan\n"
    "goatherd rotate --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080\n"
    "goatherd rotate --rollback",
    nodes=True,
)
@click.option("--plan", is_flag=True, help="Show the steps, the servers, and what prevents a rotation; write nothing.")
@click.option("--resume", is_flag=True, help="Resume the rotation in progress, whichever process started it.")
@click.option(
    "--cancel", is_flag=True, help="Cancel the rotation in progress; possible only before the next root signs."
)
@click.option("--rollback", is_flag=True, help="Roll back: the previous root signs again, and both roots stay trusted.")
@click.option(
    "--replace-expired",
    is_flag=True,
    help="Replace a root that has expired. What it has signed stays valid. Lists the servers that cannot follow.",
)
@click.option(
    "--to",
    "to_phase",
    type=click.Choice(["prepared", "published", "activated", "verified"]),
    help="Stop when this phase is reached; --resume continues.",
)
@click.option(
    "--reason", metavar="TEXT", help="Reason, recorded in the identity's history; only with --rollback or --cancel."
)
@click.option("--lifetime", "rotation_lifetime", metavar="TIME", help="How long the new root is valid (default: 180d).")
@click.option(
    "--adoption",
    "rotation_adoption",
    metavar="TIME",
    help="Time limit for the servers to adopt each new version of the identity (default: 5m).",
)
@click.option(
    "--quorum",
    "rotation_quorum",
    metavar="N|N%|all",
    help="How many servers must follow when --adoption has passed (default: all).",
)
@click.option(
    "--unlisted",
    "rotation_unlisted",
    metavar="TIME",
    help="How long to wait for servers that are not listed; give 0s if there are none.",
)
@click.option(
    "--bare",
    "rotation_bare",
    multiple=True,
    metavar="URL",
    help="Unmodified GoatDB server that you restart by hand. Can be given more than once.",
)
@distrust_option()
@click.option(
    "--health-url",
    "rotation_health_url",
    metavar="URL",
    help="URL of a health check. A status other than 2xx is a failure; failures end the rotation.",
)
@click.option(
    "--health-command",
    "rotation_health_command",
    metavar="CMD",
    help="Command of a health check. An exit code other than 0 is a failure; failures end the rotation.",
)
@click.option(
    "--metrics-file",
    type=PathType(path_type=Path, dir_okay=False),
    help="File to write metrics to at the end, for node_exporter's textfile collector; must end in .prom.",
)
@audit_option()
@click.option(
    "--unsafe-without-nodes", is_flag=True, help="Do not wait for any server: rotate although none is listed."
)
def rotate(
    app: App,
    plan: bool,
    resume: bool,
    rollback: bool,
    cancel: bool,
    replace_expired: bool,
    to_phase: str | None,
    reason: str | None,
    metrics_file: Path | None,
    unsafe_without_nodes: bool,
) -> int:
    """Replace the root key while the cluster serves.

    First every server learns to trust the next root. When all servers trust the next root, they start to sign with it.
    If a server does not follow in time, or the health check fails, Goatherd cancels the rotation or rolls it back. List
    every server that holds this identity: the rotation does not wait for servers that are not listed.

    The store keeps the previous private key for the grace period, so that `goatherd restore` can return to that root.
    Afterwards, `goatherd retire` destroys the key.

    An expired root cannot endorse a next root, so replace it with --replace-expired. If a listed server has not
    followed the new root, the exit code is 11; run the same command again.
    """
    asked = {
        "plan": plan,
        "resume": resume,
        "rollback": rollback,
        "cancel": cancel,
        "replace-expired": replace_expired,
    }
    chosen = [name for name, is_asked in asked.items() if is_asked]
    if len(chosen) > 1:
        raise click.UsageError("--plan, --resume, --rollback, --cancel and --replace-expired cannot be combined")
    what = chosen[0] if chosen else ""
    if reason is not None and what not in ("rollback", "cancel"):
        raise click.UsageError("--reason needs --rollback or --cancel")
    if to_phase is not None and what in ("rollback", "cancel", "replace-expired"):
        raise click.UsageError(f"--to does not go with --{what}")
    if metrics_file is not None and what == "replace-expired":
        raise click.UsageError("--metrics-file cannot be combined with --replace-expired")
    if what in ("", "replace-expired"):
        warn_of_short_life(app.out, app.options.rotation_lifetime)
    stop_at = Phase(to_phase) if to_phase else None
    if what == "plan":
        return asyncio.run(_plan(app, stop_at))
    if what == "replace-expired":
        replacing = _replace_expired(app, unsafe_without_nodes=unsafe_without_nodes)
        return run_interruptible(app, replacing, note="run the same command again to resume")
    why = reason or operations.ASKED
    work: dict[str, Callable[..., Awaitable[Report]]] = {
        "": partial(operations.rotate, to_phase=stop_at, unsafe_without_nodes=unsafe_without_nodes),
        "resume": partial(operations.resume, to_phase=stop_at, unsafe_without_nodes=unsafe_without_nodes),
        "cancel": partial(operations.cancel, reason=why),
        "rollback": partial(operations.roll_back, reason=why),
    }
    if what in ("", "resume") and app.options.rotation_health_command is None:
        # A health command would inherit the low priority and answer late.
        give_way(app)
    return run_interruptible(app, run_rotation(app, work[what], metrics_file), note=HOW_TO_RESUME)


async def _plan(app: App, to_phase: Phase | None) -> int:
    options = app.options
    async with open_store(options) as store, open_nodes(options) as nodes:
        health = build_health_signals(options)
        plan = await operations.plan_rotation(store, nodes, build_policy(options), health=health)
    plan = add_unrun_command(plan, health, options.origin.get("rotation.health_command"))
    app.out.result(plan_data(plan, to_phase), plan_lines(plan, to_phase))
    return 0


async def _replace_expired(app: App, *, unsafe_without_nodes: bool) -> int:
    options = app.options
    async with open_store(options) as store, open_nodes(options) as nodes:
        report = await operations.replace_expired(
            store,
            nodes,
            build_policy(options),
            unsafe_without_nodes=unsafe_without_nodes,
            audit_log=audit_log(app),
            on_event=lambda event: replaced_event(app.out, event),
        )
    app.out.result(replacement_data(report), replacement_lines(report))
    return 0 if report.is_complete else EXIT_FINDINGS
