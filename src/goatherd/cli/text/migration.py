"""Format the output of `goatherd migrate`: what was migrated, and what the servers answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from goatherd.operations.migrate import MigratedServer, Migration, RootAcceptance


def migration_lines(done: Migration) -> list[str]:
    """Return the outcome of a migration and the answers of the servers, as lines."""
    lines = [line for outcome in done.outcomes for line in outcome_lines(outcome)]
    return lines + [proof_line(proof) for proof in done.proofs]


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
        "nodes": [proof.to_json() for proof in done.proofs],
        "removed": list(removed),
        "stillOnDisk": [str(file) for file in kept],
    }


def outcome_lines(outcome: MigratedServer) -> list[str]:
    """Return the outcome of a migration for one organization on one server, as lines."""
    would = "would have been put" if outcome.dry_run else "is now"
    found = [
        f"{outcome.org}: root {outcome.current_id} {would} in {outcome.store}"
        if outcome.is_new
        else f"{outcome.org}: already migrated: root {outcome.current_id} is in {outcome.store}"
    ]
    if outcome.is_read_back:
        found.append(f"  read back from {outcome.store}: it is the identity of {outcome.settings}")
    found += [f"  {note}" for note in outcome.notes]
    if outcome.in_log:
        sessions = "session is" if outcome.in_log == 1 else "sessions are"
        found.append(f"  {outcome.in_log} trusted user {sessions} in the server's /sys/sessions log already")
    if outcome.written:
        done = "would be" if outcome.dry_run else "was" if len(outcome.written) == 1 else "were"
        found.append(f"  {len(outcome.written)} {done} written there: {' '.join(outcome.written)}")
    if outcome.missing:
        is_in = "is" if len(outcome.missing) == 1 else "are"
        found.append(f"  {len(outcome.missing)} {is_in} in no log: {' '.join(outcome.missing)}")
    return found


def proof_line(proof: RootAcceptance) -> str:
    """Return whether one server accepts requests signed by the migrated root, as a line."""
    if proof.trusts is None:
        return f"{proof.org}: {proof.url} did not answer: {proof.problem}"
    if proof.trusts:
        return f"{proof.org}: {proof.url} accepts requests signed by root {proof.root}"
    return f"{proof.org}: {proof.url} rejects requests signed by root {proof.root}: it has another identity"
