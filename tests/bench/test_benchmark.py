"""Every part of the benchmark runs, at sizes that take no time. Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import bench_sessions
from .bench_rotation import PHASES, simulate
from .data import Data
from .page import BEGIN, END, MEANINGS, markdown, write_page
from .parts import GROWING_WITH_COMMITS, GROWING_WITH_SESSIONS, PARTS
from .rows import Row, compare, growth, table
from .scale import FULL, TINY


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("bench"))


LONG = ["rotation"]
"""Parts that take long at any size."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PARTS if name not in LONG])
async def test_every_part_of_the_benchmark_works(name: str, data: Data) -> None:
    await check_part(name, data)


@pytest.mark.deep
@pytest.mark.parametrize("name", LONG)
async def test_every_long_part_of_the_benchmark_works(name: str, data: Data) -> None:
    await check_part(name, data)


async def check_part(name: str, data: Data) -> None:
    rows = await PARTS[name](TINY, data)
    assert rows
    for row in rows:
        assert row.name.startswith(f"{name}/")
        assert row.name in MEANINGS
        assert row.samples
        assert row.limit or not row.bare
        assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row
        assert row.name != "crowd/refused" or row.value == 0
        assert row.name != "rotation/anchor-calls" or 1 <= min(row.samples) <= max(row.samples) <= 2
    assert len(list(table(rows))) == 1 + len(rows)


async def test_a_full_run_starts_servers_with_few_sessions_and_with_many(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    async def measure(size: int, *_: object) -> list[Row]:
        sizes.append(size)
        return []

    monkeypatch.setattr(bench_sessions, "_measure", measure)
    for scale in (FULL, TINY):
        await PARTS["sessions"](scale, data)
    assert sizes == [1_000, 50_000, TINY.sessions]


async def test_a_simulated_rotation_has_the_work_of_each_phase_and_the_calls_of_the_store() -> None:
    run = await simulate(3)
    assert set(run.phases_ms) >= set(PHASES)
    assert 0 < sum(run.phases_ms.values()) <= run.work_ms
    assert {f"rotation/{phase.value}" for phase in PHASES} <= set(MEANINGS)
    assert 10 < sum(run.store_calls.values()) < 50


def test_what_grows_is_a_part() -> None:
    assert set(GROWING_WITH_COMMITS + GROWING_WITH_SESSIONS) <= set(PARTS)


def test_data_are_made_once_and_extended(tmp_path: Path) -> None:
    first = Data(tmp_path)
    few = first.commits(0, 6)
    assert Data(tmp_path).commits(0, 10)[:6] == few


def test_the_page_holds_the_last_run_between_its_own_words(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    rows = [Row(name="command/help", unit="ms CPU", size=1, samples=[3, 2, 4], bare=[1, 1, 1], limit="python -c pass")]
    for _ in range(2):
        write_page(rows, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert text.count("| `goatherd --help` | 1 | 3 ms CPU | 1: python -c pass | 3.00 |") == 1
    assert list(markdown(rows))[-1] in text


def test_two_runs_differ_only_by_more_than_their_noise() -> None:
    def make(name: str, *samples: float, rate: bool = False) -> Row:
        return Row(name=name, unit="s", size=1, samples=samples, more_is_better=rate)

    before = [make("a", 1.0, 1.2, 0.8), make("b", 1.0, 1.0, 1.0), make("c", 5, 5, 5, rate=True), make("d", 1.0)]
    after = [make("a", 1.1, 0.9, 1.3), make("b", 1.2, 1.2, 1.2), make("c", 9, 9, 9, rate=True), make("e", 1.0)]
    lines = {line.split()[0]: line.split()[-1] for line in compare(before, after)}
    assert lines["a"].endswith("%")
    assert lines["b"] == "WORSE"
    assert lines["c"] == "better"
    assert lines["d"] == "gone"
    assert lines["e"] == "new"


def test_a_run_on_a_slower_machine_differs_only_by_the_ratio_to_its_bare_limit() -> None:
    before = [Row(name="a", unit="s", size=1, samples=[2, 2, 2], bare=[1, 1, 1], limit="parsing")]
    after = [Row(name="a", unit="s", size=1, samples=[6, 6, 6], bare=[3, 3, 3], limit="parsing")]
    assert list(compare(before, after))[-1].endswith("%")


def test_growth_is_measured_by_the_work_of_a_row() -> None:
    def sizes(name: str, power: int, *values: float) -> list[Row]:
        return [
            Row(name=name, unit="s", size=10**at, samples=[value], power=power) for at, value in enumerate(values, 1)
        ]

    rows = [
        *sizes("steady", 0, 1, 1.1),
        *sizes("creeping", 0, 1, 2),
        *sizes("line", 1, 1, 10),
        *sizes("square", 1, 1, 100),
    ]
    fast = {line.split()[0] for line in growth(rows) if "FASTER" in line}
    assert fast == {"creeping", "square"}
