"""Format the output of `goatherd migrate` and `goatherd copy`: how an identity came into a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goatherd.cli.output import Output
from goatherd.operations.copy import CopyReport
from goatherd.operations.migrate import MigratedServer, Migration, RootAcceptance
from goatherd.providers.values import format_label, format_labels
from goatherd.telemetry import describe_count


def migration_lines(done: Migration) -> list[str]:
    """Return the outcome of a migration and the answers of the servers, as lines."""
    lines = [line for outcome in done.outcomes for line in outcome_lines(outcome)]
    return lines + [proof_line(proof) for proof in done.proofs]


def plan_lines(done: Migration, out: Output) -> list[str]:
    """Return what a migration would do with each directory, as a table, and below it what the operator should know."""
    rows, begun, notes = [], set[str](), dict[str, list[str]]()
    for one in done.outcomes:
        total = one.in_log + len(one.written) + len(one.missing)
        holds = f"root {one.own_root_id}, {describe_count(total, 'trusted session')}"
        if one.is_new and one.org not in begun:
            what = [f"root {one.current_id} goes into {one.store}"]
        else:
            what = [f"root {one.current_id} is in {one.store} already" if not one.is_new else "the same root"]
        begun.add(one.org)
        if one.own_root_id != one.current_id:
            what.append(f"root {one.own_root_id} stays trusted")
        if one.written:
            sessions = describe_count(len(one.written), "session")
            what.append(f"{sessions} that the log lacks {'is' if len(one.written) == 1 else 'are'} written into it")
        if one.missing:
            what.append(f"{describe_count(len(one.missing), 'session', 'stays', 'stay')} out of the log")
        if one.doubtful:
            what.append(f"nothing without --accept-roots, because of root {', '.join(one.doubtful)}")
        rows.append((str(one.settings.parent), holds, "; ".join(what)))
        for note in one.notes:
            notes.setdefault(note, []).append(str(one.settings.parent))
    lines = out.table(("DIRECTORY", "HOLDS", "WHAT WILL HAPPEN"), rows)
    lines += [f"{', '.join(places)}: {note}" for note, places in notes.items()]
    return [*lines, *(proof_line(proof) for proof in done.proofs), "this was a dry run: nothing was written"]


def kept_lines(kept: Sequence[Path]) -> list[str]:
    """Return a reminder for each settings.json that still exists after the migration."""
    return [f"{file} still holds the private key: remove it once the server starts from the store" for file in kept]


def migration_json(done: Migration, removed: Sequence[str], kept: Sequence[Path]) -> dict[str, object]:
    """Return a migration as JSON.

    Args:
        done: What was done.
        removed: A line for each settings.json file that was removed.
        kept: The settings.json files that are still there.
    """
    return {
        "dryRun": done.is_dry,
        "organizations": [outcome.to_json() for outcome in done.outcomes],
        "nodes": [_proof_data(proof) for proof in done.proofs],
        "removed": list(removed),
        "stillOnDisk": [str(file) for file in kept],
    }


def outcome_lines(outcome: MigratedServer) -> list[str]:
    """Return the outcome of a migration for one organization on one server, as lines."""
    found = [
        f"{outcome.org}: root {outcome.current_id} is now in {outcome.store}"
        if outcome.is_new
        else f"{outcome.org}: already migrated: root {outcome.current_id} is in {outcome.store}"
    ]
    if outcome.is_read_back:
        found.append(f"  read back from {outcome.store}: it contains the root of {outcome.settings}")
    found += [f"  {note}" for note in outcome.notes]
    if outcome.in_log:
        sessions = describe_count(outcome.in_log, "trusted user session", "is", "are")
        found.append(f"  {sessions} in the server's /sys/sessions log already")
    if outcome.written:
        sessions = describe_count(len(outcome.written), "trusted user session", "was", "were")
        found.append(f"  {sessions} written into the server's /sys/sessions log: {' '.join(outcome.written)}")
    if outcome.missing:
        sessions = describe_count(len(outcome.missing), "trusted user session", "is", "are")
        found.append(f"  {sessions} in no log: {' '.join(outcome.missing)}")
    return found


def proof_line(proof: RootAcceptance) -> str:
    """Return a line that says whether one server accepts requests signed by the migrated root."""
    org, root, server = proof.org, proof.root, proof.server
    if server.trusts_current is None:
        return f"{org}: it is not known whether {server.url} has this root: {server.problem}"
    if server.trusts_current:
        return f"{org}: {server.url} accepts requests signed by root {root}"
    return f"{org}: {server.url} rejects requests signed by root {root}: it has another identity"


def _proof_data(proof: RootAcceptance) -> dict[str, object]:
    server = proof.server
    return {
        "org": proof.org,
        "url": server.url,
        "root": proof.root,
        "trusts": server.trusts_current,
        "problem": server.problem,
    }


def copy_json(done: CopyReport) -> dict[str, Any]:
    """Return the report on a copy of a secret between two stores, as JSON data."""
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
    """Return the report on a copy of a secret between two stores, as lines."""
    rows = [(item.source, item.target or "-", format_labels(done.labels_of(item))) for item in done.plan.items]
    lines = out.table(("FROM VERSION", "TO VERSION", "LABELS"), rows)
    lines += [f"skipped version {each.id}: {each.reason}" for each in done.plan.skipped]
    lines += [
        f"skipped label {format_label(label)} of version {holder}: the destination does not take it"
        for label, holder in done.plan.left_labels.items()
    ]
    count = len(rows)
    if not done.is_dry:
        labels = describe_count(len(done.plan.labels), "label")
        return [*lines, f"copied and read back: {describe_count(count, 'version')}, {labels}"]
    lines.append(f"would copy {count - done.present} of {describe_count(count, 'version')}; nothing was written")
    if done.shows_current_early:
        lines.append("until the copy is complete, its `current` is an older version: do not start a server from it")
    return lines
