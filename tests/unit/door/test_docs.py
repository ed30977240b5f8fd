"""The page about the door names every rule, every limit and every defect of GoatDB."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from goatherd.door import DoorLimits, DoorRule

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


def rows(text: str) -> list[str]:
    """Return the first cell of each row of the tables in `text`, without the headings."""
    tables = re.findall(r"^\|[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n?)+)", text, re.MULTILINE)
    return [row.split("|")[1].strip() for table in tables for row in table.splitlines()]


def test_every_defect_of_goatdb_has_its_line() -> None:
    defects = [
        name
        for page in ("goatdb-protocol", "goatdb-formats")
        for name in rows((DOCS / f"reference/{page}.md").read_text().partition("\n## Defects\n")[2])
    ]
    lines = rows(REFERENCE.partition("one by one")[2])
    assert len(set(defects)) == len(defects) > 30
    assert sorted(lines) == sorted(defects)
