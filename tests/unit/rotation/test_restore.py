"""Restore of an earlier root after a finished rotation, on a simulated herd: its invariants, and which restores are
rejected."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.cli.text.rotation import report_lines
from goatherd.errors import IllegalStepError, NotAdoptedError, NotRestorableError, ObstructedError, RotationBusyError
from goatherd.identity import transitions
from goatherd.identity.document import IdentityDocument, Phase, decode_document, encode_document, sign_document
from goatherd.identity.session import OwnedSession
from goatherd.providers.values import CURRENT, VersionState
from goatherd.rotation.cross_signing import cross_signature_id, expected_introductions, introduction_id, restoration_id
from goatherd.rotation.events import Event, NodesSeen, PhaseEntered
from goatherd.rotation.machine import Outcome, Step
from goatherd.rotation.restorable import read_earlier_root
from goatherd.rotation.rotator import Rotator
from goatherd.schedule.due import Schedule, next_due, read_facts
from tests.fakes.herd import SESSIONS, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

pytestmark = pytest.mark.slow

DAY = timedelta(days=1)


async def rotated(herd: Herd) -> IdentityDocument:
    await rotator_for(herd).rotate()
    return await check_steady(herd)


async def keys_in_store(herd: Herd) -> set[str]:
    """Return the roots whose private keys some readable version holds."""
    found = set()
    for version in await herd.provider.versions(herd.secret_id):
        if version.state is VersionState.ENABLED:
            held = decode_document((await herd.provider.read(herd.secret_id, version.id)).value.reveal())
            found |= {held.current.id} | ({held.next.id} if held.next else set())
    return found


async def test_the_previous_root_signs_again_and_nothing_is_refused_or_lost(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=5, clients=6)
    before = await rotated(herd)
    b = before.current.id
    await herd.add_clients(3)  # their sessions are signed by B
    events: list[Event] = []
    report = await rotator_for(herd, events=events).restore()
    assert report.outcome is Outcome.RESTORED
    assert (report.from_id, report.to_id, report.current_id) == (b, "root-a", "root-a")
    assert report.behind == ()
    document = await check_steady(herd)
    assert document.current.id == "root-a"
    assert document.current.session == before.find_root("root-a"), "the same session, expiration included"
    assert {root.id for root in document.roots} == {"root-a", b}, "B stays trusted"
    assert document.generation > before.generation
    assert document.rotated_from == b
    last = document.history[-1]
    assert (last.event, last.from_id, last.to_id, last.rotation_id) == ("restored", b, "root-a", report.rotation_id)
    assert {b, "root-a"} <= {root for node in herd.nodes for root in node.pool.root_ids}
    assert herd.refused == 0
    phases = [event.phase for event in events if isinstance(event, PhaseEntered)]
    assert phases == [*Phase, Phase.STEADY], "the same phases as any rotation"
    assert all(event.is_own for event in events if isinstance(event, PhaseEntered))


async def test_after_a_restore_the_cluster_rotates_again(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    b = (await rotated(herd)).current.id
    await rotator_for(herd).restore()
    document = await rotated(herd)
    assert document.rotated_from == "root-a"
    assert {"root-a", b, document.current.id} == {root.id for root in document.roots}
    assert herd.refused == 0


async def test_a_restore_can_itself_be_undone_by_a_restore_again_and_again(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    b = (await rotated(herd)).current.id
    for expected in ("root-a", b, "root-a", b):
        report = await rotator_for(herd).restore()
        assert report.outcome is Outcome.RESTORED
        assert (await check_steady(herd)).current.id == expected
    assert herd.refused == 0


async def test_any_earlier_root_can_be_named(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotated(herd)
    b = (await document_of(herd)).current.id
    await rotated(herd)
    assert (await rotator_for(herd).restore("root-a")).current_id == "root-a"
    await check_steady(herd)
    assert (await rotator_for(herd).restore(b)).current_id == b
    await check_steady(herd)
    assert herd.refused == 0


async def test_the_restored_root_needs_no_new_introduction_where_the_servers_hold_one(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    document = await rotated(herd)
    report = await rotator_for(herd).restore()
    made = document.history[-1].rotation_id
    assert made is not None
    assert report.rotation_id is not None
    for node in herd.nodes:
        assert node.holds(SESSIONS, cross_signature_id(made))
        assert not node.holds(SESSIONS, restoration_id(report.rotation_id))


async def test_a_server_that_holds_no_introduction_of_the_restored_root_is_given_one(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    document = await rotated(herd)
    # A document of before, whose history does not say which commits introduce A.
    history = tuple(replace(entry, rotation_id=None) for entry in document.history)
    current = await herd.provider.read(herd.secret_id, CURRENT)
    older = replace(document, history=history, generation=document.generation + 1)
    older = sign_document(older, herd.clock.now_ms())
    await herd.provider.write(herd.secret_id, encode_document(older), label=CURRENT, expected=current.version.id)
    await herd.settle()
    report = await rotator_for(herd).restore()
    assert report.rotation_id is not None
    assert all(node.holds(SESSIONS, restoration_id(report.rotation_id)) for node in herd.nodes)
    await check_steady(herd)


async def test_an_introduction_by_a_revoked_root_does_not_count(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    document = await rotated(herd)
    a = document.find_root("root-a")
    assert a is not None
    restored = transitions.prepare_restore(
        transitions.revoke_root(
            document,
            document.current.id,
            herd.clock.now_ms(),
            reason="stolen",
            successor=OwnedSession.generate(session_id="root-z", owner="root", now_ms=herd.clock.now_ms()),
        ),
        await read_earlier_root(herd.provider, herd.secret_id, document, a),
        now_ms=herd.clock.now_ms(),
        rotation_id="again",
        started_by="",
        stable_version="1",
    )
    for one in expected_introductions(restored):
        assert document.current.id not in {root.id for root in one.signers}
    assert [one.commit_id for one in expected_introductions(restored)] == [
        introduction_id("root-a"),
        restoration_id("again"),
    ]


# --- rolling back a restore -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PUBLISHED])
async def test_a_cancelled_restore_leaves_the_earlier_root_among_the_roots(make_herd: MakeHerd, phase: Phase) -> None:
    herd = await make_herd()
    before = await rotated(herd)
    await rotator_for(herd).restore(to_phase=phase)
    report = await rotator_for(herd).abandon(by=Step.CANCEL)
    assert report.outcome.is_stopped
    document = await check_steady(herd)
    assert document.current.id == before.current.id
    assert {root.id for root in document.roots} == {root.id for root in before.roots}
    assert "root-a" in await keys_in_store(herd), "it can still be restored"
    assert (await rotator_for(herd).restore()).current_id == "root-a"
    await check_steady(herd)
    assert herd.refused == 0


@pytest.mark.parametrize("phase", [Phase.ACTIVATED, Phase.VERIFIED])
async def test_a_restore_is_rolled_back_to_the_root_that_signed_before_it(make_herd: MakeHerd, phase: Phase) -> None:
    herd = await make_herd()
    before = await rotated(herd)
    await rotator_for(herd).restore(to_phase=phase)
    await herd.add_clients(2)
    report = await rotator_for(herd).abandon(by=Step.ROLL_BACK)
    assert report.current_id == before.current.id
    document = await check_steady(herd)
    assert document.current.id == before.current.id
    assert {root.id for root in document.roots} == {root.id for root in before.roots}
    assert herd.refused == 0


async def test_a_restore_that_a_server_does_not_follow_ends_where_it_began(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    before = await rotated(herd)
    herd.nodes[1].faults.cut_off = True
    with pytest.raises(ObstructedError, match="node-1 did not answer"):
        await rotator_for(herd).restore()
    assert await document_of(herd) == before, "it is looked at before anything is written"
    herd.nodes[1].faults.cut_off = False
    await rotator_for(herd).restore(to_phase=Phase.PREPARED)
    herd.nodes[1].faults.cut_off = True
    with pytest.raises(NotAdoptedError, match="did not answer"):
        await rotator_for(herd).resume()
    herd.nodes[1].faults.cut_off = False
    document = await check_steady(herd)
    assert document.current.id == before.current.id
    assert (await rotator_for(herd).restore()).outcome is Outcome.RESTORED


async def test_another_process_resumes_a_restore_to_its_end(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotated(herd)
    for phase in (Phase.PREPARED, Phase.PUBLISHED, Phase.ACTIVATED, Phase.VERIFIED):
        await rotator_for(herd).restore(to_phase=phase)
        report = await rotator_for(herd, started_by="carol@host-2:1").resume()
        assert report.outcome is Outcome.RESTORED
        await check_steady(herd)


async def test_a_restore_during_a_rotation_is_refused_with_who_drives_it(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotated(herd)
    await rotator_for(herd, started_by="carol@host-2:1").rotate(to_phase=Phase.PUBLISHED)
    with pytest.raises(RotationBusyError, match="carol@host-2:1"):
        await rotator_for(herd).restore()


async def test_a_restore_needs_nothing_of_a_current_root_that_has_expired(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    short = Rotator(herd.provider, herd.secret_id, herd.nodes, policy=replace(POLICY, lifetime=DAY), clock=herd.clock)
    await short.rotate()
    await check_steady(herd)
    herd.clock.turn(2 * DAY)
    with pytest.raises(IllegalStepError, match="expired"):
        await rotator_for(herd).rotate()
    report = await rotator_for(herd).restore()
    assert report.current_id == "root-a"
    told = report_lines(report, 30 * DAY)
    assert told[-1] == "it has expired, so `goatherd restore` cannot make it sign again"
    await check_steady(herd)
    assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED


# --- what cannot be restored says why ---------------------------------------------------------------------------------


async def refused(herd: Herd, root_id: str | None = None, rotator: Rotator | None = None) -> str:
    before = [version.id for version in await herd.provider.versions(herd.secret_id)]
    with pytest.raises(NotRestorableError) as caught:
        await (rotator or rotator_for(herd)).restore(root_id)
    assert [version.id for version in await herd.provider.versions(herd.secret_id)] == before, "nothing was written"
    assert caught.value.hint
    return str(caught.value)


async def test_what_cannot_be_restored_says_why(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    assert "there is no previous root" in await refused(herd)
    assert "root-a signs already" in await refused(herd, "root-a")
    assert "root nosuch is unknown: the identity document does not list it" in await refused(herd, "nosuch")
    document = await rotated(herd)
    assert "; listed roots that can be restored: root-a" in await refused(herd, "nosuch")
    assert f"{document.current.id} signs already" in await refused(herd, document.current.id)


async def test_a_root_whose_key_was_destroyed_says_when(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotated(herd)
    herd.clock.turn(POLICY.grace + DAY)
    await rotator_for(herd).retire()
    retired = (await document_of(herd)).history[-1]
    assert retired.event == "retired"
    said = await refused(herd)
    assert "the private key of root root-a was destroyed; `retire` recorded it at 20" in said


async def test_a_root_whose_versions_are_gone_or_disabled_says_which(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotated(herd)
    for version in await herd.provider.versions(herd.secret_id):
        held = decode_document((await herd.provider.read(herd.secret_id, version.id)).value.reveal())
        if "root-a" in (held.current.id, held.next.id if held.next else None):
            await herd.provider.destroy(herd.secret_id, version.id)
    assert "no stored version holds the private key of root root-a any more" in await refused(herd)


async def test_an_expired_root_and_one_with_too_little_left_are_refused(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotated(herd)
    herd.clock.turn(90 * DAY - timedelta(minutes=30))
    assert "too little to restore it" in await refused(herd)
    herd.clock.turn(DAY)
    assert "root root-a has expired at 20" in await refused(herd)


async def test_an_unmodified_server_is_not_given_a_root_with_15_days_left(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1, unmodified=[1])
    with pytest.raises(NotAdoptedError, match="signs with the next root"):
        await rotator_for(herd).rotate()  # it is not restarted, so that is rolled back
    b = (await document_of(herd)).rotated_from
    assert b is not None
    herd.clock.turn(166 * DAY)
    said = await refused(herd, b)
    assert "http://node-1 runs unmodified GoatDB, which would expose its private key" in said


async def test_a_revoked_root_is_never_restored(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    document = await rotated(herd)
    current = await herd.provider.read(herd.secret_id, CURRENT)
    revoked = transitions.revoke_root(document, "root-a", herd.clock.now_ms(), reason="stolen")
    await herd.provider.write(herd.secret_id, encode_document(revoked), label=CURRENT, expected=current.version.id)
    said = await refused(herd)
    assert "root root-a was revoked at 20" in said
    assert "stolen" in said
    assert "; listed roots that can be restored: none" in await refused(herd, "nosuch")


async def test_a_root_that_was_just_rolled_back_is_restored_only_by_its_name(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    report = await rotator_for(herd).abandon("clients complain")
    b = report.to_id
    for start in (None, rotator_for(herd).rotate, lambda **to: rotator_for(herd).restore(b, **to)):
        if start is not None:
            await start(to_phase=Phase.PREPARED)
            await rotator_for(herd).abandon("another time")
        said = await refused(herd)
        assert f"root {b} was rolled back at 20" in said
        assert "clients complain" in said
    assert (await rotator_for(herd).restore(b)).current_id == b
    await check_steady(herd)


# --- what comes after -------------------------------------------------------------------------------------------------


async def test_the_grace_period_of_each_root_counts_from_when_it_last_signed(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    b = (await rotated(herd)).current.id
    herd.clock.turn(20 * DAY)
    await rotator_for(herd).restore()
    await check_steady(herd)  # what the client wrote arrives before its session expires
    herd.clock.turn(20 * DAY)
    await rotator_for(herd).retire()  # 40 days after the rotation, 20 after the restore
    assert await keys_in_store(herd) == {"root-a", b}
    herd.clock.turn(11 * DAY)
    await rotator_for(herd).retire()
    assert await keys_in_store(herd) == {"root-a"}, "the key that signs is never destroyed"
    document = await check_steady(herd)
    assert document.current.id == "root-a"
    assert document.retired_ids == {b}
    assert f"the private key of root {b} was destroyed" in await refused(herd, b)


async def test_a_cancelled_restore_does_not_prolong_the_grace_period_of_the_earlier_root(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotated(herd)
    herd.clock.turn(29 * DAY)
    await rotator_for(herd).restore(to_phase=Phase.PREPARED)
    await rotator_for(herd).abandon()
    herd.clock.turn(2 * DAY)
    await rotator_for(herd).retire()
    assert "root-a" not in await keys_in_store(herd)


async def test_the_schedule_does_not_replace_a_restored_root_at_once(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=0)
    policy = replace(POLICY, lifetime=90 * DAY)
    schedule = Schedule(controller="c", policy=policy)
    herd.clock.turn(45 * DAY)
    document = await rotated(herd)
    herd.clock.turn(DAY)
    report = await rotator_for(herd).restore()
    document = await document_of(herd)
    verdict = next_due(
        read_facts(document, herd.clock.now_ms(), written_ms=herd.clock.now_ms(), tolerance=POLICY.clock_tolerance),
        schedule,
        herd.clock.now_ms(),
    )
    assert verdict.at_ms is not None
    left = document.current.session.expiration_ms - document.history[-1].at
    assert verdict.at_ms == document.history[-1].at + left - left // 2, "half of what is left"
    assert report.current_id == "root-a"


async def test_with_nothing_to_roll_back_or_cancel_that_is_refused_and_restore_is_named(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotated(herd)
    for step, verb in ((Step.ROLL_BACK, "roll back"), (Step.CANCEL, "cancel")):
        with pytest.raises(IllegalStepError, match=f"there is nothing to {verb}") as caught:
            await rotator_for(herd).abandon(by=step)
        assert "goatherd restore" in caught.value.hint
    assert (await rotator_for(herd).resume()).outcome is Outcome.NOTHING


async def test_what_the_servers_show_is_seen_as_in_any_rotation(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotated(herd)
    events: list[Event] = []
    await rotator_for(herd, events=events).restore()
    seen = [event.nodes for event in events if isinstance(event, NodesSeen)]
    assert any(all(node.trusts_next and node.holds_introduction for node in nodes) for nodes in seen)
    assert any(all(node.holds_cross_signature for node in nodes) for nodes in seen)
