"""`goatherd rotate`: replace the root key while the cluster serves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from goatherd.cli.auditing import audit_option, audited
from goatherd.cli.main import App, PathType, command
from goatherd.cli.metrics_file import remembered, reported
from goatherd.cli.process import give_way, run_interruptible
from goatherd.cli.replacing import replace_expired as drive_replacement
from goatherd.cli.text.progress import Progress
from goatherd.cli.text.rotation import (
    bare_lines,
    plan_data,
    plan_lines,
    report_data,
    report_lines,
    restart_lines,
    restarts_data,
    warn_of_short_life,
)
from goatherd.cluster.discovery import NodeDirectory
from goatherd.config.build import build_health_signals, build_policy, open_store, store_name
from goatherd.config.options import Options
from goatherd.errors import ConfigurationError, NotAdoptedError
from goatherd.key_inventory import retained_copies
from goatherd.operations.runs import current_actor
from goatherd.rotation.events import Event, Report
from goatherd.rotation.health_checks import HealthCommand
from goatherd.rotation.machine import Phase, Step
from goatherd.rotation.policy import check_lifetime
from goatherd.rotation.rotator import Rotator


def distrust_option() -> Callable[[Any], Any]:
    """Return the option of the commands that compare the store with what the servers have used."""
    return click.option(
        "--distrust",
        "rotation_distrust",
        multiple=True,
        metavar="URL",
        help="Server whose report of the store's history is ignored. Can be given more than once.",
    )


@command(
    example="goatherd rotate --plan\n"
    "goatherd rotate --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080\n"
    "goatherd rotate --rollback",
    nodes=True,
)
@click.option(
    "--plan", is_flag=True, help="Show the steps, the servers and the obstacles of a rotation; write nothing."
)
@click.option("--resume", is_flag=True, help="Resume the rotation in progress, whichever process started it.")
@click.option("--cancel", is_flag=True, help="Cancel the rotation. Possible only before the next root signs.")
@click.option("--rollback", is_flag=True, help="Roll back: the previous root signs again, and both roots stay trusted.")
@click.option(
    "--replace-expired",
    is_flag=True,
    help="Replace a root that has expired. What it has signed stays valid; servers that cannot follow are named.",
)
@click.option(
    "--to",
    "to_phase",
    type=click.Choice(["prepared", "published", "activated", "verified"]),
    help="Stop when this phase is reached; --resume continues.",
)
@click.option("--reason", metavar="TEXT", help="Reason for --rollback or --cancel, recorded in the identity's history.")
@click.option("--lifetime", "rotation_lifetime", metavar="TIME", help="How long the new root is valid (default: 180d).")
@click.option(
    "--adoption", "rotation_adoption", metavar="TIME", help="How long the servers have for each phase (default: 5m)."
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
    help="How long to wait for servers that are not listed; 0s if every server is listed.",
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
    "--health-url", "rotation_health_url", metavar="URL", help="URL of a health check; roll back if it is not 2xx."
)
@click.option(
    "--health-command",
    "rotation_health_command",
    metavar="CMD",
    help="Command of a health check; roll back if it exits with another code than 0.",
)
@click.option(
    "--metrics-file",
    type=PathType(path_type=Path, dir_okay=False),
    help="File to write metrics to at the end, for node_exporter's textfile collector; must end in .prom.",
)
@audit_option()
@click.option("--unsafe-without-nodes", is_flag=True, help="Rotate without waiting for any server.")
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

    First every server learns to trust the next root. When all servers trust it, they start to sign with it. If a server
    does not follow in time, or a health check fails, Goatherd cancels the rotation or rolls it back. List every server
    that holds this identity: the rotation does not wait for servers that are not listed.

    The store keeps the previous private key for the grace period, so that `goatherd restore` can return to that root.
    Afterwards, `goatherd retire` destroys the key.

    An expired root cannot endorse a next root: --replace-expired replaces it. The exit code is 11 while a listed server
    has not followed; run the command again then.
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
        raise click.UsageError("--reason goes with --rollback or --cancel")
    if to_phase is not None and what in ("rollback", "cancel", "replace-expired"):
        raise click.UsageError(f"--to does not go with --{what}")
    if metrics_file is not None and what == "replace-expired":
        raise click.UsageError("--metrics-file does not go with --replace-expired")
    if what in ("", "replace-expired"):
        check_lifetime(build_policy(app.options))
        warn_of_short_life(app.out, app.options.rotation_lifetime)
    if what == "replace-expired":
        replacing = drive_replacement(app, build_policy(app.options), unsafe_without_nodes=unsafe_without_nodes)
        return run_interruptible(app, replacing, note="the very same command, run again, resumes it")
    if what in ("", "resume") and app.options.rotation_health_command is None:
        # A command of the operator's would inherit it, and be late with its answer.
        give_way(app)
    going = drive_rotation(
        app,
        what=what,
        to_phase=Phase(to_phase) if to_phase else None,
        reason=reason or "asked for by the operator",
        metrics_file=None if plan else metrics_file,
        unsafe_without_nodes=unsafe_without_nodes,
    )
    return run_interruptible(app, going, note="" if plan else HOW_TO_GO_ON)


HOW_TO_GO_ON: Final = (
    "a rotation that has begun stands where it is: `goatherd rotate --resume` carries it on, `--cancel` or "
    "`--rollback` leaves it"
)


async def drive_rotation(
    app: App,
    *,
    what: str,
    to_phase: Phase | None,
    reason: str,
    metrics_file: Path | None,
    unsafe_without_nodes: bool,
    root_id: str | None = None,
) -> int:
    """Do what `goatherd rotate` or `goatherd restore` was asked for, and print how it ended.

    Args:
        app: The options and the writer.
        what: ``plan``, ``resume``, ``cancel``, ``rollback`` or ``restore``; empty to rotate.
        to_phase: Stop when this phase is reached.
        reason: For the document's history.
        metrics_file: Where to leave metrics; None for nowhere.
        unsafe_without_nodes: Whether no server need be listed.
        root_id: With ``restore``, the earlier root; None for the previous one.
    """
    options = app.options
    # SECURITY: with no node listed, the next root would sign before servers trust it
    # (tests/unit/cli/test_cluster_commands.py).
    addresses = tuple(dict.fromkeys((*options.nodes, *options.rotation_bare)))
    if not addresses and not unsafe_without_nodes and what in ("", "resume", "restore"):
        raise ConfigurationError(
            "no server is listed, so the rotation could not wait until each has adopted the new root",
            hint="Give --node URL for each server, set GOATHERD_NODES, or write `nodes = [...]` into goatherd.toml.",
        )
    # Progress tells what the log would.
    logging.getLogger("goatherd.rotation").addHandler(logging.NullHandler())
    async with AsyncExitStack() as stack:
        seen = stack.enter_context(reported(metrics_file, store_name(options), app.out))
        store = await stack.enter_async_context(open_store(options))
        if metrics_file is not None:
            await stack.enter_async_context(remembered(store, seen))
        directory = await stack.enter_async_context(NodeDirectory(addresses, timeout=options.timeout, org=options.org))
        progress = stack.enter_context(Progress(app.out))
        listeners = [progress.told, seen.told]
        if what != "plan":
            asked: dict[str, Any] = {"what": what or "rotate", "reason": reason, "toPhase": to_phase}
            if options.rotation_distrust:
                asked["distrust"] = list(options.rotation_distrust)
            if what == "restore":
                asked["root"] = root_id
            name = "restore" if what == "restore" else "rotate"
            journal = await stack.enter_async_context(audited(app, store, name, asked))
            listeners.append(journal.told)
        rotator = Rotator(
            store.provider,
            store.secret_id,
            directory if directory.is_discovered else await directory(),
            org=store.org,
            policy=build_policy(options, is_discovered=directory.is_discovered),
            started_by=current_actor(),
            on_event=_each(*listeners),
            # SECURITY: a plan is asked for before anything is trusted (tests/unit/cli/test_rotate_commands.py).
            health=build_health_signals(options, runs_commands=what != "plan"),
        )
        if what == "plan":
            plan = await rotator.plan()
            if options.rotation_health_command is not None:
                plan = replace(plan, remarks=(*plan.remarks, _health_command_not_run(options)))
            app.out.result(plan_data(plan, to_phase), plan_lines(plan, to_phase))
            return 0
        try:
            report = await _asked(rotator, what, to_phase, reason, root_id)
        except NotAdoptedError as error:
            if isinstance(error.report, Report):
                restarts = {"restarts": restarts_data(error.report)}
                app.out.event("restarts", restarts, "\n".join(restart_lines(error.report)))
            raise
        copies = retained_copies(store.provider.guarantees)
    lines = [
        *report_lines(report, options.rotation_grace, copies=copies),
        *bare_lines(report, options.rotation_bare),
    ]
    app.out.result(report_data(report), lines)
    return 0


def _health_command_not_run(options: Options) -> str:
    name = HealthCommand(options.rotation_health_command or "", timeout=options.rotation_health_timeout).name
    return (
        f"the health {name} ({options.origin['rotation.health_command']}) was not run: a plan runs no commands; "
        "a rotation runs it before it begins and while the next root signs"
    )


def _each(*listeners: Callable[[Event], None]) -> Callable[[Event], None]:
    def told(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return told


async def _asked(rotator: Rotator, what: str, to_phase: Phase | None, reason: str, root_id: str | None) -> Report:
    if what == "":
        return await rotator.rotate(to_phase=to_phase)
    if what == "restore":
        return await rotator.restore(root_id, to_phase=to_phase)
    if what == "resume":
        return await rotator.resume(to_phase=to_phase)
    return await rotator.abandon(reason, by=Step.CANCEL if what == "cancel" else Step.ROLL_BACK)
