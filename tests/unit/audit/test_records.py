"""The chain of an audit trail: whatever is changed in a signed file, the first invalid line is named."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd.audit import records
from goatherd.audit.records import GENESIS, MAX_TORN, Anchors, Chain, Head, Torn, read_record, verify, write_record
from goatherd.errors import AuditBrokenError, DecodeError
from goatherd.identity import transitions
from goatherd.identity.document import IdentityDocument, Phase
from goatherd.identity.root_signatures import endorse_root
from goatherd.identity.session import OwnedSession, parse_signature, sign_data, verify_data
from goatherd.rotation.anchor_keys import UNCHANGED, AnchorChoice
from tests.unit.audit.trails import NOW_MS, Anchored, Writer, after, before, root, rotated, trail


def broken(lines: object, **options: object) -> AuditBrokenError:
    with pytest.raises(AuditBrokenError) as caught:
        verify(lines, **options)  # type: ignore[arg-type]
    return caught.value


def in_lines(raw: bytes) -> list[bytes]:
    parts = raw.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def test_an_untouched_trail_is_good_with_and_without_its_identity() -> None:
    for anchors in (None, Anchors.from_document(after())):
        checked = verify(trail(), anchors=anchors)
        assert checked.signers == ("root-a", "root-b")
        assert checked.head == read_record(trail()[-1]).head
        assert checked.head.seq == 9
        assert checked.rests_on == ("root-a" if anchors is None else None)
        assert (checked.torn, checked.lost, checked.by_revoked) == ((), 0, 0)


def test_a_record_is_one_line_of_json_that_says_who_and_what() -> None:
    members = json.loads(trail()[1])
    assert list(members) == ["v", "seq", "at", "actor", "event", "data", "prev", "by", "sig"]
    assert (members["seq"], members["by"], members["actor"]) == (2, "root-a", "alice@host-1:4711")
    assert json.loads(trail()[0])["prev"] == GENESIS
    assert "privateKey" not in b"".join(trail()).decode()


# --- tampering --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=400)
@given(st.data())
def test_every_flipped_bit_is_found_in_its_line(data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(trail()) - 1), label="line")
    line = bytearray(trail()[number])
    place = data.draw(st.integers(0, len(line) - 1), label="byte")
    line[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    raw = b"".join([*trail()[:number], bytes(line), *trail()[number + 1 :]])
    assert broken(in_lines(raw)).line == number + 1


@pytest.mark.slow
@settings(max_examples=200)
@given(st.integers(0, 8), st.binary(min_size=0, max_size=3), st.integers(0, 400), st.integers(0, 3))
def test_bytes_put_in_or_taken_out_are_found_in_their_line(number: int, more: bytes, place: int, less: int) -> None:
    line = trail()[number]
    place = min(place, len(line) - 1)
    changed = line[:place] + more + line[place + less :]
    if changed == line:
        return
    error = broken(in_lines(b"".join([*trail()[:number], changed, *trail()[number + 1 :]])))
    # What is put before a line, or after its end, is a line of its own.
    assert error.line in (number + 1, number + 2)


@pytest.mark.parametrize("number", range(8))
def test_a_line_that_was_taken_out_is_found(number: int) -> None:
    error = broken([*trail()[:number], *trail()[number + 1 :]])
    assert error.line == number + 1
    assert f"record {number + 1} is missing" in str(error)


@given(st.integers(0, 7), st.integers(1, 8))
def test_lines_that_were_taken_out_together_are_found(first: int, count: int) -> None:
    lines = [*trail()[:first], *trail()[first + count :]]
    if first + count < 9:
        assert broken(lines).line == first + 1


@given(st.integers(0, 8), st.integers(0, 8))
def test_lines_that_have_changed_places_are_found_at_the_first_of_them(one: int, other: int) -> None:
    lines = list(trail())
    lines[one], lines[other] = lines[other], lines[one]
    if one != other:
        assert broken(lines).line == min(one, other) + 1


@given(st.integers(0, 8), st.integers(0, 9))
def test_a_line_that_was_put_in_again_is_found(number: int, place: int) -> None:
    lines = list(trail())
    lines.insert(place, trail()[number])
    # Beside itself it cannot be told which of the two is the copy: the second is named.
    expected = place + 1 if place not in (number, number + 1) else number + 2
    assert broken(lines).line == expected


@given(st.integers(1, 8), st.integers(1, 2000))
def test_a_file_that_ends_in_the_middle_of_a_line_is_found(number: int, cut: int) -> None:
    line = trail()[number]
    part = line[: max(1, len(line) - cut)]
    error = broken([*trail()[:number], part])
    assert error.line == number + 1
    assert "cut off" in str(error)


def test_a_file_that_ends_with_a_whole_line_is_found_only_with_a_checkpoint() -> None:
    checkpoint = read_record(trail()[-1]).head
    assert verify(trail()[:7]).head.seq == 7, "what is not there cannot be seen in what is"
    error = broken(trail()[:7], checkpoint=checkpoint)
    assert error.line == 8
    assert "ends with record 7, the checkpoint is of 9" in str(error)
    assert verify(trail(), checkpoint=read_record(trail()[4]).head).head == checkpoint


def test_a_trail_that_was_written_anew_is_found_with_a_checkpoint() -> None:
    checkpoint = read_record(trail()[4]).head
    anew = Writer()
    for _ in range(8):
        anew.add(before(), at_ms=NOW_MS + 1)
    error = broken(anew.lines, checkpoint=checkpoint)
    assert error.line == 5
    assert "another record" in str(error)


@pytest.mark.parametrize("lines", [[], [b"\n"], [b"hello\n"], [b"{}\n"], [b'{"v":1,"seq":1}\n']])
def test_a_file_without_a_record_is_no_trail(lines: list[bytes]) -> None:
    assert broken(lines).line == 1


# --- signers ----------------------------------------------------------------------------------------------------------


def stranger() -> Writer:
    alone = transitions.create_document(root("root-x"), NOW_MS)
    return Writer().add(before()).add(alone)


def test_a_signer_that_is_no_root_of_the_identity_is_found() -> None:
    error = broken(stranger().lines, anchors=Anchors.from_document(after()))
    assert error.line == 3
    assert "no root of this identity" in str(error)


def test_a_signer_for_whom_none_before_it_vouches_is_found_without_the_identity() -> None:
    error = broken(stranger().lines)
    assert error.line == 3
    assert "no earlier signer introduces" in str(error)
    assert "begin a new file" in error.hint


def test_a_whole_file_by_a_stranger_is_found_with_the_identity_and_named_without() -> None:
    lines = Writer().add(transitions.create_document(root("root-x"), NOW_MS)).lines
    assert broken(lines, anchors=Anchors.from_document(after())).line == 1
    assert verify(lines).rests_on == "root-x"


def test_a_root_with_the_id_of_another_is_found() -> None:
    double = OwnedSession.generate(session_id="root-b", owner="root", now_ms=NOW_MS, lifetime=timedelta(days=180))
    lines = Writer().add(before()).add(transitions.create_document(double, NOW_MS)).lines
    assert broken(lines).line == 3
    assert broken(lines, anchors=Anchors.from_document(after())).line == 3
    again = Writer().add(after()).add(before()).add(transitions.create_document(double, NOW_MS)).lines
    assert broken(again).line == 3, "root-a is vouched for by no root here"


def test_a_record_of_a_signer_that_was_not_introduced_is_found() -> None:
    lines = Writer().add(before()).add(after(), introduce=False).lines
    assert "no earlier record introduces" in str(broken(lines))
    lines = Writer().add(before()).add(after()).add(before(), introduce=False).lines
    assert broken(lines).line == 5


def test_a_chain_of_roots_vouches_though_one_of_them_never_signed_here() -> None:
    document = transitions.prepare_rotation(
        after(), root("root-c"), now_ms=NOW_MS, rotation_id="rotation-2", started_by="bob", stable_version="1"
    )
    document = transitions.with_phase(document, transitions.Phase.PUBLISHED, NOW_MS)
    document = transitions.activate_rotation(document, NOW_MS)
    checked = verify(Writer().add(before()).add(document).lines)
    assert checked.signers == ("root-a", "root-c")


REVOKED_MS = NOW_MS + 1000


def revoked(*ids: str) -> Anchors:
    return Anchors(roots=Anchors.from_document(after()).roots, revoked=dict.fromkeys(ids, REVOKED_MS))


def test_what_a_revoked_root_signed_before_is_counted_until_another_root_signs() -> None:
    early = Writer().add(before()).add(before())
    assert verify(early.lines, anchors=revoked("root-a")).by_revoked == 3
    sealed = verify(early.add(after()).lines, anchors=revoked("root-a"))
    assert (sealed.by_revoked, sealed.after_revocation) == (0, ()), "root-b has sealed what stands before"


def test_what_a_revoked_root_signed_afterwards_is_an_error_until_another_root_signs() -> None:
    trail = Writer().add(before()).add(before(), at_ms=REVOKED_MS).add(before(), at_ms=REVOKED_MS + 1)
    trail.add(before(), at_ms=REVOKED_MS + 2)
    late = broken(trail.lines, anchors=revoked("root-a"))
    assert late.line == 4
    assert "after it was revoked" in str(late)
    sealed = verify(trail.add(after()).lines, anchors=revoked("root-a"))
    assert (sealed.by_revoked, sealed.after_revocation) == (0, (4, 5))
    assert broken(trail.add(before(), at_ms=REVOKED_MS + 3).lines, anchors=revoked("root-a")).line == 8


def test_neither_a_revoked_root_nor_one_that_it_has_introduced_seals_what_a_revoked_root_signed() -> None:
    trail = Writer().add(before()).add(before(), at_ms=REVOKED_MS + 1).add(after())
    assert broken(trail.lines, anchors=revoked("root-a", "root-b")).line == 3
    rogue = transitions.prepare_rotation(
        before(), root("rogue"), now_ms=NOW_MS, rotation_id="rogue", started_by="thief", stable_version="1"
    )
    rogue = transitions.activate_rotation(transitions.with_phase(rogue, Phase.PUBLISHED, NOW_MS), NOW_MS)
    trail = Writer().add(before()).add(before(), at_ms=REVOKED_MS + 1).add(rogue)
    assert "no root of this identity" in str(broken(trail.lines, anchors=revoked("root-a")))


def test_no_signature_of_a_record_is_one_of_goatdb_nor_the_other_way_round() -> None:
    record = read_record(trail()[1])
    envelope = parse_signature(sign_data(root("root-a"), now_ms=NOW_MS, external={"a": 1}))
    verify_data(root("root-a").session, envelope, external={"a": 1})
    body = record.line.partition(b',"sig"')[0]
    with pytest.raises(AuditBrokenError, match="was changed after root"):
        verify([trail()[0], body + b',"sig":"' + base64.urlsafe_b64encode(envelope.signature) + b'"}\n'])
    # The text that is signed is the body after a word that no text of GoatDB's begins with, so this does not verify:
    bare = base64.urlsafe_b64encode(root("root-a").signer.sign(body))
    with pytest.raises(AuditBrokenError, match="was changed after root"):
        verify([trail()[0], body + b',"sig":"' + bare + b'"}\n'])


# --- torn lines -------------------------------------------------------------------------------------------------------


def torn_trail(*tears: bytes) -> list[bytes]:
    writer = Writer().add(before()).add(before())
    kept = list(writer.lines)
    writer.add(before(), torn=[Torn.from_line(tear) for tear in tears])
    return [*kept, *tears, writer.lines[-1]]


@given(st.lists(st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")), min_size=1, max_size=MAX_TORN))
def test_torn_lines_that_the_next_record_states_are_listed(tears: list[bytes]) -> None:
    lines = torn_trail(*[tear + b"\n" for tear in tears])
    assert verify(lines).torn == tuple(range(4, 4 + len(tears)))


def test_a_torn_line_that_was_changed_afterwards_or_is_gone_is_found() -> None:
    lines = torn_trail(b'{"v":1,"seq":4,"at"\n')
    assert broken([*lines[:3], b'{"v":1,"seq":4,"an"\n', lines[4]]).line == 4
    assert broken([*lines[:3], lines[4]]).line == 4
    assert broken([*lines[:3], lines[3], b"more\n", lines[4]]).line == 4


def test_a_record_cannot_be_passed_off_as_torn() -> None:
    lines = list(trail())
    assert broken([*lines[:3], lines[3][:-20] + b"\n", *lines[4:]]).line == 4


def test_more_torn_lines_than_crashes_make_are_not_waited_for() -> None:
    chain = Chain()
    for line in trail()[:3]:
        chain.feed(line)
    for _ in range(MAX_TORN):
        assert chain.feed(b"x\n") is None
    with pytest.raises(AuditBrokenError) as caught:
        chain.feed(b"x\n")
    assert caught.value.line == 4


def test_lost_records_are_counted() -> None:
    assert verify(Writer().add(before(), lost=3).add(before(), lost=2).lines).lost == 5


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_survives_its_text() -> None:
    head = read_record(trail()[-1]).head
    assert Head.from_text(str(head)) == head
    # A trail has no record 0, so nothing would be compared.
    for text in ("", "9", f"9:{'0' * 63}", f"-1:{'0' * 64}", f"9:{'g' * 64}", f"0:{'1' * 64}"):
        with pytest.raises(DecodeError):
            Head.from_text(text)


def test_a_record_that_would_be_too_long_is_not_written() -> None:
    with pytest.raises(ValueError, match="longer than"):
        write_record(root("root-a"), Head(), at_ms=NOW_MS, actor="a", event="x", data={"text": "x " * (1 << 20)})


@given(st.binary(max_size=200))
def test_reading_a_record_never_fails_otherwise_than_told(raw: bytes) -> None:
    for line in (raw, b'{"v":1,"seq":' + raw.replace(b"\n", b"") + b',"sig":"' + b"A" * 128 + b'"}\n'):
        with pytest.raises(DecodeError):
            read_record(line)


# --- roots that have left the identity --------------------------------------------------------------------------------


def written(*documents: IdentityDocument) -> list[bytes]:
    writer = Writer()
    for document in documents:
        writer.add(document)
    return writer.lines


def aged() -> Anchors:
    """Return the identity after root-a has left it."""
    return Anchors(roots={"root-b": root("root-b").session})


def test_what_a_root_signed_that_has_left_the_identity_is_sealed_by_its_successor() -> None:
    checked = verify(trail(), anchors=aged())
    assert checked.signers == ("root-a", "root-b")


def test_a_trail_that_ends_with_a_root_that_has_left_the_identity_is_not_sealed() -> None:
    error = broken(Writer().add(before()).lines, anchors=aged())
    assert error.line == 1
    assert "no root of this identity" in str(error)
    assert "verify the file with --offline and a checkpoint" in error.hint


def test_lines_of_a_stranger_are_not_sealed_by_the_record_after_them() -> None:
    alone = transitions.create_document(root("root-x"), NOW_MS)
    assert broken(Writer().add(alone).add(after()).lines, anchors=aged()).line == 1
    assert broken(Writer().add(before()).add(alone).add(after()).lines, anchors=aged()).line == 3
    assert broken(Writer().add(after()).add(alone).lines, anchors=aged()).line == 3


def test_a_revoked_root_seals_nothing() -> None:
    anchors = Anchors(roots=aged().roots, revoked={"root-b": NOW_MS + 1000})
    assert broken(trail(), anchors=anchors).line == 1


def revoked_in(document: IdentityDocument, name: str) -> IdentityDocument:
    """Return the identity after the current root was revoked, with the root `name` as its successor."""
    return transitions.revoke_root(document, document.current.id, REVOKED_MS, reason="stolen", successor=root(name))


def test_the_successor_of_a_revoked_root_seals_what_roots_signed_that_have_left_the_identity() -> None:
    documents = [before(), after()]
    documents += [rotated(after(), "stolen"), revoked_in(rotated(after(), "stolen"), "heir")]
    for number in range(5):
        documents.append(rotated(documents[-1], f"after-{number}"))
    identity = Anchors.from_document(documents[-1])
    assert not {"root-a", "root-b"} & identity.roots.keys()
    assert len(verify(written(*documents), anchors=identity).signers) == 9
    # An attacker with the stolen key can put other roots before the successor, which endorses none of them.
    alone = transitions.create_document(root("alone"), NOW_MS)
    stolen = rotated(alone, "stolen")
    assert broken(written(alone, stolen, *documents[3:]), anchors=identity).line == 1
    # In the successor's record, only its own signature of the root that signed before makes it endorse this root.
    same_id = OwnedSession.generate(session_id="alone", owner="root", now_ms=NOW_MS).session
    for endorsed, is_sealed in ((same_id, False), (root("alone").session, True)):
        more = (*documents[3].endorsements, endorse_root(root("heir"), endorsed, NOW_MS))
        lines = written(alone, stolen, replace(documents[3], endorsements=more), *documents[4:])
        if is_sealed:
            assert verify(lines, anchors=identity).signers[0] == "alone"
        else:
            assert broken(lines, anchors=identity).line == 1
    late = revoked_in(rotated(before(), "stolen"), "heir")
    other = rotated(rotated(before(), "stolen"), "alone")
    assert broken(written(before(), other, late), anchors=Anchors.from_document(late)).line == 3


def test_the_successor_of_a_revoked_root_may_itself_have_left_the_identity() -> None:
    """The successor leaves after three later revocations, because the proof that names it is then dropped."""
    documents = [before(), after()]
    for number in range(4):
        exposed = rotated(documents[-1], f"stolen-{number}")
        documents += [exposed, settled_in(revoked_in(exposed, f"heir-{number}"), exposed.current.id)]
    for number in range(4):
        documents.append(rotated(documents[-1], f"after-{number}"))
    identity = Anchors.from_document(documents[-1])
    assert "stolen-0" in identity.roots
    assert "heir-0" not in identity.roots
    assert len(verify(written(*documents), anchors=identity).signers) == len(documents)
    # Who has the stolen key can name another successor, or put other roots before the stolen one.
    rogue = revoked_in(transitions.create_document(root("stolen-0"), NOW_MS), "rogue")
    assert broken(written(*documents[:3], rogue, *documents[3:]), anchors=identity).line == 7
    seeming = replace(rogue, endorsements=(endorse_root(root("rogue"), root("root-b").session, NOW_MS),))
    for follows, anchors in ((documents[3:], identity), ([documents[3]], Anchors.from_document(documents[3]))):
        error = broken(written(*documents[:3], seeming, *follows), anchors=anchors)
        assert error.line in (7, 9), "the true successor does not endorse the other one"
    alone = transitions.create_document(root("alone"), NOW_MS)
    assert broken(written(alone, rotated(alone, "stolen-0"), *documents[3:]), anchors=identity).line == 5


def settled_in(document: IdentityDocument, name: str) -> IdentityDocument:
    """Return the identity after the revocation of the root `name` is complete."""
    frozen = transitions.record_frozen_commits(document, name, REVOKED_MS, commits=0, digest="0" * 64)
    return transitions.record_reissued_sessions(frozen, name, REVOKED_MS)


def test_without_the_identity_a_revoked_root_leads_to_the_successor_that_its_proof_names() -> None:
    """This verifies an old file whose last signer has left the identity."""
    stolen = rotated(after(), "stolen")
    documents = [before(), after(), stolen, revoked_in(stolen, "heir")]
    documents.append(rotated(documents[-1], "after"))
    assert verify(written(*documents)).signers == ("root-a", "root-b", "stolen", "heir", "after")
    other = revoked_in(transitions.create_document(root("other"), NOW_MS), "heir")
    assert broken(written(before(), after(), stolen, other)).line == 7
    (entry,) = documents[3].revoked
    for changes in ({"at": entry.at + 1}, {"proof": "x"}, {"id": "root-b"}):
        forged = replace(documents[3], revoked=(replace(entry, **changes),))
        assert broken(written(before(), after(), stolen, forged)).line == 7
    for value in (None, [None], [{"id": "stolen"}], [{"id": "stolen", "at": "?", "successor": "heir", "proof": "x"}]):
        assert records._read_proofs(value) == []


# --- an identity with an anchor ---------------------------------------------------------------------------------------


async def renewals(anchored: Anchored, count: int) -> list[IdentityDocument]:
    documents = [await anchored.begin("working-1")]
    for number in range(2, count + 1):
        documents.append(await anchored.rotate(documents[-1], f"working-{number}"))
    return documents


async def test_a_working_root_follows_another_by_the_word_of_their_anchor() -> None:
    documents = await renewals(Anchored(), 6)
    assert documents[-1].find_root("working-1") is None
    for anchors in (None, Anchors.from_document(documents[-1])):
        assert len(verify(written(*documents), anchors=anchors).signers) == 6


@pytest.mark.parametrize("is_anchored", [False, True], ids=["an anchor is added", "an anchor is replaced"])
@pytest.mark.parametrize("stays", [False, True], ids=["and removed", "and stays"])
async def test_a_trail_goes_on_over_changes_of_the_anchor(is_anchored: bool, stays: bool) -> None:
    anchored = Anchored()
    documents = [await anchored.begin("first") if is_anchored else before()]
    another, removed = AnchorChoice(signer="memory:another"), AnchorChoice(is_removed=True)
    documents.append(await anchored.rotate(documents[-1], "second", another))
    documents.append(await anchored.rotate(documents[-1], "third", UNCHANGED if stays else removed))
    for number in range(5):
        documents.append(await anchored.rotate(documents[-1], f"later-{number}"))
    assert documents[-1].find_root("second") is None
    for anchors in (None, Anchors.from_document(documents[-1])):
        assert len(verify(written(*documents), anchors=anchors).signers) == 8


async def test_lines_of_a_stranger_are_not_sealed_by_a_working_root() -> None:
    anchored = Anchored()
    documents = await renewals(anchored, 6)
    identity = Anchors.from_document(documents[-1])
    others = [await anchored.begin("stranger", "memory:stranger"), transitions.create_document(root("alone"), NOW_MS)]
    for other in others:
        assert broken(written(other, documents[-1]), anchors=identity).line == 1
        assert broken(written(documents[0], other, documents[-1]), anchors=identity).line == 3
        assert broken(written(documents[0], other)).line == 3


async def test_the_thief_of_a_revoked_working_root_cannot_write_the_whole_file_anew() -> None:
    documents = await renewals(Anchored(), 5)
    stolen, last = documents[3], documents[4]
    alone = transitions.create_document(root("alone"), NOW_MS)
    forged = Writer().add(alone)
    listed = (*stolen.roots, root("alone").session)
    endorsed = endorse_root(root("alone"), stolen.current.session, NOW_MS)
    forged.add(replace(stolen, roots=listed, endorsements=(*stolen.endorsements, endorsed)))
    thefts = {stolen.current.id: NOW_MS + 1000}
    assert (
        broken(forged.add(last).lines, anchors=Anchors(roots=Anchors.from_document(last).roots, revoked=thefts)).line
        == 1
    )
    whole = written(*documents)
    assert verify(whole, anchors=Anchors(roots=Anchors.from_document(last).roots, revoked=thefts)).by_revoked == 0
