"""Runs the command line in this process, and hides what differs from run to run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from goatherd.cli.main import run

Goatherd = Callable[..., "Result"]


@dataclass(frozen=True, slots=True)
class Result:
    """One command line that has run."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def goatherd(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Result]:
    """Return a function that runs a command line in an empty directory, without options from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("GOATHERD_PROVIDER", "GOATHERD_CONFIG", "GOATHERD_NODES", "GOATHERD_ORG"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = run(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def store(tmp_path: Path) -> str:
    """The URI of a store that does not exist yet."""
    return f"file://{tmp_path}/keys/root"


def secrets_in(directory: Path) -> set[str]:
    """Return every private scalar that lies anywhere below a directory, as base64url."""
    found = set()
    for path in directory.rglob("*"):
        if path.is_file():
            found |= set(re.findall(r'\\?"d\\?":\s*\\?"([A-Za-z0-9_-]{64})', path.read_text(errors="replace")))
    return found
