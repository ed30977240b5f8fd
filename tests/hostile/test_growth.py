"""Every place that reads bytes takes time and memory in proportion to their number, whatever the bytes are.

Measured is the time of the processor, not of a clock on the wall, the least of several tries, and only the ratio
between sizes counts: four times the bytes may take four times as long, and twice that because of the machine's
noise.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import islice, product

import pytest

from tests.depth import STRIDE
from tests.hostile.entries import Entry, entries, memory_of, outcome
from tests.hostile.shapes import SHAPES, inside

pytestmark = pytest.mark.deep

SIZE = 48 * 1024
FACTOR = 4
TOO_MUCH = 2.0 * FACTOR
"""How many times as long `FACTOR` times the bytes may take."""
QUICK = 0.015
"""Seconds; what takes less at its full size is not looked at further."""
PER_BYTE = 2e-6
"""Seconds for each byte that do no harm, whatever a quarter of the bytes took."""
TRIES = 5
MEMORY = 100
"""Bytes of memory for each byte that came, beside the entry's `small`."""


@pytest.mark.parametrize("entry", [each for each in entries() if each.is_measured], ids=lambda entry: entry.name)
def test_time_and_memory_grow_with_the_bytes_that_came(entry: Entry) -> None:
    wrong = []
    looked_at = 0
    inputs = product(
        [place for sample in entry.samples or (b"{}",) for place in inside(sample)],
        SHAPES.items(),
    )
    for (place, put), (name, shape) in islice(inputs, 0, None, STRIDE):
        looked_at += 1
        problem = _problem(entry, place, put, shape)
        if problem:
            wrong.append(f"{name} {place}: {problem}")
    assert not wrong, "\n".join([entry.name, *wrong[:20]])
    assert looked_at >= len(SHAPES) // STRIDE


def _problem(entry: Entry, place: str, put: Callable[[bytes], bytes], shape: Callable[[int], bytes]) -> str | None:
    full = min(entry.limit, SIZE)
    data = put(shape(full))
    quick, alien = _seconds(entry, data, tries=1)
    if alien:
        return alien
    if quick < QUICK:
        return _memory_problem(entry, data) if place == "alone" else None
    for _ in range(3):
        long, _ = _seconds(entry, data)
        if long <= PER_BYTE * len(data):
            break
        short, _ = _seconds(entry, put(shape(full // FACTOR)))
        if long < QUICK or long / max(short, 1e-5) < TOO_MUCH:
            break
        # Small bodies may be read in another way, so only the growth of larger ones counts.
        if FACTOR * full <= entry.limit and _seconds(entry, put(shape(FACTOR * full)))[0] / long < TOO_MUCH:
            break
    else:
        return f"{len(data)} bytes took {1000 * long:.0f} ms, a quarter of them {1000 * short:.1f} ms"
    return _memory_problem(entry, data)


def _memory_problem(entry: Entry, data: bytes) -> str | None:
    used = memory_of(entry, data)
    return f"{len(data)} bytes took {used // 1000} kB" if used > MEMORY * len(data) + entry.small else None


def _seconds(entry: Entry, data: bytes, *, tries: int = TRIES) -> tuple[float, str | None]:
    best = float("inf")
    gc.disable()
    try:
        for _ in range(tries):
            begun = time.process_time()
            alien = outcome(entry, data)
            best = min(best, time.process_time() - begun)
    finally:
        gc.enable()
    return best, alien
