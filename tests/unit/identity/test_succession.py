"""Endorsements, which document may follow which, and generations."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from goatherd.errors import GenerationError, SuccessionError
from goatherd.identity.document import Phase
from goatherd.identity.root_signatures import Endorsement, endorse_root, verify_endorsement
from goatherd.identity.session import OwnedSession, sign_data
from goatherd.identity.succession import TrustCheckpoint, check_generation, verify_succession, verify_successor
from goatherd.identity.transitions import cancel_rotation, create_document, revoke_root, roll_back_rotation, with_phase

from .make import DAY, NOW, activated, first, owned, prepared, published, rotated, shows_key

A, B, C = owned("a"), owned("b"), owned("c")


def test_an_endorsement_verifies_with_the_endorsing_key() -> None:
    verify_endorsement(endorse_root(A, B.session, NOW), by=A.session, of=B.session)


@pytest.mark.parametrize(
    "other",
    [
        replace(B.session, public_key=C.session.public_key),
        replace(B.session, owner="u-1"),
        replace(B.session, owner=None),
        replace(B.session, expiration_ms=B.session.expiration_ms + 1),
        replace(B.session, id="c"),
    ],
    ids=["key", "owner", "no owner", "expiration", "id"],
)
def test_an_endorsement_covers_every_member_of_the_session(other: object) -> None:
    endorsement = endorse_root(A, B.session, NOW)
    with pytest.raises(SuccessionError):
        verify_endorsement(endorsement, by=A.session, of=other)  # type: ignore[arg-type]


def test_a_verified_endorsement_is_worth_nothing_for_another_key_or_another_session() -> None:
    endorsement = endorse_root(A, B.session, NOW)
    for _ in range(2):
        verify_endorsement(endorsement, by=A.session, of=B.session)
    stolen_name = replace(A.session, public_key=C.session.public_key)
    with pytest.raises(SuccessionError):
        verify_endorsement(endorsement, by=stolen_name, of=B.session)
    for other in (replace(B.session, public_key=C.session.public_key), replace(B.session, expiration_ms=NOW)):
        with pytest.raises(SuccessionError):
            verify_endorsement(endorsement, by=A.session, of=other)
    with pytest.raises(SuccessionError):
        verify_endorsement(
            replace(endorsement, signature=endorse_root(A, C.session, NOW).signature), by=A.session, of=B.session
        )
    verify_endorsement(endorsement, by=A.session, of=B.session)


def test_an_endorsement_by_another_key_under_the_same_id_does_not_verify() -> None:
    impostor = OwnedSession(session=replace(C.session, id=A.id), signer=C.signer)
    endorsement = endorse_root(impostor, B.session, NOW)
    with pytest.raises(SuccessionError, match="has an invalid signature"):
        verify_endorsement(endorsement, by=A.session, of=B.session)


def test_an_endorsement_made_after_the_root_expired_does_not_verify() -> None:
    with pytest.raises(SuccessionError, match="has an invalid signature"):
        verify_endorsement(endorse_root(A, B.session, NOW + 40 * DAY), by=A.session, of=B.session)


def test_a_signature_made_for_another_purpose_is_no_endorsement() -> None:
    session = B.session.to_json()
    for external, embedded in (
        (session, None),
        ({"session": session}, None),
        ({"goatherd": "other/1", "session": session}, None),
        (None, {"goatherd": "endorsement/1", "session": session}),
        ({"goatherd": "endorsement/1", "session": session}, {"id": "x"}),
    ):
        signature = sign_data(A, now_ms=NOW, external=external, embedded=embedded)
        with pytest.raises(SuccessionError):
            verify_endorsement(Endorsement(by=A.id, of=B.id, signature=signature), by=A.session, of=B.session)


def test_a_root_cannot_endorse_itself() -> None:
    with pytest.raises(SuccessionError, match="itself"):
        verify_endorsement(endorse_root(A, A.session, NOW), by=A.session, of=A.session)


def test_the_steps_of_a_rotation_follow_from_one_another() -> None:
    steps = [first(), prepared(), published(), activated(), with_phase(activated(), Phase.VERIFIED, NOW), rotated()]
    for seen, new in itertools.pairwise(steps):
        verify_successor(new, seen)


def test_a_chain_over_several_rotations_is_followed_by_who_missed_them() -> None:
    latest = rotated(rotated(rotated(), "c"), "d")
    verify_succession(latest, [A.session])
    verify_successor(latest, first())


def test_a_document_of_strangers_is_refused() -> None:
    with pytest.raises(SuccessionError, match="no chain"):
        verify_succession(create_document(C, NOW), [A.session, B.session])
    with pytest.raises(SuccessionError, match="no chain"):
        verify_succession(first(), [])


def test_a_rollback_follows_since_the_earlier_root_is_trusted() -> None:
    rolled_back = roll_back_rotation(activated(), first(), NOW, reason="test")
    verify_successor(rolled_back, activated())
    verify_succession(rolled_back, [A.session])


def test_a_cancelled_rotation_follows() -> None:
    verify_successor(cancel_rotation(prepared(), NOW, reason="test"), prepared())
    verify_successor(cancel_rotation(published(), NOW, reason="test"), published())


def test_a_root_slipped_in_beside_the_real_ones_is_refused() -> None:
    slipped = replace(first(), generation=2, roots=(*first().roots, C.session))
    slipped.check()
    with pytest.raises(SuccessionError, match=f"to root {C.id}"):
        verify_succession(slipped, [A.session])


def test_a_trusted_id_with_another_key_is_refused() -> None:
    impostor = OwnedSession(session=replace(C.session, id=A.id), signer=C.signer)
    with pytest.raises(SuccessionError, match="another key"):
        verify_succession(create_document(impostor, NOW), [A.session])


def test_the_word_of_a_revoked_root_counts_no_more() -> None:
    thief = activated(first(), "c")
    with_revocation = replace(
        thief, generation=thief.generation + 1, revoked=revoke_root(rotated(), A.id, NOW, reason="stolen").revoked
    )
    with pytest.raises(SuccessionError, match="no chain"):
        verify_succession(with_revocation, [A.session])


def test_a_revocation_cannot_be_forgotten() -> None:
    seen = revoke_root(rotated(), A.id, NOW, reason="stolen")
    new = replace(seen, generation=seen.generation + 1, revoked=())
    with pytest.raises(SuccessionError, match="revocation"):
        verify_successor(new, seen)


def test_a_revoked_root_cannot_come_back_as_the_current_one() -> None:
    seen = revoke_root(rotated(), A.id, NOW, reason="stolen")
    again = replace(first(), generation=99)
    with pytest.raises(SuccessionError):
        verify_successor(again, seen)
    with pytest.raises(SuccessionError, match="is revoked"):
        verify_succession(replace(seen, current=A), [A.session, B.session])


def test_a_generation_never_goes_back_and_is_not_written_twice() -> None:
    check_generation(prepared(), first())
    check_generation(first(), first())
    with pytest.raises(GenerationError, match="went back from 2 to 1"):
        check_generation(first(), prepared())
    with pytest.raises(GenerationError, match="other contents"):
        check_generation(prepared(name="c"), prepared(name="b"))


def test_what_is_remembered_of_an_identity_is_enough_to_judge_the_next_and_holds_no_key() -> None:
    seen = TrustCheckpoint.from_bytes(TrustCheckpoint.from_document(prepared()).to_bytes())
    assert seen == TrustCheckpoint.from_document(prepared())
    verify_successor(published(), seen)
    verify_successor(prepared(), seen)
    with pytest.raises(GenerationError, match="other contents"):
        verify_successor(prepared(name="c"), seen)
    with pytest.raises(GenerationError, match="went back"):
        verify_successor(first(), seen)
    with pytest.raises(SuccessionError):
        verify_successor(replace(create_document(C, NOW), generation=9), seen)
    assert not shows_key(seen.to_bytes().decode(), A, B)
