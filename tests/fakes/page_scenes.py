"""States of a cluster that the page must show well: steady, each phase, a roll-back, a stolen root, hostile names.

Each is a `ClusterStatus` made from documents that went through the real transitions; only the servers' answers and the
store are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo

from goatherd.cluster.node import NodeView
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.identity.document import HistoryEntry, IdentityDocument, Phase
from goatherd.identity.key_retirement import RetirementRule
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import (
    activate_rotation,
    create_document,
    finalize_rotation,
    prepare_rotation,
    revoke_root,
    roll_back_rotation,
    with_phase,
)
from goatherd.key_inventory import Holding, KeyInventory
from goatherd.operations.status import ClusterStatus, decide_next_rotation, find_last_rotation
from goatherd.operations.stores import RegionState
from goatherd.providers.base import Guarantees, ReadConsistency
from goatherd.providers.values import CURRENT, STABLE, SecretVersion, VersionId
from goatherd.rotation.machine import PhaseProgress
from goatherd.rotation.obstacles import Obstacle, ObstacleKind
from goatherd.schedule.due import Schedule
from goatherd.stores.comparison import Standing
from goatherd.web.view import CallsView, RecordRow, TrailView, View, make_view
from tests.unit.goats import root

DAY: Final = 86_400_000
NOW: Final = 1_795_651_200_000
GUARANTEES: Final = Guarantees(cas=True, read_consistency=ReadConsistency.STRONG)
SCHEDULE: Final = Schedule(
    controller="controller-1",
    cron="* 1-4 * * SAT,SUN",
    zone=ZoneInfo("Europe/Berlin"),
)
A, B, C = "ak96ho8j3vlpxnmo174j60wg", "x7uubah0djw3zvbf3h05t6me", "pvg4u9eo5kjm3hx9l4orzb0r"
ANCHOR: Final = "awskms://eu-west-1/alias/goatdb-anchor"
HOSTILE: Final = "<script>alert(1)</script> \u202eevil\u202c \"'><img src=x onerror=alert(2)> " + "long name " * 30


def session(name: str) -> OwnedSession:
    """Return a root whose id is `name`, valid for 150 days from `NOW`."""
    return root(name, expiration_ms=NOW + 150 * DAY)


@cache
def steady() -> IdentityDocument:
    """Root A was replaced by B twelve days ago."""
    return finalize_rotation(verified(NOW - 12 * DAY), NOW - 12 * DAY + 80_000)


@cache
def prepared(at_ms: int = NOW - 20_000) -> IdentityDocument:
    first = create_document(session(A), NOW - 30 * DAY)
    return prepare_rotation(
        first, session(B), now_ms=at_ms, rotation_id="rotation1", started_by="ops@host1:4711", stable_version="1"
    )


@cache
def published(at_ms: int = NOW - 20_000) -> IdentityDocument:
    return with_phase(prepared(at_ms), Phase.PUBLISHED, at_ms + 2000)


@cache
def activated(at_ms: int = NOW - 20_000) -> IdentityDocument:
    return activate_rotation(published(at_ms), at_ms + 5000)


@cache
def verified(at_ms: int = NOW - 20_000) -> IdentityDocument:
    return with_phase(activated(at_ms), Phase.VERIFIED, at_ms + 8000)


def rolled_back() -> IdentityDocument:
    stable = create_document(session(A), NOW - 30 * DAY)
    at_ms = NOW - 3_600_000
    return roll_back_rotation(
        activated(at_ms), stable, at_ms + 300_000, reason="http://10.0.0.3:8080 does not sign with the next root"
    )


def revoked() -> IdentityDocument:
    at_ms = NOW - 2 * DAY
    return revoke_root(steady(), A, at_ms, reason="laptop stolen")


def with_history(document: IdentityDocument, count: int) -> IdentityDocument:
    """Return a document whose history has `count` events; too many for a real one."""
    events = ("rotated", "cancelled", "rolled-back", "retired")
    entries = [
        HistoryEntry(
            at=NOW - (count - number) * 3_600_000,
            event=events[number % 4],
            from_id=A,
            to_id=B,
            reason="a server did not answer" if number % 4 in (1, 2) else None,
            rotation_id=f"r{number}",
        )
        for number in range(count)
    ]
    return replace(document, history=tuple(entries))


def server(document: IdentityDocument, number: int, **more: object) -> NodeView:
    """Return a Goatherd server that follows the document; `more` replaces fields of the view."""
    record = document.rotation
    is_early = document.next is not None
    view = NodeView(
        url=f"http://10.0.{number // 250}.{number % 250 + 1}:8080",
        reachable=True,
        report=ServerIdentity(
            generation=document.generation,
            phase="steady" if record is None else record.phase.value,
            view_age=timedelta(seconds=4 + number % 20),
            view_interval=timedelta(seconds=30),
            version="0.1.0",
        ),
        trusts_current=True,
        generation=document.generation,
        clock_ahead_ms=number % 7 * 10,
        trusts_next=True if is_early else None,
        holds_introduction=True if is_early else None,
        holds_cross_signature=None if record is None or is_early else True,
        signs_with=document.current.id,
    )
    return replace(view, **more)  # type: ignore[arg-type]


def away(document: IdentityDocument, number: int) -> NodeView:
    """Return a server that does not answer."""
    url = server(document, number).url
    return NodeView(url=url, reachable=False, problem=f"GET {url}/goatherd/v1/identity: connection refused")


def status(
    document: IdentityDocument,
    servers: Sequence[NodeView],
    *,
    waiting_for: Sequence[str] = (),
    obstacles: Sequence[Obstacle] = (),
    notes: Sequence[str] = (),
    store: str = "file:///srv/keys/root",
) -> ClusterStatus:
    """Return the status of a cluster with this document in its store."""
    record = document.rotation
    labels = {CURRENT: VersionId("3"), STABLE: VersionId("2" if record else "3")}
    named = [("3", document.current.id), ("2", A), ("1", A)]
    versions = tuple(
        SecretVersion(
            id=VersionId(name),
            labels=frozenset(label for label, version in labels.items() if version == name),
            created_ms=NOW - 12 * DAY,
        )
        for name, _ in named
    )
    holdings = tuple(
        Holding(version=version, private_ids=frozenset({held}), retired_ms=NOW - 12 * DAY)
        for version, (_, held) in zip(versions, named, strict=True)
    )
    keys = KeyInventory(
        holdings=holdings,
        rule=RetirementRule(
            signing=frozenset({document.current.id}),
            in_use=frozenset(one.id for one in versions if one.labels & {CURRENT, STABLE}),
            cancelled=frozenset(),
            grace=timedelta(days=30),
        ),
        roots=tuple(one.id for one in document.roots),
        recorded=document.retired_ids,
        unretired=(),
        copies=None,
    )
    progress = None
    if record is not None and servers:
        progress = PhaseProgress(
            phase=record.phase,
            since_ms=record.phase_at,
            until_ms=record.phase_at + 300_000,
            waiting_for=tuple(waiting_for),
        )
    return ClusterStatus(
        store=store,
        version=VersionId("3"),
        labels=labels,
        document=document,
        keys=keys,
        last_rotation=find_last_rotation(document),
        servers=tuple(servers),
        obstacles=tuple(obstacles),
        progress=progress,
        notes=tuple(notes),
        store_ahead_ms=None,
        at_ms=NOW,
        written_ms=NOW - 12 * DAY,
        versions=versions,
    )


def herd(document: IdentityDocument, count: int = 5) -> list[NodeView]:
    """Return servers that all follow the document."""
    return [server(document, number) for number in range(count)]


def phase_status(phase: Phase) -> ClusterStatus:
    """Return a cluster of five servers in a phase of a rotation, in which the last server has not followed yet."""
    document = {"prepared": prepared, "published": published, "activated": activated, "verified": verified}[phase]()
    late: dict[Phase, dict[str, object]] = {
        Phase.PREPARED: {"trusts_next": False, "holds_introduction": False},
        Phase.PUBLISHED: {"trusts_next": None, "holds_introduction": None},
        Phase.ACTIVATED: {"signs_with": A},
        Phase.VERIFIED: {"holds_cross_signature": False},
    }
    servers = [*herd(document, 4), server(document, 4, **late[phase])]
    waits = {
        Phase.PREPARED: "answers a request signed by the next root",
        Phase.PUBLISHED: "holds the introduction of the next root",
        Phase.ACTIVATED: "signs with the next root",
        Phase.VERIFIED: "holds the cross-signature",
    }[phase]
    return status(document, servers, waiting_for=[f"{servers[4].url}: {waits}"])


def scenes() -> dict[str, ClusterStatus]:
    """Return every scene by its name."""
    now = steady()
    silent = server(now, 3, is_unmodified=True, signs_with=None, generation=None, report=ServerIdentity())
    last = server(now, 4)
    behind = replace(last, generation=now.generation - 1, report=replace(last.report, version=None))
    refused = Obstacle(
        kind=ObstacleKind.UNREACHABLE,
        text="http://10.0.0.5:8080 did not answer (connection refused)",
        hint="Start the server, or remove it from the list if it no longer exists.",
        nodes=("http://10.0.0.5:8080",),
    )
    found = {
        "steady": status(now, herd(now)),
        "unmodified": status(now, [*herd(now, 3), silent, behind]),
        "server-away": status(now, [*herd(now, 4), away(now, 4)], obstacles=[refused]),
        "rolled-back": status(rolled_back(), herd(rolled_back())),
        "revoked": status(revoked(), herd(revoked()), notes=["root is revoked, but that is not finished"]),
        "no-servers": status(now, []),
        "crowd": status(now, herd(now, 200)),
        "long-history": status(with_history(now, 500), herd(now)),
        "hostile": status(
            replace(now, history=(*now.history, HistoryEntry(at=NOW - 1000, event=HOSTILE[:40], reason=HOSTILE))),
            [server(now, 0, url=f"http://{HOSTILE}", problem=HOSTILE), server(now, 1, signs_with=HOSTILE)],
            notes=[HOSTILE],
            store=HOSTILE,
        ),
    }
    regional = [
        server(now, at, report=replace(server(now, at).report, region=region, store_region="eu-west-1"))
        for at, region in enumerate(("eu-west-1", "eu-west-1", "us-east-1", "us-east-1"))
    ]
    held = {CURRENT: VersionId("3"), STABLE: VersionId("3")}
    primary = RegionState(
        region="eu-west-1",
        scheme="aws",
        is_primary=True,
        generation=now.generation,
        standing=Standing.SAME,
        labels=held,
        document=now,
    )
    follower = replace(
        primary,
        region="us-east-1",
        is_primary=False,
        generation=now.generation - 1,
        standing=Standing.BEHIND,
        lag_since_ms=NOW - 60_000,
        problem="it lags by one change",
        hint="Run `goatherd stores sync`.",
    )
    anchored = status(replace(now, anchor=A), herd(now))
    holdings = anchored.keys.holdings[:1]
    found["anchored"] = replace(anchored, keys=replace(anchored.keys, holdings=holdings, anchors=frozenset({A})))
    found["regions"] = replace(status(now, regional), regions=(primary, follower))
    return {**found, **{phase.value: phase_status(phase) for phase in list(Phase)[1:]}}


def view_of(found: ClusterStatus, *, org: str = "localhost", interval_ms: int | None = 10_000) -> View:
    """Return the view of a scene, with a schedule, an audit trail and the calls of the store."""
    trail = TrailView(
        file="audit.jsonl",
        verdict="whole",
        text="61 records",
        checked_ms=NOW - 5000,
        records=(RecordRow(seq=61, at_ms=NOW - DAY, actor="ops@host1:4711", event="run-over", text="command=rotate"),),
        starts={"rotation1": (NOW - 12 * DAY, "ops@host1:4711")},
    )
    return make_view(
        found,
        org=org,
        guarantees=GUARANTEES,
        schedule=SCHEDULE,
        decision=decide_next_rotation(found, SCHEDULE),
        trail=trail,
        calls=CallsView(calls=360, errors=0, since_ms=NOW - 3_600_000),
        interval_ms=interval_ms,
    )
