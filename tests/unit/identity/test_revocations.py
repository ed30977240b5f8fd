"""Revoked roots: which proof makes servers follow the successor, and what a revocation does not permit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from goatherd.errors import IllegalStepError, MalformedIdentityError, SuccessionError
from goatherd.identity.document import IdentityDocument, decode_document, encode_document
from goatherd.identity.redaction import find_warnings, redact_document
from goatherd.identity.revocations import Freeze, Revocation, sign_proof, verify_proof
from goatherd.identity.root_signatures import endorse_root, verify_endorsement
from goatherd.identity.session import OwnedSession, Session, sign_data
from goatherd.identity.succession import verify_successor
from goatherd.identity.transitions import create_document, record_frozen_commits, record_reissued_sessions, revoke_root

from .make import DAY, NOW, activated, first, owned, prepared, published, rotated, shows_key

A, B, C, D = owned("a"), owned("b"), owned("c"), owned("d")


def stolen(document: IdentityDocument | None = None, successor: OwnedSession = C) -> IdentityDocument:
    start = document or first()
    return revoke_root(start, start.current.id, NOW, reason="stolen", successor=successor)


def test_a_node_that_knows_only_the_stolen_root_follows_to_the_new_one() -> None:
    verify_successor(stolen(), first())


def test_a_node_that_was_away_for_two_thefts_follows_both() -> None:
    twice = stolen(stolen(), successor=D)
    assert twice.revoked_ids == {A.id, C.id}
    verify_successor(twice, first())


def test_a_node_that_knows_an_earlier_root_only_follows_through_the_stolen_one() -> None:
    verify_successor(stolen(rotated()), first())


@pytest.mark.parametrize("start", [prepared, published, activated], ids=lambda make: str(make.__name__))
def test_a_theft_during_a_rotation_is_followed_from_every_phase(start: Callable[[], IdentityDocument]) -> None:
    document = stolen(start())
    assert document.rotation is None
    assert document.next is None
    for seen in (first(), start()):
        verify_successor(document, seen)


def test_the_next_root_may_be_the_successor_and_is_then_not_revoked() -> None:
    document = stolen(published(), successor=B)
    assert document.current == B
    assert document.revoked_ids == {A.id}
    assert B.id in {root.id for root in document.roots}
    verify_successor(document, first())


def test_an_earlier_root_may_be_the_successor() -> None:
    document = stolen(rotated(), successor=A)
    assert (document.current, document.revoked_ids) == (A, {B.id})
    verify_successor(document, first())
    verify_successor(document, rotated())


def test_revoking_a_previous_root_with_its_key_leaves_no_server_behind() -> None:
    document = revoke_root(rotated(), A.id, NOW, reason="stolen", proving=A)
    assert document.current == B
    verify_successor(document, first())
    verify_successor(document, rotated())


def test_an_earlier_root_revoked_without_its_key_strands_those_who_know_only_it() -> None:
    document = revoke_root(rotated(), A.id, NOW, reason="stolen")
    verify_successor(document, rotated())
    with pytest.raises(SuccessionError, match="no chain"):
        verify_successor(document, first())


def test_a_node_that_knows_only_the_first_of_three_roots_finds_all_that_are_good() -> None:
    document = revoke_root(rotated(rotated(), "c"), A.id, NOW, reason="stolen", proving=A)
    verify_successor(document, first())


def test_an_expired_root_can_be_replaced_too() -> None:
    verify_successor(revoke_root(first(), A.id, NOW + 40 * DAY, reason="late", successor=owned("e", days=90)), first())


# --- who is not let in ------------------------------------------------------------------------------------------------


def test_a_revocation_without_a_proof_by_the_stolen_key_is_not_followed() -> None:
    forged = create_document(C, NOW, roots=[A.session])
    bare = replace(forged, generation=9, revoked=(Revocation(id=A.id, at=NOW, reason="a lie"),))
    with pytest.raises(SuccessionError, match="no chain"):
        verify_successor(bare, first())
    impostor = OwnedSession(session=A.session, signer=C.signer)
    lie = Revocation(id=A.id, at=NOW, reason="a lie", successor=C.id, proof=sign_proof(impostor, C.session, NOW))
    with pytest.raises(SuccessionError, match="has an invalid signature"):
        verify_successor(replace(bare, revoked=(lie,)), first())
    with pytest.raises(MalformedIdentityError, match="proof"):
        decode_document(encode_document(replace(bare, revoked=(lie,))))


def test_a_node_that_knows_of_the_theft_does_not_follow_another_proof_of_the_stolen_root() -> None:
    thief = stolen(first(), successor=D)
    with pytest.raises(SuccessionError):
        verify_successor(replace(thief, generation=99), stolen())


def test_a_second_root_cannot_be_slipped_in_with_the_successor() -> None:
    document = stolen()
    slipped = replace(document, roots=(*document.roots, D.session))
    with pytest.raises(SuccessionError, match=D.id):
        verify_successor(slipped, first())
    endorsed = replace(slipped, endorsements=(endorse_root(A, D.session, NOW),))
    with pytest.raises(SuccessionError, match=D.id):
        verify_successor(endorsed, first())


@pytest.mark.parametrize(
    "change",
    [{"at": NOW + 1}, {"successor": "d".ljust(24, "x")}, {"id": "b".ljust(24, "x")}, {"proof": None}],
    ids=["at", "successor", "id", "proof"],
)
def test_a_proof_covers_the_whole_revocation(change: dict[str, Any]) -> None:
    good = Revocation(id=A.id, at=NOW, reason="", successor=C.id, proof=sign_proof(A, C.session, NOW))
    verify_proof(good, revoked=A.session, successor=C.session)
    with pytest.raises(SuccessionError):
        verify_proof(replace(good, **change), revoked=A.session, successor=C.session)
    with pytest.raises(SuccessionError):
        verify_proof(good, revoked=A.session, successor=replace(C.session, public_key=D.session.public_key))


def test_a_proof_is_no_endorsement_and_an_endorsement_is_no_proof() -> None:
    proof, endorsement = sign_proof(A, C.session, NOW), endorse_root(A, C.session, NOW)
    with pytest.raises(SuccessionError):
        verify_endorsement(replace(endorsement, signature=proof), by=A.session, of=C.session)
    lie = Revocation(id=A.id, at=NOW, reason="", successor=C.id, proof=endorsement.signature)
    with pytest.raises(SuccessionError):
        verify_proof(lie, revoked=A.session, successor=C.session)


@pytest.mark.parametrize("proof", ["", "!", None], ids=["empty", "no base32", "with data"])
def test_a_malformed_proof_does_not_verify(proof: str | None) -> None:
    text = sign_data(A, now_ms=NOW, embedded={"x": 1}) if proof is None else proof
    with pytest.raises(SuccessionError):
        verify_proof(
            Revocation(id=A.id, at=NOW, reason="", successor=C.id, proof=text), revoked=A.session, successor=C.session
        )


# --- the document -----------------------------------------------------------------------------------------------------


def test_a_proof_with_another_root_than_the_revoked_one_is_refused() -> None:
    with pytest.raises(IllegalStepError):
        revoke_root(rotated(), A.id, NOW, reason="x", proving=C)


def test_a_known_root_with_another_key_is_no_successor() -> None:
    impostor = OwnedSession(session=Session(**_members(A, public_key=C.session.public_key)), signer=C.signer)
    with pytest.raises(IllegalStepError, match="another key"):
        revoke_root(rotated(), B.id, NOW, reason="x", successor=impostor)


def _members(root: OwnedSession, **change: Any) -> dict[str, Any]:
    session = root.session
    return {
        "id": session.id,
        "public_key": session.public_key,
        "owner": session.owner,
        "expiration_ms": session.expiration_ms,
        **change,
    }


def test_the_freeze_is_recorded_once_closed_and_survives_the_codec() -> None:
    document = record_frozen_commits(stolen(), A.id, NOW + 5, commits=3, digest="ab" * 32)
    assert document.generation == stolen().generation + 1
    assert document.revoked[0].freeze == Freeze(at=NOW + 5, commits=3, digest="ab" * 32)
    assert decode_document(encode_document(document)) == document
    verify_successor(document, first())
    with pytest.raises(IllegalStepError):
        record_frozen_commits(document, C.id, NOW, commits=0, digest="ab" * 32)


def test_a_revocation_that_is_not_finished_is_told_until_it_is() -> None:
    document = stolen(published())
    (note,) = find_warnings(document, NOW)
    assert f"root {A.id} is revoked, but that is not finished" in note
    assert f"`goatherd revoke {A.id} --reason TEXT`" in note, "the command does not run without a reason"
    assert "unmodified GoatDB servers, nothing is left to do" in note, "there, `goatherd revoke` ends without it"
    document = record_frozen_commits(document, A.id, NOW, commits=3, digest="ab" * 32)
    assert len(find_warnings(document, NOW)) == 1
    document = record_reissued_sessions(document, A.id, NOW)
    assert find_warnings(document, NOW) == []
    assert decode_document(encode_document(document)) == document


def test_a_revocation_is_settled_only_after_its_freeze_was_closed() -> None:
    with pytest.raises(IllegalStepError):
        record_reissued_sessions(stolen(), A.id, NOW)


def test_what_is_shown_of_a_revocation_holds_no_proof_and_no_key() -> None:
    document = record_frozen_commits(stolen(published()), A.id, NOW, commits=3, digest="ab" * 32)
    text = json.dumps(redact_document(document))
    assert document.revoked[0].proof not in text
    assert "stolen" in text
    assert not shows_key(encode_document(document).decode(), A, B)


@pytest.mark.parametrize(
    "change",
    [
        {"freeze": 1},
        {"freeze": {"at": "2026-11-24T12:00:00.000Z", "commits": -1, "digest": "ab" * 32}},
        {"freeze": {"at": "2026-11-24T12:00:00.000Z", "commits": 1, "digest": "AB" * 32}},
        {"freeze": {"commits": 1, "digest": "ab" * 32}},
        {"successor": "no id!"},
        {"proof": 5},
        {"proof": "x" * 5000},
        {"successor": None},
        {"proof": None},
        {"successor": "z" * 24},
    ],
    ids=lambda change: json.dumps(change)[:30],
)
def test_a_malformed_revocation_is_refused(change: dict[str, Any]) -> None:
    tree = json.loads(encode_document(stolen()))
    tree["revoked"][0] = {**tree["revoked"][0], **change}
    with pytest.raises(MalformedIdentityError):
        decode_document(json.dumps(tree))
