"""The page about the door names every rule and limit, and each defect of GoatDB states what the door does with it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from goatherd.door.limits import DoorLimits
from goatherd.door.request_checks import DoorRule

DOCS = Path(__file__).parents[3] / "docs"
REFERENCE = (DOCS / "reference/door.md").read_text()


@pytest.mark.parametrize("rule", list(DoorRule), ids=lambda rule: rule.value)
def test_every_rule_is_documented(rule: DoorRule) -> None:
    assert f"\n| `{rule.value}` |" in REFERENCE


def test_no_rule_is_documented_that_is_none() -> None:
    head = REFERENCE.partition("## Limits")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", head, re.MULTILINE)) == {rule.value for rule in DoorRule}


def test_every_limit_is_documented() -> None:
    table = REFERENCE.partition("## Limits")[2]
    assert {field.name for field in fields(DoorLimits)} <= set(re.findall(r"`([a-z_]+)`", table))


def test_every_defect_of_goatdb_states_what_the_door_does_with_it() -> None:
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for page in ("goatdb-protocol", "goatdb-formats")
        for row in (DOCS / f"reference/{page}.md").read_text().partition("\n## Defects\n")[2].splitlines()
        if row.startswith("| ") and not row.startswith("| name")
    ]
    names = [name for name, _, _ in rows]
    assert len(set(names)) == len(names) > 30
    rules = {rule.value for rule in DoorRule}
    for name, _, door in rows:
        assert re.match(r"(stopped|partly|no|—)\b|—", door), name
        assert set(re.findall(r"`([a-z-]+)`", door)) <= rules, name
