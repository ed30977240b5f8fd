"""The Grafana dashboard asks only for metrics and labels that are exported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from goatherd.metrics import FAMILIES, MetricKind

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/goatherd.json").read_text())
PROMTOOL = shutil.which("promtool", path=f"{ROOT / 'build/tools/promtool'}{os.pathsep}{os.environ.get('PATH', '')}")
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
FROM_PROMETHEUS = {"job", "instance", "le"}
EXPORTED: dict[str, set[str]] = {}
for _metric, _family in FAMILIES.items():
    _names = [f"{_metric.value}_bucket"] if _family.kind is MetricKind.HISTOGRAM else [_metric.value]
    EXPORTED |= dict.fromkeys(_names, set(_family.labels) | FROM_PROMETHEUS)


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_asks_for_exported_metrics_and_their_labels(expression: str) -> None:
    names = set(re.findall(r"goatherd_\w+", expression))
    assert names
    assert names <= set(EXPORTED)
    labels = set().union(*(EXPORTED[name] for name in names))
    selected = {
        name for inside in re.findall(r"\{([^}]*)\}", expression) for name in re.findall(r"(\w+)[=!]~?\"", inside)
    }
    grouped = {
        name for inside in re.findall(r"\bby \(([^)]*)\)", expression) for name in inside.replace(",", " ").split()
    }
    counted = set(re.findall(r'count_values\("(\w+)"', expression))
    assert selected | grouped <= labels | counted
    assert expression.count("(") == expression.count(")")


def test_every_legend_shows_a_label_that_its_expression_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            if grouped:
                assert shown <= set(grouped[0].replace(",", " ").split()), target
            else:
                names = re.findall(r"goatherd_\w+", target["expr"])
                assert shown <= EXPORTED[names[0]], target


def test_panels_have_ids_titles_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def check_panels(series: dict[str, int], expected: dict[str, list[list[dict[str, Any]]]], folder: Path) -> None:
    """Evaluate panels with promtool: compare the samples of each target, by the panel's title."""
    by_title = {panel["title"]: panel["targets"] for panel in PANELS}
    checks = [
        {"expr": target["expr"].replace("$job", ".*"), "eval_time": "5m", "exp_samples": samples}
        for title, results in expected.items()
        for target, samples in zip(by_title[title], results, strict=True)
    ]
    inputs = [{"series": name, "values": f"{value}x10"} for name, value in series.items()]
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": checks}
    path = folder / "dashboard_test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([str(PROMTOOL), "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: scripts/install-promtool")


@needs_promtool
def test_controllers_and_metrics_files_do_not_count_as_servers(tmp_path: Path) -> None:
    servers = [f'{{job="g-nodes", instance="{name}"' for name in "abc"]
    controllers = [f'{{job="g-controller", instance="{name}"' for name in "de"]
    file = '{job="node", instance="m", store="file:///srv/keys/root"'
    series = {f"goatherd_settings_degraded{each}}}": 0 for each in servers}
    series |= {f'goatherd_identity_info{each}, root="new"}}': 1 for each in (*servers, controllers[0])}
    series |= {f"goatherd_identity_generation{each}}}": 7 for each in (*servers, controllers[0])}
    series |= {f'goatherd_identity_info{each}, root="old"}}': 1 for each in (controllers[1], file)}
    series |= {f"goatherd_identity_generation{each}}}": 3 for each in (controllers[1], file)}
    expected = {
        "Servers that sign with each root": [[{"labels": '{root="new"}', "value": 3}]],
        "Generations in use": [[{"labels": "{}", "value": 1}]],
    }
    check_panels(series, expected, tmp_path)


@needs_promtool
def test_a_working_root_is_not_judged_by_the_limits_for_roots(tmp_path: Path) -> None:
    expires, life = "goatherd_root_expires_timestamp_seconds", "goatherd_working_root_lifetime_seconds"
    anchored, plain = '{job="g", instance="a"}', '{job="h", instance="b"}'
    series = {f"{expires}{anchored}": 864_300, f"{life}{anchored}": 2_592_000}
    seconds = [{"labels": "{}", "value": 864_000}]
    check_panels(series, {"Root expires in": [[], seconds]}, tmp_path)
    series |= {f"{expires}{plain}": 8_640_300}
    check_panels(series, {"Root expires in": [[{"labels": "{}", "value": 8_640_000}], seconds]}, tmp_path)
