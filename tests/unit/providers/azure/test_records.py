"""Which of the proposals every reader considers decided at every time; and how values and pointers are stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import ConflictError, SecretNotFoundError, VersionDisabledError
from goatherd.providers.azure.client import StoredSecret
from goatherd.providers.azure.records import (
    BEGINNING,
    HISTORY,
    ITSELF,
    MAX_LISTED,
    MAX_STORED,
    MAX_VALUE,
    NOTHING,
    Entry,
    Home,
    Pointer,
    Proposal,
    decide_proposals,
    decode_pointer,
    decode_value,
    encode_pointer,
    encode_value,
    links_of,
    rebuild_pointer,
    tags_of,
    value_after_pointer,
)
from goatherd.providers.base import Call
from goatherd.providers.values import CURRENT, STABLE, Label, SecretBytes, VersionId
from goatherd.providers.versioned_record import DamagedRecordError, ForeignRecordError, digest_of

CONTRACT = Path(__file__).resolve().parents[3] / "contract"
SETTLE = 3
CALL = Call(provider="azure", secret_id="root", operation="write")


def proposal(number: int, created: int, parent: Proposal = BEGINNING) -> Proposal:
    pointer = replace(NOTHING, epoch=parent.pointer.epoch + 1, parent=parent.id, request=f"request {number}")
    return Proposal(id=f"{number:032x}", created=created, pointer=pointer)


def entry(value: bytes = b"x", *, request: str = "r") -> Entry:
    hidden = SecretBytes(value)
    return Entry(
        number=0, created=1_700_000_000, request=request, digest=digest_of(hidden), text=encode_value(hidden)[1]
    )


def filled(count: int) -> Pointer:
    pointer = NOTHING
    for number in range(1, count + 1):
        pointer = pointer.with_version(CURRENT, VersionId(f"{number:032x}"), entry(request=f"{number:032x}"))
    return pointer


def test_no_repr_of_a_stored_secret_shows_its_value():
    assert "the value" not in f"{StoredSecret(version='1', created=0, value='the value')!r}"


def test_the_earliest_wins_and_of_those_with_the_same_second_the_highest_id():
    late, low, high = proposal(9, 101), proposal(1, 100), proposal(2, 100)
    assert decide_proposals(BEGINNING, [late, low, high], now=200, settle=SETTLE).last is high


def test_nothing_is_decided_while_an_earlier_one_could_still_appear():
    one = proposal(1, 100)
    young = decide_proposals(BEGINNING, [one], now=102, settle=SETTLE)
    assert (young.last, young.pending) == (BEGINNING, one)
    old = decide_proposals(BEGINNING, [one], now=103, settle=SETTLE)
    assert (old.last, old.pending) == (one, None)


def test_who_follows_a_loser_is_lost_too():
    winner, loser = proposal(1, 100), proposal(2, 101)
    follows_loser, follows_winner = proposal(3, 105, loser), proposal(4, 106, winner)
    decision = decide_proposals(BEGINNING, [follows_loser, loser, follows_winner, winner], now=200, settle=SETTLE)
    assert decision.chain == (BEGINNING, winner, follows_winner)


def test_a_proposal_that_skips_an_epoch_does_not_count():
    first = proposal(1, 100)
    skipping = replace(proposal(2, 110, first), pointer=replace(proposal(2, 110, first).pointer, epoch=7))
    assert decide_proposals(BEGINNING, [first, skipping], now=200, settle=SETTLE).last is first


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Proposal, int]]:
    """Proposals of writers, and the tenth of a second from which each is listed.

    A writer builds on what it read as decided, now or earlier: it does not read before each change. A write may be long
    on its way before it gets its time, in whole seconds. After that it is listed within two seconds, as the settling
    time allows.
    """
    listed: list[tuple[Proposal, int]] = []
    now = 1000
    for number in draw(st.permutations(range(1, draw(st.integers(1, 12)) + 1))):
        now += draw(st.integers(0, 40))
        seen = [each for each, since in listed if since <= now]
        last = draw(st.sampled_from(decide_proposals(BEGINNING, seen, now=now // 10, settle=SETTLE).chain[::-1]))
        stored = now + draw(st.integers(0, 80))
        listed.append((proposal(number, stored // 10, last), stored + draw(st.integers(0, 20))))
    return listed


@given(histories())
def test_what_one_observer_finds_decided_every_later_one_finds_too(history: list[tuple[Proposal, int]]):
    before: tuple[Proposal, ...] = (BEGINNING,)
    for now in range(1000, 1700, 2):
        seen = [each for each, since in history if since <= now]
        after = decide_proposals(BEGINNING, seen, now=now // 10, settle=SETTLE).chain
        assert after[: len(before)] == before
        before = after


@given(histories(), st.integers(1000, 1700))
def test_beginning_later_in_the_chain_leads_to_the_same_end(history: list[tuple[Proposal, int]], at: int):
    seen = [each for each, since in history if since <= at]
    whole = decide_proposals(BEGINNING, seen, now=at // 10, settle=SETTLE)
    for start in whole.chain:
        recent = [each for each in seen if each.created >= start.created]
        assert decide_proposals(start, recent, now=at // 10, settle=SETTLE).last is whole.last


@pytest.mark.parametrize(
    "text", ['{"a": "Zürich 羊"}', "a\nb\tc\n", " x", '"no\u00a0break, \U0001f469\u200d\U0001f4bb, new\u2028line"']
)
def test_text_is_stored_as_it_is_so_that_people_can_read_it(text: str):
    assert encode_value(SecretBytes(text.encode())) == (text, True)


@given(st.binary(min_size=1, max_size=300) | st.text(min_size=1, max_size=100).map(str.encode))
def test_any_bytes_come_back(raw: bytes):
    value = SecretBytes(raw)
    stored, is_text = encode_value(value)
    assert decode_value(stored, replace(entry(raw), text=is_text)) == value
    assert stored.isascii() or is_text


def test_the_longest_value_fits_whatever_it_is():
    assert len(encode_value(SecretBytes(bytes([255]) * MAX_VALUE))[0]) == MAX_STORED


@pytest.mark.parametrize("stored", ["", "y", "eA=", "ä"])
def test_a_value_that_is_not_the_one_written_is_damaged(stored: str):
    for is_text in (True, False):
        with pytest.raises(DamagedRecordError):
            decode_value(stored, replace(entry(b"x"), text=is_text))


def test_a_pointer_comes_back_as_it_was():
    pointer = replace(filled(5), epoch=7, parent="f" * 32, request="r" * 32)
    pointer = pointer.with_label(CALL, STABLE, VersionId(f"{3:032x}"), None)
    pointer = pointer.without_value(CALL, VersionId(f"{1:032x}"))
    versions = {f"{n:032x}": Home.ALONE for n in (1, 2, 4)}
    for version, home in versions.items():
        changed = {VersionId(version): replace(pointer.versions[VersionId(version)], home=home)}
        pointer = replace(pointer, versions=MappingProxyType({**pointer.versions, **changed}))
    stored = encode_pointer(pointer)
    assert decode_pointer(stored) == pointer
    assert "\n" not in stored
    assert decode_pointer(f"{stored}\na value\nof two lines") == pointer
    assert value_after_pointer(f"{stored}\na value\nof two lines") == "a value\nof two lines"


def test_the_version_that_brings_a_value_is_named_once_its_id_is_known():
    pointer = filled(1).with_version(CURRENT, ITSELF, replace(entry(b"new"), created=0))
    named = pointer.with_version_id(VersionId("e" * 32), 1_700_000_009)
    assert named == filled(1).with_version(CURRENT, VersionId("e" * 32), replace(entry(b"new"), created=1_700_000_009))
    assert named.with_version_id(VersionId("d" * 32), 5) is named


def test_a_pointer_that_is_switched_off_is_rebuilt_from_its_tags_and_the_one_that_it_follows():
    parent = replace(filled(3), epoch=3, parent="b" * 32, request="before")
    pointer = replace(
        parent.with_version(STABLE, ITSELF, entry(b"new", request="r1")), epoch=4, parent="c" * 32, request="r1"
    )
    tags = tags_of(pointer)
    links = links_of("e" * 32, 1_700_000_009, tags)
    assert (links.pointer.epoch, links.pointer.parent, links.pointer.request) == (4, "c" * 32, "r1")
    assert not links.is_read
    whole = rebuild_pointer(links, parent, tags, text=True)
    assert whole.is_read
    assert whole.pointer == pointer.with_version_id(VersionId("e" * 32), 1_700_000_009)


@pytest.mark.parametrize("tag", ["parent", "epoch", "request", "label", "sha256"])
def test_one_that_is_switched_off_and_lacks_a_tag_is_foreign(tag: str):
    parent = filled(1)
    tags = tags_of(replace(parent.with_version(CURRENT, ITSELF, entry()), epoch=2, parent="c" * 32, request="r"))
    del tags[f"goatherd-{tag}"]
    with pytest.raises(ForeignRecordError):
        rebuild_pointer(links_of("e" * 32, 1, tags), parent, tags, text=True)


def test_the_first_pointer_is_rebuilt_too():
    tags = tags_of(replace(NOTHING.with_version(CURRENT, ITSELF, entry()), epoch=1, parent="", request="r"))
    assert all(tags.values()), "a store may refuse an empty tag"
    assert links_of("e" * 32, 1, tags).pointer.parent == ""


@pytest.mark.parametrize("stored", ["", "x", "null", "[]", "{}", '{"format":"goatherd-azure-pointer/2"}'])
def test_what_is_not_a_pointer_is_foreign(stored: str):
    with pytest.raises(ForeignRecordError):
        decode_pointer(stored)


@given(st.data())
def test_a_pointer_of_which_anything_changed_is_damaged(data: st.DataObject):
    stored = encode_pointer(replace(filled(2), epoch=1, request="r"))
    at = data.draw(st.integers(0, len(stored) - 1))
    changed = stored[:at] + data.draw(st.characters(codec="ascii").filter(lambda c: c != stored[at])) + stored[at + 1 :]
    with pytest.raises((DamagedRecordError, ForeignRecordError)):
        decode_pointer(changed)


@pytest.mark.parametrize("junk", ["Infinity", "null", '"x"', "[]", "{}"])
def test_a_version_that_is_not_one_is_damage(junk: str):
    stored = encode_pointer(filled(1)).replace("1700000000", junk)
    assert junk in stored
    with pytest.raises(DamagedRecordError, match="wrong type"):
        decode_pointer(stored)


@pytest.mark.parametrize("member", ["epoch", "parent", "labels", "versions", "request", "sha256"])
def test_a_pointer_that_lacks_a_member_is_damaged(member: str):
    whole = json.loads(encode_pointer(filled(1)))
    del whole[member]
    with pytest.raises(DamagedRecordError):
        decode_pointer(json.dumps(whole))


def test_the_oldest_without_a_label_are_forgotten_and_what_has_one_never():
    pointer = filled(1).with_label(CALL, STABLE, VersionId(f"{1:032x}"), None)
    for number in range(2, 201):
        pointer = pointer.with_version(CURRENT, VersionId(f"{number:032x}"), entry())
    assert len(pointer.versions) == MAX_LISTED
    assert HISTORY < MAX_LISTED
    numbers = [pointer.versions[version.id].number for version in pointer.newest_first()]
    assert numbers == [*range(200, 200 - MAX_LISTED + 1, -1), 1]
    assert len(encode_pointer(pointer)) < MAX_STORED * 3 / 4


def test_a_label_leads_to_a_version_and_an_unknown_one_nowhere():
    pointer = filled(2)
    assert pointer.find_version(CALL, CURRENT) == f"{2:032x}"
    for missing in (STABLE, VersionId("current"), VersionId("2")):
        with pytest.raises(SecretNotFoundError):
            pointer.find_version(CALL, missing)


def test_what_is_off_is_neither_read_nor_labelled_and_what_is_labelled_is_not_switched_off():
    first, second = VersionId(f"{1:032x}"), VersionId(f"{2:032x}")
    with pytest.raises(ConflictError, match="current"):
        filled(2).without_value(CALL, second)
    pointer = filled(2).without_value(CALL, first)
    assert pointer.without_value(CALL, first) is pointer
    with pytest.raises(VersionDisabledError):
        pointer.find_version(CALL, first)
    with pytest.raises(VersionDisabledError):
        pointer.with_label(CALL, STABLE, first, None)


def test_humans_see_the_labels_in_at_most_fifteen_tags():
    first = VersionId(f"{1:032x}")
    crowded = replace(filled(1), labels=MappingProxyType({Label(f"label{n}"): first for n in range(40)}))
    for pointer in (crowded, crowded.with_version(CURRENT, ITSELF, entry())):
        assert len(tags_of(pointer)) <= 15
    assert tags_of(replace(filled(1), epoch=4)) == {
        "goatherd-epoch": "4",
        "goatherd-parent": "none",
        "label-current": first,
    }
