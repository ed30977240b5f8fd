"""What `goatherd.rotation.machine.decide` can answer: one class for each action, ids and texts only.

Pure data; what an action means in the world is `goatherd.rotation.rotator`'s. Everybody imports them from the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from goatherd.rotation.table import Phase, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStable:
    """Move label ``stable`` to `version`, if it still points at `expected`."""

    version: str
    expected: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Make B and write the prepared document, if ``current`` still points at `expected`."""

    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRestore:
    """Write the document that makes an earlier root the next one, if ``current`` still points at `expected`."""

    expected: str
    root_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduce:
    """Push the introduction of B, signed by A, to these nodes."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossSign:
    """Push the introduction of A, signed by B, to one node; the nodes must carry it to each other."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Write the document of the next phase, if ``current`` still points at `expected`.

    Attributes:
        left_out: Nodes that did not answer, and that the declared quorum does without.
    """

    step: Step
    expected: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Write the document that leaves the rotation (`step` is `CANCEL` or `ROLL_BACK`)."""

    step: Step
    expected: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Look again soon; nothing may be done until `nodes` show what `reason` says, at the latest at `until_ms`.

    Without nodes, it is something else that `reason` names: time, the health signal, the list of the nodes.
    """

    nodes: tuple[str, ...]
    reason: str
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroy:
    """Destroy one stored version permanently.

    Attributes:
        is_best_effort: Whether the run goes on, and reports the version, where the store refuses.
        is_leftover: Whether an interrupted change has left it, so that no record of the store names it.
    """

    version: str
    is_best_effort: bool = False
    is_leftover: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRetired:
    """Write into the document's history that no stored version holds this root's private key any more."""

    session_id: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectTimes:
    """Write the document with the times in it that are in the future replaced by the latest that they can be."""

    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroduceEarlier:
    """Push the introductions of these earlier roots, signed by the current one, to these nodes."""

    session_ids: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Write the document without these earlier roots, if ``current`` still points at `expected`."""

    session_ids: tuple[str, ...]
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Somebody else's rotation is in progress, or was made while this run began."""

    rotation_id: str | None
    started_by: str
    started_at: str
    phase: Phase
    phase_since_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Illegal:
    """What was asked cannot follow from what is. `hint` says what can, where something does."""

    why: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A version that would have been destroyed, if no label pointed at it that is not Goatherd's own."""

    version: str
    labels: tuple[str, ...]


class ObstacleKind(StrEnum):
    """What kind of thing stands in the way of a new rotation."""

    UNREACHABLE = "unreachable"
    OTHER_IDENTITY = "other identity"
    UNTRUSTED = "does not trust the current root"
    REJECTS = "rejects the identity"
    WITHOUT_STORE = "cannot read the store"
    STORE_BEHIND = "store is behind"
    FORKED = "another history"
    NO_FLOW = "no synchronization"
    NAMED_TWICE = "named twice"
    CLOCK = "clock"
    OWN_CLOCK = "clock of this machine"
    QUORUM = "quorum"
    LIFETIME = "lifetime"
    EXPIRED = "expired"
    UNHEALTHY = "unhealthy"
    NODES_UNKNOWN = "servers unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """One reason why a new rotation cannot begin now.

    Attributes:
        text: What is wrong and where, as a sentence without a full stop.
        hint: What to do about it.
        nodes: URLs of the servers that it concerns.
    """

    kind: ObstacleKind
    text: str
    hint: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """A new rotation cannot begin, or this machine's clock is wrong. Nothing is written; obstacles say why."""

    obstacles: tuple[Obstacle, ...]


class Outcome(StrEnum):
    """How a run ended."""

    ROTATED = "rotated"
    RESTORED = "restored"
    ABANDONED = "abandoned"
    REACHED = "reached"
    NOTHING = "nothing to do"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The run is over.

    Attributes:
        behind: The nodes that were not seen to sign with the current root.
        kept: The versions that `Goal.RETIRE` leaves in the store because of a label.
    """

    outcome: Outcome
    behind: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a rotation in progress stands.

    Attributes:
        since_ms: When the phase began, in milliseconds since 1970.
        until_ms: When the servers' time to follow ends. Past it, a run that drives the rotation leaves it.
        waiting_for: What has not been seen yet, for humans. Empty: only a run of `goatherd rotate` is missing.
    """

    phase: Phase
    since_ms: int
    until_ms: int
    waiting_for: tuple[str, ...]


Action = (
    LabelStable
    | Prepare
    | PrepareRestore
    | Introduce
    | CrossSign
    | Advance
    | Abandon
    | Wait
    | Destroy
    | RecordRetired
    | CorrectTimes
    | IntroduceEarlier
    | Prune
    | Busy
    | Illegal
    | Refuse
    | Done
)
