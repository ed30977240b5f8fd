"""The commands that look at or change a running cluster: status, doctor, rotate, retire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from goatherd.cli.auditing import audit_option, audited
from goatherd.cli.commands_store import describe
from goatherd.cli.main import EXIT_FINDINGS, App, PathType, command
from goatherd.cli.metrics_file import remembered, reported
from goatherd.cli.process import give_way, run_interruptible
from goatherd.cli.replacing import replace_expired as drive_replacement
from goatherd.cli.text.key_inventory import due_lines, inventory_data, inventory_lines
from goatherd.cli.text.progress import Progress
from goatherd.cli.text.rotation import (
    bare_lines,
    ending_data,
    ending_line,
    last_ending,
    plan_data,
    plan_lines,
    progress_data,
    progress_lines,
    report_data,
    report_lines,
    restart_lines,
    restarts_data,
    warn_of_short_life,
)
from goatherd.clock import SystemClock
from goatherd.config.build import build_health_signals, build_policy, open_store, store_name
from goatherd.config.options import Options
from goatherd.errors import ConfigurationError, DiscoveryError, GoatherdError, NotAdoptedError
from goatherd.identity.document import IdentityDocument
from goatherd.identity.redaction import notes, redacted
from goatherd.key_inventory import KeyInventory, describe_kept, retained_copies, take_key_inventory
from goatherd.operations.doctor import Examined, examine, obstacle_checks
from goatherd.operations.runs import current_actor
from goatherd.operations.status import NodeState, clock_notes, read_server_states
from goatherd.operations.store_checks import FAILED, SKIPPED, WARNING, Check
from goatherd.providers.values import shown_label
from goatherd.rotation.action import Obstacle, ObstacleKind
from goatherd.rotation.discovery import NodeDirectory
from goatherd.rotation.events import Event, Report
from goatherd.rotation.health import HealthCommand
from goatherd.rotation.machine import Phase, Step
from goatherd.rotation.obstacles import Survey
from goatherd.rotation.policy import check_lifetime
from goatherd.rotation.rotator import Rotator
from goatherd.rotation.store_history import KINDS
from goatherd.server_answers import AgentReport
from goatherd.settings.base import Origin
from goatherd.times import format_duration


@command(example="goatherd status --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def status(app: App) -> int:
    """Show the store, the identity, and the state of every server.

    The report covers every stored version: the private keys that it holds, and since when each key could be destroyed.
    It also states how the last rotation ended, and why. Credentials that can read only the current version do not allow
    this; the report then says so.

    The exit code is 11 if a server does not answer, does not trust the current root, or signs with another root.
    """
    return asyncio.run(_status(app))


async def _status(app: App) -> int:
    async with open_store(app.options) as store:
        version, document = await store.read()
        labels = {label: one.id for one in await store.versions() for label in one.labels}
        keys = await take_key_inventory(store.provider, store.secret_id, document, app.options.rotation_grace)
        store_ahead_ms = store.provider.store_clock.ahead_ms(SystemClock().now_ms())
    nodes = await read_server_states(app.options.nodes, document, timeout=app.options.timeout, org=app.options.org)
    now_ms = SystemClock().now_ms()
    remarks = [*notes(document, now_ms), *clock_notes(document, store_ahead_ms, nodes, now_ms)]
    survey = await survey_now(app.options) if nodes else Survey(obstacles=(), remarks=())
    obstacles, progress = survey.obstacles, survey.progress
    ending = last_ending(document)
    data = {
        "store": store.name,
        "storeVersion": version.id,
        "labels": labels,
        "identity": redacted(document),
        "rotation": progress_data(progress),
        "lastRotation": ending_data(ending),
        "privateKeys": inventory_data(keys, now_ms),
        "notes": remarks,
        "obstacles": [one.text for one in obstacles],
        "storeClockAheadMs": store_ahead_ms,
        "nodes": [node.to_json() for node in nodes],
    }
    lines = describe(app.out, store, version.id, document)
    lines.insert(1, "labels      " + ", ".join(f"{shown_label(label)} -> {labels[label]}" for label in sorted(labels)))
    if ending is not None:
        lines.insert(2, ending_line(ending))
    if progress is not None:
        lines += ["", *progress_lines(progress)]
    lines += ["", *inventory_lines(keys, app.out, now_ms)]
    if nodes:
        heads = ("NODE", "SIGNS WITH", "TRUSTS CURRENT", "GENERATION", "PHASE", "VIEW AGE", "")
        lines += ["", *app.out.table(heads, [_node_row(node, document) for node in nodes])]
    for one in obstacles:
        if one.kind in KINDS:
            lines.append(f"THE STORE WENT BACK: {one.text}")
        else:
            lines.append(f"obstacle to a rotation: {one.text}")
    lines += dict.fromkeys(one.hint for one in obstacles if one.kind in KINDS)
    lines += [f"note: {remark}" for remark in remarks]
    app.out.result(data, lines)
    return 0 if all(node.is_in_step(document.current.id) for node in nodes) else EXIT_FINDINGS


def _node_row(node: NodeState, document: IdentityDocument) -> tuple[str, ...]:
    trusts = {True: "yes", False: "NO", None: "?"}[node.trusts_current]
    generation = "?" if node.generation is None else str(node.generation)
    age = "?" if node.view_age is None else f"{node.view_age.total_seconds():.1f} s"
    if node.is_unmodified and node.agent is None:
        generation, age = "-", "-"
    kind = "an unmodified GoatDB server" if node.is_unmodified else ""
    if node.agent is not None:
        kind = f"{kind}{':' if node.agent.activity else ''} {_describe_agent(node.agent)}"
    problem = node.problem or kind
    if node.is_of_another_identity(document):
        problem = "; ".join(filter(None, (f"another identity: trusts {', '.join(node.roots[:5])}", problem)))
    if node.source == Origin.LAST_KNOWN_GOOD:
        problem = "; ".join(filter(None, ("LAST KNOWN GOOD: cannot reach the store", problem)))
    elif node.is_degraded and not problem:
        problem = "degraded: cannot use what the store holds"
    if node.data is not None and node.data.unusable is not None:
        problem = "; ".join(filter(None, (problem, node.data.unusable)))
    if node.data is not None and node.data.cannot_write is not None:
        problem = "; ".join(filter(None, (problem, node.data.cannot_write)))
    return (node.url, node.signs_with or "?", trusts, generation, node.phase or "?", age, problem)


def _describe_agent(agent: AgentReport) -> str:
    """Return what an agent reports of its server, as a phrase."""
    if agent.activity is not None:
        return agent.activity
    return "under an agent" if not agent.restarts else f"under an agent, restarts: {agent.restarts}"


@command(example="goatherd doctor --provider file:///srv/keys/root --node http://10.0.0.1:8080", nodes=True)
def doctor(app: App) -> int:
    """Check the store, the identity and every server.

    Checks of the store: access, latency, the permissions of these credentials (where the platform reports them), the
    labels, and the clock. Checks of the identity: its format, its remaining lifetime, and whether a process drives the
    rotation in progress. Each finding states what to do.

    The command sends an unauthenticated POST /auth/session to every server and looks for a private key in the answer.
    This creates one anonymous session on each server; an agent has made this check itself, and reports the result. The
    command lists every obstacle to a rotation, as `goatherd rotate --plan` does. It compares the /sys/sessions of the
    servers and lists sessions with conflicting creations: GoatDB servers and clients crash when they merge these. The
    exit code is 11 if a check has failed; warnings do not change it.
    """
    checks = asyncio.run(_doctor(app.options))
    failed = [check for check in checks if check.level == FAILED]
    rows = []
    for check in checks:
        rows.append(f"{check.level:<4}  {check.name:<22}  {check.text}")
        if check.hint:
            rows.append(f"      {'':<22}  -> {check.hint}")
    warnings, skipped = (sum(check.level == level for check in checks) for level in (WARNING, SKIPPED))
    total = f"{len(checks)} checks, {len(failed)} failed, {warnings} warnings"
    rows += ["", f"{total}, {skipped} not possible" if skipped else total]
    app.out.result({"healthy": not failed, "checks": [check.to_json() for check in checks]}, rows)
    return EXIT_FINDINGS if failed else 0


async def _doctor(options: Options) -> list[Check]:
    examined = Examined(
        addresses=options.nodes,
        timeout=options.timeout,
        org=options.org,
        policy=build_policy(options),
        refresh_interval=options.settings_refresh_interval,
    )
    checks = await examine(open_store(options), examined)
    is_identity_known = not any(check.level == FAILED and check.name in ("store", "identity") for check in checks)
    if (options.nodes or options.rotation_bare) and is_identity_known:
        try:
            checks += obstacle_checks(await _survey(options))
        except GoatherdError as error:
            checks.append(Check(name="rotation", level=SKIPPED, text=str(error), hint=error.hint))
    return checks


async def _survey(options: Options) -> Survey:
    async with _watching_rotator(options) as rotator:
        return await rotator.survey()


async def survey_now(options: Options) -> Survey:
    """Return what stands in the way of a rotation, without the operator's health checks, which are not run."""
    try:
        async with _watching_rotator(options, has_health=False) as rotator:
            return await rotator.survey(is_probing=False, has_remarks=False)
    except DiscoveryError as error:
        unknown = Obstacle(kind=ObstacleKind.NODES_UNKNOWN, text=str(error), hint=error.hint)
        return Survey(obstacles=(unknown,), remarks=())


@asynccontextmanager
async def _watching_rotator(options: Options, *, has_health: bool = True) -> AsyncIterator[Rotator]:
    """Give a rotator that is only to look.

    Args:
        options: The options.
        has_health: Whether the operator's health checks are asked.
    """
    addresses = tuple(dict.fromkeys((*options.nodes, *options.rotation_bare)))
    async with (
        open_store(options) as store,
        NodeDirectory(addresses, timeout=options.timeout, org=options.org) as directory,
    ):
        yield Rotator(
            store.provider,
            store.secret_id,
            directory if directory.is_discovered else await directory(),
            org=store.org,
            policy=build_policy(options, is_discovered=directory.is_discovered),
            health=build_health_signals(options) if has_health else (),
        )


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
