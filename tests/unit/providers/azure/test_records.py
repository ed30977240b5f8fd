"""Which of the proposals every reader considers decided at every time; and how values and pointers are stored."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.errors import ConflictError
from goatherd.providers.azure.client import StoredSecret
from goatherd.providers.azure.records import (
    BEGINNING,
    MAX_STORED,
    MAX_VALUE,
    MOST_DESTROYED,
    TEXT_TYPE,
    Pointer,
    Proposal,
    Shown,
    decide_proposals,
    decode_pointer,
    decode_value,
    encode_pointer,
    encode_value,
    proposal_tags,
)
from goatherd.providers.base import Call
from goatherd.providers.values import CURRENT, STABLE, SecretBytes, VersionId
from goatherd.providers.versioned_record import DamagedRecordError

SETTLE = 3
CALL = Call(provider="azure", secret_id="root", operation="write")
ONE, TWO = (VersionId(f"{number:032x}") for number in (1, 2))
POINTER = Pointer(labels=MappingProxyType({CURRENT: TWO, STABLE: ONE}), destroyed=(VersionId(f"{3:032x}"),))


def proposal(number: int, created: int, parent: Proposal = BEGINNING) -> Proposal:
    made = Proposal.from_tags(f"{number:032x}", created, proposal_tags(parent, f"request {number}"))
    assert made is not None
    return made


def test_no_repr_of_a_stored_secret_shows_its_value():
    assert "the value" not in f"{StoredSecret(version='1', created=0, value='the value')!r}"


def test_the_earliest_wins_and_of_those_with_the_same_second_the_highest_id():
    late, low, high = proposal(9, 101), proposal(1, 100), proposal(2, 100)
    assert decide_proposals([late, low, high], now=200, settle=SETTLE).last is high


def test_nothing_is_decided_while_an_earlier_one_could_still_appear():
    one = proposal(1, 100)
    young = decide_proposals([one], now=102, settle=SETTLE)
    assert (young.last, young.pending) == (BEGINNING, one)
    old = decide_proposals([one], now=103, settle=SETTLE)
    assert (old.last, old.pending) == (one, None)


def test_who_follows_a_loser_is_lost_too():
    winner, loser = proposal(1, 100), proposal(2, 101)
    follows_loser, follows_winner = proposal(3, 105, loser), proposal(4, 106, winner)
    decision = decide_proposals([follows_loser, loser, follows_winner, winner], now=200, settle=SETTLE)
    assert decision.chain == (BEGINNING, winner, follows_winner)


def test_a_proposal_that_skips_an_epoch_does_not_count():
    first = proposal(1, 100)
    skipping = replace(proposal(2, 110, first), epoch=7)
    assert decide_proposals([first, skipping], now=200, settle=SETTLE).last is first


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
        last = draw(st.sampled_from(decide_proposals(seen, now=now // 10, settle=SETTLE).chain[::-1]))
        stored = now + draw(st.integers(0, 80))
        listed.append((proposal(number, stored // 10, last), stored + draw(st.integers(0, 20))))
    return listed


@given(histories())
def test_what_one_observer_finds_decided_every_later_one_finds_too(history: list[tuple[Proposal, int]]):
    before: tuple[Proposal, ...] = (BEGINNING,)
    for now in range(1000, 1700, 2):
        seen = [each for each, since in history if since <= now]
        after = decide_proposals(seen, now=now // 10, settle=SETTLE).chain
        assert after[: len(before)] == before
        before = after


@pytest.mark.parametrize("removed", proposal_tags(BEGINNING, "r"))
def test_the_tags_say_what_a_proposal_follows_and_without_one_of_them_it_is_none(removed: str):
    first = proposal(1, 100)
    tags = proposal_tags(first, "r")
    assert Proposal.from_tags("2", 101, tags) == Proposal(id="2", created=101, epoch=2, parent=first.id, request="r")
    assert all(proposal_tags(BEGINNING, "r").values()), "a store may refuse an empty tag"
    del tags[removed]
    assert Proposal.from_tags("2", 101, tags) is None


def test_the_tags_of_a_view_come_back_and_without_one_of_them_it_shows_nothing():
    shown = Shown(pointer="a", epoch=7, version=ONE, created=100)
    assert Shown.from_tags(shown.tags) == shown
    for removed in shown.tags:
        assert Shown.from_tags({name: tag for name, tag in shown.tags.items() if name != removed}) is None


@pytest.mark.parametrize(
    "text", ['{"a": "Zürich 羊"}', "a\nb\tc\n", " x", '"no\u00a0break, \U0001f469\u200d\U0001f4bb, new\u2028line"']
)
def test_text_is_stored_as_it_is_so_that_people_can_read_it(text: str):
    assert encode_value(SecretBytes(text.encode())) == (text, TEXT_TYPE)


@given(st.binary(min_size=1, max_size=300) | st.text(min_size=1, max_size=100).map(str.encode))
def test_any_bytes_come_back(raw: bytes):
    value = SecretBytes(raw)
    stored, kind = encode_value(value)
    assert decode_value(stored, kind) == value
    assert stored.isascii() or kind == TEXT_TYPE


def test_the_longest_value_fits_whatever_it_is():
    assert len(encode_value(SecretBytes(bytes([255]) * MAX_VALUE))[0]) == MAX_STORED


def test_a_pointer_comes_back_as_it_was():
    assert decode_pointer(encode_pointer(POINTER)) == POINTER
    many = Pointer(destroyed=tuple(VersionId(f"{number:032x}") for number in range(MOST_DESTROYED)))
    assert len(encode_pointer(many)) < MAX_STORED / 2


@given(st.data())
def test_a_pointer_of_which_anything_changed_is_damaged(data: st.DataObject):
    stored = encode_pointer(POINTER)
    at = data.draw(st.integers(0, len(stored) - 1))
    changed = stored[:at] + data.draw(st.characters(codec="ascii").filter(lambda c: c != stored[at])) + stored[at + 1 :]
    with pytest.raises(DamagedRecordError):
        decode_pointer(changed)


@pytest.mark.parametrize("stored", ["", "x", "null", "[]", "{}", '{"format":"goatherd-azure-pointer/2"}'])
def test_what_is_not_a_pointer_is_damaged(stored: str):
    with pytest.raises(DamagedRecordError):
        decode_pointer(stored)


@pytest.mark.parametrize("member", ["labels", "destroyed", "sha256"])
@pytest.mark.parametrize("junk", [None, 5, "x", [5], {"a": 5}])
def test_a_member_that_is_missing_or_of_another_type_is_damage(member: str, junk: object):
    whole = json.loads(encode_pointer(POINTER))
    for changed in ({**whole, member: junk}, {name: whole[name] for name in whole if name != member}):
        with pytest.raises(DamagedRecordError):
            decode_pointer(json.dumps(changed, sort_keys=True, separators=(",", ":")))


def test_what_is_labelled_is_not_destroyed_and_only_the_last_destroyed_ones_are_remembered():
    with pytest.raises(ConflictError, match="current"):
        POINTER.without_version(CALL, TWO)
    pointer = POINTER.without_label(STABLE).without_version(CALL, ONE)
    assert pointer.without_version(CALL, ONE) is pointer
    for number in range(10, 10 + MOST_DESTROYED):
        pointer = pointer.without_version(CALL, VersionId(f"{number:032x}"))
    assert pointer.destroyed == tuple(f"{number:032x}" for number in range(10, 10 + MOST_DESTROYED))
