"""The Grafana dashboard asks only for metrics and labels that are exported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from goatherd.metrics import FAMILIES, MetricKind

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy/grafana/goatherd.json").read_text())
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
