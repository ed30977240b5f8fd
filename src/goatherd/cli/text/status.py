"""Format the output of `goatherd status`: the verdict, the root, a line for each server, findings, and what to do next.

The lines are those of the page's view (`goatherd.web.view`), so that both show the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from goatherd.cli.output import BLUE, GREEN, RED, YELLOW, Marked, Output
from goatherd.cli.text.key_inventory import inventory_data, inventory_lines
from goatherd.cli.text.server_state import server_data
from goatherd.cluster.node import NodeView
from goatherd.cluster.server_problems import describe_problems
from goatherd.errors import GoatherdError
from goatherd.identity.document import HistoryEntry
from goatherd.identity.redaction import redact_document
from goatherd.identity.root_names import shorten_id
from goatherd.operations.status import ClusterStatus
from goatherd.providers.values import format_label
from goatherd.telemetry import describe_count
from goatherd.times import format_age, format_utc, iso, milliseconds
from goatherd.web.render import SIGNS
from goatherd.web.view import Fact, ServerRow, State, View, clean_text

if TYPE_CHECKING:
    from goatherd.rotation.machine import PhaseProgress

_COLOURS: Final = {
    State.WELL: GREEN,
    State.ROTATING: BLUE,
    State.DEGRADED: YELLOW,
    State.FAILED: RED,
    State.UNKNOWN: YELLOW,
}
_ARROW: Final = " -> "


def status_data(status: ClusterStatus, view: View) -> dict[str, Any]:
    """Return the status of a cluster, as data for ``--json``."""
    regions: list[dict[str, object]] = []
    if status.regions:
        from goatherd.cli.text.stores import regions_data

        regions = regions_data(status.regions)["stores"]
    due = view.next_step
    return {
        "state": view.state.value,
        "summary": view.sentence,
        "next": _describe_next(view, status),
        "findings": [{"text": one.text, "advice": one.advice or None} for one in view.remarks],
        "nextRotation": None
        if due is None
        else {"at": None if due.at_ms is None else iso(due.at_ms), "why": due.why or None},
        "store": status.store,
        "storeVersion": status.version,
        "labels": dict(status.labels),
        "identity": redact_document(status.document),
        "rotation": _progress_data(status.progress),
        "lastRotation": _ending_data(status.last_rotation),
        "privateKeys": inventory_data(status.keys, status.at_ms),
        "unlistedRoots": list(status.unlisted_roots),
        "notes": list(status.notes),
        "obstacles": [one.text for one in status.obstacles],
        "storeClockAheadMs": status.store_ahead_ms,
        "stores": regions,
        "nodes": [server_data(server) for server in status.servers],
    }


def status_lines(view: View, status: ClusterStatus, out: Output, *, hidden: Sequence[str] = ()) -> list[str | Marked]:
    """Return the status of a cluster as lines.

    Args:
        view: The view of `status`.
        status: The status.
        out: Where the lines are written.
        hidden: URLs of servers that are not shown, because they are restarted by hand.
    """
    document, now_ms = status.document, view.at_ms
    lines: list[str | Marked] = [verdict_line(view.state, view.sentence, out)]
    expires_ms = document.current.session.expiration_ms
    ends = "expired" if expires_ms < now_ms else "expires"
    signing = "" if view.rotation is None else f" signs on {view.signing} of {len(view.servers)} servers,"
    lines.append(_fact("root", f"{shorten_id(document.current.id)}{signing} {ends} {_when(expires_ms, now_ms)}"))
    if document.anchor is not None:
        signs = "; it signs itself (direct mode)" if document.is_direct else ""
        lines.append(_fact("anchor", f"{shorten_id(document.anchor)}, key in an HSM or a KMS{signs}"))
    lines += _rotation_lines(view) if view.rotation is not None else _due_lines(view)
    lines.append(_fact("last change", _describe_last_change(view)))
    lines.append(_fact("store", f"{status.store}, version {status.version}, generation {document.generation}"))
    if view.servers:
        lines += ["", *_server_lines(view, out)]
    if hidden:
        lines.append(
            f"not shown, because they are restarted by hand: {' '.join(hidden)} (`goatherd doctor` checks them)"
        )
    if status.regions:
        from goatherd.cli.text.stores import regions_lines

        lines += ["", *regions_lines(status.regions, out)]
    if view.remarks:
        lines.append("")
    for one in view.remarks:
        lines.append(Marked("finding: ", _COLOURS[State.DEGRADED], one.text))
        lines += [f"         -> {one.advice}"] if one.advice else []
    return [*lines, "", f"next: {_describe_next(view, status)}"]


def verdict_line(state: State, sentence: str, out: Output) -> Marked:
    """Return the first line: the verdict, on a terminal with its sign and colour, and a sentence about the cluster."""
    sign = f"{SIGNS[state]} " if out.is_terminal else ""
    return Marked(f"{sign}{state.value}", _COLOURS[state], f": {sentence}")


def versions_lines(status: ClusterStatus, out: Output) -> list[str]:
    """Return the labels, and the table of the stored versions with the private keys in each."""
    labels = ", ".join(f"{format_label(label)}{_ARROW}{status.labels[label]}" for label in sorted(status.labels))
    rest = "" if status.versions else "; others are unknown, since the credentials may not list the versions"
    return [f"labels: {labels}{rest}", *inventory_lines(status.keys, out, status.at_ms)]


def unreadable_data(error: GoatherdError, servers: Sequence[NodeView]) -> dict[str, Any]:
    """Return why the store could not be read, and what the servers report, as data for ``--json``."""
    return {
        "error": {"code": error.code, "message": str(error), "hint": error.command_hint or error.hint},
        "nodes": [server_data(server) for server in servers],
    }


def unreadable_lines(error: GoatherdError, servers: Sequence[NodeView], out: Output) -> list[str | Marked]:
    """Return why the store could not be read, and what the servers report, as lines."""
    rows = []
    for one in servers:
        state = (State.DEGRADED if one.reachable else State.FAILED), "answers" if one.reachable else "unreachable"
        age = "-" if one.report.view_age is None else format_age(milliseconds(one.report.view_age))
        signs = shorten_id(one.signs_with) if one.signs_with else "?"
        rows.append((state, (clean_text(one.url), state[1], signs, age, clean_text(describe_problems(one, set())))))
    advice = error.command_hint or error.hint or "Make the store readable, then run `goatherd status` again."
    return [
        verdict_line(State.FAILED, f"The store could not be read: {clean_text(str(error))} [{error.code}]", out),
        "",
        *_marked_table(("SERVER", "STATE", "SIGNS WITH", "LAST READ", ""), rows, out),
        "",
        f"next: {advice}",
    ]


def _fact(name: str, text: str) -> str:
    return f"{name:<13}{text}"


def _when(ms: int, now_ms: int) -> str:
    return f"{format_age(now_ms - ms)} ({format_utc(ms)})"


def _due_lines(view: View) -> list[str]:
    due = view.next_step
    if due is None:
        return []
    if due.at_ms is None:
        return [_fact("rotation", f"none is scheduled: {due.why}")]
    minutes = f", in the minutes of {due.cron}" if due.cron else ""
    return [_fact("rotation", f"due {_when(due.at_ms, view.at_ms)}{minutes}")]


def _rotation_lines(view: View) -> list[str]:
    it = view.rotation
    assert it is not None
    by = f" by {it.started_by}" if it.started_by else ""
    lines = [
        _fact(
            "rotation",
            f"{shorten_id(it.from_id)}{_ARROW}{shorten_id(it.to_id)}, started {_when(it.started_ms, view.at_ms)}{by}",
        ),
        _fact("phase", f"{it.phase} since {_when(it.since_ms, view.at_ms)}"),
    ]
    if it.until_ms is not None:
        lines[-1] += f", deadline {format_age(view.at_ms - it.until_ms)}"
    return lines + [_fact("waiting for", one) for one in it.waiting_for]


def _describe_last_change(view: View) -> str:
    if not view.history:
        return "none is recorded"
    last = view.history[0]
    roots = _ARROW.join(shorten_id(one) for one in (last.from_id, last.to_id) if one)
    by = f", by {last.started_by}" if last.started_by else ""
    reason = f": {last.reason}" if last.reason else ""
    return f"{last.event} {roots} {_when(last.at_ms, view.at_ms)}{by}{reason}"


def _server_lines(view: View, out: Output) -> list[str | Marked]:
    regional = any(one.region for one in view.servers)
    heads = ("SERVER", "STATE", "SIGNS WITH", "LAST READ", *(("REGION", "STORE READ") if regional else ()), "")
    rows = []
    for one in sorted(view.servers, key=lambda row: row.region) if regional else view.servers:
        state = _describe_server(one)
        signs = shorten_id(one.signs_with) if one.signs_with else "?"
        age = "-" if one.read_age_ms is None else format_age(one.read_age_ms)
        regions = (one.region or "?", one.store_region or "?") if regional else ()
        kind = "" if one.kind == "Goatherd server" else one.kind
        note = "; ".join(filter(None, (kind, one.problem)))
        rows.append((state, (one.url, state[1], signs, age, *regions, note)))
    return _marked_table(heads, rows, out)


def _describe_server(one: ServerRow) -> tuple[State, str]:
    """Return the verdict on one server, and a word for its state."""
    if one.reachable is Fact.NO:
        return State.FAILED, "unreachable"
    if one.trusts_current is Fact.NO:
        return State.FAILED, "rejects the root"
    if one.signs in ("other", "next"):
        return State.FAILED, "other root"
    if one.signs == "previous":
        return State.ROTATING, "previous root"
    if one.problem:
        return State.DEGRADED, "degraded"
    if one.is_behind:
        return State.ROTATING, "behind"
    return State.WELL, "well"


def _marked_table(
    heads: Sequence[str], rows: Sequence[tuple[tuple[State, str], Sequence[str]]], out: Output
) -> list[str | Marked]:
    """Return a table whose rows begin with a coloured sign, if results go to a terminal."""
    head, *lines = out.table(heads, [cells for _, cells in rows])
    if not out.is_terminal:
        return [head, *lines]
    marked = [
        Marked(f"{SIGNS[state]} ", _COLOURS[state], line) for ((state, _), _), line in zip(rows, lines, strict=True)
    ]
    return [f"  {head}", *marked]


def _describe_next(view: View, status: ClusterStatus) -> str:
    """Return what the operator should do now, as a sentence."""
    if view.advice:
        return view.advice
    advice = next((one.advice for one in view.remarks if one.advice), "")
    if advice:
        return advice
    if view.remarks:
        return "Run `goatherd doctor`, which checks each part and states what to do."
    due = status.keys.holdings_due(status.at_ms)
    if due:
        verb = "destroys" if status.keys.copies is None else "gives up"
        return f"`goatherd retire` {verb} {describe_count(len(due), 'version')} with replaced private keys."
    return "nothing to do"


def _progress_data(progress: PhaseProgress | None) -> dict[str, Any] | None:
    """Return the phase of a rotation in progress and what it waits for, as data for ``--json``."""
    if progress is None:
        return None
    return {
        "phase": progress.phase.value,
        "since": iso(progress.since_ms),
        "until": iso(progress.until_ms),
        "waitingFor": list(progress.waiting_for),
    }


def _ending_data(entry: HistoryEntry | None) -> dict[str, Any] | None:
    """Return how the last rotation ended, as data for ``--json``."""
    if entry is None:
        return None
    return {
        "event": entry.event,
        "at": iso(entry.at),
        "from": entry.from_id,
        "to": entry.to_id,
        "reason": entry.reason,
        "startedBy": entry.started_by or None,
    }
