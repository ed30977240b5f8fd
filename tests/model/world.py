"""The moves of a world: everything that nodes, operators, the store and the adversary may do next.

What it is: `World.moves`, a function from a state to every state that can follow, around the real `decide`. What it is
not: it judges nothing (`invariants`) and walks nothing (`explorer`).

A state is one whole number, put together from numbers for its parts (`Packed`). Nodes are alike and so are operators,
so both are kept sorted: states that differ only in who is called 1 and who 2 are one state.

The adversary, in one place:
- A node looks at the store when it likes, and is shown whatever the store's guarantee allows.
- What was pushed once may reach any node, at any time, never, or again: from the operator, or from another node.
- At a look at the nodes, any of them may give no answer; one may answer half. The deadline may have passed or not.
- A writer without a root's key alters the document once, signature or not.
- A label that is not the rotator's may be put on any version, and taken off, at any time.
- Between looking and acting anything may happen; an action may fail before or after its effect, and the run may crash
  before and after it. A run that is gone may be followed by another one with any goal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from goatherd.identity.succession import MAX_JUMP
from goatherd.rotation.machine import (
    Abandon,
    Action,
    Advance,
    Busy,
    CrossSign,
    Destroy,
    Done,
    Goal,
    Illegal,
    Introduce,
    IntroduceEarlier,
    LabelStable,
    Outcome,
    Phase,
    Prepare,
    PrepareRestore,
    Prune,
    RecordRetired,
    Refuse,
    Step,
    Wait,
)

from .anchors import NO_ANCHOR, Anchoring, Choice, asked_to_sign
from .decisions import Decisions, Sight, unanswered
from .settings import Options, Removed
from .state import (
    GROUP_BITS,
    GROUP_MASK,
    NODES_AT,
    OPERATORS_AT,
    SENT_BITS,
    SENT_MASK,
    SIGNED_BITS,
    SIGNED_MASK,
    STORE_AT,
    Move,
    Node,
    Run,
    Table,
    crossed,
    earlier,
    introduced,
    pack,
    pair,
    pairs,
)
from .store import (
    INTRUDER,
    NAMES,
    NONE,
    Document,
    Signature,
    Store,
    Theft,
    advanced,
    altered,
    anchored_store,
    bits,
    first_store,
    follows,
    follows_anchor,
    is_revocation_signed,
    is_signed_first,
    lost_roots,
    may_sign_again,
    prepared,
    pruned,
    revoked,
    rolled_back_store,
    stolen,
    store_after_a_root_has_left,
    taken_back,
    unsigned_store,
)


class World:
    """One world: its first state, and what can follow each.

    Args:
        options: Its size and its faults.
        removed: The protections that it lacks.
    """

    def __init__(self, options: Options, removed: Removed | None = None) -> None:
        self.options, self.removed = options, removed or Removed()
        self.is_past_kept = options.stale_reads or "labels read together" in self.removed.protections
        self.is_past_noted = self.is_past_kept or options.store_goes_back
        self.stores, self.nodes, self.operators = Table(), Table(), Table()
        self._of_nodes: dict[int, tuple[Move, ...]] = {}
        self._of_operators: dict[tuple[int, int, int], tuple[Move, ...]] = {}
        self._of_run: dict[tuple[int, int, Run | None], tuple[tuple[Any, ...], ...]] = {}
        self._of_store: dict[int, tuple[Move, ...]] = {}
        self.decisions = Decisions(self.removed, options)

    def first(self) -> int:
        """Return the state of the beginning: A signs everywhere, and no command runs."""
        options = self.options
        store, sent, signed = first_store(), 0, 1
        group = [Node(version=0)] * options.nodes + [Node(version=0, is_listed=False)] * options.unlisted
        if options.begins_unsigned:
            store = unsigned_store()
        if options.begins_with_anchor or options.anchor_choices != (Choice.KEEP,):
            store = anchored_store(has_anchor=options.begins_with_anchor)
        if options.begins_with_node_left_out:
            store, sent, signed = rolled_back_store(), introduced(1), 3
            at = store.heads[0]
            group = [Node(version=at, introductions=2)] * (options.nodes - 1) + [Node(version=at)]
        if options.begins_after_root_has_left:
            store, signed = store_after_a_root_has_left(), 7
            sent = introduced(1) | introduced(2) | crossed(1) | crossed(2) | earlier(0, 2)
            group = [
                Node(version=store.heads[0], introductions=6, cross_signatures=6, earlier=pair(0, 2))
                for _ in range(options.nodes)
            ]
        runs: list[Run | None] = [None] * options.operators
        return pack(
            self.stores.number(store),
            self.operators.number(tuple(runs)),
            self.nodes.number(tuple(sorted(group))),
            sent,
            signed,
        )

    def unpack(self, state: int) -> tuple[Store, tuple[Run | None, ...], tuple[Node, ...], int, int]:
        """Return store, runs, nodes, what was pushed (bits) and who has ever signed (bits)."""
        return (
            self.stores.values[state >> STORE_AT],
            self.operators.values[state >> OPERATORS_AT & GROUP_MASK],
            self.nodes.values[state >> NODES_AT & GROUP_MASK],
            state >> SIGNED_BITS & SENT_MASK,
            state & SIGNED_MASK,
        )

    def moves(self, state: int) -> Iterator[tuple[int, Move]]:
        """Yield every state that can follow, with the move that leads there."""
        signed, sent = state & SIGNED_MASK, state >> SIGNED_BITS & SENT_MASK
        nodes, operators = state >> NODES_AT & GROUP_MASK, state >> OPERATORS_AT & GROUP_MASK
        store = state >> STORE_AT
        key = (store << GROUP_BITS | nodes) << SENT_BITS | sent
        found = self._of_nodes.get(key)
        if found is None:
            found = self._of_nodes[key] = tuple(self._node_moves(store, nodes, sent))
        top = state >> OPERATORS_AT << OPERATORS_AT
        for move in found:
            yield top | move.group << NODES_AT | sent << SIGNED_BITS | signed | move.signed, move
        acts = self._of_operators.get((store, nodes, operators))
        if acts is None:
            acts = self._of_operators[store, nodes, operators] = tuple(self._operator_moves(store, nodes, operators))
        for move in acts:
            yield pack(move.store, move.group, nodes, sent | move.sent, signed), move
        others = self._of_store.get(store)
        if others is None:
            others = self._of_store[store] = tuple(self._store_moves(self.stores.values[store]))
        for move in others:
            group = self._settled(move.store, operators)
            yield pack(move.store, group, nodes, sent | move.sent, signed), move

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _node_moves(self, store_number: int, nodes_number: int, sent: int) -> Iterator[Move]:
        store: Store = self.stores.values[store_number]
        group: tuple[Node, ...] = self.nodes.values[nodes_number]
        dead = sum(node.is_dead for node in group)
        for node in dict.fromkeys(group):
            if node.is_dead:
                continue
            changes = list(self._changes(store, node, sent))
            if dead < self.options.nodes_that_stop:
                changes.append((node._replace(is_dead=True), None, ("dies",)))
            if store.is_without_signers:
                answering = store._replace(is_without_signers=False)
                waits = [one for one in self._changes(answering, node, sent) if one not in changes]
                changes += [(node, "no signer", ("waits", *what)) for _, _, what in waits]
            for after, broken, what in changes:
                if after == node and broken is None:
                    continue
                others = list(group)
                others.remove(node)
                number = self.nodes.number(tuple(sorted([*others, after])))
                signed = 1 << store.docs[after.version].current
                yield Move(store_number, number, 0, signed, broken, ("node", node, after, *what))

    def _changes(self, store: Store, node: Node, sent: int) -> Iterator[tuple[Node, str | None, tuple[Any, ...]]]:
        held = store.docs[node.version]
        for version in self.readable(store):
            new = store.docs[version]
            is_grown = store.is_grown(version, node.version)
            if version != node.version and self.takes(
                new, held, self.links(store, node), outlived=tuple(pairs(node.earlier)), is_grown=is_grown
            ):
                if self._needs_signer(store, held) and "nodes ask no signer" in self.removed.protections:
                    continue
                broken = self._harm_of(store, new, node.version, is_grown=is_grown)
                yield node._replace(version=version), broken, ("takes", version)
            if self.options.nodes_forget and (version != node.version or node.deferred):
                yield node._replace(version=version, deferred=0), None, ("restarts", version)
        if missed_roll_back(store, node):
            yield node._replace(version=store.heads[0]), None, ("accepts", store.heads[0])
        if node.deferred and not self.options.nodes_forget:
            yield node._replace(deferred=0), None, ("restarts", node.version)
        trusted = self.trusted(store, node)
        for rotation in range(1, store.prepared + 1):
            bit, by = 1 << rotation, store.introductions_of(rotation)[0][0]
            is_sent = sent & introduced(rotation) and not node.introductions & bit and trusted >> by & 1
            if is_sent and knows_introducer(store, held, rotation):
                yield node._replace(introductions=node.introductions | bit), None, ("introduced", rotation)
                if self.options.unmodified_nodes:
                    deaf = node._replace(introductions=node.introductions | bit, deferred=node.deferred | bit)
                    yield deaf, None, ("stores", rotation)
            if (
                sent & crossed(rotation)
                and not node.cross_signatures & bit
                and trusted >> store.target_of(rotation) & 1
            ):
                yield node._replace(cross_signatures=node.cross_signatures | bit), None, ("crossed", rotation)
        for root, signer in pairs(sent >> 6):
            if not node.earlier & pair(root, signer) and trusted >> signer & 1:
                yield node._replace(earlier=node.earlier | pair(root, signer)), None, ("earlier", root, signer)

    def readable(self, store: Store) -> tuple[int, ...]:
        """Return the versions that a read of ``current`` may show now."""
        if not self.options.stale_reads:
            return store.heads
        return tuple(dict.fromkeys([*(version for version, _ in store.past), *store.heads]))

    def links(self, store: Store, node: Node) -> tuple[tuple[int, int], ...]:
        """Return the introductions (by, of) that a node finds in its own log."""
        if not self.options.prunes_at_once:
            return ()
        there = [link for one in bits(node.introductions) for link in store.introductions_of(one)]
        back = [(store.target_of(one), store.origin_of(one)) for one in bits(node.cross_signatures)]
        return (*there, *back, *((signer, root) for root, signer in pairs(node.earlier)))

    def _harm_of(self, store: Store, new: Document, version: int, *, is_grown: bool) -> str | None:
        """Name the rule that a node breaks when it adopts a document after a version."""
        held = store.docs[version]
        if new.generation <= held.generation:
            return "generation"
        if new.signature is not Signature.VALID and held.signature is Signature.VALID:
            return "unaltered"
        if new.generation > held.generation + MAX_JUMP:
            return "possible generation"
        signed = sum({1 << store.docs[at].current for at in store.ancestors(version)})
        if held.roots & signed & ~new.roots & ~new.pruned:
            return "lost root"
        if held.anchor != NO_ANCHOR and store.is_invaded and new.generation > held.generation:
            below = [store.docs[at] for at in store.ancestors(store.docs.index(new))]
            # A root that is new to the node may revoke others, and every writer those that the node does not know.
            is_open = not held.roots >> new.current & 1 or not new.revoked & ~held.revoked & held.roots
            harmless = (None, Theft.NOTHING, *([Theft.REVOCATION] if is_open else []))
            if any(one.stolen not in harmless for one in below):
                return "anchored"
        return None if is_grown or self.options.two_writers_win or store.is_invaded else "grown document"

    def takes(
        self,
        new: Document,
        held: Document,
        links: tuple[tuple[int, int], ...] = (),
        *,
        outlived: tuple[tuple[int, int], ...] = (),
        is_grown: bool = True,
    ) -> bool:
        """Return whether a node that uses `held` adopts `new` (`verify_successor`).

        In a store that lets two writers win, nodes that have read the loser's document follow the next one.
        """
        removed = self.removed.protections
        if "generation" not in removed and new.generation <= held.generation:
            return False
        if "possible generations" not in removed and new.generation > held.generation + MAX_JUMP:
            return False
        if held.signature is Signature.VALID and new.signature is not Signature.VALID:
            part = (
                "document signature"
                if new.signature is Signature.INVALID
                else "no unsigned document after a signed one"
            )
            if part not in removed:
                return False
        # Of an earlier or equal generation it says nothing: that is for the generation to refuse.
        is_told_apart = not is_grown and not self.options.two_writers_win and new.generation > held.generation
        if "grown documents" not in removed and is_told_apart:
            return False
        if "lost roots" not in removed and lost_roots(new, held, outlived):
            return False
        if new.anchored is not None and held.anchor != NO_ANCHOR and "anchor" not in removed:
            if "signed revocations" not in removed and not is_revocation_signed(new, held):
                return False
            return follows_anchor(
                new,
                held,
                links,
                anchors_only="working roots endorse none" not in removed,
                limits="anchor's roll-back ends" not in removed,
                is_named_enough="change of the anchor" in removed,
            )
        return "succession" in removed or follows(new._replace(anchored=None), held._replace(anchored=None), links)

    def trusted(self, store: Store, node: Node) -> int:
        """Return the roots that a node trusts: its document's, and what its log says on the word of those."""
        trusted = store.docs[node.version].roots
        believed = node.introductions & ~node.deferred
        while True:
            before = trusted
            for rotation in range(1, store.prepared + 1):
                if believed >> rotation & 1:
                    for by, of in store.introductions_of(rotation):
                        if trusted >> by & 1:
                            trusted |= 1 << of
                if node.cross_signatures >> rotation & 1 and trusted >> store.target_of(rotation) & 1:
                    trusted |= 1 << store.origin_of(rotation)
            for root, signer in pairs(node.earlier):
                if trusted >> signer & 1:
                    trusted |= 1 << root
            if trusted == before:
                return trusted & ~store.docs[node.version].revoked

    # --- operators ----------------------------------------------------------------------------------------------------

    def _operator_moves(self, store_number: int, nodes: int, operators: int) -> Iterator[Move]:
        runs: tuple[Run | None, ...] = self.operators.values[operators]
        for run in dict.fromkeys(runs):
            is_apart = run.pending is not None if run is not None else not self.options.store_goes_back
            key = (store_number, -1 if is_apart else nodes, run)
            found = self._of_run.get(key)
            if found is None:
                moves = [*self._run_moves(store_number, nodes, run), *self._waits(store_number, nodes, run)]
                found = self._of_run[key] = tuple(dict.fromkeys(moves))
            others = list(runs)
            others.remove(run)
            for store, after, sent, broken, what in found:
                group = [after, *others]
                if store != store_number:
                    group = [self.alive(self.stores.values[store], one) for one in group]
                number = self.operators.number(tuple(sorted(group, key=_order)))
                yield Move(store, number, sent, 0, broken, ("operator", run, after, *what))

    def _settled(self, store: int, operators: int) -> int:
        runs: tuple[Run | None, ...] = self.operators.values[operators]
        group = [self.alive(self.stores.values[store], one) for one in runs]
        return self.operators.number(tuple(sorted(group, key=_order)))

    def alive(self, store: Store, run: Run | None) -> Run | None:
        """An action whose `expected` can never be there again will end in a conflict: the run will look again."""
        if run is None or run.pending is None or run.pending[0] in self.removed.blind:
            return run
        kind, target = run.pending[:2]
        if kind == "label":
            is_lost = run.pending[2] == NONE != store.stable
        else:
            is_lost = kind != "destroy" and not self._wins(store, kind, target)
        return run._replace(pending=None) if is_lost else run

    def _wins(self, store: Store, kind: str, expected: int) -> bool:
        return expected in store.heads or self._is_given_again(store, expected) or self._forks(store, kind, expected)

    def _is_given_again(self, store: Store, expected: int) -> bool:
        """Whether what is current has the id of what was decided on, although it is another version."""
        return store.is_restored and any(store.id_of(head) == store.id_of(expected) for head in store.heads)

    def _forks(self, store: Store, kind: str, expected: int) -> bool:
        # The next change decides which write wins; where that must be possible, one rotation is kept for it.
        left = self.options.rotations - store.prepared - (kind in ("prepare", "restore"))
        return (
            self.options.two_writers_win
            and not store.is_forked
            and len(store.heads) == 1
            and not store.is_settled
            and store.head.base == expected
            and left >= self.options.must_reach_steady
        )

    def _run_moves(self, store_number: int, nodes: int, run: Run | None) -> Iterator[tuple[Any, ...]]:
        """Yield (store, run, what is sent, broken rule, description for the story)."""
        store: Store = self.stores.values[store_number]
        if run is None:
            group: tuple[Node, ...] = self.nodes.values[nodes] if self.options.store_goes_back else ()
            for begun, version in self._begins(store):
                broken = None
                if any(self._contradicts(store, version, node) for node in group):
                    if "servers' histories" not in self.removed.protections:
                        continue
                    broken = "store went back"
                yield store_number, begun, 0, broken, ("begins",)
            return
        yield store_number, None, 0, None, ("crashes",)
        if run.pending is None:
            yield from self._looks(store_number, store, self.nodes.values[nodes], run)
            return
        looking = run._replace(pending=None)
        yield store_number, looking, 0, None, ("fails",)
        for after, end, broken in self._acts(store, run):
            number = self.stores.number(after)
            yield number, end, 0, broken, ("acts", run.pending)
            yield number, None, 0, broken, ("acts and crashes", run.pending)
            if self.options.stale_reads and end is not None:
                yield (
                    number,
                    end._replace(highest_generation=run.highest_generation),
                    0,
                    broken,
                    ("acts unknowingly", run.pending),
                )

    def _waits(self, store_number: int, nodes: int, run: Run | None) -> Iterator[tuple[Any, ...]]:
        """Yield, as a run's move, the actions that are blocked only because a signer does not answer.

        Only to begin a rotation may a run need a signer.
        """
        store: Store = self.stores.values[store_number]
        if not store.is_without_signers or run is None or (run.pending is not None and run.pending[0] == "prepare"):
            return

        def moves(at: int) -> list[tuple[Any, ...]]:
            found = self._run_moves(at, nodes, run)
            return [(self.stores.values[after]._replace(is_without_signers=False), *rest) for after, *rest in found]

        possible = set(moves(store_number))
        for move in moves(self.stores.number(store._replace(is_without_signers=False))):
            if move not in possible:
                yield store_number, run, 0, "no signer", ("waits", *move[-1])

    def _contradicts(self, store: Store, version: int, node: Node) -> bool:
        """Whether a listed node has used a state from which a version of the store has not grown."""
        return node.is_listed and not node.is_dead and not store.is_grown(version, node.version)

    def _begins(self, store: Store) -> Iterator[tuple[Run, int]]:
        for version in self.readable(store):
            document = store.docs[version]
            highest = document.generation if self.is_past_noted else 0
            for goal in self.options.goals:
                if goal is Goal.ROTATE:
                    for choice in self.options.anchor_choices:
                        if choice is not Choice.REMOVE or document.anchor != NO_ANCHOR:
                            yield Run(goal, document.current, highest_generation=highest, choice=choice), version
                elif goal is Goal.RESTORE:
                    others = document.roots | document.pruned if document.phase is Phase.STEADY else 0
                    others &= ~(1 << document.current | document.revoked)
                    for root in bits(others):
                        is_endorsed = may_sign_again(document, root)
                        if not is_endorsed and "endorsed to sign again" not in self.removed.protections:
                            continue  # it says so, and ends
                        yield Run(goal, document.current, highest_generation=highest, restores=root), version
                else:
                    bound = 0 if goal is Goal.RETIRE else document.rotation
                    yield Run(goal, NONE, bound, highest_generation=highest), version

    def _glances(self, store: Store) -> Iterator[tuple[int, int]]:
        """Yield each (current, stable) that one read of the store may return."""
        now = [(version, store.stable) for version in store.heads]
        if not self.is_past_kept:
            yield from now
            return
        moments = [*store.past, *now]
        if "labels read together" not in self.removed.protections:
            yield from dict.fromkeys(moments)
            return
        for at, (version, stable) in enumerate(moments):
            if stable == version or store.docs[version].phase is not Phase.STEADY:
                yield version, stable
            else:
                # Not labelled when it was read, so the versions are listed: at some other moment.
                later = moments if self.options.stale_reads else moments[at:]
                yield from ((version, listed) for _, listed in later)

    def _looks(self, store_number: int, store: Store, group: tuple[Node, ...], run: Run) -> Iterator[tuple[Any, ...]]:
        for version, stable in dict.fromkeys(self._glances(store)):
            document = store.docs[version]
            if (
                document.generation < run.highest_generation
                and "highest generation read" not in self.removed.protections
            ):
                continue
            if store.is_refused(version) and "unaltered base" not in self.removed.protections:
                yield store_number, None, 0, None, ("refuses", version)
                continue
            seen = run
            if run.begun and not run.drives and self._recognizes(document, run.begun):
                # From here on nothing distinguishes a run that rotates from one that resumes (test_model_matches.py).
                seen = run._replace(
                    drives=run.begun, begun=0, goal=Goal.RESUME, origin=NONE, restores=NONE, choice=Choice.KEEP
                )
            if self.is_past_noted:
                seen = seen._replace(highest_generation=max(run.highest_generation, document.generation))
            sights: tuple[Sight, ...] = ()
            if document.phase is not Phase.STEADY or seen.drives or seen.goal in (Goal.ROTATE, Goal.RESTORE):
                sights = tuple(sorted(self.sight(store, document, node) for node in group if node.is_listed))
            for action, shown in self.decisions.choices(store, version, stable, sights, seen):
                yield from self._answered(store_number, store, version, stable, seen, action, shown)

    def _recognizes(self, document: Document, own: int) -> bool:
        if document.rotation == own:
            return True
        return "own rotation is recognized" not in self.removed.protections and bool(document.ended >> own & 1)

    def _answered(
        self, number: int, store: Store, version: int, stable: int, run: Run, action: Action, sights: tuple[str, ...]
    ) -> Iterator[tuple[Any, ...]]:
        what = ("looks", version, sights, action)
        late = "run ends" if sights[-1] == "late" else None
        rotation = store.docs[version].rotation
        places = {"current": version, "stable": stable, None: NONE}
        match action:
            case Wait():
                yield number, run, 0, late, what
            case Introduce():
                yield number, run, introduced(rotation), late, what
            case CrossSign():
                yield number, run, crossed(rotation), late, what
            case LabelStable(expected=expected):
                yield self._ordered(number, store, version, stable, run, ("label", version, places[expected]), what)
            case Prepare():
                spare = self.options.nodes - (self.options.quorum or self.options.nodes)
                broken = "all answered" if unanswered(sights) > spare else None
                yield number, run._replace(pending=("prepare", version)), 0, broken, what
            case PrepareRestore():
                spare = self.options.nodes - (self.options.quorum or self.options.nodes)
                broken = "all answered" if unanswered(sights) > spare else None
                yield number, run._replace(pending=("restore", version, run.restores)), 0, broken, what
            case Advance(step=step):
                is_hasty = step is Step.PUBLISH and "published first" in self.removed.protections
                sent = introduced(rotation) if is_hasty else 0
                yield self._ordered(number, store, version, stable, run, ("advance", version, step), what, sent)
            case Abandon(step=step):
                yield self._ordered(number, store, version, stable, run, ("abandon", version, step), what)
            case Destroy(version=target):
                at = places[target] if target in places else int(target)
                yield self._ordered(number, store, version, stable, run, ("destroy", at), what)
            case Done(outcome=outcome):
                yield number, None, 0, self._untrue(store, run, outcome), what
            case Busy() | Illegal() | Refuse():
                yield number, None, 0, None, what
            case IntroduceEarlier(session_ids=ids):
                signer = store.docs[version].current
                sent = sum(earlier(NAMES.index(one), signer) for one in ids)
                yield number, run, sent, None, what
            case Prune(session_ids=ids):
                leaving = sum(1 << NAMES.index(one) for one in ids)
                yield number, run._replace(pending=("prune", version, leaving)), 0, None, what
            case RecordRetired():
                raise AssertionError("the model records no retirement")

    def _ordered(
        self,
        number: int,
        store: Store,
        version: int,
        stable: int,
        run: Run,
        pending: tuple[Any, ...],
        what: tuple[Any, ...],
        sent: int = 0,
    ) -> tuple[Any, ...]:
        """Return the move that decides on a change of the store.

        Decided on what the store holds now, it must be a change that the store would take, and that changes something:
        a change that the store would reject, or that changes nothing, would be decided again and again.
        """
        ordered = run._replace(pending=pending)
        is_now = store.heads == (version,) and stable == store.stable
        is_futile = is_now and all(after == store for after, _, _ in self._acts(store, ordered))
        return number, ordered, sent, "run ends" if is_futile else None, what

    @staticmethod
    def _untrue(store: Store, run: Run, outcome: Outcome) -> str | None:
        finished = any(doc.finished >> run.drives & 1 for doc in store.docs)
        ended = any(doc.ended >> run.drives & 1 and not doc.finished >> run.drives & 1 for doc in store.docs)
        ended = ended or bool(store.head.revoked >> max(0, store.target_of(run.drives)) & 1)
        if (outcome is Outcome.ROTATED and not finished) or (outcome.is_stopped and not ended):
            return "true report"
        left = (
            doc
            for version, doc in enumerate(store.docs)
            if not (store.destroyed | store.foreign_labelled) >> version & 1
        )
        is_left = any(doc.rotation == run.drives and doc.next != NONE for doc in left)
        if outcome.is_stopped and is_left and store.head.cancelled >> run.drives & 1 and not store.is_forked:
            return "cancelled key"
        return None

    def _acts(self, store: Store, run: Run) -> Iterator[tuple[Store, Run | None, str | None]]:
        """Yield (store, run, broken rule) after the effect of the run's decision; nothing where it cannot take
        effect."""
        assert run.pending is not None
        kind, looking, removed = run.pending[0], run._replace(pending=None), self.removed.protections
        if kind == "label":
            _, version, expected = run.pending
            if (store.stable == expected or "label" in self.removed.blind) and not store.destroyed >> version & 1:
                heads = (version,) if version in store.heads else store.heads
                yield self._noted(store)._replace(stable=version, heads=heads, is_settled=True), looking, None
            return
        if kind == "destroy":
            version = run.pending[1]
            is_foreign = bool(store.foreign_labelled >> version & 1)
            is_free = version not in store.heads and version != store.stable and not is_foreign
            if is_free or "label guard" in self.removed.protections:
                broken = "foreign labels" if is_foreign else None
                without = store._replace(destroyed=store.destroyed | 1 << version)
                yield without, looking, broken or self._lost_key(store, version, without)
            return
        expected = run.pending[1]
        if not (self._wins(store, kind, expected) or kind in self.removed.blind):
            return
        document = store.docs[expected]
        if kind in ("prepare", "restore"):
            rotation = store.prepared + 1
            restored = NONE if kind == "prepare" else run.pending[2]
            is_restorable = kind == "prepare" or self._is_restorable(store, document, restored)
            if not is_restorable or (self._needs_signer(store, document) and "no signature for a restore" in removed):
                yield store, None, None  # it says so, and ends
                return
            if rotation <= self.options.rotations:
                broken = (
                    "one rotation a run"
                    if run.begun or run.drives
                    else "root as asked"
                    if run.origin != document.current
                    else None
                )
                after = prepared(document, expected, rotation, restored, run.choice)
                if "restored root is listed" in removed:
                    after = after._replace(roots=document.roots)
                if not is_signed_first(after):
                    broken = broken or "signed first"
                if kind == "prepare" and document.anchored is not None and asked_to_sign(document.anchored, run.choice):
                    after, fails = self._signed(after), store.is_without_signers
                    yield store, None, None  # a signer refuses, does not answer, or returns wrong signatures
                    if removed & {"signed first", "signature check"}:
                        assert after.anchored is not None
                        partly = after._replace(anchored=after.anchored._replace(is_whole=False))
                        yield from self._written(
                            store, kind, partly, looking._replace(begun=rotation), broken or "signed first"
                        )
                    if fails:
                        return
                yield from self._written(store, kind, after, looking._replace(begun=rotation), broken)
            return
        if kind == "prune":
            yield from self._written(store, kind, pruned(document, expected, run.pending[2]), looking, None)
            return
        asking = {"no later signature", *(("no signature to go on",) if kind == "advance" else ())}
        if self._needs_signer(store, document) and removed & asking:
            return
        broken = None if document.rotation == run.drives else "own rotation"
        earlier = None
        if run.pending[2] is Step.ROLL_BACK:
            if store.destroyed >> document.rollback & 1:
                return
            earlier = store.docs[document.rollback]
        after = self._spoilt(advanced(document, expected, run.pending[2], earlier), document, run.pending[2])
        yield from self._written(store, kind, after, looking, broken)

    def _signed(self, after: Document) -> Document:
        """Return a prepared document without the anchor's signatures that it should have."""
        anchored = after.anchored
        assert anchored is not None
        if "old anchor endorses next root" in self.removed.protections and NO_ANCHOR not in (
            anchored.anchor,
            anchored.next,
        ):
            kept = tuple(one for one in after.endorsed if one != (anchored.anchor, after.target))
            after = after._replace(endorsed=kept if anchored.next != anchored.anchor else after.endorsed)
        if "anchor's roll-back is signed" in self.removed.protections:
            lasting = tuple(one for one in anchored.changes if one.until is None)
            after = after._replace(anchored=anchored._replace(changes=lasting))
        return after

    @staticmethod
    def _needs_signer(store: Store, document: Document) -> bool:
        """Whether a mutant that asks the anchor of a document gets no answer."""
        return store.is_without_signers and document.anchor != NO_ANCHOR

    def _is_restorable(self, store: Store, document: Document, root: int) -> bool:
        """Whether a restore can bring back a root, as far as the document and the stored versions show."""
        is_endorsed = may_sign_again(document, root) or "endorsed to sign again" in self.removed.protections
        return is_endorsed and self._holds_key(store, root)

    @staticmethod
    def _holds_key(store: Store, root: int) -> bool:
        docs = enumerate(store.docs)
        return any(doc.private >> root & 1 and not store.destroyed >> version & 1 for version, doc in docs)

    def _lost_key(self, store: Store, version: int, after: Store) -> str | None:
        """Name the rule that is broken where the last copy of a key is destroyed whose root has signed."""
        have_signed = {doc.current for doc in store.docs}
        aged = [doc for at, doc in enumerate(store.docs) if store.past_grace >> at & 1]
        lost = [
            root
            for root in bits(store.docs[version].private)
            if root in have_signed
            and not self._holds_key(after, root)
            and not any(doc.private >> root & 1 for doc in aged)
        ]
        return "last key" if lost else None

    def _spoilt(self, after: Document, before: Document, step: Step) -> Document:
        """Return the document without the protections of the step."""
        removed, fresh = self.removed.protections, 1 << before.target
        if step is Step.ROLL_BACK and "roots after roll-back" in removed:
            after = after._replace(roots=after.roots & ~fresh)
        if step is Step.CANCEL and "roots after cancel" in removed:
            after = after._replace(roots=after.roots & ~fresh)
        if step is Step.CANCEL and before.target != before.rotation and "roots after a cancelled restore" in removed:
            after = after._replace(roots=after.roots & ~fresh)
        if step is Step.ACTIVATE and "one private key" in removed:
            after = after._replace(private=before.private)
        if step is Step.FINALIZE and "one change of signer" in removed:
            after = after._replace(current=before.origin, private=1 << before.origin)
        return after

    def _written(
        self, store: Store, kind: str, document: Document, run: Run, broken: str | None
    ) -> Iterator[tuple[Store, Run | None, str | None]]:
        version, expected = len(store.docs), document.base
        if store.is_refused(expected):
            broken = broken or "signed over"
        document = document._replace(signature=Signature.VALID, altered=None)
        kept = self._noted(store)._replace(docs=(*store.docs, document), is_settled=not self.options.two_writers_win)
        if expected in store.heads:
            after = kept._replace(heads=(version,))
        elif self._forks(store, kind, expected):
            after = kept._replace(heads=(*store.heads, version), is_forked=True)
        else:
            after, broken = kept._replace(heads=(version,)), broken or "lost write"
        if self.is_past_noted:
            run = run._replace(highest_generation=max(run.highest_generation, document.generation))
        yield after, run, broken

    def _noted(self, store: Store) -> Store:
        if not self.is_past_noted:
            return store
        now = (store.heads[-1], store.stable)
        return store if now in store.past else store._replace(past=(*store.past, now))

    # --- the store itself ---------------------------------------------------------------------------------------------

    def _store_moves(self, store: Store) -> Iterator[Move]:
        head = store.head
        if self.options.retires_keys and head.phase is Phase.STEADY:
            old = (1 << len(store.docs)) - 1
            after = store._replace(past_grace=old, past=())
            if after != store:
                yield Move(self.stores.number(after), 0, 0, 0, None, ("time",))
        if self.options.foreign_labels:
            others = (
                [0]
                if store.foreign_labelled
                else [1 << at for at in range(len(store.docs)) if not store.destroyed >> at & 1]
            )
            for labelled in others:
                after = store._replace(foreign_labelled=labelled)
                yield Move(self.stores.number(after), 0, 0, 0, None, ("outsider", store.foreign_labelled, labelled))
        if self.options.store_goes_back and not store.is_restored:
            for version, stable in store.past:
                after = store._replace(heads=(version,), stable=stable, destroyed=0, past=(), is_restored=True)
                yield Move(self.stores.number(after), 0, 0, 0, None, ("restored", version))
        if self.options.alterations and not store.is_altered:
            yield from self._alterations(store)
        if head.altered:
            docs = (*store.docs, taken_back(store))
            after = self._noted(store)._replace(docs=docs, heads=(len(store.docs),))
            yield Move(self.stores.number(after), 0, 0, 0, None, ("taken back", len(store.docs)))
        if self.options.signers_stop and not store.is_without_signers:
            yield Move(self.stores.number(store._replace(is_without_signers=True)), 0, 0, 0, None, ("mute",))
        if (
            self.options.anchor_revokes
            and head.anchor != NO_ANCHOR
            and not head.revoked
            and not store.is_without_signers
        ):
            fresh = store.prepared + 1
            changed = revoked(head, store.heads[-1], fresh)
            if "revocation keeps signatures" in self.removed.protections:
                changed = changed._replace(anchored=changed.anchored and changed.anchored._replace(changes=()))
            docs = (*store.docs, changed)
            after = self._noted(store)._replace(docs=docs, heads=(len(store.docs),))
            yield Move(self.stores.number(after), 0, introduced(fresh), 0, None, ("revoked", len(store.docs)))
        if not store.is_altered and head.anchored is not None:
            for how in self.options.thefts:
                document = stolen(store, how)
                if document is not None:
                    after = self._noted(store)._replace(
                        docs=(*store.docs, document),
                        heads=(len(store.docs),),
                        is_altered=True,
                        is_invaded=how is not Theft.NOTHING,
                    )
                    yield Move(self.stores.number(after), 0, 0, 0, None, ("stolen", len(store.docs)))
        if self.options.has_intruder and not store.is_invaded:
            document = head._replace(
                generation=head.generation + 1,
                phase=Phase.STEADY,
                current=INTRUDER,
                next=NONE,
                roots=head.roots | 1 << INTRUDER,
                private=1 << INTRUDER,
                rotation=0,
                target=NONE,
                origin=NONE,
                rollback=NONE,
                ended=head.ended | (1 << head.rotation if head.rotation else 0),
                base=store.heads[-1],
            )
            docs = (*store.docs, document)
            after = self._noted(store)._replace(docs=docs, heads=(len(store.docs),), is_invaded=True)
            yield Move(self.stores.number(after), 0, 0, 0, None, ("intruder", len(store.docs)))

    def _alterations(self, store: Store) -> Iterator[Move]:
        version, at = store.heads[-1], len(store.docs)
        was_signed = store.was_signed(version)
        for how in self.options.alterations:
            for signature in (Signature.INVALID, Signature.MISSING) if was_signed else (Signature.MISSING,):
                document = altered(store.head, version, how, signature)
                if document is not None:
                    after = self._noted(store)._replace(docs=(*store.docs, document), heads=(at,), is_altered=True)
                    yield Move(self.stores.number(after), 0, 0, 0, None, ("altered", at))

    def sight(self, store: Store, document: Document, node: Node) -> Sight:
        """Return what a node would truthfully report to a command that has just read `document`."""
        held, rotation = store.docs[node.version], document.rotation
        at = next((version for version in store.heads if store.docs[version] == document), store.docs.index(document))
        return Sight(
            trusts=bool(rotation and self.trusted(store, node) >> document.target & 1),
            holds=bool(rotation and self._holds_introduction(store, document, node)),
            signer=held.current,
            crossed=bool(rotation and node.cross_signatures >> rotation & 1),
            rejects=document.generation > held.generation
            and not (
                is_revocation_signed(document, held)
                and follows(document, held, self.links(store, node))
                and not lost_roots(document, held, tuple(pairs(node.earlier)))
            ),
            is_ahead=self.options.store_goes_back and document.generation < held.generation,
            is_other=self.options.store_goes_back
            and document.generation == held.generation
            and not store.is_grown(at, node.version),
            is_dead=node.is_dead,
            is_behind=document.phase is Phase.ACTIVATED and held.generation < document.generation,
            earlier=sum(1 << root for root, signer in pairs(node.earlier) if signer == document.current),
        )

    def _holds_introduction(self, store: Store, document: Document, node: Node) -> bool:
        """Whether a node holds any commit that introduces the next root (`expected_introductions`)."""
        if document.target == document.rotation:
            return bool(node.introductions >> document.rotation & 1)
        anchored = document.anchored or Anchoring()
        authority = anchored.anchor if anchored.next == NO_ANCHOR else anchored.next
        if authority != NO_ANCHOR:
            made = (store.introductions_of(rotation) for rotation in bits(node.introductions))
            return any((authority, document.target) in pairs for pairs in made)
        known = 1 << document.rotation | document.ended
        return any(
            (node.introductions >> rotation & 1 and store.target_of(rotation) == document.target)
            or (node.cross_signatures >> rotation & 1 and store.origin_of(rotation) == document.target)
            for rotation in bits(known)
        )


def knows_introducer(store: Store, held: Document, rotation: int) -> bool:
    """Return whether a node that uses `held` accepts the introduction of a rotation's next root by a new anchor.

    A node that knows an anchor accepts introductions only by that anchor, until it has read of the next anchor.
    """
    if held.anchored is None or held.anchored.anchor == held.anchored.next == NO_ANCHOR:
        return True
    permanent = [one for one in held.anchored.changes if one.until is None]
    anchors = {held.anchored.anchor, held.anchored.next, *(one.by for one in permanent), *(one.to for one in permanent)}
    return store.introductions_of(rotation)[-1][0] in anchors


def missed_roll_back(store: Store, node: Node) -> bool:
    """Return whether a node uses a new anchor and missed that its rotation was rolled back, until the roll-back had
    ended.

    An operator then starts it with ``--accept-identity`` (docs/explanation/anchor.md).
    """
    held, head = store.docs[node.version], store.docs[store.heads[0]]
    if held.anchored is None or not held.anchored.is_changing or held.phase not in (Phase.ACTIVATED, Phase.VERIFIED):
        return False
    is_rolled_back = bool(head.ended >> held.rotation & 1 and not head.finished >> held.rotation & 1)
    ways_back = [one for one in held.anchored.changes if one.until is not None]
    is_over = bool(ways_back) and not any(one.counts_at(head.generation) for one in ways_back)
    return is_rolled_back and is_over


def _order(run: Run | None) -> tuple[Any, ...]:
    if run is None:
        return ()
    about = (str(run.goal), run.origin, run.drives, run.begun, run.highest_generation, run.restores, str(run.choice))
    return (*about, *map(str, run.pending or ()))
