"""No command signs, with a root's key, a document whose writer does not have that key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from goatherd.cluster.observer import Observer
from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import (
    GenerationJumpError,
    GoatherdError,
    ObstructedError,
    StoreWentBackError,
    UnavailableError,
    UnsignedIdentityError,
)
from goatherd.identity.document import (
    IdentityDocument,
    Phase,
    decode_document,
    document_digest,
    document_tree,
    encode_document,
    normalize_document,
    sign_document,
)
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.strict_json import to_pretty_json
from goatherd.identity.succession import verify_successor
from goatherd.identity.transitions import create_document, sign_again
from goatherd.operations.sign import SignatureExamination, SignatureState, examine_signature, sign_current, sign_earlier
from goatherd.providers.values import CURRENT, STABLE, VersionState
from goatherd.remote_keys import RootSigners
from goatherd.revocation.revoker import Revoker
from goatherd.rotation.policy import Policy
from goatherd.rotation.signed_store import SignedStoreCheck
from tests.fakes.herd import Herd
from tests.unit.rotation.conftest import POLICY, MakeHerd, check_steady, document_of, rotator_for

HIGHEST = 2**53 - 1
Way = Callable[..., Awaitable[IdentityDocument]]
COMMANDS = ("rotate", "resume", "abandon", "retire", "restore", "plan")


def changed(document: IdentityDocument, *, keeps_signature: bool, **members: object) -> IdentityDocument:
    """Return what a writer without the root's key writes: by default the next generation."""
    tree = {**document_tree(document), "generation": document.generation + 1, **members}
    if not keeps_signature:
        tree.pop("documentSignature", None)
    return decode_document(to_pretty_json(tree))


async def put(herd: Herd, document: IdentityDocument) -> None:
    version = (await herd.provider.read(herd.secret_id, CURRENT)).version.id
    await herd.provider.write(herd.secret_id, encode_document(document), label=CURRENT, expected=version)


async def never_signed(herd: Herd) -> None:
    """Change the store to that of Goatherd 0.1.0: no version has a signature."""
    first = (await herd.provider.read(herd.secret_id, CURRENT)).version.id
    await put(herd, changed(await document_of(herd), keeps_signature=False))
    await herd.provider.destroy(herd.secret_id, first)


async def sign(
    herd: Herd, way: Way, examined: SignatureExamination, policy: Policy = POLICY, **answers: ServerIdentity
) -> IdentityDocument:
    """Sign, while servers report what `answers` maps their names to; without `answers`, the herd's servers are
    asked."""

    async def say() -> Mapping[str, ServerIdentity]:
        return {f"http://{name}": answer for name, answer in answers.items()}

    observer = Observer(herd.nodes, clock=herd.clock, timeout=policy.node_timeout, bare=policy.bare)
    ask = say if answers else observer.read_identities
    return await way(
        herd.provider, herd.secret_id, examined, ask=ask, policy=policy, clock=herd.clock, signers=RootSigners()
    )


def uses(document: IdentityDocument, *, has_seen_signed: bool = True) -> ServerIdentity:
    return ServerIdentity(
        signer=document.current.id,
        roots=tuple(root.id for root in document.roots),
        generation=document.generation,
        digest=document_digest(document),
        has_seen_signed=has_seen_signed,
    )


async def code_of(herd: Herd, command: str) -> str | None:
    try:
        await getattr(rotator_for(herd), command)()
    except GoatherdError as error:
        return error.code
    return None


@pytest.mark.parametrize("keeps_signature", [True, False], ids=["stale signature", "no signature"])
async def test_no_command_goes_on_from_a_document_that_was_changed_without_the_key(
    make_herd: MakeHerd, keeps_signature: bool
) -> None:
    herd = await make_herd()
    altered = changed(await document_of(herd), keeps_signature=keeps_signature, history=[])
    await put(herd, altered)
    assert {await code_of(herd, command) for command in COMMANDS} == {"identity.unsigned"}
    revoker = Revoker(herd.provider, herd.secret_id, herd.nodes, clock=herd.clock)
    with pytest.raises(UnsignedIdentityError, match="generation 2"):
        await revoker.revoke("root-a", reason="stolen")
    assert await document_of(herd) == altered, "nothing was written"


async def test_a_document_of_goatherd_010_is_signed_by_the_first_command_that_writes(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await never_signed(herd)
    assert not (await document_of(herd)).is_signed
    await rotator_for(herd).rotate()
    assert (await check_steady(herd)).is_signed


async def test_a_change_in_the_middle_of_a_rotation_stops_it(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate(to_phase=Phase.PUBLISHED)
    document = await document_of(herd)
    await put(herd, changed(document, keeps_signature=True))
    assert await code_of(herd, "resume") == "identity.unsigned"
    assert (await document_of(herd)).phase == "published"


async def test_a_server_that_saw_a_signed_document_is_asked_where_the_store_shows_none(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await never_signed(herd)
    asked = []

    def answering(answer: ServerIdentity) -> SignedStoreCheck:
        async def ask() -> Mapping[str, ServerIdentity]:
            asked.append(answer)
            return {"http://a:1": answer}

        return SignedStoreCheck(herd.provider, herd.secret_id, ask)

    document = await document_of(herd)
    for harmless in (ServerIdentity(), ServerIdentity(generation=9)):
        check = answering(harmless)
        await check.check_document(document)
        await check.check_document(document)
    assert len(asked) == 2, "once for each document"
    with pytest.raises(UnsignedIdentityError, match="has no signature"):
        await answering(ServerIdentity(has_seen_signed=True)).check_document(document)


async def test_versions_that_cannot_be_read_show_nothing_and_a_store_that_fails_is_no_excuse(
    make_herd: MakeHerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    herd = await make_herd()
    await put(herd, changed(await document_of(herd), keeps_signature=False))

    async def fails(*_: object, **__: object) -> None:
        raise UnavailableError("busy", provider="memory", secret_id=herd.secret_id, operation="read")

    async def no_servers() -> Mapping[str, ServerIdentity]:
        return {}

    document = await document_of(herd)
    monkeypatch.setattr(herd.provider, "read", fails)
    with pytest.raises(UnavailableError):
        await SignedStoreCheck(herd.provider, herd.secret_id, no_servers).check_document(document)


@pytest.mark.slow
async def test_signing_what_an_older_goatherd_wrote_lets_every_server_and_command_go_on(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate()
    signed = await check_steady(herd)
    await put(herd, changed(signed, keeps_signature=True, history=[]))
    examined = await examine_signature(herd.provider, herd.secret_id)
    assert examined.state is SignatureState.OUTDATED
    assert examined.changes == ("history was changed",)
    written = await sign(herd, sign_current, examined)
    assert written == await document_of(herd)
    assert written.history == ()
    assert written.generation == signed.generation + 2
    verify_successor(written, signed)
    await rotator_for(herd).rotate()
    await check_steady(herd)


@pytest.mark.slow
async def test_taking_back_writes_the_last_signed_version_as_the_next_generation(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate()
    signed = await check_steady(herd)
    kept = [one for one in document_tree(signed)["roots"] if one["id"] == signed.current.id]
    await put(herd, changed(signed, keeps_signature=False, roots=kept, endorsements=[], history=[]))
    examined = await examine_signature(herd.provider, herd.secret_id)
    assert examined.state is SignatureState.MISSING
    assert "root root-a was removed" in examined.changes
    written = await sign(herd, sign_earlier, examined)
    assert (written.roots, written.history) == (signed.roots, signed.history)
    assert written.generation == signed.generation + 2
    verify_successor(written, signed)
    await rotator_for(herd).rotate()
    await check_steady(herd)


async def test_taking_back_takes_no_version_that_was_never_current(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate()
    signed = await check_steady(herd)
    # A write that lost its race, in a store that writes a value before it moves the label to it.
    lost = sign_again(signed, herd.clock.now_ms(), after=signed.generation)
    await herd.provider.write(herd.secret_id, encode_document(lost), label="parked", expected=None)
    orphan = (await herd.provider.versions(herd.secret_id))[0].id
    await herd.provider.unlabel(herd.secret_id, "parked", expected=orphan)
    await put(herd, changed(signed, keeps_signature=True, history=[]))
    examined = await examine_signature(herd.provider, herd.secret_id)
    assert examined.signed == signed
    assert examined.signed_version != orphan


@pytest.mark.slow
@pytest.mark.parametrize("was_signed", [True, False])
async def test_the_highest_generation_blocks_no_later_write(make_herd: MakeHerd, was_signed: bool) -> None:
    herd = await make_herd()
    if not was_signed:
        await never_signed(herd)
    before = await document_of(herd)
    await put(herd, changed(before, keeps_signature=False, generation=HIGHEST))
    assert await code_of(herd, "rotate") in ("identity.unsigned", "identity.generation_jumped")
    examined = await examine_signature(herd.provider, herd.secret_id)
    written = await sign(herd, sign_earlier, examined)
    assert written.generation == before.generation + 1
    verify_successor(written, before)
    await herd.settle(2)
    await rotator_for(herd).rotate()
    await check_steady(herd)


async def test_a_first_reader_takes_no_generation_that_rotations_cannot_reach(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await never_signed(herd)
    await put(herd, changed(await document_of(herd), keeps_signature=False, generation=HIGHEST))
    with pytest.raises(GenerationJumpError):
        await rotator_for(herd).rotate()


async def test_taking_back_is_refused_once_a_root_signs_that_the_signed_version_does_not_list(
    make_herd: MakeHerd,
) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate()
    rotated = await check_steady(herd)
    # Goatherd 0.1.0 made this rotation: none of its versions is signed.
    await put(herd, changed(rotated, keeps_signature=False))
    listed = await herd.provider.versions(herd.secret_id)
    stable = next(one for one in listed if STABLE in one.labels)
    await herd.provider.label(herd.secret_id, STABLE, listed[-1].id, expected=stable.id)
    for version in listed[1:-1]:
        await herd.provider.destroy(herd.secret_id, version.id)
    examined = await examine_signature(herd.provider, herd.secret_id)
    assert examined.signed is not None
    assert examined.signed.current.id == "root-a"
    with pytest.raises(GoatherdError, match="may have signed commits") as caught:
        await sign(herd, sign_earlier, examined)
    assert "--accept" in caught.value.hint
    written = await sign(herd, sign_current, examined)
    assert written.current.id == rotated.current.id


async def test_a_root_that_was_slipped_in_is_not_signed(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    document = await document_of(herd)
    stranger = OwnedSession.generate(session_id="stranger", owner="root", now_ms=herd.clock.now_ms())
    roots = [*document_tree(document)["roots"], stranger.session.to_json()]
    await put(herd, changed(document, keeps_signature=True, roots=roots))
    examined = await examine_signature(herd.provider, herd.secret_id)
    with pytest.raises(GoatherdError, match="no chain of endorsements"):
        await sign(herd, sign_current, examined)


async def test_a_signed_identity_is_left_as_it_is(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    examined = await examine_signature(herd.provider, herd.secret_id)
    assert examined.state is SignatureState.VALID
    for way in (sign_current, sign_earlier):
        with pytest.raises(GoatherdError, match="signed already"):
            await sign(herd, way, examined)


WAYS = pytest.mark.parametrize("way", [sign_current, sign_earlier], ids=["accept", "take back"])


@WAYS
async def test_nothing_is_signed_in_a_store_that_was_restored_and_then_altered(make_herd: MakeHerd, way: Way) -> None:
    herd = await make_herd()
    backup = await document_of(herd)
    await rotator_for(herd).rotate()
    used = await check_steady(herd)
    await herd.provider.delete(herd.secret_id)
    await herd.provider.create(herd.secret_id, encode_document(backup))
    # A generation that no server has used: by the number alone, nothing is wrong.
    await put(herd, changed(backup, keeps_signature=True, generation=used.generation + 1, history=[]))
    examined = await examine_signature(herd.provider, herd.secret_id)
    assert examined.signed == backup
    with pytest.raises(StoreWentBackError, match="nothing was written"):
        await sign(herd, way, examined, node=uses(used))
    assert (await document_of(herd)).is_signed is False
    overruling = replace(POLICY, distrust=frozenset({"http://node"}))
    await sign(herd, way, examined, overruling, node=uses(used))
    assert (await document_of(herd)).is_signed


@WAYS
async def test_servers_that_use_the_signed_version_or_the_unsigned_one_are_no_reason_against_it(
    make_herd: MakeHerd, way: Way
) -> None:
    herd = await make_herd()
    signed = await document_of(herd)
    unsigned = changed(signed, keeps_signature=True, history=[])
    await put(herd, unsigned)
    examined = await examine_signature(herd.provider, herd.secret_id)
    with pytest.raises(StoreWentBackError):
        await sign(herd, way, examined, liar=uses(unsigned))
    written = await sign(herd, way, examined, old=uses(unsigned, has_seen_signed=False), new=uses(signed))
    assert written.generation == signed.generation + 2


@WAYS
@pytest.mark.parametrize("generation", [2, HIGHEST])
async def test_a_later_generation_than_what_is_signed_is_never_overtaken(
    make_herd: MakeHerd, way: Way, generation: int
) -> None:
    herd = await make_herd()
    signed = await document_of(herd)
    await put(herd, changed(signed, keeps_signature=False, generation=generation))
    later = uses(changed(signed, keeps_signature=True, generation=9), has_seen_signed=False)
    examined = await examine_signature(herd.provider, herd.secret_id)
    with pytest.raises(StoreWentBackError, match="has seen generation 9"):
        await sign(herd, way, examined, node=later)


@pytest.mark.slow
async def test_what_was_altered_in_place_is_followed_by_servers_once_it_is_signed(make_herd: MakeHerd) -> None:
    herd = await make_herd()
    await rotator_for(herd).rotate()
    signed = await check_steady(herd)
    await put(herd, changed(signed, keeps_signature=True, generation=signed.generation, predecessors={}))
    examined = await examine_signature(herd.provider, herd.secret_id)
    assert examined.state is SignatureState.INVALID
    verify_successor(await sign(herd, sign_current, examined), signed)
    await rotator_for(herd).rotate()
    await check_steady(herd)


async def test_no_key_is_destroyed_with_which_a_listed_server_signs(make_herd: MakeHerd) -> None:
    """An attacker who may write, but may destroy nothing, has put an identity of their own into the store."""
    herd = await make_herd(nodes=2, clients=0)
    document, now_ms = await document_of(herd), herd.clock.now_ms()
    root = OwnedSession.generate(session_id="root-of-an-attacker", owner=ROOT_OWNER, now_ms=now_ms)
    own = replace(create_document(root, now_ms), generation=document.generation + 1)
    own = replace(own, roots=(*own.roots, document.current.session), rotated_from=document.current.id)
    await put(herd, normalize_document(sign_document(own, now_ms)))
    policy = replace(POLICY, grace=timedelta(0))
    with pytest.raises(ObstructedError, match=f"private key of root {document.current.id}, with which .* still sign"):
        await rotator_for(herd, policy=policy).retire()
    held = [
        decode_document((await herd.provider.read(herd.secret_id, one.id)).value.reveal())
        for one in await herd.provider.versions(herd.secret_id)
        if one.state is VersionState.ENABLED
    ]
    assert document.current.id in {one.current.id for one in held}
    # A server that lies must not keep old keys from being destroyed.
    await rotator_for(herd, policy=replace(policy, distrust=frozenset(node.base_url for node in herd.nodes))).retire()
    await put(herd, document)
