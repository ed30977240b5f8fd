"""A root that has left the identity document is restored as long as a stored version holds its private key."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.errors import NotRestorableError
from goatherd.identity import transitions
from goatherd.identity.document import Phase, decode_document, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.providers.values import CURRENT
from goatherd.rotation.cross_signing import cross_signature_id
from goatherd.rotation.machine import Outcome
from tests.fakes.herd import SESSIONS, Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

pytestmark = pytest.mark.slow


async def rotated_until_it_left(herd: Herd, rotations: int = 4) -> None:
    """Rotate until the limit on earlier roots removes the first root from the document."""
    for _ in range(rotations):
        await rotator_for(herd).rotate()
    document = await check_steady(herd)
    assert document.find_root("root-a") is None
    assert document.pruned > 0


@pytest.mark.slow
@pytest.mark.parametrize("rotations", [4, 9])
async def test_it_signs_again_is_listed_again_and_nothing_is_refused_or_lost(
    make_herd: MakeHerd, rotations: int
) -> None:
    herd = await make_herd(nodes=3, clients=3)
    await rotated_until_it_left(herd, rotations)
    before = await document_of(herd)
    report = await rotator_for(herd).restore("root-a")
    assert report.outcome is Outcome.RESTORED
    document = await check_steady(herd)
    assert document.current.id == "root-a"
    assert before.current.id in {root.id for root in document.roots}
    assert document.rotated_from == before.current.id
    assert herd.refused == 0
    assert await again(herd) == before.current.id


async def again(herd: Herd) -> str:
    """Restore the root that signed before, and return it."""
    report = await rotator_for(herd).restore()
    await check_steady(herd)
    return report.current_id


async def test_the_document_counts_it_as_listed_again_and_stays_whole_when_the_restore_is_cancelled(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    await rotated_until_it_left(herd)
    before = await document_of(herd)
    await rotator_for(herd).restore("root-a", to_phase=Phase.PUBLISHED)
    begun = await document_of(herd)
    assert begun.find_root("root-a") is not None
    assert begun.pruned == before.pruned - 1
    report = await rotator_for(herd).abandon("enough")
    assert report.event == "cancelled"
    document = await check_steady(herd)
    assert document.current.id == before.current.id
    assert (await rotator_for(herd).rotate()).outcome is Outcome.ROTATED
    assert (await rotator_for(herd).restore("root-a")).current_id == "root-a"
    await check_steady(herd)


async def test_another_process_resumes_it(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotated_until_it_left(herd)
    await rotator_for(herd).restore("root-a", to_phase=Phase.PREPARED)
    report = await rotator_for(herd, started_by="bob").resume()
    assert report.outcome is Outcome.RESTORED
    assert (await check_steady(herd)).current.id == "root-a"


async def test_once_its_key_is_destroyed_the_error_says_so_and_until_when_it_could_be_restored(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    await rotated_until_it_left(herd)
    herd.clock.turn(POLICY.grace + timedelta(days=1))
    await rotator_for(herd).retire()
    before = await document_of(herd)
    with pytest.raises(NotRestorableError) as caught:
        await rotator_for(herd).restore("root-a")
    assert str(caught.value) == (
        "root root-a is unknown: the identity document does not list it, and no stored version holds its private key; "
        "listed roots that can be restored: none"
    )
    assert "for the grace period" in caught.value.hint
    assert await document_of(herd) == before


async def test_a_root_whose_key_was_put_into_the_store_by_hand_is_not_restored(make_herd: MakeHerd) -> None:
    """SECURITY: write access to the store alone makes no session a root."""
    herd = await make_herd()
    await rotated_until_it_left(herd)
    now = herd.clock.now_ms()
    rogue = OwnedSession.generate(session_id="rogue", owner="root", now_ms=now)
    forged = OwnedSession.generate(session_id="root-a", owner="root", now_ms=now)
    for owned in (rogue, forged):
        await planted(herd, owned)
    before = await document_of(herd)
    with pytest.raises(NotRestorableError, match="no listed server holds an introduction of it"):
        await rotator_for(herd).restore("rogue")
    assert await document_of(herd) == before
    assert (await rotator_for(herd).restore("root-a")).outcome is Outcome.RESTORED
    assert (await document_of(herd)).current.session != forged.session


async def planted(herd: Herd, owned: OwnedSession) -> None:
    """Store a version with a private key that is not the cluster's, newer than all others, and with a label of the
    attacker."""
    raw = encode_document(transitions.create_document(owned, herd.clock.now_ms()))
    await herd.provider.write(
        herd.secret_id, raw, label=f"mine-{owned.id}-{owned.session.expiration_ms}", expected=None
    )


async def test_a_root_that_was_revoked_after_it_had_left_is_not_restored(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotated_until_it_left(herd)
    current = await herd.provider.read(herd.secret_id, CURRENT)
    document = decode_document(current.value.reveal())
    held = [
        decode_document((await herd.provider.read(herd.secret_id, one.id)).value.reveal())
        for one in await herd.provider.versions(herd.secret_id)
    ]
    first = next(one.current.session for one in held if one.current.id == "root-a")
    listed = replace(document, roots=(*document.roots, first))
    revoked = transitions.revoke_root(listed, "root-a", herd.clock.now_ms(), reason="stolen")
    await herd.provider.write(herd.secret_id, encode_document(revoked), label=CURRENT, expected=current.version.id)
    with pytest.raises(NotRestorableError, match="was revoked"):
        await rotator_for(herd).restore("root-a")


async def test_without_a_server_that_can_prove_it_nothing_is_written(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotated_until_it_left(herd)
    before = await document_of(herd)
    with pytest.raises(NotRestorableError, match="no listed server holds an introduction of it"):
        await rotator_for(herd, nodes=[], unsafe_without_nodes=True).restore("root-a")
    for node in herd.nodes:
        node.faults.cut_off = True
    with pytest.raises(NotRestorableError, match="no listed server holds an introduction of it"):
        await rotator_for(herd).restore("root-a")
    assert await document_of(herd) == before


async def test_one_server_is_enough_to_prove_it_since_what_it_holds_is_signed(make_herd: MakeHerd) -> None:
    herd = await make_herd(nodes=3)
    await rotated_until_it_left(herd)
    document = await document_of(herd)
    made = next(one.rotation_id for one in document.history if one.from_id == "root-a")
    assert made is not None
    for node in herd.nodes[:2]:
        for commit in node.commits(SESSIONS):
            if commit.key == "root-a":
                del node._logs[SESSIONS][commit.id]
    assert herd.nodes[2].holds(SESSIONS, cross_signature_id(made))
    assert (await rotator_for(herd).restore("root-a")).outcome is Outcome.RESTORED


async def test_where_the_current_root_has_expired_only_a_listed_root_can_be_restored(make_herd: MakeHerd) -> None:
    herd = await make_herd(lifetime=timedelta(days=900))
    await rotated_until_it_left(herd)
    document = await document_of(herd)
    herd.clock.turn(timedelta(milliseconds=document.current.session.expiration_ms - herd.clock.now_ms() + 1000))
    with pytest.raises(NotRestorableError, match="the current root, which would have to introduce it again") as caught:
        await rotator_for(herd).restore("root-a")
    assert "Listed roots that can be restored: none." in caught.value.hint, "all others have expired too"


async def test_a_root_that_expires_too_soon_is_refused_although_it_has_left(make_herd: MakeHerd) -> None:
    herd = await make_herd(lifetime=timedelta(hours=10))
    await rotated_until_it_left(herd)
    herd.clock.turn(timedelta(hours=9, minutes=30))
    with pytest.raises(NotRestorableError, match="too little to restore it"):
        await rotator_for(herd).restore("root-a")
    herd.clock.turn(timedelta(hours=1))
    with pytest.raises(NotRestorableError, match="has expired"):
        await rotator_for(herd).restore("root-a")
