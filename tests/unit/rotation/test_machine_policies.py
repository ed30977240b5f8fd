"""The decision under a policy: quorum, unlisted servers, health checks, the grace period, and when a root is due."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.key_inventory import Holding
from goatherd.providers.values import CURRENT, SecretVersion, VersionId
from goatherd.rotation import machine
from goatherd.rotation.machine import (
    Abandon,
    Action,
    Advance,
    CrossSign,
    Destroy,
    Done,
    Goal,
    Observation,
    Outcome,
    Policy,
    RecordRetired,
    Step,
    Wait,
    decide,
    rotation_due_ms,
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
    PUBLISHED,
    STEADY,
    VERIFIED,
    all_observations,
    node,
)

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
            reason="timeout: expected that n2 answers a request signed by the next root",
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
            reason="timeout: expected that the servers can be discovered: no answer",
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
        Abandon(step=Step.ROLL_BACK, expected="7", reason="timeout: expected that n1 signs with the next root"),
    ),
]


@pytest.mark.parametrize(("seen", "policy", "now", "expected"), [c[1:] for c in MORE], ids=[c[0] for c in MORE])
def test_the_next_action_under_a_policy(seen: Observation, policy: Policy, now: int, expected: Action) -> None:
    assert decide(seen, policy, MINE, now) == expected


@pytest.mark.slow
def test_a_quorum_never_leaves_out_a_server_that_answers() -> None:
    policy = replace(POLICY, quorum=machine.Quorum(count=1))
    for observation in all_observations():
        for now in (NOW, LATE):
            action = decide(observation, policy, MINE, now)
            if isinstance(action, Advance):
                lacking = machine.find_missing_evidence(observation, action.step)
                behind = {url for urls in lacking.values() for url in urls}
                assert set(action.left_out) == behind
                assert not {one.url for one in observation.nodes if one.reachable} & behind
                assert len(behind) < 2
                assert not behind or now == LATE or action.step is Step.PUBLISH


def test_after_a_cancel_no_node_that_signs_with_neither_root_is_waited_for() -> None:
    steady = Observation(store=STEADY, nodes=(node(1, signs_with="A"), node(2, signs_with="of another cluster")))
    done = Done(outcome=Outcome.ENDED, behind=("n2",))
    assert decide(steady, POLICY, MINE, NOW) == done
    late = replace(steady, nodes=(node(1, signs_with="A"), node(2, signs_with="B")))
    assert isinstance(decide(late, POLICY, MINE, NOW), Wait)


# --- retiring ------------------------------------------------------------------------------------------------------

RETIRE = replace(ASKED, goal=Goal.RETIRE, from_id="B")


def version(number: int, *private: str, retired_ms: int = NOW) -> Holding:
    stored = SecretVersion(id=VersionId(str(number)), created_ms=NOW - DAY)
    return Holding(version=stored, private_ids=frozenset(private), retired_ms=retired_ms)


def test_a_version_with_a_retired_key_is_destroyed_after_the_grace_period_and_not_before() -> None:
    seen = Observation(store=FINISHED, versions=(version(7, "B"), version(6, "B"), version(5, "A", "B")))
    assert decide(seen, POLICY, RETIRE, NOW + DAY - 1) == Done(outcome=Outcome.NOTHING)
    assert decide(seen, POLICY, RETIRE, NOW + DAY) == Destroy(version="5")


def test_the_current_and_the_stable_version_are_never_destroyed() -> None:
    for number in (7, 3):
        held = replace(FINISHED, stable="7")
        seen = Observation(store=held, versions=(version(7, "A"), version(3, "B")))
        assert decide(seen, POLICY, RETIRE, NOW + 9 * DAY) == Done(outcome=Outcome.NOTHING), number


def test_what_the_store_of_another_region_uses_is_neither_destroyed_nor_forgotten() -> None:
    held = replace(FINISHED, unretired=(("A", NOW),))
    copied = SecretVersion(id=VersionId("us:3"), created_ms=NOW - DAY, labels=frozenset({CURRENT}))
    used = replace(version(0, "A"), version=copied, is_copied=True)
    seen = Observation(store=held, versions=(version(7, "B"), used))
    assert decide(seen, POLICY, RETIRE, NOW + 9 * DAY) == Done(outcome=Outcome.NOTHING)
    moved = replace(seen, versions=(version(7, "B"), replace(used, version=replace(copied, labels=frozenset()))))
    assert decide(moved, POLICY, RETIRE, NOW + 9 * DAY) == Destroy(version="us:3")


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
