"""What must hold in every state, each rule under a name of its own.

What it is: the invariants of a rotation as predicates over a state of `world`. What it is not: rules of the
model. Some harm can only be seen in the change itself (a write that drops another one, a node that goes back); `World`
names it in `Move.broken`, and its rules are in `RULES` too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from goatherd.rotation.machine import Phase

from .state import GROUP_BITS, GROUP_MASK, NODES_AT, SIGNED_BITS, SIGNED_MASK, STORE_AT, Node
from .store import INTRUDER, NONE, Alteration, Document, Store, bits
from .world import World

RULES = {
    "one signer": "at most one signer is current in the store",
    "trust": "every node trusts the signer of every commit that any node has accepted",
    "introduced": "once a root has signed, every node's log holds its introduction",
    "signer listed": "a root that has signed stays among the document's roots until it is pruned",
    "introduced listed": "a root that was introduced to a node stays among the document's roots until it is pruned",
    "pruned trusted": "a root that has signed and was pruned is trusted by every listed node through its own log",
    "private keys": "no private key is outside currentSession and nextSession",
    "generation": "the generation only rises: in the store, and in a node that runs",
    "grown document": "a node adopts only a document that has grown from the one that it uses",
    "lost root": "a node adopts no document that lacks a root that has signed, to its knowledge, unless it was pruned",
    "unaltered": "a node that has used a signed document adopts only documents that their root has signed",
    "possible generation": "a node adopts no generation that no rotation can have led to",
    "anchored": "a node that knows an anchor follows no root, anchor or revocation that a working root alone has named",
    "signed first": "no run begins a rotation without every signature of the anchor that it needs",
    "no signer": "no node needs a signer of an anchor, and a run needs one only to begin a rotation",
    "signed over": "once a signed document was stored, no run signs a document that was altered without the key",
    "store went back": "no run begins while a listed node has used a state from which the store's has not grown",
    "lost write": "a committed write is never lost",
    "roll-back possible": "while a roll-back is possible, label stable is on a readable version with the earlier key",
    "cross-signed": "once a rotation is verified, every node holds the earlier root's introduction by the new one",
    "adopted": "once a rotation is verified, every node signs with the new root",
    "own rotation": "no run changes a rotation that it was not asked to drive",
    "restarts": "a rotation changes the root that signs once, or twice if rolled back; no server restarts more often",
    "all answered": "a rotation begins only after every listed server, or the declared quorum, has answered",
    "root as asked": "a run replaces the root that it was asked to replace, no other",
    "one rotation a run": "a run begins one rotation at most",
    "true report": "a run reports only the true outcome",
    "foreign labels": "no version is destroyed while another tool's label points at it",
    "run ends": "a run decides on no change that the store would reject, and does not wait after its deadline",
    "last key": "the private key of a root that has signed is destroyed only after the grace period",
    "cancelled key": "a run that reports a cancelled rotation has destroyed the versions that were written for it",
    "steady": "from every state, steady can be reached",
}
"""The rules by name. Docs print this table."""


class Judge:
    """Finds the rule that a state breaks. One for each world: results are cached by parts of states.

    Args:
        world: The world.
        allowed: Rules that are not checked.
    """

    def __init__(self, world: World, allowed: frozenset[str] = frozenset()) -> None:
        self.world, self._allowed = world, allowed
        self._stores: dict[int, str | None] = {}
        self._nodes: dict[int, str | None] = {}

    def __call__(self, state: int) -> str | None:
        """Return the first rule that is broken, or None."""
        number = state >> STORE_AT
        if number not in self._stores:
            self._stores[number] = self._first(self._of_store(self.world.stores.values[number]))
        if self._stores[number] is not None:
            return self._stores[number]
        nodes, signed = state >> NODES_AT & GROUP_MASK, state & SIGNED_MASK
        key = (number << GROUP_BITS | nodes) << SIGNED_BITS | signed
        if key not in self._nodes:
            store: Store = self.world.stores.values[number]
            self._nodes[key] = self._first(self._of_nodes(store, self.world.nodes.values[nodes], signed))
        return self._nodes[key]

    def _first(self, broken: Iterator[str]) -> str | None:
        return next((rule for rule in broken if rule not in self._allowed), None)

    def _of_store(self, store: Store) -> Iterator[str]:
        heads = [store.docs[head] for head in store.heads]
        if len({head.current for head in heads}) > 1:
            yield "one signer"
        for head in heads:
            if head.private != 1 << head.current | (0 if head.next == NONE else 1 << head.next):
                yield "private keys"
            if head.base != NONE and head.generation <= _last_possible(store, head.base):
                yield "generation"
            if not self._has_way_back(store, head):
                yield "roll-back possible"
            if not store.is_invaded and self._changes_too_often(store, head):
                yield "restarts"

    @staticmethod
    def _changes_too_often(store: Store, head: Document) -> bool:
        """Whether a rotation, or a write outside of one, has changed too often which root signs.

        A server under the agent goes through the documents in this order, and restarts where the root changes.
        """
        changes: Counter[int] = Counter()
        at = head
        while at.base != NONE:
            before = store.docs[at.base]
            changes[at.rotation or before.rotation] += at.current != before.current
            at = before
        back = head.ended & ~head.finished & ~head.cancelled
        return any(
            count > (0 if not rotation or head.cancelled >> rotation & 1 else 1 + (back >> rotation & 1))
            for rotation, count in changes.items()
        )

    @staticmethod
    def _has_way_back(store: Store, head: Document) -> bool:
        if head.phase is Phase.STEADY:
            return not any(
                store.destroyed >> version & 1 for version in (*store.heads, store.stable) if version != NONE
            )
        earlier = store.docs[head.rollback]
        return (
            # Where two writers may win, the label may go to what one of them wrote in vain; the version stays readable.
            (store.stable == head.rollback or store.is_forked)
            and not store.destroyed >> head.rollback & 1
            and bool(earlier.private >> head.origin & 1)
        )

    def _of_nodes(self, store: Store, group: tuple[Node, ...], signed: int) -> Iterator[str]:
        listed = [node for node in group if node.is_listed]
        revoked = store.head.revoked if self.world.options.anchor_revokes else 0
        for node in listed:
            if signed & ~revoked & ~self.world.trusted(store, node):
                yield "trust"
            # Bit 0 is A, that no root has introduced; the intruder's root has no introduction either.
            if signed & ~_introduced(store, node) & ~1 & ~(1 << INTRUDER):
                yield "introduced"
        if store.is_invaded or any(store.docs[at].altered for at in store.heads):
            return  # nodes do not follow it, and operators take it back
        for head in (store.docs[at] for at in store.heads):
            if signed & ~head.roots & ~head.pruned:
                yield "signer listed"
            if any(_introduced(store, node) & ~head.roots & ~head.pruned for node in group) and not store.is_forked:
                yield "introduced listed"
            # Checked with the next document of the node, because the present one may still list the root.
            late = [self.world.trusted(store, node._replace(version=at)) for node in listed for at in store.heads]
            if any(signed & head.pruned & ~trusted for trusted in late):
                yield "pruned trusted"
            yield from self._of_verified(store, head, listed)

    def _of_verified(self, store: Store, head: Document, listed: list[Node]) -> Iterator[str]:
        verified = head.finished | (1 << head.rotation if head.phase is Phase.VERIFIED else 0)
        for rotation in bits(verified):
            if not all(node.cross_signatures >> rotation & 1 for node in listed):
                yield "cross-signed"
        since = head
        while since.base != NONE and store.docs[since.base].current == head.current:
            since = store.docs[since.base]
        is_verified = bool(since.rotation and verified >> since.rotation & 1)
        is_expected = is_verified and not self.world.options.nodes_forget and not store.is_forked
        if is_expected and any(store.docs[node.version].generation < since.generation for node in listed):
            yield "adopted"


def _last_possible(store: Store, version: int) -> int:
    """Return the highest generation that a version, or what it was altered from, can have been led to."""
    document = store.docs[version]
    return store.docs[document.base].generation if document.altered is Alteration.GENERATION else document.generation


def _introduced(store: Store, node: Node) -> int:
    """Return the roots whose introduction by a rotation that led to them a node's log holds."""
    return sum({1 << store.target_of(rotation) for rotation in bits(node.introductions)})


def is_steady(world: World, state: int) -> bool:
    """Whether nothing is in progress: no rotation, no run, stable on the current version, all live nodes with it."""
    store, runs, group, _, _ = world.unpack(state)
    return (
        len(store.heads) == 1
        and store.head.phase is Phase.STEADY
        and store.stable == store.heads[0]
        and not any(runs)
        and all(node.is_dead or node.version == store.heads[0] for node in group)
    )
