"""The model's anchor against the real code: documents, what nodes follow, and forgeries by an attacker with a working
root's key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import chain, combinations

import pytest

from goatherd.errors import GenerationError, IllegalStepError, NotRestorableError, SuccessionError
from goatherd.identity import transitions
from goatherd.identity.anchor import AnchorChange, AnchorWord
from goatherd.identity.document import (
    IdentityDocument,
    Phase,
    decode_document,
    document_digest,
    encode_document,
    sign_document,
)
from goatherd.identity.revocations import Revocation
from goatherd.identity.root_signatures import Endorsement, endorse_root
from goatherd.identity.session import Session
from goatherd.identity.succession import verify_successor
from goatherd.rotation.anchor_keys import AnchorChoice, AnchorKey, AnchorKeys, collect_anchor_signatures
from goatherd.rotation.cross_signing import expected_introductions, make_introductions
from goatherd.rotation.machine import STEPS, Step
from goatherd.rotation.restorable import choose_root
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit
from tests.fakes.anchors import MemorySigners

from .anchors import NO_ANCHOR, Anchoring, Change, Choice
from .settings import Options
from .state import Node
from .store import (
    ANCHORED,
    FIRST,
    INTRUDER,
    NAMES,
    Document,
    Store,
    Theft,
    advanced,
    bits,
    may_sign_again,
    prepared,
    revoked,
    stolen,
)
from .test_model_matches import NOW, ORG, Pair, compare_documents, named, root
from .world import World, knows_introducer

SIGNERS = MemorySigners()
HISTORIES = ("no anchor", "an anchor", "a former anchor", "another anchor rolled back")
WORLD = World(Options(nodes=1, operators=1))


def uri(anchor: int) -> str:
    return f"memory:{NAMES[anchor]}"


async def word_for(document: IdentityDocument, successor: Session, choice: Choice, anchor: int) -> AnchorWord | None:
    """Let the real code collect the signatures for a rotation."""
    asked = AnchorChoice(signer=uri(anchor) if choice is Choice.SET else None, is_removed=choice is Choice.REMOVE)
    async with AnchorKeys(ORG, SIGNERS.open, SIGNERS.configured) as keys:
        return await collect_anchor_signatures(keys, document, successor, asked, anchor_id=NAMES[anchor], now_ms=NOW)


async def key_of(document: IdentityDocument, anchor: int) -> AnchorKey:
    """Return the anchor's key, whether the document lists it or not."""
    keys = AnchorKeys(ORG, SIGNERS.open, SIGNERS.configured)
    return await keys.open_new(uri(anchor), session_id=NAMES[anchor], now_ms=NOW)


def begun(history: tuple[Pair, ...], choice: Choice) -> tuple[Pair, ...]:
    """Prepare a rotation in the real code and in the model."""
    real, abstract = history[-1]
    version, number = len(history) - 1, 1 + max(document.rotation for _, document in history)
    assert abstract.anchored is not None
    word = asyncio.run(word_for(real, root(NAMES[number]).session, choice, abstract.anchored.chosen(choice)))
    after = transitions.prepare_rotation(
        real,
        root(NAMES[number]),
        now_ms=NOW,
        rotation_id=f"rotation-{number}",
        started_by="",
        stable_version=str(version),
        word=word,
    )
    return (*history, (after, prepared(abstract, version, number, choice=choice)))


def followed(history: tuple[Pair, ...], step: Step) -> tuple[Pair, ...]:
    """Take a later step in the real code and in the model."""
    (real, abstract), version = history[-1], len(history) - 1
    before = history[abstract.rollback]
    after = {
        Step.PUBLISH: lambda: transitions.with_phase(real, Phase.PUBLISHED, NOW),
        Step.ACTIVATE: lambda: transitions.activate_rotation(real, NOW),
        Step.VERIFY: lambda: transitions.with_phase(real, Phase.VERIFIED, NOW),
        Step.FINALIZE: lambda: transitions.finalize_rotation(real, NOW),
        Step.CANCEL: lambda: transitions.cancel_rotation(real, NOW, reason="why"),
        Step.ROLL_BACK: lambda: transitions.roll_back_rotation(real, before[0], NOW, reason="why"),
    }[step]()
    return (*history, (after, advanced(abstract, version, step, before[1] if step is Step.ROLL_BACK else None)))


@cache
def first(name: str) -> tuple[Pair, ...]:
    """Return the documents before the rotation that is compared."""
    if name == "no anchor":
        return ((transitions.create_document(root("A"), NOW), FIRST._replace(anchored=Anchoring())),)
    anchor = ANCHORED.anchor

    async def word() -> AnchorWord:
        async with AnchorKeys(ORG, SIGNERS.open, SIGNERS.configured) as keys:
            key = await keys.open_new(uri(anchor), session_id=NAMES[anchor], now_ms=NOW)
            endorsement = await key.introduce(root("A").session, NOW)
            return AnchorWord(session=key.session, endorsements=(endorsement,))

    history: tuple[Pair, ...] = ((transitions.create_document(root("A"), NOW, word=asyncio.run(word())), ANCHORED),)
    if name != "an anchor":
        last = (Step.VERIFY, Step.FINALIZE) if name == "a former anchor" else (Step.ROLL_BACK,)
        history = begun(history, Choice.SET)
        for step in (Step.PUBLISH, Step.ACTIVATE, *last):
            history = followed(history, step)
    return history


@cache
def histories(name: str) -> tuple[tuple[Pair, ...], ...]:
    """Every way that the documents of one more rotation can take, with each choice about the anchor."""

    def walk(history: tuple[Pair, ...]) -> Iterator[tuple[Pair, ...]]:
        yield history
        for before, step in STEPS:
            if before is history[-1][1].phase and step not in (Step.PREPARE, Step.PRUNE):
                yield from walk(followed(history, step))

    start = first(name)
    choices = [one for one in Choice if one is not Choice.REMOVE or start[-1][1].anchor != NO_ANCHOR]
    ways = [way for choice in choices for way in walk(begun(start, choice))]
    return (start, *ways)


@cache
def restorations(name: str) -> tuple[tuple[Pair, ...], ...]:
    """Every way that the documents of a restore can take after one of `histories`."""

    def walk(history: tuple[Pair, ...]) -> Iterator[tuple[Pair, ...]]:
        yield history
        for before, step in STEPS:
            if before is history[-1][1].phase and step not in (Step.PREPARE, Step.PRUNE):
                yield from walk(followed(history, step))

    begun = [
        restored(history, earlier)
        for history in histories(name)
        for earlier in earlier_roots(history[-1][1])
        if may_sign_again(history[-1][1], earlier)
    ]
    return tuple(way for one in begun for way in walk(one))


def earlier_roots(document: Document) -> list[int]:
    """Return the roots that an operator may name to a restore."""
    is_steady = document.phase is Phase.STEADY
    return [one for one in bits(document.roots & ~(1 << document.current)) if one < INTRUDER and is_steady]


def restored(history: tuple[Pair, ...], earlier: int) -> tuple[Pair, ...]:
    """Prepare a restore in the real code and in the model."""
    real, abstract = history[-1]
    version, number = len(history) - 1, 1 + max(document.rotation for _, document in history)
    after = transitions.prepare_restore(
        real,
        root(NAMES[earlier]),
        now_ms=NOW,
        rotation_id=f"rotation-{number}",
        started_by="",
        stable_version=str(version),
    )
    return (*history, (after, prepared(abstract, version, number, earlier)))


def as_change(change: AnchorChange) -> Change:
    numbers = {name: number for number, name in enumerate(NAMES)}
    return Change(
        numbers[change.by],
        numbers.get(change.to or "", NO_ANCHOR),
        numbers.get(change.root or "", NO_ANCHOR),
        change.until,
    )


@pytest.mark.parametrize("name", HISTORIES)
def test_documents_change_as_the_real_ones_do(name: str) -> None:
    assert len(histories(name)) > 15
    for history in histories(name):
        compare_anchored(*history[-1])


@pytest.mark.parametrize("name", HISTORIES)
def test_documents_of_a_restore_change_as_the_real_ones_do(name: str) -> None:
    assert len(restorations(name)) > 30
    for history in restorations(name):
        compare_anchored(*history[-1])


def test_both_or_neither_let_an_earlier_root_sign_again() -> None:
    answers = set()
    for history in [one for name in HISTORIES for one in histories(name)]:
        real, abstract = history[-1]
        for earlier in earlier_roots(abstract):
            is_allowed = may_sign_again(abstract, earlier)
            assert transitions.may_sign_again(real, NAMES[earlier]) is is_allowed
            with nullcontext() if is_allowed else pytest.raises(NotRestorableError):
                choose_root(real, NAMES[earlier], NOW)
            with nullcontext() if is_allowed else pytest.raises(IllegalStepError):
                restored(history, earlier)
            answers.add(is_allowed)
    assert answers == {True, False}


@pytest.mark.parametrize("name", HISTORIES)
def test_a_node_follows_a_restore_as_the_real_one_does(name: str) -> None:
    answers = set()
    for history in restorations(name):
        new, new_model = history[-1]
        for held, held_model in history[:-1]:
            is_taken = does_follow(new, held)
            assert WORLD.takes(new_model, held_model) is is_taken
            answers.add(is_taken)
    assert True in answers


@pytest.mark.parametrize("name", HISTORIES)
def test_the_model_takes_the_introductions_for_proof_that_the_real_code_takes(name: str) -> None:
    answers = set()
    for history in (*histories(name), *restorations(name)):
        real, abstract = history[-1]
        if abstract.phase is not Phase.PUBLISHED:
            continue
        pushed = {
            document.rotation: [one for push in make_introductions(before, org=ORG) for one in push]
            for before, document in history
            if document.phase is Phase.PUBLISHED
        }
        store = Store(docs=tuple(document for _, document in history), heads=(len(history) - 1,), stable=0)
        for held in chain.from_iterable(combinations(pushed, count) for count in range(len(pushed) + 1)):
            commits = {str(one["id"]): one for rotation in reversed(held) for one in pushed[rotation]}
            is_shown = any(
                one.commit_id in commits and one.matches(commits[one.commit_id], org=ORG)
                for one in expected_introductions(real)
            )
            node = Node(version=len(history) - 1, introductions=sum(1 << rotation for rotation in held))
            assert WORLD.sight(store, abstract, node).holds is is_shown
            answers.add(is_shown)
    assert answers == {True, False}


def compare_anchored(real: IdentityDocument, abstract: Document) -> None:
    compare_documents(real, abstract)
    anchored = abstract.anchored
    assert anchored is not None
    for anchor, number in ((real.anchor, anchored.anchor), (real.next_anchor, anchored.next)):
        assert anchor == (None if number == NO_ANCHOR else NAMES[number])
    assert tuple(map(as_change, real.anchor_changes)) == anchored.changes
    earlier = {(one.by, one.of) for one in real.endorsements if one.commit is not None and one.commit.is_earlier}
    assert earlier == {(NAMES[by], NAMES[of]) for by, of in anchored.earlier if (by, of) in abstract.endorsed}


def does_follow(new: IdentityDocument, held: IdentityDocument) -> bool:
    try:
        verify_successor(new, held)
    except (GenerationError, SuccessionError):
        return False
    return True


@pytest.mark.parametrize("name", HISTORIES)
def test_a_node_takes_what_the_real_one_takes(name: str) -> None:
    pairs = {id(pair[0]): pair for history in histories(name) for pair in history}.values()
    answers = set()
    for held, held_model in pairs:
        for new, new_model in pairs:
            if new.generation > held.generation:
                is_grown = new.lineage is None or not new.lineage.contradicts(held.generation, document_digest(held))
                is_taken = does_follow(new, held)
                assert WORLD.takes(new_model, held_model, is_grown=is_grown) is is_taken
                answers.add(is_taken)
    assert answers == {True, False}


@pytest.mark.parametrize("name", HISTORIES)
def test_a_revocation_by_the_anchor_is_what_the_real_one_is_and_every_node_follows_it(name: str) -> None:
    compared = 0
    for history in (*histories(name), *restorations(name)):
        real, abstract = history[-1]
        if abstract.anchor == NO_ANCHOR:
            continue
        word = asyncio.run(word_for(real, root("D").session, Choice.KEEP, NO_ANCHOR))
        new = transitions.revoke_root(real, real.current.id, NOW, reason="why", successor=root("D"), word=word)
        new_model = revoked(abstract, len(history) - 1, 3)
        assert new.revoked_ids == named(new_model.revoked)
        assert tuple(map(as_change, new.anchor_changes)) == (new_model.anchored or Anchoring()).changes
        assert {one.id for one in new.roots} == named(new_model.roots)
        for held, held_model in history[len(first(name)) - 1 :]:
            is_taken = does_follow(new, held)
            assert WORLD.takes(new_model, held_model) is is_taken
            compared += is_taken
    assert compared > 10


def forged(history: tuple[Pair, ...], new: Document) -> IdentityDocument:
    """Return what the attacker writes, from the stored document and all signatures so far."""
    real, _ = history[-1]
    roots = {one.id: one for document, _ in history for one in document.roots} | {"X": root("X").session}
    endorsed: dict[tuple[str, str], Endorsement] = {}
    statements: dict[Change, AnchorChange] = {}
    for document, _ in history:
        endorsed.update({(one.by, one.of): one for one in document.endorsements})
        statements.update({as_change(one): one for one in document.anchor_changes})
    record = None
    if new.anchor != NO_ANCHOR:
        own = asyncio.run(key_of(real, new.anchor))
        record = own.session.id
        roots.setdefault(own.session.id, own.session)
        if new.stolen is Theft.ANCHOR:
            endorsed["Y", "X"] = asyncio.run(own.introduce(root("X").session, NOW))
    changes = []
    for one in (new.anchored or Anchoring()).changes:
        if one not in statements:
            own = asyncio.run(key_of(real, one.by))
            statements[one] = asyncio.run(own.sign_change(roots[NAMES[one.to]], NOW, is_anchor=True))
        changes.append(statements[one])
    pairs = [(NAMES[by], NAMES[of]) for by, of in new.endorsed]
    words = [endorsed.get(pair) or endorse_root(root(pair[0]), roots[pair[1]], NOW) for pair in pairs]
    gone = [NAMES[one] for one in bits(new.revoked)]
    document = replace(
        real,
        generation=new.generation,
        current=root(NAMES[new.current]),
        roots=tuple(roots[one] for one in sorted(named(new.roots))),
        endorsements=tuple(words),
        anchor=record,
        anchor_changes=tuple(changes),
        revoked=tuple(Revocation(id=one, at=NOW, reason="") for one in gone),
        lineage=None,
    )
    if not new.rotation:
        document = replace(document, rotation=None, next=None)
    return decode_document(encode_document(sign_document(document, NOW)))


@pytest.mark.parametrize("how", list(Theft))
def test_both_or_neither_follow_what_a_thief_of_a_working_root_writes(how: Theft) -> None:
    answers = set()
    for history in [one for name in HISTORIES for one in (*histories(name), *restorations(name))]:
        store = Store(docs=tuple(document for _, document in history), heads=(len(history) - 1,), stable=0)
        new_model = stolen(store, how)
        if new_model is None:
            continue
        new = forged(history, new_model)
        for held, held_model in history[-2:]:
            is_taken = does_follow(new, held)
            assert WORLD.takes(new_model, held_model) is is_taken
        # What was signed for a rotation that was rolled back still counts (docs/explanation/anchor.md).
        if how is not Theft.WAY_BACK or stolen(store, Theft.ABANDONED) is None:
            answers.add(is_taken)
    assert answers == ({True} if how in (Theft.NOTHING, Theft.ABANDONED) else {False})


@pytest.mark.parametrize("name", HISTORIES)
def test_a_node_trusts_the_roots_that_the_real_pool_trusts_once_the_next_root_is_introduced(name: str) -> None:
    compared = 0
    for history in (*histories(name), *restorations(name)):
        real, abstract = history[-1]
        if abstract.phase is not Phase.PUBLISHED:
            continue
        store = Store(docs=tuple(document for _, document in history), heads=(len(history) - 1,), stable=0)
        for at in (len(first(name)) - 1, len(history) - 1):
            held, held_model = history[at]
            pool = TrustPool(org=ORG, current=held.current, roots=held.roots, anchored=held.anchored_trust)
            for pushed in make_introductions(real, org=ORG):
                pool.offer_session_commits([Commit.from_json(one, org=ORG) for one in pushed])
            node = Node(version=at, introductions=1 << abstract.rotation)
            if knows_introducer(store, held_model, abstract.rotation):
                assert set(pool.root_ids) == named(WORLD.trusted(store, node))
            else:  # it takes the introduction of the next anchor alone
                anchor = (abstract.anchored or Anchoring()).next
                trusted = WORLD.trusted(store, node._replace(introductions=0))
                assert set(pool.root_ids) == named(trusted | (0 if anchor == NO_ANCHOR else 1 << anchor))
            compared += 1
    assert compared >= 4
