"""The anchor in the model: what it has signed, and what a node that knows it follows.

What it is: `goatherd.identity.anchor` and the anchored half of `goatherd.identity.succession` as abstract records;
test_model_matches.py holds them against the real ones. What it is not: the rest of a document (`store`).

Anchors are roots with numbers of their own, K and L. Their signatures cannot be forged, but copied: a client that can
read the store has each that was ever written there.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from goatherd.identity.anchor import KEPT_CHANGES
from goatherd.rotation.anchor_keys import ROLL_BACK_WRITES

NO_ANCHOR = -1
K, L = 5, 6
THIEFS = 7
"""The anchor that a thief brings; its key is the thief's own."""

Pair = tuple[int, int]


class Choice(StrEnum):
    """A rotation's choice about the anchor (`goatherd.rotation.anchor_keys.AnchorChoice`)."""

    KEEP = "keep the anchor"
    SET = "another anchor"
    REMOVE = "no anchor"


class Change(NamedTuple):
    """`goatherd.identity.anchor.AnchorChange`: `by` says that `to` is the anchor, or that `root` needs none."""

    by: int
    to: int = NO_ANCHOR
    root: int = NO_ANCHOR
    until: int | None = None

    def counts_at(self, generation: int) -> bool:
        return self.until is None or generation <= self.until


class Anchoring(NamedTuple):
    """What a document records about its anchor.

    Attributes:
        anchor: The anchor, or `NO_ANCHOR`.
        next: The anchor once the next root signs.
        changes: The statements that pass the role to another anchor.
        earlier: The endorsements (by, of) of roots that signed before that anchor; they may not sign again under it.
        is_whole: Whether all signatures of anchors that the rotation needs are there, and valid.
        is_changing: Whether the rotation in progress changes the anchor.
    """

    anchor: int = NO_ANCHOR
    next: int = NO_ANCHOR
    changes: tuple[Change, ...] = ()
    earlier: frozenset[Pair] = frozenset()
    is_whole: bool = True
    is_changing: bool = False

    def at(self, generation: int) -> Anchoring:
        """Return the part of it that still counts in a document of this generation."""
        kept = tuple(one for one in self.changes if one.counts_at(generation))
        return self if kept == self.changes else self._replace(changes=kept)

    def chosen(self, choice: Choice) -> int:
        """Return the anchor after a rotation."""
        if choice is Choice.KEEP:
            return self.anchor
        return NO_ANCHOR if choice is Choice.REMOVE else L if self.anchor == K else K

    def lasting(self, anchor: int, over: tuple[Change, ...] = ()) -> tuple[Change, ...]:
        """Return the changes that stay after a rotation that has ended with this anchor.

        Of the permanent ones that it has signed itself, none counts.
        """
        permanent = [one for one in self.changes if one.until is None and one.by != anchor][-KEPT_CHANGES:]
        return tuple(one for one in self.changes if one in permanent or (one.until is not None and one not in over))

    def introducing(self) -> int:
        """Return, as bits, the roots that count as anchors (`IdentityDocument.introducing_anchor_ids`)."""
        found = {self.anchor, self.next}
        for one in self.changes:
            found |= {one.by, one.to} if one.until is None else set()
        return sum(1 << one for one in found if one != NO_ANCHOR)

    def ways_back(self) -> tuple[Change, ...]:
        return tuple(one for one in self.changes if one.by == self.next and one.until is not None)

    def finalized(self) -> Anchoring:
        changes = self.lasting(self.anchor, self.ways_back())
        return self._replace(next=self.anchor, changes=changes, is_changing=False)

    def cancelled(self) -> Anchoring:
        changes = self.lasting(self.anchor, self.ways_back()[-1:])
        return self._replace(next=self.anchor, changes=changes, is_changing=False)

    def rolled_back(self, before: Anchoring) -> Anchoring:
        changes = self.lasting(before.anchor)
        return self._replace(anchor=before.anchor, next=before.anchor, changes=changes, is_changing=False)


def asked_to_sign(before: Anchoring, choice: Choice) -> tuple[int, ...]:
    """Return the anchors whose signatures a rotation needs before anything is written."""
    return tuple(one for one in dict.fromkeys((before.chosen(choice), before.anchor)) if one != NO_ANCHOR)


def with_word(
    before: Anchoring, endorsed: tuple[Pair, ...], *, current: int, target: int, choice: Choice, generation: int
) -> tuple[Anchoring, tuple[Pair, ...]]:
    """Return what a prepared document records about the anchor, and all its endorsements (`transitions._with_word`).

    Args:
        before: The same of the document before.
        endorsed: Its endorsements.
        current, target: The root that signs, and the next one.
        choice: What the rotation does about the anchor.
        generation: The generation of the prepared document.
    """
    old, new = before.anchor, before.chosen(choice)
    until = generation + ROLL_BACK_WRITES
    signed: tuple[Pair, ...] = ((old, target),)
    earlier: frozenset[Pair] = frozenset()
    changes: tuple[Change, ...] = ()
    if choice is Choice.REMOVE:
        changes = (Change(by=old, root=target),)
    elif choice is Choice.SET and old == NO_ANCHOR:
        signed, earlier = ((new, target), (new, current)), frozenset({(new, current)})
        changes = (Change(by=new, root=current, until=until),)
    elif choice is Choice.SET:
        signed, earlier = ((new, target), (old, new), (old, target), (new, old)), frozenset({(new, old)})
        changes = (Change(by=old, to=new), Change(by=new, to=old, until=until))
    pairs = (*(one for one in endorsed if one not in signed), *signed)
    if old == NO_ANCHOR and (current, new) not in pairs:
        pairs = (*pairs, (current, new))
    after = Anchoring(
        old,
        new,
        (*before.changes, *changes),
        before.earlier - set(signed) | earlier,
        is_changing=choice is not Choice.KEEP,
    )
    return after.at(generation), pairs


def find_anchors(anchoring: Anchoring, known: int, listed: int, generation: int) -> tuple[int, int]:
    """Return, as bits, the anchors to which the role of a known one passes, and the roots that need none.

    `goatherd.identity.succession.find_anchors`.

    Args:
        anchoring: What the new document says.
        known: The anchor of the identity in use.
        listed: Bits: the roots of the new document that are not revoked.
        generation: The generation of the new document.
    """
    anchors, released = 1 << known, 0
    while True:
        before = anchors
        for one in anchoring.changes:
            if one.counts_at(generation) and anchors >> one.by & 1:
                anchors |= 1 << one.to & listed if one.to != NO_ANCHOR else 0
                released |= 1 << one.root & listed if one.root != NO_ANCHOR else 0
        if anchors == before:
            return anchors, released
