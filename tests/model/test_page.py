"""docs/explanation/proof.md agrees with the model. ``python -m tests.model --write`` updates it."""

from __future__ import annotations

from .configurations import CONFIGURATIONS
from .page import PAGE, parts, written


def test_the_page_is_in_step_with_the_model() -> None:
    page = PAGE.read_text()
    assert written(page, parts()) == page


def test_the_page_has_a_row_for_every_world() -> None:
    page = PAGE.read_text()
    assert [one.name for one in CONFIGURATIONS if f"| {one.name} | {one.about} |" not in page] == []
