"""The decision: every row is a sentence, what is seen, and what must come next; then the whole small world at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product

import pytest

from goatherd.identity.key_age import EXPIRED_HINT
from goatherd.rotation import machine
from goatherd.rotation.machine import (
    BACKWARD,
    FORWARD,
    GATES,
    STEPS,
    Abandon,
    Action,
    Advance,
    Busy,
    CrossSign,
    Destroy,
    Done,
    Goal,
    Illegal,
    Intent,
    Introduce,
    LabelStable,
    NodeView,
    Observation,
    Obstacle,
    ObstacleKind,
    Outcome,
    Phase,
    Policy,
    Prepare,
    PrepareRestore,
    RecordRetired,
    Refuse,
    Step,
    StoreView,
    VersionView,
    Wait,
    decide,
    rotation_due_ms,
)

NOW = 1_000_000_000
POLICY = Policy(adoption=timedelta(seconds=60), settle=timedelta(seconds=30), grace=timedelta(days=1))
LATE = NOW + 60_000
DAY = 86_400_000


def store(phase: Phase, **changes: object) -> StoreView:
    signs_b = phase in (Phase.ACTIVATED, Phase.VERIFIED)
    view = StoreView(
        version="7",
        stable="7" if phase is Phase.STEADY else "6",
        generation=7,
        phase=phase,
        phase_since_ms=NOW,
        current_id="B" if signs_b else "A",
        current_expires_ms=NOW + DAY,
    )
    if phase is not Phase.STEADY:
        view = replace(
            view,
            rotation_id="r1",
            from_id="A",
            to_id="B",
            started_by="bob@host:1",
            started_at="2026-11-24T12:00:00.000Z",
            rollback_version="6",
        )
    return replace(view, **changes)


def node(number: int, **changes: object) -> NodeView:
    full = NodeView(
        url=f"n{number}",
        reachable=True,
        trusts_next=True,
        holds_introduction=True,
        signs_with="B",
        holds_cross_signature=True,
    )
    return replace(full, **changes)


DEAD = {
    "reachable": False,
    "trusts_next": None,
    "holds_introduction": None,
    "signs_with": None,
    "holds_cross_signature": None,
}
ASKED = Intent(goal=Goal.ROTATE, began_ms=NOW, from_id="A")
MINE = replace(ASKED, rotation_id="r1", to_id="B")
RESTORING = replace(ASKED, goal=Goal.RESTORE, to_id="Z")
STEADY, PREPARED, PUBLISHED = store(Phase.STEADY), store(Phase.PREPARED), store(Phase.PUBLISHED)
ACTIVATED, VERIFIED = store(Phase.ACTIVATED), store(Phase.VERIFIED)
ROLLED_BACK = replace(STEADY, current_id="A")
FINISHED = replace(STEADY, current_id="B", finished=frozenset({"r1"}))

CASES: list[tuple[str, StoreView, list[NodeView], Intent, int, Action]] = [
    (
        "a next root that has lain so long that it is due itself does not sign: the rotation is cancelled",
        replace(PUBLISHED, next_due_ms=NOW),
        [node(1)],
        MINE,
        NOW,
        Abandon(
            step=Step.CANCEL,
            expected="7",
            reason="the next root was unused for so long that it must itself be replaced",
        ),
    ),
    (
        "a next root that is due itself signs all the same where the current one could endorse no other any more",
        replace(PUBLISHED, next_due_ms=NOW, current_expires_ms=NOW - 1),
        [node(1)],
        MINE,
        NOW,
        Advance(step=Step.ACTIVATE, expected="7"),
    ),
    (
        "a next root signs as long as it is not due itself",
        replace(PUBLISHED, next_due_ms=NOW + 1),
        [node(1)],
        MINE,
        NOW,
        Advance(step=Step.ACTIVATE, expected="7"),
    ),
    (
        "before a rotation, stable is put on the current version",
        replace(STEADY, stable="5"),
        [],
        ASKED,
        NOW,
        LabelStable(version="7", expected="5"),
    ),
    ("a steady identity is prepared", STEADY, [], ASKED, NOW, Prepare(expected="7")),
    (
        "an expired root introduces nobody",
        replace(STEADY, current_expires_ms=NOW - 1),
        [],
        ASKED,
        NOW,
        Refuse(
            obstacles=(
                Obstacle(
                    kind=ObstacleKind.EXPIRED,
                    text="root A has expired: servers and clients reject what it signs now",
                    hint=EXPIRED_HINT,
                ),
            )
        ),
    ),
    (
        "a server that did not answer is seen before anything is written, the label included",
        replace(STEADY, stable="5"),
        [NodeView(url="http://a", reachable=True, answers=True), NodeView(url="http://b", reachable=False)],
        ASKED,
        NOW,
        Refuse(
            obstacles=(
                Obstacle(
                    kind=ObstacleKind.UNREACHABLE,
                    text="http://b did not answer",
                    hint="Every listed server must accept a request signed by the current root before a rotation "
                    "begins. Start the server, or remove it from the list if it no longer exists.",
                    nodes=("http://b",),
                ),
            )
        ),
    ),
    (
        "a server that answers, and was not seen to accept the current root, is not taken for one that does",
        STEADY,
        [NodeView(url="http://a", reachable=True, answers=None)],
        ASKED,
        NOW,
        Refuse(
            obstacles=(
                Obstacle(
                    kind=ObstacleKind.UNREACHABLE,
                    text="http://a gave no usable answer to a request signed by the current root",
                    hint="Check that it is a GoatDB server and that it works.",
                    nodes=("http://a",),
                ),
            )
        ),
    ),
    (
        "a root that somebody else has just put in place is not rotated again",
        FINISHED,
        [],
        ASKED,
        NOW,
        Busy(rotation_id=None, started_by="", started_at="", phase=Phase.STEADY),
    ),
    (
        "somebody else's rotation is not touched",
        PREPARED,
        [],
        ASKED,
        NOW,
        Busy(
            rotation_id="r1",
            started_by="bob@host:1",
            started_at="2026-11-24T12:00:00.000Z",
            phase=Phase.PREPARED,
            phase_since_ms=NOW,
        ),
    ),
    (
        "nothing is published while a node gives no answer, for that cannot be taken back",
        PREPARED,
        [node(1, holds_introduction=False, trusts_next=False), node(2, **DEAD)],
        MINE,
        NOW,
        Wait(nodes=("n2",), reason=machine.Evidence.ANSWERS, until_ms=LATE),
    ),
    (
        "a node that never answers ends it before anything is published",
        PREPARED,
        [node(1, holds_introduction=False, trusts_next=False), node(2, **DEAD)],
        MINE,
        LATE,
        Abandon(
            step=Step.CANCEL,
            expected="7",
            reason=(
                "not adopted in time: expected that n2 (did not answer) answers a request signed by the current root"
            ),
        ),
    ),
    (
        "that publishing has begun is written before anything is published",
        PREPARED,
        [node(1, holds_introduction=False, trusts_next=False)],
        MINE,
        NOW,
        Advance(step=Step.PUBLISH, expected="7"),
    ),
    (
        "the introduction goes to the nodes that lack it, and to those that did not say",
        PUBLISHED,
        [node(1), node(2, holds_introduction=False), node(3, holds_introduction=None), node(4, **DEAD)],
        MINE,
        NOW,
        Introduce(nodes=("n2", "n3")),
    ),
    (
        "a node that cannot be reached is waited for",
        PUBLISHED,
        [node(1), node(2, **DEAD)],
        MINE,
        NOW,
        Wait(nodes=("n2",), reason=machine.Evidence.HOLDS_INTRODUCTION, until_ms=LATE),
    ),
    (
        "a node that holds the introduction but does not trust B yet is waited for",
        PUBLISHED,
        [node(1), node(2, trusts_next=False)],
        MINE,
        NOW,
        Wait(nodes=("n2",), reason=machine.Evidence.TRUSTS_NEXT, until_ms=LATE),
    ),
    (
        "B signs once every node trusts it and holds its introduction",
        PUBLISHED,
        [node(1, signs_with="A"), node(2, signs_with="A")],
        MINE,
        LATE + 1,
        Advance(step=Step.ACTIVATE, expected="7"),
    ),
    (
        "a node that does not trust B in time ends it, at no cost",
        PUBLISHED,
        [node(1), node(2, trusts_next=False)],
        MINE,
        LATE,
        Abandon(
            step=Step.CANCEL,
            expected="7",
            reason="not adopted in time: expected that n2 answers a request signed by the next root",
        ),
    ),
    (
        "a node that signs with A still is waited for",
        ACTIVATED,
        [node(1, holds_cross_signature=False), node(2, signs_with="A", holds_cross_signature=False)],
        MINE,
        NOW,
        Wait(nodes=("n2",), reason=machine.Evidence.SIGNS_WITH_NEXT, until_ms=LATE),
    ),
    (
        "a node that does not sign with B in time brings A back",
        ACTIVATED,
        [node(1), node(2, signs_with="A")],
        MINE,
        LATE,
        Abandon(
            step=Step.ROLL_BACK,
            expected="7",
            reason="not adopted in time: expected that n2 signs with the next root",
        ),
    ),
    (
        "the cross-signature goes to one node only",
        ACTIVATED,
        [node(1, holds_cross_signature=False), node(2, holds_cross_signature=False)],
        MINE,
        NOW,
        CrossSign(node="n1"),
    ),
    (
        "once one node holds the cross-signature, the others are waited for",
        ACTIVATED,
        [node(1), node(2, holds_cross_signature=False)],
        MINE,
        NOW,
        Wait(nodes=("n2",), reason=machine.Evidence.HOLDS_CROSS_SIGNATURE, until_ms=LATE),
    ),
    (
        "it is not pushed to a second node because the first did not say",
        ACTIVATED,
        [node(1, holds_cross_signature=None), node(2, holds_cross_signature=False)],
        MINE,
        NOW,
        Wait(nodes=("n1", "n2"), reason=machine.Evidence.HOLDS_CROSS_SIGNATURE, until_ms=LATE),
    ),
    (
        "it is verified when every node signs with B and holds the cross-signature",
        ACTIVATED,
        [node(1), node(2)],
        MINE,
        NOW,
        Advance(step=Step.VERIFY, expected="7"),
    ),
    ("then it ends", VERIFIED, [node(1, **DEAD)], MINE, LATE, Advance(step=Step.FINALIZE, expected="7")),
    (
        "a node that rejects the identity document ends it at once",
        ACTIVATED,
        [node(1, rejects="no succession")],
        MINE,
        NOW,
        Abandon(step=Step.ROLL_BACK, expected="7", reason="n1 rejects the identity document: no succession"),
    ),
    (
        "the operator may leave it before B signs",
        PUBLISHED,
        [],
        replace(MINE, goal=Goal.ABANDON, reason="no"),
        NOW,
        Abandon(step=Step.CANCEL, expected="7", reason="no"),
    ),
    (
        "the operator may leave it after B has signed",
        VERIFIED,
        [],
        replace(MINE, goal=Goal.ABANDON, reason="no"),
        NOW,
        Abandon(step=Step.ROLL_BACK, expected="7", reason="no"),
    ),
    (
        "without a version to go back to there is no way back",
        replace(ACTIVATED, rollback_version=None),
        [],
        replace(MINE, goal=Goal.ABANDON),
        NOW,
        Illegal(why="the document does not say which version holds the earlier private key"),
    ),
    (
        "a run that shall stop when prepared stops",
        PREPARED,
        [],
        replace(MINE, to_phase=Phase.PREPARED),
        NOW,
        Done(outcome=Outcome.REACHED),
    ),
    (
        "published is reached when every node trusts B, not before",
        PUBLISHED,
        [node(1, trusts_next=False)],
        replace(MINE, to_phase=Phase.PUBLISHED),
        NOW,
        Wait(nodes=("n1",), reason=machine.Evidence.TRUSTS_NEXT, until_ms=LATE),
    ),
    (
        "activated is reached when every node signs with B",
        ACTIVATED,
        [node(1, holds_cross_signature=False)],
        replace(MINE, to_phase=Phase.ACTIVATED),
        NOW,
        Done(outcome=Outcome.REACHED),
    ),
    (
        "after the end, stable moves to the final version",
        replace(FINISHED, stable="3"),
        [],
        MINE,
        NOW,
        LabelStable(version="7", expected="3"),
    ),
    ("then the run is over", FINISHED, [node(1)], MINE, NOW, Done(outcome=Outcome.ROTATED)),
    (
        "a restore says that it was one",
        replace(FINISHED, restored=frozenset({"r1"})),
        [node(1)],
        MINE,
        NOW,
        Done(outcome=Outcome.RESTORED),
    ),
    (
        "a steady identity is prepared to restore a root",
        STEADY,
        [],
        RESTORING,
        NOW,
        PrepareRestore(expected="7", root_id="Z"),
    ),
    (
        "an expired root needs no endorsement of the one that is restored",
        replace(STEADY, current_expires_ms=NOW - 1),
        [],
        RESTORING,
        NOW,
        PrepareRestore(expected="7", root_id="Z"),
    ),
    (
        "a restore replaces the root that it was asked to replace only",
        replace(STEADY, current_id="C"),
        [],
        RESTORING,
        NOW,
        Busy(rotation_id=None, started_by="", started_at="", phase=Phase.STEADY),
    ),
    (
        "after a roll-back, nodes that can be reached are waited for until they sign with A",
        ROLLED_BACK,
        [node(1, signs_with="A"), node(2)],
        MINE,
        NOW,
        Wait(nodes=("n2",), reason="signs with the restored root", until_ms=NOW + 30_000),
    ),
    (
        "after a roll-back, a node that does not answer may be restarting, and is waited for",
        ROLLED_BACK,
        [node(1, signs_with="A"), node(2, **DEAD)],
        MINE,
        NOW,
        Wait(nodes=("n2",), reason="signs with the restored root", until_ms=NOW + 30_000),
    ),
    (
        "after a cancellation no node restarts, so one that does not answer is reported, not waited for",
        replace(ROLLED_BACK, cancelled=frozenset({"r1"})),
        [node(1, signs_with="A"), node(2, **DEAD)],
        replace(MINE, rotation_id="r1"),
        NOW,
        Done(outcome=Outcome.ABANDONED, behind=("n2",)),
    ),
    (
        "a node that does not answer until the deadline after a roll-back is reported",
        ROLLED_BACK,
        [node(1, signs_with="A"), node(2, **DEAD)],
        MINE,
        NOW + 30_000,
        Done(outcome=Outcome.ABANDONED, behind=("n2",)),
    ),
    (
        "nodes that stay behind are reported in the end",
        ROLLED_BACK,
        [node(1, signs_with="A"), node(2)],
        MINE,
        NOW + 30_000,
        Done(outcome=Outcome.ABANDONED, behind=("n2",)),
    ),
    (
        "to resume where nothing is in progress is nothing",
        STEADY,
        [],
        replace(ASKED, goal=Goal.RESUME),
        NOW,
        Done(outcome=Outcome.NOTHING),
    ),
    (
        "nothing is retired during a rotation",
        PREPARED,
        [],
        replace(ASKED, goal=Goal.RETIRE),
        NOW,
        Illegal(why="nothing is retired while a rotation is in phase prepared"),
    ),
]


@pytest.mark.parametrize(
    ("seen", "nodes", "intent", "now", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_the_next_action(seen: StoreView, nodes: list[NodeView], intent: Intent, now: int, expected: Action) -> None:
    assert decide(Observation(store=seen, nodes=tuple(nodes)), POLICY, intent, now) == expected


def test_a_deadline_gives_whoever_resumes_a_stale_rotation_a_full_chance() -> None:
    observation = Observation(store=PUBLISHED, nodes=(node(1, trusts_next=False),))
    resumed = replace(MINE, goal=Goal.RESUME, began_ms=NOW + 10 * DAY)
    assert isinstance(decide(observation, POLICY, resumed, NOW + 10 * DAY + 59_999), Wait)
    assert isinstance(decide(observation, POLICY, resumed, NOW + 10 * DAY + 60_000), Abandon)


# --- leaving by a named step, and stopping ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.STEADY])
@pytest.mark.parametrize("step", [Step.CANCEL, Step.ROLL_BACK])
def test_who_asks_to_cancel_never_rolls_back_and_the_other_way_round(phase: Phase, step: Step) -> None:
    intent = replace(MINE, goal=Goal.ABANDON, leave_by=step)
    action = decide(Observation(store=store(phase)), POLICY, intent, NOW)
    if BACKWARD[phase] is step:
        assert isinstance(action, Abandon)
        assert action.step is step
    else:
        assert isinstance(action, Illegal)
        assert ("--rollback" if step is Step.CANCEL else "--cancel") in action.hint


@pytest.mark.parametrize("phase", [Phase.ACTIVATED, Phase.VERIFIED])
def test_a_run_that_shall_stop_in_a_phase_that_is_behind_goes_no_further(phase: Phase) -> None:
    intent = replace(MINE, goal=Goal.RESUME, to_phase=Phase.PUBLISHED)
    assert isinstance(decide(Observation(store=store(phase), nodes=(node(1),)), POLICY, intent, NOW), Illegal)


# --- quorum, unlisted servers, health: on top of the evidence, never in its place ------------------------------------

ONE_OF_TWO = replace(POLICY, quorum=machine.Quorum(count=1))
UNLISTED = replace(POLICY, unlisted=timedelta(seconds=40))
WELL, UNWELL = machine.HealthView(failures=0), machine.HealthView(failures=1, problem="bad")
SICK = machine.HealthView(failures=3, problem="bad")
CROSSLESS = {"holds_cross_signature": False}

MORE: list[tuple[str, Observation, Policy, int, Action]] = [
    (
        "with a quorum, a node that does not answer is waited for until patience ends",
        Observation(store=PUBLISHED, nodes=(node(1), node(2, **DEAD))),
        ONE_OF_TWO,
        LATE - 1,
        Wait(nodes=("n2",), reason=machine.Evidence.TRUSTS_NEXT, until_ms=LATE),
    ),
    (
        "then it is left out, and named",
        Observation(store=PUBLISHED, nodes=(node(1), node(2, **DEAD))),
        ONE_OF_TWO,
        LATE,
        Advance(step=Step.ACTIVATE, expected="7", left_out=("n2",)),
    ),
    (
        "a node that answers and does not trust B is not left out",
        Observation(store=PUBLISHED, nodes=(node(1), node(2, trusts_next=False))),
        ONE_OF_TWO,
        LATE,
        Abandon(
            step=Step.CANCEL,
            expected="7",
            reason="not adopted in time: expected that n2 answers a request signed by the next root",
        ),
    ),
    (
        "with a quorum, the cross-signature does not wait for a node that does not answer",
        Observation(store=ACTIVATED, nodes=(node(1, **CROSSLESS), node(2, **DEAD))),
        ONE_OF_TWO,
        NOW,
        CrossSign(node="n1"),
    ),
    (
        "without one, it does",
        Observation(store=ACTIVATED, nodes=(node(1, **CROSSLESS), node(2, **DEAD))),
        POLICY,
        NOW,
        Wait(nodes=("n2",), reason=machine.Evidence.SIGNS_WITH_NEXT, until_ms=LATE),
    ),
    (
        "unlisted servers have their time though all that are listed have followed",
        Observation(store=PUBLISHED, nodes=(node(1),)),
        UNLISTED,
        NOW + 39_999,
        Wait(nodes=(), reason="servers that are not listed read the store", until_ms=NOW + 40_000),
    ),
    (
        "then B signs",
        Observation(store=PUBLISHED, nodes=(node(1),)),
        UNLISTED,
        NOW + 40_000,
        Advance(step=Step.ACTIVATE, expected="7"),
    ),
    (
        "their time alone moves nothing",
        Observation(store=PUBLISHED, nodes=(node(1, trusts_next=False),)),
        UNLISTED,
        NOW + 40_000,
        Wait(nodes=("n1",), reason=machine.Evidence.TRUSTS_NEXT, until_ms=LATE),
    ),
    (
        "while it is not known who the nodes are, nothing moves",
        Observation(store=PUBLISHED, nodes=(node(1),), nodes_unknown="no answer"),
        POLICY,
        NOW,
        Wait(nodes=(), reason="the servers can be discovered: no answer", until_ms=LATE),
    ),
    (
        "and in the end it is given up",
        Observation(store=ACTIVATED, nodes=(node(1),), nodes_unknown="no answer"),
        POLICY,
        LATE,
        Abandon(
            step=Step.ROLL_BACK,
            expected="7",
            reason="not in time: expected that the servers can be discovered: no answer",
        ),
    ),
    (
        "a bad answer about health holds it",
        Observation(store=ACTIVATED, nodes=(node(1),), health=UNWELL),
        POLICY,
        NOW,
        Wait(nodes=(), reason="the health check passes again: bad", until_ms=LATE),
    ),
    (
        "several in a row bring A back, though every node has followed",
        Observation(store=VERIFIED, nodes=(node(1),), health=SICK),
        POLICY,
        NOW,
        Abandon(step=Step.ROLL_BACK, expected="7", reason="not healthy, 3 times in a row: bad"),
    ),
    (
        "health is watched for a while before the end",
        Observation(store=VERIFIED, nodes=(node(1),), health=WELL),
        POLICY,
        NOW + 9_999,
        Wait(nodes=(), reason="stays healthy", until_ms=NOW + 10_000),
    ),
    (
        "then it ends",
        Observation(store=VERIFIED, nodes=(node(1),), health=WELL),
        POLICY,
        NOW + 10_000,
        Advance(step=Step.FINALIZE, expected="7"),
    ),
    (
        "good health is no evidence",
        Observation(store=ACTIVATED, nodes=(node(1, signs_with="A"),), health=WELL),
        POLICY,
        LATE,
        Abandon(
            step=Step.ROLL_BACK, expected="7", reason="not adopted in time: expected that n1 signs with the next root"
        ),
    ),
]


@pytest.mark.parametrize(("seen", "policy", "now", "expected"), [c[1:] for c in MORE], ids=[c[0] for c in MORE])
def test_the_next_action_under_a_policy(seen: Observation, policy: Policy, now: int, expected: Action) -> None:
    assert decide(seen, policy, MINE, now) == expected


@pytest.mark.slow
def test_whatever_is_seen_a_quorum_leaves_out_nobody_who_answers() -> None:
    policy = replace(POLICY, quorum=machine.Quorum(count=1))
    for observation in all_observations():
        for now in (NOW, LATE):
            action = decide(observation, policy, MINE, now)
            if isinstance(action, Advance):
                lacking = machine.missing(observation, action.step)
                behind = {url for urls in lacking.values() for url in urls}
                assert set(action.left_out) == behind
                assert not {one.url for one in observation.nodes if one.reachable} & behind
                assert len(behind) < 2
                assert not behind or now == LATE or action.step is Step.PUBLISH


def test_after_a_cancel_nobody_waits_for_a_node_that_signs_with_neither_root() -> None:
    steady = Observation(store=STEADY, nodes=(node(1, signs_with="A"), node(2, signs_with="of another cluster")))
    done = Done(outcome=Outcome.ABANDONED, behind=("n2",))
    assert decide(steady, POLICY, MINE, NOW) == done
    late = replace(steady, nodes=(node(1, signs_with="A"), node(2, signs_with="B")))
    assert isinstance(decide(late, POLICY, MINE, NOW), Wait)


# --- retiring ------------------------------------------------------------------------------------------------------

RETIRE = replace(ASKED, goal=Goal.RETIRE, from_id="B")


def version(number: int, *private: str, retired_ms: int = NOW) -> VersionView:
    return VersionView(version=str(number), created_ms=NOW - DAY, private_ids=frozenset(private), retired_ms=retired_ms)


def test_a_version_with_a_retired_key_is_destroyed_after_the_grace_period_and_not_before() -> None:
    seen = Observation(store=FINISHED, versions=(version(7, "B"), version(6, "B"), version(5, "A", "B")))
    assert decide(seen, POLICY, RETIRE, NOW + DAY - 1) == Done(outcome=Outcome.NOTHING)
    assert decide(seen, POLICY, RETIRE, NOW + DAY) == Destroy(version="5")


def test_the_current_and_the_stable_version_are_never_destroyed() -> None:
    for number in (7, 3):
        held = replace(FINISHED, stable="7")
        seen = Observation(store=held, versions=(version(7, "A"), version(3, "B")))
        assert decide(seen, POLICY, RETIRE, NOW + 9 * DAY) == Done(outcome=Outcome.NOTHING), number


def test_a_root_is_recorded_as_retired_when_its_last_copy_is_gone() -> None:
    held = replace(FINISHED, unretired=(("C", NOW), ("A", NOW)))
    seen = Observation(store=held, versions=(version(7, "B"), version(4, "C", retired_ms=NOW + 5 * DAY)))
    assert decide(seen, POLICY, RETIRE, NOW + DAY) == RecordRetired(session_id="A", expected="7")
    assert decide(seen, POLICY, RETIRE, NOW + DAY - 1) == Done(outcome=Outcome.NOTHING)


def test_nothing_is_said_to_be_gone_while_a_version_cannot_be_looked_at() -> None:
    dark = replace(version(3), problem="switched off")
    held = replace(FINISHED, unretired=(("A", NOW),))
    seen = Observation(store=held, versions=(version(7, "B"), dark))
    assert decide(seen, POLICY, RETIRE, NOW + DAY) == Done(outcome=Outcome.NOTHING)
    clear = Observation(store=held, versions=(version(7, "B"), version(3, "B")))
    assert decide(clear, POLICY, RETIRE, NOW + DAY) == RecordRetired(session_id="A", expected="7")


# --- when to rotate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "left"),
    [
        (timedelta(hours=1), timedelta(minutes=30)),
        (timedelta(days=60), timedelta(days=30)),
        (timedelta(days=365), timedelta(days=60)),
    ],
)
def test_a_root_is_due_at_half_its_life_and_at_most_sixty_days_before_its_end(
    lifetime: timedelta, left: timedelta
) -> None:
    expires = NOW + lifetime // timedelta(milliseconds=1)
    due = rotation_due_ms(issued_ms=NOW, expires_ms=expires, policy=Policy())
    assert expires - due == left // timedelta(milliseconds=1)


# --- the tables ------------------------------------------------------------------------------------------------------


def test_every_phase_has_one_way_forward_and_every_rotating_phase_one_way_back_to_steady() -> None:
    assert set(FORWARD) == set(Phase)
    assert set(BACKWARD) == set(Phase) - {Phase.STEADY}
    moves = {(phase, step) for table in (FORWARD, BACKWARD) for phase, step in table.items()}
    assert moves | {(Phase.STEADY, Step.PRUNE)} == set(STEPS)
    assert all(STEPS[phase, step] is Phase.STEADY for phase, step in BACKWARD.items())
    assert set(GATES) == set(Step)


# --- everything, exhaustively ----------------------------------------------------------------------------------------

SIGHTS = [
    {"trusts_next": trusts, "holds_introduction": holds, "signs_with": signs, "holds_cross_signature": cross}
    for trusts, holds, signs, cross in product((True, False), (True, False, None), ("A", "B", None), (True, False))
] + [DEAD, {"rejects": "it says so"}]


def all_observations() -> Iterator[Observation]:
    for phase, stable, first, second in product(Phase, (None, "6", "7"), SIGHTS, SIGHTS):
        for current in ("A", "B") if phase is Phase.STEADY else (None,):
            seen = store(phase, stable=stable)
            seen = replace(seen, current_id=current) if current else seen
            yield Observation(store=seen, nodes=(node(1, **first), node(2, **second)))


INTENTS = [
    replace(base, goal=goal, to_phase=to_phase)
    for base, goal, to_phase in product((ASKED, MINE), (Goal.ROTATE, Goal.ABANDON), (None, Phase.PUBLISHED))
]


@pytest.mark.slow
def test_whatever_is_seen_no_rule_is_broken() -> None:
    count = 0
    for observation in all_observations():
        for intent, now in product(INTENTS, (NOW, LATE)):
            action = decide(observation, POLICY, intent, now)
            count += 1
            seen, nodes = observation.store, observation.nodes
            if seen.phase is not Phase.STEADY and intent.rotation_id is None:
                assert isinstance(action, Busy)
            if isinstance(action, Advance | Abandon):
                assert (seen.phase, action.step) in STEPS
                assert action.expected == seen.version
            if isinstance(action, Advance) and action.step is Step.ACTIVATE:
                assert all(one.trusts_next and one.holds_introduction for one in nodes)
            if isinstance(action, Advance) and action.step is Step.VERIFY:
                assert all(one.signs_with == "B" and one.holds_cross_signature for one in nodes)
            if isinstance(action, Wait):
                assert action.until_ms > now
                assert seen.phase is Phase.STEADY or now < LATE
            if isinstance(action, Prepare | LabelStable | Destroy):
                assert seen.phase is Phase.STEADY
            if isinstance(action, Prepare):
                assert seen.stable == seen.version
            if isinstance(action, Introduce | CrossSign):
                assert seen.phase in (Phase.PUBLISHED, Phase.ACTIVATED)
            if isinstance(action, Done) and action.outcome is Outcome.ROTATED:
                assert seen.current_id == "B"
    assert count == len(SIGHTS) ** 2 * 3 * 6 * len(INTENTS) * 2


@dataclass(frozen=True)
class World:
    """A model of the cluster: what the store holds, and of each node what it knows, what it signs with, if it is up."""

    phase: Phase
    current: str
    stable_moved: bool
    began: bool
    nodes: tuple[tuple[bool, bool, str, bool, bool], ...]  # introduction, trusts, signs with, cross-signature, up


def seen_of(world: World) -> Observation:
    views = tuple(
        node(i, holds_introduction=intro, trusts_next=trusts, signs_with=signs, holds_cross_signature=cross)
        if up
        else node(i, **DEAD)
        for i, (intro, trusts, signs, cross, up) in enumerate(world.nodes)
    )
    seen = replace(store(world.phase), current_id=world.current, stable="7" if world.stable_moved else "6")
    return Observation(store=seen, nodes=views)


def acted(world: World, action: Action) -> World:
    nodes = list(world.nodes)
    match action:
        case LabelStable():
            return replace(world, stable_moved=True)
        case Prepare():
            return replace(world, phase=Phase.PREPARED, began=True, stable_moved=False)
        case Introduce(nodes=urls):
            for url in urls:
                _, _, signs, cross, up = nodes[int(url[1:])]
                nodes[int(url[1:])] = (True, True, signs, cross, up)
        case CrossSign(node=url):
            intro, trusts, signs, _, up = nodes[int(url[1:])]
            nodes[int(url[1:])] = (intro, trusts, signs, True, up)
        case Advance(step=step) | Abandon(step=step):
            phase = STEPS[world.phase, step]
            current = {Step.ACTIVATE: "B", Step.ROLL_BACK: "A"}.get(step, world.current)
            return replace(world, phase=phase, current=current, stable_moved=False)
    return replace(world, nodes=tuple(nodes))


def by_itself(world: World) -> Iterator[World]:
    """What nodes do without the rotator: look at the store, pass commits on, go down and come up."""
    for i, (intro, trusts, signs, cross, up) in enumerate(world.nodes):

        def with_node(*changed: object, at: int = i) -> World:
            return replace(world, nodes=(*world.nodes[:at], changed, *world.nodes[at + 1 :]))

        yield with_node(intro, trusts, signs, cross, not up)
        if up:
            yield with_node(intro, trusts or world.phase is not Phase.STEADY, world.current, cross, up)
            for other in world.nodes:
                if other[4] and (other[0], other[3]) != (intro, cross):
                    yield with_node(intro or other[0], trusts or other[0], signs, cross or other[3], up)


def explore() -> set[World]:
    """Walk every state that a rotation, its nodes and an adversary of time can reach."""
    fresh = (False, False, "A", False, True)
    first = World(phase=Phase.STEADY, current="A", stable_moved=False, began=False, nodes=(fresh, fresh))
    seen, queue = {first}, deque([first])
    while queue:
        world = queue.popleft()
        following = list(by_itself(world))
        for goal, now in product((Goal.ROTATE, Goal.ABANDON), (NOW, LATE)):
            if goal is Goal.ABANDON and not world.began:
                continue
            intent = replace(MINE if world.began else ASKED, goal=goal)
            following.append(acted(world, decide(seen_of(world), POLICY, intent, now)))
        for one in following:
            if one not in seen:
                seen.add(one)
                queue.append(one)
    return seen


def unsafe(world: World) -> bool:
    """Whether some node signs with a root that some node does not trust or was not introduced to."""
    return any(one[2] == "B" for one in world.nodes) and not all(one[0] and one[1] for one in world.nodes)


def test_in_every_reachable_state_whoever_signs_is_trusted_by_all() -> None:
    worlds = explore()
    assert len(worlds) > 200
    assert not [world for world in worlds if unsafe(world)]
    assert {world.phase for world in worlds} == set(Phase)


def test_from_every_reachable_state_the_way_to_steady_is_short_whatever_the_nodes_do() -> None:
    for world in explore():
        if not world.began:
            continue
        for goal in (Goal.RESUME, Goal.ABANDON):
            at, steps = world, 0
            while True:
                action = decide(seen_of(at), POLICY, replace(MINE, goal=goal), LATE + DAY)
                if isinstance(action, Done):
                    break
                assert not isinstance(action, Wait | Busy | Illegal), (at, action)
                at, steps = acted(at, action), steps + 1
                assert steps < 10, world
            assert at.phase is Phase.STEADY
            assert at.stable_moved


@pytest.mark.parametrize("kept", [(), (machine.Evidence.TRUSTS_NEXT,), (machine.Evidence.HOLDS_INTRODUCTION,)])
def test_without_its_gate_the_walk_finds_a_signer_that_is_not_trusted(
    kept: tuple[machine.Evidence, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GATES, Step.ACTIVATE, kept)
    assert any(unsafe(world) for world in explore()) is (kept != (machine.Evidence.HOLDS_INTRODUCTION,))
