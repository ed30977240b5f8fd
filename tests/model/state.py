"""The parts of a state, and how a state is encoded as one integer. Data only."""

from __future__ import annotations

from typing import Any, NamedTuple

from goatherd.rotation.machine import Goal

from .anchors import Choice


class Node(NamedTuple):
    """One server.

    Attributes:
        version: The version of the document in use; it signs with that one's current root.
        introductions, crosses: Bits by rotation: which introductions its log holds.
        unbelieved: Those of `introductions` that it has stored and does not act on until it restarts.
        is_listed: Whether the rotation knows of it.
        is_dead: The node has stopped, and does not start again.
        earlier: Bits by pair: which introductions of earlier roots by the root that signs its log holds.
    """

    version: int
    introductions: int = 0
    crosses: int = 0
    unbelieved: int = 0
    is_listed: bool = True
    is_dead: bool = False
    earlier: int = 0


class Run(NamedTuple):
    """One run of the rotator.

    Attributes:
        origin: The root that it was asked to replace.
        bound: The rotation that it drives, or 0.
        own: The rotation that it has begun itself, until it is bound to it; or 0.
        highest: The highest generation that the run has read, where that matters.
        pending: The decided action that was not performed yet.
        aim: The earlier root that it was asked to restore, until it is bound to the rotation; or `NONE`.
        choice: What it does about the anchor, until it is bound to the rotation.
    """

    goal: Goal
    origin: int
    bound: int = 0
    own: int = 0
    highest: int = 0
    pending: tuple[Any, ...] | None = None
    aim: int = -1
    choice: Choice = Choice.KEEP


class Move(NamedTuple):
    """One change. `what` is for the story; `broken` names a rule that the change itself breaks."""

    store: int
    group: int
    """Nodes after a node's move, operators after an operator's."""
    sent: int
    signed: int
    broken: str | None
    what: tuple[Any, ...]


class Table:
    """Numbers for values, so that a state is one number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self.values)
            self.values.append(value)
        return found


ROOTS = 4
"""Roots that rotations can make or replace; the intruder's is none of them."""
SENT_BITS, SIGNED_BITS, GROUP_BITS = 6 + ROOTS * ROOTS, 5, 22
NODES_AT = SENT_BITS + SIGNED_BITS
OPERATORS_AT = NODES_AT + GROUP_BITS
STORE_AT = OPERATORS_AT + GROUP_BITS
GROUP_MASK, SENT_MASK, SIGNED_MASK = (1 << GROUP_BITS) - 1, (1 << SENT_BITS) - 1, (1 << SIGNED_BITS) - 1


def pack(store: int, operators: int, nodes: int, sent: int, signed: int) -> int:
    """Return a state as one number."""
    return ((store << GROUP_BITS | operators) << GROUP_BITS | nodes) << NODES_AT | sent << SIGNED_BITS | signed


def introduced(rotation: int) -> int:
    """Return the bit for "the introduction of this rotation's next root has been pushed"."""
    return 1 << rotation - 1


def crossed(rotation: int) -> int:
    """Return the bit for "the cross-signature of this rotation has been pushed"."""
    return 1 << rotation + 2


def pair(root: int, signer: int) -> int:
    """Return the bit for "the introduction of this earlier root by this one"."""
    return 1 << signer * ROOTS + root


def earlier(root: int, signer: int) -> int:
    """Return the bit for "the introduction of this earlier root by this one has been pushed"."""
    return pair(root, signer) << 6


def pairs(mask: int) -> list[tuple[int, int]]:
    """Return (root, signer) for each bit of `pair`."""
    return [(at % ROOTS, at // ROOTS) for at in range(mask.bit_length()) if mask >> at & 1]
