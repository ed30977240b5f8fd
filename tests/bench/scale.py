"""How large each part of the benchmark is: the full run, a run that only shows that every part works, and growth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of a run.

    Attributes:
        commits: Commits in the large repository.
        few: Commits in a repository of usual size, and in a body that is sent again.
        pushed: Commits in one push, and in a repository that a new client pulls.
        sessions: Sessions in ``/sys/sessions`` when a server starts.
        reissued: Sessions that a revocation reissues.
        managed: Sessions that an agent reads.
        clients: Clients that poll at the same time.
        seconds: How long the clients poll.
        nodes: Servers in a rotation.
        rounds: Samples of slow operations; fast ones are sampled more often.
    """

    commits: int = 100_000
    few: int = 5_000
    pushed: int = 15_000
    sessions: int = 50_000
    reissued: int = 10_000
    managed: int = 10_000
    clients: int = 1_000
    seconds: float = 20.0
    nodes: int = 5
    rounds: int = 3

    def times(self, factor: int) -> int:
        """Return the number of samples of something that is `factor` times as short."""
        return 1 if self.rounds == 1 else factor * self.rounds


FULL: Final = Scale()
TINY: Final = Scale(
    commits=10,
    few=10,
    pushed=10,
    sessions=10,
    reissued=10,
    managed=10,
    clients=5,
    seconds=1.0,
    nodes=2,
    rounds=1,
)

COMMITS: Final = (1_000, 10_000, 100_000, 1_000_000)
SESSIONS: Final = (1_000, 50_000, 200_000)
MOST_PUSHED: Final = 50_000
"""A body may have 64 MiB."""


def growing_commits(most: int) -> Iterator[Scale]:
    """Yield a scale for each number of commits up to `most`."""
    for count in COMMITS:
        if count <= most:
            yield replace(FULL, commits=count, few=count, pushed=min(count, MOST_PUSHED), rounds=1)


def growing_sessions(most: int) -> Iterator[Scale]:
    """Yield a scale for each number of sessions up to `most`."""
    for count in SESSIONS:
        if count <= most:
            yield replace(FULL, sessions=count, reissued=count, managed=count, rounds=1)
