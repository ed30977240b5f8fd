"""The steps of a rotation as functions on the document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from goatherd.errors import IllegalStepError
from goatherd.identity.document import IdentityDocument, Phase, decode_document, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.strict_json import to_pretty_json
from goatherd.identity.succession import verify_successor
from goatherd.identity.transitions import (
    MAX_HISTORY,
    MAX_HISTORY_BYTES,
    activate_rotation,
    cancel_rotation,
    create_document,
    extend_current_root,
    finalize_rotation,
    is_full,
    prepare_restore,
    prepare_rotation,
    prunable_roots,
    prune_roots,
    record_frozen_commits,
    record_reissued_sessions,
    record_retirement,
    revoke_root,
    roll_back_rotation,
    roots_to_prune,
    with_phase,
)

from .make import DAY, NOW, SMALLEST_LIMIT, activated, first, owned, prepared, published, rotated, shows_key

A, B, C = owned("a"), owned("b"), owned("c")
NOBODY, EXPIRED = owned("u", owner=None), owned("e", days=-1)
LATER = NOW + 1000

STEPS: dict[str, Callable[[IdentityDocument], IdentityDocument]] = {
    "prepare": lambda d: prepare_rotation(d, C, now_ms=LATER, rotation_id="r", started_by="bob", stable_version=None),
    "publish": lambda d: with_phase(d, Phase.PUBLISHED, LATER),
    "activate": lambda d: activate_rotation(d, LATER),
    "verify": lambda d: with_phase(d, Phase.VERIFIED, LATER),
    "finalize": lambda d: finalize_rotation(d, LATER),
    "cancel": lambda d: cancel_rotation(d, LATER, reason="why"),
    "roll back": lambda d: roll_back_rotation(d, first(), LATER, reason="why"),
    "retire": lambda d: record_retirement(d, A.id if d.current.id == B.id else B.id, LATER),
}
PHASES: dict[str, tuple[Callable[[], IdentityDocument], set[str]]] = {
    "steady": (first, {"prepare"}),
    "prepared": (prepared, {"publish", "cancel"}),
    "published": (published, {"activate", "cancel"}),
    "activated": (activated, {"verify", "roll back"}),
    "verified": (lambda: with_phase(activated(), Phase.VERIFIED, NOW), {"finalize", "roll back"}),
    "rotated": (rotated, {"prepare", "retire"}),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_step_is_taken_where_it_follows_and_refused_everywhere_else(phase: str, step: str) -> None:
    make, legal = PHASES[phase]
    before = make()
    if step not in legal:
        with pytest.raises(IllegalStepError):
            STEPS[step](before)
        return
    after = STEPS[step](before)
    assert after.generation == before.generation + 1
    assert after.last_updated == LATER
    assert decode_document(encode_document(after)) == after


def test_prepare_adds_an_endorsed_root_and_leaves_signing_alone() -> None:
    document = prepared()
    assert document.current == A
    assert document.next == B
    assert document.roots == (A.session, B.session)
    assert [(item.by, item.of) for item in document.endorsements] == [(A.id, B.id)]
    assert document.rotation is not None
    assert (document.rotation.from_id, document.rotation.to_id) == (A.id, B.id)
    assert (document.rotation.started_at, document.rotation.stable_version) == (NOW, "7")
    assert document.phase is Phase.PREPARED


@pytest.mark.parametrize(
    "successor", [A, owned("u", owner="u-1"), owned("u", owner=None)], ids=["known", "user", "none"]
)
def test_prepare_takes_a_fresh_root_only(successor: OwnedSession) -> None:
    with pytest.raises(IllegalStepError):
        prepare_rotation(first(), successor, now_ms=NOW, rotation_id="r", started_by="x", stable_version=None)


def test_an_expired_root_cannot_begin_a_rotation() -> None:
    with pytest.raises(IllegalStepError, match="expired"):
        prepare_rotation(first(), B, now_ms=NOW + 31 * DAY, rotation_id="r", started_by="x", stable_version=None)


def test_activation_moves_signing_and_the_earlier_key_is_gone() -> None:
    document = activated()
    assert (document.current, document.next) == (B, None)
    assert (document.rotated_from, document.rotated_at) == (A.id, NOW)
    assert document.roots == (A.session, B.session)
    assert not shows_key(encode_document(document).decode(), A)


def test_an_expired_successor_is_not_activated() -> None:
    with pytest.raises(IllegalStepError, match="expired"):
        activate_rotation(published(), NOW + 31 * DAY)


def test_finalize_keeps_who_signed_before_and_tells_it_in_the_history() -> None:
    document = rotated()
    assert document.rotation is None
    assert (document.rotated_from, document.rotated_at) == (A.id, NOW)
    assert [(entry.event, entry.from_id, entry.to_id) for entry in document.history] == [("rotated", A.id, B.id)]


def test_cancelling_before_publication_leaves_no_trace_of_the_successor() -> None:
    document = cancel_rotation(prepared(), LATER, reason="changed my mind")
    assert document.roots == (A.session,)
    assert document.endorsements == ()
    assert document.history[-1].reason == "changed my mind"
    assert not shows_key(encode_document(document).decode(), B)


def test_cancelling_after_publication_keeps_the_successors_public_key() -> None:
    document = cancel_rotation(published(), LATER, reason="node-2 is away")
    assert document.roots == (A.session, B.session)
    assert document.current == A
    assert not shows_key(encode_document(document).decode(), B)


def test_rolling_back_restores_the_signer_and_keeps_the_new_roots_public_key() -> None:
    document = roll_back_rotation(activated(), first(), LATER, reason="node-2 does not sign")
    assert document.current == A
    assert document.current.signer.public_key == A.session.public_key
    assert document.roots == (A.session, B.session)
    assert (document.rotated_from, document.rotated_at) == (B.id, LATER)
    assert document.history[-1].event == "rolled-back"
    assert document.generation == activated().generation + 1
    assert not shows_key(encode_document(document).decode(), B)


@pytest.mark.parametrize(
    "stable",
    [create_document(C, NOW), create_document(OwnedSession(session=replace(C.session, id=A.id), signer=C.signer), NOW)],
)
def test_rolling_back_to_anything_but_the_earlier_root_is_refused(stable: IdentityDocument) -> None:
    with pytest.raises(IllegalStepError, match="does not hold"):
        roll_back_rotation(activated(), stable, LATER, reason="x")


def test_rolling_back_to_an_expired_root_is_refused() -> None:
    with pytest.raises(IllegalStepError, match="expired"):
        roll_back_rotation(activated(), first(), NOW + 31 * DAY, reason="x")


def test_a_root_is_retired_once_and_stays_as_a_public_key() -> None:
    document = record_retirement(rotated(), A.id, LATER)
    assert document.retired_ids == {A.id}
    assert A.session in document.roots
    for session_id in (A.id, B.id, "stranger"):
        with pytest.raises(IllegalStepError):
            record_retirement(document, session_id, LATER)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.STEADY])
def test_during_a_rotation_a_revoked_root_is_retired_and_no_other(phase: Phase) -> None:
    steady = revoke_root(rotated(), B.id, LATER, reason="stolen", successor=C)
    document = prepare_rotation(
        steady, owned("d"), now_ms=LATER, rotation_id="r2", started_by="bob", stable_version="7"
    )
    if phase is not Phase.PREPARED:
        document = with_phase(document, Phase.PUBLISHED, LATER)
    if phase in (Phase.ACTIVATED, Phase.VERIFIED):
        document = activate_rotation(document, LATER)
    if phase is Phase.VERIFIED:
        document = with_phase(document, Phase.VERIFIED, LATER)
    retired = record_retirement(document, B.id, LATER)
    assert (retired.retired_ids, retired.rotation) == ({B.id}, document.rotation)
    is_early = retired.next is not None
    back = (
        cancel_rotation(retired, LATER, reason="x")
        if is_early
        else roll_back_rotation(retired, steady, LATER, reason="x")
    )
    assert (back.current.id, back.retired_ids) == (C.id, {B.id})
    for session_id in (A.id, B.id, C.id):
        with pytest.raises(IllegalStepError):
            record_retirement(retired, session_id, LATER)


def test_revoking_the_current_root_puts_another_in_its_place_without_its_word() -> None:
    document = revoke_root(published(), A.id, LATER, reason="stolen", successor=C)
    assert document.current == C
    assert document.revoked_ids == {A.id, B.id}, "B lay beside A, and has signed nothing"
    assert document.rotation is None
    assert C.id not in {item.of for item in document.endorsements}
    assert not shows_key(encode_document(document).decode(), A, B)


def test_an_earlier_root_that_was_to_sign_again_is_not_revoked_with_the_current_one() -> None:
    document = prepare_restore(rotated(), A, now_ms=LATER, rotation_id="r", started_by="", stable_version="7")
    assert document.next == A
    document = revoke_root(document, B.id, LATER, reason="stolen", successor=C)
    assert (document.revoked_ids, document.next, document.rotation) == ({B.id}, None, None)
    assert A.session in document.roots, "what it has signed counts"


@pytest.mark.parametrize(
    ("session_id", "successor"),
    [
        (A.id, None),
        ("stranger", None),
        (B.id, C),
        (A.id, A),
        (A.id, owned("u", owner=None)),
        (A.id, owned("e", days=-1)),
    ],
)
def test_a_revocation_that_makes_no_sense_is_refused(session_id: str, successor: OwnedSession | None) -> None:
    with pytest.raises(IllegalStepError):
        revoke_root(published(), session_id, LATER, reason="x", successor=successor)


def test_history_stays_bounded_over_many_rotations() -> None:
    document = first()
    for number in range(MAX_HISTORY + 2):
        document = prune_all(rotated(document, f"r{number}"))
    assert 8 <= len(document.history) <= MAX_HISTORY
    assert sum(len(to_pretty_json(entry.to_json())) for entry in document.history) <= MAX_HISTORY_BYTES
    assert document.history[-1].to_id == document.current.id


def test_long_reasons_do_not_make_the_history_long() -> None:
    document = first()
    for number in range(MAX_HISTORY):
        document = cancel_rotation(prepared(document, f"r{number}"), NOW, reason="\N{GOAT}" * 200)
    assert sum(len(to_pretty_json(entry.to_json())) for entry in document.history) <= MAX_HISTORY_BYTES
    assert document.history


@pytest.mark.parametrize("reason", ["no", "expected that http://10.0.0.2:8080 signs with the next root" * 3])
def test_failures_in_a_row_are_counted_and_the_last_success_stays_though_their_reasons_are_long(reason: str) -> None:
    document = rotated()
    for number in range(7):
        document = cancel_rotation(prepared(document, f"r{number}"), NOW, reason=f"{number}: {reason}")
    assert [entry.event for entry in document.history] == ["rotated", *["cancelled"] * 7]
    told = [entry.reason for entry in document.history[1:]]
    assert told[-1] == f"6: {reason}"
    assert (None in told) == (len(reason) > 100)
    assert sum(len(to_pretty_json(entry.to_json())) for entry in document.history) <= MAX_HISTORY_BYTES


def test_an_endorsement_stays_as_long_as_its_roots() -> None:
    document = first()
    for number in range(12):
        document = cancel_rotation(published(document, f"r{number}"), NOW, reason="x")
    assert len(document.endorsements) == 12
    document = prune_roots(document, [document.roots[1].id], LATER)
    assert len(document.endorsements) == 11
    assert len(document.roots) == 12


def test_that_a_key_is_gone_is_on_record_as_long_as_its_root_and_crowds_out_nothing() -> None:
    document = first()
    for number in range(6):
        document = rotated(document, f"r{number}")
    before = document.history
    earlier = [root.id for root in document.roots if root.id != document.current.id]
    for number, root_id in enumerate(earlier):
        document = record_retirement(document, root_id, LATER + number)
    assert document.retired_ids == set(earlier)
    assert [entry for entry in document.history if entry.event != "retired"] == list(before)
    document = prune_roots(document, earlier[:2], LATER)
    assert document.retired_ids == set(earlier[2:])
    assert document.pruned == 2
    assert decode_document(encode_document(document)).pruned == 2


def test_a_reason_that_is_too_long_is_seen_to_be_cut() -> None:
    document = prepared()
    for reason, kept in (("x" * 200, "x" * 200), ("x" * 201, "x" * 197 + "...")):
        assert cancel_rotation(document, NOW, reason=reason).history[-1].reason == kept


def prune_all(document: IdentityDocument) -> IdentityDocument:
    """Remove every root that may leave, as if its grace period were over."""
    return prune_roots(document, ids, LATER) if (ids := prunable_roots(document)) else document


def test_neither_the_current_root_nor_the_one_before_it_nor_a_revoked_one_leaves_the_document() -> None:
    document = rotated(rotated(rotated(), "c"), "d")
    a, b, c, d = (root.id for root in document.roots)
    assert prunable_roots(document) == {a, b}
    document = revoke_root(document, b, LATER, reason="stolen", proving=B)
    assert prunable_roots(document) == {a}
    for stays in (b, c, d, "stranger"):
        with pytest.raises(IllegalStepError, match="not a previous root that can be removed from the identity"):
            prune_roots(document, [a, stays], LATER)
    with pytest.raises(IllegalStepError, match="no root"):
        prune_roots(document, [], LATER)


def test_no_root_leaves_during_a_rotation() -> None:
    document = prepared(rotated(rotated(), "c"), "d")
    with pytest.raises(IllegalStepError, match="roots can be removed from the identity only after it has ended"):
        prune_roots(document, [A.id], LATER)


def test_a_revocation_proof_keeps_the_successor_that_it_names() -> None:
    document = revoke_root(rotated(), B.id, LATER, reason="stolen", successor=C)
    document = rotated(rotated(document, "d"), "e")
    assert document.find_root(C.id) is not None
    assert C.id not in prunable_roots(document)
    assert A.id in prunable_roots(document)


def test_a_root_leaves_once_it_is_retired_and_of_the_others_only_the_latest_stay() -> None:
    document = rotated(rotated(rotated(), "c"), "d")
    a, b, c, _ = (root.id for root in document.roots)
    assert roots_to_prune(document) == ()
    assert roots_to_prune(record_retirement(document, b, NOW)) == (b,)
    assert roots_to_prune(record_retirement(document, c, NOW)) == (), "the root before the current one stays"
    assert roots_to_prune(rotated(document, "e")) == (a,)


def test_a_root_whose_rotation_was_cancelled_leaves_at_once_and_one_that_has_signed_does_not() -> None:
    assert roots_to_prune(cancel_rotation(published(), NOW, reason="x")) == (B.id,)
    rolled_back = roll_back_rotation(activated(), first(), NOW, reason="x")
    assert roots_to_prune(cancel_rotation(published(rolled_back, "c"), NOW, reason="x")) == (C.id,)


def test_an_earlier_root_that_was_to_be_restored_does_not_leave_when_that_was_cancelled() -> None:
    document = rotated(rotated(), "c")
    for _ in range(MAX_HISTORY + 1):
        document = prepare_restore(document, A, now_ms=NOW, rotation_id="r", started_by="", stable_version="7")
        document = cancel_rotation(document, NOW, reason="x")
    assert roots_to_prune(document) == ()


def test_even_a_revocation_in_the_middle_of_the_last_rotation_that_fits_stays_below_the_limit_of_every_store() -> None:
    document, number = first(), 0
    while not is_full(document):
        steps = {
            "started_by": "\N{GOAT}" * 200,
            "stable_version": "v" * 100,
            "rotation_id": f"rotation-{number}".ljust(24, "x"),
        }
        before = document
        document = prepare_rotation(document, owned(f"r{number}"), now_ms=NOW, **steps)
        worst = with_phase(document, Phase.PUBLISHED, NOW)
        document = finalize_rotation(with_phase(activate_rotation(worst, NOW), Phase.VERIFIED, NOW), NOW)
        number += 1
    assert before is not document
    assert number >= 8
    revoked = revoke_root(worst, worst.current.id, LATER, reason="\N{GOAT}" * 200, successor=C)
    assert len(encode_document(revoked)) < SMALLEST_LIMIT


def test_a_document_without_room_keeps_no_root_only_to_be_restored() -> None:
    document = rotated(rotated(rotated(), "c"), "d")
    assert roots_to_prune(document) == ()
    full = replace(document, extra={"x": "y" * 14_000})
    assert is_full(full)
    assert roots_to_prune(full) == (A.id, B.id)


@pytest.mark.slow
def test_fourteen_revocations_fit_and_leave_room_for_a_rotation() -> None:
    document = first()
    for number in range(14):
        assert not is_full(document), number
        stolen = document.current.id
        document = revoke_root(document, stolen, NOW, reason="stolen", successor=owned(f"r{number}"))
        document = record_frozen_commits(document, stolen, NOW, commits=12_345, digest="a" * 64)
        document = record_reissued_sessions(document, stolen, NOW)
        if ids := prunable_roots(document):
            document = prune_roots(document, ids, NOW)
    assert len(document.revoked_ids) == 14
    assert [one.proof is not None for one in document.revoked[-4:]] == [False, True, True, True]
    assert all(one.freeze is not None for one in document.revoked), "commits of each are still checked"
    assert len(encode_document(rotated(document, "next"))) < SMALLEST_LIMIT


def test_a_revocation_that_is_not_finished_keeps_its_proof() -> None:
    document = first()
    for number in range(5):
        document = revoke_root(document, document.current.id, NOW, reason="stolen", successor=owned(f"r{number}"))
    assert all(one.proof is not None for one in document.revoked)


def test_a_later_expiration_of_the_current_root_is_signed_and_followed() -> None:
    later = A.session.expiration_ms + DAY
    extended = extend_current_root(first(), later, LATER)
    assert (extended.current.session.expiration_ms, extended.find_root(A.id)) == (later, extended.current.session)
    assert extended.is_signed
    assert extended.generation == first().generation + 1
    verify_successor(extended, first())


@pytest.mark.parametrize("phase", ["prepared", "published", "activated", "verified", "rotated"])
def test_an_expiration_that_another_root_has_signed_or_that_is_in_a_rotation_stays(phase: str) -> None:
    document = PHASES[phase][0]()
    with pytest.raises(IllegalStepError):
        extend_current_root(document, document.current.session.expiration_ms + DAY, LATER)
