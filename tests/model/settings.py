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
        nodes, unlisted: Nodes that the rotation knows, and nodes that it does not.
        operators: How many runs there may be at once; each may end or crash and be followed by another, indefinitely.
        rotations: How many rotations may be prepared in all.
        goals: What an operator may ask for.
        stale_reads: A read may show anything that was ever there (`ReadConsistency.EVENTUAL`); else the last write.
        forks: Once, two writers with the same `expected` both win (a store with `best_effort_cas` that is not well).
        forgets: A node that restarts does not remember what it has seen (no ``seen`` file).
        unmodified: A node may store an introduction without believing it until it restarts, as GoatDB can.
        deaths: How many nodes may stop permanently.
        refusals: A node may refuse the document for a reason of its own, at any time.
        quorum: How many nodes are enough once the deadline has passed; None for all.
        retires: Time may pass the grace period, and operators may retire.
        clocks: At any look, an operator's clock may be days wrong, which the store's shows, and a phase may have
            been recorded in the future.
        labels: An operator or another tool may put a label of its own on any one version, and take it off again.
        prunes: Earlier roots leave the document as soon as every node holds their introduction, without a grace period.
        left_out: It begins when a first rotation was rolled back that a quorum had led on without the last node: that
            one lacks the introduction of B, which has signed.
        has_left: It begins after two rotations, when A has left the document: only its introductions are left of it.
        alters: What a writer without a root's key may do once: alter what no chain
            covers, and keep or remove the signature; operators may restore the signed version.
        unsigned: It begins with an identity of Goatherd 0.1.0, which no root has signed.
        intruder: A writer without a root's key writes once.
        restores: Once, the store goes back to what it held at any earlier time, and gives version ids again.
        choices: What operators who rotate may do about the anchor; nothing where no document has one.
        has_anchor: It begins with an identity that has an anchor.
        mutes: The signers of anchors may stop answering permanently. Each call of them may fail anyhow.
        revokes: Once, the anchor revokes the working root.
        thefts: What an attacker with the working root's key and write access to the store may do, once.
        liveness: Whether from every state there must be a way to steady.
    """

    nodes: int
    operators: int
    unlisted: int = 0
    rotations: int = 1
    goals: tuple[Goal, ...] = (Goal.ROTATE, Goal.RESUME, Goal.ABANDON)
    stale_reads: bool = False
    forks: bool = False
    forgets: bool = False
    unmodified: bool = False
    deaths: int = 0
    refusals: bool = True
    quorum: int | None = None
    retires: bool = False
    clocks: bool = False
    labels: bool = False
    prunes: bool = False
    left_out: bool = False
    has_left: bool = False
    alters: tuple[Alteration, ...] = ()
    unsigned: bool = False
    intruder: bool = False
    restores: bool = False
    choices: tuple[Choice, ...] = (Choice.KEEP,)
    has_anchor: bool = False
    mutes: bool = False
    revokes: bool = False
    thefts: tuple[Theft, ...] = ()
    liveness: bool = True


@dataclass(frozen=True, kw_only=True)
class Removed:
    """The removed protections. Without arguments: none.

    Attributes:
        gates: Evidence that a step no longer asks for; the real `GATES` is changed while the world is explored.
        lie: Changes the arguments of the real `decide`.
        blind: Actions done without compare-and-swap: ``prepare``, ``advance``, ``abandon``, ``label``, ``prune``.
        parts: Other protections by name; see `PARTS`.
    """

    gates: Mapping[Step, tuple[Evidence, ...]] = field(default_factory=dict)
    lie: Lie | None = None
    blind: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.parts - set(PARTS)
        assert not unknown, unknown


PARTS = {
    "generation": "a node compares the generation with the one in use",
    "succession": "a node requires a chain of endorsements",
    "lineage": "a node rejects a document that has not grown from the one in use",
    "lost roots": "a node rejects a document that lacks a root for no known reason",
    "whole": "a node rejects a document whose signature by its root is invalid",
    "signed before": "a node that has used a signed document rejects unsigned ones",
    "jump": "a node rejects a generation that no rotation can have led to",
    "unaltered base": "a run does not build on a document that was altered without the key",
    "history": "no run begins while a node has used a later state than the store holds, or another one",
    "roots after roll-back": "a roll-back keeps the list of roots",
    "roots after cancel": "cancelling a published rotation keeps the list of roots",
    "roots after a cancelled restore": "cancelling a restore leaves the earlier root among the roots",
    "listed again": "a restore of a root that has left the document lists it again",
    "one private key": "activation removes the earlier private key from the document",
    "one change of signer": "no step but activate and a roll-back changes which root signs",
    "one look": "current and stable are read in one state of the labels",
    "memory": "a run accepts no generation below the highest that it has read",
    "recognition": "a run recognizes the rotation that it began, even if it is over already",
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
    "way back of the anchor": "a new anchor signs at once that its predecessor may replace it in a roll-back",
    "word of the old anchor": "a replaced anchor also endorses the next root, which stays listed whatever the outcome",
    "lasting word": "a revocation by a new anchor keeps the previous anchor's signatures",
    "end of the way back": "a new anchor's signature for a roll-back is invalid once the rotation has ended",
    "anchor": "a node that knows an anchor follows only what that anchor has signed",
    "change of the anchor": "a node accepts another anchor only if the known one has signed that",
    "word of working roots": "a node that knows an anchor ignores a working root's endorsements of other roots",
    "signed revocations": "a node that knows an anchor rejects a revocation that the anchor has not signed",
}
