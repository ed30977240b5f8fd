"""What ``goatherd migrate`` prints of what was migrated, and of what the servers answered."""

from __future__ import annotations

from goatherd.operations.migrate import MigratedServer, RootAcceptance


def outcome_lines(outcome: MigratedServer) -> list[str]:
    """Return what was done for one organization on one server, as lines."""
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
    """Return what one server answered, as a line."""
    if proof.trusts is None:
        return f"{proof.org}: {proof.url} was asked and gave no answer: {proof.problem}"
    if proof.trusts:
        return f"{proof.org}: {proof.url} answers a request signed by root {proof.root}"
    return f"{proof.org}: {proof.url} does not know root {proof.root}: it has another identity"
