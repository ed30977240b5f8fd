"""The answers of the real `decide` to everything that the adversary may let it see, each asked once.

What it is: views for `goatherd.rotation.machine.decide`, and its answers. What it is not: it takes no decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from goatherd.key_inventory import Holding
from goatherd.providers.values import Label, SecretVersion, VersionId
from goatherd.rotation.machine import (
    Abandon,
    Action,
    Advance,
    CrossSign,
    Destroy,
    Done,
    Goal,
    Intent,
    Introduce,
    IntroduceEarlier,
    LabelStable,
    NodeView,
    Observation,
    Phase,
    Policy,
    Prepare,
    PrepareRestore,
    Prune,
    Quorum,
    StoreView,
    Wait,
    decide,
)

from .settings import Options, Removed
from .state import Run
from .store import NAMES, NONE, Document, Signature, Store, bits, may_leave

EARLY, LATE = 1, 10**10
_NO_LABEL = frozenset[Label]()
_AUDIT = frozenset({Label("audit")})
DIGESTS = {False: "a" * 64, True: "b" * 64}
NEVER = 10**15
DAYS = 70 * 86_400_000
"""By so much a clock is wrong: more than the grace period."""


class Sight(NamedTuple):
    """The true state of one node, as `decide` would see it."""

    trusts: bool
    holds: bool
    signer: int
    crossed: bool
    rejects: bool
    is_dead: bool
    is_behind: bool = False
    earlier: int = 0
    is_ahead: bool = False
    is_other: bool = False


class Decisions:
    """Asks `decide`, and caches the answers.

    Args:
        removed: Which protections are missing.
        options: The world.

    Attributes:
        asked: How often `decide` was asked; never twice the same.
    """

    def __init__(self, removed: Removed, options: Options) -> None:
        self._removed = removed
        self._prunes = options.prunes_at_once
        self._skews = (0, DAYS, -DAYS) if options.wrong_clocks else (0,)
        self._recorded = (0, NEVER) if options.wrong_clocks else (0,)
        self._hows = ("half", "refusal") if options.nodes_reject else ("half",)
        self._policy = Policy(quorum=Quorum(count=options.quorum))
        self._known: dict[tuple[Any, ...], tuple[tuple[Action, tuple[str, ...]], ...]] = {}
        self.asked = 0

    def choices(
        self, store: Store, version: int, stable: int, sights: tuple[Sight, ...], run: Run
    ) -> tuple[tuple[Action, tuple[str, ...]], ...]:
        """Return every action that `decide` may answer, whatever the adversary shows, each with one of its reasons."""
        document = store.docs[version]
        versions: tuple[tuple[int, int, bool, bool, int], ...] = ()
        cancelled = run.drives if document.cancelled >> run.drives & 1 else 0
        if (run.goal is Goal.RETIRE or (run.drives and cancelled)) and document.phase is Phase.STEADY:
            versions = tuple(
                (
                    number,
                    doc.private,
                    bool(store.past_grace >> number & 1),
                    bool(store.foreign_labelled >> number & 1),
                    doc.rotation if doc.next != NONE else 0,
                )
                for number, doc in enumerate(store.docs)
                if not store.destroyed >> number & 1
            )
            if run.goal is not Goal.RETIRE:
                versions = tuple(one for one in versions if one[4] == run.drives)
        labelled = None if stable == NONE else "current" if stable == version else "stable"
        if document.phase is not Phase.STEADY:
            labelled = None  # no command lists the versions then
        place = (version, stable) if versions else ()
        leaving = may_leave(document) if self._prunes and run.drives else 0
        about = document._replace(roots=0, private=0, ended=0, endorsed=(), base=0, rollback=0, before=NONE, pruned=0)
        about = about._replace(revoked=0, signature=Signature.VALID, altered=None, anchored=None, stolen=None)
        aim = store.target_of(run.drives) if run.drives else run.restores
        key = (about, labelled, sights, versions, place, run.goal, run.origin, run.drives, aim, leaving)
        found = self._known.get(key)
        if found is None:
            given = (about, labelled, sights, versions, place, run, aim, leaving)
            found = self._known[key] = tuple(self._decide(*given))
        return found

    def _decide(
        self,
        document: Document,
        labelled: str | None,
        sights: tuple[Sight, ...],
        versions: tuple[tuple[int, int, bool, bool, int], ...],
        place: tuple[int, ...],
        run: Run,
        aim: int,
        leaving: int,
    ) -> Iterator[tuple[Action, tuple[str, ...]]]:
        view = _store_view(document, labelled, leaving)
        intent = Intent(
            goal=run.goal,
            began_ms=0,
            from_id=NAMES[run.origin] if run.origin != NONE else "",
            rotation_id=_rotation_id(run.drives),
            to_id=NAMES[aim] if aim != NONE else None,
        )
        known: dict[Any, None] = {}
        clocks = tuple(product(self._skews, self._recorded))
        for shown, now_ms, (skew_ms, recorded_ms) in product(_showings(sights, self._hows), (EARLY, LATE), clocks):
            since_ms = recorded_ms if "recorded times" in self._removed.protections else min(0, recorded_ms)
            view = replace(view, clock_ahead_ms=-skew_ms if len(clocks) > 1 else None, phase_since_ms=since_ms)
            nodes = tuple(
                _node_view(at, sight, how, document.generation)
                for at, (sight, how) in enumerate(zip(sights, shown, strict=True))
            )
            # What has not aged yet was retired just now.
            recent_ms = now_ms if len(clocks) > 1 else NEVER
            seen = _version_views(versions, place, recent_ms)
            asked = (Observation(store=view, nodes=nodes, versions=seen), intent, now_ms + skew_ms)
            if self._removed.lie is not None:
                asked = self._removed.lie(*asked)
            self.asked += 1
            action = decide(asked[0], self._policy, asked[1], asked[2])
            sense = _sense(action)
            if isinstance(action, Wait | Introduce | CrossSign) and now_ms == LATE:
                sense = (*sense, "late")  # what the deadline ends is not the same before and after it
            if isinstance(action, Prepare | PrepareRestore):
                sense = (*sense, unanswered(shown))
            if sense not in known:
                known[sense] = None
                yield action, (*shown, "late" if now_ms == LATE else "early")


def unanswered(shown: tuple[str, ...]) -> int:
    """Return how many nodes did not answer the query."""
    return sum(how in ("silence", "half") for how in shown)


def _rotation_id(number: int) -> str | None:
    return f"rotation {number}" if number else None


def _store_view(document: Document, labelled: str | None, leaving: int) -> StoreView:
    rotating = document.rotation != 0
    return StoreView(
        version="current",
        stable=labelled,
        generation=document.generation,
        digest=DIGESTS[False],
        phase=document.phase,
        phase_since_ms=0,
        current_id=NAMES[document.current],
        current_expires_ms=NEVER,
        rotation_id=_rotation_id(document.rotation),
        from_id=NAMES[document.origin] if rotating else None,
        to_id=NAMES[document.target] if rotating else None,
        rollback_version="rollback" if rotating else None,
        finished=frozenset(f"rotation {number}" for number in bits(document.finished)),
        cancelled=frozenset(f"rotation {number}" for number in bits(document.cancelled)),
        rolled_back=frozenset(
            f"rotation {number}" for number in bits(document.ended & ~document.finished & ~document.cancelled)
        ),
        leaving=tuple(NAMES[root] for root in bits(leaving)),
    )


def _showings(sights: tuple[Sight, ...], hows: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield how each node may appear: truthfully or not at all; one of them also partly, or as rejecting the
    document."""
    living = [("truth", "silence") if not sight.is_dead else ("silence",) for sight in sights]
    yield from product(*living)
    for at, sight in enumerate(sights):
        if not sight.is_dead:
            for how in hows:
                yield tuple(how if other == at else living[other][0] for other in range(len(sights)))


def _node_view(at: int, sight: Sight, how: str, generation: int) -> NodeView:
    url = f"node {at}"
    if how == "silence":
        return NodeView(url=url, reachable=False)
    if how == "half":
        return NodeView(url=url, reachable=True)
    return NodeView(
        url=url,
        reachable=True,
        trusts_current=True,
        trusts_next=sight.trusts,
        holds_introduction=sight.holds,
        signs_with=NAMES[sight.signer],
        generation=generation - sight.is_behind + sight.is_ahead,
        digest=DIGESTS[sight.is_other],
        holds_cross_signature=sight.crossed,
        holds_earlier=frozenset(NAMES[root] for root in bits(sight.earlier)),
        rejects="identity.succession" if sight.rejects or how == "refusal" else None,
    )


def _version_views(
    versions: tuple[tuple[int, int, bool, bool, int], ...], place: tuple[int, ...], recent_ms: int
) -> tuple[Holding, ...]:
    called = dict(zip(place, ("current", "stable"), strict=False))
    if place and place[0] == place[1]:
        called = {place[0]: "current"}
    return tuple(
        Holding(
            version=SecretVersion(
                id=VersionId(called.get(number, str(number))), created_ms=0, labels=_AUDIT if is_labelled else _NO_LABEL
            ),
            private_ids=frozenset(name for bit, name in enumerate(NAMES) if private >> bit & 1),
            retired_ms=-NEVER if aged else recent_ms,
            rotation_id=_rotation_id(rotation),
        )
        for number, private, aged, is_labelled, rotation in versions
    )


def _sense(action: Action) -> tuple[Any, ...]:
    """Return what the model keeps of an action: without the reasons and without the names of nodes."""
    match action:
        case Advance(step=step) | Abandon(step=step):
            return type(action), step
        case LabelStable(expected=expected):
            return type(action), expected
        case Destroy(version=version):
            return type(action), version
        case Prune(session_ids=roots) | IntroduceEarlier(session_ids=roots):
            return type(action), roots
        case Done(outcome=outcome):
            return type(action), outcome
    return (type(action),)
