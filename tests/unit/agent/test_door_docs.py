"""The pages about the door name every rule, every limit and every trap."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from goatherd.agent.door import Limits, Rule

DOCS = Path(__file__).parents[3] / "docs"
REFERENCE = (DOCS / "reference/door.md").read_text()
EXPLANATION = (DOCS / "explanation/door.md").read_text()


@pytest.mark.parametrize("rule", list(Rule), ids=lambda rule: rule.value)
def test_every_rule_is_documented(rule: Rule) -> None:
    assert f"\n| `{rule.value}` |" in REFERENCE


def test_no_rule_is_documented_that_is_none() -> None:
    head = REFERENCE.partition("## Limits")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", head, re.MULTILINE)) == {rule.value for rule in Rule}


def test_every_limit_is_documented() -> None:
    table = REFERENCE.partition("## Limits")[2]
    assert {field.name for field in fields(Limits)} <= set(re.findall(r"`([a-z_]+)`", table))


def test_every_trap_has_its_line() -> None:
    named = set(re.findall(r"\bT\d+\b", EXPLANATION.partition("one by one")[2].partition("## What it costs")[0]))
    assert named == {f"T{number}" for number in range(1, 51)}
