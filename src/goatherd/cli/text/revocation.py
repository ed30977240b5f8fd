"""Format the output of `goatherd revoke`: the plan, the progress, and the report at the end.

The output holds only ids, times, URLs and counts. The JSON output and the human-readable output state the same facts.
"""

from __future__ import annotations

from typing import Any, Final

from goatherd.cli.output import Output
from goatherd.cli.text.rotation import kept_data
from goatherd.key_inventory import describe_kept
from goatherd.revocation.report import Claim, NodeOutcome, RevocationReport
from goatherd.rotation.events import Event, RevocationStep, RevocationStepped
from goatherd.telemetry import describe_count
from goatherd.times import format_utc, iso
from goatherd.wire.paths import SESSIONS_PATH

SHOWN_CLAIMS: Final = 20
_PARTS: Final = {"introduce again": "reissue", "survey": "collect"}
"""Names of parts of a revocation; other parts are shown as JSON names them."""

UNMODIFIED: Final = (
    "An unmodified server still trusts the revoked root: it accepts what the attacker signs, and hands out what the",
    "attacker introduces. It knows the successor and the sessions; Goatherd servers reject what it signs with the",
    "revoked root. Restart it at once with a settings.json without the root: `goatherd run` does so automatically,",
    "`goatherd export` writes the file. Put `goatherd door` in front: its own /sys/sessions make it trust the root",
    "again at every start. Until it restarts, it signs new sessions with the revoked root: run the command again",
    "afterwards, which names them.",
)


def revocation_event(out: Output, event: Event) -> None:
    """Write a line of progress when a revocation has completed a step."""
    if not isinstance(event, RevocationStepped):
        return
    at = f" at {event.node}" if event.node else ""
    count = event.count or 0
    sessions = describe_count(count, "session")
    texts = {
        RevocationStep.INTRODUCED: f"the next root {event.detail} is introduced{at}",
        RevocationStep.REVOKED: f"revoked {event.revoked_id}: {event.current_id} signs, generation {event.generation}",
        RevocationStep.FROZEN: f"frozen{at}: it holds {_count_commits(count)} of the root",
        RevocationStep.CLOSED: f"closed: the list has {_count_commits(count)} of the root; every other one is rejected",
        RevocationStep.INTRODUCED_AGAIN: f"reissued {sessions}{at}",
        RevocationStep.SETTLED: f"settled: every session that depended on the root ({count}) is reissued",
        RevocationStep.DESTROYED: f"destroyed version {event.detail}",
    }
    data = {"step": event.step.value, "node": event.node, "count": event.count, "at": iso(event.at_ms)}
    if event.detail is not None:
        data["detail"] = event.detail
    out.event("revocation", data, texts[event.step])


def revocation_data(report: RevocationReport) -> dict[str, Any]:
    """Return the state of a revocation, as data for ``--json``."""
    return {
        "revoked": report.revoked_id,
        "current": report.current_id,
        "generation": report.generation,
        "complete": report.is_complete,
        "proof": report.has_proof,
        "closed": report.closed,
        "frozen": report.frozen,
        "settled": report.settled,
        "sessions": report.sessions,
        "pushed": report.pushed,
        "longLived": list(report.long_lived),
        "rogueRoots": list(report.rogue_roots),
        "forged": report.forged,
        "leftOut": list(report.left_out),
        "lateSessions": list(report.late_sessions),
        "destroyed": list(report.destroyed),
        "givenUp": list(report.given_up),
        "kept": kept_data(report.kept),
        "keysLeft": list(report.keys_left),
        "unknownLeft": list(report.unknown_left),
        "alsoStored": list(report.also_stored),
        "laggingRegions": list(report.lagging_regions),
        "expired": report.is_expired,
        "anchorProblem": report.anchor_problem,
        "stableProblem": report.stable_problem,
        "nodes": [_node_data(node) for node in report.nodes],
        "seconds": {name: round(value, 3) for name, value in report.seconds.items()},
        "nodeCalls": report.node_calls,
        "storeCalls": report.store_calls,
    }


def _node_data(node: NodeOutcome) -> dict[str, Any]:
    return {
        "url": node.url,
        "unmodified": node.is_unmodified,
        "door": node.has_door,
        "refuses": node.refuses,
        "held": node.held,
        "inFlight": node.in_flight,
        "late": node.late,
        "distrusted": node.is_distrusted,
        "sole": node.is_sole,
        "alone": node.alone,
        "claims": [_claim_data(claim) for claim in node.claims],
        "countedAlone": node.counted_alone,
        "introduced": node.introduced,
        "problem": node.problem,
    }


def _claim_data(claim: Claim) -> dict[str, Any]:
    return {
        "path": claim.path,
        "key": claim.key,
        "commits": claim.commits,
        "first": None if claim.first_ms is None else iso(claim.first_ms),
        "last": None if claim.last_ms is None else iso(claim.last_ms),
    }


def revocation_plan_lines(report: RevocationReport) -> list[str]:
    """Return what a revocation would do, as lines."""
    ours = [node for node in report.nodes if not node.is_unmodified]
    sessions = "the user sessions" if report.is_expired else describe_count(report.sessions, "user session")
    lines = [
        f"plan to revoke {report.revoked_id}; nothing is written",
        "1. if it is the current root: introduce the next root at every server; this root, or the anchor, signs that",
        "2. write the identity with the revocation, and notify the servers; from then on they reject the root",
        f"3. collect the commits of the root from {describe_count(len(ours), 'Goatherd server')}; the digest of the"
        " valid ones goes into the identity"
        if ours
        else "3. no list of frozen commits: unmodified GoatDB servers cannot store one or reject by it"
        if report.nodes
        else "3. no list of frozen commits yet: no server is listed",
        f"4. reissue {sessions}; from then on none depends on the root",
        "5. with --destroy: destroy the stored versions that hold its private key",
        "",
    ]
    if report.is_expired:
        lines.append(
            "the current root has expired, so servers report neither commits nor sessions to this plan; the revocation"
            " asks them with the next root"
        )
    if report.anchor_problem is not None:
        lines.append(f"obstacle: the anchor cannot sign, so nothing can be revoked: {report.anchor_problem}")
    lines += [
        f"obstacle: {node.url}: {node.problem}; without this server the list stays open"
        for node in report.nodes
        if node.problem is not None
    ]
    for node in report.nodes:
        lines += _alone_lines(node, again="")
    return lines + _list_warnings(report)


def revocation_lines(report: RevocationReport) -> list[str]:
    """Return the result of a revocation, and what is left to do, as lines."""
    if report.is_complete and report.has_only_unmodified:
        head = (
            f"revoked {report.revoked_id}: {report.current_id} signs; finished, as far as unmodified servers allow it"
        )
    elif report.is_complete:
        head = f"revoked {report.revoked_id}: {report.current_id} signs; finished at all Goatherd servers"
    else:
        head = f"revoked {report.revoked_id}: {report.current_id} signs; NOT FINISHED, run it again"
    took = ", ".join(f"{_PARTS.get(name, name)} {seconds:.1f} s" for name, seconds in report.seconds.items())
    lines = [
        head,
        f"took: {took}; {describe_count(report.node_calls, 'request')} to servers, {report.store_calls} to the store",
        f"sessions: {report.sessions} to reissue, {report.pushed} pushed now",
    ]
    if report.has_only_unmodified:
        lines.append(
            "frozen: no list, since every listed server is an unmodified GoatDB server, which cannot store one or"
            " reject by it; a Goatherd server that joins later needs one: run the command again with it"
        )
    elif report.closed:
        lines.append(f"frozen: the list has {_count_commits(report.frozen)} of the root; every other one is rejected")
    else:
        reason = "a listed server has not reported its commits" if report.nodes else "no server is listed"
        lines.append(f"frozen: NOT CLOSED, {reason}; each server accepts only what it holds")
    for node in report.nodes:
        lines += _node_lines(node)
    if report.late_sessions:
        sessions = describe_count(len(report.late_sessions), "session")
        lines.append(
            f"the revoked root introduced {sessions} after the others were reissued; such sessions are not reissued:"
            f" {' '.join(report.late_sessions)}. They may be the attacker's; if they are yours: --reopen"
        )
    lines += [
        f"left out: session {session} is not reissued; no Goatherd server accepts it once the revocation is finished"
        for session in report.left_out
    ]
    lines += [f"destroyed version {version}" for version in report.destroyed]
    lines += [f"gave up version {one}: not every store that holds it destroys at once" for one in report.given_up]
    lines += [describe_kept(one.version, one.labels, command="the same command") for one in report.kept]
    lines += [
        f"region {region}: its store LAGS, and servers that read only this store still trust the root; `goatherd"
        " stores sync` updates it"
        for region in report.lagging_regions
    ]
    if report.stable_problem is not None:
        lines.append(f"label stable WAS NOT MOVED to the new identity: {report.stable_problem}")
    if not report.has_proof:
        lines.append(
            "The store no longer holds this private key. Start servers that trust only this root with"
            " --accept-identity."
        )
    return lines + _list_warnings(report)


def _node_lines(node: NodeOutcome) -> list[str]:
    if node.problem is not None:
        return [f"{node.url}: {node.problem}"]
    if node.is_unmodified:
        return []
    if not node.refuses:
        return [f"{node.url}: HAS NOT ADOPTED the revocation: check whether it can read the store"]
    lines = []
    if node.in_flight:
        lines.append(f"{node.url}: {describe_count(node.in_flight, 'frozen commit', 'has', 'have')} not reached it yet")
    if node.late:
        lines.append(
            f"{node.url}: holds {_count_commits(node.late)} of the root that the list lacks; no other server accepts"
            " them. They may be the attacker's; if they are yours: --reopen"
            + (f" --trust-alone {node.url}" if node.alone else "")
        )
    return lines + _alone_lines(node, again="--reopen ")


def _alone_lines(node: NodeOutcome, *, again: str) -> list[str]:
    """Return, as lines, whether the commits that no other server holds are valid.

    Args:
        node: The server.
        again: Option, with a space after it, that the suggested command needs before `--trust-alone`; may be empty.
    """
    lines = []
    if node.is_sole:
        lines.append(
            f"{node.url}: the only server whose list counts, so no other server confirms it"
            f" (--distrust {node.url} leaves it out)"
        )
    if node.counted_alone:
        lines.append(f"{node.url}: {_count_commits(node.counted_alone)} that it alone holds are valid (--trust-alone)")
    if node.is_distrusted:
        lines.append(f"{node.url}: its list is ignored (--distrust); left out: {_count_commits(node.alone)}")
    elif node.alone:
        lines.append(
            f"{node.url}: ALONE claims {_count_commits(node.alone)} of the root. They are rejected: a compromised"
            " server can sign commits after the revocation"
        )
    lines += [f"    {_claim_text(claim)}" for claim in node.claims[:SHOWN_CLAIMS]]
    unshown = node.alone - sum(claim.commits for claim in node.claims[:SHOWN_CLAIMS])
    if node.claims and unshown > 0:
        lines.append(f"    and {unshown} more; --json lists what the server has reported")
    elif unshown > 0:
        lines.append("    the server does not report what they are")
    if node.alone and not node.is_distrusted:
        lines.append(f"    if you know that they are yours, run the command again with {again}--trust-alone {node.url}")
    return lines


def _claim_text(claim: Claim) -> str:
    what = f"session {claim.key}" if claim.path == SESSIONS_PATH else f"{claim.path}, item {claim.key}"
    if claim.first_ms is None or claim.last_ms is None:
        return f"{what}: {_count_commits(claim.commits)} without a time"
    first, last = format_utc(claim.first_ms), format_utc(claim.last_ms)
    return f"{what}: {_count_commits(claim.commits)}, dated {first if first == last else f'{first} to {last}'}"


def _count_commits(count: int) -> str:
    return describe_count(count, "commit")


_INTRODUCED: Final = (
    "the revoked root has introduced it, and the identity does not list it. Goatherd servers reject it; unmodified"
    " servers, and clients that hold it, trust it"
)


def _list_warnings(report: RevocationReport) -> list[str]:
    lines = [
        f"{node.url}: {'a server with a settings.json' if node.is_from_file else 'an unmodified GoatDB server'}"
        for node in report.nodes
        if node.is_unmodified and not node.has_door
    ]
    if lines:
        lines += [f"    {line}" for line in UNMODIFIED]
    lines += [
        f"{node.url}: an unmodified GoatDB server behind the door, which rejects what the revoked root signs; its agent"
        " restarts it without the root"
        for node in report.nodes
        if node.has_door
    ]
    lines += [
        f"root {root} is from a cancelled rotation: {_INTRODUCED}"
        if root in report.cancelled_roots
        else f"ROGUE ROOT {root}: {_INTRODUCED}. It is the attacker's, unless a run of this command has reported it as"
        " introduced and was interrupted, or a concurrent run was faster"
        for root in report.rogue_roots
    ]
    lines += [
        f"session {session} lives longer than any that GoatDB creates: if it is the attacker's, --except {session}"
        for session in report.long_lived
    ]
    if report.forged:
        lines.append(f"{report.forged} session commits claim a signature by the root that is invalid; they are ignored")
    kept = {one.version for one in report.kept}  # a label keeps these, whatever their store does
    if not report.destroyed and (left := [one for one in report.keys_left if one not in kept]):
        holders = describe_count(len(left), "stored version", "still holds", "still hold")
        advice = "--destroy destroys it now, without the grace period of `goatherd retire`"
        if report.given_up:
            advice = "Their store removes old versions in its own time"
        lines.append(
            f"{holders} its private key: {', '.join(left)}. After the revocation, only unmodified servers accept it."
            f" {advice}"
        )
    if report.unknown_left:
        versions = ", ".join(report.unknown_left)
        lines.append(
            f"stored versions that an interrupted change has left and that cannot be read: {versions}. They may hold"
            " its private key; --destroy destroys them too"
        )
    lines += [
        f"the store also holds the private key of root {root}: if the store itself was read, revoke it too"
        for root in report.also_stored
    ]
    return lines
