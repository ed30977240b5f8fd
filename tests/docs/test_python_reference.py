"""The reference of ``import goatherd``: every public name has its text and an example, and the examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import goatherd
from tests.docs.python_session import run_page
from tests.docs.reference import DOCS
from tests.ports import free_ports

PAGE = DOCS / "reference/python.md"
ALIASES = {"DBSettingsProvider", "SecretProvider"}


def sections() -> dict[str, str]:
    parts = re.split(r"^### (.+)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_public_name_has_its_generated_text_and_an_example_that_uses_it() -> None:
    described = sections()
    assert set(described) == set(goatherd.__all__) - ALIASES
    for name, text in described.items():
        assert re.search(rf"^\.\. auto(function|class|exception):: goatherd\.{name}$", text, re.MULTILINE), name
        examples = "".join(re.findall(r"```pycon\n(.*?)```", text, re.DOTALL))
        assert f"goatherd.{name}" in examples, name
        for member in re.findall(r":members: (.+)", text):
            assert all(hasattr(getattr(goatherd, name), one.strip()) for one in member.split(",")), name
    for name in ALIASES:
        assert f"goatherd.{name}" in PAGE.read_text()


@pytest.mark.slow
async def test_the_examples_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_CLOUD_PROJECT", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOATHERD_SIGNER_SEAL_KEY", "an example sets it")
    ports = free_ports(3)
    replace = {
        "/srv": str(tmp_path / "srv"),
        **{str(shown): str(port) for shown, port in zip((8101, 8102, 8104), ports, strict=True)},
    }
    (tmp_path / "srv").mkdir()
    assert await run_page(PAGE, replace) == []
