"""Fixture: the templates of the page are compiled once for all tests, not once for each page that a test makes."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from unittest.mock import patch

import pytest
from jinja2 import Environment


@pytest.fixture(scope="session", autouse=True)
def each_template_is_compiled_once() -> Iterator[None]:
    compile_template = Environment.compile
    compiled: dict[tuple[str, str | None, str | None], CodeType] = {}

    def compile_once(self: Environment, source: str, name: str | None, filename: str | None) -> CodeType:
        key = source, name, filename
        if key not in compiled:
            compiled[key] = compile_template(self, source, name, filename)
        return compiled[key]

    with patch.object(Environment, "compile", compile_once):
        yield
