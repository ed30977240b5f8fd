"""A row of the benchmark: samples of one quantity, and its bare limit measured beside each. Tables and comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

SINGLE: Final = 0.1
"""Assumed noise of a row that is measured once."""
LEAST: Final = 0.02
"""Noise that is assumed at least."""
STEP: Final = 1.5
"""How much more than its work a row may grow from one size to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantity at one size.

    Attributes:
        name: ``part/quantity``.
        unit: Unit of the samples and of the bare limit.
        size: Number of commits, sessions, clients, servers, regions or pages; 1 for a single operation.
        samples: The measured values.
        bare: The bare limit, measured beside each sample; empty if there is none.
        limit: What the bare limit is.
        more_is_better: Whether the quantity is a rate.
        power: How the work grows with the size: 0 if it does not, 1 if proportionally.
    """

    name: str
    unit: str
    size: int
    samples: Sequence[float]
    bare: Sequence[float] = ()
    limit: str = ""
    more_is_better: bool = False
    power: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(self.samples))
        object.__setattr__(self, "bare", tuple(self.bare))

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def bare_value(self) -> float | None:
        return statistics.median(self.bare) if self.bare else None

    @property
    def over(self) -> float | None:
        """The quantity over its bare limit; for a rate, the bare limit's share that is reached."""
        ratios = self._ratios()
        return statistics.median(ratios) if ratios else None

    @property
    def compared(self) -> float:
        """What two runs compare: the ratio to the bare limit, which does not depend on the machine, or the value."""
        return self.value if self.over is None else self.over

    @property
    def noise(self) -> float:
        """Twice the relative standard error of `compared`."""
        values = self._ratios() or list(self.samples)
        middle = statistics.median(values)
        if len(values) < 3 or not middle:
            return SINGLE
        deviation = 1.4826 * statistics.median(abs(value - middle) for value in values)
        return max(LEAST, 2 * 1.2533 * deviation / middle / math.sqrt(len(values)))

    def _ratios(self) -> list[float]:
        return [ours / bare for ours, bare in zip(self.samples, self.bare, strict=bool(self.bare)) if bare]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"value": self.value, "over": self.over, "noise": self.noise}

    @classmethod
    def from_json(cls, encoded: Mapping[str, Any]) -> Row:
        return cls(**{name: encoded[name] for name in cls.__slots__})


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Yield lines: each row, its bare limit, the ratio of both, and its noise."""
    yield f"{'row':<30}{'size':>9}{'value':>12} {'unit':<8}{'bare':>12}{'over bare':>11}{'noise':>8}  bare limit"
    for row in rows:
        bare = "" if row.bare_value is None else format_number(row.bare_value)
        over = "" if row.over is None else f"{row.over:.2f}"
        numbers = f"{format_number(row.value):>12} {row.unit:<8}{bare:>12}{over:>11}{row.noise:>8.0%}"
        yield f"{row.name:<30}{row.size:>9}{numbers}  {row.limit}".rstrip()


def format_number(value: float) -> str:
    """Return a number with three digits or more."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def compare(before: Sequence[Row], after: Sequence[Row]) -> Iterator[str]:
    """Yield lines: the ratio of two runs for each row, their noise, and whether the difference exceeds the noise."""
    earlier = {(row.name, row.size): row for row in before}
    yield f"{'row':<30}{'size':>9}{'before':>12}{'after':>12}{'ratio':>8}{'noise':>8}"
    for row in after:
        old = earlier.pop((row.name, row.size), None)
        if old is None or not old.compared:
            yield f"{row.name:<30}{row.size:>9}{'':>12}{format_number(row.value):>12}  new"
            continue
        ratio = row.compared / old.compared
        noise = math.hypot(row.noise, old.noise)
        verdict = ""
        if abs(math.log(ratio or 1e-9)) > math.log1p(noise):
            verdict = "better" if (ratio > 1) is row.more_is_better else "WORSE"
        numbers = f"{format_number(old.value):>12}{format_number(row.value):>12}{ratio:>8.2f}{noise:>8.0%}"
        yield f"{row.name:<30}{row.size:>9}{numbers}  {verdict}".rstrip()
    for old in earlier.values():
        yield f"{old.name:<30}{old.size:>9}{format_number(old.value):>12}{'':>12}  gone"


def growth(rows: Iterable[Row]) -> Iterator[str]:
    """Yield lines: each row at each size, its growth over that of its work, and whether it grows faster."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    yield f"{'row':<30}{'size':>9}{'value':>12} {'unit':<8}{'grows by':>9}{'its work':>9}"
    for name, sizes in by_name.items():
        smaller: Row | None = None
        for row in sorted(sizes, key=lambda row: row.size):
            line = f"{name:<30}{row.size:>9}{format_number(row.value):>12} {row.unit:<8}"
            if smaller is not None and smaller.size < row.size and smaller.value and row.value:
                factor = smaller.value / row.value if row.more_is_better else row.value / smaller.value
                work = (row.size / smaller.size) ** row.power
                line += f"{factor:>9.2f}{work:>9.0f}" + ("  FASTER THAN ITS WORK" if factor > STEP * work else "")
            yield line.rstrip()
            smaller = row
