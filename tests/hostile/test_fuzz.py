"""Malformed input of every kind, at every place that reads bytes: it causes one of Goatherd's errors or none, at a
bounded cost.

The bytes come from good samples, changed in what they mean (members left out, doubled, of another kind, at the edges of
numbers) and in how they are written (bits, cuts, splices). Each place has its time; the seed is in the test's name.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.hostile.entries import Entry, entries, memory_of, outcome
from tests.hostile.shapes import SHAPES, leaves, member, replaced

pytestmark = pytest.mark.deep

SECONDS = 2.0
DEAREST = 0.05
"""Seconds of the processor that one request may take, beside `PER_BYTE`."""
PER_BYTE = 5e-7
"""Seconds for each byte that came; a large body is read in a thread."""
MEMORY = 100
"""Bytes of memory for each byte that came, beside the entry's `small`."""
LONGEST = 32_768

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e300, -1e300, 2**31, 2**53, 2**53 + 1, 2**64, 10**400, 1e-320,
    "", " ", "0", "-", "\0", "\ud800", "é", "root", "__proto__", "/sys/sessions", "x" * 300, "9" * 60, "1970-01-01",
    [], [[]], [None], {}, {"": None}, {"__t": "E", "__v": {}}, {"__t": "D", "__v": "x"}, {"d": "", "s": []}, [0] * 50,
)  # fmt: skip


@dataclass
class Worst:
    seconds: float = 0.0
    per_byte: float = 0.0
    data: bytes = b""


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_wrong_bytes_are_refused_with_an_error_of_ours_and_cheaply(
    entry: Entry, seed: int, record_property: Callable[[str, object], None]
) -> None:
    dice = random.Random(seed)
    worst = Worst()
    rounds, end = 0, time.process_time() + SECONDS
    gc.disable()
    try:
        while time.process_time() < end:
            data = changed(dice, dice.choice(entry.samples or (b"{}",)))[: entry.limit]
            begun = time.process_time()
            alien = outcome(entry, data)
            spent = time.process_time() - begun
            assert alien is None, f"{alien} of {data!r}"
            rounds += 1
            if spent > worst.seconds:
                worst.seconds, worst.data = spent, data
            worst.per_byte = max(worst.per_byte, spent / (len(data) + 1000))
            if rounds % 256 == 0:
                gc.collect(0)
    finally:
        gc.enable()
    # The dearest once more: a pause of the machine is no property of the bytes.
    seconds = min(worst.seconds, *(_seconds(entry, worst.data) for _ in range(3)))
    memory = memory_of(entry, worst.data)
    record_property(
        "cost",
        f"{entry.name}: {1000 * seconds:.2f} ms and {memory // 1000} kB for {len(worst.data)} bytes, "
        f"at most {1e6 * worst.per_byte:.1f} us a byte, of {rounds} inputs",
    )
    assert rounds >= 50
    if not entry.is_measured:
        return
    assert seconds < DEAREST + PER_BYTE * len(worst.data), f"{1000 * seconds:.0f} ms for {worst.data[:200]!r}"
    assert memory < MEMORY * len(worst.data) + entry.small, f"{memory} bytes for {worst.data[:200]!r}"


def changed(dice: random.Random, sample: bytes) -> bytes:
    """Return a sample with one to four changes."""
    try:
        value = json.loads(sample)
    except ValueError:
        value = None
    if value is not None and dice.random() < 0.75:
        for _ in range(dice.randint(1, 4)):
            value = changed_json(dice, value)
        sample = json.dumps(value).encode()
        if dice.random() < 0.8:
            return sample
    data = bytearray(sample)
    for _ in range(dice.randint(1, 4)):
        changed_bytes(dice, data)
    return bytes(data)


def changed_json(dice: random.Random, value: Any) -> Any:
    path = dice.choice(list(leaves(value)))
    old = member(value, path)
    kind = dice.random()
    if kind < 0.35:
        return replaced(value, path, dice.choice(VALUES))
    if kind < 0.5:
        shape = SHAPES[dice.choice(sorted(SHAPES))](dice.choice((10, 100, 1000, LONGEST)))
        return replaced(value, path, shape.decode("utf-8", "replace"))
    if isinstance(old, dict) and old:
        name = dice.choice(sorted(old))
        if kind < 0.75:
            return replaced(value, path, {key: each for key, each in old.items() if key != name})
        return replaced(value, path, {**old, dice.choice(("x", "__t", "__v", "d", "id")): old[name]})
    if isinstance(old, list) and old:
        return replaced(value, path, old * dice.randint(0, 3) + [dice.choice(VALUES)])
    if isinstance(old, str):
        cut = dice.randrange(len(old) + 1)
        return replaced(value, path, old[:cut] + dice.choice(("", "\0", "é", old, "=", "/", "\n")) + old[cut + 1 :])
    if isinstance(old, int | float) and not isinstance(old, bool):
        return replaced(value, path, old * dice.choice((-1, 10, 10**9, 10**18)) + dice.choice((0, 1, -1)))
    return replaced(value, path, [old, old])


def changed_bytes(dice: random.Random, data: bytearray) -> None:
    at = dice.randrange(len(data) + 1)
    match dice.randrange(5):
        case 0 if data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        case 1:
            del data[at : at + dice.choice((1, 2, 10, len(data)))]
        case 2:
            data[at:at] = SHAPES[dice.choice(sorted(SHAPES))](dice.choice((1, 10, 100, 1000)))
        case 3:
            data[at:at] = data[: dice.randrange(len(data) + 1)]
        case _:
            data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 8)))


def _seconds(entry: Entry, data: bytes) -> float:
    gc.collect()
    gc.disable()
    try:
        begun = time.process_time()
        outcome(entry, data)
        return time.process_time() - begun
    finally:
        gc.enable()
