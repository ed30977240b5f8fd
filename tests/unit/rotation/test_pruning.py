"""Earlier roots leave the identity document once every server holds their introduction; the document stays small."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import IllegalStepError, NotAdoptedError
from goatherd.identity.document import Phase, encode_document
from goatherd.identity.transitions import MOST_BYTES
from goatherd.rotation.events import Decided, Event
from goatherd.rotation.machine import (
    GATES,
    Done,
    Evidence,
    Goal,
    Illegal,
    Intent,
    IntroduceEarlier,
    LabelStable,
    NodeView,
    Observation,
    Outcome,
    Prepare,
    Prune,
    Step,
    decide,
)
from goatherd.rotation.policy import Quorum
from tests.fakes.herd import DATA, SESSIONS, Herd
from tests.unit.identity.make import USUAL_BYTES
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for
from tests.unit.rotation.views import NOW, store

GRACE = timedelta(hours=1)
QUICK = replace(POLICY, grace=GRACE)
MINE = Intent(goal=Goal.ROTATE, began_ms=NOW, from_id="A", rotation_id="r1", to_id="B")
FRESH = Intent(goal=Goal.ROTATE, began_ms=NOW, from_id="B")
OVER = store(Phase.STEADY, current_id="B", finished=frozenset({"r1"}), leaving=("X", "Y"))
FULL = replace(OVER, is_full=True)


def node(number: int, *held: str, **changes: object) -> NodeView:
    view = NodeView(
        url=f"http://n{number}", reachable=True, signs_with="B", trusts_current=True, holds_earlier=frozenset(held)
    )
    return replace(view, **changes)


SILENT = node(3, reachable=False, trusts_current=None, holds_earlier=None, signs_with=None)
ROTATED = Done(outcome=Outcome.ROTATED)


# --- the decision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node(1, "X", "Y"), node(2, "X", "Y")], Prune(session_ids=("X", "Y"), expected="7")),
        ([node(1, "X", "Y"), node(2, "Y")], Prune(session_ids=("Y",), expected="7")),
        (
            [node(1, "X", "Y"), node(2)],
            IntroduceEarlier(session_ids=("X", "Y"), nodes=("http://n2",)),
        ),
        (
            [node(1), node(2, holds_earlier=None)],
            IntroduceEarlier(session_ids=("X", "Y"), nodes=("http://n1", "http://n2")),
        ),
        ([], ROTATED),
    ],
    ids=["all", "one of them", "a node lacks both", "not known is not yes", "no server is listed"],
)
def test_a_root_leaves_only_when_every_listed_node_was_seen_to_hold_it(nodes: list[NodeView], expected: object) -> None:
    assert decide(Observation(store=OVER, nodes=tuple(nodes)), POLICY, MINE, NOW) == expected


def test_a_node_that_does_not_answer_keeps_every_root_in_the_document_and_holds_up_nothing() -> None:
    seen = Observation(store=OVER, nodes=(node(1, "X", "Y"), node(2), SILENT))
    done = replace(ROTATED, behind=("http://n3",))
    assert decide(seen, POLICY, MINE, NOW) == done
    assert decide(seen, replace(POLICY, quorum=Quorum(count=1)), MINE, NOW) == done, "no quorum excuses a node here"
    unknown = Observation(store=OVER, nodes=(node(1, "X", "Y"),), nodes_unknown="DNS is down")
    assert decide(unknown, POLICY, MINE, NOW) == ROTATED


def test_a_node_that_never_shows_it_does_not_hold_up_the_end_of_a_rotation() -> None:
    seen = Observation(store=OVER, nodes=(node(1, "X", "Y"), node(2)))
    late = NOW + POLICY.node_timeout // timedelta(milliseconds=1)
    assert decide(seen, POLICY, MINE, late) == ROTATED


def test_a_full_document_begins_no_rotation_before_there_is_room() -> None:
    nodes = (node(1, "X"), node(2, "X"))
    assert decide(Observation(store=FULL, nodes=nodes), POLICY, FRESH, NOW) == Prune(session_ids=("X",), expected="7")
    unlabelled = replace(FULL, stable="6")
    assert isinstance(decide(Observation(store=unlabelled, nodes=nodes), POLICY, FRESH, NOW), LabelStable)
    room = replace(FULL, is_full=False)
    assert isinstance(decide(Observation(store=room), POLICY, FRESH, NOW), Prepare)


@pytest.mark.parametrize(
    ("changes", "nodes", "problem", "advice"),
    [
        ({}, (node(1, "X", "Y"), SILENT), "http://n3 (did not answer)", "Start the servers"),
        ({}, (node(1), SILENT), "http://n3 (did not answer)", "Start the servers"),
        ({}, (), "no server is listed", "--node URL"),
        ({"leaving": ()}, (node(1),), "no previous root that may be removed", "`goatherd revoke`"),
    ],
)
def test_a_full_document_is_said_to_be_full_and_who_is_in_the_way_is_named(
    changes: dict[str, object], nodes: tuple[NodeView, ...], problem: str, advice: str
) -> None:
    seen = Observation(store=replace(FULL, **changes), nodes=nodes)
    answer = decide(seen, replace(POLICY, quorum=Quorum(count=1)), FRESH, NOW)
    assert isinstance(answer, Illegal)
    assert "too large for another rotation" in answer.why
    assert problem in answer.why
    assert "http://n1" not in answer.why
    assert advice in answer.hint


def test_without_its_gate_a_root_would_leave_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GATES, Step.PRUNE, ())
    seen = Observation(store=OVER, nodes=(node(1), node(2)))
    assert isinstance(decide(seen, POLICY, MINE, NOW), Prune)
    assert Evidence.HOLDS_EARLIER not in GATES[Step.PRUNE]


# --- in a herd --------------------------------------------------------------------------------------------------------


async def retire(herd: Herd) -> None:
    herd.clock.turn(2 * GRACE)
    await rotator_for(herd, policy=QUICK).retire()


async def rotate(herd: Herd, *, events: list[Event] | None = None) -> None:
    report = await rotator_for(herd, policy=QUICK, events=events).rotate()
    assert report.outcome is Outcome.ROTATED
    await retire(herd)


@pytest.mark.slow
async def test_after_some_rotations_only_the_latest_roots_are_left_and_all_are_trusted(make_herd: MakeHerd) -> None:
    herd = await make_herd(unmodified=())
    signers = []
    for _ in range(5):
        await herd.step()
        signers.append((await document_of(herd)).current.id)
        await rotate(herd)
    document = await check_steady(herd)
    assert [root.id for root in document.roots] == [document.rotated_from, document.current.id]
    assert document.pruned == 4
    assert document.retired_ids <= {document.rotated_from}
    for one in herd.nodes:
        one.restart()
        assert {*signers, document.current.id} <= set(one.pool.root_ids), "from /sys/sessions, after a restart too"
    assert herd.unverifiable() == []
    assert len(encode_document(document)) < USUAL_BYTES


@pytest.mark.slow
async def test_an_unmodified_server_gets_the_introductions_too(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=2, unmodified=[1])
    policy = replace(QUICK, bare=frozenset({herd.nodes[1].base_url}))
    for _ in range(3):
        assert (await rotator_for(herd, policy=policy).rotate()).outcome is Outcome.ROTATED
        await retire(herd)
    document = await document_of(herd)
    assert document.pruned == 2
    introducers = {one.session for one in herd.nodes[1].commits(SESSIONS) if one.key == "root-a"}
    assert len(introducers) == 2, "the root after it, and the one that signed when it left"
    herd.nodes[1].restart()
    assert "root-a" in herd.nodes[1].pool.root_ids


@pytest.mark.slow
async def test_a_server_that_is_down_keeps_the_roots_in_and_they_leave_when_it_is_back(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    tolerant = replace(QUICK, quorum=Quorum(count=2))
    herd.nodes[2].faults.cut_off = True
    for _ in range(4):
        assert (await rotator_for(herd, policy=tolerant).rotate()).outcome is Outcome.ROTATED
        await retire(herd)
    assert (await document_of(herd)).pruned == 0
    herd.nodes[2].faults.cut_off = False
    await herd.settle()
    await rotate(herd)
    document = await check_steady(herd)
    assert document.pruned == 4


@pytest.mark.slow
async def test_with_a_server_down_permanently_rotations_end_before_any_store_is_full_and_the_server_is_named(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd(clients=0)
    tolerant = replace(QUICK, quorum=Quorum(count=2), adoption=timedelta(seconds=5))
    herd.nodes[2].faults.cut_off = True
    sizes: list[int] = []

    async def rotate_until_refused() -> None:
        for _ in range(40):
            await rotator_for(herd, policy=tolerant).rotate()
            sizes.append(len(encode_document(await document_of(herd))))
            await retire(herd)

    with pytest.raises(IllegalStepError, match="too large for another rotation") as caught:
        await rotate_until_refused()
    assert "node-2 (did not answer)" in str(caught.value)
    assert "servers that no longer exist from the list" in caught.value.hint
    rotator = rotator_for(herd, policy=tolerant)
    assert str(caught.value) in [one.text for one in (await rotator.survey()).obstacles]
    assert str(caught.value) in (await rotator.plan()).obstacles
    assert len(sizes) >= 8
    assert max(sizes) < MOST_BYTES - 8 * 1024
    herd.nodes[2].faults.cut_off = False
    await herd.settle()
    await rotate(herd)
    assert (await check_steady(herd)).pruned == len(sizes)


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.PREPARED, pytest.param(Phase.PUBLISHED, marks=pytest.mark.deep)])
async def test_fifty_cancelled_rotations_leave_a_small_document_that_a_server_follows_that_has_seen_none(
    make_herd: MakeHerd, phase: Phase
) -> None:
    herd = await make_herd(clients=1)
    before = await document_of(herd)
    herd.nodes[2].faults.store_lost = True
    away = replace(QUICK, distrust=frozenset({herd.nodes[2].base_url}))
    for _ in range(50):
        await rotator_for(herd, policy=away, nodes=herd.nodes[:2]).rotate(to_phase=phase)
        await rotator_for(herd, policy=away, nodes=herd.nodes[:2]).abandon("changed my mind")
        assert len(encode_document(await document_of(herd))) < USUAL_BYTES
    document = await document_of(herd)
    assert document.roots == before.roots
    herd.nodes[2].faults.store_lost = False
    await check_steady(herd)


@pytest.mark.slow
async def test_rolled_back_roots_leave_too_and_what_they_signed_still_verifies(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    for number in range(12):
        await rotator_for(herd, policy=QUICK).rotate(to_phase=Phase.ACTIVATED)
        await herd.add_clients(1)
        if number % 2:
            await rotator_for(herd, policy=QUICK).resume()
        else:
            await rotator_for(herd, policy=QUICK).abandon("not well")
        await retire(herd)
        assert len(encode_document(await document_of(herd))) < USUAL_BYTES
    document = await check_steady(herd)
    assert document.pruned >= 9
    for one in herd.nodes:
        one.restart()
    assert herd.unverifiable(SESSIONS, DATA) == []


@pytest.mark.slow
async def test_a_push_that_a_server_forgets_does_not_make_a_rotation_fail_or_last(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotate(herd)
    began, events = herd.clock.now_ms(), list[Event]()

    def forget(event: Event) -> None:
        events.append(event)
        if isinstance(event, Decided) and isinstance(event.action, IntroduceEarlier):
            herd.nodes[1].faults.forgets_pushes = True

    report = await rotator_for(herd, policy=QUICK, listener=forget).rotate()
    assert report.outcome is Outcome.ROTATED
    assert any(isinstance(one, Decided) and isinstance(one.action, IntroduceEarlier) for one in events)
    assert (await document_of(herd)).pruned == 0
    assert herd.clock.now_ms() - began < 10_000


@pytest.mark.slow
async def test_the_end_of_a_rotation_that_is_abandoned_lets_roots_leave_as_well(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotate(herd)
    await rotate(herd)
    herd.nodes[0].faults.forgets_pushes = True
    with pytest.raises(NotAdoptedError):
        await rotator_for(herd, policy=QUICK).rotate()
    assert (await document_of(herd)).pruned == 1
    herd.nodes[0].faults.forgets_pushes = False
    await rotator_for(herd, policy=QUICK).rotate(to_phase=Phase.PUBLISHED)
    await rotator_for(herd, policy=QUICK).abandon("x")
    document = await check_steady(herd)
    assert document.pruned == 3, "the first root, and both that were published and given up"
