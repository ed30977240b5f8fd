"""The identity document as an abstract record, and a store whose readers and writers get what it promises, no more.

What it is: the effect of each step of a rotation on what is stored; test_model_matches.py holds it against the real
`goatherd.identity.transitions`, document by document. What it is not: it has no bytes, keys or times.

Roots are small numbers: 0 is A, the root of the beginning, and rotation number k makes root k. Sets of roots are bits.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from goatherd.identity.succession import MAX_JUMP
from goatherd.rotation.machine import Phase, Step, phase_after

from .anchors import NO_ANCHOR, THIEFS, Anchoring, Change, Choice, K, find_anchors, with_word

NONE = -1
INTRUDER = 4
NAMES = ("A", "B", "C", "D", "X", "K", "L", "Y")


class Signature(StrEnum):
    """The validity of the current root's signature over a document."""

    VALID = "signed"
    INVALID = "not as it was signed"
    MISSING = "not signed"


class Alteration(StrEnum):
    """An alteration by a writer who holds no root's key, of a part that no chain of endorsements covers."""

    EXPIRATION = "changes an expiration"
    ROOT = "removes a root"
    REVOCATION = "revokes another root"
    GENERATION = "raises the generation"


class Theft(StrEnum):
    """The document of an attacker with the working root's key and write access to the store, where an anchor exists."""

    ROOT = "lists a root of the thief's"
    ANCHOR = "names an anchor of the thief's, and a root of the thief's signs"
    REMOVAL = "names no anchor, and a root of the thief's signs"
    REVOCATION = "revokes another root"
    WAY_BACK = "goes back to the anchor of before, or to the root without one, on what was signed for a roll-back"
    ABANDONED = "names the anchor, or the root without one, of a rotation that was cancelled or rolled back"
    NOTHING = "names no other root"


class Document(NamedTuple):
    """The content of one version of the secret.

    Attributes:
        next: The next root, or `NONE`.
        roots, private: Bits: the roots that it lists, and those whose private key it holds.
        rotation: The number of the rotation in progress, or 0; it leads from `origin` to `target`.
        target: The root of the same number, which the rotation makes; or an earlier root, which it restores.
        rollback: The version to go back to, or `NONE`.
        ended, finished, cancelled: Bits by rotation: over, whatever the outcome; over because the next root took its
            place; and over before it did.
        endorsed: Pairs (by, of).
        base: The version that it was made from.
        before: The root that signed before the current one, or `NONE`.
        pruned: Bits: the roots that have left it.
        revoked: Bits: the roots that no node trusts any more.
        signature: The validity of the current root's signature over it.
        altered: How a writer without the key has altered it; None for what a rotation has written.
        anchored: What it records about the anchor; None where no document has one.
        stolen: What the thief of its root did; None for what an operator has written.
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
    target: int = NONE
    cancelled: int = 0
    before: int = NONE
    pruned: int = 0
    revoked: int = 0
    signature: Signature = Signature.VALID
    altered: Alteration | None = None
    anchored: Anchoring | None = None
    stolen: Theft | None = None

    @property
    def anchor(self) -> int:
        """The anchor, or `NO_ANCHOR`."""
        return NO_ANCHOR if self.anchored is None else self.anchored.anchor


class Store(NamedTuple):
    """All versions, and the positions of the labels.

    Attributes:
        docs: Every version ever written, destroyed ones too.
        heads: The version that ``current`` points at; two where a store without compare-and-swap has not decided yet.
        stable: The version that label ``stable`` points at, or `NONE`.
        destroyed: Bits: destroyed versions.
        foreign_labelled: Bits: versions that another client's label points at.
        past_grace: Bits: versions whose retired keys have outlived the grace period.
        past: Earlier positions of (current, stable), oldest first; only where reads may be stale.
        is_settled: Whether another change has followed the last write, so that no concurrent write can win any more.
        is_forked: Whether the store has once let two writers win.
        is_invaded: Whether a writer without a root's key has written to it.
        is_altered: Whether a writer without a key has once altered the document.
        is_restored: Whether it was once restored from a backup. From then on it gives version ids again.
        is_without_signers: Whether no signer of an anchor ever answers again.
    """

    docs: tuple[Document, ...]
    heads: tuple[int, ...]
    stable: int
    destroyed: int = 0
    foreign_labelled: int = 0
    past_grace: int = 0
    past: tuple[tuple[int, int], ...] = ()
    is_settled: bool = True
    is_forked: bool = False
    is_invaded: bool = False
    is_restored: bool = False
    is_altered: bool = False
    is_without_signers: bool = False

    def ancestors(self, version: int) -> tuple[int, ...]:
        """Return the versions from which this one has grown, latest first, itself included."""
        found = [version]
        while self.docs[found[-1]].base != NONE:
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
        """Return whether commands reject a version, instead of building on it (`SignedStoreCheck`)."""
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
        """How many rotations have ever been prepared, or roots made by revocations."""
        return max(max(doc.rotation, doc.current if doc.current < INTRUDER else 0) for doc in self.docs)

    def origin_of(self, rotation: int) -> int:
        """The root that a rotation replaces; `NONE` for the root of a revocation."""
        return next((doc.origin for doc in self.docs if doc.rotation == rotation), NONE)

    def introductions_of(self, rotation: int) -> tuple[tuple[int, int], ...]:
        """Return the introductions (by, of) that are made with the next root's (`make_introductions`), in order."""
        made = next((doc for doc in self.docs if doc.rotation == rotation), None)
        if made is None:  # a revocation made the root
            return ((next(doc.anchor for doc in self.docs if doc.current == rotation), rotation),)
        if made.anchored is None or made.anchored.next == made.anchored.anchor == NO_ANCHOR:
            return ((made.origin, made.target),)
        old, new = made.anchored.anchor, made.anchored.next
        if new in (old, NO_ANCHOR):
            return ((old, made.target),)
        before = made.origin if old == NO_ANCHOR else old
        return ((before, new), (new, made.target), (new, before))

    def target_of(self, rotation: int) -> int:
        """The root that a rotation leads to, or that a revocation made; `NONE` where there was neither."""
        made = next((doc.target for doc in self.docs if doc.rotation == rotation), NONE)
        if made == NONE and any(doc.current == rotation for doc in self.docs):
            return rotation
        return made


FIRST = Document(1, Phase.STEADY, 0, NONE, 1, 1, 0, NONE, NONE, 0, 0, (), NONE)


def first_store() -> Store:
    """A store before the first rotation, without the label ``stable``."""
    return Store(docs=(FIRST,), heads=(0,), stable=NONE)


ANCHORED = FIRST._replace(roots=1 | 1 << K, endorsed=((K, 0),), anchored=Anchoring(K, K))


def anchored_store(*, has_anchor: bool) -> Store:
    """A store with an identity that has the anchor K, or may get it."""
    first = ANCHORED if has_anchor else FIRST._replace(anchored=Anchoring())
    return Store(docs=(first,), heads=(0,), stable=NONE)


def unsigned_store() -> Store:
    """A store with an identity of Goatherd 0.1.0, which no root has signed."""
    return Store(docs=(FIRST._replace(signature=Signature.MISSING),), heads=(0,), stable=NONE)


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


def prepared(
    document: Document, version: int, rotation: int, restored: int = NONE, choice: Choice = Choice.KEEP
) -> Document:
    """Return the document that begins a rotation; `version` is what it follows and would go back to.

    Args:
        document: A steady document.
        version: Its version.
        rotation: The number of the rotation, and of the root that it makes.
        restored: The earlier root that it leads to instead.
        choice: What it does about the anchor.
    """
    target = rotation if restored == NONE else restored
    pair = (document.current, target)
    endorsed = document.endorsed if pair in document.endorsed else (*document.endorsed, pair)
    anchored, new = document.anchored, 0
    if document.anchor != NO_ANCHOR and restored != NONE:
        endorsed = document.endorsed  # the anchor's endorsement of before counts
    elif anchored is not None and (anchored.anchor, choice) != (NO_ANCHOR, Choice.KEEP):
        anchored, endorsed = with_word(
            anchored,
            document.endorsed,
            current=document.current,
            target=target,
            choice=choice,
            generation=document.generation + 1,
        )
        new = 0 if anchored.next == NO_ANCHOR else 1 << anchored.next
    return document._replace(
        generation=document.generation + 1,
        phase=phase_after(document.phase, Step.PREPARE),
        next=target,
        roots=document.roots | 1 << target | new,
        private=document.private | 1 << target,
        rotation=rotation,
        target=target,
        origin=document.current,
        rollback=version,
        endorsed=endorsed,
        anchored=None if anchored is None else anchored.at(document.generation + 1),
        base=version,
        pruned=document.pruned & ~(1 << target),
    )


def may_sign(document: Document, root: int, anchor: int) -> bool:
    """Whether an anchor has endorsed a root to sign (`IdentityDocument.is_endorsed_to_sign`)."""
    earlier = frozenset[tuple[int, int]]() if document.anchored is None else document.anchored.earlier
    return (anchor, root) in document.endorsed and (anchor, root) not in earlier


def is_signed_first(document: Document) -> bool:
    """Whether a prepared document holds the endorsement by which its next root may sign under the anchor."""
    authority = NO_ANCHOR if document.anchored is None else document.anchored.next
    return authority == NO_ANCHOR or may_sign(document, document.target, authority)


def may_sign_again(document: Document, root: int) -> bool:
    """Whether the anchor lets an earlier root sign again (`goatherd.identity.transitions.may_sign_again`)."""
    if document.anchor == NO_ANCHOR:
        return True
    introduced_by = next((by for by, of in document.endorsed if of == root and by > INTRUDER), NONE)
    return introduced_by == document.anchor and may_sign(document, root, document.anchor)


def advanced(document: Document, version: int, step: Step, rolled_back_to: Document | None = None) -> Document:
    """Return the document after a later step.

    Args:
        document: The document before the step.
        version: Its version.
        step: Any step but `Step.PREPARE`.
        rolled_back_to: For `Step.ROLL_BACK`, what the version to go back to holds.
    """
    rotation = document.rotation
    changed = document._replace(
        generation=document.generation + 1, phase=phase_after(document.phase, step), base=version, next=document.next
    )
    if document.anchored is not None:
        changed = changed._replace(anchored=_anchored_phase_after(document.anchored, document, step, rolled_back_to))
    if step is Step.ACTIVATE:
        return changed._replace(current=document.next, next=NONE, private=1 << document.next, before=document.current)
    if changed.phase is not Phase.STEADY:
        return changed
    over = changed._replace(
        rotation=0,
        target=NONE,
        origin=NONE,
        rollback=NONE,
        next=NONE,
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


def _anchored_phase_after(
    anchored: Anchoring, document: Document, step: Step, rolled_back_to: Document | None
) -> Anchoring:
    """Return what the document after a later step records about the anchor."""
    if step is Step.ACTIVATE:
        anchored = anchored._replace(anchor=anchored.next)
    elif step is Step.FINALIZE:
        anchored = anchored.finalized()
    elif step is Step.CANCEL:
        anchored = anchored.cancelled()
    elif step is Step.ROLL_BACK:
        assert rolled_back_to is not None
        assert rolled_back_to.anchored is not None
        anchored = anchored.rolled_back(rolled_back_to.anchored)
    return anchored.at(document.generation + 1)


def revoked(document: Document, version: int, fresh: int) -> Document:
    """Return the document in which the anchor has replaced the stolen working root by a fresh one (`revoke_root`)."""
    assert document.anchored is not None
    is_next_fresh = document.next != NONE and document.target == document.rotation
    gone = document.revoked | 1 << document.current | (1 << document.next if is_next_fresh else 0)
    is_over = document.phase in (Phase.ACTIVATED, Phase.VERIFIED)
    anchored = document.anchored.finalized() if is_over else document.anchored.cancelled()
    return document._replace(
        generation=document.generation + 1,
        phase=Phase.STEADY,
        current=fresh,
        next=NONE,
        roots=document.roots | 1 << fresh,
        private=1 << fresh,
        rotation=0,
        target=NONE,
        origin=NONE,
        rollback=NONE,
        endorsed=(*(one for one in document.endorsed if not gone >> one[0] & 1), (document.anchor, fresh)),
        base=version,
        before=document.current,
        revoked=gone,
        anchored=anchored.at(document.generation + 1),
    )


def stolen(store: Store, how: Theft) -> Document | None:
    """Return what an attacker with the working root's key writes; None if the document does not allow it."""
    document, version = store.head, store.heads[-1]
    anchored, current = document.anchored, document.current
    assert anchored is not None
    if anchored.anchor == NO_ANCHOR:
        return None
    after = document._replace(generation=document.generation + 1, base=version, stolen=how)
    over = after._replace(
        phase=Phase.STEADY,
        next=NONE,
        rotation=0,
        target=NONE,
        origin=NONE,
        rollback=NONE,
        before=current,
        ended=document.ended | (1 << document.rotation if document.rotation else 0),
    )
    believed = document.roots | 1 << INTRUDER
    match how:
        case Theft.NOTHING:
            return after
        case Theft.ROOT:
            return after._replace(roots=believed, endorsed=(*document.endorsed, (current, INTRUDER)))
        case Theft.REMOVAL:
            pairs = (*document.endorsed, (current, INTRUDER))
            return over._replace(
                current=INTRUDER, roots=believed, private=1 << INTRUDER, endorsed=pairs, anchored=Anchoring()
            )
        case Theft.ANCHOR:
            pairs = (*document.endorsed, (current, INTRUDER), (current, THIEFS), (THIEFS, INTRUDER))
            return over._replace(
                current=INTRUDER,
                roots=believed | 1 << THIEFS,
                private=1 << INTRUDER,
                endorsed=pairs,
                anchored=Anchoring(THIEFS, THIEFS, (*anchored.changes, Change(by=THIEFS, to=anchored.anchor))),
            )
        case Theft.REVOCATION:
            others = [one for one in bits(document.roots) if one < INTRUDER and one not in (current, document.next)]
            others = [one for one in others if not document.revoked >> one & 1]
            return after._replace(revoked=document.revoked | 1 << others[-1]) if others else None
        case Theft.WAY_BACK | Theft.ABANDONED:
            return _replayed(store, over, is_limited=how is Theft.WAY_BACK)


def _replayed(store: Store, over: Document, *, is_limited: bool) -> Document | None:
    """Return the thief's document that names what a statement of an earlier rotation names; None if there is none.

    The thief has the key of each root that has signed, as a reader of the store had it.
    """
    assert over.anchored is not None
    if store.head.rotation:
        return None  # until it has ended, the anchor's word for it counts
    for at in store.ancestors(over.base):
        document = store.docs[at]
        for one in document.anchored.changes if document.anchored is not None else ():
            if one.by != over.anchor or (one.until is not None) != is_limited:
                continue
            target = one.root if one.root != NO_ANCHOR else next(of for by, of in document.endorsed if by == one.to)
            anchored = Anchoring(one.to, one.to, (*over.anchored.changes, one))
            roots = over.roots | 1 << target | (1 << one.to if one.to != NO_ANCHOR else 0)
            pairs = tuple(dict.fromkeys((*over.endorsed, *document.endorsed)))
            pairs = tuple(pair for pair in pairs if roots >> pair[0] & 1 and roots >> pair[1] & 1)
            return over._replace(current=target, private=1 << target, roots=roots, endorsed=pairs, anchored=anchored)
    return None


def may_leave(document: Document) -> int:
    """Return the roots that may leave the document (`goatherd.identity.transitions`)."""
    staying = 1 << document.current | (1 << document.before if document.before != NONE else 0)
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
    """Return the document as a writer without the key alters it; None if the document does not allow that
    alteration."""
    after = document._replace(
        generation=document.generation + (MAX_JUMP + 1 if how is Alteration.GENERATION else 1),
        base=version,
        signature=signature,
        altered=how,
    )
    others = bits(document.roots & ~(1 << document.current) & ~(0 if document.next == NONE else 1 << document.next))
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
    """Return the document that ``goatherd restore --signature --take-back`` writes over an altered one
    (`sign_earlier`)."""
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
        held: The document in use.
        links: Introductions (by, of), beside the document's endorsements.
    """
    if held.anchor != NO_ANCHOR:
        return follows_anchor(new, held, links)
    believed = _reachable(new, held.roots, links)
    return not new.roots & ~believed & ~new.revoked and bool((believed & ~new.revoked) >> new.current & 1)


def follows_anchor(
    new: Document,
    held: Document,
    links: tuple[tuple[int, int], ...] = (),
    *,
    anchors_only: bool = True,
    limits: bool = True,
    is_named_enough: bool = False,
) -> bool:
    """Return the same for a node that knows an anchor, for which only that anchor's signatures count.

    Args:
        new, held, links: As above.
        anchors_only: Whether a working root's endorsements of other roots are ignored.
        limits: Whether a statement that ends the anchor's role counts only as long as it says.
        is_named_enough: Whether the anchor that the document names counts, although the known one has not signed that.
    """
    anchored = new.anchored or Anchoring()
    if not anchored.is_whole:
        return False
    generation = new.generation if limits else 0
    anchors, released = find_anchors(anchored, held.anchor, new.roots & ~new.revoked, generation)
    if is_named_enough and new.anchor != NO_ANCHOR:
        anchors |= 1 << new.anchor
    known = held.roots | (anchors if is_named_enough else 0)
    by_anchor = _reachable(new, known, links, leaders=anchors if anchors_only else -1)
    if new.anchor != NO_ANCHOR:
        if not anchors >> new.anchor & 1:
            return False
        before = (held.anchored or Anchoring()).introducing()
        if not is_named_enough and anchored.introducing() & ~(anchors | before):
            return False
        believed = by_anchor & ~new.revoked
    else:
        by_release = _reachable(new, released, links) & ~new.revoked
        if not by_release >> new.current & 1:
            return False
        believed = by_anchor & ~new.revoked | by_release
    return not new.roots & ~believed & ~new.revoked and bool(believed >> new.current & 1)


def _reachable(new: Document, known: int, links: tuple[tuple[int, int], ...], leaders: int = -1) -> int:
    """Return the known roots, and those to which endorsements and introductions lead (`_reachable_roots`)."""
    leaders &= ~new.revoked
    believed = known
    while True:
        more = believed
        for by, of in (*new.endorsed, *links):
            if (more & leaders) >> by & 1:
                more |= 1 << of
        if more == believed:
            return believed
        believed = more


def is_revocation_signed(new: Document, held: Document) -> bool:
    """Whether the anchor has signed what a document newly revokes (`check_revocations`).

    In the model the anchor never signs a revocation alone: it endorses the root that replaces the stolen one.
    """
    if held.anchor == NO_ANCHOR or not held.roots >> new.current & 1:
        return True
    return not new.revoked & ~held.revoked & held.roots


def lost_roots(new: Document, held: Document, outlived: tuple[tuple[int, int], ...] = ()) -> int:
    """Return the roots that are in `held` but missing in `new` for no known reason (`find_lost_roots`).

    Args:
        new: The document.
        held: The document in use.
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
    """Return the names of the roots in a set."""
    return ", ".join(NAMES[number] for number in bits(mask)) or "none"
