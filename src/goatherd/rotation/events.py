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
    """The store showed this phase for the first time in this run, or again after another one.

    Attributes:
        at_ms: When the run saw it.
        since_ms: When the document entered the phase.
        started_by, started_at: Who started the rotation in progress, and when; empty if there is none.
        is_own: Whether this run has begun that rotation; False if it resumes or ends another run's rotation.
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
        """Return the fields of this event for a log line."""
        return {
            "phase": self.phase,
            "generation": self.generation,
            "rotation": self.rotation_id,
            "current": self.current_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesSeen:
    """The observed state of the servers has changed."""

    nodes: tuple[NodeView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSeen:
    """The result of the health checks has changed."""

    health: HealthView


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesUnknown:
    """The servers cannot be listed now; those that were known last are observed."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The next action; a `goatherd.rotation.machine.Wait` names the servers to wait for and the deadline."""

    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTold:
    """The run has notified a server.

    `heard` is False if that failed: the server then finds the change at its next read of the store, or the next
    observation shows that it has not.
    """

    url: str
    heard: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictMet:
    """A write failed because another process wrote first; the run reads the store again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTroubled:
    """The store did not answer, or showed an older state; the rotation retries for a while."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a run ended.

    Attributes:
        from_id, to_id: The root that signed when the run began, and the new root, if there was one.
        current_id: The root that signs now.
        phase: The phase of the document: steady, unless the run was asked to stop earlier.
        reason: Why the rotation was cancelled or rolled back, if it was.
        event: How the rotation ended, as the document's history records it: ``rotated``, ``restored``, ``cancelled`` or
            ``rolled-back``; None if it has not ended.
        is_restore: Whether the rotation's next root was a previous one.
        trusts_next: Whether servers trust the next root. They do not trust a root that was cancelled before it was
            published.
        behind: Servers that were not seen to sign with the current root.
        left_out: Servers that did not answer in time, and that the configured quorum left out.
        destroyed: Versions whose value was destroyed.
        given_up: Versions that are only marked for destruction, because the store destroys no version immediately
            (`goatherd.providers.base.Guarantees`). The keys in them are not recorded as destroyed.
        kept: Versions that were due to be destroyed, but have a label that is not Goatherd's.
        undestroyed: Versions of a cancelled rotation that the store refused to destroy, each with the error's code.
            `retire` tries again.
        restarts: How often each server restarted during the run, by URL. None for a server whose process is not known.
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
    """The run has ended."""

    report: Report


class RevocationStep(StrEnum):
    """The steps of a revocation, in this order."""

    INTRODUCED = "introduced"
    """The stolen root has introduced its successor, so that clients and unmodified servers know it."""
    REVOKED = "revoked"
    """The identity lists the root as revoked; servers reject it from their next read of the store on."""
    FROZEN = "frozen"
    """A server was seen to reject the root; it holds `count` commits of it."""
    CLOSED = "closed"
    """The list of the root's valid commits was written; it has `count` commits."""
    INTRODUCED_AGAIN = "introduced again"
    """The successor has reissued `count` sessions at this server."""
    SETTLED = "settled"
    """The root's signature no longer introduces any session."""
    DESTROYED = "destroyed"
    """A stored version with the root's private key was destroyed; `detail` names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationStepped:
    """A revocation has completed a step. `at_ms` is milliseconds since 1970."""

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
    """The identity was written in which another root replaces one that had expired.

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
