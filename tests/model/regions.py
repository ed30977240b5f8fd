"""A rotation whose identity is stored in three regions: every order of events, with followers that lag and a
promotion.

What it is: the real `decide`, `compare_documents` and `find_objections` around the documents of `store`, with a primary
store, a follower that another process fills, a follower that the command itself writes, and a server in each region.
What it is not: the servers' logs, which `world` explores: a server that has read the published identity holds the
introduction.

A version is the number of a document. Documents are kept once for all states, each with the one that it was made from.

The adversary, in one place:
- A server reads any store that it reaches, at any time: a store before it may not have answered in time.
- The other process copies the primary store's changes one by one, at any time. The other follower is written
  label by label; a command may crash in between.
- Once, a region's store is lost, or the region with its server, in any state; and it returns in any state.
- Once, a follower is promoted, in any state. What the promotion asks and does not reach is not known to it.
- A command looks and changes the primary store at any time, or crashes at any time. The deadline may have passed or
  not. A look and the change that it leads to are one step, since a change of what was not read is refused.
- In some worlds commands with the old configuration continue after the promotion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from time import process_time
from typing import Any, NamedTuple

from goatherd.identity.lineage import Lineage
from goatherd.rotation.machine import (
    Abandon,
    Advance,
    Goal,
    Intent,
    LabelStable,
    Observation,
    Phase,
    Policy,
    Prepare,
    Step,
    decide,
)
from goatherd.stores import DocumentMark, FollowerView, Standing, compare_documents
from goatherd.stores.promotion import find_objections

from .decisions import EARLY, LATE, Sight, _node_view, _store_view
from .store import FIRST, NAMES, NONE, Document, advanced, follows, lost_roots, prepared

EU, US, AP = range(3)
REGIONS = ("eu", "us", "ap")
Answer = str
"""A step of a rotation, or "label": what a command does."""
HUB = -1
"""Where commands run: in none of the regions."""

RULES = {
    "generation": "no server goes to a lower generation",
    "one history": "a server adopts only an identity that has grown from the one that it uses",
    "one signer": "servers that reach each other and have the same generation sign with the same root; each trusts the "
    "root that the others sign with",
    "in step": "no change except a roll-back is made while another process still copies the previous one",
    "signer kept": "a root that signs is in the identity that each region's store holds",
    "overwritten": "no store's identity is replaced by one that has not grown from it",
    "promoted": "a promoted identity replaces all that a server or store within reach has shown",
    "steady": "from every state, steady can be reached: all stores and servers alike, nothing in progress",
}
"""The rules by name. Docs print this table."""


class Held(NamedTuple):
    """The positions of the labels of one region's store."""

    current: int
    stable: int


class State(NamedTuple):
    """A state of the world.

    Attributes:
        stores: What each region's store holds.
        queue: The states of the primary store that the other process has not copied yet; None once
            it has ended.
        nodes: The version that each region's server uses.
        cut: The region that is cut off, or `NONE`.
        primary: The region that commands name as the primary store's.
        lagged: Bits: regions that the operator has let lag, until they are in step again.
        promoted: The version that a promotion has written, or `NONE`.
        last: The kind of the last change, "write" or "label", where a mutant asks for it.
    """

    stores: tuple[Held, Held, Held]
    queue: tuple[Held, ...] | None
    nodes: tuple[int, int, int]
    cut: int
    cuts_left: int
    primary: int
    promotions_left: int
    lagged: int = 0
    promoted: int = NONE
    last: str = ""


@dataclass(frozen=True, kw_only=True)
class Options:
    """One world.

    Attributes:
        cuts, promotions: How often a region may be cut off, and a follower promoted.
        lost: The regions that may be cut off.
        waits: Whether a lost region returns only when every server uses what the promotion has written, or later.
        takes_server: Whether a region is cut off with its server, not only its store.
        rivals: Whether commands with the old configuration go on after a promotion.
        rotations: How many rotations one history may have.
        liveness: Whether from every state there must be a way to steady.
    """

    cuts: int = 1
    promotions: int = 1
    lost: tuple[int, ...] = (EU, US, AP)
    waits: bool = True
    takes_server: bool = False
    rivals: bool = False
    rotations: int = 1
    liveness: bool = True


@dataclass(slots=True)
class Found:
    """The result of an exploration.

    Attributes:
        steady: How many states are steady.
        largest_lag: By how many changes a follower was behind at most.
        promoted: How many states come after a promotion.
        split: In how many states there are two histories.
        decisions: How often `decide` was asked.
        broken, path: The first rule that is broken, and what has led there.
    """

    states: int = 0
    transitions: int = 0
    depth: int = 0
    steady: int = 0
    largest_lag: int = 0
    promoted: int = 0
    split: int = 0
    decisions: int = 0
    broken: str | None = None
    path: list[str] = field(default_factory=list)
    seconds: float = 0.0


class _Documents:
    """All documents of one exploration, by number, with the real comparison of each pair."""

    def __init__(self) -> None:
        self.all: list[Document] = [FIRST]
        self._numbers = {FIRST: 0}
        self._digests = [hashlib.sha256(repr(FIRST).encode()).hexdigest()]
        self._lineages = [Lineage()]
        self.standing = cache(self._standing)
        self.is_grown = cache(self._is_grown)

    def number(self, document: Document) -> int:
        found = self._numbers.get(document)
        if found is None:
            found = self._numbers[document] = len(self.all)
            self.all.append(document)
            before = document.base
            self._digests.append(hashlib.sha256(f"{self._digests[before]} {document!r}".encode()).hexdigest())
            self._lineages.append(
                self._lineages[before].followed_by(self.all[before].generation, self._digests[before])
            )
        return found

    def mark(self, version: int) -> DocumentMark:
        generation = self.all[version].generation
        return DocumentMark(generation=generation, digest=self._digests[version], lineage=self._lineages[version])

    def _standing(self, one: int, other: int) -> Standing:
        return compare_documents(self.mark(one), self.mark(other))

    def _is_grown(self, version: int, held: int) -> bool:
        """Return whether a version is another one or has grown from it, by the documents and not by their marks."""
        while version != held and version != NONE:
            version = self.all[version].base
        return version == held

    def rotations(self, version: int) -> int:
        """Return the number of the last rotation in this history, and one more for a promotion."""
        numbers = []
        while version != NONE:
            numbers.append(self.all[version].rotation)
            version = self.all[version].base
        return max(numbers)


class World:
    """One world: its first state, what can follow each, and what must hold."""

    def __init__(self, options: Options, removed: str = "") -> None:
        self.options, self.removed = options, removed
        self.documents = _Documents()
        self.decisions = 0
        self._decided: dict[tuple[Any, ...], tuple[Answer, ...]] = {}
        self._harms: dict[tuple[Any, ...], str | None] = {}

    def first(self) -> State:
        held = Held(0, NONE)
        options = self.options
        return State((held, held, held), (), (0, 0, 0), NONE, options.cuts, EU, options.promotions)

    # --- which servers reach which ------------------------------------------------------------------------------------

    def _reaches_store(self, state: State, region: int, place: int) -> bool:
        """Whether from a place (a region, or `HUB`) the store of a region answers."""
        if state.cut == NONE:
            return True
        return (place == state.cut) == (region == state.cut) if self.options.takes_server else region != state.cut

    def _reaches_server(self, state: State, region: int, place: int) -> bool:
        if state.cut == NONE or not self.options.takes_server:
            return True
        return (place == state.cut) == (region == state.cut)

    def _place_of(self, state: State, primary: int) -> int:
        """Return where commands with this configuration run: those with the old one, on the side of its store."""
        return primary if primary != state.primary and primary == state.cut else HUB

    def _primaries(self, state: State) -> list[int]:
        """Return the regions that commands name as the primary store's."""
        return sorted({state.primary, EU}) if self.options.rivals else [state.primary]

    # --- moves ----------------------------------------------------------------------------------------------------

    def moves(self, state: State) -> Iterator[tuple[State, str, str | None]]:
        """Yield every next state, what has happened, and the rule that the move itself breaks."""
        yield from self._reads(state)
        yield from self._replications(state)
        yield from self._cuts(state)
        yield from self._promotions(state)
        yield from self._looks(state)

    def _reads(self, state: State) -> Iterator[tuple[State, str, str | None]]:
        docs = self.documents
        for node, held in enumerate(state.nodes):
            for version in dict.fromkeys(one.current for one in state.stores):
                places = [at for at, one in enumerate(state.stores) if one.current == version]
                if version == held or not any(self._reaches_store(state, at, node) for at in places):
                    continue
                if self.removed != "generation" and docs.standing(version, held) is not Standing.AHEAD:
                    continue
                new, old = docs.all[version], docs.all[held]
                if self.removed != "generation" and (not follows(new, old) or lost_roots(new, old)):
                    continue
                broken = "generation" if new.generation < old.generation else None
                broken = broken or (None if docs.is_grown(version, held) else "one history")
                nodes = tuple(version if at == node else one for at, one in enumerate(state.nodes))
                what = f"The server in {REGIONS[node]} reads {self.name(version)} and takes it."
                yield state._replace(nodes=nodes), what, broken  # type: ignore[arg-type]

    def _replications(self, state: State) -> Iterator[tuple[State, str, str | None]]:
        if state.queue and EU != state.cut != US:
            after = _with_store(state, US, state.queue[0])._replace(queue=state.queue[1:])
            yield self._caught_up(after), f"Another process copies {self.name(state.queue[0].current)} to us.", None
        for primary in self._primaries(state):
            place = self._place_of(state, primary)
            if not self._reaches_store(state, primary, place):
                continue
            for region in range(3):
                is_filled = region == US and state.queue is not None
                if region != primary and not is_filled and self._reaches_store(state, region, place):
                    yield from self._brought_forward(state, primary, region)

    def _brought_forward(self, state: State, primary: int, region: int) -> Iterator[tuple[State, str, str | None]]:
        """Write the next label of a follower (`ReplicatedStore._bring_forward`)."""
        ours, theirs = state.stores[primary], state.stores[region]
        standing = self.documents.standing(theirs.current, ours.current)
        if standing is Standing.SPLIT and state.promoted != NONE and primary == state.primary:
            text = f"The operator deletes the secret in {REGIONS[region]}, and `stores sync` fills that store."
            yield self._caught_up(_with_store(state, region, ours)), text, None
        if standing in (Standing.AHEAD, Standing.SPLIT) and self.removed != "later kept":
            return
        if ours.stable not in (NONE, ours.current, theirs.stable):
            after, what = theirs._replace(stable=ours.stable), "label stable"
        elif theirs.current != ours.current:
            after, what = theirs._replace(current=ours.current), self.name(ours.current)
        elif ours.stable not in (NONE, theirs.stable):
            after, what = theirs._replace(stable=ours.stable), "label stable"
        else:
            return
        broken = None if self.documents.is_grown(after.current, theirs.current) else "overwritten"
        moved = self._caught_up(_with_store(state, region, after))
        yield moved, f"The follower in {REGIONS[region]} gets {what} of {REGIONS[primary]}.", broken

    def _caught_up(self, state: State) -> State:
        behind = (at for at in range(3) if not self._shows(state, at, state.primary))
        return state._replace(lagged=state.lagged & sum(1 << at for at in behind))

    def _cuts(self, state: State) -> Iterator[tuple[State, str, str | None]]:
        if state.cut != NONE:
            is_adopted = all(self.documents.is_grown(one, state.promoted) for one in state.nodes)
            if state.promoted == NONE or is_adopted or not self.options.waits:
                yield state._replace(cut=NONE), f"Region {REGIONS[state.cut]} is back.", None
        elif state.cuts_left:
            for region in self.options.lost:
                after = state._replace(cut=region, cuts_left=state.cuts_left - 1)
                yield after, f"Region {REGIONS[region]} is cut off.", None

    def _promotions(self, state: State) -> Iterator[tuple[State, str, str | None]]:
        docs = self.documents
        for region in range(3):
            if not state.promotions_left or region == state.primary or not self._reaches_store(state, region, HUB):
                continue
            held = state.stores[region]
            others = [
                *(at.current for place, at in enumerate(state.stores) if self._reaches_store(state, place, HUB)),
                *(version for place, version in enumerate(state.nodes) if self._reaches_server(state, place, HUB)),
            ]
            seen = {} if self.removed == "evidence" else {str(one): docs.mark(one) for one in others}
            if find_objections(docs.mark(held.current), seen):
                continue
            document = docs.all[held.current]
            rotating = document.rotation != 0
            changed = document._replace(
                generation=max(document.generation, *(mark.generation for mark in seen.values()), 0) + 1,
                base=held.current,
                rollback=held.stable if rotating else NONE,
            )
            version = docs.number(changed)
            after = _with_store(state, region, held._replace(current=version))
            after = after._replace(queue=None, primary=region, promotions_left=state.promotions_left - 1)
            after = after._replace(promoted=version)
            broken = None if all(docs.is_grown(version, one) for one in others) else "promoted"
            yield after, f"Region {REGIONS[region]} is promoted, by {self.name(version)}.", broken

    # --- commands -------------------------------------------------------------------------------------------------

    def _looks(self, state: State) -> Iterator[tuple[State, str, str | None]]:
        """Let a command look and change the primary store, or wait, or give up."""
        for primary in self._primaries(state):
            place = self._place_of(state, primary)
            if not self._reaches_store(state, primary, place):
                continue
            for answer in self._answers(state, primary, place):
                yield from self._acts(state, primary, answer)
            # The operator lets a lost region lag.
            if state.cut not in (NONE, primary, place) and not state.lagged >> state.cut & 1:
                yield state._replace(lagged=state.lagged | 1 << state.cut), f"{REGIONS[state.cut]} may lag.", None

    def _views(self, state: State, primary: int) -> tuple[FollowerView, ...]:
        """Return what `ReplicatedStore.observe` reports about the followers."""
        views = []
        for region in range(3):
            if region == primary:
                continue
            is_reachable = self._reaches_store(state, region, self._place_of(state, primary))
            standing = None
            if is_reachable:
                standing = self.documents.standing(state.stores[region].current, state.stores[primary].current)
            views.append(
                FollowerView(
                    region=REGIONS[region],
                    scheme="model",
                    is_in_step=is_reachable and self._shows(state, region, primary),
                    is_allowed=bool(state.lagged >> region & 1),
                    is_lasting=standing in (Standing.AHEAD, Standing.SPLIT),
                    is_reachable=is_reachable,
                    standing=standing,
                    labels={},
                    problem="behind",
                )
            )
        return tuple(views)

    def _shows(self, state: State, region: int, primary: int) -> bool:
        """Whether a region's store shows what the primary store holds, and no other process still copies to it."""
        ours, theirs = state.stores[primary], state.stores[region]
        if region == US and primary == EU and state.queue:
            return False
        return theirs.current == ours.current and (ours.stable == NONE or theirs.stable == ours.stable)

    def _answers(self, state: State, primary: int, place: int) -> tuple[Answer, ...]:
        """Return what the real `decide` answers to a command that looks now, before and after the deadline."""
        held = state.stores[primary]
        document = self.documents.all[held.current]
        # A command with the old configuration lists the servers of its side only.
        listed = [
            at
            for at in range(3)
            if not (self.options.rivals and self.options.takes_server) or self._reaches_server(state, at, place)
        ]
        sights = tuple(self._sight(held.current, state.nodes[at]) for at in listed)
        shown = tuple("truth" if self._reaches_server(state, at, place) else "silence" for at in listed)
        views = self._views(state, primary)
        if self.removed in ("gates", f"gate after {state.last}"):
            views = ()
        if self.removed == "going back" and document.phase is not Phase.STEADY:
            # `decide` sees no later store, and goes back at the deadline.
            views = tuple(replace(one, standing=Standing.BEHIND, is_lasting=False) for one in views)
        marks = tuple((one.is_in_step, one.is_allowed, one.standing) for one in views)
        key = (held, sights, shown, marks)
        found = self._decided.get(key)
        if found is None:
            found = self._decided[key] = tuple(dict.fromkeys(self._decide(document, held, sights, shown, views)))
        return found

    def _decide(
        self,
        document: Document,
        held: Held,
        sights: tuple[Sight, ...],
        shown: tuple[str, ...],
        views: tuple[FollowerView, ...],
    ) -> Iterator[Answer]:
        labelled = None if held.stable == NONE else "current" if held.stable == held.current else "stable"
        is_steady = document.phase is Phase.STEADY
        nodes = tuple(
            _node_view(at, sight, how, document.generation)
            for at, (sight, how) in enumerate(zip(sights, shown, strict=True))
        )
        intent = Intent(
            goal=Goal.ROTATE if is_steady else Goal.RESUME,
            began_ms=0,
            from_id=NAMES[document.current] if is_steady else "",
            rotation_id=None if is_steady else f"rotation {document.rotation}",
        )
        store = _store_view(document, labelled if is_steady else None, 0)
        for now_ms in (EARLY, LATE):
            self.decisions += 1
            match decide(Observation(store=store, nodes=nodes, followers=views), Policy(), intent, now_ms):
                case LabelStable():
                    yield "label"
                case Prepare():
                    yield Step.PREPARE
                case Advance(step=step) | Abandon(step=step):
                    yield step

    def _sight(self, version: int, used: int) -> Sight:
        """Return what a server shows to a run that has read a version."""
        document, held = self.documents.all[version], self.documents.all[used]
        # What a server has only read as prepared was not introduced to it yet.
        is_known = held.phase is not Phase.PREPARED or held.target != document.target
        trusts = bool(document.rotation and is_known and held.roots >> document.target & 1)
        return Sight(
            trusts=trusts,
            holds=trusts,
            signer=held.current,
            crossed=bool(document.rotation and held.current == document.target),
            rejects=document.generation > held.generation and not follows(document, held),
            is_dead=False,
            is_behind=document.phase is Phase.ACTIVATED and held.generation < document.generation,
            is_ahead=document.generation < held.generation,
            is_other=document.generation == held.generation and version != used,
        )

    def _acts(self, state: State, primary: int, answer: Answer) -> Iterator[tuple[State, str, str | None]]:
        held = state.stores[primary]
        document = self.documents.all[held.current]
        if answer == "label":
            after, what = held._replace(stable=held.current), "labels its version stable"
        else:
            number = self.documents.rotations(held.current) + 1
            if answer == Step.PREPARE and number > self.options.rotations:
                return
            # A promoted history makes roots of its own.
            number += self.options.rotations * (primary != EU)
            earlier = self.documents.all[document.rollback] if document.rollback != NONE else None
            version = self.documents.number(
                prepared(document, held.current, number)
                if answer == Step.PREPARE
                else advanced(document, held.current, Step(answer), earlier)
            )
            after, what = held._replace(current=version), f"writes {self.name(version)}"
        moved = _with_store(state, primary, after)
        if self.removed.startswith("gate after"):
            moved = moved._replace(last="label" if answer == "label" else "write")
        broken = None
        if primary == EU and state.queue is not None:
            if state.queue and answer not in (Step.CANCEL, Step.ROLL_BACK) and not state.lagged >> US & 1:
                broken = "in step"
            moved = moved._replace(queue=(*state.queue, after)[-3:])
        yield moved, f"A command {what} in {REGIONS[primary]}.", broken

    # --- what must hold -------------------------------------------------------------------------------------------

    def judge(self, state: State) -> str | None:
        """Return the first rule that a state breaks, or None."""
        key = (state.nodes, state.cut if self.options.takes_server else NONE, state.stores, state.lagged)
        if key not in self._harms:
            self._harms[key] = self._harm(state)
        return self._harms[key]

    def _harm(self, state: State) -> str | None:
        used = [self.documents.all[one] for one in state.nodes]
        for one in range(3):
            for other in range(3):
                if one == other or not self._reaches_server(state, one, other):
                    continue
                if used[one].generation == used[other].generation and used[one].current != used[other].current:
                    return "one signer"
                if not used[one].roots >> used[other].current & 1:
                    return "one signer"
        for region, held in enumerate(state.stores):
            if state.lagged >> region & 1:
                continue
            listed = self.documents.all[held.current].roots
            if any(not listed >> document.current & 1 for document in used):
                return "signer kept"
        return None

    def is_split(self, state: State) -> bool:
        """Whether two stores or servers hold two histories."""
        held = {*(one.current for one in state.stores), *state.nodes}
        return any(self.documents.standing(one, other) is Standing.SPLIT for one in held for other in held)

    def is_steady(self, state: State) -> bool:
        held = state.stores[state.primary]
        return (
            state.cut == NONE
            and not state.queue
            and self.documents.all[held.current].phase is Phase.STEADY
            and held.stable == held.current
            and set(state.stores) == {held}
            and set(state.nodes) == {held.current}
        )

    def name(self, version: int) -> str:
        """Return a version's name for a story."""
        document = self.documents.all[version]
        return f"generation {document.generation} ({document.phase}, {NAMES[document.current]} signs)"


def _with_store(state: State, region: int, held: Held) -> State:
    stores = tuple(held if at == region else one for at, one in enumerate(state.stores))
    return state._replace(stores=stores)  # type: ignore[arg-type]


def explore(
    options: Options, removed: str = "", *, allowed: frozenset[str] = frozenset(), limit: int = 3_000_000
) -> Found:
    """Walk every reachable state and return what was found; stop at the first broken rule.

    Raises:
        AssertionError: There are more states than `limit`.
    """
    began, world, found = process_time(), World(options, removed), Found()
    first = world.first()
    numbers = {first: 0}
    states, parents, texts, depths = [first], [-1], [""], [0]
    before: list[list[int]] = [[]]
    at = 0
    while at < len(states) and found.broken is None:
        state = states[at]
        for after, what, harm in world.moves(state):
            broken = harm if harm not in allowed else None
            number = numbers.get(after)
            if number is None:
                number = numbers[after] = len(states)
                states.append(after)
                parents.append(at)
                texts.append(what)
                depths.append(depths[at] + 1)
                before.append([])
                rule = world.judge(after)
                broken = broken or (rule if rule not in allowed else None)
            before[number].append(at)
            found.transitions += 1
            if broken is not None:
                found.broken, found.path = broken, [*_path(parents, texts, at), what]
                break
        assert len(states) < limit, f"more than {limit} states"
        at += 1
    found.states, found.depth = len(states), depths[-1]
    goals = [number for number, state in enumerate(states) if world.is_steady(state)]
    found.steady = len(goals)
    found.largest_lag = max(len(state.queue or ()) for state in states)
    found.promoted = sum(state.promotions_left < options.promotions for state in states)
    found.split, found.decisions = sum(map(world.is_split, states)), world.decisions
    if found.broken is None and options.liveness:
        stuck = _stuck(len(states), before, goals)
        if stuck is not None:
            found.broken, found.path = "steady", _path(parents, texts, stuck)
    found.seconds = process_time() - began
    return found


def _stuck(count: int, before: list[list[int]], goals: list[int]) -> int | None:
    """Return the first state from which no goal can be reached."""
    reaches = bytearray(count)
    for number in goals:
        reaches[number] = 1
    stack = list(goals)
    while stack:
        for number in before[stack.pop()]:
            if not reaches[number]:
                reaches[number] = 1
                stack.append(number)
    at = reaches.find(0)
    return None if at < 0 else at


def _path(parents: list[int], texts: list[str], at: int) -> list[str]:
    path = []
    while parents[at] >= 0:
        path.append(texts[at])
        at = parents[at]
    return path[::-1]
