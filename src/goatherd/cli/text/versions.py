"""Format the output of `goatherd show --versions`: the stored versions with their labels, or a label's change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from goatherd.cli.output import Output
from goatherd.operations.labels import LabelChange
from goatherd.providers.values import SecretVersion, shown_label, shown_labels
from goatherd.times import iso


def label_line(change: LabelChange) -> str:
    """Return how a label was changed, as a line."""
    label = shown_label(change.label)
    if not change.is_change:
        where = "no version holds it" if change.after is None else f"version {change.after} holds it already"
        return f"label {label}: {where}; nothing was changed"
    if change.after is None:
        return f"label {label}: removed from version {change.before}"
    if change.before is None:
        return f"label {label}: added to version {change.after}"
    return f"label {label}: moved from version {change.before} to version {change.after}"


def versions_json(found: Sequence[SecretVersion]) -> list[dict[str, Any]]:
    """Return stored versions of a secret as JSON."""
    return [
        {
            "id": version.id,
            "created": iso(version.created_ms),
            "labels": sorted(version.labels),
            "state": version.state.value,
            "leftover": version.is_leftover,
        }
        for version in found
    ]


def versions_lines(found: Sequence[SecretVersion], out: Output) -> list[str]:
    """Return stored versions of a secret as lines."""
    rows = [
        (version.id, iso(version.created_ms), version.state.value, shown_labels(version.labels)) for version in found
    ]
    lines = out.table(("VERSION", "CREATED", "STATE", "LABELS"), rows)
    if left := [version.id for version in found if version.is_leftover]:
        lines.append(
            f"left by an interrupted change: {' '.join(left)}; `goatherd retire` destroys them when their keys are due"
        )
    return lines
