"""The events that a rotation reports while it runs, and its final report.

They are data for progress views, logs and reports, with ids, times and texts only, never key material. A `Rotator`
calls its `on_event` with each event, in the order in which the events happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from goatherd.rotation.machine import Action, HealthView, Kept, NodeView, Outcome, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEntered:
    """The store was seen in this phase, for the first time in this run or anew.

    Attributes:
        at_ms: When it was seen.
        since_ms: When the document entered the phase.
        started_by, started_at: Of the rotation in progress; empty where there is none.
        is_own: Whether this run has begun that rotation; False where it resumes or leaves another run's.
    """

    phase: Phase
    generation: int
    rotation_id: str | None
    current_id: str
    next_id: str | None
    at_ms: int
    since_ms: int = 0
    started_by: str = ""
    started_at: str = ""
    is_own: bool = True

    def fields(self) -> dict[str, object]:
        """Return what a log line says of it."""
        return {
            "phase": self.phase,
            "generation": self.generation,
            "rotation": self.rotation_id,
            "current": self.current_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesSeen:
    """What the nodes were seen to do has changed."""

    nodes: tuple[NodeView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSeen:
    """What the health signal says has changed."""

    health: HealthView


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesUnknown:
    """It cannot be told who the nodes are; those that were known last are looked at."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What comes next; a `goatherd.rotation.machine.Wait` says whom the rotation is waiting for, and until when."""

    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTold:
    """A node was called.

    `heard` is False where it could not be told: it finds out by itself, or will be seen not to.
    """

    url: str
    heard: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictMet:
    """Another process wrote first; the run reads the store again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTroubled:
    """The store did not answer, or showed a past state; the rotation is patient for a while."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a run ended.

    Attributes:
        from_id, to_id: The root that signed when it began, and the new one once there was one.
        current_id: The root that signs now.
        phase: Where the document stands; anything but steady only where the run was to stop there.
        reason: Why the rotation was abandoned, if it was.
        event: How the document's history says that the rotation ended: ``rotated``, ``restored``, ``cancelled`` or
            ``rolled-back``; None where it has not ended.
        is_restore: Whether the rotation was to make an earlier root sign again.
        trusts_next: Whether servers trust the next root. A root that was cancelled before it was published is
            not.
        behind: Nodes that were not seen to sign with the current root.
        left_out: Nodes that did not answer in time, and that the declared quorum went on without.
        destroyed: Versions whose value was destroyed.
        given_up: Versions that the store was told to give up, but may hold for longer: it destroys none at once
            (`goatherd.providers.base.Guarantees`). The keys in them are not on record as destroyed.
        kept: Versions that were due to be destroyed, and stay because a label points at them that is not Goatherd's.
        undestroyed: Versions of a cancelled rotation that the store refused to destroy, each with the error's code.
            `retire` tries again.
        restarts: How often each server was seen to start again during the run, by URL. None where it was not seen which
            process serves.
        began_ms, ended_ms: Milliseconds since 1970.
    """

    outcome: Outcome
    rotation_id: str | None
    from_id: str
    to_id: str | None
    current_id: str
    phase: Phase
    generation: int
    reason: str | None = None
    event: str | None = None
    is_restore: bool = False
    trusts_next: bool = False
    behind: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    destroyed: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()
    undestroyed: tuple[str, ...] = ()
    restarts: Mapping[str, int | None] = field(default_factory=dict)
    began_ms: int
    ended_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The run is over."""

    report: Report


class RevocationStep(StrEnum):
    """What a revocation does, in this order."""

    INTRODUCED = "introduced"
    """The stolen root's key was used once more: the successor is known to clients and unmodified servers."""
    REVOKED = "revoked"
    """The identity lists the root as revoked; nodes refuse it from their next look on."""
    FROZEN = "frozen"
    """A node was seen to refuse the root; `count` is what it holds of it."""
    CLOSED = "closed"
    """The list of what the cluster held is written; `count` commits are in it."""
    INTRODUCED_AGAIN = "introduced again"
    """The successor has introduced `count` sessions, at this node."""
    SETTLED = "settled"
    """The root's word counts for no session any more."""
    DESTROYED = "destroyed"
    """A stored version with the root's private key was destroyed; `detail` names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationStepped:
    """A revocation has come further. `at_ms` is milliseconds since 1970."""

    step: RevocationStep
    revoked_id: str
    current_id: str
    at_ms: int
    generation: int
    node: str | None = None
    count: int | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredRootReplaced:
    """The identity is written in which another root signs in place of one that had expired.

    `at_ms` is milliseconds since 1970.
    """

    from_id: str
    to_id: str
    at_ms: int
    generation: int


Event = (
    PhaseEntered
    | NodesSeen
    | NodesUnknown
    | HealthSeen
    | Decided
    | NodeTold
    | ConflictMet
    | StoreTroubled
    | RunEnded
    | RevocationStepped
    | ExpiredRootReplaced
)
