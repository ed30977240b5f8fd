"""Run `goatherd rotate` or `goatherd restore`: progress while it runs, metrics, and the report at its end."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from goatherd.cli.main import App
from goatherd.cli.shared_options import audit_log
from goatherd.cli.text.progress import Progress
from goatherd.cli.text.rotation import (
    bare_lines,
    report_data,
    report_lines,
    restart_lines,
    restarts_data,
)
from goatherd.config.build import build_health_signals, build_policy, open_nodes, open_store, store_name
from goatherd.errors import NotAdoptedError
from goatherd.key_inventory import retained_copies
from goatherd.operations.metrics_file import read_identity_at_end, write_metrics_file
from goatherd.operations.runs import notify_each
from goatherd.rotation.events import Report

HOW_TO_RESUME: Final = (
    "a rotation that has started is not lost: `goatherd rotate --resume` continues it, `--cancel` or `--rollback` "
    "ends it"
)


async def run_rotation(app: App, work: Callable[..., Awaitable[Report]], metrics_file: Path | None) -> int:
    """Run a rotation or a restore, show its progress, and print its report.

    Args:
        app: The context of the command.
        work: The operation; it is called with the store, the servers and the policy.
        metrics_file: File to write metrics to; None for no metrics.
    """
    options = app.options
    # No log lines: `Progress` shows the same events.
    logging.getLogger("goatherd.rotation").addHandler(logging.NullHandler())
    async with AsyncExitStack() as stack:
        seen = stack.enter_context(
            write_metrics_file(metrics_file, store_name(options), lambda text: app.out.note(f"note: {text}"))
        )
        store = await stack.enter_async_context(open_store(options))
        if metrics_file is not None:
            await stack.enter_async_context(read_identity_at_end(store, seen))
        nodes = await stack.enter_async_context(open_nodes(options))
        progress = stack.enter_context(Progress(app.out))
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
                app.out.event("restarts", restarts, "\n".join(restart_lines(error.report)))
            raise
        copies = retained_copies(store.provider.guarantees)
    lines = report_lines(report, options.rotation_grace, copies=copies)
    app.out.result(report_data(report), [*lines, *bare_lines(report, options.rotation_bare)])
    return 0
