"""`goatherd controller`: rotate on a schedule."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import click

from goatherd.cli.main import (
    FILE,
    App,
    audit_option,
    checked,
    command,
    config_flag,
    distrust_option,
    without_nodes_option,
)
from goatherd.cli.process import log_level_option, log_to_stderr
from goatherd.cli.text.rotation import warn_of_short_life
from goatherd.cli.text.schedule import explanation_data, explanation_lines, turn_data, turn_lines
from goatherd.clock import SystemClock
from goatherd.config.build import build_health_signals, build_schedule, open_nodes, open_store, store_name
from goatherd.metrics import serve_metrics
from goatherd.operations.controller import explain_schedule, run_controller
from goatherd.operations.runs import write_metrics_file
from goatherd.serving.server_url import parse_listen_address
from goatherd.serving.signals import watch_stop_signals
from goatherd.serving.sockets import cannot_listen


@command(
    example="goatherd controller --explain --max-age 30d --cron '* 2-4 * * SUN' --timezone Europe/Berlin\n"
    "goatherd controller --provider file:///srv/keys/root --node http://10.0.0.1:8080 --audit-log audit.jsonl\n"
    "goatherd controller --once",
    nodes=True,
)
@click.option("--explain", is_flag=True, help="Show what the controller would do, when and why; write nothing.")
@click.option("--once", is_flag=True, help="Do what is due now, then exit; for a systemd timer or a CronJob.")
@config_flag(
    "--max-age",
    "controller_max_age",
    "Age at which a key is due to be replaced, such as 60d (default: when half of its lifetime is left, at most 60"
    " days; for a working root: a third).",
)
@config_flag(
    "--cron",
    "controller_cron",
    "Minutes in which a rotation may begin, in crontab format, such as '* 2-4 * * SUN' (default: any).",
    metavar="EXPRESSION",
)
@config_flag("--timezone", "controller_timezone", "Time zone of --cron.", metavar="NAME")
@config_flag(
    "--alert-command",
    "controller_alert_command",
    "Shell command to run when an operator is needed; it gets the reason as JSON on standard input.",
)
@click.option(
    "--metrics",
    metavar="ADDRESS:PORT",
    callback=checked(parse_listen_address),
    help="Address on which the controller serves GET /metrics.",
)
@click.option(
    "--web",
    "web_address",
    metavar="ADDRESS:PORT",
    callback=checked(parse_listen_address),
    help="Address on which the controller serves the page of `goatherd web`; the section [web] of goatherd.toml has"
    " the page's other options.",
)
@click.option(
    "--metrics-file",
    type=FILE,
    help="File to write metrics to at the end, for node_exporter's textfile collector; must end in .prom, and needs"
    " --once.",
)
@audit_option
@distrust_option
@without_nodes_option
@log_level_option
async def controller(
    app: App,
    explain: bool,
    once: bool,
    metrics: str | None,
    web_address: str | None,
    metrics_file: Path | None,
    unsafe_without_nodes: bool,
    log_level: str,
) -> int:
    """Rotate on a schedule, resume rotations, destroy old keys.

    A root is replaced once it has reached an age (--max-age), in the next minute that a cron expression allows
    (--cron). A root that expires soon is replaced in any minute. The controller keeps no state but the identity
    document, so several controllers can run at once: one of them rotates.

    After SIGTERM or Ctrl-C the controller stops at a safe point; a second signal makes it stop sooner. It logs to
    standard error.
    """
    if explain:
        return await _explain_schedule(app)
    if metrics_file is not None and not once:
        raise click.UsageError("--metrics-file needs --once; without --once, use --metrics ADDRESS:PORT")
    if web_address is not None and once:
        raise click.UsageError("--web needs a controller that keeps running; leave out --once")
    log_to_stderr(log_level)
    warn_of_short_life(app.out, app.options.rotation_lifetime)
    options, schedule = app.options, build_schedule(app.options)
    async with AsyncExitStack() as until_the_end, AsyncExitStack() as stack:
        # The metrics file counts everything inside this block as one run.
        seen = stack.enter_context(
            write_metrics_file(metrics_file, store_name(options), lambda text: app.out.write_note(f"note: {text}"))
        )
        store = await stack.enter_async_context(open_store(options))
        nodes = await stack.enter_async_context(open_nodes(options))
        if metrics is not None:
            host, port = parse_listen_address(metrics)
            try:
                stack.enter_context(serve_metrics(seen.all_samples, host=host, port=port))
            except OSError as error:
                raise cannot_listen(metrics, error) from error
        signals = until_the_end.enter_context(watch_stop_signals())
        if web_address is not None:
            from goatherd.cli.web import make_collector, page_address
            from goatherd.web.publisher import publish_beside

            collector = make_collector(options, store, nodes, may_write=True)
            address = page_address(options, *parse_listen_address(web_address))
            await stack.enter_async_context(publish_beside(collector, address, interval=options.web_interval))
        turn = await run_controller(
            store,
            nodes,
            schedule,
            stop=signals.stop,
            hurry=signals.hurry,
            once=once,
            interval=options.controller_interval,
            unsafe_without_nodes=unsafe_without_nodes,
            health=build_health_signals(options),
            alert_command=options.controller_alert_command,
            audit_log=options.audit_log,
            metrics=seen,
            counts_runs=metrics_file is None,
        )
        if once and turn is not None:
            app.out.result(turn_data(store.name, turn), turn_lines(turn, SystemClock().now_ms()))
    return 0


async def _explain_schedule(app: App) -> int:
    schedule = build_schedule(app.options)
    async with open_store(app.options) as store, open_nodes(app.options) as nodes:
        found = await explain_schedule(store, nodes, schedule)
    app.out.result(explanation_data(store.name, schedule, found), explanation_lines(store.name, schedule, found))
    return 0
