"""``python -m tests.model``: explore the rotation and print the figures; a broken rule prints its story.

Without arguments: what CI runs. See ``--help``.
"""

from __future__ import annotations

import argparse
import sys

from .configurations import CONFIGURATIONS
from .explorer import Exploration, explore
from .invariants import RULES
from .mutants import MUTANTS, PRICES, REDUNDANT, Mutant, explore_mutant
from .page import PAGE, figures, parts, written
from .story import tell


def line(name: str, found: Exploration) -> str:
    """Return one row: states, transitions, shortest schedules, depth, questions to `decide`, seconds."""
    return (
        f"{name:<40} {found.states:>9,} states {found.transitions:>10,} transitions {found.schedules:>22,} schedules "
        f"{found.depth:>3} deep {found.decisions:>6,} decisions {found.seconds:>6.1f} s"
    )


def run_worlds(text: str, *, is_everything: bool) -> dict[str, Exploration]:
    """Explore every world whose name holds `text`, and return what was found in each."""
    results: dict[str, Exploration] = {}
    states, transitions, seconds = 0, 0, 0.0
    for one in CONFIGURATIONS:
        if text not in one.name or (one.is_by_hand and not is_everything):
            continue
        found = results[one.name] = explore(one.options, allowed=one.allowed)
        print(line(one.name, found), flush=True)
        states, transitions = states + found.states, transitions + found.transitions
        seconds += found.seconds
        if found.broken is not None:
            print(tell(found))
    print(f"{'together':<40} {states:>9,} states {transitions:>10,} transitions {seconds:.1f} s of processor time")
    return results


def run_mutants(text: str) -> int:
    """Explore every mutant whose name contains `text` and print its story; return how many broke another rule than
    expected."""
    unexpected = 0
    chosen: tuple[Mutant, ...] = (*MUTANTS, *PRICES, *REDUNDANT)
    for one in (mutant for mutant in chosen if text in mutant.name):
        found = explore_mutant(one)
        print(f"\n{one.name}: {found.broken or 'nothing broke'}, after {found.states:,} states", flush=True)
        if found.broken is not None:
            print(tell(found))
        unexpected += found.broken != one.breaks
    return unexpected


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Explore the rotation exhaustively.")
    parser.add_argument("text", nargs="?", default="", help="only the worlds or mutants with this in their name")
    parser.add_argument("--all", action="store_true", help="also explore the worlds that take many minutes")
    parser.add_argument(
        "--mutants",
        action="store_true",
        help="remove one protection at a time; print what breaks",
    )
    parser.add_argument("--rules", action="store_true", help="print the rules")
    parser.add_argument("--write", action="store_true", help="update docs/explanation/proof.md, and exit")
    parser.add_argument("--figures", action="store_true", help="also write the figures of this run into that page")
    chosen = parser.parse_args()
    if chosen.rules:
        for name, rule in RULES.items():
            print(f"{name:<14} {rule}")
        return 0
    if chosen.mutants:
        return min(run_mutants(chosen.text), 1)
    if chosen.write:
        PAGE.write_text(written(PAGE.read_text(), parts()))
        return 0
    results = run_worlds(chosen.text, is_everything=chosen.all)
    if chosen.figures:
        PAGE.write_text(written(PAGE.read_text(), {"figures": figures(results)}))
    return int(any(found.broken is not None for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
