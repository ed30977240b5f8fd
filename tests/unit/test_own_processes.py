"""Processes that Goatherd starts from its own code get no secret and import no module from the working directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from goatherd.serving.own_processes import own_command, own_environment


def test_a_module_in_the_working_directory_is_not_imported_and_credentials_are_not_inherited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "goatherd").mkdir()
    (tmp_path / "goatherd/__init__.py").touch()
    (tmp_path / "goatherd/__main__.py").write_text("import os; print(dict(os.environ))")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-credential-of-the-store")
    monkeypatch.chdir(tmp_path)

    def run(environment: dict[str, str] | None) -> str:
        command = own_command("--version")
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "a-credential-of-the-store" in run(None)
    assert run(own_environment()).startswith("goatherd, version")
    assert "AWS_SECRET_ACCESS_KEY" not in own_environment()


def test_the_command_of_a_python_without_an_executable_fails_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(OSError, match=r"No such file|denied"):
        subprocess.run(own_command("page-process"), check=False)
