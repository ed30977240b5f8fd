"""Format the output of `goatherd copy`: each version with its new id, and what was not copied."""

from __future__ import annotations

from typing import Any

from goatherd.cli.output import Output
from goatherd.operations.copy import CopyReport
from goatherd.providers.values import shown_label, shown_labels


def copy_json(done: CopyReport) -> dict[str, Any]:
    """Return what was copied as JSON."""
    return {
        "dryRun": done.is_dry,
        "complete": not done.is_dry,
        "alreadyThere": done.present,
        "versions": [
            {"from": item.source, "to": item.target, "labels": done.labels_of(item)} for item in done.plan.items
        ],
        "skipped": [each.to_json() for each in done.plan.skipped],
        "leftLabels": [{"label": label, "version": holder} for label, holder in done.plan.left_labels.items()],
    }


def copy_lines(done: CopyReport, out: Output) -> list[str]:
    """Return what was copied as lines."""
    rows = [(item.source, item.target or "-", shown_labels(done.labels_of(item))) for item in done.plan.items]
    lines = out.table(("FROM VERSION", "TO VERSION", "LABELS"), rows)
    lines += [f"skipped version {each.id}: {each.reason}" for each in done.plan.skipped]
    lines += [
        f"skipped label {shown_label(label)} of version {holder}: the destination does not take it"
        for label, holder in done.plan.left_labels.items()
    ]
    count = len(rows)
    if not done.is_dry:
        return [*lines, f"copied and read back: {count} versions, {len(done.plan.labels)} labels"]
    lines.append(f"would copy {count - done.present} of {count} versions; nothing was written")
    if done.shows_current_early:
        lines.append("until the copy is complete, its `current` is an older version: do not start a server from it")
    return lines
