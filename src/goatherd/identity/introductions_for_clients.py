"""Choose which root introductions a GoatDB client is sent, and in which order, so that it comes to trust every root.

Pure; for `goatherd serve` and for the door (the proxy in front of a server). A server that syncs as a root gets all.

COMPAT: a GoatDB client evaluates a commit of ``/sys/sessions`` when the commit arrives, but not if the client already
holds a child of that commit. If a root that the client trusts has signed the commit, the client trusts the session in
it; otherwise it tries again at its next start only. The client reports what it holds by a Bloom filter, which can
falsely claim commits. Hence four rules:

1. Introductions are sent first, each after that of its signer, beginning with the root under which the client was
   created.
2. If the client lacks an introduction, it also gets all later ones, whatever its filter claims, and those of `MARGIN`
   roots before: one that arrives late would be too late for its successors.
3. A child of an introduction by which the client learns a root is never sent, because the client would then ignore that
   introduction. The child adds nothing that the client needs. (Cross-signatures of earlier builds of Goatherd are such
   children, see ADR 17.)
4. An introduction is not sent if this server does not trust its root, or does not yet hold the introductions that lead
   to its signer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from goatherd.identity.session_commits import claims_root
from goatherd.wire.commit import Commit

MARGIN: Final = 16
"""How many roots before the first one that a client lacks are introduced to it again. Its filter is wrong about one
root with a chance of 1 in 5 at the worst, where there are ten sessions."""


@dataclass(frozen=True, slots=True)
class Route:
    """The order in which a client learns the roots, starting from one root.

    Attributes:
        steps: For each root, the introductions from which the client learns it, all by one signer.
        rest: The other introductions whose signers the client knows after the steps.
    """

    steps: tuple[tuple[Commit, ...], ...]
    rest: tuple[Commit, ...]

    @property
    def children(self) -> frozenset[str]:
        """The ids of introductions whose parent is an introduction in the steps.

        Merges are not included: a client that holds two unequal creations of a key without their merge ends its
        process.
        """
        taken = {commit.id for step in self.steps for commit in step}
        return frozenset(one.id for one in self.rest if len(one.parents) == 1 and one.parents[0] in taken)


class RootIntroductions:
    """The introductions of roots in one ``/sys/sessions`` repository; new commits are added with `extend`."""

    def __init__(self, commits: Iterable[Commit] = ()) -> None:
        self._commits: list[Commit] = []
        self.extend(commits)

    def extend(self, commits: Iterable[Commit]) -> None:
        """Add session commits, in the order of the log."""
        self._commits += [commit for commit in commits if claims_root(commit)]

    def for_peer(self, missing: Sequence[Commit]) -> list[Commit]:
        """Return the commits that another server lacks: introductions of roots first, ordered by time."""
        lacking = {commit.id for commit in missing if claims_root(commit)}
        if not lacking:
            return list(missing)
        route = _build_route(self._commits, _find_oldest(self._commits))
        placed = [commit for step in (*route.steps, route.rest) for commit in step if commit.id in lacking]
        return _with_first(placed, missing)

    def for_client(
        self, missing: Sequence[Commit], *, born_under: Collection[str], counts: Callable[[str], bool]
    ) -> list[Commit]:
        """Return the commits of ``/sys/sessions`` to send to a client.

        Args:
            missing: The session commits that the client lacks according to its filter, in the order of the log.
            born_under: The signers of the commits that introduce the client's session; the client certainly trusts the
                oldest of them. If empty, the oldest of all roots is used.
            counts: Returns whether the root with this id is trusted here.
        """
        lacking = {commit.id for commit in missing if claims_root(commit)}
        if not lacking:
            return list(missing)
        # SECURITY: a client cannot learn that a root was revoked, but need not receive its introduction
        # (tests/cluster/test_clients_through_rotation.py).
        good = [commit for commit in self._commits if counts(commit.key)]
        route = _build_route(good, _find_oldest(good, born_under))
        first = next((n for n, step in enumerate(route.steps) if any(one.id in lacking for one in step)), None)
        steps = () if first is None else route.steps[max(0, first - MARGIN) :]
        placed: list[Commit] = []
        for step in steps:
            placed += [commit for commit in step if commit.id in lacking] or step[:1]
        children = route.children
        placed += [commit for commit in route.rest if commit.id in lacking and commit.id not in children]
        return _with_first(placed, missing, lacking)


def _build_route(introductions: Sequence[Commit], start: str) -> Route:
    by_signer: dict[str, list[Commit]] = {}
    for commit in introductions:
        by_signer.setdefault(commit.session, []).append(commit)
    steps: dict[str, list[Commit]] = {}
    rest: list[Commit] = []
    known = deque([start])
    while known:
        signer = known.popleft()
        for commit in by_signer.pop(signer, ()):
            step = steps.get(commit.key)
            if commit.key != start and step is None:
                steps[commit.key] = [commit]
                known.append(commit.key)
            elif step is not None and step[0].session == signer and not commit.parents:
                step.append(commit)
            else:
                rest.append(commit)
    return Route(tuple(tuple(step) for step in steps.values()), tuple(rest))


def _find_oldest(introductions: Sequence[Commit], among: Collection[str] = ()) -> str:
    """Return the oldest root among some roots, or among all: the root from which the others were introduced."""
    if len(among) == 1:
        return next(iter(among))
    if not introductions:
        return min(among, default="")
    start = min(introductions, key=lambda commit: commit.ts).session
    order: Mapping[str, int] = {
        key: n for n, key in enumerate([start, *[step[0].key for step in _build_route(introductions, start).steps]])
    }
    return min(among, key=lambda one: (order.get(one, len(order)), one), default=start)


def _with_first(placed: Sequence[Commit], missing: Sequence[Commit], left_out: Collection[str] = ()) -> list[Commit]:
    done = {commit.id for commit in placed} | set(left_out)
    return [*placed, *(commit for commit in missing if commit.id not in done)]
