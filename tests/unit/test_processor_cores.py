"""Every thread pool has one thread for each core that the process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from goatherd import verifiers
from goatherd.door.door import Door
from goatherd.node.server import Server
from goatherd.verifiers import count_cores, verification_threads


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(verifiers, "CPU_LIMIT", tmp_path / "cpu.max")


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 8), ("50000 100000", 1), ("150000 100000", 2), ("900000 100000", 8), ("", 8)]
)
def test_the_limit_of_a_container_counts(tmp_path: Path, limit: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    assert count_cores() == cores


async def test_thread_pools_follow_the_limit(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000")
    assert Server(tmp_path / "data", settings_provider="file:///keys/root")._threads == 2
    async with Door(upstream="http://127.0.0.1:1", trust=()) as door:
        assert door._executor is not None
        assert door._executor._max_workers == 2
    with verification_threads("test") as executor:
        assert executor._max_workers == 2


def test_no_other_module_counts_the_cores_of_the_machine() -> None:
    modules = [path for path in Path(verifiers.__file__).parent.rglob("*.py") if "cpu_count" in path.read_text()]
    assert [path.name for path in modules] == ["verifiers.py"]
