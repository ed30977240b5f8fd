"""Five ways in which a naive rotation does harm: Goatherd's protection prevents each, and without it the harm occurs.

Each test runs the same sequence twice: as Goatherd does it, and without the one protection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import NotAdoptedError, VerificationError, VersionDisabledError
from goatherd.identity import transitions
from goatherd.identity.document import IdentityDocument, Phase, decode_document, sign_document
from goatherd.providers.values import STABLE, VersionState
from goatherd.rotation import machine
from goatherd.rotation.machine import GATES, Evidence, Outcome, Step
from tests.fakes.herd import DATA, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

Remove = Callable[[pytest.MonkeyPatch], None]


def nothing(_: pytest.MonkeyPatch) -> None:
    """Remove no protection."""


# --- 1: trust spreads first, signing moves second --------------------------------------------------------------------


def sign_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GATES, Step.ACTIVATE, ())


@pytest.mark.slow
@pytest.mark.parametrize(("remove", "loses"), [(nothing, False), (sign_at_once, True)])
async def test_a_node_whose_view_lags_costs_no_client_a_write(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch, remove: Remove, loses: bool
) -> None:
    remove(monkeypatch)
    herd = await make_herd(clients=1)
    herd.nodes[2].faults.store_lost = True

    async def tick() -> None:
        """Once a node signs with B, let a client create a session there, and then use the node that lags."""
        if herd.nodes[0].pool.current.id != "root-a" and len(herd.clients) == 1:
            await herd.add_clients(1, at=herd.nodes[0], home=herd.nodes[2])
        await herd.step()

    herd.clock.on_tick = tick
    with pytest.raises(NotAdoptedError):  # the node that lags never signs with B, either way
        await rotator_for(herd).rotate()
    assert len(herd.clients) == 2
    assert len(herd.clients[1].written) > 20
    herd.nodes[2].faults.store_lost = False
    await herd.settle()
    assert bool(herd.lost()) is loses
    assert bool(herd.refused) is loses
    if not loses:
        await check_steady(herd)


# --- 2: a roll-back keeps B trusted ----------------------------------------------------------------------------------


def restore_the_old_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roll back by writing the old version again: with the earlier roots, without B."""

    def naive(document: IdentityDocument, stable: IdentityDocument, now_ms: int, *, reason: str) -> IdentityDocument:
        back = original(document, stable, now_ms, reason=reason)
        before = replace(back, roots=stable.roots, endorsements=stable.endorsements, rotated_from=None)
        return sign_document(before, now_ms)

    original = transitions.roll_back_rotation
    monkeypatch.setattr(transitions, "roll_back_rotation", naive)


@pytest.mark.parametrize(("remove", "loses"), [(nothing, False), (restore_the_old_value, True)])
async def test_what_b_has_signed_verifies_after_a_roll_back(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch, remove: Remove, loses: bool
) -> None:
    remove(monkeypatch)
    # B is trusted by the document alone: the introduction in the log would be a second net under the one looked at.
    monkeypatch.setitem(GATES, Step.ACTIVATE, (Evidence.TRUSTS_NEXT,))
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    await herd.add_clients(1, at=herd.nodes[0])
    await herd.step()
    report = await rotator_for(herd).abandon()
    assert report.outcome.is_stopped
    for node in herd.nodes:
        node.restart()
    signed_by_b = [c.id for n in herd.nodes for c in n.commits("/sys/sessions") if c.session == report.to_id]
    assert signed_by_b
    assert bool(set(signed_by_b) & set(herd.unverifiable())) is loses
    if not loses:
        await check_steady(herd)


# --- 3: B introduces A -----------------------------------------------------------------------------------------------


def forget_the_cross_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GATES, Step.VERIFY, (Evidence.SIGNS_WITH_NEXT,))


@pytest.mark.parametrize(("remove", "loses"), [(nothing, False), (forget_the_cross_signature, True)])
async def test_a_client_born_after_a_has_expired_verifies_the_oldest_commit(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch, remove: Remove, loses: bool
) -> None:
    remove(monkeypatch)
    herd = await make_herd(lifetime=timedelta(days=20))
    await herd.step()
    await rotator_for(herd).rotate()
    await check_steady(herd)
    herd.clock.turn(timedelta(days=21))
    roots = herd.nodes[0].pool.public_roots(herd.clock.now_ms())
    assert "root-a" not in {root.id for root in roots}
    pool = herd.new_client_pool(roots)
    oldest = herd.nodes[0].commits(DATA)[0]
    if loses:
        with pytest.raises(VerificationError):
            pool.verify_commit(oldest)
    else:
        pool.verify_commit(oldest)


# --- 4: the document says where things stand -------------------------------------------------------------------------


def record_no_phase_after_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    original = transitions.activate_rotation
    monkeypatch.setattr(
        transitions, "activate_rotation", lambda d, now: sign_document(replace(original(d, now), rotation=None), now)
    )


@pytest.mark.parametrize(("remove", "loses"), [(nothing, False), (record_no_phase_after_activation, True)])
async def test_another_process_finishes_what_one_that_died_has_begun(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch, remove: Remove, loses: bool
) -> None:
    remove(monkeypatch)
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)

    class DiedError(BaseException):
        pass

    def die(event: object) -> None:
        if isinstance(event, machine.Wait) or getattr(event, "phase", None) in (Phase.ACTIVATED, Phase.STEADY):
            raise DiedError

    dying = rotator_for(herd)
    dying._on_event = die
    with pytest.raises(DiedError):
        await dying.resume()
    report = await rotator_for(herd, started_by="carol@host-2:1").resume()
    crossed = [
        commit
        for commit in herd.nodes[0].commits("/sys/sessions")
        if commit.key == "root-a" and commit.session == report.current_id
    ]
    assert (not crossed) is loses
    if not loses:
        assert report.outcome is Outcome.ROTATED
        await check_steady(herd)


# --- 5: the old private key is destroyed -----------------------------------------------------------------------------


def destroy_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_decide_retire", lambda *_: machine.Done(outcome=Outcome.NOTHING))


async def versions_with_private_key_of(herd: Herd, session_id: str) -> list[str]:
    found = []
    for version in await herd.provider.versions(herd.secret_id):
        if version.state is VersionState.ENABLED:
            value = (await herd.provider.read(herd.secret_id, version.id)).value
            document = decode_document(value.reveal())
            if session_id in (document.current.id, document.next.id if document.next else None):
                found.append(version.id)
    return found


@pytest.mark.parametrize(("remove", "loses"), [(nothing, False), (destroy_nothing, True)])
async def test_no_version_holds_the_old_private_key_after_the_grace_period(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch, remove: Remove, loses: bool
) -> None:
    remove(monkeypatch)
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate()
    before = await versions_with_private_key_of(herd, "root-a")
    assert len(before) == 3  # as created, prepared, published
    report = await rotator_for(herd).retire()
    assert report.destroyed == ()
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    report = await rotator_for(herd).retire()
    assert bool(await versions_with_private_key_of(herd, "root-a")) is loses
    document = await document_of(herd)
    assert document.find_root("root-a") is not None
    if not loses:
        assert set(report.destroyed) == set(before)
        assert document.retired_ids == {"root-a"}
        with pytest.raises(VersionDisabledError):
            await herd.provider.read(herd.secret_id, (await herd.provider.versions(herd.secret_id))[-1].id)
        await check_steady(herd)
        again = await rotator_for(herd).retire()
        assert again.destroyed == ()
        assert again.generation == document.generation


async def test_the_private_key_of_a_root_that_was_rolled_back_is_destroyed_too(make_herd: MakeHerd) -> None:
    herd = await make_herd(clients=1)
    await rotator_for(herd).rotate(to_phase=Phase.ACTIVATED)
    report = await rotator_for(herd).abandon()
    assert report.to_id is not None
    herd.clock.turn(POLICY.grace + timedelta(seconds=1))
    await rotator_for(herd).retire()
    assert await versions_with_private_key_of(herd, report.to_id) == []
    assert await versions_with_private_key_of(herd, "root-a") != []
    stable = await herd.provider.read(herd.secret_id, STABLE)
    assert decode_document(stable.value.reveal()).current.id == "root-a"
