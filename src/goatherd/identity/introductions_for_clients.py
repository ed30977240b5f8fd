"""Choose which root introductions to send to a GoatDB client, and in which order, so that it trusts every root.

An introduction is a commit of ``/sys/sessions`` by which one root declares another trusted. `goatherd serve` and the
door (the proxy in front of a server) use this module. Another server, which signs its requests as a root, gets all
introductions. Pure.

COMPAT: a GoatDB client evaluates a commit of ``/sys/sessions`` when the commit arrives, but not if the client already
holds a child of that commit. If a root that the client trusts has signed the commit, the client trusts the session in
it; otherwise it tries again only at its next start. The client reports what it holds by a Bloom filter, which can have
false positives. Hence four rules:

1. Introductions are sent before other commits, each after the introduction of its signer. The first ones are signed by
   the root under which the client was created. If the introductions that start at this root do not reach the root that
   introduced it (its rotation was rolled back, or an anchor introduced it), the first ones include some that this
   introducer signed. The client trusts the introducer, because the server that created the client's session also sent
   all other roots that had not expired.
2. If the client lacks the introduction of a root, it also gets those of the `MARGIN` roots before that root and of all
   later roots, even if its filter contains them: the filter can be wrong, and the client ignores an introduction that
   arrives before that of its signer.
3. A child of an introduction by which the client learns a root is never sent, because the client would then ignore that
   introduction. The child adds nothing that the client needs. (Cross-signatures of earlier builds of Goatherd are such
   children, see ADR 17.)
4. An introduction is not sent if this server does not trust the introduced root, or does not yet hold the introductions
   that lead to its signer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from goatherd.identity.session import Session
from goatherd.identity.session_commits import claims_root, introduction_id
from goatherd.wire.commit import Commit

MARGIN: Final = 16
"""How many roots before the first one that a client lacks are introduced to it again. Its filter is wrong about one
root with a chance of 1 in 5 at the worst, where there are ten sessions."""


@dataclass(frozen=True, slots=True)
class Route:
    """The order in which a client learns a cluster's roots from their introductions, starting from one known root.

    Attributes:
        steps: One tuple for each root that the client learns: the introductions of that root, all signed by one other
            root.
        rest: The other introductions; after `steps` the client knows their signers.
    """

    steps: tuple[tuple[Commit, ...], ...]
    rest: tuple[Commit, ...]

    @property
    def learned(self) -> frozenset[str]:
        """The ids of the roots that the client learns."""
        return frozenset(step[0].key for step in self.steps)

    @property
    def children(self) -> frozenset[str]:
        """The ids of the introductions that have an introduction of `steps` as their parent commit.

        These introductions are not sent. Merge commits (with two parents) are not included, so they are sent: a client
        crashes if it holds two different commits that create the same item, but not their merge.
        """
        taken = {commit.id for step in self.steps for commit in step}
        return frozenset(one.id for one in self.rest if len(one.parents) == 1 and one.parents[0] in taken)


class RootIntroductions:
    """The commits of one ``/sys/sessions`` repository that introduce roots; new commits are added with `extend`."""

    def __init__(self, commits: Iterable[Commit] = ()) -> None:
        self._commits: list[Commit] = []
        self.extend(commits)

    def extend(self, commits: Iterable[Commit]) -> None:
        """Add session commits to this index of root introductions, in the order of the commit log."""
        self._commits += [commit for commit in commits if claims_root(commit)]

    def for_peer(self, missing: Sequence[Commit]) -> list[Commit]:
        """Return session commits in the order to send them to another server: introductions of roots first.

        Each introduction of a root comes after the introduction of its signer.
        """
        lacking = {commit.id for commit in missing if claims_root(commit)}
        if not lacking:
            return list(missing)
        route = _build_route(self._commits, _find_oldest(self._commits))
        placed = [commit for step in (*route.steps, route.rest) for commit in step if commit.id in lacking]
        return _with_first(placed, missing)

    def for_client(
        self,
        missing: Sequence[Commit],
        *,
        born_under: Mapping[str, float],
        find_root: Callable[[str], Session | None],
        anchors: Collection[str] = (),
    ) -> list[Commit]:
        """Return the commits of ``/sys/sessions`` to send to a client, with the root introductions to verify them.

        Args:
            missing: The session commits that the client lacks according to its Bloom filter, in the order of the commit
                log.
            born_under: The signers of the commits that introduce the client's session, and when they did that, in
                milliseconds since 1970. The client certainly trusts the oldest of them. If empty, the oldest of all
                roots is used.
            find_root: Returns the root with the given id if this server trusts it, otherwise None.
            anchors: The ids of the roots that are or were the identity's anchor.
        """
        lacking = {commit.id for commit in missing if claims_root(commit)}
        if not lacking:
            return list(missing)
        # SECURITY: a client cannot learn that a root was revoked. So the server sends it no introduction of a root that
        # the server does not trust (tests/cluster/test_clients_through_rotation.py).
        good = [commit for commit in self._commits if find_root(commit.key) is not None]
        start = _find_oldest(good, born_under)
        introducer = next((commit.session for commit in good if commit.id == introduction_id(start)), None)
        if introducer is None:
            route = _build_route(good, start, *_find_first_anchors(good, anchors, find_root))
        else:
            route = _build_route(good, start)
            root = find_root(introducer)
            was_sent = root is not None and root.expiration_ms > min(born_under.values(), default=math.inf)
            if was_sent and introducer not in route.learned:
                route = _build_route(good, start, introducer)
        first = next((n for n, step in enumerate(route.steps) if any(one.id in lacking for one in step)), None)
        steps = () if first is None else route.steps[max(0, first - MARGIN) :]
        placed: list[Commit] = []
        for step in steps:
            placed += [commit for commit in step if commit.id in lacking] or step[:1]
        children = route.children
        placed += [commit for commit in route.rest if commit.id in lacking and commit.id not in children]
        return _with_first(placed, missing, lacking)


def _build_route(introductions: Sequence[Commit], *start: str) -> Route:
    by_signer: dict[str, list[Commit]] = {}
    for commit in introductions:
        by_signer.setdefault(commit.session, []).append(commit)
    steps: dict[str, list[Commit]] = {}
    rest: list[Commit] = []
    known = deque(start)
    while known:
        signer = known.popleft()
        for commit in by_signer.pop(signer, ()):
            step = steps.get(commit.key)
            if commit.key not in start and step is None:
                steps[commit.key] = [commit]
                known.append(commit.key)
            elif step is not None and step[0].session == signer and not commit.parents:
                step.append(commit)
            else:
                rest.append(commit)
    return Route(tuple(tuple(step) for step in steps.values()), tuple(rest))


def _find_first_anchors(
    introductions: Sequence[Commit], anchors: Collection[str], find_root: Callable[[str], Session | None]
) -> tuple[str, ...]:
    """Return the anchors that no root has introduced: the identity has had them from the beginning.

    A client that was created under the first root of the identity has trusted them from its creation.
    """
    ids = {one.id for one in introductions}
    return tuple(sorted(one for one in anchors if introduction_id(one) not in ids and find_root(one) is not None))


def _find_oldest(introductions: Sequence[Commit], among: Collection[str] = ()) -> str:
    """Return the id of the oldest root in `among` (if empty, of all roots): the root that led to the others."""
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
