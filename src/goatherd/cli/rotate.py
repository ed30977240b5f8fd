"""`goatherd rotate`: replace the root key while the cluster serves. `run_rotation` also runs `goatherd restore`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from goatherd.cli.main import (
    EXIT_FINDINGS,
    FILE,
    App,
    add_options,
    adoption_option,
    allow_lagging_option,
    audit_log,
    audit_option,
    command,
    config_flag,
    create_key_option,
    direct_option,
    distrust_option,
    lifetime_option,
    without_nodes_option,
    working_lifetime_option,
)
from goatherd.cli.process import lower_priority, run_interruptible
from goatherd.cli.text.progress import RotationProgress, show_delay
from goatherd.cli.text.replacement import replaced_event, replacement_data, replacement_lines
from goatherd.cli.text.rotation import (
    bare_lines,
    note_of_signer,
    note_of_wait,
    plan_data,
    plan_lines,
    report_data,
    report_lines,
    restarts_data,
    warn_of_short_life,
)
from goatherd.config.build import (
    build_health_signals,
    build_policy,
    lifetime_flags,
    open_nodes,
    open_store,
    store_name,
)
from goatherd.errors import NotAdoptedError
from goatherd.key_inventory import retained_copies
from goatherd.operations import rotate as operations
from goatherd.operations.runs import notify_each, read_identity_at_end, write_metrics_file
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Phase

to_option = click.option(
    "--to",
    "to_phase",
    type=click.Choice(["prepared", "published", "activated", "verified"]),
    help="Stop when this phase is reached; --resume continues.",
)
"""The option ``--to`` of a command that rotates."""

waiting_options = add_options(
    adoption_option,
    config_flag(
        "--quorum",
        "rotation_quorum",
        "How many servers must have followed when the time in --adoption is over.",
        metavar="N|N%|all",
    ),
    config_flag(
        "--unlisted",
        "rotation_unlisted",
        "How long to wait after publishing the next root before it signs, so that servers that are not listed can"
        " read it (default: 0s; for discovered servers, a little more than the refresh interval).",
    ),
    config_flag("--bare", "rotation_bare", "URL of an unmodified GoatDB server that you restart by hand."),
    distrust_option,
    allow_lagging_option,
    config_flag(
        "--health-url",
        "rotation_health_url",
        "URL of a health check. A status other than 2xx is a failure; several in a row end the rotation.",
    ),
    click.option(
        "--metrics-file",
        type=FILE,
        help="File to write metrics to at the end, for node_exporter's textfile collector; must end in .prom.",
    ),
    audit_option,
    without_nodes_option,
)
"""The options that `goatherd rotate` and `goatherd restore` have in common, but ``--to``."""


@command(
    example="goatherd rotate --plan\n"
    "goatherd rotate --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080\n"
    "goatherd rotate --rollback",
    nodes=True,
)
@click.option(
    "--plan",
    "--dry-run",
    is_flag=True,
    help="Show what would be done: the steps, the servers, and what prevents a rotation; write nothing.",
)
@click.option("--resume", is_flag=True, help="Resume the rotation in progress, whichever process started it.")
@click.option(
    "--cancel", is_flag=True, help="Cancel the rotation in progress; possible only before the next root signs."
)
@click.option("--rollback", is_flag=True, help="Roll back: the previous root signs again, and both roots stay trusted.")
@click.option(
    "--replace-expired",
    is_flag=True,
    help="Replace an expired root; what it has signed stays valid. The output lists servers that have not followed.",
)
@to_option
@click.option(
    "--reason",
    metavar="TEXT",
    help="Reason, recorded in the identity's history; only with --rollback, --cancel or --drop-lost-anchor.",
)
@lifetime_option
@working_lifetime_option
@click.option(
    "--anchor",
    metavar="URI",
    help="URI of the HSM or KMS key that becomes the anchor, or replaces the present anchor.",
)
@create_key_option(before="the rotation")
@direct_option
@click.option(
    "--working-root",
    is_flag=True,
    help="End direct mode: rotate to a working root, which the present anchor endorses.",
)
@click.option(
    "--remove-anchor",
    is_flag=True,
    help="Rotate to a root without an anchor; the present anchor must sign this change.",
)
@click.option(
    "--drop-lost-anchor",
    is_flag=True,
    help="Remove an anchor whose key is lost. A server rejects this until it is started with --accept-identity.",
)
@waiting_options
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
    anchor: str | None,
    create_key: bool,
    direct: bool,
    working_root: bool,
    remove_anchor: bool,
    drop_lost_anchor: bool,
) -> int:
    """Replace the root key while the cluster serves.

    When every listed server trusts the next root, all start to sign with it. If a server does not follow in time, or
    the health check fails, Goatherd cancels the rotation or rolls it back. List every server that holds this identity:
    the rotation does not wait for others.

    The store keeps the previous private key for the grace period, so that `goatherd restore` can return to that root.
    Afterwards, `goatherd retire` destroys the key.

    In an identity with an anchor, the command renews the working root, and the anchor signs once. --anchor and
    --remove-anchor change the anchor in the same way, while the cluster serves.

    With --anchor URI --direct, each signature of the next root is made in an HSM or a KMS. Every server must be a
    Goatherd server that was started with --root-signer URI. --working-root and --remove-anchor end this mode.

    An expired root cannot endorse a next root, so replace it with --replace-expired. If a listed server has not
    followed the new root, the exit code is 11; run the same command again.
    """
    asked = {
        "plan": plan,
        "resume": resume,
        "rollback": rollback,
        "cancel": cancel,
        "replace-expired": replace_expired,
        "drop-lost-anchor": drop_lost_anchor,
    }
    chosen = [name for name, is_asked in asked.items() if is_asked]
    if len(chosen) > 1:
        names = "--plan, --resume, --rollback, --cancel, --replace-expired and --drop-lost-anchor"
        raise click.UsageError(f"{names} cannot be combined")
    what = chosen[0] if chosen else ""
    if reason is not None and what not in ("rollback", "cancel", "drop-lost-anchor"):
        raise click.UsageError("--reason needs --rollback, --cancel or --drop-lost-anchor")
    if (anchor is not None or remove_anchor or working_root) and what not in ("", "plan"):
        raise click.UsageError(f"--anchor, --remove-anchor and --working-root cannot be combined with --{what}")
    if (anchor is not None) + remove_anchor + working_root > 1:
        raise click.UsageError("--anchor, --remove-anchor and --working-root cannot be combined")
    if direct and anchor is None:
        raise click.UsageError("--direct needs --anchor URI")
    lifetimes = lifetime_flags(app.options)
    if lifetimes and what in ("resume", "rollback", "cancel", "drop-lost-anchor"):
        raise click.UsageError(f"{min(lifetimes)} cannot be combined with --{what}, which makes no root")
    if direct and lifetimes:
        raise click.UsageError(f"--direct cannot be combined with {min(lifetimes)}: such a root is valid for ten years")
    if create_key and (anchor is None or what == "plan"):
        raise click.UsageError("--create-key needs --anchor URI, without --plan")
    if to_phase is not None and what in ("rollback", "cancel", "replace-expired", "drop-lost-anchor"):
        raise click.UsageError(f"--to cannot be combined with --{what}")
    if metrics_file is not None and what in ("replace-expired", "drop-lost-anchor"):
        raise click.UsageError(f"--metrics-file cannot be combined with --{what}")
    if what in ("", "replace-expired"):
        warn_of_short_life(app.out, app.options.rotation_lifetime)
    stop_at = Phase(to_phase) if to_phase else None
    change = {"anchor": anchor, "remove_anchor": remove_anchor, "direct": direct, "working_root": working_root}
    if what == "plan":
        return asyncio.run(_show_plan(app, stop_at, change))
    if what == "drop-lost-anchor":
        return asyncio.run(_drop_lost_anchor(app, reason or operations.LOST))
    if what == "replace-expired":
        replacing = _replace_expired(app, unsafe_without_nodes=unsafe_without_nodes)
        return run_interruptible(app, replacing, note="run the same command again to resume")
    why = reason or operations.ASKED
    work: dict[str, Callable[..., Awaitable[Report]]] = {
        "": partial(
            operations.rotate,
            to_phase=stop_at,
            **change,
            create_key=create_key,
            on_wait=note_of_wait(app.out),
            unsafe_without_nodes=unsafe_without_nodes,
        ),
        "resume": partial(operations.resume, to_phase=stop_at, unsafe_without_nodes=unsafe_without_nodes),
        "cancel": partial(operations.cancel, reason=why),
        "rollback": partial(operations.roll_back, reason=why),
    }
    if what in ("", "resume"):
        lower_priority(app)
    if anchor is not None and anchor not in app.options.signers:
        app.out.write_note(note_of_signer(anchor))
    # SIGTERM or Ctrl-C may come before the store is read.
    running = run_rotation(app, work[what], metrics_file, is_in_progress=what in ("resume", "cancel", "rollback"))
    return run_interruptible(app, running, note="")


async def _show_plan(app: App, to_phase: Phase | None, change: Mapping[str, Any]) -> int:
    options = app.options
    async with open_store(options) as store, open_nodes(options) as nodes:
        policy, health = build_policy(options), build_health_signals(options)
        plan = await operations.plan_rotation(store, nodes, policy, health=health, **change)
    app.out.result(plan_data(plan, to_phase), plan_lines(plan, to_phase))
    return 0


async def _drop_lost_anchor(app: App, reason: str) -> int:
    options = app.options
    async with open_store(options) as store, open_nodes(options) as nodes:
        document = await operations.drop_lost_anchor(
            store, nodes, build_policy(options), reason=reason, audit_log=audit_log(app)
        )
    app.out.result(
        {"current": document.current.id, "generation": document.generation},
        [
            f"the identity has no anchor any more; root {document.current.id} signs",
            "start every server once with --accept-identity; until then it rejects this generation",
        ],
    )
    return 0


async def _replace_expired(app: App, *, unsafe_without_nodes: bool) -> int:
    options = app.options
    async with open_store(options) as store, open_nodes(options) as nodes:
        report = await operations.rotate(
            store,
            nodes,
            build_policy(options),
            replace_expired=True,
            unsafe_without_nodes=unsafe_without_nodes,
            audit_log=audit_log(app),
            on_event=notify_each(partial(show_delay, app.out), partial(replaced_event, app.out)),
        )
    app.out.result(replacement_data(report), replacement_lines(report))
    return 0 if report.is_complete else EXIT_FINDINGS


_HOW_TO_RESUME: Final = (
    "the rotation is in progress: `goatherd rotate --resume` finishes it, `--cancel` or `--rollback` ends it"
)


async def run_rotation(
    app: App,
    work: Callable[..., Awaitable[Report]],
    metrics_file: Path | None,
    *,
    is_in_progress: bool = False,
) -> int:
    """Run a rotation or a restore, show its progress, and print its report; if it is interrupted, print how to resume.

    Args:
        app: The context of the command.
        work: The operation; it is called with the store, the servers and the policy.
        metrics_file: File to write metrics to; None for no metrics.
        is_in_progress: Whether the command is for a rotation in progress; otherwise, the operation finds out whether
            there is one.
    """
    options = app.options
    # No log lines: `RotationProgress` shows the same events.
    logging.getLogger("goatherd.rotation").addHandler(logging.NullHandler())
    progress = RotationProgress(app.out, bare=options.rotation_bare)
    try:
        return await _run_shown(app, work, metrics_file, progress)
    except asyncio.CancelledError:
        if is_in_progress or progress.has_begun:
            app.out.write_note(f"note: {_HOW_TO_RESUME}")
        raise


async def _run_shown(
    app: App, work: Callable[..., Awaitable[Report]], metrics_file: Path | None, progress: RotationProgress
) -> int:
    options = app.options
    async with AsyncExitStack() as stack:
        seen = stack.enter_context(
            write_metrics_file(metrics_file, store_name(options), lambda text: app.out.write_note(f"note: {text}"))
        )
        store = await stack.enter_async_context(open_store(options))
        if metrics_file is not None:
            await stack.enter_async_context(read_identity_at_end(store, seen))
        nodes = await stack.enter_async_context(open_nodes(options))
        stack.enter_context(progress)

        def describe(report: Report) -> list[str]:
            copies = retained_copies(store.provider)
            lines = report_lines(report, options.rotation_grace, copies=copies)
            return [*lines, *bare_lines(report, options.rotation_bare)]

        try:
            report = await work(
                store,
                nodes,
                build_policy(options),
                health=build_health_signals(options),
                audit_log=audit_log(app),
                on_event=notify_each(progress.show, seen.record_event),
            )
        except NotAdoptedError as error:
            if isinstance(error.report, Report):
                restarts = {"restarts": restarts_data(error.report)}
                app.out.event("restarts", restarts, *describe(error.report))
            raise
    app.out.result(report_data(report), describe(report))
    return 0
