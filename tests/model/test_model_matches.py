"""The model against the real code: documents, succession, trust, and what `decide` looks at. Where they differ, fix the
model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import chain

import pytest

from goatherd.cluster.server_answers import ServerIdentity
from goatherd.errors import GenerationError, GenerationJumpError, SuccessionError, UnsignedIdentityError
from goatherd.identity import transitions
from goatherd.identity.document import (
    IdentityDocument,
    Phase,
    decode_document,
    document_digest,
    document_tree,
    encode_document,
)
from goatherd.identity.root_signatures import MEMBER
from goatherd.identity.session import OwnedSession
from goatherd.identity.strict_json import to_pretty_json
from goatherd.identity.succession import MAX_JUMP, verify_successor
from goatherd.providers.base import CURRENT
from goatherd.providers.memory import MemorySecretProvider, MemoryStore
from goatherd.rotation.cross_signing import make_cross_signature, make_introduction
from goatherd.rotation.machine import STEPS, Goal, Intent, Observation, Policy, Step, decide
from goatherd.rotation.signed_store import SignedStoreCheck
from goatherd.trust import TrustPool
from goatherd.wire.commit import Commit

from .explorer import explore
from .settings import Options, Removed
from .state import Node
from .store import (
    FIRST,
    NAMES,
    NONE,
    Alteration,
    Document,
    Signature,
    Store,
    advanced,
    altered,
    bits,
    follows,
    may_leave,
    prepared,
    pruned,
)
from .world import World

NOW = 1_795_000_000_000
ORG = "localhost"
Pair = tuple[IdentityDocument, Document]


@cache
def root(name: str) -> OwnedSession:
    return OwnedSession.generate(session_id=name, owner="root", now_ms=NOW)


def followed(history: tuple[Pair, ...], step: Step) -> tuple[Pair, ...]:
    """Take a step in the real code and in the model, and return both documents behind those before them."""
    real, abstract = history[-1]
    version, at = len(history) - 1, NOW + 1000 * len(history)
    match step:
        case Step.PREPARE:
            number = 1 + max(document.rotation for _, document in history)
            abstract = prepared(abstract, version, number)
            real = transitions.prepare_rotation(
                real,
                root(NAMES[number]),
                now_ms=at,
                rotation_id=f"rotation-{number}",
                started_by="",
                stable_version=str(version),
            )
            return (*history, (real, abstract))
        case Step.PUBLISH:
            real = transitions.with_phase(real, Phase.PUBLISHED, at)
        case Step.ACTIVATE:
            real = transitions.activate_rotation(real, at)
        case Step.VERIFY:
            real = transitions.with_phase(real, Phase.VERIFIED, at)
        case Step.FINALIZE:
            real = transitions.finalize_rotation(real, at)
        case Step.CANCEL:
            real = transitions.cancel_rotation(real, at, reason="why")
        case Step.PRUNE:
            leaving = transitions.prunable_roots(real)
            assert leaving == named(may_leave(abstract))
            return (
                *history,
                (transitions.prune_roots(real, leaving, at), pruned(abstract, version, may_leave(abstract))),
            )
        case Step.ROLL_BACK:
            real = transitions.roll_back_rotation(real, history[abstract.rollback][0], at, reason="why")
    earlier = history[abstract.rollback][1] if step is Step.ROLL_BACK else None
    return (*history, (real, advanced(abstract, version, step, earlier)))


@cache
def histories(rotations: int) -> tuple[tuple[Pair, ...], ...]:
    """Return every sequence of documents of at most this number of rotations, and every beginning of such a
    sequence."""

    def walk(history: tuple[Pair, ...]) -> Iterator[tuple[Pair, ...]]:
        yield history
        phase = history[-1][1].phase
        for before, step in STEPS:
            is_full = step is Step.PREPARE and max(document.rotation for _, document in history) == rotations
            # A prune leads back to the same state, so it is made only where roots can leave, and the walk ends.
            is_idle = step is Step.PRUNE and not may_leave(history[-1][1])
            if before is phase and not is_full and not is_idle:
                yield from walk(followed(history, step))

    return tuple(walk(((transitions.create_document(root("A"), NOW), FIRST),)))


def rotations_of(mask: int) -> set[str]:
    return {f"rotation-{number}" for number in bits(mask)}


def named(mask: int) -> set[str]:
    return {NAMES[number] for number in bits(mask)}


def private_keys(document: IdentityDocument) -> set[str]:
    """Return the roots whose private keys are anywhere in a document's text."""

    def walk(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            if "privateKey" in value:
                yield str(value["id"])
            yield from chain.from_iterable(map(walk, value.values()))
        elif isinstance(value, list):
            yield from chain.from_iterable(map(walk, value))

    return set(walk(json.loads(encode_document(document))))


def test_documents_change_as_the_real_ones_do() -> None:
    ways = histories(2)
    assert len(ways) > 50
    for history in ways:
        compare_documents(*history[-1])


def test_documents_of_a_restore_change_as_the_real_ones_do() -> None:
    compared = 0
    for history in histories(1):
        abstract = history[-1][1]
        if abstract.phase is not Phase.STEADY:
            continue
        for earlier in bits(abstract.roots & ~(1 << abstract.current)):
            for way in restorations(history, earlier):
                compare_documents(*way[-1])
                compared += 1
    assert compared > 20


def restorations(history: tuple[Pair, ...], earlier: int) -> Iterator[tuple[Pair, ...]]:
    """Every way that a restore of an earlier root can take."""
    real, abstract = history[-1]
    version, at = len(history) - 1, NOW + 1000 * len(history)
    number = 1 + max(document.rotation for _, document in history)
    restored = transitions.prepare_restore(
        real,
        root(NAMES[earlier]),
        now_ms=at,
        rotation_id=f"rotation-{number}",
        started_by="",
        stable_version=str(version),
    )
    begun = (*history, (restored, prepared(abstract, version, number, earlier)))

    def walk(way: tuple[Pair, ...]) -> Iterator[tuple[Pair, ...]]:
        yield way
        for before, step in STEPS:
            if before is way[-1][1].phase and step not in (Step.PREPARE, Step.PRUNE):
                yield from walk(followed(way, step))

    yield from walk(begun)


def compare_documents(real: IdentityDocument, abstract: Document) -> None:
    """Check that a document is what the model says."""
    record = real.rotation
    assert real.generation == abstract.generation
    assert Phase(real.phase or Phase.STEADY) is abstract.phase
    assert real.current.id == NAMES[abstract.current]
    assert (None if real.next is None else real.next.id) == (None if abstract.next == NONE else NAMES[abstract.next])
    assert {one.id for one in real.roots} == named(abstract.roots)
    assert real.rotated_from == (None if abstract.before == NONE else NAMES[abstract.before])
    assert real.pruned == len(bits(abstract.pruned))
    assert private_keys(real) == named(abstract.private)
    assert (record is None) == (abstract.rotation == 0)
    if record is not None:
        assert record.from_id == NAMES[abstract.origin]
        assert record.to_id == NAMES[abstract.target]
        assert record.stable_version == str(abstract.rollback)
    by_event = {
        event: {entry.rotation_id for entry in real.history if entry.event in events}
        for event, events in (("finished", transitions.SUCCESSES), ("cancelled", {"cancelled"}))
    }
    assert {entry.rotation_id for entry in real.history} == rotations_of(abstract.ended)
    assert by_event["finished"] == rotations_of(abstract.finished)
    assert by_event["cancelled"] == rotations_of(abstract.cancelled)
    assert [(one.by, one.of) for one in real.endorsements] == [(NAMES[by], NAMES[of]) for by, of in abstract.endorsed]


def test_a_run_recognizes_its_rotation_as_the_real_one_does() -> None:
    for history in histories(2):
        real, abstract = history[-1]
        for number in (1, 2):
            begun = transitions.has_begun(real, f"rotation-{number}")
            # A rotation in progress hides the previous one; a run of that one learns that another operator rotates.
            is_over = abstract.rotation == 0 and bool(abstract.ended >> number & 1)
            assert begun is (abstract.rotation == number or is_over)


def test_a_node_takes_what_the_real_one_takes() -> None:
    world = World(Options(nodes=1, operators=1))
    pairs = {id(pair[0]): pair for history in histories(1) for pair in history}.values()
    answers = set()
    for held, held_model in pairs:
        for new, new_model in pairs:
            if new is held:
                continue
            try:
                verify_successor(new, held)
                is_taken = True
            except (GenerationError, SuccessionError):
                is_taken = False
            is_grown = new.lineage is None or not new.lineage.contradicts(held.generation, document_digest(held))
            assert world.takes(new_model, held_model, is_grown=is_grown) is is_taken
            answers.add(is_taken)
    assert answers == {True, False}


def test_neither_follows_a_document_whose_root_no_trusted_root_endorsed() -> None:
    real, abstract = histories(1)[0][-1]
    stranger = root("X")
    new = replace(real, generation=2, current=stranger, roots=(*real.roots, stranger.session))
    with pytest.raises(SuccessionError):
        verify_successor(new, real)
    assert not follows(abstract._replace(generation=2, current=4, roots=abstract.roots | 1 << 4), abstract)


@pytest.mark.parametrize("how", list(Alteration))
@pytest.mark.parametrize("signature", [Signature.INVALID, Signature.MISSING])
@pytest.mark.parametrize("was_signed", [True, False])
def test_both_or_neither_accept_a_change_by_a_writer_without_the_key(
    how: Alteration, signature: Signature, was_signed: bool
) -> None:
    """Includes a run, which reads earlier signatures from the store."""
    history = next(one for one in histories(1) if one[-1][1].finished)
    (held, _), version = history[-1], len(history) - 1
    stored = Store(docs=tuple(document for _, document in history), heads=(version,), stable=version)
    new_model = altered(stored.head, version, how, signature)
    assert new_model is not None
    new = altered_document(held, how, signature)
    store = stored._replace(docs=(*stored.docs, new_model))
    held_model = stored.head
    if not was_signed:
        held = decode_document(to_pretty_json({**document_tree(held), MEMBER: None}))
        held_model = held_model._replace(signature=Signature.MISSING)
    try:
        verify_successor(new, held)
        is_taken = True
    except (GenerationError, SuccessionError):
        is_taken = False
    assert World(Options(nodes=1, operators=1)).takes(new_model, held_model) is is_taken
    assert new.is_signed is (new_model.signature is Signature.VALID)
    if was_signed:
        assert not is_taken
        assert store.is_refused(len(store.docs) - 1)
        with pytest.raises((UnsignedIdentityError, GenerationJumpError)):
            asyncio.run(checked(new, held))


async def checked(new: IdentityDocument, before: IdentityDocument) -> None:
    """Check a document as a command does that goes on from it."""
    provider = MemorySecretProvider(MemoryStore())
    async with provider:
        await provider.create("root", encode_document(before))
        first = (await provider.read("root")).version.id
        await provider.write("root", encode_document(new), label=CURRENT, expected=first)

        async def ask() -> dict[str, ServerIdentity]:
            return {}

        await SignedStoreCheck(provider, "root", ask).check_document(new)


def altered_document(real: IdentityDocument, how: Alteration, signature: Signature) -> IdentityDocument:
    """Return what a writer without a root's key writes."""
    tree = {**document_tree(real), "generation": real.generation + 1}
    other = next(root for root in real.roots if root.id != real.current.id)
    match how:
        case Alteration.EXPIRATION:
            later = {"expiration": other.expiration_ms + 1}
            tree["roots"] = [{**one, **later} if one["id"] == other.id else one for one in tree["roots"]]
        case Alteration.ROOT:
            tree["roots"] = [one for one in tree["roots"] if one["id"] != other.id]
            tree["endorsements"] = [one for one in tree["endorsements"] if other.id not in (one["by"], one["of"])]
            tree["rotatedFrom"] = None
        case Alteration.REVOCATION:
            tree["revoked"] = [{"id": other.id, "at": "2026-01-01T00:00:00.000Z", "reason": "why"}]
        case Alteration.GENERATION:
            tree["generation"] = real.generation + MAX_JUMP + 1
    if signature is Signature.MISSING:
        tree[MEMBER] = None
    return decode_document(to_pretty_json(tree))


def test_a_node_trusts_whom_the_real_pool_trusts() -> None:
    world = World(Options(nodes=1, operators=1))
    full = next(history for history in histories(1) if history[-1][1].finished)
    by_phase = {document.phase: real for real, document in full[1:-1]}
    commits = {
        "introduction": make_introduction(by_phase[Phase.PUBLISHED], org=ORG),
        "cross": make_cross_signature(by_phase[Phase.ACTIVATED], org=ORG),
    }
    for history in histories(1):
        documents = tuple(document for _, document in history)
        if not any(document.rotation for document in documents):
            continue
        store = Store(docs=documents, heads=(len(documents) - 1,), stable=NONE)
        real = history[-1][0]
        for has_introduction in (False, True):
            for has_cross in (False, True):
                pool = TrustPool(org=ORG, current=real.current, roots=real.roots)
                held = [commits["introduction"]] * has_introduction + [commits["cross"]] * has_cross
                pool.offer_session_commits([Commit.from_json(one, org=ORG) for one in held])
                node = Node(
                    version=len(documents) - 1, introductions=2 * has_introduction, cross_signatures=2 * has_cross
                )
                assert set(pool.root_ids) == named(world.trusted(store, node))


@pytest.mark.slow
def test_a_run_that_rotates_and_one_that_resumes_are_told_apart_by_nothing_once_they_are_bound() -> None:
    asked = 0

    def compare(observation: Observation, intent: Intent, now_ms: int) -> tuple[Observation, Intent, int]:
        nonlocal asked
        if intent.goal is Goal.RESUME and intent.rotation_id is not None:
            asked += 1
            twin = replace(intent, goal=Goal.ROTATE, from_id="A")
            assert decide(observation, Policy(), twin, now_ms) == decide(observation, Policy(), intent, now_ms)
        return observation, intent, now_ms

    assert explore(Options(nodes=2, operators=1), Removed(lie=compare)).broken is None
    assert asked > 100
