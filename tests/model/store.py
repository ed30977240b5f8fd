"""The identity document as an abstract record, and a store whose readers and writers get what it promises, no more.

What it is: the effect of each step of a rotation on what is stored; test_model_matches.py holds it against the real
`goatherd.identity.transitions`, document by document. What it is not: it has no bytes, keys or times.

Roots are small numbers: 0 is A, the root of the beginning, and rotation number k makes root k. Sets of roots are bits.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from goatherd.identity.succession import MAX_JUMP
from goatherd.rotation.machine import Phase, Step, after

NOBODY = -1
INTRUDER = 4
NAMES = ("A", "B", "C", "D", "X")


class Signature(StrEnum):
    """What the current root's signature over a document is worth."""

    VALID = "signed"
    INVALID = "not as it was signed"
    MISSING = "not signed"


class Alteration(StrEnum):
    """What a writer of the store does who holds no root's key, and which no chain of endorsements covers."""

    EXPIRATION = "changes an expiration"
    ROOT = "removes a root"
    REVOCATION = "revokes another root"
    GENERATION = "raises the generation"


class Document(NamedTuple):
    """What one version of the secret says.

    Attributes:
        next: The next root, or `NOBODY`.
        roots, private: Bits: the roots that it lists, and those whose private key it holds.
        rotation: The number of the rotation in progress, or 0; it leads from `origin` to `target`.
        target: The root of the same number, which the rotation makes; or an earlier root, which it restores.
        rollback: The version to go back to, or `NOBODY`.
        ended, finished, cancelled: Bits by rotation: over, whatever the outcome; over because the next root took its
            place; and over before it did.
        endorsed: Pairs (by, of).
        base: The version that it was made from.
        before: The root that signed before the current one, or `NOBODY`.
        pruned: Bits: the roots that have left it.
        revoked: Bits: the roots that nobody trusts any more.
        signature: What the current root's signature over it is worth.
        altered: What was done to it without the key; None for what a rotation has written.
    """

    generation: int
    phase: Phase
    current: int
    next: int
    roots: int
    private: int
    rotation: int
    origin: int
    rollback: int
    ended: int
    finished: int
    endorsed: tuple[tuple[int, int], ...]
    base: int
    target: int = NOBODY
    cancelled: int = 0
    before: int = NOBODY
    pruned: int = 0
    revoked: int = 0
    signature: Signature = Signature.VALID
    altered: Alteration | None = None


class Store(NamedTuple):
    """All versions, and where the labels point.

    Attributes:
        docs: Every version ever written, destroyed ones too.
        heads: The version that ``current`` points at; two where a store without compare-and-swap has not decided yet.
        stable: The version that label ``stable`` points at, or `NOBODY`.
        gone: Bits: destroyed versions.
        labelled: Bits: versions that a label of somebody else points at.
        aged: Bits: versions whose retired keys have outlived the grace period.
        past: Earlier positions of (current, stable), oldest first; only where reads may be stale.
        is_settled: Whether a change has come after the last write, so that nobody can win against it any more.
        is_forked: Whether the store has once let two writers win.
        is_invaded: Whether somebody who holds no root's key has written to it.
        is_altered: Whether somebody without a key has once altered the document.
        is_restored: Whether it was once restored from a backup. From then on it gives version ids again.
    """

    docs: tuple[Document, ...]
    heads: tuple[int, ...]
    stable: int
    gone: int = 0
    labelled: int = 0
    aged: int = 0
    past: tuple[tuple[int, int], ...] = ()
    is_settled: bool = True
    is_forked: bool = False
    is_invaded: bool = False
    is_restored: bool = False
    is_altered: bool = False

    def ancestors(self, version: int) -> tuple[int, ...]:
        """Return the versions from which this one has grown, latest first, itself included."""
        found = [version]
        while self.docs[found[-1]].base != NOBODY:
            found.append(self.docs[found[-1]].base)
        return tuple(found)

    def id_of(self, version: int) -> int:
        """Return the id that the store has given to this version: a restored store counts on from its backup."""
        return len(self.ancestors(version))

    def is_grown(self, version: int, held: int) -> bool:
        """Whether a version has grown from another one, or is that one."""
        return held in self.ancestors(version)

    def was_signed(self, version: int) -> bool:
        """Whether a version, or one that it has grown from, is signed."""
        return any(self.docs[at].signature is Signature.VALID for at in self.ancestors(version))

    def is_refused(self, version: int) -> bool:
        """Whether a command goes on from no such version (`SignatureCheck`)."""
        document = self.docs[version]
        if document.signature is Signature.MISSING:
            return self.was_signed(version) or document.generation > MAX_JUMP
        return document.signature is Signature.INVALID

    @property
    def head(self) -> Document:
        """The document that ``current`` leads to; the newest where there are two."""
        return self.docs[self.heads[-1]]

    @property
    def prepared(self) -> int:
        """How many rotations have ever been prepared."""
        return max(doc.rotation for doc in self.docs)

    def origin_of(self, rotation: int) -> int:
        """The root that a rotation replaces, which signs the introduction."""
        return next(doc.origin for doc in self.docs if doc.rotation == rotation)

    def target_of(self, rotation: int) -> int:
        """The root that a rotation leads to; `NOBODY` where there was no such rotation."""
        return next((doc.target for doc in self.docs if doc.rotation == rotation), NOBODY)


FIRST = Document(1, Phase.STEADY, 0, NOBODY, 1, 1, 0, NOBODY, NOBODY, 0, 0, (), NOBODY)


def first_store() -> Store:
    """A store in which nobody has rotated yet, and nobody has labelled anything stable."""
    return Store(docs=(FIRST,), heads=(0,), stable=NOBODY)


def unsigned_store() -> Store:
    """A store with an identity of Goatherd 0.1.0, which nobody has signed."""
    return Store(docs=(FIRST._replace(signature=Signature.MISSING),), heads=(0,), stable=NOBODY)


def rolled_back_store() -> Store:
    """A store in which a first rotation was rolled back after B had signed."""
    docs = [FIRST, prepared(FIRST, 0, 1)]
    for step in (Step.PUBLISH, Step.ACTIVATE):
        docs.append(advanced(docs[-1], len(docs) - 1, step))
    docs.append(advanced(docs[-1], len(docs) - 1, Step.ROLL_BACK, FIRST))
    return Store(docs=tuple(docs), heads=(len(docs) - 1,), stable=len(docs) - 1)


def store_after_a_root_has_left() -> Store:
    """A store in which A was replaced by B, B by C, and A has left the document."""
    docs = [FIRST]
    for rotation in (1, 2):
        docs.append(prepared(docs[-1], len(docs) - 1, rotation))
        for step in (Step.PUBLISH, Step.ACTIVATE, Step.VERIFY, Step.FINALIZE):
            docs.append(advanced(docs[-1], len(docs) - 1, step))
    docs.append(pruned(docs[-1], len(docs) - 1, 1))
    return Store(docs=tuple(docs), heads=(len(docs) - 1,), stable=len(docs) - 1)


def prepared(document: Document, version: int, rotation: int, restored: int = NOBODY) -> Document:
    """Return the document that begins a rotation; `version` is what it follows and would go back to.

    Args:
        document: A steady document.
        version: Its version.
        rotation: The number of the rotation, and of the root that it makes.
        restored: The earlier root that it leads to instead.
    """
    target = rotation if restored == NOBODY else restored
    pair = (document.current, target)
    return document._replace(
        generation=document.generation + 1,
        phase=after(document.phase, Step.PREPARE),
        next=target,
        roots=document.roots | 1 << target,
        private=document.private | 1 << target,
        rotation=rotation,
        target=target,
        origin=document.current,
        rollback=version,
        endorsed=document.endorsed if pair in document.endorsed else (*document.endorsed, pair),
        base=version,
        pruned=document.pruned & ~(1 << target),
    )


def advanced(document: Document, version: int, step: Step, rolled_back_to: Document | None = None) -> Document:
    """Return the document after a later step.

    Args:
        document: What the step is taken from.
        version: Its version.
        step: Any step but `Step.PREPARE`.
        rolled_back_to: For `Step.ROLL_BACK`, what the version to go back to holds.
    """
    rotation = document.rotation
    changed = document._replace(
        generation=document.generation + 1, phase=after(document.phase, step), base=version, next=document.next
    )
    if step is Step.ACTIVATE:
        return changed._replace(current=document.next, next=NOBODY, private=1 << document.next, before=document.current)
    if changed.phase is not Phase.STEADY:
        return changed
    over = changed._replace(
        rotation=0,
        target=NOBODY,
        origin=NOBODY,
        rollback=NOBODY,
        next=NOBODY,
        ended=document.ended | 1 << rotation,
    )
    if step is Step.FINALIZE:
        return over._replace(finished=document.finished | 1 << rotation)
    if step is Step.ROLL_BACK:
        assert rolled_back_to is not None
        return over._replace(
            current=rolled_back_to.current, private=1 << rolled_back_to.current, before=document.current
        )
    over = over._replace(private=1 << document.current, cancelled=document.cancelled | 1 << rotation)
    if document.phase is Phase.PUBLISHED or document.target != rotation:
        return over
    return over._replace(
        roots=document.roots & ~(1 << rotation),
        endorsed=tuple(pair for pair in document.endorsed if pair[1] != rotation),
    )


def may_leave(document: Document) -> int:
    """Return the roots that may leave the document (`goatherd.identity.transitions`)."""
    staying = 1 << document.current | (1 << document.before if document.before != NOBODY else 0)
    return document.roots & ~staying if document.phase is Phase.STEADY else 0


def pruned(document: Document, version: int, leaving: int) -> Document:
    """Return the document without these roots."""
    return document._replace(
        generation=document.generation + 1,
        roots=document.roots & ~leaving,
        endorsed=tuple(pair for pair in document.endorsed if not (leaving >> pair[0] & 1 or leaving >> pair[1] & 1)),
        base=version,
        pruned=document.pruned | leaving,
    )


def altered(document: Document, version: int, how: Alteration, signature: Signature) -> Document | None:
    """Return the document as somebody without the key writes it; None where it gives no occasion for that."""
    after = document._replace(
        generation=document.generation + (MAX_JUMP + 1 if how is Alteration.GENERATION else 1),
        base=version,
        signature=signature,
        altered=how,
    )
    others = bits(document.roots & ~(1 << document.current) & ~(0 if document.next == NOBODY else 1 << document.next))
    if how in (Alteration.EXPIRATION, Alteration.GENERATION):
        return after
    if not others:
        return None
    if how is Alteration.REVOCATION:
        return after._replace(revoked=1 << others[0])
    return after._replace(
        roots=document.roots & ~(1 << others[0]),
        endorsed=tuple(one for one in document.endorsed if others[0] not in one),
    )


def taken_back(store: Store) -> Document:
    """Return what ``goatherd restore --signature --take-back`` writes over an altered document (`sign_earlier`)."""
    head = store.head
    before = store.docs[head.base]
    is_followed = head.generation <= before.generation + MAX_JUMP
    return before._replace(
        generation=(head.generation if is_followed else before.generation) + 1,
        base=store.heads[-1],
        signature=Signature.VALID,
    )


def follows(new: Document, held: Document, links: tuple[tuple[int, int], ...] = ()) -> bool:
    """Whether a chain leads from what `held` trusts to every root of `new` (`verify_succession`).

    Args:
        new: The document.
        held: The one in use.
        links: Introductions (by, of), beside the document's endorsements.
    """
    believed = held.roots
    while True:
        more = believed
        for by, of in (*new.endorsed, *links):
            if more >> by & 1:
                more |= 1 << of
        if more == believed:
            return not new.roots & ~believed and bool(believed >> new.current & 1)
        believed = more


def lost_roots(new: Document, held: Document, outlived: tuple[tuple[int, int], ...] = ()) -> int:
    """Return the roots of `held` that are gone from `new` for no known reason (`find_lost_roots`).

    Args:
        new: The document.
        held: The one in use.
        outlived: Pairs (root, signer): which introductions of earlier roots the node holds.
    """
    lost = held.roots & ~new.roots
    if held.phase is Phase.PREPARED and held.target == held.rotation:
        lost &= ~(1 << held.target)
    known = new.roots
    for _ in outlived:
        for root, signer in outlived:
            if known >> signer & 1:
                known |= 1 << root
    return lost & ~known


def bits(mask: int) -> list[int]:
    """Return the numbers in a set."""
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def names(mask: int) -> str:
    """Return the roots in a set, for people."""
    return ", ".join(NAMES[number] for number in bits(mask)) or "none"
