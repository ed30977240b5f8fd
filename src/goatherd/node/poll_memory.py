"""Remember which commits the clients of a session hold, so that a poll looks up only those that they may lack. Pure.

At every poll a client sends a Bloom filter with new seeds over all commits that it holds, and their number. To look up
all 100 000 commits of a repository in this filter takes a tenth of a second, although the client usually lacks none of
them. So a `PollMemory` stores for each session what earlier polls have shown, and a poll only looks up:

* commits that are new, that the client lacked before, or that too few filters have contained. A commit counts as held
  once the product of the false-positive rates of the filters that contained it is below `CERTAIN`
* a part of the other commits (`SLICE`), a different one at each poll, so that a few hundred polls look up all of them.
  Only `ROTATING_HASHES` hash functions are used for this rotating part. They find a commit that the client lacks with a
  probability of 7/8

The surplus of a client is the number of its commits that this server does not hold: the number of commits that the
client states, minus the number of this server's commits that it does not lack. If a client has lost commits, its
surplus differs from the stored one. Then all commits are looked up, and the client gets the lost ones at its next poll.
The surplus stays the same only if the client has also gained exactly as many commits that this server does not hold.
Then the rotating part finds the lost ones within a few hundred polls. The rotating part also detects the empty filter
that a client sends after its start.

The first poll of a session looks up the newest commits and a sample of the others. The commits that were not looked up
count as held, until the rotating part looks them up, on two conditions: the client lacks none of the sample, and the
number that the client states is the number of this server's commits minus the newest ones that the client lacks.
Otherwise all commits are looked up.

Clients with the same session (tabs of a browser) and the same surplus share one memory. A client with another surplus
holds other commits, and so has a memory of its own.

tests/unit/node/test_poll_memory.py compares the results with those of complete lookups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from goatherd.wire.bloom import BloomFilter

CERTAIN: Final = 1e-6
SLICE: Final = 32
ROTATING_HASHES: Final = 3
MAX_SESSIONS: Final = 10_000
MAX_SURPLUSES: Final = 8
MAX_SPANS: Final = 256

_NEWEST: Final = 1024
"""How many of the newest commits the first poll of a session looks up."""
_SURE_RATE: Final = 1 / 16
"""A sample counts only in a filter with at most this false-positive rate."""
_ROUND: Final = 256
"""Maximum number of polls that look up all commits, if none of them changes anything."""


class HasID(Protocol):
    """Any object with a commit's id, the only part of a commit that this module uses."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered about the commits that the clients of one session hold.

    Clients of the session share one memory if they have the same surplus, the number of commits that a client holds and
    this server does not.

    Attributes:
        surplus: How many commits these clients hold that this server does not hold.
        spans: The commits as spans of consecutive positions. For each span: the position of its end, and the
            probability that a client lacks a commit in it although the client's filters contained the commit.
        position: Position at which the next poll continues to look up a part of the commits that are known to be held.
        seeds: The seeds of the last filter. A filter with the same seeds must not count as further evidence.
    """

    surplus: float
    spans: tuple[tuple[int, float], ...]
    position: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """The result of looking commits up in a client's Bloom filter: which of them the client lacks.

    Attributes:
        missing: Positions of the commits that the client lacks, ascending.
        lookups: Number of commits that were looked up in the filter.
        surplus: How many commits the client holds that this server does not hold; None if that is unknown.
        memory: What `PollMemory.store` will remember; None if there is nothing to remember.
    """

    missing: Sequence[int] = ()
    lookups: int = 0
    surplus: float | None = None
    memory: Memory | None = None


class PollMemory:
    """Remember which commits the clients of each session hold, for one view of a repository.

    A view is the set of commits that the sessions of one owner may read.

    Several threads may use an object, because all values in it are immutable.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS, slice_size: int = SLICE) -> None:
        self._max_sessions = max_sessions
        self._slice_size = slice_size
        # Two generations, because removing the least recently used one of a dictionary is not safe between threads.
        self._recent: dict[str, tuple[Memory, ...]] = {}
        self._earlier: dict[str, tuple[Memory, ...]] = {}

    def __len__(self) -> int:
        return len(self._recent) + len(self._earlier)

    def recall(
        self, session_id: str, commits: Sequence[HasID], held: BloomFilter, size: float, limit: int
    ) -> Look | None:
        """Find the commits that a client lacks by looking up only those that it may lack, as far as earlier polls show.

        In addition, a small part of the other commits is looked up, a different one at each call.

        Args:
            session_id: Id of the session that signed the request.
            commits: All commits that the session may read. New commits are only added at the end.
            held: The client's Bloom filter over the commits that it holds, with at least one seed.
            size: The number of commits that the client says it holds.
            limit: Maximum number of commits to look up, apart from the part that differs at each call.

        Returns:
            The result; None if too little is remembered, so that `look_at_all` must be called.
        """
        count = len(commits)
        memories = self._memories_of(session_id)
        if all(memory.surplus != 0 for memory in memories) and (first := self._look_first(commits, held, size, limit)):
            return first
        lookups = 0
        for memory in memories:
            spans = _extend_spans(memory.spans, count)
            unsure = _unsure_ranges(spans)
            lookups += sum(len(positions) for positions in unsure)
            if lookups > limit:
                continue
            missing = [position for positions in unsure for position in _find_lacking(commits, positions, held)]
            if size - count + len(missing) != memory.surplus:
                continue
            rotating = self._rotating_part(memory.position, count)
            if not set(missing).issuperset(_find_lacking(commits, rotating, held, ROTATING_HASHES)):
                return None
            spans = _update_spans(
                spans, missing, 1.0 if memory.seeds == held.seeds else held.error_rate, is_whole=False
            )
            updated = _remember_poll(memory.surplus, spans, rotating.stop, held.seeds)
            return Look(missing, lookups + len(rotating), memory.surplus, updated)
        return None

    def _look_first(self, commits: Sequence[HasID], held: BloomFilter, size: float, limit: int) -> Look | None:
        """Look up the newest commits and a sample of the others, for a client about which nothing is remembered.

        Returns:
            The result, if it explains the number of commits that the client states: the client then lacks only commits
            among the newest ones, and holds none that this server lacks. Otherwise None.
        """
        count = len(commits)
        tail = max(0, count - min(limit, _NEWEST))
        if not 0 <= count - size <= count - tail or held.error_rate > _SURE_RATE:
            return None
        step = max(1, tail // self._slice_size)
        sample = range(held.seeds[0] % step, tail, step)
        if _find_lacking(commits, sample, held):
            return None
        missing = _find_lacking(commits, range(tail, count), held)
        if size != count - len(missing):
            return None
        before = ((tail, 0.0), (count, 1.0)) if tail else ((count, 1.0),)
        spans = _update_spans(before, missing, held.error_rate, is_whole=False)
        return Look(missing, len(sample) + count - tail, 0, _remember_poll(0, spans, 0, held.seeds))

    def look_at_all(self, session_id: str, commits: Sequence[HasID], held: BloomFilter, size: float) -> Look:
        """Find the commits that a client lacks by looking up all commits in its Bloom filter.

        The arguments have the same meaning as those of `recall`.
        """
        count = len(commits)
        missing = _find_lacking(commits, range(count), held)
        surplus = size - count + len(missing)
        error_rate = held.error_rate
        if surplus < 0 or error_rate >= 1:
            # Fewer than the filter claims: at least one of these is claimed falsely.
            return Look(missing, count, surplus)
        known = next((one for one in self._memories_of(session_id) if one.surplus == surplus), None)
        spans = _extend_spans(() if known is None else known.spans, count)
        is_same = known is not None and known.seeds == held.seeds
        spans = _update_spans(spans, missing, 1.0 if is_same else error_rate, is_whole=True)
        return Look(missing, count, surplus, _remember_poll(surplus, spans, 0, held.seeds))

    def store(self, session_id: str, look: Look) -> None:
        """Remember the result of a lookup for the next polls of the same session.

        Each filter must be looked up, and its result stored, only once.
        """
        if look.memory is None:
            return
        others = [one for one in self._memories_of(session_id) if one.surplus != look.memory.surplus]
        if session_id not in self._recent and len(self._recent) >= self._max_sessions:
            self._earlier, self._recent = self._recent, {}
        self._recent[session_id] = (look.memory, *others[: MAX_SURPLUSES - 1])
        self._earlier.pop(session_id, None)

    def _memories_of(self, session_id: str) -> tuple[Memory, ...]:
        return self._recent.get(session_id) or self._earlier.get(session_id) or ()

    def _rotating_part(self, position: int, count: int) -> range:
        start = position if position < count else 0
        return range(start, min(count, start + max(self._slice_size, -(-count // _ROUND))))


def _remember_poll(
    surplus: float, spans: list[tuple[int, float]], position: int, seeds: tuple[int, ...]
) -> Memory | None:
    return Memory(surplus, tuple(spans), position, seeds) if len(spans) <= MAX_SPANS else None


def _find_lacking(
    commits: Sequence[HasID], positions: range, held: BloomFilter, most_hashes: int | None = None
) -> list[int]:
    ids = [commits[position].id for position in positions]
    return [positions[offset] for offset in held.find_missing(ids, most_hashes)]


def _extend_spans(spans: Sequence[tuple[int, float]], count: int) -> Sequence[tuple[int, float]]:
    """Return the spans, extended to `count` commits if necessary.

    The added span has the probability 1, because its commits were not looked up yet.
    """
    return spans if spans and spans[-1][0] >= count else (*spans, (count, 1.0))


def _unsure_ranges(spans: Sequence[tuple[int, float]]) -> list[range]:
    starts = (0, *(end for end, _ in spans))
    return [range(start, end) for start, (end, doubt) in zip(starts, spans, strict=False) if doubt >= CERTAIN]


def _update_spans(
    spans: Sequence[tuple[int, float]], missing: Sequence[int], error_rate: float, *, is_whole: bool
) -> list[tuple[int, float]]:
    """Return the spans of commits after a lookup, with new probabilities that the client lacks a commit in them.

    Args:
        spans: The spans before the lookup.
        missing: The positions of the commits that the client's filter does not contain.
        error_rate: The filter's false-positive rate.
        is_whole: Whether all commits were looked up, also those in spans that the client is known to hold.
    """
    updated: list[tuple[int, float]] = []

    def add_span(end: int, doubt: float) -> None:
        doubt = doubt if doubt >= CERTAIN else 0.0
        if updated and updated[-1][1] == doubt:
            updated[-1] = end, doubt
        else:
            updated.append((end, doubt))

    start = at = 0
    for end, doubt in spans:
        if doubt < CERTAIN and not is_whole:
            add_span(end, doubt)
        else:
            until = at
            while until < len(missing) and missing[until] < end:
                until += 1
            if until - at > MAX_SPANS:
                add_span(end, 1.0)
            else:
                for position in missing[at:until]:
                    if position > start:
                        add_span(position, doubt * error_rate)
                    add_span(position + 1, 1.0)
                    start = position + 1
                if start < end:
                    add_span(end, doubt * error_rate)
            at = until
        start = end
    return updated
