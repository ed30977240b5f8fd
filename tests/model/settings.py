"""The options of a world, and the protections that are removed from it. Data only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from goatherd.rotation.machine import Evidence, Goal, Intent, Observation, Step

from .anchors import Choice
from .store import Alteration, Theft

Lie = Callable[[Observation, Intent, int], tuple[Observation, Intent, int]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """One world: its size, the guarantees of its store, and what may happen in it.

    Attributes:
        nodes, unlisted: How many nodes the rotation knows, and how many it does not.
        operators: How many runs there may be at once; each may end or crash and be followed by another, indefinitely.
        rotations: How many rotations may be prepared in all.
        goals: What an operator may ask for.
        stale_reads: A read may show anything that was ever there (`ReadConsistency.EVENTUAL`); else the last write.
        two_writers_win: Once, two writers with the same `expected` both win (a failing store with `best_effort_cas`).
        nodes_forget: A node that restarts does not remember what it has seen (no ``seen`` file).
        unmodified_nodes: A node may store an introduction and act on it only after a restart, as GoatDB can.
        nodes_that_stop: How many nodes may stop permanently.
        nodes_reject: A node may reject the document for a reason of its own, at any time.
        quorum: How many nodes are enough once the deadline has passed; None for all.
        retires_keys: The grace period may pass, and operators may retire keys.
        wrong_clocks: Whenever an operator observes the nodes, its clock may be days wrong, which the store's shows, and
            a phase may have been recorded in the future.
        foreign_labels: An operator or another tool may put a label of its own on one version, and remove it again.
        prunes_at_once: Earlier roots leave the document as soon as every node holds their introduction, without a grace
            period.
        begins_with_node_left_out: The first state is that after a roll-back of a rotation that a quorum completed
            without the last node, which lacks the introduction of B. B has signed.
        begins_after_root_has_left: The first state is that after two rotations, when A has left the document; only A's
            introductions remain.
        alterations: What a writer without a root's key may alter, once: what no chain of endorsements covers. It keeps
            or removes the signature; operators may restore the signed version.
        begins_unsigned: The first identity is one of Goatherd 0.1.0, which no root has signed.
        has_intruder: Once, a writer without a root's key makes a root of its own sign.
        store_goes_back: Once, the store goes back to what it held at any earlier time, and gives version ids again.
        anchor_choices: What operators who rotate may do about the anchor; nothing where no document has one.
        begins_with_anchor: The first identity has an anchor.
        signers_stop: The signers of anchors may stop answering permanently. Each call of them may fail in any world.
        anchor_revokes: Once, the anchor revokes the working root.
        thefts: What an attacker with the working root's key and write access to the store may do, once.
        must_reach_steady: From every state, steady must be reachable.
    """

    nodes: int
    operators: int
    unlisted: int = 0
    rotations: int = 1
    goals: tuple[Goal, ...] = (Goal.ROTATE, Goal.RESUME, Goal.ABANDON)
    stale_reads: bool = False
    two_writers_win: bool = False
    nodes_forget: bool = False
    unmodified_nodes: bool = False
    nodes_that_stop: int = 0
    nodes_reject: bool = True
    quorum: int | None = None
    retires_keys: bool = False
    wrong_clocks: bool = False
    foreign_labels: bool = False
    prunes_at_once: bool = False
    begins_with_node_left_out: bool = False
    begins_after_root_has_left: bool = False
    alterations: tuple[Alteration, ...] = ()
    begins_unsigned: bool = False
    has_intruder: bool = False
    store_goes_back: bool = False
    anchor_choices: tuple[Choice, ...] = (Choice.KEEP,)
    begins_with_anchor: bool = False
    signers_stop: bool = False
    anchor_revokes: bool = False
    thefts: tuple[Theft, ...] = ()
    must_reach_steady: bool = True


@dataclass(frozen=True, kw_only=True)
class Removed:
    """The removed protections. Without arguments: none.

    Attributes:
        gates: Evidence that a step no longer asks for; the real `GATES` is changed while the world is explored.
        lie: Replaces the arguments of the real `decide` by false ones.
        blind: Actions done without compare-and-swap: ``prepare``, ``advance``, ``abandon``, ``label``, ``prune``.
        protections: Others by name; see `PROTECTIONS`.
    """

    gates: Mapping[Step, tuple[Evidence, ...]] = field(default_factory=dict)
    lie: Lie | None = None
    blind: frozenset[str] = frozenset()
    protections: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.protections - set(PROTECTIONS)
        assert not unknown, unknown


PROTECTIONS = {
    "generation": "a node compares the generation with the one in use",
    "succession": "a node requires a chain of endorsements",
    "grown documents": "a node rejects a document that has not grown from the one in use",
    "lost roots": "a node rejects a document that lacks a root for no known reason",
    "document signature": "a node rejects a document whose signature by its root is invalid",
    "no unsigned document after a signed one": "a node that has used a signed document rejects unsigned ones",
    "possible generations": "a node rejects a generation that no rotation can have led to",
    "unaltered base": "a run does not build on a document that was altered without the key",
    "servers' histories": "no run begins while a node has used a state from which the store's has not grown",
    "roots after roll-back": "a roll-back keeps the list of roots",
    "roots after cancel": "cancelling a published rotation keeps the list of roots",
    "roots after a cancelled restore": "cancelling a restore leaves the earlier root among the roots",
    "restored root is listed": "a restore of a root that has left the document lists it again",
    "one private key": "activation removes the earlier private key from the document",
    "one change of signer": "no step but activate and a roll-back changes which root signs",
    "labels read together": "current and stable are read in one state of the labels",
    "highest generation read": "a run accepts no generation below the highest that it has read",
    "own rotation is recognized": "a run recognizes the rotation that it began, even if it is over already",
    "label guard": "the store destroys no labelled version",
    "recorded times": "a phase counts from the first read of it, if that is earlier than recorded",
    "published first": "published is written before the introduction is pushed",
    "signed first": "a rotation collects every signature of the anchor before it writes",
    "signature check": "a rotation uses no signature of the anchor that it has not verified",
    "no later signature": "no step after the first one asks the anchor to sign",
    "no signature to go on": "a rotation that has begun can continue, and not only roll back, without the anchor",
    "no signature for a restore": "a restore needs no signature of the anchor",
    "nodes ask no signer": "a node asks no signer of an anchor",
    "endorsed to sign again": "a restore accepts only a root that the anchor has endorsed",
    "anchor's roll-back is signed": "a new anchor signs at once that its predecessor may replace it in a roll-back",
    "old anchor endorses next root": "a replaced anchor also endorses the next root, which stays listed in any case",
    "revocation keeps signatures": "a revocation by a new anchor keeps the previous anchor's signatures",
    "anchor's roll-back ends": "a new anchor's signature for a roll-back is invalid once the rotation has ended",
    "anchor": "a node that knows an anchor follows only what that anchor has signed",
    "change of the anchor": "a node accepts another anchor only if the known one has signed that",
    "working roots endorse none": "a node that knows an anchor ignores working roots' endorsements of other roots",
    "signed revocations": "a node that knows an anchor rejects a revocation that the anchor has not signed",
}
