"""The events that a rotation reports while it runs, and its final report.

Progress views, logs and reports use these events, which contain ids, times and texts, but never key material. A
`Rotator` calls the function that it was given as `on_event` with each event, in the order in which they happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from goatherd.rotation.machine import Action, HealthView, Kept, NodeView, Outcome, Phase
from goatherd.telemetry import describe_count


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEntered:
    """Event: the run has seen the rotation enter a phase, as the identity document in the store shows.

    Attributes:
        at_ms: When the run saw the phase in the store, in milliseconds since 1970.
        since_ms: When the document entered the phase, in milliseconds since 1970.
        started_by, started_ms: Who started the rotation in progress, and when; empty and 0 if there is no rotation.
        is_own: Whether this run has begun the rotation, rather than resumed, cancelled or rolled back one that another
            run has begun.
    """

    phase: Phase
    generation: int
    rotation_id: str | None
    current_id: str
    next_id: str | None
    at_ms: int
    since_ms: int = 0
    started_by: str = ""
    started_ms: int = 0
    is_own: bool = True

    def fields(self) -> dict[str, object]:
        """Return the fields of the event that a log line contains, by name."""
        return {
            "phase": self.phase,
            "generation": self.generation,
            "rotation": self.rotation_id,
            "current": self.current_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesSeen:
    """Event: the observed state of the servers has changed."""

    nodes: tuple[NodeView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSeen:
    """Event: the result of the health checks has changed."""

    health: HealthView


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesUnknown:
    """Event: the discovery of the servers has failed. The run continues with the servers that were found last."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """Event: the run has decided on its next action.

    If the action is a `goatherd.rotation.machine.Wait`, it names the servers to wait for and the deadline.
    """

    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNotified:
    """Event: the run has notified a server that the identity has changed.

    `is_reached` is False if the server did not accept the notification. The server then finds the change at its next
    read of the store.
    """

    url: str
    is_reached: bool
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictMet:
    """Event: a write to the store failed because another process wrote first. The run reads the store again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTroubled:
    """Event: the store did not answer, or returned an older state. The rotation retries for a limited time."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one run of a rotation.

    Attributes:
        from_id, to_id: Id of the root that signed when the run began, and of the new root, if there was one.
        current_id: The current root at the end of the run.
        phase: The phase of the identity document: steady, unless the run was asked to stop earlier.
        reason: Why the rotation was cancelled or rolled back, if it was; or what else ended it, such as a revocation.
        event: How the rotation ended, as the document's history records it: ``rotated``, ``restored``, ``cancelled`` or
            ``rolled-back``; None if it has not ended, or if a revocation or the replacement of an expired root ended
            it.
        is_restore: Whether the rotation's next root was a previous one.
        trusts_next: Whether servers trust the new root; False if its rotation was cancelled before the root was
            published.
        behind: Servers that, as far as the run has seen, do not sign with the current root yet.
        left_out: Servers that did not answer in time, and for which the rotation did not wait because of the configured
            quorum.
        destroyed: Stored versions whose value was destroyed.
        given_up: Stored versions that are only marked for destruction, because this store cannot destroy a version
            immediately (`goatherd.providers.base.Guarantees`). The keys in them are not recorded as destroyed.
        kept: Stored versions that were due to be destroyed, but have a label that is not Goatherd's.
        undestroyed: Versions of a cancelled rotation that the store refused to destroy, each with the error's code.
            `retire` tries again.
        restarts: How often each server restarted during the run, by URL. None for a server whose process is not known.
        began_ms, ended_ms: When the run began and ended, in milliseconds since 1970.
        recorded_ms: When the rotation ended, as the document's history records it. The grace period of the replaced
            root's key counts from then. None if the rotation has not ended.
        keeps_key: Whether the store may still hold the private key of the root that has stopped signing; False for a
            root in direct mode, whose key is in an HSM or a KMS.
        restorable_until_ms: When the root that has stopped signing expires, in milliseconds since 1970; `restore` can
            make it sign again until then if its key is kept. None if the identity's anchor does not allow that.
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
    recorded_ms: int | None = None
    keeps_key: bool = True
    restorable_until_ms: int | None = None

    @property
    def summary(self) -> str:
        """The outcome, or what a retirement has destroyed, as a phrase."""
        parts = [(self.destroyed, "destroyed"), (self.given_up, "given up")]
        done = [f"{describe_count(len(versions), 'version')} {word}" for versions, word in parts if versions]
        return ", ".join(done) if self.outcome is Outcome.RETIRED else self.outcome.value


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """Event: the run of a rotation has ended."""

    report: Report


class RevocationStep(StrEnum):
    """The steps of a revocation, in the order in which they are completed."""

    INTRODUCED = "introduced"
    """The stolen root has introduced its successor `detail`, so that clients and unmodified servers know it."""
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
    """Event: the revocation of a root has completed a step, at time `at_ms` (milliseconds since 1970)."""

    step: RevocationStep
    revoked_id: str
    current_id: str
    at_ms: int
    generation: int
    node: str | None = None
    count: int | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAnchorDropped:
    """Event: an identity without an anchor was written, because the key of the anchor, which endorses roots, is lost.

    So the anchor has not signed this change. `at_ms` is milliseconds since 1970.
    """

    anchor_id: str
    current_id: str
    at_ms: int
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredRootReplaced:
    """Event: a new identity was written to the store, in which another root replaces the expired current root.

    `at_ms` is the time of the write, in milliseconds since 1970.
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
    | NodeNotified
    | ConflictMet
    | StoreTroubled
    | RunEnded
    | LostAnchorDropped
    | RevocationStepped
    | ExpiredRootReplaced
)
