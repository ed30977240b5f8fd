"""Rotations of an identity with an anchor: how often the anchor signs, and which steps a failing signer can stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from goatherd.errors import (
    IllegalStepError,
    LifetimeError,
    NotRestorableError,
    RotationBusyError,
    SignerInvalidSignatureError,
    SignerUnavailableError,
    UnanchoredIdentityError,
    UntrustedRootError,
)
from goatherd.identity.document import Phase, encode_document
from goatherd.identity.introductions_for_clients import RootIntroductions
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.session_commits import introduction_id
from goatherd.identity.succession import TrustCheckpoint, verify_successor
from goatherd.identity.transitions import record_promotion
from goatherd.providers.values import STABLE
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.anchor_keys import ROLL_BACK_WRITES, AnchorChoice, SignerOpener
from goatherd.rotation.cross_signing import expected_introductions, make_session_commit
from goatherd.rotation.machine import Outcome
from goatherd.rotation.obstacles import ObstacleKind
from goatherd.rotation.policy import Policy
from goatherd.rotation.replacement import Replacer
from goatherd.rotation.rotator import Rotator
from goatherd.times import milliseconds
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from tests.fakes.anchors import MemorySigners
from tests.fakes.herd import ORG, SESSIONS, Herd
from tests.unit.following import Client
from tests.unit.identity.make import USUAL_BYTES
from tests.unit.rotation.conftest import OWN_CLOCK, POLICY, MakeHerd, check_steady, document_of, rotator_for

KMS, OTHER = "memory:kms", "memory:other"
GRACE = timedelta(days=1)


@pytest.fixture
def signers() -> MemorySigners:
    return MemorySigners()


def rotator(herd: Herd, signers: MemorySigners, **options: Any) -> Rotator:
    return rotator_for(
        herd, open_signer=signers.open, signers=signers.configured, policy=options.pop("policy", POLICY), **options
    )


def revoker_of(herd: Herd, signers: MemorySigners, opener: SignerOpener | None = None) -> Revoker:
    return Revoker(
        herd.provider,
        herd.secret_id,
        (),
        policy=OWN_CLOCK,
        clock=herd.clock,
        open_signer=opener or signers.open,
        signers=signers.configured,
    )


async def anchored(make_herd: MakeHerd, signers: MemorySigners, *, policy: Policy = POLICY, **options: Any) -> Herd:
    herd = await make_herd(**options)
    await rotator(herd, signers, policy=policy).rotate(anchor=AnchorChoice(signer=KMS))
    return herd


@pytest.mark.slow
async def test_an_anchor_is_added_renews_is_replaced_and_removed_while_the_cluster_serves(
    make_herd: MakeHerd, signers: MemorySigners
) -> None:
    policy = replace(POLICY, working_lifetime=timedelta(days=46))
    herd = await make_herd(nodes=2, clients=1, agented=[1], refresh_interval=timedelta(seconds=5))
    none, spent = AnchorChoice(), list[int]()
    for choice in (none, AnchorChoice(signer=KMS), none, none, none, AnchorChoice(signer=OTHER), none):
        before = signers.signed
        await rotator(herd, signers, policy=policy).rotate(anchor=choice)
        document = await check_steady(herd)
        spent.append(signers.signed - before)
        assert len(encode_document(document)) < USUAL_BYTES
    assert spent == [0, 3, 2, 1, 1, 6, 1], "the third also introduces the first root, which leaves the document"
    assert document.pruned >= 3
    known = set(herd.nodes[0].pool.root_ids)
    herd.nodes[0].restart()
    assert set(herd.nodes[0].pool.root_ids) == known, "a node trusts every earlier root by its log alone"
    assert len(known) == 1 + 7 + 2
    await rotator(herd, signers, policy=policy).rotate(anchor=AnchorChoice(is_removed=True))
    assert (await check_steady(herd)).anchor is None
    assert herd.refused == 0
    now_ms = herd.clock.now_ms()
    newcomer = herd.new_client_pool(herd.nodes[1].pool.public_roots(now_ms))
    assert all(newcomer.get_root(one.id) for one in herd.nodes[0].pool.roots)


async def test_only_the_anchor_s_introduction_of_the_next_root_counts(
    make_herd: MakeHerd, signers: MemorySigners
) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=1)
    await rotator(herd, signers).rotate(to_phase=Phase.PUBLISHED)
    document = await document_of(herd)
    assert document.anchor is not None
    (expected,) = expected_introductions(document)
    assert [signer.id for signer in expected.signers] == [document.anchor]


@pytest.mark.slow
@pytest.mark.parametrize("choice", [AnchorChoice(signer=OTHER), AnchorChoice(is_removed=True)])
async def test_a_signer_that_fails_stops_a_rotation_before_it_begins_and_none_that_has_begun(
    make_herd: MakeHerd, signers: MemorySigners, choice: AnchorChoice
) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=1)
    before = await document_of(herd)
    for uri in (KMS, OTHER) if choice.signer else (KMS,):
        signers[uri].is_down = True
        with pytest.raises(SignerUnavailableError):
            await rotator(herd, signers).rotate(anchor=choice)
        signers[uri].is_down, signers[uri].is_wrong = False, True
        with pytest.raises(SignerInvalidSignatureError):
            await rotator(herd, signers).rotate(anchor=choice)
        signers[uri].is_wrong = False
        assert await document_of(herd) == before
    await rotator(herd, signers).rotate(anchor=choice, to_phase=Phase.PREPARED)
    signers[KMS].is_down = signers[OTHER].is_down = True
    assert (await rotator(herd, signers).resume()).outcome is Outcome.ROTATED
    await check_steady(herd)
    assert herd.refused == 0


@pytest.mark.slow
async def test_a_changed_anchor_is_rolled_back_without_any_signer(make_herd: MakeHerd, signers: MemorySigners) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=1)
    before = await document_of(herd)
    for choice in (AnchorChoice(signer=OTHER), AnchorChoice(is_removed=True)):
        await rotator(herd, signers).rotate(anchor=choice, to_phase=Phase.ACTIVATED)
        signers[KMS].is_down = signers[OTHER].is_down = True
        await rotator(herd, signers).abandon()
        document = await check_steady(herd)
        assert (document.anchor, document.current) == (before.anchor, before.current)
        signers[KMS].is_down = signers[OTHER].is_down = False
    await rotator(herd, signers).rotate()
    await check_steady(herd)


async def promote(herd: Herd, *, above: int = 0) -> None:
    """Write what `goatherd stores promote` writes, and let every server read it."""
    document, now_ms = await document_of(herd), herd.clock.now_ms()
    stable = (await herd.provider.read(herd.secret_id, STABLE)).version.id
    changed = record_promotion(document, now_ms, region="us", above=above, stable_version=stable)
    at = (await herd.provider.read(herd.secret_id)).version.id
    await herd.provider.write(herd.secret_id, encode_document(changed), expected=at)
    for node in herd.nodes:
        await node.look()


@pytest.mark.slow
async def test_a_changed_anchor_is_rolled_back_after_other_changes_or_not_at_all(
    make_herd: MakeHerd, signers: MemorySigners
) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=1)
    before, choice = await document_of(herd), AnchorChoice(signer=OTHER)
    await rotator(herd, signers).rotate(anchor=choice, to_phase=Phase.ACTIVATED)
    await promote(herd)
    await rotator(herd, signers).abandon()
    document = await check_steady(herd)
    assert (document.anchor, document.current) == (before.anchor, before.current)
    assert herd.nodes[0].refusal is None
    await rotator(herd, signers).rotate(anchor=choice, to_phase=Phase.ACTIVATED)
    await promote(herd, above=(await document_of(herd)).generation + ROLL_BACK_WRITES)
    activated = await document_of(herd)
    with pytest.raises(IllegalStepError, match="servers would not follow a roll-back"):
        await rotator(herd, signers).abandon()
    assert await document_of(herd) == activated
    assert (await rotator(herd, signers).resume()).outcome is Outcome.ROTATED
    await check_steady(herd)


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.PUBLISHED, Phase.ACTIVATED])
async def test_the_next_root_of_a_change_of_the_anchor_that_was_undone_leaves_the_document_by_the_anchor_s_word(
    make_herd: MakeHerd, signers: MemorySigners, phase: Phase
) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=1)
    await rotator(herd, signers).rotate(anchor=AnchorChoice(signer=OTHER), to_phase=phase)
    changing = await document_of(herd)
    following, rejected = changing.next or changing.current, changing.next_anchor
    assert rejected is not None
    await rotator(herd, signers).abandon()
    await rotator(herd, signers).rotate()
    # After that, the statement that allows the roll-back no longer counts.
    await promote(herd, above=(await document_of(herd)).generation + ROLL_BACK_WRITES)
    for _ in range(2):
        await rotator(herd, signers).rotate()
    document = await check_steady(herd)
    node = herd.nodes[0]
    for restarts in (False, True):
        if restarts:
            node.restart()
        for one in (following.id, rejected):
            assert document.find_root(one) is None
            assert one in node.pool.root_ids
        with pytest.raises(UntrustedRootError, match="working root"):
            node.pool.verify_commit(introduction_of_a_thief(herd, following))
    assert herd.unverifiable() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "undone"),
    [
        (AnchorChoice(), AnchorChoice()),
        (AnchorChoice(), AnchorChoice(signer=KMS)),
        (AnchorChoice(signer=KMS), AnchorChoice()),
        (AnchorChoice(signer=KMS), AnchorChoice(signer=OTHER)),
        (AnchorChoice(signer=KMS), AnchorChoice(is_removed=True)),
    ],
)
async def test_a_client_created_before_a_rotation_was_rolled_back_learns_every_later_root(
    make_herd: MakeHerd, signers: MemorySigners, first: AnchorChoice, undone: AnchorChoice
) -> None:
    herd = await make_herd(nodes=1, clients=0)
    await rotator(herd, signers).rotate(anchor=first)
    await rotator(herd, signers).rotate(anchor=undone, to_phase=Phase.ACTIVATED)
    node = herd.nodes[0]
    await node.look()
    owned, told = await node.create_session()
    await rotator(herd, signers).abandon()
    for _ in range(2):
        await rotator(herd, signers).rotate()
        await node.look()
    log = node.commits(SESSIONS)
    client = Client({one.id for one in told})
    created = {one.session: one.ts for one in log if one.key == owned.id}
    client.take(
        RootIntroductions(log).for_client(
            log, born_under=created, find_root=node.pool.find_root, anchors=node.pool.anchor_ids
        )
    )
    assert client.roots == set(node.pool.root_ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slow", "quick"),
    [
        (AnchorChoice(), AnchorChoice(signer=OTHER)),
        (AnchorChoice(signer=OTHER), AnchorChoice()),
        (AnchorChoice(is_removed=True), AnchorChoice(signer=OTHER)),
    ],
)
async def test_of_two_operators_who_rotate_at_once_with_an_anchor_one_is_told_that_the_other_is_at_it(
    make_herd: MakeHerd, signers: MemorySigners, slow: AnchorChoice, quick: AnchorChoice
) -> None:
    """One operator's signer answers only after the other has written, so it signs a document that has been replaced."""
    herd = await anchored(make_herd, signers, nodes=1, clients=1)
    asked, may_answer = asyncio.Event(), asyncio.Event()

    class Held:
        def __init__(self, uri: str) -> None:
            self._signer = signers.open(uri)
            self.public_key, self.aclose = self._signer.public_key, self._signer.aclose

        async def sign(self, text: bytes) -> bytes:
            asked.set()
            await may_answer.wait()
            return await self._signer.sign(text)

    late = asyncio.create_task(
        rotator_for(herd, open_signer=Held, signers=signers.configured, policy=POLICY).rotate(anchor=slow)
    )
    await asked.wait()
    await rotator(herd, signers).rotate(anchor=quick, to_phase=Phase.PUBLISHED)
    prepared = await document_of(herd)
    may_answer.set()
    with pytest.raises(RotationBusyError):
        await late
    assert await document_of(herd) == prepared
    await rotator(herd, signers).resume()
    anchor = (await check_steady(herd)).anchor
    assert anchor is not None
    session = (await document_of(herd)).anchor_session
    assert session is not None
    assert session.public_key == signers[quick.signer or KMS].key.public_key
    assert herd.refused == 0


async def test_a_plan_says_that_the_anchor_cannot_sign(make_herd: MakeHerd, signers: MemorySigners) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=0)
    assert (await rotator(herd, signers).plan()).obstacles == ()
    signers[KMS].is_down = True
    (obstacle,) = (await rotator(herd, signers).plan()).obstacles
    assert "the anchor cannot sign" in obstacle
    assert "memory" in obstacle
    (found,) = (await rotator(herd, signers).survey()).obstacles
    assert found.kind is ObstacleKind.ANCHOR
    signers[KMS].is_down, signers[OTHER].is_wrong = False, True
    (other,) = (await rotator(herd, signers).plan(anchor=AnchorChoice(signer=OTHER))).obstacles
    assert "invalid" in other or "does not match" in other


async def test_nodes_refuse_a_root_that_a_working_root_introduces(make_herd: MakeHerd, signers: MemorySigners) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=1)
    document = await document_of(herd)
    introduction = introduction_of_a_thief(herd, document.current)
    pool = herd.nodes[0].pool
    with pytest.raises(UntrustedRootError, match="working root"):
        pool.verify_commit(introduction)
    pool.offer_session_commits([introduction])
    assert introduction.key not in pool.root_ids
    await herd.nodes[0].push(SESSIONS, [introduction.to_json()], document.current)
    assert not herd.nodes[0].holds(SESSIONS, introduction.id)


def introduction_of_a_thief(herd: Herd, signer: OwnedSession) -> Commit:
    thief = OwnedSession.generate(session_id="thief", owner=ROOT_OWNER, now_ms=herd.clock.now_ms())
    raw = make_session_commit(
        thief.session,
        signer=signer,
        commit_id=introduction_id("thief"),
        ts=herd.clock.now_ms(),
        org=ORG,
    )
    return Commit.from_json(raw, org=ORG)


@pytest.mark.slow
async def test_working_roots_of_every_former_anchor_introduce_no_root(
    make_herd: MakeHerd, signers: MemorySigners
) -> None:
    herd = await make_herd(nodes=1, clients=1)
    before = (await document_of(herd)).current
    stolen: list[OwnedSession] = []
    node, anchors = herd.nodes[0], ["memory:1", "memory:2", "memory:3", "memory:4"]
    for uri in anchors:
        await rotator(herd, signers).rotate(anchor=AnchorChoice(signer=uri))
        stolen.append((await check_steady(herd)).current)
        await rotator(herd, signers).rotate()
    for _ in range(8):
        node.restart()
        document = await check_steady(herd)
        fresh = TrustPool.from_identity(document, org=ORG)
        for thief in stolen:
            assert thief.id in node.pool.root_ids
            introduction = introduction_of_a_thief(herd, thief)
            assert not node.pool.may_introduce(introduction)
            assert document.find_root(thief.id) is None or not fresh.may_introduce(introduction)
        assert node.pool.may_introduce(introduction_of_a_thief(herd, before)), "a root from before the anchor"
        assert len(document.former_anchors) == len(anchors) - 1
        await rotator(herd, signers).rotate()
    assert not set(document.former_anchors[:-1]) & {root.id for root in document.roots}, "they have left the document"
    assert herd.refused == 0
    assert herd.unverifiable() == []


async def test_a_working_root_lives_thirty_days_and_longer_beside_an_unmodified_server(
    make_herd: MakeHerd, signers: MemorySigners
) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=0)
    left = (await document_of(herd)).current.session.expiration_ms - herd.clock.now_ms()
    assert timedelta(days=29) < timedelta(milliseconds=left) <= timedelta(days=30)
    unmodified = await make_herd_again(make_herd, herd)
    with pytest.raises(LifetimeError, match="45d") as caught:
        await rotator(unmodified, signers).rotate()
    assert "--working-lifetime" in caught.value.hint


async def make_herd_again(make_herd: MakeHerd, herd: Herd) -> Herd:
    return Herd(herd.provider, await document_of(herd), clock=herd.clock, nodes=1, unmodified=[0])


@pytest.mark.slow
async def test_a_stolen_working_root_is_revoked_with_one_signature(make_herd: MakeHerd, signers: MemorySigners) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=0)
    stolen = (await document_of(herd)).current.id
    revoker = revoker_of(herd, signers)
    assert (await revoker.plan(stolen)).anchor_problem is None
    signers[KMS].is_down = True
    assert "memory" in str((await revoker.plan(stolen)).anchor_problem), (
        "the plan states it, as that of a rotation does"
    )
    with pytest.raises(SignerUnavailableError):
        await revoker.revoke(stolen, reason="stolen")
    assert (await document_of(herd)).revoked == ()
    signers[KMS].is_down, before = False, signers.signed
    report = await revoker.revoke(stolen, reason="stolen")
    assert signers.signed == before + 1
    assert report.has_proof
    await herd.nodes[0].look()
    assert herd.nodes[0].refusal is None
    assert stolen not in herd.nodes[0].pool.root_ids
    anchor = (await document_of(herd)).anchor
    assert anchor is not None
    with pytest.raises(IllegalStepError, match="is the anchor"):
        await revoker.revoke(anchor, reason="stolen")


def slowly(signers: MemorySigners, meanwhile: list[Callable[[], Awaitable[Any]]], signed: list[bytes]) -> SignerOpener:
    """Return an opener of signers that record the texts that they sign; `meanwhile` runs before they answer."""

    class Slow:
        def __init__(self, uri: str) -> None:
            self._signer = signers.open(uri)
            self.public_key, self.aclose = self._signer.public_key, self._signer.aclose

        async def sign(self, text: bytes) -> bytes:
            signature = await self._signer.sign(text)
            signed.append(text)
            if meanwhile:
                await meanwhile.pop()()
            return signature

    return Slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stolen", "successor", "before", "meanwhile", "current", "revoked", "signatures"),
    [
        ("a", "new", None, "publish", "new", {"a", "b"}, 1),
        ("a", "new", None, "rotate", "b", {"a"}, 2),
        ("a", "new", Phase.PUBLISHED, "activate", "b", {"a"}, 2),
        ("a", "new", Phase.ACTIVATED, "abandon", "new", {"a"}, 2),
        ("b", "new", Phase.ACTIVATED, "abandon", "a", {"b"}, 2),
        ("a", "next", Phase.PUBLISHED, "activate", "b", {"a"}, 2),
        ("a", "earlier", None, "publish", "earlier", {"a", "b"}, 3),
    ],
)
async def test_a_revocation_is_decided_and_signed_again_if_a_rotation_was_faster(
    make_herd: MakeHerd,
    signers: MemorySigners,
    stolen: str,
    successor: str,
    before: Phase | None,
    meanwhile: str,
    current: str,
    revoked: set[str],
    signatures: int,
) -> None:
    herd = await anchored(make_herd, signers, nodes=1, clients=0)
    await rotator(herd, signers).rotate()
    document = await document_of(herd)
    assert document.rotated_from is not None
    ids = {"earlier": document.rotated_from, "a": document.current.id}
    if before is not None:
        await rotator(herd, signers).rotate(to_phase=before)

    async def act() -> None:
        match meanwhile:
            case "publish":
                await rotator(herd, signers).rotate(to_phase=Phase.PUBLISHED)
            case "activate":
                await rotator(herd, signers).resume(to_phase=Phase.ACTIVATED)
            case "abandon":
                await rotator(herd, signers).abandon()
            case _:
                await rotator(herd, signers).rotate()
        await name_next()

    async def name_next() -> None:
        new = {root.id for root in (await document_of(herd)).roots} - known
        if new:
            (ids["b"],) = new

    known = {root.id for root in document.roots}
    await name_next()
    signed: list[bytes] = []
    revoker = revoker_of(herd, signers, slowly(signers, [act], signed))
    report = await revoker.revoke(ids[stolen], reason="stolen", successor=ids.get(successor, successor))
    after = await document_of(herd)
    assert ids.get(current) == after.current.id or (current == "new" and after.current.id not in ids.values())
    assert after.revoked_ids == {ids[one] for one in revoked}
    assert (report.has_proof, report.current_id, len(signed)) == (True, after.current.id, signatures)
    await herd.nodes[0].look()
    assert herd.nodes[0].refusal is None
    assert not after.revoked_ids & set(herd.nodes[0].pool.root_ids)


async def test_a_revocation_that_servers_would_reject_is_not_written(
    make_herd: MakeHerd, signers: MemorySigners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchor signed for the previous document, which a simulated defect takes for the present one."""
    monkeypatch.setattr("goatherd.revocation.revoker._Decision.holds_for", lambda *_: True)
    herd = await anchored(make_herd, signers, nodes=1, clients=0)
    await rotator(herd, signers).rotate()
    before = await document_of(herd)
    assert before.rotated_from is not None

    async def act() -> None:
        await rotator(herd, signers).rotate(to_phase=Phase.PUBLISHED)

    revoker = revoker_of(herd, signers, slowly(signers, [act], []))
    with pytest.raises(UnanchoredIdentityError, match="has not signed the revocation"):
        await revoker.revoke(before.current.id, reason="stolen", successor=before.rotated_from)
    after = await document_of(herd)
    assert (after.revoked, after.current.id) == ((), before.current.id)


async def test_an_expired_working_root_is_replaced_by_one_signature_of_the_anchor(
    make_herd: MakeHerd, signers: MemorySigners
) -> None:
    herd = await anchored(make_herd, signers, nodes=2, clients=0)
    herd.clock.turn(timedelta(days=31))
    before = signers.signed
    replacer = Replacer(
        herd.provider,
        herd.secret_id,
        herd.nodes,
        policy=OWN_CLOCK,
        clock=herd.clock,
        open_signer=signers.open,
        signers=signers.configured,
    )
    report = await replacer.replace()
    assert report.is_complete
    assert signers.signed == before + 1
    left = (await document_of(herd)).current.session.expiration_ms - herd.clock.now_ms()
    assert left <= milliseconds(timedelta(days=30))
    for version in await herd.provider.versions(herd.secret_id):
        if not version.labels:
            await herd.provider.destroy(herd.secret_id, version.id)
    again = await replacer.replace()
    assert not again.is_written
    assert again.can_introduce, "the anchor introduces the new root, whatever became of the expired one's key"
    assert all(node.holds_introduction for node in again.nodes)


@pytest.mark.slow
async def test_restore_returns_to_a_working_root_and_to_no_other(make_herd: MakeHerd, signers: MemorySigners) -> None:
    herd = await make_herd(nodes=1, clients=0)
    ordinary = (await document_of(herd)).current.id
    await rotator(herd, signers).rotate(anchor=AnchorChoice(signer=KMS))
    with pytest.raises(NotRestorableError, match="has not endorsed"):
        await rotator(herd, signers).restore(ordinary)
    working = (await document_of(herd)).current.id
    await rotator(herd, signers).rotate()
    before = signers.signed
    await rotator(herd, signers).restore()
    assert (await check_steady(herd)).current.id == working
    assert signers.signed == before


@pytest.mark.slow
async def test_restore_rejects_a_root_that_servers_know_by_another_anchor(
    make_herd: MakeHerd, signers: MemorySigners
) -> None:
    """Servers would not store this anchor's introduction of the root, because they have one with the same id."""
    herd = await anchored(make_herd, signers, nodes=1, clients=0)
    await rotator(herd, signers).rotate(to_phase=Phase.ACTIVATED, anchor=AnchorChoice(signer=OTHER))
    left = (await document_of(herd)).current.id
    await rotator(herd, signers).abandon()
    before = await check_steady(herd)
    with pytest.raises(NotRestorableError, match="another anchor introduced it"):
        await rotator(herd, signers).restore(left)
    assert (await check_steady(herd)).generation == before.generation


@pytest.mark.slow
async def test_two_revocations_and_a_change_of_the_anchor_leave_room_for_renewals(
    make_herd: MakeHerd, signers: MemorySigners
) -> None:
    herd = await make_herd(nodes=1, clients=0)
    for _ in range(2):
        await rotator(herd, signers).rotate()
        stolen = (await document_of(herd)).current.id
        await Revoker(herd.provider, herd.secret_id, (), policy=OWN_CLOCK, clock=herd.clock).revoke(stolen, reason="?")
        await herd.settle()
    for choice in (AnchorChoice(), AnchorChoice(signer=KMS), AnchorChoice(signer=OTHER), *[AnchorChoice()] * 8):
        report = await rotator(herd, signers).rotate(anchor=choice)
        assert report.outcome is Outcome.ROTATED
    document = await document_of(herd)
    assert [node.pool.current.id for node in herd.nodes] == [document.current.id]
    assert len(document.revoked) == 2


@pytest.mark.slow
@pytest.mark.parametrize("phase", [Phase.PREPARED, Phase.PUBLISHED])
async def test_the_anchor_of_a_cancelled_rotation_leaves_and_a_server_that_was_away_since_before_it_follows(
    make_herd: MakeHerd, signers: MemorySigners, phase: Phase
) -> None:
    herd = await make_herd(nodes=1, clients=0)
    seen = [TrustCheckpoint.from_document(await document_of(herd))]
    await rotator(herd, signers).rotate(anchor=AnchorChoice(signer=KMS), to_phase=phase)
    seen.append(TrustCheckpoint.from_document(await document_of(herd)))
    await rotator(herd, signers).abandon("no")
    assert [root.id for root in (await document_of(herd)).roots] == ["root-a"]
    for _ in range(3):
        await rotator(herd, signers).rotate()
        document = await document_of(herd)
        assert document.find_root("root-a") is not None, "no root that can be restored has made room for the anchor"
        for checkpoint in seen:
            verify_successor(document, checkpoint, herd.nodes[0].commits(SESSIONS))
    await rotator(herd, signers).rotate(anchor=AnchorChoice(signer=KMS))
    assert (await check_steady(herd)).anchor is not None


@pytest.mark.slow
async def test_an_anchor_past_its_end_still_renews_is_replaced_and_removed(
    make_herd: MakeHerd, signers: MemorySigners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.rotation.anchor_keys.LIFETIME", timedelta(days=40))
    herd = await anchored(make_herd, signers, nodes=2, clients=0, lifetime=timedelta(days=900))
    for choice in (AnchorChoice(), AnchorChoice(), AnchorChoice(signer=OTHER)):
        herd.clock.turn(timedelta(days=25))
        await rotator(herd, signers).rotate(anchor=choice)
        await check_steady(herd)
    await rotator(herd, signers).rotate(to_phase=Phase.PUBLISHED)
    stolen = (await document_of(herd)).current.id
    herd.clock.turn(timedelta(days=20))
    revoker = revoker_of(herd, signers)
    await revoker.revoke(stolen, reason="stolen")
    await herd.settle()
    herd.clock.turn(timedelta(days=25))
    await rotator(herd, signers).rotate(anchor=AnchorChoice(is_removed=True))
    document = await document_of(herd)
    assert (document.anchor, stolen in document.revoked_ids) == (None, True)
    assert {node.pool.current.id for node in herd.nodes} == {document.current.id}
