"""Explore every reachable state, breadth first, and check that steady can be reached from each.

What it is: a walk over whole numbers. What it is not: it knows nothing of rotations. The first broken state that it
finds is one of those with the fewest moves before it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from time import process_time

from .invariants import Judge, is_steady
from .settings import Options, Removed
from .state import Move
from .world import World


@dataclass(kw_only=True)
class Exploration:
    """The result of an exploration.

    Attributes:
        states, transitions: How many, as whole states: states that differ only in numbering are one.
        schedules: In how many ways the adversary can lead to the states by the fewest moves each, summed over all.
        depth: The most moves that the shortest way to a state has.
        decisions: How often the real `decide` was asked something that it had not been asked in this world before.
        steady: How many states are steady.
        broken: The rule that was broken, or None.
        path: The moves that lead there.
        seconds: Processor time.
    """

    world: World
    states: int = 0
    transitions: int = 0
    schedules: int = 0
    depth: int = 0
    decisions: int = 0
    steady: int = 0
    broken: str | None = None
    path: list[tuple[int, Move, int]] = field(default_factory=list)
    seconds: float = 0.0


class TooManyStatesError(Exception):
    """The world has more states than the caller allows."""


def explore(
    options: Options,
    removed: Removed | None = None,
    *,
    limit: int = 20_000_000,
    allowed: frozenset[str] = frozenset(),
    on_progress: Callable[[int], None] | None = None,
) -> Exploration:
    """Walk every reachable state and return what was found; stop at the first broken rule.

    Args:
        options: The world.
        removed: The protections that it lacks.
        limit: The most states.
        allowed: Rules that this world may break; a state that breaks one is explored further.
        on_progress: Called now and then with the number of states so far.

    Raises:
        TooManyStatesError: `limit` is reached.
    """
    began = process_time()
    world = World(options, removed)
    judge = Judge(world, allowed)
    start = world.first()
    numbers = {start: 0}
    states = [start]
    parents = array("l", [-1])
    ways = [1]
    sources, targets = array("l"), array("l")
    found = Exploration(world=world)

    def stop(rule: str, at: int, last: Move | None = None, last_state: int | None = None) -> Exploration:
        found.broken, found.path = rule, _path(world, states, parents, at)
        if last is not None and last_state is not None:
            found.path.append((states[at], last, last_state))
        return _summed(found, states, ways, len(targets), began)

    rule = judge(start)
    if rule is not None:
        return stop(rule, 0)
    level_end, depth, at = 1, 0, 0
    while at < len(states):
        if at == level_end:
            level_end, depth = len(states), depth + 1
            if on_progress is not None:
                on_progress(len(states))
        state = states[at]
        seen_here: set[int] = set()
        for after, move in world.moves(state):
            if move.broken is not None and move.broken not in allowed:
                return stop(move.broken, at, move, after)
            if after == state or after in seen_here:
                continue
            seen_here.add(after)
            number = numbers.get(after)
            if number is None:
                number = numbers[after] = len(states)
                states.append(after)
                parents.append(at)
                ways.append(ways[at])
                rule = judge(after)
                if rule is not None:
                    return stop(rule, number)
                if number >= limit:
                    raise TooManyStatesError(f"more than {limit} states")
            elif number >= level_end:
                ways[number] += ways[at]
            sources.append(at)
            targets.append(number)
        at += 1
    found.depth = depth
    goals = bytearray(is_steady(world, state) for state in states)
    found.steady = sum(goals)
    if options.must_reach_steady:
        stuck = _stuck(len(states), sources, targets, goals)
        if stuck is not None:
            return stop("steady", stuck)
    return _summed(found, states, ways, len(targets), began)


def _summed(found: Exploration, states: list[int], ways: list[int], transitions: int, began: float) -> Exploration:
    found.states, found.transitions, found.schedules = len(states), transitions, sum(ways)
    found.decisions, found.seconds = found.world.decisions.asked, process_time() - began
    return found


def _stuck(count: int, sources: array[int], targets: array[int], goals: bytearray) -> int | None:
    """Return the first state from which no goal can be reached, walking backward from the goals."""
    starts = array("l", bytes(array("l").itemsize * (count + 1)))
    for target in targets:
        starts[target + 1] += 1
    for number in range(count):
        starts[number + 1] += starts[number]
    before = array("l", bytes(array("l").itemsize * len(sources)))
    free = array("l", starts)
    for source, target in zip(sources, targets, strict=True):
        before[free[target]] = source
        free[target] += 1
    reaches = bytearray(goals)
    stack = [number for number in range(count) if goals[number]]
    while stack:
        number = stack.pop()
        for source in before[starts[number] : starts[number + 1]]:
            if not reaches[source]:
                reaches[source] = 1
                stack.append(source)
    at = reaches.find(0)
    return None if at < 0 else at


def _path(world: World, states: list[int], parents: array[int], at: int) -> list[tuple[int, Move, int]]:
    path = []
    while parents[at] >= 0:
        before, after = states[parents[at]], states[at]
        move = next(move for state, move in world.moves(before) if state == after)
        path.append((before, move, after))
        at = parents[at]
    return path[::-1]
