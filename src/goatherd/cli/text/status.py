"""Format the output of `goatherd status`: the store, the identity, and a row for each server.

`goatherd.operations.status` reads the status. The JSON output and the human-readable output state the same facts: ids,
times and addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from goatherd.cli.output import Output
from goatherd.cli.text.identity import identity_lines
from goatherd.cli.text.key_inventory import inventory_data, inventory_lines
from goatherd.identity.document import HistoryEntry
from goatherd.identity.redaction import redact_document
from goatherd.operations.status import ClusterStatus
from goatherd.providers.values import format_label
from goatherd.times import iso

if TYPE_CHECKING:
    from goatherd.rotation.machine import PhaseProgress


def status_data(status: ClusterStatus) -> dict[str, Any]:
    """Return the status of a cluster, as data for ``--json``."""
    servers: list[dict[str, object]] = []
    if status.servers:
        from goatherd.cli.text.server_state import server_data

        servers = [server_data(server) for server in status.servers]
    regions: list[dict[str, object]] = []
    if status.regions:
        from goatherd.cli.text.stores import regions_data

        regions = regions_data(status.regions)["stores"]
    return {
        "store": status.store,
        "storeVersion": status.version,
        "labels": dict(status.labels),
        "identity": redact_document(status.document),
        "rotation": progress_data(status.progress),
        "lastRotation": ending_data(status.last_rotation),
        "privateKeys": inventory_data(status.keys, status.at_ms),
        "unlistedRoots": list(status.unlisted_roots),
        "notes": list(status.notes),
        "obstacles": [one.text for one in status.obstacles],
        "storeClockAheadMs": status.store_ahead_ms,
        "stores": regions,
        "nodes": servers,
    }


def status_lines(status: ClusterStatus, out: Output) -> list[str]:
    """Return the status of a cluster as lines."""
    lines = identity_lines(out, status.store, status.version, status.document, status.unlisted_roots)
    labels = ", ".join(f"{format_label(label)} -> {status.labels[label]}" for label in sorted(status.labels))
    rest = "" if status.versions else "; others are unknown, since the credentials may not list the versions"
    lines.insert(1, f"labels      {labels}{rest}")
    if status.last_rotation is not None:
        lines.insert(2, ending_line(status.last_rotation))
    if status.progress is not None:
        lines += ["", *progress_lines(status.progress)]
    if status.regions:
        from goatherd.cli.text.stores import regions_lines

        lines += ["", *regions_lines(status.regions, out)]
    lines += ["", *inventory_lines(status.keys, out, status.at_ms)]
    if status.servers or status.obstacles:
        from goatherd.cli.text.server_state import region_cells, server_row
        from goatherd.cluster.node import group_by_region
        from goatherd.rotation.obstacles import WENT_BACK

        heads: tuple[str, ...] = (
            "SERVER",
            "SIGNS WITH",
            "TRUSTS CURRENT",
            "GENERATION",
            "PHASE",
            "LAST STORE READ",
            "VERSION",
            "",
        )
        rows = [server_row(server, status.document) for server in status.servers]
        if any(server.region for server in status.servers):
            heads = ("REGION", "STORE READ", *heads)
            servers = [one for group in group_by_region(status.servers).values() for one in group]
            rows = [(*region_cells(server), *server_row(server, status.document)) for server in servers]
        lines += ["", *out.table(heads, rows)] if rows else []
        went_back = [one for one in status.obstacles if one.kind in WENT_BACK]
        for one in status.obstacles:
            prefix = (
                "THE STORE HOLDS AN OLDER OR A DIFFERENT IDENTITY" if one in went_back else "obstacle to a rotation"
            )
            lines.append(f"{prefix}: {one.text}")
        lines += dict.fromkeys(one.hint for one in went_back)
    obstacles = [one.text for one in status.obstacles]
    return [*lines, *(f"note: {remark}" for remark in status.notes if not any(remark in text for text in obstacles))]


def progress_data(progress: PhaseProgress | None) -> dict[str, Any] | None:
    """Return the phase of a rotation in progress and what it waits for, as data for ``--json``."""
    if progress is None:
        return None
    return {
        "phase": progress.phase.value,
        "since": iso(progress.since_ms),
        "until": iso(progress.until_ms),
        "waitingFor": list(progress.waiting_for),
    }


def progress_lines(progress: PhaseProgress) -> list[str]:
    """Return the phase of a rotation in progress and what it waits for, as lines."""
    waiting = progress.waiting_for or ("nothing; `goatherd rotate --resume` takes the next step",)
    times = f"since {iso(progress.since_ms)}, expected until {iso(progress.until_ms)} by this configuration"
    return [f"rotation    {progress.phase.value} {times}", *(f"waiting for {one}" for one in waiting)]


def ending_data(entry: HistoryEntry | None) -> dict[str, Any] | None:
    """Return how the last rotation ended, as data for ``--json``."""
    if entry is None:
        return None
    return {
        "event": entry.event,
        "at": iso(entry.at),
        "from": entry.from_id,
        "to": entry.to_id,
        "reason": entry.reason,
    }


def ending_line(entry: HistoryEntry) -> str:
    """Return how the last rotation ended, as a line; with the reason if it did not succeed."""
    reason = f": {entry.reason}" if entry.reason else ""
    roots = " -> ".join(filter(None, (entry.from_id, entry.to_id)))
    return f"last        {entry.event} at {iso(entry.at)}, {roots}{reason}"
