"""Format the output of `goatherd retire`: the versions that it destroyed, gave up or kept, or would destroy."""

from __future__ import annotations

from goatherd.cli.text.key_inventory import due_lines
from goatherd.key_inventory import KeyInventory, describe_kept
from goatherd.operations.retire import Retirement
from goatherd.times import format_duration


def would_retire_lines(keys: KeyInventory, now_ms: int) -> list[str]:
    """Return a line for each version that `retire` would destroy now, and for each that a label keeps."""
    lines = [f"would destroy {line}" for line in due_lines(keys, now_ms)]
    lines += [describe_kept(one.version.id, one.foreign_labels) for one in keys.holdings_kept_by_labels(now_ms)]
    return lines or [_nothing(keys)]


def retirement_lines(done: Retirement) -> list[str]:
    """Return a line for each version that was destroyed, given up or kept."""
    lines = [f"destroyed version {version}" for version in done.report.destroyed]
    lines += [f"gave up version {version}: {done.keys.copies}" for version in done.report.given_up]
    lines += [describe_kept(one.version, one.labels) for one in done.report.kept]
    return lines or [_nothing(done.keys)]


def _nothing(keys: KeyInventory) -> str:
    grace = format_duration(keys.grace)
    return f"nothing to destroy: no version holds a private key that was replaced over {grace} ago"
