"""What the build of the documentation adds to its pages."""

from __future__ import annotations

import runpy

import pytest

from goatherd.config.options import option_keys
from tests.docs.reference import DOCS

core = pytest.importorskip("docutils.core", reason="needs .venv/.docs")
parser = pytest.importorskip("myst_parser.parsers.docutils_", reason="needs .venv/.docs")


def test_the_search_for_an_environment_variable_finds_the_page_of_the_options() -> None:
    text = (DOCS / "reference/configuration.md").read_text()
    page = core.publish_doctree(text, parser=parser.Parser(), settings_overrides={"report_level": 5})
    runpy.run_path(str(DOCS / "conf.py"))["add_variables"](None, page, "reference/configuration")
    assert page[-1]["name"] == "keywords"
    assert set(page[-1]["content"].split(", ")) == {key.variable for key in option_keys() if not key.is_table}
