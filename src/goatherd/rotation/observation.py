"""Everything that `goatherd.rotation.machine.decide` knows: the store, its versions, the servers and the health check.

Pure data: ids, times and counts, no keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from goatherd.cluster.node import FlowProbe, NodeView
from goatherd.identity.document import IdentityDocument, Phase, source_digest
from goatherd.identity.key_age import roots_with_keys
from goatherd.identity.lineage import Lineage
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.identity.transitions import CANCELLED, RESTORED, SUCCESSES, is_full, roots_to_prune
from goatherd.rotation.policy import Policy, rotation_due_ms
from goatherd.times import iso

if TYPE_CHECKING:
    from goatherd.providers.values import SecretVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    """The document and the labels in the store; ids and times only, no key.

    Attributes:
        version: The version id that label ``current`` points at.
        stable: The version id that label ``stable`` points at, or None.
        phase_since_ms: When the document was last written, and so entered its phase; at the latest when this run first
            read it.
        current_expires_ms: Expiration of the current root.
        rotation_id, from_id, to_id, started_by, started_at: Of the rotation in progress, else None.
        rollback_version: The version that holds the private key of the previous root (A), for a roll-back; None if
            there is no rotation.
        next_due_ms: When the next root will itself be due for rotation; None if there is no next root.
        finished: Ids of the completed rotations, as far as the document records them.
        restored: Those of them that made a previous root sign again.
        cancelled: Ids of the cancelled rotations, as far as the document records them.
        unretired: Previous roots whose private keys some version may still hold, and since when they have not signed.
        root_ids: Every root that the document lists.
        leaving: Previous roots to be removed from the document, oldest first, once every server holds their
            introduction by the current root (`goatherd.identity.transitions`).
        is_full: The document is too large for another rotation.
        clock_ahead_ms: How far the store's clock is ahead of this machine's, negative if behind; None if it is unknown.
        recorded_ahead_ms: How far the latest time that the document records is in the future.
        digest: SHA-256 of the document's text, hexadecimal, since a version id does not prove the content.
        lineage: The predecessors that the document names.
    """

    version: str
    stable: str | None
    generation: int
    phase: Phase
    phase_since_ms: int
    current_id: str
    current_expires_ms: int
    rotation_id: str | None = None
    from_id: str | None = None
    to_id: str | None = None
    started_by: str = ""
    started_at: str = ""
    rollback_version: str | None = None
    next_due_ms: int | None = None
    finished: frozenset[str] = frozenset()
    restored: frozenset[str] = frozenset()
    cancelled: frozenset[str] = frozenset()
    unretired: tuple[tuple[str, int], ...] = ()
    root_ids: frozenset[str] = frozenset()
    leaving: tuple[str, ...] = ()
    is_full: bool = False
    clock_ahead_ms: int | None = field(default=None, compare=False)
    recorded_ahead_ms: int = field(default=0, compare=False)
    digest: str = ""
    lineage: Lineage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """One stored version and the roots (session ids) whose private keys it holds.

    Read for `Goal.RETIRE`, and after a cancelled rotation for the versions of that rotation.

    Attributes:
        rotation_id: The rotation that was prepared or published in it, so that it holds the next root's private key.
        retired_ms: When the last of its keys that no longer signs was retired; the grace period counts from here.
        problem: Why its value could not be read; its keys are then unknown.
        foreign_labels: Labels on the version that are not Goatherd's own; no store destroys a version with such a
            label.
        is_leftover: Whether an interrupted change has left it, so that no record in the store names it.
        is_unknown_leftover: Whether it is a leftover whose keys cannot be known, and which the store can destroy.
    """

    version: str
    created_ms: int
    private_ids: frozenset[str]
    retired_ms: int
    rotation_id: str | None = None
    problem: str | None = None
    foreign_labels: tuple[str, ...] = ()
    is_leftover: bool = False
    is_unknown_leftover: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    """Latest results of the operator's health check.

    Attributes:
        failures: How many failures in a row; 0 after a success.
        problem: What failed last, in one line.
    """

    failures: int
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything that `decide` may know.

    Attributes:
        nodes: The servers that there are now. Servers may join or leave between two observations.
        health: Result of the health checks; None if none is configured, or none is run in this phase.
        nodes_unknown: Why the servers cannot be listed now; `nodes` are then those that were known last.
        flow: Result of the probe of servers that do not report their peers; None if there was no probe.
        are_nodes_discovered: Whether the servers were discovered, rather than listed one by one.
    """

    store: StoreView
    nodes: tuple[NodeView, ...] = ()
    versions: tuple[VersionView, ...] = ()
    health: HealthView | None = None
    nodes_unknown: str | None = None
    flow: FlowProbe | None = None
    are_nodes_discovered: bool = False


def make_store_view(
    document: IdentityDocument,
    version: SecretVersion,
    stable: str | None,
    policy: Policy,
    *,
    seen_ms: int,
    clock_ahead_ms: int | None,
) -> StoreView:
    """Return the view of `document`, which was read as `version`.

    Args:
        stable: The version that label ``stable`` points at. Read in phase steady only, and None in all others.
        seen_ms: When this run first read this version, in milliseconds since 1970; times recorded in it cannot be
            later.
        clock_ahead_ms: How far the store's clock is ahead of this machine's; None if it is unknown.
    """
    view = StoreView(
        version=version.id,
        stable=stable,
        generation=document.generation,
        phase=Phase.STEADY,
        phase_since_ms=min(seen_ms, document.last_updated or version.created_ms),
        current_id=document.current.id,
        current_expires_ms=document.current.session.expiration_ms,
        restored=frozenset(one.rotation_id for one in document.history if one.event == RESTORED and one.rotation_id),
        cancelled=frozenset(one.rotation_id for one in document.history if one.event == CANCELLED and one.rotation_id),
        finished=frozenset(one.rotation_id for one in document.history if one.event in SUCCESSES and one.rotation_id),
        unretired=roots_with_keys(document),
        root_ids=frozenset(root.id for root in document.roots),
        clock_ahead_ms=clock_ahead_ms,
        recorded_ahead_ms=recorded_ahead_ms(document, seen_ms),
        digest=source_digest(document),
        lineage=document.lineage,
    )
    record, following = document.rotation, document.next
    if record is None:
        return replace(view, leaving=roots_to_prune(document), is_full=is_full(document))
    next_due_ms = None
    if following is not None:
        # The root was generated when its rotation began.
        expires_ms = following.session.expiration_ms
        next_due_ms = rotation_due_ms(issued_ms=record.started_at, expires_ms=expires_ms, policy=policy)
    return replace(
        view,
        phase=record.phase,
        phase_since_ms=min(seen_ms, record.phase_at),
        rotation_id=record.id,
        from_id=record.from_id,
        to_id=record.to_id,
        started_by=record.started_by,
        started_at=iso(record.started_at),
        rollback_version=record.stable_version,
        next_due_ms=next_due_ms,
    )
