"""The rules of a rotation, as tables and one function: `decide` takes an observation and returns the next action.

The module defines the phases, the legal steps between them, and the evidence from every server that each step needs. It
reads no store, contacts no server, holds no key and reads no clock.

Rules of this file:
1. The functions are pure: the time and the observed facts (an `Observation`) are arguments, the result is one `Action`.
2. The table `STEPS` alone defines which step is legal in which phase, and the table `GATES` alone which evidence a step
   needs. Nothing else may change the phase.
3. Evidence is yes, no or not known. "Not known" never counts as "yes": the rotation waits, and after the deadline "not
   known" counts as "no".
4. No step is taken only because time has passed: a step may require that some time passes (`Policy.unlisted`,
   `Policy.health_soak`), but it needs its evidence as well. Every wait ends at the deadline of its phase. Then the
   rotation is cancelled (the next root, B, has signed nothing yet), or rolled back (the previous root, A, signs again,
   and B stays trusted), or it continues with the quorum of servers that the operator has set.
5. With stores in several regions, the primary store is not changed before the store of every other region shows its
   present state (`_hold_for_followers`). Only a cancel or a roll-back does not wait for stores that lag.
6. Nothing is done while other clocks show that this machine's clock is wrong (`goatherd.rotation.clocks`). A time in
   the identity document that lies in the future makes no wait longer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from goatherd.cluster.node import FlowProbe, NodeView
from goatherd.errors import (
    ConfigurationError,
    DegradedError,
    GoatherdError,
    IllegalStepError,
    LifetimeError,
    ObstructedError,
    RotationBusyError,
    UnhealthyError,
)
from goatherd.identity.document import Phase
from goatherd.identity.key_retirement import RetirementRule
from goatherd.identity.session import REQUEST_WINDOW
from goatherd.identity.transitions import NO_WAY_BACK_HINT
from goatherd.rotation.observation import HealthView, Observation, StoreView
from goatherd.rotation.obstacles import (
    WENT_BACK,
    Obstacle,
    ObstacleKind,
    compare_clocks,
    find_clock_obstacle,
    find_follower_obstacles,
    find_obstacles,
    went_back_error,
    wrong_clock_error,
)
from goatherd.rotation.policy import Policy, Quorum, rotation_due_ms
from goatherd.times import format_utc, milliseconds

__all__ = [
    "FlowProbe",
    "HealthView",
    "NodeView",
    "Observation",
    "Obstacle",
    "ObstacleKind",
    "Phase",
    "Policy",
    "Quorum",
    "StoreView",
    "rotation_due_ms",
]
"""The names of other modules that callers import from this one."""


# --- the tables ----------------------------------------------------------------------------------------------------


class Step(StrEnum):
    """A write of the identity document that changes the phase of a rotation.

    `PRUNE` is the exception: it removes previous roots from the document, and the phase stays the same.
    """

    PREPARE = "prepare"
    PUBLISH = "publish"
    ACTIVATE = "activate"
    VERIFY = "verify"
    FINALIZE = "finalize"
    CANCEL = "cancel"
    ROLL_BACK = "roll back"
    PRUNE = "prune"


class Evidence(StrEnum):
    """A fact that every server must have shown before a step of a rotation may be taken."""

    ANSWERS = "answers a request signed by the current root"
    HOLDS_INTRODUCTION = "holds the introduction of the next root"
    TRUSTS_NEXT = "answers a request signed by the next root"
    SIGNS_WITH_NEXT = "signs with the next root"
    HOLDS_CROSS_SIGNATURE = "holds the introduction of the previous root, signed by the next one"
    HOLDS_EARLIER = "holds the introduction of a root to be removed from the identity, signed by the current root"


STEPS: Final[dict[tuple[Phase, Step], Phase]] = {
    (Phase.STEADY, Step.PREPARE): Phase.PREPARED,
    (Phase.STEADY, Step.PRUNE): Phase.STEADY,
    (Phase.PREPARED, Step.PUBLISH): Phase.PUBLISHED,
    (Phase.PREPARED, Step.CANCEL): Phase.STEADY,
    (Phase.PUBLISHED, Step.ACTIVATE): Phase.ACTIVATED,
    (Phase.PUBLISHED, Step.CANCEL): Phase.STEADY,
    (Phase.ACTIVATED, Step.VERIFY): Phase.VERIFIED,
    (Phase.ACTIVATED, Step.ROLL_BACK): Phase.STEADY,
    (Phase.VERIFIED, Step.FINALIZE): Phase.STEADY,
    (Phase.VERIFIED, Step.ROLL_BACK): Phase.STEADY,
}
"""The legal steps, with the phase that each leads to. Tests explore this table exhaustively."""

GATES: Final[dict[Step, tuple[Evidence, ...]]] = {
    # No document is written before every server has answered. A server that is down would make the rotation fail later,
    # and a server with another identity would not follow it.
    Step.PREPARE: (Evidence.ANSWERS,),
    # The phase "published" is written before any server gets the next root B, so until then B can be discarded. Once a
    # server has B, B stays trusted permanently; so no server gets it if the rotation will be cancelled.
    Step.PUBLISH: (Evidence.ANSWERS,),
    # SECURITY: commits are lost if a server signs with the next root B before the other servers trust B
    # (tests/unit/rotation/test_hazards.py).
    Step.ACTIVATE: (Evidence.TRUSTS_NEXT, Evidence.HOLDS_INTRODUCTION),
    # Without the cross-signature, clients that come after A's expiration cannot verify A's commits.
    Step.VERIFY: (Evidence.SIGNS_WITH_NEXT, Evidence.HOLDS_CROSS_SIGNATURE),
    Step.FINALIZE: (),
    Step.CANCEL: (),
    Step.ROLL_BACK: (),
    # SECURITY: after its next restart, a server without this introduction would reject everything that the removed root
    # has signed. A quorum does not excuse a server here, because a root that stays listed does no harm
    # (tests/unit/rotation/test_pruning.py).
    Step.PRUNE: (Evidence.HOLDS_EARLIER,),
}
"""The evidence that every listed server must have shown before a step. A cancel or a roll-back needs none."""

SETTLED: Final[dict[Phase, frozenset[Evidence]]] = {
    Phase.PUBLISHED: frozenset({Evidence.HOLDS_INTRODUCTION, Evidence.TRUSTS_NEXT}),
    Phase.ACTIVATED: frozenset({Evidence.SIGNS_WITH_NEXT}),
}
"""The evidence for which a run that stops at a phase waits before it reports that the phase is reached."""

FORWARD: Final[dict[Phase, Step]] = {
    Phase.STEADY: Step.PREPARE,
    Phase.PREPARED: Step.PUBLISH,
    Phase.PUBLISHED: Step.ACTIVATE,
    Phase.ACTIVATED: Step.VERIFY,
    Phase.VERIFIED: Step.FINALIZE,
}
"""The step that continues a rotation from each phase."""

BACKWARD: Final[dict[Phase, Step]] = {
    Phase.PREPARED: Step.CANCEL,
    Phase.PUBLISHED: Step.CANCEL,
    Phase.ACTIVATED: Step.ROLL_BACK,
    Phase.VERIFIED: Step.ROLL_BACK,
}
"""The step that ends a rotation early, by phase: cancel if the next root (B) has not signed yet, else roll back."""


def phase_after(phase: Phase, step: Step) -> Phase:
    """Return the phase of a rotation that follows `phase` after `step`.

    Raises:
        KeyError: The step is not allowed in this phase.
    """
    return STEPS[phase, step]


# --- what `decide` answers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStable:
    """Action: move the label ``stable`` to `version`, if the label still points at version `expected`.

    The label names the version in the store to which a roll-back would return.
    """

    version: str
    expected: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Action: generate the next root, and write the identity document that begins a rotation to it.

    The write succeeds only if label ``current`` in the store still points at version `expected`.
    """

    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRestore:
    """Action: write the identity document that begins a rotation back to the previous root `root_id`.

    The write succeeds only if label ``current`` in the store still points at version `expected`.
    """

    expected: str
    root_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduce:
    """Action: push the commits that introduce the next root to the servers `nodes`, so that these trust it."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossSign:
    """Action: push the cross-signature, by which the new current root introduces the previous one, to one server.

    The other servers get this commit by synchronization, which shows that they pass on what the new root signs.
    """

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Action: write the identity document of the rotation's next phase.

    The write succeeds only if label ``current`` in the store still points at version `expected`.

    Attributes:
        left_out: Servers that did not answer, and for which the rotation does not wait because of the configured
            quorum.
    """

    step: Step
    expected: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """Action: write the identity document that cancels the rotation or rolls it back (`step`), for `reason`."""

    step: Step
    expected: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Action: pause and observe again, until the condition `reason` is met or time `until_ms` has come.

    The servers `nodes` must meet the condition. If there are none, the condition is about something else: the time, a
    health check, the stores of other regions, or the discovery of the servers.
    """

    nodes: tuple[str, ...]
    reason: str
    until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroy:
    """Action: permanently destroy one stored version, which holds a private key that is no longer needed.

    Attributes:
        is_best_effort: Whether the run continues if the store refuses, and reports the version as not destroyed.
        is_leftover: Whether the version was left by an interrupted write, so that no record in the store names it.
    """

    version: str
    is_best_effort: bool = False
    is_leftover: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRetired:
    """Action: record in the identity document's history that no stored version holds a root's private key any more."""

    session_id: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectTimes:
    """Action: write the identity document with corrected times: those in the future become the latest possible time.

    A machine whose clock was wrong has written such times.
    """

    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntroduceEarlier:
    """Action: push the commits by which the current root introduces the previous roots to the servers `nodes`.

    Servers that hold these commits trust the previous roots also when the identity document no longer lists them.
    """

    session_ids: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Action: remove previous roots from the identity document, which keeps it small.

    The write succeeds only if label ``current`` in the store still points at version `expected`.
    """

    session_ids: tuple[str, ...]
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """Action: stop, because another run's rotation is in progress, or has completed since this run began."""

    rotation_id: str | None
    started_by: str
    started_ms: int
    phase: Phase
    phase_since_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Illegal:
    """Action: stop, because the phase does not allow the requested step. `why` is the reason, `hint` what to do."""

    why: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A stored version that is due to be destroyed, but is kept because another tool has set a label on it."""

    version: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Action: stop and write nothing, because obstacles prevent it, such as a wrong clock of this machine."""

    obstacles: tuple[Obstacle, ...]


class Outcome(StrEnum):
    """How a run of a rotation has ended."""

    ROTATED = "rotated"
    RESTORED = "restored"
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled-back"
    ENDED = "ended"
    """Another command ended the rotation: a revocation, or the replacement of an expired root."""
    REACHED = "reached"
    RETIRED = "retired"
    NOTHING = "nothing to do"

    @property
    def is_stopped(self) -> bool:
        """Whether the rotation has ended before its next root replaced the current one."""
        return self in (Outcome.CANCELLED, Outcome.ROLLED_BACK, Outcome.ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Action: end the run, because its goal is reached or it can do no more.

    Attributes:
        behind: The servers that, as far as the run has seen, do not sign with the current root yet.
        kept: The versions that a run with `Goal.RETIRE` does not destroy because of another tool's label.
    """

    outcome: Outcome
    behind: tuple[str, ...] = ()
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseProgress:
    """The progress of a rotation in its current phase: when it began, its deadline, and what it waits for.

    Attributes:
        since_ms: When the phase began, in milliseconds since 1970.
        until_ms: Deadline for the servers, in milliseconds since 1970. After the deadline, a run that drives the
            rotation cancels it or rolls it back.
        waiting_for: What the rotation still waits for before its next step, as human-readable lines; empty if a run of
            `goatherd rotate --resume` can take the step now.
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


# --- what a run is for ---------------------------------------------------------------------------------------------


class Goal(StrEnum):
    """What the operator wants a run to do, such as to rotate or to retire keys."""

    ROTATE = "rotate"
    RESTORE = "restore"
    RESUME = "resume"
    ABANDON = "abandon"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """The goal of one run of a rotation, and what the run has fixed at its start.

    Attributes:
        began_ms: When this run began. A deadline never counts from an earlier time, so a run that resumes an old
            rotation gives the servers the full time.
        from_id: The root that this run replaces, fixed at its first read of the store, so that it never replaces a root
            that another run has just made the current one.
        rotation_id, to_id: The rotation that this run drives, once the store has shown it. With `Goal.RESTORE`,
            `to_id` is given from the beginning.
        to_phase: The phase at which the run stops; None to complete the rotation.
        reason: Why the rotation is to be cancelled or rolled back, for the document's history.
        required_step: With `Goal.ABANDON`, the only step that may end the rotation; None to allow a cancel as well as a
            roll-back.
        is_restore: Whether the rotation restores a previous root. Used in the report only.
        has_acted: Whether this run has already changed something. If so, its clock is not compared with others again
            (except to retire keys): it was compared before that, and cannot be set (`goatherd.clock.SteadyClock`).
    """

    goal: Goal
    began_ms: int
    from_id: str
    rotation_id: str | None = None
    to_id: str | None = None
    to_phase: Phase | None = None
    reason: str = "asked for by the operator"
    required_step: Step | None = None
    is_restore: bool = False
    has_acted: bool = False


# --- the decision --------------------------------------------------------------------------------------------------


def decide(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    """Return what the run of a rotation must do next, given the state of the store and the servers.

    Args:
        observation: The state of the store and the servers.
        policy: Timeouts and quorum of the rotation.
        intent: The goal of this run, such as to rotate or to roll back.
        now_ms: Milliseconds since 1970.
    """
    action = _choose_action(observation, policy, intent, now_ms)
    action = _hold_for_followers(observation, policy, intent, now_ms, action)
    if isinstance(action, Busy | Illegal | Refuse | Done) or (intent.has_acted and intent.goal is not Goal.RETIRE):
        return action
    # SECURITY: if this machine's clock were a month off, `retire` would destroy the previous root's key right after a
    # rotation, and a wait would last for months (tests/unit/rotation/test_clocks.py).
    wrong = find_clock_obstacle(compare_clocks(observation, policy))
    return action if wrong is None else Refuse(obstacles=(wrong,))


def _choose_action(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    store = observation.store
    if store.phase is Phase.STEADY:
        return _decide_steady(observation, policy, intent, now_ms)
    if intent.goal is Goal.RETIRE:
        return Illegal(why=f"nothing is retired while a rotation is in phase {store.phase}")
    if store.rotation_id != intent.rotation_id:
        return Busy(
            rotation_id=store.rotation_id,
            started_by=store.started_by,
            started_ms=store.started_ms,
            phase=store.phase,
            phase_since_ms=store.phase_since_ms,
        )
    return _decide_in_progress(observation, policy, intent, now_ms)


def _hold_for_followers(
    observation: Observation, policy: Policy, intent: Intent, now_ms: int, action: Action
) -> Action:
    """Return the action; or what to do instead, if it changes the store while the store of another region is behind.

    A change on top of one that a region's store has not copied yet could leave the servers there behind by two steps.
    So the rotation waits, and at the deadline of the phase it is cancelled or rolled back. These two do not wait for a
    store that lags. But every change is refused while another store holds a later identity or a different one: that
    store was promoted meanwhile, or the primary store was restored from a backup.
    """
    holding = observation.holding
    if not holding or not isinstance(action, (*_CHANGES, Abandon)):
        return action
    store = observation.store
    obstacles = find_follower_obstacles(observation)
    if any(one.is_later or one.is_split for one in holding):
        # Another store holds a later or another identity: any write here would widen the gap.
        return Refuse(obstacles=obstacles)
    if isinstance(action, Abandon):
        return action
    reason = f"the stores of all regions follow: {'; '.join(f'{one.region}: {one.problem}' for one in holding)}"
    since_ms = _since_ms(store, intent)
    if store.phase is not Phase.STEADY:
        until_ms = deadline_ms(store, policy, intent)
        if now_ms < until_ms:
            return Wait(nodes=(), reason=reason, until_ms=until_ms)
        return _decide_rollback(store, f"timeout: expected that {reason}")
    if intent.rotation_id is not None:
        # The rotation has ended. If this run has no time for the rest (label `stable`, cleanup), the next run does it.
        until_ms = since_ms + milliseconds(policy.settle)
        if now_ms < until_ms:
            return Wait(nodes=(), reason=reason, until_ms=until_ms)
        behind = tuple(node.url for node in observation.nodes if node.signs_with != store.current_id)
        return Done(outcome=_outcome_of(store, intent), behind=behind)
    until_ms = intent.began_ms + milliseconds(policy.adoption)
    if now_ms >= until_ms or any(one.is_lasting or one.is_denied for one in holding):
        return Refuse(obstacles=obstacles)
    return Wait(nodes=(), reason=reason, until_ms=until_ms)


_CHANGES: Final = (LabelStable, Prepare, PrepareRestore, Advance, Destroy, RecordRetired, CorrectTimes, Prune)
"""The actions that change the store and wait for stores that lag. `Abandon` is missing on purpose."""


def has_shown(node: NodeView, evidence: Evidence, store: StoreView) -> bool:
    """Return whether a server has shown the fact `evidence` in the rotation in progress; "not known" counts as no."""
    if evidence is Evidence.ANSWERS:
        # Which commits the server holds is known only from an answer to a root that it trusts.
        return node.trusts_current is True or node.holds_introduction is not None
    if evidence is Evidence.TRUSTS_NEXT:
        return node.trusts_next is True
    if evidence is Evidence.HOLDS_INTRODUCTION:
        return node.holds_introduction is True
    if evidence is Evidence.SIGNS_WITH_NEXT:
        # SECURITY: an unmodified server may still sign with the previous root A without losing commits, because all
        # servers trust A (tests/unit/rotation/test_bare.py). A server with an older document does not count even if it
        # signs with the right root: it may have missed the end of an earlier rotation, and a restored root is current
        # in both documents (tests/model, "taking an older document for the new one"). An agent may have read a document
        # with which its server does not run yet (tests/unit/rotation/test_machine.py).
        is_behind = node.generation is not None and node.generation < store.generation
        is_behind |= node.report.agent is not None and bool(node.report.agent.pending)
        return node.is_bare or (node.signs_with is not None and node.signs_with == store.to_id and not is_behind)
    return node.holds_cross_signature is True


def find_missing_evidence(observation: Observation, step: Step) -> dict[Evidence, tuple[str, ...]]:
    """Return, for each kind of evidence that the step requires, the URLs of the servers that have not shown it.

    Evidence that every server has shown is left out.
    """
    lacking: dict[Evidence, tuple[str, ...]] = {}
    for evidence in GATES[step]:
        urls = tuple(node.url for node in observation.nodes if not has_shown(node, evidence, observation.store))
        if urls:
            lacking[evidence] = urls
    return lacking


def find_obstacles_to_begin(
    observation: Observation, policy: Policy, now_ms: int, *, is_restore: bool = False
) -> tuple[Obstacle, ...]:
    """Return every obstacle that prevents a new rotation from starting now; empty if it may start.

    With a quorum, a server that does not answer is no obstacle if enough others answer.

    Args:
        observation: The state of the store and the servers.
        policy: Timeouts and quorum of the rotation.
        now_ms: Milliseconds since 1970.
        is_restore: Whether the rotation would restore a previous root. Then it is no obstacle that the current root has
            expired, because the servers trust the previous root already.
    """
    store = observation.store
    if store.phase is Phase.STEADY and not (is_restore and now_ms > store.current_expires_ms):
        behind = {url for urls in find_missing_evidence(observation, Step.PREPARE).values() for url in urls}
    else:
        behind = {node.url for node in observation.nodes if not node.reachable}
    silent = frozenset(behind - find_excused_servers(observation, policy))
    found = find_obstacles(observation, policy, now_ms, silent=silent, is_restore=is_restore)
    if not is_outvoted(observation, policy):
        return found
    return tuple(one for one in found if one.kind is not ObstacleKind.REJECTS)


def _since_ms(store: StoreView, intent: Intent) -> int:
    """Return from when waits count: the beginning of the phase, or of this run if that is later."""
    return max(store.phase_since_ms, intent.began_ms)


def deadline_ms(store: StoreView, policy: Policy, intent: Intent) -> int:
    """Return the deadline of a rotation's current phase, in milliseconds since 1970: when the run stops to wait.

    It counts from the time that `_since_ms` returns.
    """
    since_ms = _since_ms(store, intent)
    if store.phase is Phase.PUBLISHED:
        return since_ms + max(milliseconds(policy.adoption), milliseconds(policy.unlisted))
    if store.phase is Phase.VERIFIED:
        return since_ms + milliseconds(policy.adoption) + milliseconds(policy.health_soak)
    return since_ms + milliseconds(policy.adoption)


def describe_wait(observation: Observation, policy: Policy) -> PhaseProgress | None:
    """Return when the current phase of a rotation began, what it waits for, and its deadline.

    Returns:
        The progress of the phase; None if no rotation is in progress.
    """
    store = observation.store
    if store.phase is Phase.STEADY:
        return None
    away = {node.url for node in observation.nodes if not node.reachable}
    waiting = tuple(
        f"{_join_names(urls, away, _find_wrong_clocks(observation))}: {evidence}"
        for evidence, urls in find_missing_evidence(observation, FORWARD[store.phase]).items()
    )
    blocker = _find_blocker(observation)
    return PhaseProgress(
        phase=store.phase,
        since_ms=store.phase_since_ms,
        until_ms=deadline_ms(
            store, policy, Intent(goal=Goal.RESUME, began_ms=0, from_id=store.from_id or store.current_id)
        ),
        waiting_for=waiting if blocker is None else (*waiting, blocker),
    )


def find_excused_servers(observation: Observation, policy: Policy) -> frozenset[str]:
    """Return the URLs of servers for which a rotation need not wait: they do not answer, but a quorum of servers does.

    SECURITY: a server that answers but does not trust the next root would reject and drop what that root signs, so it
    is never left out. An unreachable server gets no commits, and so drops none; when it is reachable again, it learns
    the new root from the store, and fetches from its peers what it has missed (tests/unit/rotation/test_quorum.py).
    """
    away = frozenset(node.url for node in observation.nodes if not node.reachable)
    total = len(observation.nodes)
    return away if total - len(away) >= policy.quorum.needed(total) else frozenset()


def is_outvoted(observation: Observation, policy: Policy) -> bool:
    """Return whether a quorum of other servers overrules those which report that they reject the new identity.

    Such a report is unsigned, so it may be false, and a quorum may overrule it. The rotation still waits for the server
    that sent it, until the deadline, and continues without that server only if it does not answer
    (`find_excused_servers`).
    """
    total = len(observation.nodes)
    others = sum(node.rejects is None and node.reachable for node in observation.nodes)
    return others >= policy.quorum.needed(total)


def _decide_in_progress(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    store, health = observation.store, observation.health
    if intent.goal is Goal.ABANDON:
        return _decide_abandonment(store, intent)
    for node in observation.nodes:
        if node.rejects is not None and not is_outvoted(observation, policy):
            return _decide_rollback(store, f"{node.url} rejects the identity document: {node.rejects}")
    if health is not None and health.failures >= policy.health_failures:
        return _decide_rollback(store, f"not healthy, {health.failures} times in a row: {health.problem}")
    if store.next_due_ms is not None and store.next_due_ms <= now_ms <= store.current_expires_ms:
        # SECURITY: an unmodified server that starts with a root of less than 15 days publishes its private key
        # (tests/unit/rotation/test_machine.py). So the rotation is cancelled; a new root costs nothing while the
        # current one can endorse it.
        return _decide_rollback(store, "the next root was unused for so long that it must itself be replaced")
    if intent.to_phase is not None and _ORDER.index(store.phase) > _ORDER.index(intent.to_phase):
        return Illegal(
            why=f"the rotation is already in phase {store.phase}, so it cannot stop at {intent.to_phase}",
            hint="`goatherd rotate --resume` without --to finishes it.",
        )
    step = FORWARD[store.phase]
    lacking = find_missing_evidence(observation, step)
    until_ms = deadline_ms(store, policy, intent)
    left_out: tuple[str, ...] = ()
    # Before B is published nothing can be lost, so servers that the quorum may leave out are not waited for yet.
    if lacking and (now_ms >= until_ms or step is Step.PUBLISH):
        lacking, left_out = _without_excused(observation, policy, lacking)
    blocker = _find_blocker(observation)
    if intent.to_phase is store.phase and not blocker and not lacking.keys() & SETTLED.get(store.phase, frozenset()):
        return Done(outcome=Outcome.REACHED)
    if not lacking and not blocker:
        return _when_ready(
            observation, policy, intent, now_ms, Advance(step=step, expected=store.version, left_out=left_out)
        )
    if now_ms >= until_ms:
        # SECURITY: at the deadline the rotation is cancelled or rolled back: the next root never signs before servers
        # trust it, and no rotation waits indefinitely (tests/unit/rotation/test_machine.py).
        return _decide_rollback(
            store,
            f"timeout: {describe_evidence(observation, lacking)}" if lacking else f"timeout: expected that {blocker}",
        )
    if blocker and not lacking:
        return Wait(nodes=(), reason=blocker, until_ms=until_ms)
    return _help_nodes(observation, lacking, find_excused_servers(observation, policy), until_ms)


def _find_blocker(observation: Observation) -> str | None:
    """Return the condition, not met now, without which no step of the rotation may be taken; None if there is none.

    It is that the servers can be discovered, or that the health check passes.
    """
    if observation.nodes_unknown is not None and GATES[FORWARD[observation.store.phase]]:
        return f"the servers can be discovered: {observation.nodes_unknown}"
    if observation.health is not None and observation.health.failures:
        return f"the health check passes again: {observation.health.problem}"
    return None


def _without_excused(
    observation: Observation, policy: Policy, lacking: dict[Evidence, tuple[str, ...]]
) -> tuple[dict[Evidence, tuple[str, ...]], tuple[str, ...]]:
    """Return the missing evidence after leaving out the excused servers, and the URLs of the servers left out.

    A server is excused if it does not answer and the configured quorum allows a rotation without it. If other servers
    lack evidence too, leaving servers out would not help: then `lacking` is returned unchanged, with no servers.
    """
    away = find_excused_servers(observation, policy)
    behind = {url for urls in lacking.values() for url in urls}
    if behind <= away:
        return {}, tuple(node.url for node in observation.nodes if node.url in behind)
    return lacking, ()


def _when_ready(observation: Observation, policy: Policy, intent: Intent, now_ms: int, advance: Advance) -> Action:
    """Return the step `advance` as the next action, or a wait if the policy requires more time before that step."""
    store = observation.store
    since_ms = _since_ms(store, intent)
    ready_ms, reason = 0, ""
    if advance.step is Step.ACTIVATE:
        ready_ms, reason = since_ms + milliseconds(policy.unlisted), "servers that are not listed read the store"
    elif advance.step is Step.FINALIZE and observation.health is not None:
        ready_ms, reason = since_ms + milliseconds(policy.health_soak), "stays healthy"
    return Wait(nodes=(), reason=reason, until_ms=ready_ms) if now_ms < ready_ms else advance


def _help_nodes(
    observation: Observation, lacking: dict[Evidence, tuple[str, ...]], away: frozenset[str], until_ms: int
) -> Action:
    """Return an action that helps the servers to show the missing evidence, or a wait if there is no such action.

    Args:
        observation: The state of the store and the servers.
        lacking: The missing evidence, each with the URLs of the servers that lack it.
        away: Servers that the quorum may leave out. The rotation waits for them too, but acts for the others first.
        until_ms: The deadline of a wait.
    """
    reachable = {node.url for node in observation.nodes if node.reachable}
    pressing = {evidence: left for evidence, urls in lacking.items() if (left := [u for u in urls if u not in away])}
    if Evidence.SIGNS_WITH_NEXT in pressing:
        # The cross-signature is pushed only after every server signs with B, so that one thing can fail at a time.
        return Wait(nodes=lacking[Evidence.SIGNS_WITH_NEXT], reason=Evidence.SIGNS_WITH_NEXT, until_ms=until_ms)
    if Evidence.HOLDS_CROSS_SIGNATURE in pressing:
        behind = lacking[Evidence.HOLDS_CROSS_SIGNATURE]
        known = all(node.holds_cross_signature is not None for node in observation.nodes if node.reachable)
        if known and len(behind) == len(observation.nodes) and reachable:
            return CrossSign(node=next(node.url for node in observation.nodes if node.reachable))
        return Wait(nodes=behind, reason=Evidence.HOLDS_CROSS_SIGNATURE, until_ms=until_ms)
    if Evidence.HOLDS_INTRODUCTION in pressing:
        # Pushing the same commit again is harmless, so "not known" is treated like "no".
        push = tuple(url for url in lacking[Evidence.HOLDS_INTRODUCTION] if url in reachable)
        if push:
            return Introduce(nodes=push)
        return Wait(nodes=lacking[Evidence.HOLDS_INTRODUCTION], reason=Evidence.HOLDS_INTRODUCTION, until_ms=until_ms)
    evidence = next(iter(pressing), next(iter(lacking)))
    return Wait(nodes=lacking[evidence], reason=evidence, until_ms=until_ms)


def _decide_abandonment(store: StoreView, intent: Intent) -> Action:
    step = BACKWARD[store.phase]
    if intent.required_step in (None, step):
        return _decide_rollback(store, intent.reason)
    if intent.required_step is Step.CANCEL:
        return Illegal(
            why=f"the rotation is {store.phase}: the next root signs already, so it can no longer be cancelled",
            hint="`goatherd rotate --rollback` makes the previous root sign again and keeps trusting both.",
        )
    return Illegal(
        why=f"the rotation is {store.phase}: the next root has signed nothing, so there is nothing to roll back",
        hint="`goatherd rotate --cancel` ends the rotation; the current root continues to sign.",
    )


def _decide_rollback(store: StoreView, reason: str) -> Action:
    step = BACKWARD[store.phase]
    if step is Step.ROLL_BACK and store.rollback_version is None:
        return Illegal(why="the document does not say which version holds the earlier private key")
    if step is Step.ROLL_BACK and not store.can_go_back:
        return Illegal(
            why=f"the rotation can only be completed, because servers would not follow a roll-back ({reason})",
            hint=NO_WAY_BACK_HINT,
        )
    return Abandon(step=step, expected=store.version, reason=reason)


def _decide_steady(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    store = observation.store
    if intent.rotation_id is not None:
        return _decide_after_end(observation, policy, intent, now_ms)
    if intent.goal in (Goal.ROTATE, Goal.RESTORE):
        is_restore = intent.goal is Goal.RESTORE
        if store.current_id != intent.from_id:
            return Busy(rotation_id=None, started_by="", started_ms=0, phase=Phase.STEADY)
        found = find_obstacles_to_begin(observation, policy, now_ms, is_restore=is_restore)
        # For stores of other regions that are only behind, a run waits.
        found = tuple(one for one in found if one.kind is not ObstacleKind.FOLLOWER_BEHIND)
        if found:
            return Refuse(obstacles=found)
        if (label := _repair_label(store)) is not None:
            return label
        if is_restore:
            return PrepareRestore(expected=store.version, root_id=intent.to_id or "")
        return _make_room(observation, policy, intent, now_ms) or Prepare(expected=store.version)
    if intent.goal is Goal.RETIRE:
        return _repair_label(store) or _decide_retire(observation, policy, now_ms)
    if intent.goal is Goal.ABANDON:
        return _repair_label(store) or _nothing_to_leave(store, intent)
    return _repair_label(store) or Done(outcome=Outcome.NOTHING)


def _nothing_to_leave(store: StoreView, intent: Intent) -> Illegal:
    what = "cancel" if intent.required_step is Step.CANCEL else "roll back"
    return Illegal(
        why=f"no rotation is in progress, so there is nothing to {what}: root {store.current_id} signs",
        hint="After a finished rotation, `goatherd restore` makes the previous root the current root again.",
    )


def _decide_after_end(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    """Return the next action after the rotation of this run has completed, or was cancelled or rolled back."""
    store = observation.store
    label = _repair_label(store)
    if label is not None:
        return label
    unneeded, kept = _find_unneeded(observation)
    if unneeded is not None:
        return Destroy(version=unneeded, is_best_effort=True)
    behind = tuple(node.url for node in observation.nodes if node.signs_with != store.current_id)
    # A delayed run may find that its rotation has completed, and another one after it (tests/model).
    outcome = _outcome_of(store, intent)
    # A server that signs with neither root is of another cluster or does not follow at all, so waiting is useless.
    late = (intent.to_id, None)
    # After a roll-back an unreachable server may be restarting because of it; after a cancel, none restarts.
    waiting = tuple(
        node.url
        for node in observation.nodes
        if node.signs_with in late and (node.reachable or outcome is not Outcome.CANCELLED)
    )
    until_ms = _since_ms(store, intent) + milliseconds(policy.settle)
    if outcome.is_stopped and waiting and now_ms < until_ms:
        return Wait(nodes=waiting, reason="signs with the restored root", until_ms=until_ms)
    return _decide_prune(observation, policy.node_timeout, intent, now_ms) or Done(
        outcome=outcome, behind=behind, kept=kept
    )


def _outcome_of(store: StoreView, intent: Intent) -> Outcome:
    """Return how the rotation of this run has ended."""
    if intent.rotation_id in store.finished:
        return Outcome.RESTORED if intent.rotation_id in store.restored else Outcome.ROTATED
    if intent.rotation_id in store.cancelled:
        return Outcome.CANCELLED
    return Outcome.ROLLED_BACK if intent.rotation_id in store.rolled_back else Outcome.ENDED


def _decide_prune(observation: Observation, patience: timedelta, intent: Intent, now_ms: int) -> Action | None:
    """Return the next action to remove previous roots from the identity document; None if nothing can be done now.

    Every server must first hold the roots' introductions. A previous root does no harm if it stays in the document. So
    a run spends no more time on this than `patience`, and does not wait for a server that does not answer.
    """
    store, nodes = observation.store, observation.nodes
    if not store.leaving or not nodes or observation.nodes_unknown is not None:
        return None
    seen = tuple(one for one in store.leaving if all(_shows_earlier(node, one) for node in nodes))
    if seen:
        return Prune(session_ids=seen, expected=store.version)
    if not all(node.reachable for node in nodes) or now_ms >= _since_ms(store, intent) + milliseconds(patience):
        return None
    lacking = tuple(node.url for node in nodes if not all(_shows_earlier(node, one) for one in store.leaving))
    return IntroduceEarlier(session_ids=store.leaving, nodes=lacking)


def _shows_earlier(node: NodeView, root: str) -> bool:
    return Evidence.HOLDS_EARLIER not in GATES[Step.PRUNE] or root in (node.holds_earlier or ())


def _make_room(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action | None:
    """Return an action that makes room for a rotation in the identity document; None if there is room.

    The result is a refusal if the document is full and no previous root can be removed from it.
    """
    store, nodes = observation.store, observation.nodes
    if not store.is_full:
        return None
    pruning = _decide_prune(observation, policy.adoption, intent, now_ms)
    if pruning is not None:
        return pruning
    problem = "it contains no previous root that may be removed"
    hint = (
        "Revoked roots, and members that Goatherd does not know, stay in the identity permanently. `goatherd revoke`"
        " can still replace the current root."
    )
    if store.leaving and observation.nodes_unknown is not None:
        problem = f"the servers are not known: {observation.nodes_unknown}"
        hint = "Repair the discovery of the servers, or list them with --node URL."
    elif store.leaving and not nodes:
        problem, hint = "no server is listed", "List every server with --node URL."
    elif store.leaving:
        away = [node.url for node in nodes if not node.reachable]
        behind = [node.url for node in nodes if not all(_shows_earlier(node, one) for one in store.leaving)]
        # Without the servers that do not answer, no introduction is sent to the others either.
        problem = f"expected that {_join_names(away or behind, away)} {Evidence.HOLDS_EARLIER}"
        hint = "Start the servers that did not answer, or remove servers that no longer exist from the list."
    return Illegal(why=f"the identity document is too large for another rotation: {problem}", hint=hint)


def find_lack_of_room(observation: Observation, policy: Policy, now_ms: int) -> tuple[Obstacle, ...]:
    """Return an obstacle if the identity document has no room for a rotation that begins now; else an empty tuple."""
    intent = Intent(goal=Goal.ROTATE, began_ms=now_ms, from_id=observation.store.current_id)
    action = _make_room(observation, policy, intent, now_ms)
    if not isinstance(action, Illegal):
        return ()
    return (Obstacle(kind=ObstacleKind.NO_ROOM, text=action.why, hint=action.hint),)


def _repair_label(store: StoreView) -> LabelStable | None:
    """Return the action that moves label ``stable`` to the current version; None if the label is there already.

    A crash at the end of a rotation leaves the label behind.
    """
    if store.stable == store.version:
        return None
    return LabelStable(version=store.version, expected=store.stable)


def _find_unneeded(observation: Observation) -> tuple[str | None, tuple[Kept, ...]]:
    """Return a version of a cancelled rotation to destroy, and those that are kept because of another tool's label.

    Such a version was written by the rotation before it was cancelled. It is safe to destroy it: the next root in it
    has signed nothing, and the other private keys in it are also in other versions. The current root's key is in the
    version that cancelled the rotation; the key of a root that was to be restored is in the version from which it was
    read.

    Returns:
        The first version to destroy, None if there is none; and the versions to keep, with the other tools' labels.
    """
    store = observation.store
    found = [
        one
        for one in observation.versions
        if one.rotation_id in store.cancelled and one.version.id not in (store.version, store.stable)
    ]
    kept = tuple(Kept(version=one.version.id, labels=one.foreign_labels) for one in found if one.foreign_labels)
    return next((one.version.id for one in found if not one.foreign_labels), None), kept


def _decide_retire(observation: Observation, policy: Policy, now_ms: int) -> Action:
    store = observation.store
    is_ahead = timedelta(milliseconds=store.recorded_ahead_ms) > policy.clock_tolerance
    if is_ahead and compare_clocks(observation, policy).is_ours_confirmed:
        # A grace period that begins in the future would be too long.
        return CorrectTimes(expected=store.version)
    rule = RetirementRule(
        signing=frozenset({store.current_id}),
        in_use=frozenset(one for one in (store.version, store.stable) if one is not None),
        cancelled=store.cancelled,
        grace=policy.grace,
    )
    due = rule.find_due(observation.versions, now_ms)
    for one in due:
        # The store would refuse to destroy a version with another tool's label, and the label is not Goatherd's to
        # remove.
        if not one.foreign_labels:
            # SECURITY: the private key of the replaced root must not stay in the store
            # (tests/unit/rotation/test_hazards.py).
            return Destroy(version=one.version.id, is_leftover=one.version.is_leftover)
    # Decided by the versions, not by this run's actions, since a run may die after its last `Destroy`.
    for session_id in rule.find_recordable(store.unretired, observation.versions, now_ms):
        return RecordRetired(session_id=session_id, expected=store.version)
    kept = tuple(Kept(version=one.version.id, labels=one.foreign_labels) for one in due)
    return Done(outcome=Outcome.NOTHING, kept=kept)


def describe_evidence(observation: Observation, lacking: dict[Evidence, tuple[str, ...]]) -> str:
    """Return the evidence that servers have not shown yet, as one human-readable line.

    The line becomes the reason in the identity document's history if the rotation is cancelled or rolled back. A server
    that does not answer is marked as such, and named once; one whose clock makes it reject requests is marked, too.
    While servers do not sign with the next root yet, the cross-signature, which is pushed after that, is left out.
    """
    if Evidence.SIGNS_WITH_NEXT in lacking:
        lacking = {Evidence.SIGNS_WITH_NEXT: lacking[Evidence.SIGNS_WITH_NEXT]}  # the cross-signature comes after it
    away = {node.url for node in observation.nodes if not node.reachable}
    named: set[str] = set()
    parts = []
    for evidence, urls in lacking.items():
        left = [url for url in urls if url not in named]
        named |= away.intersection(left)
        if left:
            parts.append(f"expected that {_join_names(left, away, _find_wrong_clocks(observation))} {evidence}")
    return "; ".join(parts)


def _find_wrong_clocks(observation: Observation) -> set[str]:
    limit_ms = milliseconds(REQUEST_WINDOW)
    return {node.url for node in observation.nodes if abs(node.clock_ahead_ms or 0) > limit_ms}


def _join_names(urls: Sequence[str], away: Collection[str], off: Collection[str] = ()) -> str:
    marks = dict.fromkeys(off, " (its clock differs)") | dict.fromkeys(away, " (did not answer)")
    listed = ", ".join(f"{url}{marks.get(url, '')}" for url in urls[:5])
    return listed + (f" and {len(urls) - 5} more" if len(urls) > 5 else "")


_ORDER: Final = tuple(Phase)


# --- the error for a refusal ----------------------------------------------------------------------------------------


def refusal_error(action: Busy | Illegal | Refuse) -> GoatherdError:
    """Return the error for a run that ends because another run rotates, the step is illegal, or there are obstacles."""
    if isinstance(action, Refuse):
        return _obstructed_error(action.obstacles)
    if isinstance(action, Illegal):
        return IllegalStepError(action.why, hint=action.hint)
    if action.rotation_id is None:
        return RotationBusyError(
            "another process has just rotated this identity", hint="Run `goatherd status` before you rotate again."
        )
    who = action.started_by or "an unnamed operator"
    since = f" since {format_utc(action.phase_since_ms)}" if action.phase_since_ms else ""
    end = "--cancel" if action.phase in (Phase.PREPARED, Phase.PUBLISHED) else "--rollback"
    return RotationBusyError(
        f"rotation {action.rotation_id} by {who}, begun at {format_utc(action.started_ms)}, is in phase"
        f" {action.phase}{since}",
        hint="If a process still drives it, wait until it has ended. If none does, because the process has died or was"
        f" to stop at this phase (--to): `goatherd rotate --resume` finishes the rotation, and {end} ends it.",
    )


def _obstructed_error(obstacles: tuple[Obstacle, ...]) -> GoatherdError:
    if all(one.kind in WENT_BACK for one in obstacles):
        return went_back_error(obstacles)
    message = f"the rotation was not begun: {'; '.join(one.text for one in obstacles)}"
    hint = " ".join(dict.fromkeys(one.hint for one in obstacles if one.hint)) or None
    kinds = {one.kind for one in obstacles}
    if ObstacleKind.OWN_CLOCK in kinds:
        return wrong_clock_error(obstacles)
    if ObstacleKind.EXPIRED in kinds:
        return IllegalStepError(message, hint=hint)
    if kinds == {ObstacleKind.UNHEALTHY}:
        return UnhealthyError(message, hint=hint)
    if kinds == {ObstacleKind.WITHOUT_STORE}:
        return DegradedError(message, hint=hint)
    if kinds == {ObstacleKind.QUORUM}:
        return ConfigurationError(message, hint=hint)
    if kinds == {ObstacleKind.LIFETIME}:
        return LifetimeError(message, hint=hint)
    return ObstructedError(message, obstacles=obstacles, hint=hint)
