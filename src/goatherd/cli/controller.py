"""The command that rotates by a schedule: controller."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from goatherd.audit.trail import AuditTrail, Journal
from goatherd.cli.auditing import audit_option
from goatherd.cli.main import App, PathType, checked, command
from goatherd.cli.process import log_level_option, log_to_stderr
from goatherd.cli.rotate import distrust_option
from goatherd.cli.text.rotation import report_data, warn_of_short_life
from goatherd.clock import SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.config.build import build_health_signals, build_policy, build_schedule, open_nodes, open_store, store_name
from goatherd.config.options import Options
from goatherd.errors import ConfigurationError, ProviderError
from goatherd.identity.document import IdentityDocument
from goatherd.metrics import RotationMetrics, served
from goatherd.operations.controller_start import find_start_problems, refuse_start
from goatherd.operations.identity_store import Store
from goatherd.operations.metrics_file import write_metrics_file
from goatherd.operations.status import find_obstacles_now
from goatherd.rotation.events import Event, Report
from goatherd.rotation.rotator import Rotator
from goatherd.schedule.alerts import Alarm
from goatherd.schedule.controller import Controller, Turn
from goatherd.schedule.due import (
    Act,
    Missed,
    Schedule,
    Verdict,
    facts_of,
    next_due,
    preview,
)
from goatherd.server_url import parse_listen_address
from goatherd.serving.signals import watch_stop_signals
from goatherd.serving.sockets import cannot_listen
from goatherd.telemetry import Event as LogEvent
from goatherd.telemetry import event_text
from goatherd.times import format_duration, iso

if TYPE_CHECKING:
    from goatherd.schedule.controller import Worker

PREVIEW = 5

_log = logging.getLogger("goatherd.rotation")


@command(
    example="goatherd controller --explain --cron '0 3 * * SUN' --timezone Europe/Berlin\n"
    "goatherd controller --provider file:///srv/keys/root --node http://10.0.0.1:8080 --audit-log audit.jsonl\n"
    "goatherd controller --once",
    nodes=True,
)
@click.option("--explain", is_flag=True, help="Show what the controller would do, when and why; write nothing.")
@click.option("--once", is_flag=True, help="Do what is due now, then exit: for a timer or a CronJob.")
@click.option("--cron", "controller_cron", metavar="EXPRESSION", help="When to rotate, in crontab format.")
@click.option("--max-age", "controller_max_age", metavar="TIME", help="Age at which a key is replaced, such as 60d.")
@click.option(
    "--timezone", "controller_timezone", metavar="NAME", help="Time zone of --cron and --window (default: UTC)."
)
@click.option(
    "--window",
    "controller_windows",
    multiple=True,
    metavar="WINDOW",
    help="Maintenance window, such as 'Mon-Fri 02:00-04:00'. Can be given more than once.",
)
@click.option(
    "--missed",
    "controller_missed",
    type=click.Choice([one.value for one in Missed]),
    help="What to do about a missed slot (default: catch-up).",
)
@click.option(
    "--alert-command", "controller_alert_command", metavar="CMD", help="Command to run when an operator is needed."
)
@click.option(
    "--metrics",
    metavar="ADDRESS:PORT",
    callback=checked(parse_listen_address),
    help="Address on which the controller serves GET /metrics.",
)
@click.option(
    "--metrics-file",
    type=PathType(path_type=Path, dir_okay=False),
    help="With --once: file to write metrics to, for node_exporter's textfile collector; must end in .prom.",
)
@audit_option()
@distrust_option()
@click.option("--unsafe-without-nodes", is_flag=True, help="Rotate without waiting for any server.")
@log_level_option("info")
def controller(
    app: App,
    explain: bool,
    once: bool,
    metrics: str | None,
    metrics_file: Path | None,
    unsafe_without_nodes: bool,
    log_level: str,
) -> int:
    """Rotate on a schedule, resume rotations, destroy old keys.

    A cron expression or the age of the key determines the time of a rotation, within maintenance windows. The
    controller derives this time from the identity document alone, so any number of controllers can run: the first one
    rotates, and the others see it. The controller replaces a root that expires soon regardless of the schedule.

    After SIGTERM or Ctrl-C the controller stops at a safe point; a second signal makes it stop sooner. It logs to
    standard error.
    """
    options = app.options
    schedule = build_schedule(options)
    if explain:
        return asyncio.run(_explain(app, schedule))
    # SECURITY: with no node listed, the next root would sign before servers trust it
    # (tests/unit/cli/test_controller_command.py).
    if not (options.nodes or options.rotation_bare) and not unsafe_without_nodes:
        raise ConfigurationError(
            "no server is listed, so a rotation could not wait until each has adopted the new root",
            hint="Give --node URL for each server, set GOATHERD_NODES, or write `nodes = [...]` into goatherd.toml.",
        )
    if metrics_file is not None and not once:
        raise click.UsageError("--metrics-file needs --once; without --once, use --metrics ADDRESS:PORT")
    log_to_stderr(log_level)
    warn_of_short_life(app.out, options.rotation_lifetime)
    return asyncio.run(_run(app, schedule, once=once, metrics=metrics, metrics_file=metrics_file))


async def _run(app: App, schedule: Schedule, *, once: bool, metrics: str | None, metrics_file: Path | None) -> int:
    options, clock = app.options, SystemClock()
    async with AsyncExitStack() as until_the_end, AsyncExitStack() as stack:
        # It counts what is done inside, so it is of use for one turn only.
        seen = stack.enter_context(
            write_metrics_file(metrics_file, store_name(options), lambda text: app.out.note(f"note: {text}"))
        )
        store = await stack.enter_async_context(open_store(options))
        addresses = tuple(dict.fromkeys((*options.nodes, *options.rotation_bare)))
        directory = await stack.enter_async_context(NodeDirectory(addresses, timeout=options.timeout, org=options.org))
        nodes = directory if directory.is_discovered else await directory()
        trail = None if options.audit_log is None else AuditTrail(options.audit_log, actor=schedule.started_by)
        policy = build_policy(options)

        def make_rotator(on_event: Callable[[Event], None] | None = None) -> Rotator:
            return Rotator(
                store.provider,
                store.secret_id,
                nodes,
                org=store.org,
                policy=policy,
                started_by=schedule.started_by,
                on_event=on_event,
                health=build_health_signals(options),
            )

        def worker(told: Callable[[Event], None]) -> Worker:
            rotator = make_rotator(_both(told, seen.told))
            return rotator if metrics_file is not None else _Counted(rotator, seen)

        journal = Journal(trail)
        if not once:
            await _check_start(options, store, make_rotator(), journal)
        runner = Controller(
            store.provider,
            store.secret_id,
            schedule,
            worker=worker,
            interval=options.controller_interval,
            alarm=Alarm(options.controller_alert_command),
            journal=journal,
            on_look=_keeping(seen),
            stop_patience=options.controller_stop_timeout,
        )
        if metrics is not None:
            _serve_metrics(stack, metrics, seen)
        signals = until_the_end.enter_context(watch_stop_signals())
        turn = await runner.run(signals.stop, signals.hurry, once=once)
        if once and turn is not None:
            return _end(app, store, turn, clock.now_ms())
    return 0


async def _check_start(options: Options, store: Store, rotator: Rotator, journal: Journal) -> None:
    """Try everything that a rotation will need, and warn of what does not work now.

    Raises:
        ConfigurationError: Something does not work that cannot get better by itself.
        AuditError: The audit trail cannot be written.
    """
    commands = {
        "controller.alert_command": options.controller_alert_command,
        "rotation.health_command": options.rotation_health_command,
    }
    problems = await find_start_problems(store.provider, store.secret_id, rotator, commands)
    refuse_start(problems)
    for one in problems:
        _log.warning(event_text(LogEvent.CONTROLLER_START_PROBLEM, reason=one.text, do=one.hint or "-"))
    with suppress(ProviderError):
        _, document = await store.read()
        journal.use(document)
        journal.begin("controller-starts", {"secret": store.name, "problems": [one.text for one in problems]})


class _Counted:
    """A rotator whose runs are counted; what is destroyed later is no run of a rotation."""

    def __init__(self, rotator: Rotator, seen: RotationMetrics) -> None:
        self._rotator = rotator
        self._seen = seen

    async def rotate(self) -> Report:
        with self._seen.run(SystemClock()):
            return await self._rotator.rotate()

    async def resume(self) -> Report:
        with self._seen.run(SystemClock()):
            return await self._rotator.resume()

    async def retire(self) -> Report:
        return await self._rotator.retire()


def _both(*listeners: Callable[[Event], None]) -> Callable[[Event], None]:
    def told(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return told


def _keeping(seen: RotationMetrics) -> Callable[[IdentityDocument, Verdict], None]:
    def looked(document: IdentityDocument, verdict: Verdict) -> None:
        seen.document = document
        seen.next_ms = verdict.at_ms if verdict.act is Act.ROTATE else seen.next_ms

    return looked


def _serve_metrics(stack: AsyncExitStack, address: str, seen: RotationMetrics) -> None:
    host, port = parse_listen_address(address)
    try:
        stack.enter_context(served(seen.samples, host=host, port=port))
    except OSError as error:
        raise cannot_listen(address, error) from error


def _end(app: App, store: Store, turn: Turn, now_ms: int) -> int:
    if turn.error is not None and not turn.has_yielded:
        raise turn.error
    assert turn.verdict is not None
    done = turn.verdict.act.value if turn.report is not None else "nothing"
    data: dict[str, Any] = {
        "store": store.name,
        "done": done,
        "yielded": turn.has_yielded,
        "why": turn.verdict.why,
        "next": _verdict_data(turn.verdict),
        "report": None if turn.report is None else report_data(turn.report),
    }
    if turn.report is not None:
        lines = [f"{done}: {turn.verdict.why}", f"{turn.report.outcome.value}: {turn.report.current_id} signs"]
    elif turn.has_yielded:
        lines = [f"somebody else was first: {turn.error}"]
    else:
        lines = ["nothing is due", _next_line(turn.verdict, now_ms)]
    app.out.result(data, lines)
    return 0


# --- explaining -------------------------------------------------------------------------------------------------------


async def _explain(app: App, schedule: Schedule) -> int:
    async with open_store(app.options) as store, open_nodes(app.options) as nodes:
        version, document = await store.read()
        obstacles = await find_obstacles_now(store, nodes, build_policy(app.options)) if nodes.addresses else ()
    now_ms, tolerance = SystemClock().now_ms(), app.options.rotation_clock_tolerance
    facts = facts_of(document, now_ms, written_ms=version.created_ms, tolerance=tolerance)
    verdict = next_due(facts, schedule, now_ms)
    begins = preview(facts, schedule, now_ms, PREVIEW)
    data = {
        "store": store.name,
        "current": facts.current_id,
        "expires": iso(facts.expires_ms),
        "now": iso(now_ms),
        "isDue": verdict.is_due(now_ms),
        "next": _verdict_data(verdict),
        "rotations": [iso(begin) for begin in begins],
        "schedule": _schedule_data(schedule),
        "obstacles": [one.text for one in obstacles],
    }
    lines = [
        f"identity    {store.name}: {facts.current_id} signs, and expires at {iso(facts.expires_ms)}",
        f"schedule    {_schedule_line(schedule)}",
        _next_line(verdict, now_ms),
        f"            {verdict.why}",
    ]
    if verdict.skipped_ms is not None:
        lines.append(f"skipped     the slot {iso(verdict.skipped_ms)}")
    if begins:
        lines.append("rotations   if each succeeds at once: " + ", ".join(iso(begin) for begin in begins))
    if verdict.urgent:
        lines.append("urgent      the root is near its expiration, or past it")
    lines += [f"obstacle    {one.text}" for one in obstacles]
    app.out.result(data, lines)
    return 0


def _verdict_data(verdict: Verdict) -> dict[str, Any]:
    return {
        "act": verdict.act.value,
        "at": None if verdict.at_ms is None else iso(verdict.at_ms),
        "why": verdict.why,
        "slot": None if verdict.slot_ms is None else iso(verdict.slot_ms),
        "skipped": None if verdict.skipped_ms is None else iso(verdict.skipped_ms),
        "urgent": verdict.urgent,
    }


def _next_line(verdict: Verdict, now_ms: int) -> str:
    if verdict.at_ms is None:
        return "next        nothing"
    when = "now" if verdict.is_due(now_ms) else f"at {iso(verdict.at_ms)}"
    return f"next        {verdict.act.value} {when}"


def _schedule_data(schedule: Schedule) -> dict[str, Any]:
    return {
        "controller": schedule.controller,
        "cron": schedule.cron,
        "maxAge": None if schedule.max_age is None else format_duration(schedule.max_age),
        "timezone": schedule.zone.key,
        "windows": [str(window) for window in schedule.windows],
        "missed": schedule.missed.value,
        "jitter": format_duration(schedule.jitter),
    }


def _schedule_line(schedule: Schedule) -> str:
    if schedule.cron is not None:
        when = f"cron `{schedule.cron}`; a missed slot: {schedule.missed.value}"
    elif schedule.max_age is not None:
        when = f"keys older than {format_duration(schedule.max_age)}"
    else:
        when = "by the age of the key"
    windows = "; ".join(str(window) for window in schedule.windows) or "at all times"
    return f"{when}; windows: {windows}; in {schedule.zone.key}; jitter up to {format_duration(schedule.jitter)}"
