"""Runs the command line in this process, and hides what differs from run to run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.cli import doctor, retire, revoke, rotate, status
from goatherd.cli.main import run
from goatherd.config.build import build_policy
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.plugins import open_provider
from goatherd.rotation.policy import Policy
from tests.deadlines import ANSWER, HANG
from tests.fakes.goatdb_data import write_goatdb_data

from .json_documents import JSONDocuments

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
def json_documents() -> JSONDocuments:
    """Checks every JSON document that `goatherd` and `serve` print in this test, and records its fields."""
    return JSONDocuments()


@pytest.fixture
def goatherd(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    json_documents: JSONDocuments,
) -> Callable[..., Result]:
    """Return a function that runs a command line in an empty directory, without options from outside.

    Every JSON document that a command prints is checked against the fields that are documented, and every text for
    times that are not human-readable.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("GOATHERD_PROVIDER", "GOATHERD_CONFIG", "GOATHERD_NODES", "GOATHERD_ORG"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = run(list(arguments))
        captured = capsys.readouterr()
        if "--json" in arguments and captured.out.startswith("{"):
            json_documents.check(arguments, json.loads(captured.out))
        elif "--json" not in arguments:
            assert not re.search(r"T\d\d:\d\d:\d\d\.\d+Z", captured.out + captured.err), "a time for programs"
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def goatdb(tmp_path: Path) -> Path:
    """A data directory as GoatDB 0.5.1 left it, with two organizations."""
    return write_goatdb_data(tmp_path / "goatdb")


@pytest.fixture
def data(goatdb: Path) -> Path:
    """The data directory of the server that a test is about."""
    return goatdb


@pytest.fixture
def store(tmp_path: Path) -> str:
    """The URI of a store that does not exist yet."""
    return f"file://{tmp_path}/keys/root"


def secrets_in(directory: Path) -> set[str]:
    """Return every private scalar in a file below a directory, as base64url."""
    found = set()
    for path in directory.rglob("*"):
        if path.is_file():
            found |= set(re.findall(r'\\?"d\\?":\s*\\?"([A-Za-z0-9_-]{64})', path.read_text(errors="replace")))
    return found


@dataclass(frozen=True, slots=True)
class Serving:
    """A ``goatherd serve`` process that has printed its ready line."""

    process: subprocess.Popen[str]
    url: str
    ready: dict[str, Any]
    stderr: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(HANG)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Serving]]:
    """Return a function that starts ``goatherd serve`` on a free port and waits for its ready line.

    Commands wait longer for the server's answers than by default.
    """
    monkeypatch.setenv("GOATHERD_TIMEOUT", f"{ANSWER.total_seconds():g}s")
    started: list[subprocess.Popen[str]] = []
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GOATHERD_")}

    def start(*arguments: str) -> Serving:
        stderr = tmp_path / f"stderr-{len(started)}"
        command = [sys.executable, "-m", "goatherd", "serve", "--create", "--json", "--port", "0", *arguments]
        with stderr.open("w") as file:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env=environ, cwd=tmp_path
            )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server ended with {process.wait(HANG)}: {stderr.read_text()}"
        ready = json.loads(line)
        return Serving(process, ready["url"], ready, stderr)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait(HANG)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands not wait for servers that do not synchronize."""

    def impatient(*given: Any, **named: Any) -> Policy:
        return replace(build_policy(*given, **named), flow_patience=timedelta(0), settle=timedelta(seconds=1))

    for module in (doctor, retire, revoke, rotate, status):
        monkeypatch.setattr(module, "build_policy", impatient)


def read_documents(store: str) -> list[IdentityDocument]:
    """Return the identity documents in the versions of the secret at an address, the newest first."""

    async def read() -> list[IdentityDocument]:
        provider, secret_id = open_provider(store)
        async with provider:
            versions = await provider.versions(secret_id)
            return [decode_document((await provider.read(secret_id, one.id)).value.reveal()) for one in versions]

    return asyncio.run(read())
