"""The pictures in the docs show the page as it is."""

from __future__ import annotations

import pytest

from tests.browser.screenshots import PICTURES, RECORD, TAKEN, digests


@pytest.mark.slow
def test_the_pictures_show_the_page_as_it_is() -> None:
    assert RECORD.read_text() == digests(), "the page has changed: run `make screenshots`"
    assert {f"{name}.png" for name in TAKEN} == {path.name for path in PICTURES.glob("*.png")}
