"""Update docs/explanation/proof.md: rules, a story, and the figures of a run.

The text between ``<!-- generated: NAME -->`` and ``<!-- end -->`` is generated; the rest is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .configurations import CONFIGURATIONS
from .explorer import Exploration
from .invariants import RULES
from .mutants import MUTANTS, PRICES, REDUNDANT, explore_mutant
from .story import tell

PAGE = Path(__file__).parents[2] / "docs/explanation/proof.md"
TOLD = "asking one node only"

_PART = re.compile(r"(<!-- generated: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table for a page."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parts() -> dict[str, str]:
    """Return the parts that need no exploration of large worlds."""
    (told,) = [one for one in MUTANTS if one.name.startswith(TOLD)]
    return {
        "rules": table(("rule", "in words"), [(f"*{name}*", rule) for name, rule in RULES.items()]),
        "prices": table(("case", "breaks"), [(one.name, f"*{one.breaks}*") for one in PRICES]),
        "redundant": "".join(f"- {one.name}\n" for one in REDUNDANT),
        "story": f"```text\n{tell(explore_mutant(told))}\n```\n",
    }


def figures(found: Mapping[str, Exploration]) -> str:
    """Return the table of a run's figures; a world that was not run has a dash."""
    rows = []
    for one in CONFIGURATIONS:
        result = found.get(one.name)
        numbers = (
            ("–", "–", "–")
            if result is None
            else (
                f"{result.states:,}",
                f"{result.transitions:,}",
                str(result.depth),
            )
        )
        options = one.options
        size = f"{options.nodes + options.unlisted} / {options.operators} / {options.rotations}"
        rows.append((one.name, one.about, size, *numbers))
    heads = ("world", "what it is", "nodes / operators / rotations", "states", "transitions", "depth")
    return table(heads, rows)


def written(page: str, new: Mapping[str, str]) -> str:
    """Return the page with the given parts replaced."""

    def replaced(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return f"{begin}{new[name]}{end}" if name in new else match.group(0)

    return _PART.sub(replaced, page)
