"""Identities with an anchor: their checks, and which documents a server follows by the anchor's signature alone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from goatherd.errors import (
    IllegalStepError,
    MalformedIdentityError,
    SuccessionError,
    UnanchoredIdentityError,
    UntrustedRootError,
)
from goatherd.identity.anchor import AnchorChange, AnchorWord, verify_change
from goatherd.identity.document import (
    IdentityDocument,
    Phase,
    decode_document,
    encode_document,
    sign_document,
)
from goatherd.identity.redaction import redact_document
from goatherd.identity.revocations import Revocation
from goatherd.identity.root_signatures import endorse_root
from goatherd.identity.session import OwnedSession, sign_commit
from goatherd.identity.settings_json import to_settings
from goatherd.identity.succession import TrustCheckpoint, verify_successor
from goatherd.identity.transitions import (
    activate_rotation,
    can_go_back,
    cancel_rotation,
    create_document,
    drop_lost_anchor,
    finalize_rotation,
    is_full,
    prepare_restore,
    prepare_rotation,
    prunable_roots,
    prune_roots,
    record_frozen_commits,
    record_promotion,
    record_reissued_sessions,
    replace_expired,
    revocations_to_sign,
    revoke_root,
    roll_back_rotation,
    with_phase,
)
from goatherd.remote_keys import RootSigners
from goatherd.rotation.anchor_keys import AnchorChoice, AnchorKey, AnchorKeys, collect_anchor_signatures
from goatherd.rotation.cross_signing import is_introduced_by_anchor
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit, new_commit
from tests.fakes.anchors import MemorySigners, OwnKey
from tests.unit.identity.make import SMALLEST_LIMIT, USUAL_BYTES

from .make import DAY, NOW, first, owned, shows_key

A, B, C, THIEF = owned("a"), owned("b"), owned("c"), owned("thief")
KMS, OTHER = "memory:kms", "memory:other"


class World:
    """One identity and its signers; every step returns the documents that it wrote, oldest first."""

    def __init__(self) -> None:
        self.signers = MemorySigners()
        self.keys = AnchorKeys("localhost", self.signers.open, self.signers.configured)

    async def anchored(self, root: OwnedSession = A) -> IdentityDocument:
        key = await self.keys.open_new(KMS, session_id="anchor", now_ms=NOW)
        endorsement = await key.introduce(root.session, NOW)
        return create_document(root, NOW, word=AnchorWord(session=key.session, endorsements=(endorsement,)))

    async def word(self, document: IdentityDocument, to: OwnedSession, **choice: Any) -> AnchorWord | None:
        return await collect_anchor_signatures(
            self.keys, document, to.session, AnchorChoice(**choice), anchor_id=f"anchor-{to.id[:1]}", now_ms=NOW
        )

    async def prepare(self, document: IdentityDocument, to: OwnedSession, **choice: Any) -> IdentityDocument:
        return prepare_rotation(
            document,
            to,
            now_ms=NOW,
            rotation_id=f"rotation-to-{to.id}",
            started_by="alice",
            stable_version="1",
            word=await self.word(document, to, **choice),
        )

    async def rotate(self, document: IdentityDocument, to: OwnedSession, **choice: Any) -> list[IdentityDocument]:
        prepared = await self.prepare(document, to, **choice)
        published = with_phase(prepared, Phase.PUBLISHED, NOW)
        activated = activate_rotation(published, NOW)
        verified = with_phase(activated, Phase.VERIFIED, NOW)
        return [prepared, published, activated, verified, finalize_rotation(verified, NOW)]


@pytest.fixture
def world() -> World:
    return World()


def follow(*documents: IdentityDocument) -> None:
    """Let a server that uses the first document follow each of the others in turn."""
    seen = TrustCheckpoint.from_bytes(TrustCheckpoint.from_document(documents[0]).to_bytes())
    for document in documents[1:]:
        verify_successor(decode_document(encode_document(document)), seen)
        seen = TrustCheckpoint.from_document(document)


def forge(document: IdentityDocument, by: OwnedSession, **changes: Any) -> IdentityDocument:
    """Return what a thief of `by`'s key writes: the next generation with these changes, signed by `by`."""
    changes.setdefault("generation", document.generation + 1)
    forged = replace(document, current=by, rotation=None, next=None, lineage=None, **changes)
    return decode_document(encode_document(sign_document(forged, NOW)))


# --- the document -----------------------------------------------------------------------------------------------------


async def test_nothing_in_the_document_says_where_the_anchor_s_key_is(world: World) -> None:
    document = await world.anchored()
    assert document.anchor is not None
    assert document.anchor == "anchor"
    assert decode_document(encode_document(document)) == document
    shown = redact_document(document)
    assert shown["anchor"]["id"] == "anchor"
    assert KMS.encode() not in encode_document(document)
    assert not shows_key(str(shown), A)
    settings = to_settings(document)
    assert b'"anchor"' not in settings.replace(b'"id": "anchor"', b""), "a GoatDB server gets its public half only"
    assert document.anchor not in prunable_roots(document)


async def test_a_document_whose_root_the_anchor_has_not_endorsed_is_malformed(world: World) -> None:
    document = await world.anchored()
    with pytest.raises(MalformedIdentityError, match="no endorsement by the anchor"):
        replace(document, endorsements=()).check()
    ordinary = endorse_root(A, document.roots[-1], NOW)
    with pytest.raises(MalformedIdentityError, match="no endorsement by the anchor"):
        replace(document, endorsements=(ordinary,)).check()
    with pytest.raises(MalformedIdentityError, match="anchor is not among the roots"):
        replace(document, roots=document.roots[:1], endorsements=()).check()


async def test_every_member_of_the_endorsing_commit_is_signed(world: World) -> None:
    document = await world.anchored()
    (endorsement,) = document.endorsements
    assert endorsement.commit is not None
    for changed in (
        endorsement.commit._replace(ts=NOW + 1),
        endorsement.commit._replace(org="other"),
        endorsement.commit._replace(is_earlier=True),
    ):
        with pytest.raises(MalformedIdentityError, match="invalid"):
            replace(document, endorsements=(replace(endorsement, commit=changed),)).check()


# --- following --------------------------------------------------------------------------------------------------------


async def test_a_renewal_needs_one_signature_and_is_followed_at_every_step(world: World) -> None:
    document = await world.anchored()
    before = world.signers.signed
    steps = await world.rotate(document, B)
    assert world.signers.signed == before + 1
    follow(document, *steps)
    follow(document, steps[-1])
    follow(document, steps[1], cancel_rotation(steps[1], NOW, reason="no"))
    follow(document, steps[3], roll_back_rotation(steps[3], document, NOW, reason="no"))


async def test_a_server_that_was_away_for_a_hundred_renewals_follows_by_the_anchor_s_endorsement(world: World) -> None:
    document = await world.anchored()
    root = owned("w100")
    endorsement = await (await world.keys.open_current(document)).introduce(root.session, NOW)
    word = AnchorWord(session=document.anchor_session, endorsements=(endorsement,))
    late = forge(create_document(root, NOW, word=word), root, generation=900, pruned=98)
    verify_successor(late, document, is_pruning_believed=True)


async def test_the_thief_of_a_working_root_can_add_no_root_and_leave_no_anchor(world: World) -> None:
    document = await world.anchored()
    anchor = document.anchor_session
    assert anchor is not None
    stolen = endorse_root(A, THIEF.session, NOW)
    with_thief: dict[str, Any] = {
        "roots": (*document.roots, THIEF.session),
        "endorsements": (*document.endorsements, stolen),
    }
    with pytest.raises(SuccessionError):
        follow(document, forge(document, A, **with_thief))
    own = AnchorKey(THIEF.session, OwnKey(THIEF), "localhost", RootSigners())
    for changes in (
        {"anchor": None},
        {"anchor": None, **with_thief},
        {**with_thief, "anchor": THIEF.id, "endorsements": (stolen, await own.introduce(A.session, NOW))},
    ):
        forged = forge(document, A, **changes)
        with pytest.raises(UnanchoredIdentityError):
            follow(document, forged)
    with pytest.raises(SuccessionError):
        follow(document, forge(document, THIEF, anchor=None, **with_thief))
    follow(document, forge(document, A))


async def test_the_thief_of_a_working_root_cannot_make_it_count_as_an_anchor(world: World) -> None:
    (*_, document) = await world.rotate(await world.anchored(), B)
    anchor = document.anchor_session
    assert anchor is not None
    thief = AnchorKey(B.session, OwnKey(B), "localhost", RootSigners())
    for subject, is_anchor in ((anchor, True), (A.session, False)):
        change = await thief.sign_change(subject, NOW, is_anchor=is_anchor)
        forged = forge(document, B, anchor_changes=(change,))
        with pytest.raises(UnanchoredIdentityError, match=f"names root {B.id} as an anchor"):
            follow(document, forged)
    # A rotation that no anchor has signed names the thief's root as the next anchor.
    (*_, renewed) = await world.rotate(document, C)
    endorsed = await thief.introduce(A.session, NOW)
    prepared = prepare_restore(renewed, B, now_ms=NOW, rotation_id="r", started_by="", stable_version="1")
    assert prepared.rotation is not None
    forged = replace(
        prepared,
        current=C,
        next=A,
        rotation=replace(prepared.rotation, to_id=A.id, anchor=B.id),
        endorsements=(*prepared.endorsements, endorsed),
    )
    forged = decode_document(encode_document(sign_document(forged, NOW)))
    with pytest.raises(UnanchoredIdentityError, match=f"names root {B.id} as an anchor"):
        follow(renewed, forged)


async def test_the_former_anchors_are_named_until_the_identity_has_no_anchor(world: World) -> None:
    (*_, document) = await world.rotate(await world.anchored(), B, signer=OTHER)
    assert document.former_anchors == ("anchor",)
    prepared, published, activated, _, third = await world.rotate(document, C, signer="memory:third")
    assert roll_back_rotation(activated, document, NOW, reason="").former_anchors == ("anchor",)
    assert third.former_anchors == ("anchor", "anchor-b")
    follow(document, prepared, published, activated, third)
    for fewer in ((), ("anchor-b",)):
        with pytest.raises(UnanchoredIdentityError, match="no longer names the former anchor anchor"):
            follow(third, forge(third, C, former_anchors=fewer))
    with pytest.raises(UnanchoredIdentityError, match=f"names root {C.id} as an anchor"):
        follow(third, forge(third, C, former_anchors=(*third.former_anchors, C.id)))
    _, _, activated, _, free = await world.rotate(third, owned("d"), is_removed=True)
    assert roll_back_rotation(activated, third, NOW, reason="").former_anchors == third.former_anchors
    assert free.former_anchors == ()


async def test_the_thief_of_a_working_root_can_revoke_no_other_root(world: World) -> None:
    document = await world.anchored()
    (*_, rotated) = await world.rotate(document, B)
    forged = revoke_root(rotated, A.id, NOW, reason="", word=AnchorWord(session=rotated.anchor_session))
    with pytest.raises(UnanchoredIdentityError, match="revoked"):
        follow(rotated, forged)
    proof = await (await world.keys.open_current(rotated)).sign_revocation(A.id, NOW)
    word = AnchorWord(session=rotated.anchor_session, proofs={A.id: proof})
    follow(rotated, revoke_root(rotated, A.id, NOW, reason="", word=word))
    later = word._replace(proofs={A.id: await (await world.keys.open_current(rotated)).sign_revocation(A.id, NOW - 1)})
    with pytest.raises(UnanchoredIdentityError, match="revoked"):
        follow(rotated, revoke_root(rotated, A.id, NOW, reason="", word=later))


async def test_the_thief_of_a_working_root_cannot_revoke_a_root_that_has_left_the_document(world: World) -> None:
    document = await world.anchored()
    (introduction,) = [one.introduction(A.session) for one in document.endorsements]
    for to in (B, C):
        document = (await world.rotate(document, to))[-1]
    pruned = prune_roots(document, [A.id], NOW)
    forged = forge(pruned, C, revoked=(Revocation(id=A.id, at=NOW, reason=""),))
    with pytest.raises(UnanchoredIdentityError, match="revoked"):
        verify_successor(forged, pruned, [introduction])
    proof = await (await world.keys.open_current(pruned)).sign_revocation(A.id, NOW)
    signed = forge(pruned, C, revoked=(Revocation(id=A.id, at=NOW, reason="", anchor_proof=proof),))
    verify_successor(signed, pruned, [introduction])


async def test_a_stolen_working_root_is_revoked_with_one_signature_and_no_word_of_its_own(world: World) -> None:
    document = await world.anchored()
    before = world.signers.signed
    assert revocations_to_sign(document, A.id, B) == ()
    word = await world.word(document, B)
    revoked = revoke_root(document, A.id, NOW, reason="stolen", successor=B, word=word)
    assert world.signers.signed == before + 1
    assert revoked.revoked[0].proof is None
    assert not any(one.by == A.id for one in revoked.endorsements)
    follow(document, revoked)
    with pytest.raises(IllegalStepError, match="is the anchor"):
        revoke_root(revoked, "anchor", NOW, reason="", word=word)
    with pytest.raises(IllegalStepError, match="not endorsed"):
        revoke_root(document, A.id, NOW, reason="stolen", successor=B)


async def test_a_root_from_before_the_anchor_is_no_successor_of_a_revoked_one(world: World) -> None:
    document = (await world.rotate(first(), B, signer=KMS))[-1]
    assert document.anchor is not None
    word = AnchorWord(session=document.anchor_session)
    with pytest.raises(IllegalStepError, match="has not endorsed the successor"):
        revoke_root(document, B.id, NOW, reason="stolen", successor=A, word=word)


@pytest.mark.slow
async def test_an_anchor_is_added_replaced_and_removed_and_each_can_be_undone_until_its_end(world: World) -> None:
    document = first()
    for to, choice in ((B, {"signer": KMS}), (C, {"signer": OTHER}), (owned("d"), {"is_removed": True})):
        steps = await world.rotate(document, to, **choice)
        follow(document, *steps)
        follow(document, steps[-1])
        follow(document, steps[0], cancel_rotation(steps[0], NOW, reason="no"))
        follow(document, steps[1], cancel_rotation(steps[1], NOW, reason="no"))
        back = roll_back_rotation(steps[3], document, NOW, reason="no")
        assert back.anchor == document.anchor
        follow(document, *steps[:4], back)
        for away in (cancel_rotation(steps[0], NOW, reason="no"), cancel_rotation(steps[1], NOW, reason="no"), back):
            follow(document, away)
        # SECURITY: the way back is closed: the previous key signs a later document with the same statements.
        replayed = forge(back, document.current, generation=steps[-1].generation + 1)
        if choice != {"is_removed": True}:
            with pytest.raises((UnanchoredIdentityError, MalformedIdentityError)):
                follow(steps[-1], replayed)
        document = steps[-1]
    assert document.anchor is None
    assert not any(change.until for change in document.anchor_changes)


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_change_of_the_anchor_can_be_rolled_back_after_other_changes_of_the_identity(
    world: World, is_first: bool
) -> None:
    document = first() if is_first else await world.anchored()
    prepared, published, activated, verified, _ = await world.rotate(document, B, signer=OTHER)
    changed = record_promotion(activated, NOW, region="us", above=0, stable_version="1")
    assert can_go_back(changed)
    back = roll_back_rotation(changed, document, NOW, reason="no")
    follow(document, prepared, published, activated, changed, back)
    follow(activated, back)
    over = record_promotion(verified, NOW, region="us", above=0, stable_version="1")
    assert not can_go_back(over)
    with pytest.raises(IllegalStepError, match="can only be completed"):
        roll_back_rotation(over, document, NOW, reason="no")
    follow(verified, over, finalize_rotation(over, NOW))


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_server_that_missed_a_roll_back_follows_while_the_way_back_counts(world: World, is_first: bool) -> None:
    document = first() if is_first else await world.anchored()
    (_, _, activated, *_) = await world.rotate(document, B, signer=OTHER)
    back = roll_back_rotation(activated, document, NOW, reason="no")
    again = await world.rotate(back, C, signer=OTHER)
    follow(activated, again[0])
    renewed = await world.rotate(back, owned("d"))
    follow(activated, renewed[0])
    assert not any(one.until for one in again[-1].anchor_changes)


@pytest.mark.parametrize("end", ["cancelled", "rolled back"])
@pytest.mark.parametrize("choice", [{"signer": "memory:third"}, {"signer": KMS}, {"is_removed": True}])
async def test_a_change_of_the_anchor_that_was_undone_does_not_displace_the_last_real_one(
    world: World, end: str, choice: dict[str, Any]
) -> None:
    first_anchor = await world.anchored()
    document = (await world.rotate(first_anchor, B, signer=OTHER))[-1]
    _, published, activated, *_ = await world.rotate(document, C, **choice)
    if end == "cancelled":
        undone = cancel_rotation(published, NOW, reason="no")
        assert undone.anchor_changes == document.anchor_changes
    else:
        undone = roll_back_rotation(activated, document, NOW, reason="no")
        follow(activated, undone)
    renewed = (await world.rotate(undone, owned("d")))[-1]
    assert [one for one in renewed.anchor_changes if one.until is None] == list(document.anchor_changes)
    for before in (first_anchor, document):
        follow(before, undone)
        follow(before, renewed)


async def test_a_change_of_the_anchor_that_an_earlier_version_left_after_a_roll_back_goes_with_the_next_rotation(
    world: World,
) -> None:
    document = await world.anchored()
    activated = (await world.rotate(document, B, signer=OTHER))[2]
    left = replace(roll_back_rotation(activated, document, NOW, reason="no"), anchor_changes=activated.anchor_changes)
    renewed = (await world.rotate(sign_document(left, NOW), C))[-1]
    assert all(one.until for one in renewed.anchor_changes)


@pytest.mark.parametrize("end", ["cancelled", "rolled back"])
async def test_the_next_anchor_of_a_rotation_that_was_undone_introduces_no_root(world: World, end: str) -> None:
    document = await world.anchored()
    _, published, activated, verified, finalized = await world.rotate(document, B, signer=OTHER)
    rejected = await world.keys.open_current(activated)
    signed = await rejected.introduce(THIEF.session, NOW)
    introduction = Commit.from_json(signed.introduction(THIEF.session).to_json(), org="localhost")

    def introduces(at: IdentityDocument) -> bool:
        return TrustPool.from_identity(at, org="localhost").add_session_commit(introduction)

    assert introduces(finalized)
    if end == "cancelled":
        undone = cancel_rotation(published, NOW, reason="no")
    else:
        undone = roll_back_rotation(verified, document, NOW, reason="no")
        assert rejected.session.id not in prunable_roots(undone), "servers that use that anchor need it to go back"
    assert not introduces(undone)
    renewed = (await world.rotate(undone, C))[-1]
    assert not introduces(renewed)
    last = max((one.until or 0 for one in undone.anchor_changes), default=0)
    later = record_promotion(renewed, NOW, region="us", above=last, stable_version="1")
    assert rejected.session.id in prunable_roots(later)


async def test_a_root_that_a_rejected_anchor_has_introduced_leaves_only_after_an_introduction_by_the_present_one(
    world: World,
) -> None:
    document = await world.anchored()
    activated = (await world.rotate(document, B, signer=OTHER))[2]
    undone = roll_back_rotation(activated, document, NOW, reason="no")
    late, new = NOW + 31 * DAY, owned("new", days=60)
    replaced = replace_expired(undone, new, late, rotation_id="r", word=await world.word(undone, new))
    assert any(one.until for one in replaced.anchor_changes), "servers that use the rejected anchor can still go back"
    assert B.id in prunable_roots(replaced)
    assert not is_introduced_by_anchor(replaced, B.id)
    assert is_introduced_by_anchor(replaced, A.id)


@pytest.mark.parametrize(("schema", "is_accepted"), [("task/1", True), ("sessions/1", False), ("sessions/2", False)])
async def test_a_working_root_may_write_an_item_that_belongs_to_root_but_not_a_session(
    world: World, schema: str, is_accepted: bool
) -> None:
    draft = new_commit(
        commit_id="commit",
        key="key",
        session_id=A.id,
        ts=NOW,
        org="localhost",
        data={"title": "x", "owner": "root"},
        schema_marker=schema,
        connection="connection",
    )
    commit = sign_commit(A, draft, now_ms=NOW)
    pool = TrustPool.from_identity(await world.anchored(), org="localhost")
    with nullcontext() if is_accepted else pytest.raises(UntrustedRootError, match="cannot introduce root"):
        pool.verify_commit(Commit.from_json(commit.to_json(), org="localhost"))


async def test_a_working_root_can_be_revoked_by_the_new_anchor_before_every_server_knows_that(world: World) -> None:
    document = await world.anchored()
    prepared, published, activated, verified, _ = await world.rotate(document, B, signer=OTHER)
    for at in (activated, verified):
        revoked = revoke_root(at, B.id, NOW, reason="stolen", successor=C, word=await world.word(at, C))
        assert not any(one.until for one in revoked.anchor_changes)
        for before in (document, prepared, published, at):
            follow(before, revoked)
    for at in (prepared, published):
        assert at.next_anchor is not None
        assert at.next_anchor != at.anchor
        with pytest.raises(IllegalStepError, match="is the next anchor of the rotation in progress") as refused:
            revoke_root(at, at.next_anchor, NOW, reason="")
        assert "goatherd rotate --cancel" in (refused.value.hint or "")
        revoked = revoke_root(at, A.id, NOW, reason="stolen", successor=C, word=await world.word(at, C))
        assert revoked.anchor_changes == ()
        for before in (document, prepared, at):
            follow(before, revoked)


async def test_a_change_of_the_anchor_covers_everything_that_it_says(world: World) -> None:
    document = await world.anchored()
    key: AnchorKey = await world.keys.open_current(document)
    change = await key.sign_change(B.session, NOW, is_anchor=True, until=7)
    verify_change(change, by=key.session, subject=B.session)
    for other in (
        replace(change, until=8),
        replace(change, until=None),
        replace(change, to=None, root=B.id),
        AnchorChange(by="anchor", to=B.id, until=7, signature=(await key.introduce(B.session, NOW)).signature),
    ):
        with pytest.raises(SuccessionError):
            verify_change(other, by=key.session, subject=B.session)
    with pytest.raises(SuccessionError):
        verify_change(change, by=key.session, subject=replace(B.session, expiration_ms=1))


async def test_a_lost_anchor_is_dropped_only_where_the_operator_accepts_it(world: World) -> None:
    document = await world.anchored()
    dropped = drop_lost_anchor(document, NOW, reason="the token is broken")
    with pytest.raises(UnanchoredIdentityError):
        follow(document, dropped)
    accepted = TrustCheckpoint.from_document(dropped)
    assert accepted.anchor is None
    follow(dropped, *await world.rotate(dropped, B, signer=OTHER))
    with pytest.raises(IllegalStepError):
        drop_lost_anchor(dropped, NOW, reason="")


async def test_an_expired_working_root_is_replaced_by_the_anchor_s_word(world: World) -> None:
    document = await world.anchored()
    late = NOW + 31 * DAY
    successor = owned("new", days=60)
    with pytest.raises(IllegalStepError, match="not endorsed"):
        replace_expired(document, successor, late, rotation_id="r")
    word = await world.word(document, successor)
    follow(document, replace_expired(document, successor, late, rotation_id="r", word=word))


@pytest.mark.parametrize("choice", [{"signer": "memory:third"}, {"is_removed": True}])
async def test_the_replacement_of_an_expired_root_ends_a_change_of_the_anchor_as_a_cancellation_does(
    world: World, choice: dict[str, Any]
) -> None:
    first_anchor = await world.anchored()
    document = (await world.rotate(first_anchor, B, signer=OTHER))[-1]
    prepared, published, *_ = await world.rotate(document, C, **choice)
    late, new = NOW + 31 * DAY, owned("new", days=60)
    for at in (prepared, published):
        replaced = replace_expired(at, new, late, rotation_id="r", word=await world.word(at, new))
        assert replaced.anchor_changes == document.anchor_changes
        assert replaced.anchored_trust is not None
        assert replaced.anchored_trust.anchors == {"anchor", "anchor-b"}
        assert {"anchor-c"} & {root.id for root in replaced.roots} <= prunable_roots(replaced)
        for before in (first_anchor, document, prepared, at):
            follow(before, replaced)


async def test_the_replacement_or_the_revocation_of_a_root_ends_the_addition_of_an_anchor(world: World) -> None:
    document, late, new = first(), NOW + 800 * DAY, owned("new", days=900)
    _, published, *_ = await world.rotate(document, B, signer=KMS)
    for after in (
        replace_expired(published, new, late, rotation_id="r"),
        revoke_root(published, published.current.id, NOW, reason="stolen", successor=new),
    ):
        assert after.anchor_changes == ()
        follow(document, published, after)


async def test_a_root_from_before_the_anchor_cannot_be_restored(world: World) -> None:
    (*_, document) = await world.rotate(first(), B, signer=KMS)
    with pytest.raises(IllegalStepError, match="has not endorsed and introduced root"):
        prepare_restore(document, A, now_ms=NOW, rotation_id="r", started_by="", stable_version="1")
    (*_, renewed) = await world.rotate(document, C)
    restoring = prepare_restore(renewed, B, now_ms=NOW, rotation_id="r", started_by="", stable_version="1")
    follow(renewed, restoring)


async def test_the_document_stays_below_10_kb_with_three_previous_roots_and_a_former_anchor(world: World) -> None:
    (*_, document) = await world.rotate(await world.anchored(), B)
    (*_, document) = await world.rotate(document, C, signer=OTHER)
    (*_, document) = await world.rotate(document, owned("d"))
    assert len(encode_document(document)) < USUAL_BYTES


async def test_even_a_revocation_in_the_middle_of_the_last_renewal_that_fits_stays_below_the_limit_of_every_store(
    world: World,
) -> None:
    document, number, long = await world.anchored(), 0, "\N{GOAT}" * 200
    while not is_full(document, is_renewal=True):
        number += 1
        before, key = document, await world.keys.open_current(document)
        heir = owned(f"r{number}")
        (*_, document) = await world.rotate(document, heir)
        proofs = {before.current.id: await key.sign_revocation(before.current.id, NOW)}
        word = AnchorWord(session=key.session, proofs=proofs)
        document = revoke_root(document, before.current.id, NOW, reason=long, word=word)
        document = record_frozen_commits(document, before.current.id, NOW, commits=12_345, digest="a" * 64)
        document = record_reissued_sessions(document, before.current.id, NOW)
    assert number >= 5
    heir = owned("next")
    prepared = prepare_rotation(
        before,
        heir,
        now_ms=NOW,
        rotation_id="rotation".ljust(24, "x"),
        started_by=long,
        stable_version="v" * 100,
        word=await world.word(before, heir),
    )
    published = with_phase(prepared, Phase.PUBLISHED, NOW)
    fresh = owned("fresh")
    word = AnchorWord(session=key.session, endorsements=(await key.introduce(fresh.session, NOW),))
    revoked = revoke_root(published, published.current.id, NOW, reason=long, successor=fresh, word=word)
    assert len(encode_document(revoked)) < SMALLEST_LIMIT
