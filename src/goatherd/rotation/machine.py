"""The rotation as data and one function: what was observed goes in, the next action comes out.

What it is: the phases, the legal steps between them, what must hold on every node before each step, the policy, and
`decide`. What it is not: it reads no store, asks no node, holds no key and knows no clock.

Rules of this file:
1. Pure. Time comes in as an argument, evidence comes in as an `Observation`; the answer is one `Action`.
2. `STEPS` is the only place that says which step is legal in which phase, and `GATES` the only place that says which
   evidence a step needs. Nothing else may move a phase.
3. Evidence is three-valued. "Not known" is never taken for "yes": it waits, and past the deadline it counts as "no".
4. No step waits by time alone, and every wait has an end: the deadline of its phase, after which the rotation is
   cancelled (B has signed nothing yet) or rolled back (A signs again, B stays trusted).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """What the identity document records; `STEADY` is the absence of a rotation."""

    STEADY = "steady"
    PREPARED = "prepared"
    PUBLISHED = "published"
    ACTIVATED = "activated"
    VERIFIED = "verified"


class Step(StrEnum):
    """A write of the document that moves the phase."""

    PREPARE = "prepare"
    PUBLISH = "publish"
    ACTIVATE = "activate"
    VERIFY = "verify"
    FINALIZE = "finalize"
    CANCEL = "cancel"
    ROLL_BACK = "roll back"


class Evidence(StrEnum):
    """Something that one node was, or was not, seen to do."""

    HOLDS_INTRODUCTION = "holds the introduction of the next root"
    TRUSTS_NEXT = "answers a request signed by the next root"
    SIGNS_WITH_NEXT = "signs with the next root"
    HOLDS_CROSS_SIGNATURE = "holds the introduction of the earlier root, signed by the next one"


STEPS: Final[dict[tuple[Phase, Step], Phase]] = {
    (Phase.STEADY, Step.PREPARE): Phase.PREPARED,
    (Phase.PREPARED, Step.PUBLISH): Phase.PUBLISHED,
    (Phase.PREPARED, Step.CANCEL): Phase.STEADY,
    (Phase.PUBLISHED, Step.ACTIVATE): Phase.ACTIVATED,
    (Phase.PUBLISHED, Step.CANCEL): Phase.STEADY,
    (Phase.ACTIVATED, Step.VERIFY): Phase.VERIFIED,
    (Phase.ACTIVATED, Step.ROLL_BACK): Phase.STEADY,
    (Phase.VERIFIED, Step.FINALIZE): Phase.STEADY,
    (Phase.VERIFIED, Step.ROLL_BACK): Phase.STEADY,
}
"""The legal steps. Tests print, walk and exhaust this table."""

GATES: Final[dict[Step, tuple[Evidence, ...]]] = {
    Step.PREPARE: (),
    # "published" is written first and pushed after, so that B is unknown to every node while it can still be forgotten.
    Step.PUBLISH: (),
    # SECURITY: hazard 1. A node that signs with B before the others know B loses commits
    # (tests/unit/rotation/test_hazards.py).
    Step.ACTIVATE: (Evidence.TRUSTS_NEXT, Evidence.HOLDS_INTRODUCTION),
    # Hazard 3. Without the cross-signature nobody who comes after A's expiry can verify A's commits.
    Step.VERIFY: (Evidence.SIGNS_WITH_NEXT, Evidence.HOLDS_CROSS_SIGNATURE),
    Step.FINALIZE: (),
    Step.CANCEL: (),
    Step.ROLL_BACK: (),
}
"""What must hold on every listed node before a step. Leaving a rotation needs nobody's consent."""

SETTLED: Final[dict[Phase, frozenset[Evidence]]] = {
    Phase.PUBLISHED: frozenset({Evidence.HOLDS_INTRODUCTION, Evidence.TRUSTS_NEXT}),
    Phase.ACTIVATED: frozenset({Evidence.SIGNS_WITH_NEXT}),
}
"""What a run that shall stop in a phase waits for before it says that the phase is reached."""

FORWARD: Final[dict[Phase, Step]] = {
    Phase.STEADY: Step.PREPARE,
    Phase.PREPARED: Step.PUBLISH,
    Phase.PUBLISHED: Step.ACTIVATE,
    Phase.ACTIVATED: Step.VERIFY,
    Phase.VERIFIED: Step.FINALIZE,
}
"""The step that carries a rotation on from each phase."""

BACKWARD: Final[dict[Phase, Step]] = {
    Phase.PREPARED: Step.CANCEL,
    Phase.PUBLISHED: Step.CANCEL,
    Phase.ACTIVATED: Step.ROLL_BACK,
    Phase.VERIFIED: Step.ROLL_BACK,
}
"""The step that leaves a rotation from each phase: cancel where B has not signed yet, else roll back."""


def after(phase: Phase, step: Step) -> Phase:
    """Return the phase that `step` leads to.

    Raises:
        KeyError: The step is not legal in this phase.
    """
    return STEPS[phase, step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How patient a rotation is. Durations are what an operator would write in the configuration.

    Attributes:
        adoption: Longest time that one phase may wait for nodes; past it the rotation is cancelled or rolled back.
        settle: Longest time to wait, after a cancel or a roll-back, for nodes to sign with the restored root.
        node_timeout: Longest time that one observation of one node may take.
        poll_min, poll_max: Bounds of the pause between two observations; it starts small and doubles.
        store_patience: How long a store that does not answer is asked again, beyond the provider's own retries.
        lifetime: From the making of a new root to its expiration. GoatDB rewrites the expiration of a key with less
            than 15 days left, so it must stay well above that.
        grace: How long versions that hold a retired private key are kept before `retire` destroys them.
        renewal_fraction, renewal_cap: A root is due for rotation when less than this fraction of its lifetime, and at
            most this time, is left.
    """

    adoption: timedelta = timedelta(minutes=5)
    settle: timedelta = timedelta(seconds=90)
    node_timeout: timedelta = timedelta(seconds=5)
    poll_min: timedelta = timedelta(milliseconds=25)
    poll_max: timedelta = timedelta(seconds=1)
    store_patience: timedelta = timedelta(seconds=60)
    lifetime: timedelta = timedelta(days=180)
    grace: timedelta = timedelta(days=30)
    renewal_fraction: float = 0.5
    renewal_cap: timedelta = timedelta(days=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    """The document and the labels, as the store holds them; ids and times only, no key.

    Attributes:
        version: The version id that label ``current`` points at.
        stable: The version id that label ``stable`` points at, or None.
        phase_since_ms: When the document was last written, that is when it entered its phase.
        current_expires_ms: Expiration of the session that signs.
        rotation_id, from_id, to_id, started_by, started_at: Of the rotation in progress, else None.
        rollback_version: The version that holds A's private key, to roll back to; None when there is no rotation.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What one node was seen to do. None means: not known (not asked, or no answer).

    Attributes:
        reachable: It answered something, be it a refusal.
        rejects: Why it says that it will not take the document; None when it does not say so.
        without_store: It says that it serves a last known good identity, because it cannot reach the store.
        problem: One line for people, when something could not be seen.
    """

    url: str
    reachable: bool
    trusts_next: bool | None = None
    holds_introduction: bool | None = None
    signs_with: str | None = None
    holds_cross_signature: bool | None = None
    rejects: str | None = None
    without_store: bool = False
    problem: str | None = None

    def shows(self, evidence: Evidence, to_id: str | None) -> bool:
        """Whether the node was positively seen to give `evidence` for the next root `to_id`."""
        if evidence is Evidence.TRUSTS_NEXT:
            return self.trusts_next is True
        if evidence is Evidence.HOLDS_INTRODUCTION:
            return self.holds_introduction is True
        if evidence is Evidence.SIGNS_WITH_NEXT:
            return self.signs_with is not None and self.signs_with == to_id
        return self.holds_cross_signature is True


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """One stored version and whose private keys it holds (session ids). Looked at for `Goal.RETIRE` only.

    Attributes:
        retired_ms: When the last of its keys that no longer signs was retired; the grace period counts from here.
    """

    version: str
    created_ms: int
    private_ids: frozenset[str]
    retired_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything that `decide` may know."""

    store: StoreView
    nodes: tuple[NodeView, ...] = ()
    versions: tuple[VersionView, ...] = ()


class Goal(StrEnum):
    """What the operator asked for."""

    ROTATE = "rotate"
    RESUME = "resume"
    ABANDON = "abandon"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What one run is for.

    Attributes:
        began_ms: When this run began. A deadline never counts from before it, so that somebody who resumes a stale
            rotation gives the nodes a full chance.
        from_id: The root that this run replaces, fixed at its first look at the store: a run never replaces a root
            that somebody else has just put in place.
        rotation_id, to_id: The rotation that this run drives, once the store was seen to hold it.
        to_phase: Stop when this phase is reached.
        reason: Why to abandon; goes into the document's history.
        destroyed_ids: Roots of whose private key this run has destroyed a copy, and that are not yet on record for it.
    """

    goal: Goal
    began_ms: int
    from_id: str
    rotation_id: str | None = None
    to_id: str | None = None
    to_phase: Phase | None = None
    reason: str = "asked for by the operator"
    destroyed_ids: frozenset[str] = frozenset()


# --- actions -------------------------------------------------------------------------------------------------------


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
class Introduce:
    """Push the introduction of B, signed by A, to these nodes."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossSign:
    """Push the introduction of A, signed by B, to one node; the nodes must carry it to each other."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Write the document of the next phase, if ``current`` still points at `expected`."""

    step: Step
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Write the document that leaves the rotation (`step` is `CANCEL` or `ROLL_BACK`)."""

    step: Step
    expected: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Look again soon; nothing may be done until `nodes` show what `reason` says, at the latest at `until_ms`."""

    nodes: tuple[str, ...]
    reason: str
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroy:
    """Destroy one stored version for good."""

    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRetired:
    """Write into the document's history that no stored version holds this root's private key any more."""

    session_id: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Somebody else's rotation is in progress, or was made while this run began."""

    rotation_id: str | None
    started_by: str
    started_at: str
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Illegal:
    """What was asked cannot follow from what is."""

    why: str


class Outcome(StrEnum):
    """How a run ended."""

    ROTATED = "rotated"
    ABANDONED = "abandoned"
    REACHED = "reached"
    NOTHING = "nothing to do"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The run is over. `behind` are the nodes that were not seen to sign with the current root."""

    outcome: Outcome
    behind: tuple[str, ...] = ()


Action = (
    LabelStable
    | Prepare
    | Introduce
    | CrossSign
    | Advance
    | Abandon
    | Wait
    | Destroy
    | RecordRetired
    | Busy
    | Illegal
    | Done
)


# --- the decision --------------------------------------------------------------------------------------------------


def decide(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    """Return the one next action.

    Args:
        observation: What the store and the nodes were seen to hold.
        policy: How patient to be.
        intent: What this run is for.
        now_ms: Milliseconds since 1970.
    """
    store = observation.store
    if store.phase is Phase.STEADY:
        return _steady(observation, policy, intent, now_ms)
    if intent.goal is Goal.RETIRE:
        return Illegal(why=f"nothing is retired while a rotation is in phase {store.phase}")
    if store.rotation_id != intent.rotation_id:
        return Busy(
            rotation_id=store.rotation_id, started_by=store.started_by, started_at=store.started_at, phase=store.phase
        )
    return _rotating(observation, policy, intent, now_ms)


def missing(observation: Observation, step: Step) -> dict[Evidence, tuple[str, ...]]:
    """Return, for each evidence that `step` needs, the nodes that have not shown it (only non-empty entries)."""
    lacking: dict[Evidence, tuple[str, ...]] = {}
    for evidence in GATES[step]:
        urls = tuple(node.url for node in observation.nodes if not node.shows(evidence, observation.store.to_id))
        if urls:
            lacking[evidence] = urls
    return lacking


def deadline_ms(store: StoreView, policy: Policy, intent: Intent) -> int:
    """Return when the current phase's patience ends, in milliseconds since 1970."""
    return max(store.phase_since_ms, intent.began_ms) + _ms(policy.adoption)


def rotation_due_ms(*, issued_ms: int, expires_ms: int, policy: Policy) -> int:
    """Return from when on a root should be replaced: a fraction of its lifetime before the end, with a cap.

    A fraction suits keys of an hour and keys of a year alike; the cap keeps a long-lived key from being replaced
    absurdly early.
    """
    reserve = min(int((expires_ms - issued_ms) * policy.renewal_fraction), _ms(policy.renewal_cap))
    return expires_ms - reserve


def _rotating(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    store = observation.store
    if intent.goal is Goal.ABANDON:
        return _abandon(store, intent.reason)
    for node in observation.nodes:
        if node.rejects is not None:
            return _abandon(store, f"{node.url} refuses the document: {node.rejects}")
    step = FORWARD[store.phase]
    lacking = missing(observation, step)
    if intent.to_phase is store.phase and not lacking.keys() & SETTLED.get(store.phase, frozenset()):
        return Done(outcome=Outcome.REACHED)
    if not lacking:
        return Advance(step=step, expected=store.version)
    until_ms = deadline_ms(store, policy, intent)
    if now_ms >= until_ms:
        # SECURITY: hazard 1 and the promise of the operator's evening: no rotation hangs
        # (tests/unit/rotation/test_machine.py).
        return _abandon(store, f"not adopted in time: {describe(lacking)}")
    return _help(observation, lacking, until_ms)


def _help(observation: Observation, lacking: dict[Evidence, tuple[str, ...]], until_ms: int) -> Action:
    """Return what brings the missing evidence about, or a wait where only the nodes themselves can."""
    reachable = {node.url for node in observation.nodes if node.reachable}
    if Evidence.SIGNS_WITH_NEXT in lacking:
        # The cross-signature waits until every node signs with B: design's order, and one thing at a time to go wrong.
        return Wait(nodes=lacking[Evidence.SIGNS_WITH_NEXT], reason=Evidence.SIGNS_WITH_NEXT, until_ms=until_ms)
    if Evidence.HOLDS_CROSS_SIGNATURE in lacking:
        behind = lacking[Evidence.HOLDS_CROSS_SIGNATURE]
        known = all(node.holds_cross_signature is not None for node in observation.nodes if node.reachable)
        if known and len(behind) == len(observation.nodes) and reachable:
            return CrossSign(node=next(node.url for node in observation.nodes if node.reachable))
        return Wait(nodes=behind, reason=Evidence.HOLDS_CROSS_SIGNATURE, until_ms=until_ms)
    if Evidence.HOLDS_INTRODUCTION in lacking:
        # Pushing again is harmless (one and the same commit), so "not known" is treated like "no".
        push = tuple(url for url in lacking[Evidence.HOLDS_INTRODUCTION] if url in reachable)
        if push:
            return Introduce(nodes=push)
        return Wait(nodes=lacking[Evidence.HOLDS_INTRODUCTION], reason=Evidence.HOLDS_INTRODUCTION, until_ms=until_ms)
    return Wait(nodes=lacking[Evidence.TRUSTS_NEXT], reason=Evidence.TRUSTS_NEXT, until_ms=until_ms)


def _abandon(store: StoreView, reason: str) -> Action:
    step = BACKWARD[store.phase]
    if step is Step.ROLL_BACK and store.rollback_version is None:
        return Illegal(why="the document does not say which version holds the earlier private key")
    return Abandon(step=step, expected=store.version, reason=reason)


def _steady(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    store = observation.store
    if intent.rotation_id is not None:
        return _ended(observation, policy, intent, now_ms)
    if intent.goal is Goal.ROTATE:
        if store.current_id != intent.from_id:
            return Busy(rotation_id=None, started_by="", started_at="", phase=Phase.STEADY)
        if now_ms > store.current_expires_ms:
            return Illegal(why=f"root {store.current_id!r} has expired: what it signs now convinces nobody")
        return _label(store) or Prepare(expected=store.version)
    if intent.goal is Goal.RETIRE:
        return _label(store) or _retire(observation, policy, intent, now_ms)
    return _label(store) or Done(outcome=Outcome.NOTHING)


def _ended(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    """The rotation that this run drove is no longer in the document: finished, cancelled or rolled back."""
    store = observation.store
    label = _label(store)
    if label is not None:
        return label
    behind = tuple(node.url for node in observation.nodes if node.signs_with != store.current_id)
    outcome = Outcome.ROTATED if store.current_id == intent.to_id else Outcome.ABANDONED
    waiting = tuple(node.url for node in observation.nodes if node.url in behind and node.reachable)
    until_ms = max(store.phase_since_ms, intent.began_ms) + _ms(policy.settle)
    if outcome is Outcome.ABANDONED and waiting and now_ms < until_ms:
        return Wait(nodes=waiting, reason="signs with the restored root", until_ms=until_ms)
    return Done(outcome=outcome, behind=behind)


def _label(store: StoreView) -> LabelStable | None:
    """In steady, ``stable`` stands on the current version; a crash between a write and the label is mended here."""
    if store.stable == store.version:
        return None
    return LabelStable(version=store.version, expected=store.stable)


def _retire(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    store = observation.store
    left = frozenset[str]().union(*(version.private_ids for version in observation.versions))
    for version in observation.versions:
        retired = version.private_ids - {store.current_id}
        kept = version.version in (store.version, store.stable)
        if retired and not kept and now_ms >= version.retired_ms + _ms(policy.grace):
            # SECURITY: hazard 5 (tests/unit/rotation/test_hazards.py).
            return Destroy(version=version.version)
    for session_id in sorted(intent.destroyed_ids - left - {store.current_id}):
        return RecordRetired(session_id=session_id, expected=store.version)
    return Done(outcome=Outcome.NOTHING)


def describe(lacking: dict[Evidence, tuple[str, ...]]) -> str:
    """Return the missing evidence as one line for people and for the document's history."""
    return "; ".join(f"not seen that {_names(urls)} {evidence}" for evidence, urls in lacking.items())


def _names(urls: Iterable[str]) -> str:
    listed = list(urls)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _ms(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
