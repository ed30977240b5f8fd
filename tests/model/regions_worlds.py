"""The worlds with stores in three regions, the mutants without one protection, and the parts of the page about them.

``python -m tests.model.regions_worlds`` explores them and prints what was found; ``--write`` also writes the figures
into docs/explanation/proof.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .page import PAGE, table, written
from .regions import EU, RULES, Found, Options, explore


@dataclass(frozen=True, kw_only=True)
class RegionsWorld:
    """One world with a name.

    Attributes:
        about: What may happen in it.
        is_slow: Whether it takes more than a second.
        is_by_hand: Whether it takes so long that only ``python -m tests.model.regions_worlds`` explores it.
        allowed: Rules that do not hold in it; docs/explanation/proof.md says why.
    """

    name: str
    about: str
    options: Options
    is_slow: bool = False
    is_by_hand: bool = False
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class RegionsMutant:
    """A world that lacks a protection.

    Attributes:
        name: The missing protection, in words.
        part: Its name in `regions.World`.
        breaks: The rule that breaks first.
        allowed: Rules that may break on the way, because they break sooner and are not the point.
        is_slow, is_by_hand: As for a world.
    """

    name: str
    part: str
    breaks: str
    options: Options
    allowed: frozenset[str] = frozenset()
    is_slow: bool = False
    is_by_hand: bool = False


STILL = Options(cuts=0, promotions=0)
LOST = Options(lost=(EU,))
RIVALS = Options(cuts=0, rivals=True)

WORLDS = (
    RegionsWorld(name="a follower lags", about="no region is cut off, and nothing is promoted", options=STILL),
    RegionsWorld(
        name="a region's store is lost",
        about="in any state, and returns in any state; nothing is promoted",
        options=Options(promotions=0),
        is_slow=True,
    ),
    RegionsWorld(
        name="a region is cut off",
        about="its store and its server, in any state, and it returns in any state; nothing is promoted",
        options=Options(promotions=0, takes_server=True),
        is_slow=True,
    ),
    RegionsWorld(
        name="a promotion, and the old configuration",
        about="a follower is promoted in any state; commands with the old and the new configuration continue",
        options=RIVALS,
        is_slow=True,
    ),
    RegionsWorld(
        name="the primary store is lost",
        about="in any state, a follower is promoted in any state, and the old primary store returns once every server "
        "uses the promoted identity",
        options=LOST,
        is_by_hand=True,
    ),
)
MUTANTS = (
    RegionsMutant(
        name="the gate after a label move: the next change is made before a follower shows the move",
        part="gate after label",
        breaks="in step",
        options=STILL,
    ),
    RegionsMutant(
        name="the gate after a write: the next change is made before a follower shows the write",
        part="gate after write",
        breaks="in step",
        options=STILL,
    ),
    RegionsMutant(
        name="every gate",
        part="gates",
        breaks="signer kept",
        options=STILL,
        allowed=frozenset({"in step"}),
    ),
    RegionsMutant(
        name="the generation rule: a server adopts any generation that a store shows",
        part="generation",
        breaks="generation",
        options=STILL,
    ),
    RegionsMutant(
        name="asking the other stores and the servers before a promotion",
        part="evidence",
        breaks="promoted",
        options=Options(cuts=0),
    ),
    RegionsMutant(
        name="keeping a later identity when a follower is brought forward",
        part="later kept",
        breaks="overwritten",
        options=RIVALS,
    ),
    RegionsMutant(
        name="not going back if a follower holds a later identity",
        part="going back",
        breaks="one signer",
        options=RIVALS,
        is_slow=True,
    ),
    RegionsMutant(
        name="waiting, before the old primary store returns, until every server uses the promoted identity",
        part="",
        breaks="one signer",
        options=replace(LOST, waits=False),
        is_by_hand=True,
    ),
)


def figures(found: Mapping[str, Found]) -> str:
    """Return the table of a run's figures; a world that was not run has a dash."""
    rows = []
    for one in WORLDS:
        result = found.get(one.name)
        numbers: tuple[str, ...] = ("–",) * 6
        if result is not None:
            numbers = tuple(
                f"{number:,}"
                for number in (
                    result.states,
                    result.transitions,
                    result.depth,
                    result.largest_lag,
                    result.promoted,
                    result.split,
                )
            )
        rows.append((one.name, one.about, *numbers))
    heads = ("world", "what may happen", "states", "transitions", "depth", "largest lag", "after a promotion", "split")
    return table(heads, rows)


def parts() -> dict[str, str]:
    """Return the parts that need no exploration."""
    return {
        "regionrules": table(("rule", "in words"), [(f"*{name}*", rule) for name, rule in RULES.items()]),
        "regionmutants": table(("removed protection", "breaks"), [(one.name, f"*{one.breaks}*") for one in MUTANTS]),
    }


def main() -> int:
    results: dict[str, Found] = {}
    for one in WORLDS:
        found = results[one.name] = explore(one.options, allowed=one.allowed)
        print(
            f"{one.name:<42} {found.states:>9,} states {found.transitions:>10,} transitions {found.depth:>3} deep "
            f"{found.decisions:>6,} decisions {found.seconds:>6.1f} s  {found.broken or ''}",
            flush=True,
        )
        for number, line in enumerate(found.path, 1):
            print(f"{number:3}. {line}")
    unexpected = 0
    for mutant in MUTANTS:
        found = explore(mutant.options, mutant.part, allowed=mutant.allowed)
        print(f"\nwithout {mutant.name}: {found.broken}, after {found.states:,} states", flush=True)
        for number, line in enumerate(found.path, 1):
            print(f"{number:3}. {line}")
        unexpected += found.broken != mutant.breaks
    if "--write" in sys.argv[1:]:
        PAGE.write_text(written(PAGE.read_text(), {**parts(), "regionfigures": figures(results)}))
    return int(unexpected or any(found.broken is not None for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
