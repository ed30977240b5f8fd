"""Format the output of `goatherd rotate`: the plan, the report at the end, and how the last rotation ended.

The output holds only ids, times, addresses and counts. The JSON output and the human-readable output state the same
facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

from goatherd.cli.output import Output
from goatherd.identity.key_age import SHORT_LIFE
from goatherd.key_inventory import describe_kept
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Kept, Outcome, Phase, Policy, Step, rotation_due_ms
from goatherd.rotation.plan import Plan, PlannedStep
from goatherd.telemetry import describe_count
from goatherd.times import format_duration, format_utc, iso, milliseconds

_TIMES = {1: "once", 2: "twice"}


def report_data(report: Report) -> dict[str, Any]:
    """Return the report of a rotation as data for ``--json``: its ids and times."""
    return {
        "outcome": report.outcome.value,
        "rotation": report.rotation_id,
        "from": report.from_id,
        "to": report.to_id,
        "current": report.current_id,
        "phase": report.phase.value,
        "generation": report.generation,
        "reason": report.reason,
        "event": report.event,
        "behind": list(report.behind),
        "leftOut": list(report.left_out),
        "destroyed": list(report.destroyed),
        "givenUp": list(report.given_up),
        "kept": kept_data(report.kept),
        "undestroyed": list(report.undestroyed),
        "restarts": restarts_data(report),
        "began": iso(report.began_ms),
        "ended": iso(report.ended_ms),
        "seconds": round((report.ended_ms - report.began_ms) / 1000, 3),
    }


def kept_data(kept: Iterable[Kept]) -> list[dict[str, Any]]:
    """Return versions that a label keeps from being destroyed, as data for ``--json``."""
    return [{"version": one.version, "labels": list(one.labels)} for one in kept]


def report_lines(report: Report, grace: timedelta, *, copies: str | None = None) -> list[str]:
    """Return the report of a rotation as lines, with what the operator must do next.

    Args:
        report: The report.
        grace: How long a private key is kept after its root has stopped signing.
        copies: Where the store keeps a value after it was destroyed, as a phrase; None if it keeps none.
    """
    took = f"{(report.ended_ms - report.began_ms) / 1000:.1f} s"
    signs = f"in place of {report.from_id}" if report.current_id == report.to_id else f"next is {report.to_id}"
    lines = {
        Outcome.ROTATED: [f"rotated: {report.current_id} signs in place of {report.from_id}, after {took}"],
        Outcome.RESTORED: [f"restored: {report.current_id} signs again in place of {report.from_id}, after {took}"],
        Outcome.CANCELLED: [_stopped_line(report)],
        Outcome.ROLLED_BACK: [_stopped_line(report)],
        Outcome.ENDED: [_stopped_line(report)],
        Outcome.REACHED: [
            f"reached {report.phase.value} after {took}: {report.current_id} signs, {signs}",
            f"`goatherd rotate --resume` continues the rotation, `goatherd rotate {_way_back(report.phase)}` ends it",
        ],
        Outcome.NOTHING: [f"nothing to do: {report.current_id} signs, and no rotation is in progress"],
    }[report.outcome]
    lines += [f"no longer waited for, since the quorum is reached: {url}" for url in report.left_out]
    lines += [f"was not seen to sign with the current root: {url}" for url in report.behind]
    if report.outcome is not Outcome.NOTHING:
        lines += restart_lines(report)
    if report.outcome is Outcome.CANCELLED:
        lines += _cancelled_key_lines(report, copies)
    elif report.outcome in (Outcome.ROTATED, Outcome.RESTORED, Outcome.ROLLED_BACK):
        retired = report.to_id if report.outcome.is_stopped else report.from_id
        if not report.keeps_key:
            return [*lines, f"the private key of {retired} is in an HSM or a KMS; the store never held it"]
        ended_ms = report.ended_ms if report.recorded_ms is None else report.recorded_ms
        due_ms = ended_ms + milliseconds(grace)
        lines.append(
            f"the private key of {retired} stays in the store for {format_duration(grace)}: "
            f"`goatherd retire` destroys it from {format_utc(due_ms)} on"
        )
        named = f" {retired}" if report.outcome.is_stopped else ""
        expires_ms = report.restorable_until_ms
        if expires_ms is None:
            lines.append("`goatherd restore` cannot make it sign again, because the present anchor has not endorsed it")
        elif expires_ms <= report.ended_ms:
            lines.append(f"it has expired, so `goatherd restore{named}` cannot make it sign again")
        else:
            until = "then" if expires_ms >= due_ms else f"shortly before it expires at {format_utc(expires_ms)},"
            lines.append(f"until {until} `goatherd restore{named}` can make it sign again")
    return lines


def restarts_data(report: Report) -> list[dict[str, Any]]:
    """Return how often each server restarted during the rotation, for the output of ``--json``."""
    return [{"node": url, "count": count} for url, count in report.restarts.items()]


def restart_lines(report: Report) -> list[str]:
    """Return the servers that restarted during the rotation, as lines, with a warning for each that did so too often.

    An agent restarts a server once when the next root starts to sign, and once more when that is rolled back.
    """
    needed, what = (2, "a rotation that is rolled back") if report.outcome is Outcome.ROLLED_BACK else (1, "a rotation")
    seen = {url: count for url, count in report.restarts.items() if count is not None}
    silent = [url for url, count in report.restarts.items() if count is None]
    lines = []
    if seen:
        restarted = ", ".join(f"{url} {count}" for url, count in seen.items() if count)
        lines.append(f"restarts: {restarted} (needed: at most {needed} each)" if restarted else "restarts: none")
    if silent:
        lines.append(f"restarts not known, because the server did not show which process serves: {', '.join(silent)}")
    return lines + [
        f"warning: {url} restarted {describe_count(count, 'time')}; {what} restarts a server at most {_TIMES[needed]}"
        for url, count in seen.items()
        if count > needed
    ]


def _stopped_line(report: Report) -> str:
    """Return, as a line, how a rotation ended without success, and whether the next root stays trusted."""
    current, following, why = report.current_id, report.to_id, report.reason
    if report.outcome is Outcome.ENDED:
        return f"ended by another command: {current} signs ({why})"
    if report.outcome is Outcome.ROLLED_BACK:
        return f"rolled back: {current} signs again; {following} stays trusted, with what it has signed ({why})"
    if report.is_restore:
        return f"cancelled: {current} stays the current root; {following} has not signed, and stays trusted ({why})"
    if report.trusts_next:
        what = f"{following} was published, so it stays trusted; it has signed nothing"
    else:
        what = f"{following} was not published, so no server knows or trusts it"
    return f"cancelled: {current} stays the current root; {what} ({why})"


def _cancelled_key_lines(report: Report, copies: str | None) -> list[str]:
    """Return what was done with the private key of a next root that has signed nothing, as lines."""
    lines = []
    if report.destroyed:
        what = "the copies of the private key that it had made" if report.is_restore else "the private key"
        count = describe_count(len(report.destroyed), "version")
        lines.append(f"destroyed {what} of {report.to_id}, in {count}")
    lines += [f"gave up version {version}: {copies}" for version in report.given_up]
    lines += [describe_kept(one.version, one.labels) for one in report.kept]
    lines += [
        f"version {version.partition(': ')[0]} still holds the private key of {report.to_id} "
        f"({version.partition(': ')[2]}): `goatherd retire` tries again"
        for version in report.undestroyed
    ]
    return lines


def bare_lines(report: Report, bare: Iterable[str]) -> list[str]:
    """Return how to restart those servers of `bare` that still sign with another root, as lines; empty if none do."""
    waiting = [url for url in report.behind if url in set(bare)]
    if not waiting:
        return []
    expires_ms = report.restorable_until_ms
    stopped = report.to_id if report.outcome.is_stopped else report.from_id
    end = "" if expires_ms is None else f", at most until its root expires ({stopped}: {format_utc(expires_ms)})"
    return [
        f"restart these servers by hand, one after the other: {' '.join(waiting)}",
        f"  stop it; `goatherd run --once --data DIR` there writes its settings.json for {report.current_id}; start it",
        f"  what a server signs until then is valid everywhere{end}",
        "  its file holds the previous private key, and with less than 15 days left GoatDB extends that root and",
        "  exposes its key: restart it before `goatherd retire`",
        "  `goatherd run` does all of this automatically",
    ]


def warn_of_short_life(out: Output, lifetime: timedelta) -> None:
    """Warn of a lifetime so short that an unmodified server would extend the root and expose its private key.

    This is a warning, not an error: Goatherd servers work with a lifetime of an hour.
    """
    life_ms = milliseconds(lifetime)
    left_ms = life_ms - rotation_due_ms(issued_ms=0, expires_ms=life_ms, policy=Policy())
    if left_ms > milliseconds(SHORT_LIFE):
        return
    text = (
        f"warning: with a lifetime of {format_duration(lifetime)}, a root has 15 days or less left when it is due to "
        "be replaced: an unmodified GoatDB server that starts with it then extends it and exposes its private key; "
        "with such servers, choose a lifetime of more than 30d"
    )
    out.event("short-life", {"lifetime": format_duration(lifetime)}, text)


def note_of_signer(uri: str) -> str:
    """Return the note that later commands need the anchor's signer in their configuration."""
    return f'later commands that need the anchor call only signers of their configuration: signers = ["{uri}"]'


def note_of_wait(out: Output) -> Callable[[timedelta], None]:
    """Return a function that notes, with the longest duration, that the command waits for the anchor's new key."""

    def note(longest: timedelta) -> None:
        out.write_note(
            f"the key was created; waiting until it is ready, for at most {format_duration(longest)} (if you interrupt"
            " this, run the command again later, without --create-key)"
        )

    return note


def _way_back(phase: Phase) -> str:
    return "--cancel" if phase in (Phase.PREPARED, Phase.PUBLISHED) else "--rollback"


# --- the plan -------------------------------------------------------------------------------------------------------


def plan_data(plan: Plan, to_phase: Phase | None) -> dict[str, Any]:
    """Return a plan of a rotation as data for ``--json``, up to the phase at which the rotation stops."""
    return {
        "phase": plan.phase.value,
        "current": plan.current_id,
        "resumes": plan.resumes,
        "startedBy": plan.started_by or None,
        "startedAt": iso(plan.started_ms) if plan.resumes else None,
        "nodes": list(plan.nodes),
        "aliases": {url: list(more) for url, more in plan.aliases.items()},
        "regions": {region: list(urls) for region, urls in plan.regions.items()},
        "followers": list(plan.followers),
        "notWaitedFor": list(plan.not_waited_for),
        "obstacles": list(plan.obstacles),
        "remarks": list(plan.remarks),
        "stops": list(plan.stops),
        "steps": [
            {
                "step": step.step.value,
                "leadsTo": step.leads_to.value,
                "effect": step.effect,
                "risk": step.risk,
                "gate": list(step.gate),
                "also": list(step.also),
                "patience": None if step.patience is None else format_duration(step.patience),
                "otherwise": None if step.otherwise is None else step.otherwise.value,
                "storeReads": step.cost.store_reads,
                "storeWrites": step.cost.store_writes,
                "nodeRequests": step.cost.node_requests,
            }
            for step in _take_until(plan.steps, to_phase)
        ],
    }


def plan_lines(plan: Plan, to_phase: Phase | None) -> list[str]:
    """Return a plan of a rotation as lines, up to the phase at which the rotation stops."""
    steps = _take_until(plan.steps, to_phase)
    begins = "a new rotation"
    if plan.resumes:
        who = plan.started_by or "an unnamed operator"
        begins = f"resumes rotation {plan.resumes}, started by {who} at {format_utc(plan.started_ms)}"
    lines = [
        f"{begins}: {plan.current_id} signs now, phase {plan.phase.value}, {describe_count(len(plan.nodes), 'server')}"
    ]
    of = {url: region for region, urls in plan.regions.items() for url in urls}
    named = {url: " = ".join((url, *plan.aliases.get(url, ()))) for url in plan.nodes}
    for region, urls in plan.regions.items():
        lines += [f"  region {region}:", *(f"    {named[url]}" for url in urls)]
    lines += [f"  {name}" for url, name in named.items() if url not in of]
    if plan.followers:
        regions = ", ".join(plan.followers)
        lines.append(f"  before each change, the stores of these regions must show the one before: {regions}")
    lines.append("")
    for number, step in enumerate(steps, 1):
        lines.append(f"{number}. {step.step.value} -> {step.leads_to.value}: {step.effect}")
        lines += [f"   first, every server: {gate}" for gate in step.gate]
        lines += [f"   first: {also}" for also in step.also]
        if step.patience is not None and step.otherwise is not None:
            lines.append(f"   waits {format_duration(step.patience)} at most, else: {step.otherwise.value}")
        cost = step.cost
        lines.append(
            f"   costs at least: store writes {cost.store_writes}, store reads {cost.store_reads}, "
            f"requests to each server {cost.node_requests}"
        )
        lines.append(f"   risk: {step.risk}")
    if to_phase is not None:
        lines.append(f"then it stops in phase {to_phase.value}; `goatherd rotate --resume` continues")
    lines += ["", *(f"not waited for: {who}" for who in plan.not_waited_for)]
    lines += [f"stopped by: {what}" for what in plan.stops]
    lines += ["", *(f"remark: {remark}" for remark in plan.remarks)]
    lines += [f"obstacle: {obstacle}" for obstacle in plan.obstacles]
    lines += [] if plan.obstacles else [f"no obstacle: the rotation can {'continue' if plan.resumes else 'start'} now"]
    return lines


def _take_until(steps: Sequence[PlannedStep], to_phase: Phase | None) -> tuple[PlannedStep, ...]:
    if to_phase is None:
        return tuple(steps)
    chosen = []
    for step in steps:
        chosen.append(step)
        if step.leads_to is to_phase or step.step is Step.FINALIZE:
            break
    return tuple(chosen)
