"""A server that has read a signed identity accepts no unsigned one: while running, after a restart, and from a copy."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from goatherd.errors import GenerationJumpError, IdentityError, SettingsError, UnsignedIdentityError
from goatherd.identity.document import (
    IdentityDocument,
    Phase,
    decode_document,
    document_tree,
    encode_document,
    normalize_document,
    sign_document,
)
from goatherd.identity.session import OwnedSession
from goatherd.identity.strict_json import to_pretty_json
from goatherd.identity.succession import MAX_JUMP, TrustCheckpoint
from goatherd.identity.transitions import (
    activate_rotation,
    create_document,
    finalize_rotation,
    prepare_rotation,
    revoke_root,
    with_phase,
)
from goatherd.settings.base import describe_identity
from goatherd.settings.file import FileSettings
from goatherd.settings.store import CloudSecretSettings

from .make import NOW, SECRET, CountingProvider


def owned(session_id: str) -> OwnedSession:
    return OwnedSession.generate(session_id=session_id, owner="root", now_ms=NOW)


A, B, C = owned("a" * 24), owned("b" * 24), owned("c" * 24)
FIRST = create_document(A, NOW)
PREPARED = prepare_rotation(FIRST, B, now_ms=NOW, rotation_id="r1", started_by="alice", stable_version="1")
# FIRST is stored with a signature here and without one there: it names neither.
PREPARED = normalize_document(sign_document(replace(PREPARED, lineage=None), NOW))
ROTATED = finalize_rotation(
    with_phase(activate_rotation(with_phase(PREPARED, Phase.PUBLISHED, NOW), NOW), Phase.VERIFIED, NOW), NOW
)
HIGHEST = 2**53 - 1


def unsigned(document: IdentityDocument, **members: object) -> IdentityDocument:
    """Write a document as Goatherd 0.1.0 would: without a signature."""
    tree = {**document_tree(document), **members}
    tree.pop("documentSignature")
    return decode_document(to_pretty_json(tree))


def stale(document: IdentityDocument) -> IdentityDocument:
    """Write the next generation as Goatherd 0.1.0 does after a version that signs: the signature stays as it was."""
    return decode_document(to_pretty_json({**document_tree(document), "generation": document.generation + 1}))


def without_root(document: IdentityDocument, session_id: str) -> dict[str, object]:
    tree = document_tree(document)
    return {
        "generation": document.generation + 1,
        "roots": [one for one in tree["roots"] if one["id"] != session_id],
        "endorsements": [one for one in tree["endorsements"] if session_id not in (one["by"], one["of"])],
    }


def longer_lived(document: IdentityDocument) -> dict[str, object]:
    tree = document_tree(document)
    longer = tree["currentSession"]["expiration"] + 86_400 * 365
    return {
        "generation": document.generation + 1,
        "currentSession": {**tree["currentSession"], "expiration": longer},
        "roots": [{**one, "expiration": longer} if one["id"] == document.current.id else one for one in tree["roots"]],
        "endorsements": [],
    }


ATTACKS = {
    "a root removed": without_root(ROTATED, A.id),
    "another root revoked": {
        "generation": ROTATED.generation + 1,
        "revoked": [{"id": A.id, "at": "2026-11-26T00:00:00.000Z", "reason": "a lie"}],
    },
    "a longer life for the current root": longer_lived(ROTATED),
    "an empty history": {"generation": ROTATED.generation + 1, "history": []},
    "a jump of the generation": {"generation": ROTATED.generation + 1000},
    "the highest generation": {"generation": HIGHEST},
    "a member that only a newer version knows": {"generation": ROTATED.generation + 1, "newer": 1},
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("keeps_signature", [True, False], ids=["stale signature", "no signature"])
async def test_a_writer_of_the_store_without_the_key_changes_nothing_for_a_server_that_saw_a_signed_one(
    tmp_path: Path, attack: str, keeps_signature: bool
) -> None:
    provider, seen = CountingProvider(), tmp_path / "seen.json"
    await provider.create(SECRET, encode_document(ROTATED))
    tree = {**document_tree(ROTATED), **ATTACKS[attack]}
    if not keeps_signature:
        tree.pop("documentSignature")
    async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
        await settings.load()
        await provider.put(to_pretty_json(tree))
        assert await settings.refresh() is False
        assert settings.settings.document == ROTATED
        assert settings.status.last_refusal is not None
    # The server does not start with that document either, and follows the next one that the key's owner writes.
    restarted = CloudSecretSettings(provider, SECRET, seen=seen)
    async with restarted:
        with pytest.raises(IdentityError):
            await restarted.load()
    await provider.put(prepare_rotation(ROTATED, C, now_ms=NOW, rotation_id="r2", started_by="me", stable_version="9"))
    async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
        assert (await settings.load()).document.generation == ROTATED.generation + 1


async def test_an_unsigned_identity_is_followed_until_the_first_signed_one_and_never_afterwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider, seen = CountingProvider(), tmp_path / "seen.json"
    await provider.create(SECRET, encode_document(unsigned(FIRST)))
    with caplog.at_level(logging.WARNING):
        async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
            await settings.load()
            assert not settings.status.has_seen_signed
            assert describe_identity(settings.settings.document, settings.status)["signed"] is False
            await provider.put(unsigned(PREPARED))
            assert await settings.refresh() is True
    assert caplog.text.count("settings.unsigned") == 2
    assert json.loads(seen.read_bytes())["signed"] is False
    async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
        await settings.load()
        signed = sign_document(replace(PREPARED, generation=3), NOW)
        await provider.put(signed)
        assert await settings.refresh() is True
        assert describe_identity(settings.settings.document, settings.status)["signed"] is True
        await provider.put(stale(signed))
        assert await settings.refresh() is False
        refusal = settings.status.last_refusal
        assert refusal is not None
        assert refusal.code == "identity.unsigned"
        assert "signed at generation 3 and changed since" in refusal.message
        assert "goatherd restore --signature" in refusal.hint
    restarted = CloudSecretSettings(provider, SECRET, seen=seen)
    async with restarted:
        with pytest.raises(
            UnsignedIdentityError, match=r"signed at generation 3.*seen\.json records a signed identity"
        ):
            await restarted.load()


async def test_the_operator_may_accept_an_unsigned_one_once_and_the_next_must_be_signed_again(tmp_path: Path) -> None:
    provider, seen = CountingProvider(), tmp_path / "seen.json"
    await provider.create(SECRET, encode_document(FIRST))
    async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
        await settings.load()
    await provider.put(unsigned(FIRST, generation=2))
    async with CloudSecretSettings(provider, SECRET, seen=seen, accept_identity=True) as settings:
        assert (await settings.load()).document.generation == 2
        await provider.put(unsigned(FIRST, generation=3))
        assert await settings.refresh() is False
    await provider.put(unsigned(FIRST, generation=2))
    async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
        assert (await settings.load()).document.generation == 2, "what was accepted serves after a restart, too"
        assert settings.status.has_seen_signed


async def test_a_generation_beyond_what_rotations_can_reach_is_not_followed_and_blocks_nothing(tmp_path: Path) -> None:
    provider, seen = CountingProvider(), tmp_path / "seen.json"
    await provider.create(SECRET, encode_document(unsigned(FIRST)))
    async with CloudSecretSettings(provider, SECRET, seen=seen) as settings:
        await settings.load()
        await provider.put(unsigned(FIRST, generation=HIGHEST))
        assert await settings.refresh() is False
        assert settings.status.last_refusal is not None
        assert settings.status.last_refusal.code == "identity.generation_jumped"
        await provider.put(unsigned(FIRST, generation=1 + MAX_JUMP))
        assert await settings.refresh() is True, "a server that was away for long"
    await provider.put(unsigned(FIRST, generation=HIGHEST))
    fresh = CloudSecretSettings(provider, SECRET)
    async with fresh:
        with pytest.raises(GenerationJumpError):
            await fresh.load()


async def test_the_file_that_remembers_what_was_seen_is_refused_when_one_bit_of_it_has_flipped(tmp_path: Path) -> None:
    provider, path = CountingProvider(), tmp_path / "seen.json"
    await provider.create(SECRET, encode_document(revoke_root(ROTATED, A.id, NOW, reason="stolen")))
    async with CloudSecretSettings(provider, SECRET, seen=path) as settings:
        await settings.load()
    good = path.read_bytes()
    assert TrustCheckpoint.from_bytes(good).is_signed
    for index in [index for index in range(0, len(good), 5) if not good[index : index + 1].isspace()]:
        damaged = bytearray(good)
        damaged[index] ^= 1
        with pytest.raises(IdentityError):
            TrustCheckpoint.from_bytes(bytes(damaged))
    path.write_bytes(good.replace(b'"signed": true', b'"signed": false'))
    started = CloudSecretSettings(provider, SECRET, seen=path)
    async with started:
        with pytest.raises(SettingsError, match=r"seen\.json is damaged: the record's checksum") as caught:
            await started.load()
    assert "Remove it" in caught.value.hint


async def test_a_file_without_a_checksum_is_that_of_goatherd_010_and_is_read(tmp_path: Path) -> None:
    tree = json.loads(TrustCheckpoint.from_document(FIRST).to_bytes())
    del tree["checksum"], tree["signed"]
    assert TrustCheckpoint.from_bytes(to_pretty_json(tree)) == replace(
        TrustCheckpoint.from_document(FIRST), is_signed=False
    )
    with pytest.raises(IdentityError, match="checksum"):
        TrustCheckpoint.from_bytes(to_pretty_json({**tree, "signed": True}))


async def test_a_settings_file_that_is_a_signed_document_is_not_replaced_by_an_unsigned_one(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    await FileSettings.create(path, FIRST)
    assert "documentSignature" not in path.read_text(), "GoatDB's own form stays as it is"
    async with FileSettings(path) as settings:
        await settings.load()
        await settings.update(document=PREPARED)
        tree = json.loads(path.read_bytes())
        path.write_bytes(to_pretty_json({**tree, "generation": 3, "history": []}))
        assert await settings.refresh() is False
        assert settings.status.last_refusal is not None
        assert settings.status.last_refusal.code == "identity.unsigned"
