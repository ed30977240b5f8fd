"""Build the data of the status page from the status of a cluster, its schedule and its audit trail. Pure.

A `View` holds ids, times and texts only: no key, no session, nothing that opens a store. It is plain data, so that it
can be sent to the process that serves the page (`goatherd.web.publisher`), and the templates format it.

Rules:
1. Every fact comes from `goatherd.operations.status.ClusterStatus`, on which ``goatherd status`` is based too
   (tests/unit/web/test_view.py).
2. A fact that is not known is `Fact.UNKNOWN`, never `Fact.NO`.
3. Text from servers and stores is shown with unprintable characters escaped, and anything that could be a key hidden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from goatherd.cluster.node import NodeView
from goatherd.cluster.server_problems import describe_problems
from goatherd.crypto import fingerprint
from goatherd.identity.document import HistoryEntry, IdentityDocument, Phase
from goatherd.identity.key_age import REPLACE_EXPIRED, Urgency, assess_urgency
from goatherd.identity.root_names import shorten_id
from goatherd.identity.transitions import BEGINNINGS, REVOKED, signing_since_ms
from goatherd.key_inventory import KeyInventory
from goatherd.operations.status import ClusterStatus
from goatherd.providers.base import Guarantees, ReadConsistency
from goatherd.providers.values import format_label
from goatherd.rotation.obstacles import WENT_BACK, ObstacleKind
from goatherd.schedule.due import Act, DueDecision, Schedule
from goatherd.telemetry import hide_key_material

PHASES: Final = (Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED)
_FEW: Final = 3


class Fact(StrEnum):
    """The answer to a yes-or-no question about a server."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    NONE = "none"
    """The question was not asked, because it does not apply now."""


class State(StrEnum):
    """The verdict on the cluster, in one word that `goatherd status` and the page show."""

    WELL = "well"
    ROTATING = "rotating"
    """A rotation is in progress, without a problem."""
    DEGRADED = "degraded"
    """The cluster serves, and something needs the operator's attention."""
    FAILED = "failed"
    UNKNOWN = "unknown"
    """No server is listed, so nothing is known of the servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A sentence about the cluster, advice on what to do, and the time of the event (milliseconds since 1970)."""

    text: str
    advice: str = ""
    at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """When the next rotation is due according to the schedule.

    Attributes:
        at_ms: When the rotation may begin, in milliseconds since 1970; None if it never begins.
        why: The reason.
        cron: The cron expression of the minutes in which a rotation may begin, with its time zone; empty for any.
    """

    at_ms: int | None
    why: str
    cron: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationView:
    """The rotation in progress. Times are milliseconds since 1970.

    Attributes:
        phases: Every phase with its state: ``done``, ``current`` or ``ahead``.
        waiting_for: What the rotation still waits for at the servers; empty if the next step can be taken.
        until_ms: The deadline of the current phase; None without servers.
        at_deadline: What the rotation does at the deadline.
    """

    id: str
    from_id: str
    to_id: str
    started_ms: int
    started_by: str
    is_restore: bool
    phase: str
    phases: tuple[tuple[str, str], ...]
    since_ms: int
    until_ms: int | None
    waiting_for: tuple[str, ...]
    at_deadline: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow:
    """One server of the cluster and its state. Durations are in milliseconds.

    Attributes:
        signs: The root with which the server signs: ``current``, ``next``, ``previous``, ``other`` or ``unknown``.
        is_behind: Whether the server uses an older generation of the identity than the store holds.
        read_age_ms: How long ago the server last read the store.
        kind: Whether this is a Goatherd server or an unmodified GoatDB server.
        problem: What is wrong with the server; empty if nothing is.
        region: The server's region, as the server reports it; empty with a single store.
        store_region: The region whose store the server read last; empty if it reports none.
        version: Version of Goatherd, of the server or of its agent; None if unknown, empty if neither is Goatherd.
    """

    url: str
    reachable: Fact
    trusts_current: Fact
    trusts_next: Fact
    introduction: Fact
    cross_signature: Fact
    signs_with: str | None
    signs: str
    generation: int | None
    is_behind: bool
    phase: str | None
    read_age_ms: int | None
    clock_ahead_ms: int | None
    kind: str
    problem: str
    region: str = ""
    store_region: str = ""
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPlace:
    """A stored version that holds the private key of a root; `due_ms` is when `goatherd retire` may destroy it."""

    version: str
    labels: tuple[str, ...]
    due_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RootRow:
    """One root of the identity. Times are milliseconds since 1970.

    Attributes:
        state: ``signs``, ``expired`` (the current root, past its expiration), ``next``, ``anchor``, ``trusted`` or
            ``revoked``.
        since_ms: When the root began to sign; None if unknown or if it has not signed.
        introduced_by: Ids of the roots that have endorsed this root, or that name it in the proof of their revocation.
        places: The stored versions that hold the root's private key.
        absence: Why no stored version holds the private key; empty if one does.
    """

    id: str
    fingerprint: str
    state: str
    since_ms: int | None
    expires_ms: int
    introduced_by: tuple[str, ...]
    places: tuple[KeyPlace, ...]
    absence: str
    revoked_ms: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsView:
    """How many calls to a store were made, and failed, in the last hour or since a later start of the process."""

    calls: int
    errors: int
    since_ms: int
    last_error: str = ""
    last_error_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRow:
    """One store: its guarantees, such as compare-and-swap, and the versions at which its labels point.

    Attributes:
        written_ms: When the store's current version was written, in milliseconds since 1970; None if unknown.
        versions: How many versions are not destroyed; None if unknown.
        region, role: The store's region, and whether it is the primary store or a follower; empty for a single store.
        generation: The generation of the identity in the store; None if unknown.
        lag_since_ms: When the oldest change that the store lacks was written; None if it lacks none, or if unknown.
    """

    name: str
    labels: tuple[tuple[str, str], ...]
    problem: str
    written_ms: int | None = None
    versions: int | None = None
    promises: tuple[str, ...] = ()
    clock_ahead_ms: int | None = None
    calls: CallsView | None = None
    region: str = ""
    role: str = ""
    generation: int | None = None
    lag_since_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRow:
    """One event in the history of the identity. Times are milliseconds since 1970.

    Attributes:
        anchor: The fragment of a link to this event.
        outcome: ``good``, ``bad`` or ``neutral``.
        started_ms: Start of the rotation; known only from an audit trail.
        started_by: Who started the rotation or, if there is an audit trail, who revoked the root.
    """

    anchor: str
    at_ms: int
    event: str
    outcome: str
    from_id: str | None
    to_id: str | None
    reason: str
    rotation_id: str | None
    started_ms: int | None = None
    started_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRow:
    """One record of the audit trail, as the page shows it."""

    seq: int
    at_ms: int
    actor: str
    event: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailView:
    """The audit trail: whether it is unaltered, and its newest records, newest first.

    Attributes:
        verdict: ``whole``, ``broken`` or ``unreadable``.
        starts: For each rotation that the trail records, when it started (milliseconds since 1970), and who started it;
            for each revoked root, who revoked it.
    """

    file: str
    verdict: str
    text: str
    checked_ms: int
    records: tuple[RecordRow, ...] = ()
    starts: Mapping[str, tuple[int | None, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All data that the status page shows.

    Attributes:
        at_ms: When the servers and the store were read, in milliseconds since 1970.
        interval_ms: Time between two readings in milliseconds; None if there is only one.
        sentence: A sentence about the state of the cluster.
        advice: What to do; empty if nothing is to be done.
        next_step: The next rotation; None while one is in progress, or without a schedule.
        remarks: What else the operator should know.
        signer: Id of the current root; empty if the store was never read.
        signing: The number of servers that sign with the current root.
    """

    org: str
    store: str
    at_ms: int
    interval_ms: int | None = None
    state: State
    sentence: str
    advice: str = ""
    signer: str = ""
    signing: int = 0
    generation: int = 0
    next_step: NextStep | None = None
    remarks: tuple[Remark, ...] = ()
    rotation: RotationView | None = None
    servers: tuple[ServerRow, ...] = ()
    roots: tuple[RootRow, ...] = ()
    pruned_roots: int = 0
    stores: tuple[StoreRow, ...] = ()
    history: tuple[HistoryRow, ...] = ()
    trail: TrailView | None = None


def make_view(
    status: ClusterStatus,
    *,
    org: str,
    guarantees: Guarantees,
    schedule: Schedule | None = None,
    decision: DueDecision | None = None,
    trail: TrailView | None = None,
    calls: CallsView | None = None,
    remarks: Sequence[Remark] = (),
    interval_ms: int | None = None,
) -> View:
    """Return the data that the status page shows about a cluster.

    Args:
        status: The state of the store, the identity and the servers.
        org: The organization.
        guarantees: What the store promises.
        schedule: When to rotate; None if that is not configured.
        decision: When the next rotation is due by that schedule.
        trail: The audit trail; None if none is configured.
        calls: How many calls to the store were made, and failed; None if they are not counted.
        remarks: Remarks about the process that makes the view, such as excess rights of its credentials.
        interval_ms: Time between two readings, in milliseconds.
    """
    document, now_ms = status.document, status.at_ms
    servers = tuple(_server_row(one, document) for one in status.servers)
    signing = sum(one.signs == "current" for one in servers)
    state, sentence, advice = _summarize_state(status, servers, signing)
    away = {one.url for one in servers if one.reachable is Fact.NO}
    found = [
        Remark(text=clean_text(one.text), advice=clean_text(one.hint))
        for one in status.obstacles
        if one.text not in sentence
        and not (document.rotation is None and one.kind is ObstacleKind.EXPIRED)
        # The sentence, what the rotation waits for, and the server's row say so already.
        and not (one.kind is ObstacleKind.UNREACHABLE and one.nodes and away.issuperset(one.nodes))
    ]
    last = status.last_rotation
    if document.rotation is None and last is not None and last.event in ("rolled-back", "cancelled"):
        advice = "Remove the cause, then run `goatherd rotate`."
        found.append(Remark(text=_describe_failure(last), advice=advice, at_ms=last.at))
    if trail is not None and trail.verdict != "whole":
        text = f"The audit trail {clean_text(trail.file)} is {trail.verdict}: {trail.text}"
        found.append(Remark(text=text, advice=f"Run `goatherd audit verify {clean_text(trail.file)}`."))
    stated = [one.text for one in status.obstacles]
    found += [Remark(text=clean_text(note)) for note in status.notes if not any(note in text for text in stated)]
    found += [
        Remark(
            text=f"The store of region {clean_text(one.region)} is not in step: {clean_text(one.problem)}",
            advice=clean_text(one.hint),
        )
        for one in status.regions
        if one.problem is not None
    ]
    is_overdue = assess_urgency(document, now_ms) in (Urgency.SOON, Urgency.URGENT)
    if is_overdue and state is State.WELL:
        advice = "Run `goatherd rotate`."
    if state is State.WELL and (found or is_overdue):
        state = State.DEGRADED
    return View(
        org=clean_text(org),
        store=clean_text(status.store),
        at_ms=now_ms,
        interval_ms=interval_ms,
        state=state,
        sentence=sentence,
        advice=advice,
        signer=document.current.id,
        signing=signing,
        generation=document.generation,
        next_step=None if document.rotation is not None else _next_step(schedule, decision),
        remarks=(*found, *remarks),
        rotation=_rotation_view(status),
        servers=servers,
        roots=_root_rows(document, status.keys, now_ms),
        pruned_roots=document.pruned,
        stores=_region_rows(status, calls) or (_store_row(status, guarantees, calls),),
        history=history_rows(document, trail),
        trail=trail,
    )


# --- the sentence -----------------------------------------------------------------------------------------------------


def _summarize_state(status: ClusterStatus, servers: Sequence[ServerRow], signing: int) -> tuple[State, str, str]:
    """Return the state of the cluster, a sentence about this state, and advice on what to do."""
    document = status.document
    root = f"Root {shorten_id(document.current.id)}"
    went_back = [one for one in status.obstacles if one.kind in WENT_BACK]
    if went_back:
        sentence = f"The store holds an older or a different identity than before: {clean_text(went_back[0].text)}."
        return State.FAILED, sentence, clean_text(went_back[0].hint)
    if assess_urgency(document, status.at_ms) is Urgency.EXPIRED:
        return State.FAILED, f"{root} has expired, and no new client is accepted.", f"Run `{REPLACE_EXPIRED}`."
    away = [one.url for one in servers if one.reachable is Fact.NO]
    if document.rotation is not None:
        return _summarize_rotation(status, away)
    if not servers:
        sentence = f"{root} is the current root. No server is listed, so it is not known which root signs."
        return State.UNKNOWN, sentence, "Give --node URL for each server."
    if away:
        sentence = f"{root} signs on {signing} of {len(servers)} servers; {_join_urls(away)} did not answer."
        return State.FAILED, sentence, "Start the server, or remove it from the list of servers."
    others = [one.url for one in servers if one.signs in ("other", "next") or one.trusts_current is Fact.NO]
    if others:
        verb = "does not follow" if len(others) == 1 else "do not follow"
        return (
            State.FAILED,
            f"{root} signs on {signing} of {len(servers)} servers; {_join_urls(others)} {verb} the current root.",
            "Run `goatherd doctor`, which names the cause.",
        )
    silent = [one for one in servers if one.signs == "unknown"]
    if silent:
        rest = "1 does not report its root" if len(silent) == 1 else f"{len(silent)} do not report their root"
        return State.WELL, f"{root} signs on {signing} of {len(servers)} servers; {rest}.", ""
    return State.WELL, f"{root} signs on {signing} of {len(servers)} servers.", ""


def _summarize_rotation(status: ClusterStatus, away: Sequence[str]) -> tuple[State, str, str]:
    record, progress = status.document.rotation, status.progress
    assert record is not None
    what = "Restore" if record.is_restore else "Rotation"
    sentence = f"{what} from {shorten_id(record.from_id)} to {shorten_id(record.to_id)}: {record.phase.value}"
    end = "cancel" if record.phase in (Phase.PREPARED, Phase.PUBLISHED) else "rollback"
    advice = (
        f"If {clean_text(record.started_by) or 'the process that drives it'} has ended, run `goatherd rotate --resume`,"
        f" or `goatherd rotate --{end}` to end the rotation."
    )
    if away:
        return State.DEGRADED, f"{sentence}; {_join_urls(away)} did not answer.", advice
    if progress is None:
        return State.ROTATING, f"{sentence}.", advice
    if status.at_ms > progress.until_ms:
        return State.DEGRADED, f"{sentence}, and its deadline has passed.", advice
    count = len(progress.waiting_for)
    waits = "ready for the next step" if not count else f"waits for {count} condition{'s' if count > 1 else ''}"
    return State.ROTATING, f"{sentence}, {waits}.", advice


def _describe_failure(entry: HistoryEntry) -> str:
    how = "was rolled back" if entry.event == "rolled-back" else "was cancelled"
    reason = f": {clean_text(entry.reason)}" if entry.reason else ""
    return f"The last rotation {how}{reason}"


def _join_urls(urls: Sequence[str]) -> str:
    shown = list(urls[:_FEW])
    if len(urls) > _FEW:
        shown.append(f"{len(urls) - _FEW} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _next_step(schedule: Schedule | None, decision: DueDecision | None) -> NextStep | None:
    if schedule is None or decision is None:
        return None
    cron = f"{schedule.cron} ({schedule.zone.key})" if schedule.cron else ""
    at_ms = decision.at_ms if decision.act is Act.ROTATE else None
    return NextStep(at_ms=at_ms, why=clean_text(decision.why), cron=cron)


# --- the sections -----------------------------------------------------------------------------------------------------


def _rotation_view(status: ClusterStatus) -> RotationView | None:
    record, progress = status.document.rotation, status.progress
    if record is None:
        return None
    reached = PHASES.index(record.phase)
    phases = [
        (phase.value, "done" if number < reached else "current" if number == reached else "ahead")
        for number, phase in enumerate(PHASES)
    ]
    keeps, goes = shorten_id(record.from_id), shorten_id(record.to_id)
    if record.phase in (Phase.PREPARED, Phase.PUBLISHED):
        end = f"The process that drives the rotation cancels it: {keeps} keeps signing, and nothing is lost."
    else:
        end = (
            f"The process that drives the rotation rolls it back: {keeps} signs again, and {goes} stays trusted, so"
            " nothing is lost."
        )
    return RotationView(
        id=record.id,
        from_id=record.from_id,
        to_id=record.to_id,
        started_ms=record.started_at,
        started_by=clean_text(record.started_by),
        is_restore=record.is_restore,
        phase=record.phase.value,
        phases=(*phases, ("done", "ahead")),
        since_ms=record.phase_at,
        until_ms=None if progress is None else progress.until_ms,
        waiting_for=() if progress is None else tuple(clean_text(one) for one in progress.waiting_for),
        at_deadline=end,
    )


def _server_row(node: NodeView, document: IdentityDocument) -> ServerRow:
    report, record = node.report, document.rotation
    is_early = record is not None and document.next is not None
    generation = node.generation if node.generation is not None else report.generation
    read_age = None if report.is_from_file else report.view_age
    signs = "unknown"
    if node.signs_with is not None:
        is_next = document.next is not None and node.signs_with == document.next.id
        is_previous = record is not None and not is_early and node.signs_with == record.from_id
        other = "next" if is_next else "previous" if is_previous else "other"
        signs = "current" if node.signs_with == document.current.id else other
    return ServerRow(
        url=clean_text(node.url),
        reachable=Fact.YES if node.reachable else Fact.NO,
        trusts_current=_choose_fact(node.trusts_current),
        trusts_next=_choose_fact(node.trusts_next) if is_early else Fact.NONE,
        introduction=_choose_fact(node.holds_introduction) if is_early else Fact.NONE,
        cross_signature=_choose_fact(node.holds_cross_signature) if record is not None and not is_early else Fact.NONE,
        signs_with=None if node.signs_with is None else clean_text(node.signs_with),
        signs=signs,
        generation=generation,
        is_behind=generation is not None and generation < document.generation,
        phase=report.phase,
        read_age_ms=None if read_age is None else round(read_age.total_seconds() * 1000),
        clock_ahead_ms=node.clock_ahead_ms if node.reachable else None,
        kind=_describe_kind(node),
        problem=clean_text(describe_problems(node, {root.id for root in document.roots})),
        region=clean_text(node.region or ""),
        store_region=clean_text(report.store_region or ""),
        version=None if node.version is None else clean_text(node.version),
    )


def _describe_kind(node: NodeView) -> str:
    agent = node.report.agent
    if not node.reachable:
        return ""
    if not node.is_unmodified:
        return "Goatherd server with a settings.json" if node.report.is_from_file else "Goatherd server"
    if agent is None:
        return "unmodified GoatDB server"
    return f"GoatDB under an agent{', with a door' if agent.door is not None else ''}"


def _choose_fact(value: bool | None) -> Fact:
    return Fact.UNKNOWN if value is None else Fact.YES if value else Fact.NO


def _root_rows(document: IdentityDocument, keys: KeyInventory, now_ms: int) -> tuple[RootRow, ...]:
    """Return the roots: the next one first, then the current one, the anchor, and the others, newest first."""
    revoked = {one.id: one for one in document.revoked}
    rows = []
    for root in document.roots:
        is_current = root.id == document.current.id
        is_next = document.next is not None and root.id == document.next.id
        is_anchor = document.anchor is not None and root.id == document.anchor
        other = "revoked" if root.id in revoked else "anchor" if is_anchor else "trusted"
        signs = "expired" if root.is_expired(now_ms) else "signs"
        state = signs if is_current else "next" if is_next else other
        began = [entry.at for entry in document.history if entry.to_id == root.id and entry.event in BEGINNINGS]
        since_ms = signing_since_ms(document) if is_current else min(began, default=None)
        entry = revoked.get(root.id)
        endorsers = [one.by for one in document.endorsements if one.of == root.id]
        endorsers += [one.id for one in document.revoked if one.successor == root.id]
        rows.append(
            RootRow(
                id=root.id,
                fingerprint=fingerprint(root.public_key),
                state=state,
                since_ms=None if is_next else since_ms,
                expires_ms=root.expiration_ms,
                introduced_by=tuple(dict.fromkeys(endorsers)),
                places=_key_places(keys, root.id, now_ms),
                absence=_describe_absence(keys, root.id),
                revoked_ms=None if entry is None else entry.at,
                reason="" if entry is None else clean_text(entry.reason or ""),
            )
        )
    order = {"next": 0, "signs": 1, "expired": 1, "anchor": 2, "trusted": 3, "revoked": 4}
    return tuple(sorted(rows, key=lambda row: (order[row.state], -row.expires_ms)))


def _key_places(keys: KeyInventory, root_id: str, now_ms: int) -> tuple[KeyPlace, ...]:
    retirable = keys.retirable_holdings()
    return tuple(
        KeyPlace(
            version=clean_text(one.version.id),
            labels=tuple(format_label(label) for label in sorted(one.version.labels)),
            due_ms=keys.rule.due_ms(one, now_ms) if one in retirable else None,
        )
        for one in keys.holdings
        if root_id in one.private_ids
    )


def _describe_absence(keys: KeyInventory, root_id: str) -> str:
    if root_id in keys.anchors:
        return "its key is in an HSM or a KMS"
    if keys.versions_with(root_id):
        return ""
    if not keys.is_complete:
        return "unknown: not every version can be read"
    return "destroyed" if root_id in keys.recorded else "in no version"


def _store_row(status: ClusterStatus, guarantees: Guarantees, calls: CallsView | None) -> StoreRow:
    keys = status.keys
    unreadable = [one for one in keys.holdings if one.problem is not None]
    problem = f"its versions cannot be read ({keys.problem})" if keys.problem is not None else ""
    if unreadable:
        problem = "; ".join(f"version {one.version.id}: {one.problem}" for one in unreadable[:_FEW])
    return StoreRow(
        name=clean_text(status.store),
        written_ms=status.written_ms,
        labels=tuple((format_label(label), clean_text(status.labels[label])) for label in sorted(status.labels)),
        versions=len(keys.holdings) if keys.problem is None else None,
        promises=_describe_guarantees(guarantees),
        clock_ahead_ms=status.store_ahead_ms,
        problem=clean_text(problem),
        calls=calls,
        generation=status.document.generation,
    )


def _region_rows(status: ClusterStatus, calls: CallsView | None) -> tuple[StoreRow, ...]:
    """Return a row for the store of each region; empty for a single store.

    The row of the primary store has the calls to all stores.
    """
    return tuple(
        StoreRow(
            name=clean_text(one.scheme),
            labels=tuple((format_label(label), clean_text(one.labels[label])) for label in sorted(one.labels)),
            problem=clean_text(". ".join(filter(None, (one.problem, one.hint)))),
            calls=calls if one.is_primary else None,
            region=clean_text(one.region),
            role="primary" if one.is_primary else "follower",
            generation=one.generation,
            lag_since_ms=one.lag_since_ms,
        )
        for one in status.regions
    )


def _describe_guarantees(guarantees: Guarantees) -> tuple[str, ...]:
    writes = "best-effort compare-and-swap" if guarantees.best_effort_cas else "no compare-and-swap"
    reads = {
        ReadConsistency.STRONG: "strong reads",
        ReadConsistency.STRONG_BY_VERSION: "strong reads by version",
        ReadConsistency.EVENTUAL: "eventually consistent reads",
    }[guarantees.read_consistency]
    ends = "destroys versions" if guarantees.destroys else "cannot destroy a version at once"
    return (
        "compare-and-swap" if guarantees.cas else writes,
        reads,
        ends,
        *(("notifies of changes",) if guarantees.push else ()),
    )


_OUTCOMES: Final = {"rotated": "good", "restored": "good", "cancelled": "bad", "rolled-back": "bad", "revoked": "bad"}


def history_rows(document: IdentityDocument, trail: TrailView | None) -> tuple[HistoryRow, ...]:
    """Return the history of an identity, newest first.

    Args:
        document: The identity.
        trail: The audit trail, which says when each rotation started, and who revoked a root; None if there is none.
    """
    starts = {} if trail is None else trail.starts
    rows = []
    seen: Counter[int] = Counter()
    for entry in document.history:
        # Not by the place in the list, which loses its oldest entries: a link must lead to the same event later.
        seen[entry.at] += 1
        began_as = entry.from_id if entry.event == REVOKED else entry.rotation_id
        started_ms, started_by = starts.get(began_as or "", (None, entry.started_by or ""))
        rows.append(
            HistoryRow(
                anchor=f"event-{entry.at}" + (f"-{seen[entry.at]}" if seen[entry.at] > 1 else ""),
                at_ms=entry.at,
                event=clean_text(entry.event),
                outcome=_OUTCOMES.get(entry.event, "neutral"),
                from_id=entry.from_id,
                to_id=entry.to_id,
                reason=clean_text(entry.reason or ""),
                rotation_id=entry.rotation_id,
                started_ms=started_ms,
                started_by=clean_text(started_by),
            )
        )
    return tuple(reversed(rows))


def clean_text(text: str) -> str:
    """Return text from a server or store, with anything that could be a key hidden and unprintable characters escaped.

    SECURITY: an unescaped right-to-left override would reorder the text around it (tests/unit/web/test_view.py).
    """
    hidden = hide_key_material(text)
    return (
        hidden
        if hidden.isprintable()
        else "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in hidden)
    )
