"""A declared quorum: which servers a rotation may proceed without, and that such a server loses nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import (
    ConfigurationError,
    InvalidAnswerError,
    NodeRefusedError,
    NotAdoptedError,
    ObstructedError,
    SuccessionError,
)
from goatherd.identity.document import Phase
from goatherd.rotation.events import Event, PhaseEntered
from goatherd.rotation.machine import Outcome
from goatherd.rotation.policy import Policy, Quorum
from tests.fakes.herd import DATA, Faults, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

TWO = replace(POLICY, quorum=Quorum(count=2))
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("text", "total", "needed"),
    [
        ("all", 5, 5),
        ("4", 5, 4),
        ("4", 3, 3),
        ("80%", 5, 4),
        ("80%", 4, 4),
        ("7%", 100, 7),
        ("50%", 3, 2),
        ("0.1%", 3, 1),
        ("100%", 3, 3),
        ("all", 0, 0),
        ("3", 0, 0),
    ],
)
def test_a_quorum_is_all_a_count_or_a_part_rounded_up(text: str, total: int, needed: int) -> None:
    quorum = Quorum.from_text(text)
    assert quorum.needed(total) == needed
    assert Quorum.from_text(str(quorum)) == quorum


@pytest.mark.parametrize(
    ("count", "fraction"), [(0, None), (-1, None), (None, 0.0), (None, 1.1), (None, float("nan")), (1, 0.5)]
)
def test_a_quorum_of_no_server_or_of_more_than_all_cannot_be_made(count: int | None, fraction: float | None) -> None:
    with pytest.raises(ConfigurationError):
        Quorum(count=count, fraction=fraction)


@pytest.mark.parametrize("given", [-1, 0.8, "80%", None])
def test_a_policy_takes_no_number_and_no_text_for_a_quorum(given: object) -> None:
    with pytest.raises(ConfigurationError, match="quorum must be a Quorum") as refused:
        Policy(quorum=given)  # type: ignore[arg-type]
    assert "Quorum(count=4)" in refused.value.hint


@pytest.mark.parametrize("text", ["", "0", "-1", "0%", "101%", "half", "1.5", "%"])
def test_what_is_no_quorum_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Quorum.from_text(text)


@pytest.mark.slow
async def test_by_default_every_node_counts(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    herd.nodes[2].faults.cut_off = True
    with pytest.raises(NotAdoptedError):
        await rotator_for(herd).resume()


@pytest.mark.slow
async def test_a_node_that_does_not_answer_is_left_out_only_when_patience_has_ended_and_is_named(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    herd.nodes[2].faults.cut_off = True
    events: list[Event] = []
    report = await rotator_for(herd, policy=TWO, events=events).rotate()
    assert report.outcome is Outcome.ROTATED
    assert report.left_out == report.behind == (herd.nodes[2].base_url,)
    entered = {event.phase: event.at_ms for event in events if isinstance(event, PhaseEntered)}
    for phase, following in ((Phase.PUBLISHED, Phase.ACTIVATED), (Phase.ACTIVATED, Phase.VERIFIED)):
        assert entered[following] - entered[phase] >= POLICY.adoption / timedelta(milliseconds=1)
    assert entered[Phase.PUBLISHED] - entered[Phase.PREPARED] < 5000, "it is not waited for before anything is at stake"


@pytest.mark.slow
@pytest.mark.parametrize("is_unmodified", [False, True], ids=["one of ours", "an unmodified server"])
async def test_a_node_that_was_left_out_loses_nothing_and_catches_up(make_herd: MakeHerd, is_unmodified: bool) -> None:
    """SECURITY: it comes back unchanged, and gets B and all that B has signed from the store or from its peers."""
    herd = await make_herd(unmodified=[2] if is_unmodified else [])
    away = herd.nodes[2]
    away.faults.cut_off = True
    await rotator_for(herd, policy=TWO).rotate()
    await herd.add_clients(1, at=herd.nodes[0])
    for _ in range(30):  # far more often than a commit is ever offered
        herd.clock.turn(SECOND)
        await herd.step()
    signed_by_b = [commit.id for commit in herd.nodes[0].commits(DATA) if commit.session == herd.clients[-1].owned.id]
    assert len(signed_by_b) > 20
    away.faults = Faults()
    await herd.settle()
    assert all(away.holds(DATA, commit_id) for commit_id in signed_by_b)
    assert herd.lost() == []
    assert herd.unverifiable() == []
    assert (await document_of(herd)).current.id in away.pool.root_ids
    if not is_unmodified:
        await check_steady(herd)


def forgets(herd: Herd) -> None:
    herd.nodes[2].faults.forgets_pushes = True


def keeps_its_view(herd: Herd) -> None:
    herd.nodes[2].faults.store_lost = True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "ending"), [(forgets, "cancelled"), (keeps_its_view, "rolled-back")], ids=["before B signs", "after"]
)
async def test_a_node_that_answers_and_does_not_follow_is_never_left_out(
    make_herd: MakeHerd, trouble: object, ending: str
) -> None:
    """SECURITY: such a node would reject and drop what B signs."""
    herd = await make_herd()
    assert callable(trouble)
    trouble(herd)
    with pytest.raises(NotAdoptedError):
        await rotator_for(herd, policy=replace(POLICY, quorum=Quorum(count=1))).rotate()
    assert (await document_of(herd)).history[-1].event == ending


@pytest.mark.slow
async def test_fewer_than_the_quorum_end_the_rotation(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PREPARED)
    for node in herd.nodes[1:]:
        node.faults.cut_off = True
    with pytest.raises(NotAdoptedError, match="node-1"):
        await rotator_for(herd, policy=TWO).resume()


async def test_fewer_than_the_quorum_begin_no_rotation(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    for node in herd.nodes[1:]:
        node.faults.cut_off = True
    before = await document_of(herd)
    with pytest.raises(ObstructedError, match=r"node-1 did not answer .*node-2 did not answer"):
        await rotator_for(herd, policy=TWO).rotate()
    assert await document_of(herd) == before


@pytest.mark.slow
async def test_a_node_that_comes_back_in_time_is_waited_for_in_spite_of_the_quorum(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    herd.nodes[2].faults.cut_off = True
    back, tick = herd.clock.now_ms() + 5000, herd.step

    async def on_tick() -> None:
        herd.nodes[2].faults.cut_off = herd.clock.now_ms() < back
        await tick()

    herd.clock.on_tick = on_tick
    report = await rotator_for(herd, policy=TWO).rotate()
    assert report.left_out == report.behind == ()
    await check_steady(herd)


async def test_the_plan_says_who_would_not_be_waited_for(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    plan = await rotator_for(herd, policy=TWO).plan()
    assert any("up to 1 of 3 servers (quorum 2)" in who for who in plan.not_waited_for)
    assert not any("quorum" in who for who in (await rotator_for(herd).plan()).not_waited_for)


async def test_one_servers_word_that_it_rejects_the_identity_is_outvoted(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    herd.nodes[2].refusal = SuccessionError.code
    with pytest.raises(ObstructedError, match="rejects the identity"):
        await rotator_for(herd).rotate()
    report = await rotator_for(herd, policy=TWO).rotate()
    assert (report.outcome, report.left_out) == (Outcome.ROTATED, ())


async def test_two_servers_that_reject_the_identity_are_not_outvoted_by_one(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd, policy=TWO).rotate(to_phase=Phase.PREPARED)
    for node in herd.nodes[1:]:
        node.refusal = SuccessionError.code
    with pytest.raises(NotAdoptedError, match="rejects the identity document"):
        await rotator_for(herd, policy=TWO).resume()


@pytest.mark.slow
@pytest.mark.parametrize("methods", [("identity",), ("batch_sync",), ("identity", "batch_sync", "refresh")])
async def test_a_server_whose_answers_are_invalid_is_left_out_like_one_without_answers(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...]
) -> None:
    herd = await make_herd()

    async def invalid(*_: object, **__: object) -> None:
        raise InvalidAnswerError("an answer that is none", status=200)

    await rotator_for(herd, policy=TWO).rotate(to_phase=Phase.PREPARED)
    for method in methods:
        monkeypatch.setattr(herd.nodes[2], method, invalid)
    report = await rotator_for(herd, policy=TWO).resume()
    assert (report.outcome, report.left_out) == (Outcome.ROTATED, (herd.nodes[2].base_url,))


@pytest.mark.slow
async def test_a_server_that_rejects_the_next_root_is_never_left_out_whatever_else_it_answers(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd()

    async def invalid(*_: object, **__: object) -> None:
        raise InvalidAnswerError("an answer that is none", status=200)

    async def rejects(*_: object, **__: object) -> None:
        raise NodeRefusedError("status 403", status=403)

    await rotator_for(herd, policy=TWO).rotate(to_phase=Phase.PREPARED)
    monkeypatch.setattr(herd.nodes[2], "identity", invalid)
    monkeypatch.setattr(herd.nodes[2], "batch_sync", rejects)
    with pytest.raises(NotAdoptedError):
        await rotator_for(herd, policy=TWO).resume()
