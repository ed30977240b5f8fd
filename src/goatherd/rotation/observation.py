"""The data on which `goatherd.rotation.machine.decide` decides: the store's state, the servers and the health check.

The classes hold ids, times and counts only, no keys; they do no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from goatherd.cluster.node import FlowProbe, NodeView
from goatherd.identity.document import IdentityDocument, Phase, source_digest
from goatherd.identity.key_age import roots_with_keys
from goatherd.identity.lineage import Lineage
from goatherd.identity.recorded_times import recorded_ahead_ms
from goatherd.identity.transitions import (
    CANCELLED,
    RESTORED,
    ROLLED_BACK,
    SUCCESSES,
    can_go_back,
    is_full,
    roots_to_prune,
)
from goatherd.rotation.policy import Policy, rotation_due_ms

if TYPE_CHECKING:
    from goatherd.key_inventory import Holding
    from goatherd.providers.values import SecretVersion
    from goatherd.stores.writer import FollowerView


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    """What the store holds of an identity and a rotation: ids, labels and times only, no key.

    Attributes:
        version: The version id that label ``current`` points at.
        stable: The version id that label ``stable`` points at, or None.
        phase_since_ms: When the identity document entered its phase; at the latest the time at which this run first
            read the document.
        current_expires_ms: Expiration of the current root.
        rotation_id, from_id, to_id, started_by, started_ms: Members of the rotation in progress; None if there is none.
        rollback_version: The version that holds the private key of the root being replaced, for a roll-back; None if
            there is no rotation.
        can_go_back: Whether servers would follow a roll-back (`goatherd.identity.transitions.can_go_back`).
        next_due_ms: When the next root will itself be due for rotation; None if there is no next root.
        finished: Ids of the completed rotations, as far as the document records them.
        restored: Ids of those completed rotations that restored a previous root.
        cancelled, rolled_back: Ids of the rotations that were cancelled or rolled back, as far as the document records
            them.
        unretired: Previous roots whose private keys some version may still hold, and when each stopped signing.
        root_ids: Every root that the document lists.
        leaving: Previous roots to be removed from the document, oldest first. Each is removed only when every server
            holds the commit by which the current root introduces it (`goatherd.identity.transitions`).
        is_full: Whether the document is too large for another rotation.
        clock_ahead_ms: How far the store's clock is ahead of this machine's, negative if behind; None if it is unknown.
        recorded_ahead_ms: How far the latest time that the document records is in the future, in milliseconds.
        digest: SHA-256 of the document's text, hexadecimal. It shows whether the content is the same, which a version
            id does not.
        lineage: The digests of the document's predecessors, as far as the document names them.
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
    started_ms: int = 0
    rollback_version: str | None = None
    can_go_back: bool = True
    next_due_ms: int | None = None
    finished: frozenset[str] = frozenset()
    restored: frozenset[str] = frozenset()
    cancelled: frozenset[str] = frozenset()
    rolled_back: frozenset[str] = frozenset()
    unretired: tuple[tuple[str, int], ...] = ()
    root_ids: frozenset[str] = frozenset()
    leaving: tuple[str, ...] = ()
    is_full: bool = False
    clock_ahead_ms: int | None = field(default=None, compare=False)
    recorded_ahead_ms: int = field(default=0, compare=False)
    digest: str = ""
    lineage: Lineage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    """The latest results of the operator's health checks.

    Attributes:
        failures: How many times in a row the checks have failed; 0 after a success.
        problem: The last failure, in one line; None after a success.
    """

    failures: int
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The state of the store and the servers, on which `decide` bases the next action of a rotation.

    Attributes:
        nodes: The state of each server that is listed now. Servers may join or leave between two observations.
        versions: The stored versions, and whose private keys each holds: all of them for a run that retires keys
            (`Goal.RETIRE`), and those that a rotation has written for the run that has cancelled it.
        health: Result of the health checks; None if none is configured, or none is run in this phase.
        nodes_unknown: Why the servers cannot be listed now; `nodes` are then the servers that were listed last.
        flow: Result of the check that servers synchronize, which is made if they do not report their peers; None if it
            was not made.
        are_nodes_discovered: Whether the servers were discovered, rather than listed one by one.
        followers: The stores of other regions that copy the primary store; empty with a single store.
        anchor_problem: Why the anchor's signer cannot sign now, and what to do about it; None if it can, or if it was
            not asked.
        direct_key: Fingerprint of the key with which every server must be able to sign before the rotation; None if
            the rotation does not lead into direct mode.
    """

    store: StoreView
    nodes: tuple[NodeView, ...] = ()
    versions: tuple[Holding, ...] = ()
    health: HealthView | None = None
    nodes_unknown: str | None = None
    flow: FlowProbe | None = None
    are_nodes_discovered: bool = False
    anchor_problem: tuple[str, str] | None = None
    direct_key: str | None = None
    followers: tuple[FollowerView, ...] = ()

    @property
    def holding(self) -> tuple[FollowerView, ...]:
        """The stores of other regions that do not yet show what the primary store holds, so that changes must wait."""
        return tuple(one for one in self.followers if one.is_holding)


def make_store_view(
    document: IdentityDocument,
    version: SecretVersion,
    stable: str | None,
    policy: Policy,
    *,
    seen_ms: int,
    clock_ahead_ms: int | None,
    is_renewal: bool = False,
) -> StoreView:
    """Return the `StoreView` of an identity document: what the store holds, as the rules of a rotation need it.

    Args:
        document: The identity document that label ``current`` points at.
        version: The stored version that holds the document.
        stable: The version that label ``stable`` points at. Read in phase steady only, and None in all others.
        policy: The rotation's policy, from which follows when the next root will itself be due.
        seen_ms: When this run first read this version, in milliseconds since 1970; times recorded in it cannot be
            later.
        clock_ahead_ms: How far the store's clock is ahead of this machine's; None if it is unknown.
        is_renewal: Whether the rotation that is to begin keeps the anchor of an identity that has one.
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
        rolled_back=frozenset(
            one.rotation_id for one in document.history if one.event == ROLLED_BACK and one.rotation_id
        ),
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
        is_too_large = is_full(document, is_renewal=is_renewal)
        return replace(view, leaving=roots_to_prune(document, is_renewal=is_renewal), is_full=is_too_large)
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
        started_ms=record.started_at,
        rollback_version=record.stable_version,
        can_go_back=can_go_back(document),
        next_due_ms=next_due_ms,
    )
