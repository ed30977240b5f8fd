"""``goatherd rotate --metrics-file``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from goatherd.telemetry import Metric

from .conftest import Goatherd


def gauges(path: Path) -> dict[Metric, float]:
    """Return the gauges that have no label but the store's."""
    families = text_string_to_metric_families(path.read_text())
    samples = [sample for family in families for sample in family.samples]
    assert all(set(sample.labels) >= {"store"} for sample in samples)
    return {Metric(sample.name): sample.value for sample in samples if set(sample.labels) == {"store"}}


def test_a_rotation_leaves_a_file_that_tells_how_it_went(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    path = tmp_path / "goatherd.prom"
    goatherd("init", "--provider", store)
    done = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--metrics-file", str(path))
    assert done.code == 0, done.err
    found = gauges(path)
    assert found[Metric.RUN_SUCCEEDED] == 1
    assert found[Metric.ROTATION_LAST_SUCCESS] > 0
    assert found[Metric.ROTATION_LAST_SUCCESS] <= found[Metric.RUN_ENDED] < found[Metric.ROOT_EXPIRES]
    assert f'store="{store}"' in path.read_text()
    root = goatherd("status", "--provider", store, "--json").json["identity"]["current"]["id"]
    assert f'root="{root}"' in path.read_text()


def test_a_rotation_that_fails_leaves_a_file_that_says_so_and_its_own_exit_code(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    path = tmp_path / "goatherd.prom"
    goatherd("init", "--provider", store)
    nowhere = ["--node", "http://127.0.0.1:9", "--adoption", "100ms"]
    done = goatherd("rotate", "--provider", store, *nowhere, "--metrics-file", str(path))
    assert done.code == 10
    found = gauges(path)
    assert found[Metric.RUN_SUCCEEDED] == 0
    assert found[Metric.ROTATION_LAST_SUCCESS] == 0
    assert 'event="cancelled"' in path.read_text()


def test_a_store_that_does_not_answer_is_told_of_too(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    path = tmp_path / "goatherd.prom"
    done = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--metrics-file", str(path))
    assert done.code == 7
    assert gauges(path)[Metric.RUN_SUCCEEDED] == 0


def test_a_file_that_cannot_be_written_is_a_remark_and_the_rotation_a_success(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    path = str(tmp_path / "missing" / "goatherd.prom")
    done = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--metrics-file", path)
    assert done.code == 0
    assert "was not written" in done.err


def test_a_name_that_node_exporter_would_not_read_is_refused_before_anything_is_done(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    path = str(tmp_path / "goatherd.txt")
    done = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--metrics-file", path)
    assert done.code == 2
    assert goatherd("status", "--provider", store, "--json").json["identity"]["generation"] == 1


def test_a_plan_writes_no_file(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    done = goatherd("rotate", "--plan", "--provider", store, "--metrics-file", str(tmp_path / "goatherd.prom"))
    assert done.code == 0
    assert not (tmp_path / "goatherd.prom").exists()


def test_without_the_library_nothing_is_begun(
    goatherd: Goatherd, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goatherd("init", "--provider", store)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    path = str(tmp_path / "goatherd.prom")
    done = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--metrics-file", path)
    assert done.code == 3
    assert "goatherd[metrics]" in done.err
