"""`goatherd history`: show past rotations with their outcome, as a list or a timeline."""

from __future__ import annotations

import shlex

import click

from goatherd.audit.records import Anchors
from goatherd.cli.main import FILE, App, command, config_flag
from goatherd.cli.text.history import history_data, history_lines, timeline_lines
from goatherd.clock import SystemClock
from goatherd.config.build import open_store
from goatherd.telemetry import describe_count
from goatherd.web.collector import read_trail_view
from goatherd.web.view import history_rows


@command(
    example="goatherd history --provider file:///srv/keys/root\n"
    "goatherd history --timeline --audit-log /var/log/goatherd/audit.jsonl",
)
@click.option("--timeline", is_flag=True, help="Show the events as a timeline, oldest first, with the times between.")
@config_flag(
    "--audit-log",
    "audit_log",
    "File of the audit trail, which states when each rotation started, and who revoked a root.",
    kind=FILE,
)
async def history(app: App, timeline: bool) -> None:
    """Show past rotations with their outcome, as a list or a timeline.

    The events come from the identity in the store, which keeps 2 KB of them: about the eleven newest. With --audit-log,
    the list also shows when each rotation started, and who revoked a root. `goatherd audit show` shows
    the rotations that have left the identity.
    """
    async with open_store(app.options, is_reader=True) as store:
        _, document = await store.read()
    now_ms, trail = SystemClock().now_ms(), None
    if app.options.audit_log is not None:
        trail = read_trail_view(app.options.audit_log, Anchors.from_document(document), now_ms)
        if trail.verdict != "whole":
            app.out.write_note(f"note: the audit trail is {trail.verdict}: {trail.text}")
        oldest_ms = min((entry.at for entry in document.history), default=0)
        listed = {entry.rotation_id for entry in document.history}
        earlier = [
            rotation_id
            for rotation_id, (started_ms, _) in trail.starts.items()
            if started_ms is not None and started_ms < oldest_ms and rotation_id not in listed
        ]
        if earlier:
            app.out.write_note(
                f"note: {describe_count(len(earlier), 'earlier rotation')} only in the audit trail; to show them:"
                f" goatherd audit show {shlex.quote(str(app.options.audit_log))}"
            )
    rows = history_rows(document, trail)
    lines = timeline_lines(rows, now_ms) if timeline else history_lines(rows, app.out)
    app.out.result(history_data(store.name, rows), lines)
