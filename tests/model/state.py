"""The parts of a state, and how a state is encoded as one integer. Data only."""

from __future__ import annotations

from typing import Any, NamedTuple

from goatherd.rotation.machine import Goal

from .anchors import Choice


class Node(NamedTuple):
    """One server.

    Attributes:
        version: The version of the document in use; the node signs with the current root of that document.
        introductions, cross_signatures: Bits by rotation: the introductions of the next root, and of the earlier root
            by the next one, that its log holds.
        deferred: The part of `introductions` on which the node acts only after a restart.
        is_listed: Whether the rotation knows this node.
        is_dead: The node has stopped, and does not start again.
        earlier: Bits by `pair`: the introductions of earlier roots by a later root that its log holds.
    """

    version: int
    introductions: int = 0
    cross_signatures: int = 0
    deferred: int = 0
    is_listed: bool = True
    is_dead: bool = False
    earlier: int = 0


class Run(NamedTuple):
    """One run of the rotator.

    Attributes:
        goal: What it was asked to do.
        origin: The root that it was asked to replace.
        drives: The rotation that it drives, or 0.
        begun: The rotation that it has written to the store and not read back yet, or 0. Then `drives` names it.
        highest_generation: The highest generation that it has read, in worlds where that matters.
        pending: The action that `decide` has returned and that was not performed yet.
        restores: The earlier root that it was asked to restore, or `NONE`; `NONE` once it drives the rotation.
        choice: Whether it keeps, sets or removes the anchor; `KEEP` once it drives the rotation.
    """

    goal: Goal
    origin: int
    drives: int = 0
    begun: int = 0
    highest_generation: int = 0
    pending: tuple[Any, ...] | None = None
    restores: int = -1
    choice: Choice = Choice.KEEP


class Move(NamedTuple):
    """One change of the state.

    Attributes:
        store: The number of the store after it.
        group: The number of the nodes after a node's move, of the operators after an operator's.
        sent: Bits: what was pushed; see `introduced`, `crossed` and `earlier`.
        signed: Bits: the roots that have signed a commit.
        broken: The rule that the change itself breaks, or None.
        what: What happened, for the story.
    """

    store: int
    group: int
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
