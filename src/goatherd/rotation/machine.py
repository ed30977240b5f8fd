"""The rotation as data and one function: what was observed goes in, the next action comes out.

What it is: the phases, the legal steps between them, what must hold on every node before each step, the policy, and
`decide`. What it is not: it reads no store, asks no node, holds no key and knows no clock.

Rules of this file:
1. Pure. Time comes in as an argument, evidence comes in as an `Observation`; the answer is one `Action`.
2. `STEPS` is the only place that says which step is legal in which phase, and `GATES` the only place that says which
   evidence a step needs (both in `goatherd.rotation.table`). Nothing else may move a phase.
3. Evidence is three-valued. "Not known" is never taken for "yes": it waits, and past the deadline it counts as "no".
4. No step is taken because time has passed: time only adds to evidence (`Policy.unlisted`, `Policy.health_soak`), or
   ends a wait. Every wait has an end: the deadline of its phase, after which the rotation is cancelled (B has signed
   nothing yet) or rolled back (A signs again, B stays trusted), or goes on with the quorum that the operator declared.
5. Nothing is done while this machine's clock is wrong, as far as other clocks show (`goatherd.rotation.clocks`); and no
   time that was recorded in the future makes a wait longer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from goatherd.cluster.node import FlowProbe, NodeView
from goatherd.identity.lineage import Lineage
from goatherd.rotation.action import (
    Abandon,
    Action,
    Advance,
    Busy,
    CorrectTimes,
    CrossSign,
    Destroy,
    Done,
    Illegal,
    Introduce,
    IntroduceEarlier,
    Kept,
    LabelStable,
    Obstacle,
    ObstacleKind,
    Outcome,
    Prepare,
    PrepareRestore,
    Progress,
    Prune,
    RecordRetired,
    Refuse,
    Wait,
)
from goatherd.rotation.obstacles import clocks_of, find_obstacles
from goatherd.rotation.policy import Policy, Quorum
from goatherd.rotation.table import BACKWARD, FORWARD, GATES, SETTLED, STEPS, Evidence, Phase, Step, after
from goatherd.times import milliseconds

__all__ = [
    "BACKWARD",
    "FORWARD",
    "GATES",
    "SETTLED",
    "STEPS",
    "Abandon",
    "Action",
    "Advance",
    "Busy",
    "CorrectTimes",
    "CrossSign",
    "Destroy",
    "Done",
    "Evidence",
    "FlowProbe",
    "Goal",
    "HealthView",
    "Illegal",
    "Intent",
    "Introduce",
    "IntroduceEarlier",
    "Kept",
    "LabelStable",
    "NodeView",
    "Observation",
    "Obstacle",
    "ObstacleKind",
    "Outcome",
    "Phase",
    "Policy",
    "Prepare",
    "PrepareRestore",
    "Progress",
    "Prune",
    "Quorum",
    "RecordRetired",
    "Refuse",
    "Step",
    "StoreView",
    "VersionView",
    "Wait",
    "after",
    "deadline_ms",
    "decide",
    "describe",
    "find_obstacles_to_begin",
    "has_shown",
    "missing",
    "rotation_due_ms",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreView:
    """The document and the labels, as the store holds them; ids and times only, no key.

    Attributes:
        version: The version id that label ``current`` points at.
        stable: The version id that label ``stable`` points at, or None.
        phase_since_ms: When the document was last written, that is when it entered its phase; never after this run has
            seen it first.
        current_expires_ms: Expiration of the session that signs.
        rotation_id, from_id, to_id, started_by, started_at: Of the rotation in progress, else None.
        rollback_version: The version that holds A's private key, to roll back to; None when there is no rotation.
        next_due_ms: From when on the next root is due for rotation itself; None where there is none.
        finished: Ids of the rotations that came to their end, as far as the document remembers.
        restored: Those of them that made an earlier root sign again.
        cancelled: Ids of the rotations that were cancelled, as far as the document remembers.
        unretired: Earlier roots of which it is not on record that no version holds their private keys, and since when
            they have not signed.
        root_ids: Every root that the document lists.
        leaving: Earlier roots that are to leave the document, oldest first, once every node holds their introduction by
            the current root (`goatherd.identity.transitions`).
        is_full: The document is too large for another rotation.
        clock_ahead_ms: How far the store's clock is ahead of ours, below 0 behind; None where it tells none.
        recorded_ahead_ms: How far the latest time that the document records is in the future.
        digest: SHA-256 of the document's text, hexadecimal: a version id is no proof of content.
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
    """One stored version and whose private keys it holds (session ids).

    Looked at for `Goal.RETIRE`, and after a cancelled rotation for the versions of that rotation.

    Attributes:
        rotation_id: The rotation that was prepared or published in it, so that it holds the next root's private key.
        retired_ms: When the last of its keys that no longer signs was retired; the grace period counts from here.
        problem: Why its value could not be looked at; then nobody knows whose keys it holds.
        foreign_labels: Labels at it that are not Goatherd's own; while there is one, no store destroys the version.
        is_leftover: Whether an interrupted change has left it, so that no record of the store names it.
        is_unknown_leftover: Whether it is one whose keys cannot be known, and that the store can destroy.
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
    """What the operator's health signal has said lately.

    Attributes:
        failures: How many bad answers in a row; 0 while the last one was good.
        problem: What the last bad answer was, in one line for people.
    """

    failures: int
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything that `decide` may know.

    Attributes:
        nodes: Those that there are now; from one look to the next some may have joined, or left.
        health: None where no signal is configured, or none is asked for in this phase.
        nodes_unknown: Why it cannot be told who the nodes are now; `nodes` are those that were known last.
        flow: What a probe has shown where the servers do not say with whom they synchronize; None without one.
        are_nodes_discovered: Whether the servers were found by asking, rather than listed one by one.
    """

    store: StoreView
    nodes: tuple[NodeView, ...] = ()
    versions: tuple[VersionView, ...] = ()
    health: HealthView | None = None
    nodes_unknown: str | None = None
    flow: FlowProbe | None = None
    are_nodes_discovered: bool = False


class Goal(StrEnum):
    """What the operator asked for."""

    ROTATE = "rotate"
    RESTORE = "restore"
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
        rotation_id, to_id: The rotation that this run drives, once the store was seen to hold it. With `Goal.RESTORE`,
            `to_id` is given from the beginning.
        to_phase: Stop when this phase is reached.
        reason: Why to abandon; goes into the document's history.
        leave_by: With `Goal.ABANDON`, the only step by which to leave; None for whichever the phase allows.
        is_restore: Whether the rotation restores an earlier root. For the report; it decides nothing.
        has_acted: Whether this run has done something already: its clock was compared then, and is not set meanwhile
            (`goatherd.clock.SteadyClock`).
    """

    goal: Goal
    began_ms: int
    from_id: str
    rotation_id: str | None = None
    to_id: str | None = None
    to_phase: Phase | None = None
    reason: str = "asked for by the operator"
    leave_by: Step | None = None
    is_restore: bool = False
    has_acted: bool = False


# --- the decision --------------------------------------------------------------------------------------------------


def decide(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    """Return the one next action.

    Args:
        observation: What the store and the nodes were seen to hold.
        policy: How patient to be.
        intent: What this run is for.
        now_ms: Milliseconds since 1970.
    """
    action = _choose(observation, policy, intent, now_ms)
    if isinstance(action, Busy | Illegal | Refuse | Done) or (intent.has_acted and intent.goal is not Goal.RETIRE):
        return action
    # SECURITY: with a clock of another month, `retire` would destroy the way back a second after a rotation, and a wait
    # would last for months (tests/unit/rotation/test_clocks.py).
    wrong = clocks_of(observation, policy).find_obstacle()
    return action if wrong is None else Refuse(obstacles=(wrong,))


def _choose(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    store = observation.store
    if store.phase is Phase.STEADY:
        return _steady(observation, policy, intent, now_ms)
    if intent.goal is Goal.RETIRE:
        return Illegal(why=f"nothing is retired while a rotation is in phase {store.phase}")
    if store.rotation_id != intent.rotation_id:
        return Busy(
            rotation_id=store.rotation_id,
            started_by=store.started_by,
            started_at=store.started_at,
            phase=store.phase,
            phase_since_ms=store.phase_since_ms,
        )
    return _rotating(observation, policy, intent, now_ms)


def has_shown(node: NodeView, evidence: Evidence, store: StoreView) -> bool:
    """Return whether a server has positively shown `evidence` for the next root of the rotation in `store`."""
    if evidence is Evidence.ANSWERS:
        # Which commits the server holds is known only from an answer to a root that it trusts.
        return node.answers is True or node.holds_introduction is not None
    if evidence is Evidence.TRUSTS_NEXT:
        return node.trusts_next is True
    if evidence is Evidence.HOLDS_INTRODUCTION:
        return node.holds_introduction is True
    if evidence is Evidence.SIGNS_WITH_NEXT:
        # SECURITY: a server that still signs with A loses nothing: all trust A, so what A signs is kept everywhere
        # (tests/unit/rotation/test_bare.py).
        # One that missed the end of an earlier rotation may sign with a restored root already, by an older document
        # (tests/model, "taking an older document for the new one").
        is_behind = node.generation is not None and node.generation < store.generation
        return node.is_bare or (node.signs_with is not None and node.signs_with == store.to_id and not is_behind)
    return node.holds_cross_signature is True


def missing(observation: Observation, step: Step) -> dict[Evidence, tuple[str, ...]]:
    """Return, for each evidence that `step` needs, the nodes that have not shown it (only non-empty entries)."""
    lacking: dict[Evidence, tuple[str, ...]] = {}
    for evidence in GATES[step]:
        urls = tuple(node.url for node in observation.nodes if not has_shown(node, evidence, observation.store))
        if urls:
            lacking[evidence] = urls
    return lacking


def find_obstacles_to_begin(
    observation: Observation, policy: Policy, now_ms: int, *, is_restore: bool = False
) -> tuple[Obstacle, ...]:
    """Return everything that keeps a new rotation from beginning now; empty where it may begin.

    Where a quorum is declared, a server that does not answer is no obstacle, if enough others do. An expired root is no
    obstacle to a restore: it need not introduce a root that every server trusts already.
    """
    store = observation.store
    if store.phase is Phase.STEADY and not (is_restore and now_ms > store.current_expires_ms):
        behind = {url for urls in missing(observation, Step.PREPARE).values() for url in urls}
    else:
        behind = {node.url for node in observation.nodes if not node.reachable}
    silent = frozenset(behind - excused(observation, policy))
    found = find_obstacles(observation, policy, now_ms, silent=silent, is_restore=is_restore)
    if not is_outvoted(observation, policy):
        return found
    return tuple(one for one in found if one.kind is not ObstacleKind.REJECTS)


def deadline_ms(store: StoreView, policy: Policy, intent: Intent) -> int:
    """Return when the current phase's patience ends, in milliseconds since 1970."""
    since_ms = max(store.phase_since_ms, intent.began_ms)
    if store.phase is Phase.PUBLISHED:
        return since_ms + max(milliseconds(policy.adoption), milliseconds(policy.unlisted))
    if store.phase is Phase.VERIFIED:
        return since_ms + milliseconds(policy.adoption) + milliseconds(policy.health_soak)
    return since_ms + milliseconds(policy.adoption)


def describe_wait(observation: Observation, policy: Policy) -> Progress | None:
    """Return since when the rotation in progress is in its phase, until when it may be, and what it waits for.

    Returns:
        None in phase steady.
    """
    store = observation.store
    if store.phase is Phase.STEADY:
        return None
    away = {node.url for node in observation.nodes if not node.reachable}
    waiting = tuple(
        f"{_names(urls, away)}: {evidence}" for evidence, urls in missing(observation, FORWARD[store.phase]).items()
    )
    blocker = _blocker(observation)
    return Progress(
        phase=store.phase,
        since_ms=store.phase_since_ms,
        until_ms=deadline_ms(
            store, policy, Intent(goal=Goal.RESUME, began_ms=0, from_id=store.from_id or store.current_id)
        ),
        waiting_for=waiting if blocker is None else (*waiting, blocker),
    )


def excused(observation: Observation, policy: Policy) -> frozenset[str]:
    """Return the URLs of the nodes that a declared quorum may leave out: those that do not answer, if enough others do.

    SECURITY: a node that answers and does not trust B would refuse and drop what B signs, so it is never left out. One
    that nobody reaches is offered nothing, and so drops nothing; when it comes back it learns B from the store, and
    fetches from its peers what it has missed (tests/unit/rotation/test_quorum.py).
    """
    away = frozenset(node.url for node in observation.nodes if not node.reachable)
    total = len(observation.nodes)
    return away if total - len(away) >= policy.quorum.needed(total) else frozenset()


def is_outvoted(observation: Observation, policy: Policy) -> bool:
    """Return whether a declared quorum overrules the servers that say they reject the identity, by the others' number.

    That a server rejects it is its unsigned word. What it shows is asked for all the same: one that answers, and does
    not follow, is waited for to the deadline (`excused`).
    """
    total = len(observation.nodes)
    others = sum(node.rejects is None and node.reachable for node in observation.nodes)
    return others >= policy.quorum.needed(total)


def rotation_due_ms(*, issued_ms: int, expires_ms: int, policy: Policy) -> int:
    """Return from when on a root should be replaced: a fraction of its lifetime before the end, with a cap.

    A fraction suits keys of an hour and keys of a year alike; the cap keeps a long-lived key from being replaced
    absurdly early.
    """
    reserve = min(int((expires_ms - issued_ms) * policy.renewal_fraction), milliseconds(policy.renewal_cap))
    return expires_ms - reserve


def _rotating(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    store, health = observation.store, observation.health
    if intent.goal is Goal.ABANDON:
        return _left(store, intent)
    for node in observation.nodes:
        if node.rejects is not None and not is_outvoted(observation, policy):
            return _abandon(store, f"{node.url} refuses the document: {node.rejects}")
    if health is not None and health.failures >= policy.health_failures:
        return _abandon(store, f"not healthy, {health.failures} times in a row: {health.problem}")
    if store.next_due_ms is not None and store.next_due_ms <= now_ms <= store.current_expires_ms:
        # SECURITY: an unmodified server that starts with a key of less than 15 days publishes it
        # (tests/unit/rotation/test_machine.py). A fresh root costs nothing while the current one can endorse it.
        return _abandon(store, "the next root has lain unused for so long that it is due for rotation itself")
    if intent.to_phase is not None and _ORDER.index(store.phase) > _ORDER.index(intent.to_phase):
        return Illegal(
            why=f"the rotation is {store.phase} already, and cannot stop at {intent.to_phase}",
            hint="`goatherd rotate --resume` without --to carries it to its end.",
        )
    step = FORWARD[store.phase]
    lacking = missing(observation, step)
    until_ms = deadline_ms(store, policy, intent)
    left_out: tuple[str, ...] = ()
    # Nothing is at stake before B is published: whom the quorum may leave out is waited for later, and not here too.
    if lacking and (now_ms >= until_ms or step is Step.PUBLISH):
        lacking, left_out = _without_excused(observation, policy, lacking)
    blocker = _blocker(observation)
    if intent.to_phase is store.phase and not blocker and not lacking.keys() & SETTLED.get(store.phase, frozenset()):
        return Done(outcome=Outcome.REACHED)
    if not lacking and not blocker:
        return _when_ready(
            observation, policy, intent, now_ms, Advance(step=step, expected=store.version, left_out=left_out)
        )
    if now_ms >= until_ms:
        # SECURITY: B never signs before it is trusted, and no rotation hangs
        # (tests/unit/rotation/test_machine.py).
        return _abandon(
            store,
            f"not adopted in time: {describe(observation, lacking)}" if lacking else f"not seen in time that {blocker}",
        )
    if blocker and not lacking:
        return Wait(nodes=(), reason=blocker, until_ms=until_ms)
    return _help(observation, lacking, excused(observation, policy), until_ms)


def _blocker(observation: Observation) -> str | None:
    """Return what stands in the way of every gate, whatever the nodes show."""
    if observation.nodes_unknown is not None and GATES[FORWARD[observation.store.phase]]:
        return f"it can be told who the nodes are: {observation.nodes_unknown}"
    if observation.health is not None and observation.health.failures:
        return f"it is healthy again: {observation.health.problem}"
    return None


def _without_excused(
    observation: Observation, policy: Policy, lacking: dict[Evidence, tuple[str, ...]]
) -> tuple[dict[Evidence, tuple[str, ...]], tuple[str, ...]]:
    """Return what is lacking still and whom the quorum leaves out: nobody, unless that settles it."""
    away = excused(observation, policy)
    behind = {url for urls in lacking.values() for url in urls}
    if behind <= away:
        return {}, tuple(node.url for node in observation.nodes if node.url in behind)
    return lacking, ()


def _when_ready(observation: Observation, policy: Policy, intent: Intent, now_ms: int, advance: Advance) -> Action:
    """Return the step, or a wait for the time that it must not be taken before."""
    store = observation.store
    since_ms = max(store.phase_since_ms, intent.began_ms)
    ready_ms, reason = 0, ""
    if advance.step is Step.ACTIVATE:
        ready_ms, reason = since_ms + milliseconds(policy.unlisted), "servers that nobody has listed look at the store"
    elif advance.step is Step.FINALIZE and observation.health is not None:
        ready_ms, reason = since_ms + milliseconds(policy.health_soak), "stays healthy"
    return Wait(nodes=(), reason=reason, until_ms=ready_ms) if now_ms < ready_ms else advance


def _help(
    observation: Observation, lacking: dict[Evidence, tuple[str, ...]], away: frozenset[str], until_ms: int
) -> Action:
    """Return what brings the missing evidence about, or a wait where only the nodes themselves can.

    Nodes in `away` are waited for like all others, but the others do not wait for them.
    """
    reachable = {node.url for node in observation.nodes if node.reachable}
    pressing = {evidence: left for evidence, urls in lacking.items() if (left := [u for u in urls if u not in away])}
    if Evidence.SIGNS_WITH_NEXT in pressing:
        # The cross-signature waits until every node signs with B: design's order, and one thing at a time to go wrong.
        return Wait(nodes=lacking[Evidence.SIGNS_WITH_NEXT], reason=Evidence.SIGNS_WITH_NEXT, until_ms=until_ms)
    if Evidence.HOLDS_CROSS_SIGNATURE in pressing:
        behind = lacking[Evidence.HOLDS_CROSS_SIGNATURE]
        known = all(node.holds_cross_signature is not None for node in observation.nodes if node.reachable)
        if known and len(behind) == len(observation.nodes) and reachable:
            return CrossSign(node=next(node.url for node in observation.nodes if node.reachable))
        return Wait(nodes=behind, reason=Evidence.HOLDS_CROSS_SIGNATURE, until_ms=until_ms)
    if Evidence.HOLDS_INTRODUCTION in pressing:
        # Pushing again is harmless (one and the same commit), so "not known" is treated like "no".
        push = tuple(url for url in lacking[Evidence.HOLDS_INTRODUCTION] if url in reachable)
        if push:
            return Introduce(nodes=push)
        return Wait(nodes=lacking[Evidence.HOLDS_INTRODUCTION], reason=Evidence.HOLDS_INTRODUCTION, until_ms=until_ms)
    evidence = next(iter(pressing), next(iter(lacking)))
    return Wait(nodes=lacking[evidence], reason=evidence, until_ms=until_ms)


def _left(store: StoreView, intent: Intent) -> Action:
    step = BACKWARD[store.phase]
    if intent.leave_by in (None, step):
        return _abandon(store, intent.reason)
    if intent.leave_by is Step.CANCEL:
        return Illegal(
            why=f"the rotation is {store.phase}: the next root signs already, so it can no longer be cancelled",
            hint="`goatherd rotate --rollback` makes the earlier root sign again and keeps trusting both.",
        )
    return Illegal(
        why=f"the rotation is {store.phase}: the next root has signed nothing, so there is nothing to roll back",
        hint="`goatherd rotate --cancel` gives it up; the current root goes on signing.",
    )


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
        found = find_obstacles_to_begin(observation, policy, now_ms)
        if found:
            return Refuse(obstacles=found)
        return _label(store) or _room(observation, policy, intent, now_ms) or Prepare(expected=store.version)
    if intent.goal is Goal.RESTORE:
        if store.current_id != intent.from_id:
            return Busy(rotation_id=None, started_by="", started_at="", phase=Phase.STEADY)
        found = find_obstacles_to_begin(observation, policy, now_ms, is_restore=True)
        if found:
            return Refuse(obstacles=found)
        return _label(store) or PrepareRestore(expected=store.version, root_id=intent.to_id or "")
    if intent.goal is Goal.RETIRE:
        return _label(store) or _retire(observation, policy, now_ms)
    if intent.goal is Goal.ABANDON:
        return _label(store) or _nothing_to_leave(store, intent)
    return _label(store) or Done(outcome=Outcome.NOTHING)


def _nothing_to_leave(store: StoreView, intent: Intent) -> Illegal:
    what = "cancel" if intent.leave_by is Step.CANCEL else "roll back"
    return Illegal(
        why=f"no rotation is in progress, so there is nothing to {what}: root {store.current_id} signs",
        hint="`goatherd restore` makes the previous root sign again after a finished rotation.",
    )


def _ended(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action:
    """The rotation that this run drove is no longer in the document: finished, cancelled or rolled back."""
    store = observation.store
    label = _label(store)
    if label is not None:
        return label
    unneeded, kept = _unneeded(observation)
    if unneeded is not None:
        return Destroy(version=unneeded, is_best_effort=True)
    behind = tuple(node.url for node in observation.nodes if node.signs_with != store.current_id)
    # A run that was held up may find that its rotation was finished, and another one after it (tests/model).
    is_rotated = intent.rotation_id in store.finished
    outcome = Outcome.ABANDONED
    if is_rotated:
        outcome = Outcome.RESTORED if intent.rotation_id in store.restored else Outcome.ROTATED
    # One that signs with neither of the two is of another cluster, or does not follow at all: waiting changes nothing.
    late = (intent.to_id, None)
    # One that does not answer after a roll-back may be restarting because of it; after a cancellation, none restarts.
    is_cancelled = intent.rotation_id in store.cancelled
    waiting = tuple(
        node.url for node in observation.nodes if node.signs_with in late and (node.reachable or not is_cancelled)
    )
    until_ms = max(store.phase_since_ms, intent.began_ms) + milliseconds(policy.settle)
    if outcome is Outcome.ABANDONED and waiting and now_ms < until_ms:
        return Wait(nodes=waiting, reason="signs with the restored root", until_ms=until_ms)
    return _prune(observation, policy.node_timeout, intent, now_ms) or Done(outcome=outcome, behind=behind, kept=kept)


def _prune(observation: Observation, patience: timedelta, intent: Intent, now_ms: int) -> Action | None:
    """Return what lets earlier roots leave the document; None where none should, or the evidence cannot be had now.

    Roots that stay do no harm. So no run waits for this beyond `patience`, nor for a node that does not answer.
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


def _room(observation: Observation, policy: Policy, intent: Intent, now_ms: int) -> Action | None:
    """Return what makes room for a rotation in a document that is full, or why it cannot be had; None with room."""
    store, nodes = observation.store, observation.nodes
    if not store.is_full:
        return None
    pruning = _prune(observation, policy.adoption, intent, now_ms)
    if pruning is not None:
        return pruning
    problem = "it holds no earlier root that may leave it"
    if store.leaving and observation.nodes_unknown is not None:
        problem = f"the servers are not known: {observation.nodes_unknown}"
    elif store.leaving and not nodes:
        problem = "no server is listed"
    elif store.leaving:
        behind = [node.url for node in nodes if not all(_shows_earlier(node, one) for one in store.leaving)]
        away = {node.url for node in nodes if not node.reachable}
        problem = f"not seen that {_names(behind, away)} {Evidence.HOLDS_EARLIER}"
    return Illegal(
        why=f"the identity document is too large for another rotation: {problem}",
        hint="Start the servers that gave no answer, or take servers that are gone for good from the list of nodes.",
    )


def _since_ms(store: StoreView, intent: Intent) -> int:
    return max(store.phase_since_ms, intent.began_ms)


def _label(store: StoreView) -> LabelStable | None:
    """In steady, ``stable`` stands on the current version; a crash between a write and the label is mended here."""
    if store.stable == store.version:
        return None
    return LabelStable(version=store.version, expected=store.stable)


def _unneeded(observation: Observation) -> tuple[str | None, tuple[Kept, ...]]:
    """Return a version that was written for a cancelled rotation, and those that a foreign label keeps.

    The next root in it has signed nothing. Everything else in it is in other versions: the current root's key in the
    one that cancelled the rotation, and that of a root that was to be restored in the one that it was read from.
    """
    store = observation.store
    found = [
        version
        for version in observation.versions
        if version.rotation_id in store.cancelled and version.version not in (store.version, store.stable)
    ]
    kept = tuple(Kept(version=one.version, labels=one.foreign_labels) for one in found if one.foreign_labels)
    return next((one.version for one in found if not one.foreign_labels), None), kept


def _retire(observation: Observation, policy: Policy, now_ms: int) -> Action:
    store = observation.store
    is_ahead = timedelta(milliseconds=store.recorded_ahead_ms) > policy.clock_tolerance
    if is_ahead and clocks_of(observation, policy).is_ours_confirmed:
        # A grace period that begins in the future would last longer by that.
        return CorrectTimes(expected=store.version)
    left = frozenset[str]().union(*(version.private_ids for version in observation.versions))
    kept: list[Kept] = []
    for version in observation.versions:
        # Nothing needs what a killed writer left, and it may hold any key.
        is_retired = version.private_ids - {store.current_id} or version.is_unknown_leftover
        is_ours = version.version in (store.version, store.stable)
        is_unneeded = version.rotation_id in store.cancelled
        if not is_retired or is_ours or (now_ms < version.retired_ms + milliseconds(policy.grace) and not is_unneeded):
            continue
        if version.foreign_labels:
            # The store would answer with a conflict each time; and the label is there for a reason that is not ours.
            kept.append(Kept(version=version.version, labels=version.foreign_labels))
            continue
        # SECURITY: the replaced private key must not stay in the store (tests/unit/rotation/test_hazards.py).
        return Destroy(version=version.version, is_leftover=version.is_leftover)
    done = Done(outcome=Outcome.NOTHING, kept=tuple(kept))
    if any(version.problem is not None for version in observation.versions):
        # Whose keys are in there is not known, so nothing can be said to be gone.
        return done
    # By what is seen, and not by what this run has destroyed: one that died after its last `Destroy` records nothing.
    for session_id, since_ms in store.unretired:
        if session_id not in left and now_ms >= since_ms + milliseconds(policy.grace):
            return RecordRetired(session_id=session_id, expected=store.version)
    return done


def describe(observation: Observation, lacking: dict[Evidence, tuple[str, ...]]) -> str:
    """Return the missing evidence as one line for people and for the document's history.

    A node that does not answer is marked so, and named once. What nobody was asked for yet is left away.
    """
    if Evidence.SIGNS_WITH_NEXT in lacking:
        lacking = {Evidence.SIGNS_WITH_NEXT: lacking[Evidence.SIGNS_WITH_NEXT]}  # the cross-signature comes after it
    away = {node.url for node in observation.nodes if not node.reachable}
    told: set[str] = set()
    parts = []
    for evidence, urls in lacking.items():
        left = [url for url in urls if url not in told]
        told |= away.intersection(left)
        if left:
            parts.append(f"not seen that {_names(left, away)} {evidence}")
    return "; ".join(parts)


def _names(urls: Sequence[str], away: Collection[str]) -> str:
    listed = ", ".join(f"{url} (no answer)" if url in away else url for url in urls[:5])
    return listed + (f" and {len(urls) - 5} more" if len(urls) > 5 else "")


_ORDER: Final = tuple(Phase)
