"""The decision: each row is a sentence, an observation, and the expected action."""

from __future__ import annotations

from dataclasses import replace

import pytest

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.identity.key_age import EXPIRED_HINT
from goatherd.identity.transitions import NO_WAY_BACK_HINT
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
    Prepare,
    PrepareRestore,
    Refuse,
    Step,
    StoreView,
    Wait,
    decide,
)
from tests.unit.rotation.views import (
    ACTIVATED,
    ASKED,
    DAY,
    DEAD,
    FINISHED,
    LATE,
    MINE,
    NOW,
    POLICY,
    PREPARED,
    PUBLISHED,
    RESTORING,
    ROLLED_BACK,
    STEADY,
    VERIFIED,
    node,
    store,
)


def pending_restart() -> ServerIdentity:
    """Return the report of an agent that must restart its server to make it reject a revoked root."""
    report = ServerIdentity.from_json({"signer": "B", "agent": {"state": "serving", "pending": ["root X is revoked"]}})
    assert report is not None
    return report


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
        "an expired root introduces no root",
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
        [NodeView(url="http://a", reachable=True, trusts_current=True), NodeView(url="http://b", reachable=False)],
        ASKED,
        NOW,
        Refuse(
            obstacles=(
                Obstacle(
                    kind=ObstacleKind.UNREACHABLE,
                    text="http://b did not answer",
                    hint="Every listed server must accept a request signed by the current root before a rotation "
                    "begins. Start the server, or remove it from the list if it no longer exists. If its agent has "
                    "ended with exit status 12, the server exposed the key: in place of the rotation, run goatherd "
                    "revoke A.",
                    nodes=("http://b",),
                ),
            )
        ),
    ),
    (
        "a server that answers, and was not seen to accept the current root, is not taken for one that does",
        STEADY,
        [NodeView(url="http://a", reachable=True, trusts_current=None)],
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
        "a root that another operator has just put in place is not rotated again",
        FINISHED,
        [],
        ASKED,
        NOW,
        Busy(rotation_id=None, started_by="", started_ms=0, phase=Phase.STEADY),
    ),
    (
        "another operator's rotation is not touched",
        PREPARED,
        [],
        ASKED,
        NOW,
        Busy(
            rotation_id="r1",
            started_by="bob@host:1",
            started_ms=1_795_521_600_000,
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
            reason=("timeout: expected that n2 (did not answer) answers a request signed by the current root"),
        ),
    ),
    (
        "the reason names a clock that makes a node reject requests",
        PREPARED,
        [
            node(1, holds_introduction=False),
            node(2, holds_introduction=None, trusts_current=False, clock_ahead_ms=-180_001),
        ],
        MINE,
        LATE,
        Abandon(
            step=Step.CANCEL,
            expected="7",
            reason=("timeout: expected that n2 (its clock differs) answers a request signed by the current root"),
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
            reason="timeout: expected that n2 answers a request signed by the next root",
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
        "a server whose agent has read the rotation's document and still has to restart it is waited for",
        ACTIVATED,
        [node(1), node(2, generation=7, report=pending_restart())],
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
            reason="timeout: expected that n2 signs with the next root",
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
        "a roll-back that no server would follow is not written",
        replace(VERIFIED, can_go_back=False),
        [node(1, rejects="identity.not_anchored")],
        MINE,
        NOW,
        Illegal(
            why="the rotation can only be completed, because servers would not follow a roll-back"
            " (n1 rejects the identity document: identity.not_anchored)",
            hint=NO_WAY_BACK_HINT,
        ),
    ),
    (
        "a rotation whose next root has signed nothing can be cancelled without a way back",
        replace(PUBLISHED, can_go_back=False),
        [],
        replace(MINE, goal=Goal.ABANDON, reason="no"),
        NOW,
        Abandon(step=Step.CANCEL, expected="7", reason="no"),
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
        Busy(rotation_id=None, started_by="", started_ms=0, phase=Phase.STEADY),
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
        Done(outcome=Outcome.CANCELLED, behind=("n2",)),
    ),
    (
        "a node that does not answer until the deadline after a roll-back is reported",
        ROLLED_BACK,
        [node(1, signs_with="A"), node(2, **DEAD)],
        MINE,
        NOW + 30_000,
        Done(outcome=Outcome.ROLLED_BACK, behind=("n2",)),
    ),
    (
        "nodes that stay behind are reported in the end",
        ROLLED_BACK,
        [node(1, signs_with="A"), node(2)],
        MINE,
        NOW + 30_000,
        Done(outcome=Outcome.ROLLED_BACK, behind=("n2",)),
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


def test_resuming_a_stale_rotation_begins_a_full_deadline() -> None:
    observation = Observation(store=PUBLISHED, nodes=(node(1, trusts_next=False),))
    resumed = replace(MINE, goal=Goal.RESUME, began_ms=NOW + 10 * DAY)
    assert isinstance(decide(observation, POLICY, resumed, NOW + 10 * DAY + 59_999), Wait)
    assert isinstance(decide(observation, POLICY, resumed, NOW + 10 * DAY + 60_000), Abandon)


# --- leaving by a named step, and stopping ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.STEADY])
@pytest.mark.parametrize("step", [Step.CANCEL, Step.ROLL_BACK])
def test_who_asks_to_cancel_never_rolls_back_and_the_other_way_round(phase: Phase, step: Step) -> None:
    intent = replace(MINE, goal=Goal.ABANDON, required_step=step)
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


# --- the tables ------------------------------------------------------------------------------------------------------


def test_every_phase_has_one_way_forward_and_every_rotating_phase_one_way_back_to_steady() -> None:
    assert set(FORWARD) == set(Phase)
    assert set(BACKWARD) == set(Phase) - {Phase.STEADY}
    moves = {(phase, step) for table in (FORWARD, BACKWARD) for phase, step in table.items()}
    assert moves | {(Phase.STEADY, Step.PRUNE)} == set(STEPS)
    assert all(STEPS[phase, step] is Phase.STEADY for phase, step in BACKWARD.items())
    assert set(GATES) == set(Step)
