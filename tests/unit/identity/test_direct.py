"""Direct mode: the anchor itself is the current root, and its private key is in no document."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import (
    ConfigurationError,
    DirectModeError,
    IllegalStepError,
    MalformedIdentityError,
    SignerMisuseError,
)
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument, Phase, decode_document, encode_document
from goatherd.identity.key_age import Urgency, assess_urgency, roots_with_keys
from goatherd.identity.redaction import find_warnings
from goatherd.identity.remote_key import RemoteKey
from goatherd.identity.session import OwnedSession
from goatherd.identity.settings_json import from_settings, to_settings, to_settings_keeping
from goatherd.identity.transitions import (
    activate_rotation,
    cancel_rotation,
    create_document,
    drop_lost_anchor,
    finalize_rotation,
    prepare_rotation,
    prunable_roots,
    revoke_root,
    roll_back_rotation,
    with_phase,
)
from goatherd.operations.sign import examine_signature, sign_current
from goatherd.providers.memory import MemorySecretProvider
from goatherd.providers.values import CURRENT, SecretBytes
from goatherd.rotation.anchor_keys import AnchorChoice, AnchorKey, AnchorKeys, collect_anchor_signatures
from goatherd.rotation.cross_signing import expected_introductions, make_cross_signature, make_introductions
from goatherd.rotation.policy import Policy
from goatherd.schedule.due import Act, Schedule, next_due, preview, read_facts
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from tests.fakes.anchors import MemorySigners

from .make import DAY, NOW
from .test_anchor import A, B, follow

KMS, OTHER, THIRD = "memory:kms", "memory:other", "memory:third"
ORG = "localhost"


class World:
    """Signers in memory; roots whose keys they hold sign with them."""

    def __init__(self) -> None:
        self.signers = MemorySigners()
        self.named = self.signers.configured
        self.keys = AnchorKeys(ORG, self.signers.open, self.named)

    async def direct(self) -> IdentityDocument:
        key = await self.keys.open_new(KMS, session_id="kms", now_ms=NOW)
        return create_document(key.owned, NOW, word=AnchorWord(session=key.session))

    async def open(self, uri: str, document: IdentityDocument) -> AnchorKey:
        name = uri.partition(":")[2]
        return await self.keys.open_new(uri, session_id=name, now_ms=NOW, document=document, is_direct=True)

    async def prepare(
        self, document: IdentityDocument, to: OwnedSession | str, choice: AnchorChoice | None = None
    ) -> IdentityDocument:
        direct = None
        if isinstance(to, str):
            direct = await self.open(to, document)
            choice, to = AnchorChoice(signer=to, is_direct=True), direct.owned
        word = await collect_anchor_signatures(
            self.keys,
            document,
            to.session,
            choice or AnchorChoice(),
            anchor_id="new-anchor",
            now_ms=NOW,
            direct=direct,
        )
        return prepare_rotation(
            document, to, now_ms=NOW, rotation_id=f"to-{to.id}", started_by="alice", stable_version="1", word=word
        )

    async def rotate(
        self, document: IdentityDocument, to: OwnedSession | str, choice: AnchorChoice | None = None
    ) -> list[IdentityDocument]:
        prepared = await self.prepare(document, to, choice)
        published = with_phase(prepared, Phase.PUBLISHED, NOW)
        activated = activate_rotation(published, NOW)
        verified = with_phase(activated, Phase.VERIFIED, NOW)
        return [prepared, published, activated, verified, finalize_rotation(verified, NOW)]


@pytest.fixture
def world() -> World:
    return World()


# --- the document -----------------------------------------------------------------------------------------------------


async def test_a_document_in_direct_mode_holds_no_private_key_and_is_signed_by_the_signer(world: World) -> None:
    document = await world.direct()
    raw = encode_document(document)
    assert b"privateKey" not in raw
    assert document.is_direct
    assert document.current.is_remote
    assert document.is_signed
    read = decode_document(raw)
    assert read == document
    assert read.current.signer.public_key == world.signers[KMS].key.public_key
    assert roots_with_keys(document) == ()
    assert document.current.id not in prunable_roots(document)


async def test_a_root_without_a_private_key_must_be_the_anchor(world: World) -> None:
    tree = json.loads(encode_document(await world.direct()))
    del tree["anchor"]
    with pytest.raises(MalformedIdentityError, match=r"currentSession\.privateKey"):
        decode_document(json.dumps(tree))
    ordinary = json.loads(encode_document(create_document(A, NOW)))
    del ordinary["currentSession"]["privateKey"]
    with pytest.raises(MalformedIdentityError, match=r"currentSession\.privateKey"):
        decode_document(json.dumps(ordinary))


async def test_an_anchor_with_its_private_key_in_the_document_is_malformed(world: World) -> None:
    document = await world.direct()
    local = OwnedSession(session=document.current.session, signer=world.signers[KMS].key)
    with pytest.raises(MalformedIdentityError, match="private key is stored"):
        replace(document, current=local).check()


async def test_an_unmodified_server_gets_no_settings_from_it_and_is_told_what_to_do(world: World) -> None:
    document = await world.direct()
    with pytest.raises(DirectModeError) as caught:
        to_settings(document)
    assert "--working-root" in caught.value.hint
    prepared = await world.prepare(create_document(A, NOW), OTHER)
    with pytest.raises(DirectModeError):
        to_settings(prepared)
    kept, _, _ = from_settings(to_settings_keeping(document, ()), NOW)
    assert kept == document


async def test_a_change_that_the_operator_accepts_is_signed_by_the_signer(world: World) -> None:
    async def ask() -> dict[str, ServerIdentity]:
        return {}

    tree = {**json.loads(encode_document(await world.direct())), "note": "by another tool"}
    async with MemorySecretProvider() as provider:
        await provider.create("secret", SecretBytes(json.dumps(tree).encode()))
        examined = await examine_signature(provider, "secret")
        assert not examined.document.is_signed
        await sign_current(
            provider, "secret", examined, ask=ask, policy=Policy(), clock=SystemClock(), signers=world.named
        )
        written = decode_document((await provider.read("secret", CURRENT)).value.reveal())
    assert written.is_signed
    assert written.extra == {"note": "by another tool"}


def test_a_remote_key_of_an_identity_that_was_read_without_a_permission_says_so() -> None:
    with pytest.raises(SignerMisuseError, match="without permission to call its signer"):
        RemoteKey(A.session.public_key).sign(b"text")


# --- into direct mode, and back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", ["ordinary", "anchored", "direct"])
async def test_servers_follow_each_step_into_direct_mode_and_back(world: World, begins: str) -> None:
    if begins == "ordinary":
        document = create_document(A, NOW)
    elif begins == "direct":
        document = await world.direct()
    else:
        key = await world.keys.open_new(KMS, session_id="kms", now_ms=NOW)
        word = AnchorWord(session=key.session, endorsements=(await key.introduce(A.session, NOW),))
        document = create_document(A, NOW, word=word)
    steps = await world.rotate(document, OTHER)
    follow(document, *steps)
    direct = steps[-1]
    assert direct.is_direct
    assert direct.current.id == "other"

    working = await world.rotate(direct, B, AnchorChoice(leaves_direct=True))
    follow(direct, *working)
    assert not working[-1].is_direct
    assert working[-1].anchor == direct.anchor

    ordinary = await world.rotate(direct, B, AnchorChoice(is_removed=True))
    follow(direct, *ordinary)
    assert ordinary[-1].anchor is None

    elsewhere = await world.rotate(direct, B, AnchorChoice(signer=THIRD))
    follow(direct, *elsewhere)
    session = elsewhere[-1].anchor_session
    assert session is not None
    assert session.public_key == world.signers[THIRD].key.public_key


@pytest.mark.parametrize("begins", ["ordinary", "direct"])
async def test_a_rotation_into_direct_mode_is_rolled_back_without_the_signer(world: World, begins: str) -> None:
    document = create_document(A, NOW) if begins == "ordinary" else await world.direct()
    activated = (await world.rotate(document, OTHER))[2]
    if begins == "ordinary":
        world.named.is_refusing = True
    back = roll_back_rotation(activated, document, NOW, reason="a test")
    follow(document, activated, back)
    assert (back.current, back.anchor) == (document.current, document.anchor)


async def test_a_prepared_rotation_into_direct_mode_leaves_nothing_when_it_is_cancelled(world: World) -> None:
    document = create_document(A, NOW)
    prepared = await world.prepare(document, OTHER)
    cancelled = cancel_rotation(prepared, NOW, reason="a test")
    follow(document, prepared, cancelled)
    assert cancelled.roots == document.roots
    assert cancelled.endorsements == ()
    assert cancelled.anchor_changes == ()
    again = await world.prepare(cancelled, OTHER)
    assert again.next is not None


async def test_a_published_next_root_stays_and_its_key_is_not_used_a_second_time(world: World) -> None:
    document = create_document(A, NOW)
    published = with_phase(await world.prepare(document, OTHER), Phase.PUBLISHED, NOW)
    cancelled = cancel_rotation(published, NOW, reason="a test")
    follow(document, published, cancelled)
    assert cancelled.find_root("other") is not None
    with pytest.raises(IllegalStepError, match="lists already"):
        await world.open(OTHER, cancelled)


@pytest.mark.parametrize("begins", ["ordinary", "direct"])
async def test_servers_and_clients_learn_the_next_root_from_sys_sessions(world: World, begins: str) -> None:
    document = create_document(A, NOW) if begins == "ordinary" else await world.direct()
    prepared, _, activated, *_ = await world.rotate(document, OTHER)
    pool = TrustPool.from_identity(document, org=ORG)
    (expected,) = expected_introductions(prepared)
    pushed: list[dict[str, Any]] = []
    for push in make_introductions(prepared, org=ORG):
        for raw in push:
            pool.add_session_commit(Commit.from_json(raw, org=ORG))
            pushed.append(raw)
    assert "other" in pool.root_ids
    assert any(expected.matches(raw, org=ORG) for raw in pushed)
    new = TrustPool(org=ORG, current=activated.current, roots=[activated.current.session])
    new.add_session_commit(Commit.from_json(make_cross_signature(activated, org=ORG), org=ORG))
    assert document.current.id in new.root_ids


async def test_the_choice_must_fit_the_identity(world: World) -> None:
    direct, ordinary = await world.direct(), create_document(A, NOW)
    with pytest.raises(IllegalStepError, match="not renewed"):
        await world.prepare(direct, B)
    with pytest.raises(IllegalStepError, match="not in direct mode"):
        await world.prepare(ordinary, B, AnchorChoice(leaves_direct=True))
    with pytest.raises(ConfigurationError, match="new key"):
        AnchorChoice(is_direct=True)
    with pytest.raises(ConfigurationError, match="cannot also set a new anchor"):
        AnchorChoice(signer=KMS, leaves_direct=True)


# --- revoking, losing the key, expiring -------------------------------------------------------------------------------


async def test_the_root_that_signs_cannot_be_revoked_but_others_can(world: World) -> None:
    document = (await world.rotate(create_document(A, NOW), OTHER))[-1]
    with pytest.raises(IllegalStepError, match="is the anchor"):
        revoke_root(document, "other", NOW, reason="stolen", successor=B)
    key = await world.keys.open_current(document)
    proofs = {A.id: await key.sign_revocation(A.id, NOW)}
    word = AnchorWord(session=key.session, proofs=proofs)
    revoked = revoke_root(document, A.id, NOW, reason="stolen", word=word)
    follow(document, revoked)
    assert revoked.revoked_ids == {A.id}


async def test_a_lost_key_is_replaced_by_a_new_root_that_servers_reject_until_they_are_told(world: World) -> None:
    document = await world.direct()
    with pytest.raises(IllegalStepError, match="new root"):
        drop_lost_anchor(document, NOW, reason="lost")
    world.named.is_refusing = True
    dropped = drop_lost_anchor(document, NOW, reason="lost", successor=B)
    assert dropped.is_signed
    assert (dropped.anchor, dropped.current.id) == (None, B.id)
    assert dropped.find_root("kms") is not None
    with pytest.raises(Exception, match="has not signed the removal"):
        follow(document, dropped)


async def test_a_root_in_direct_mode_expires_like_any_root_and_no_schedule_replaces_it(world: World) -> None:
    document = (await world.rotate(create_document(A, NOW), OTHER))[-1]
    end = document.current.session.expiration_ms
    schedule = Schedule(controller="c", cron="0 3 * * *")
    assert assess_urgency(document, NOW) is Urgency.FINE
    assert find_warnings(document, NOW) == []
    assert assess_urgency(document, end - 10 * DAY) in (Urgency.SOON, Urgency.URGENT)
    assert "expires in" in find_warnings(document, end - 10 * DAY)[0]
    for now_ms, urgent in ((NOW + DAY, False), (end - 50 * DAY, True)):
        facts = read_facts(document, now_ms, written_ms=NOW, tolerance=schedule.policy.clock_tolerance)
        verdict = next_due(facts, schedule, now_ms)
        assert verdict.act in (Act.NOTHING, Act.RETIRE)
        assert preview(facts, schedule, now_ms) == []
        if urgent:
            alone = next_due(replace(facts, unretired=()), schedule, now_ms)
            assert alone.urgent
            assert "--direct" in alone.why
