"""An expired root: every message about it names the one command that replaces it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.clock import SystemClock
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import ROOT_OWNER, OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.node.expiry_warning import ExpiryWatch
from goatherd.providers.file.provider import FileSecretProvider

from .conftest import Goatherd, Serving

ROOT = "k3n7q2w8e4r6t9y5u1i0o2pa"
COMMAND = "goatherd rotate --replace-expired"


@pytest.fixture
def document(tmp_path: Path) -> IdentityDocument:
    """An identity made half a year ago, whose root has expired, in the store ``keys/root``."""
    past_ms = SystemClock().now_ms() - timedelta(days=181) // timedelta(milliseconds=1)
    root = OwnedSession.generate(session_id=ROOT, owner=ROOT_OWNER, now_ms=past_ms, lifetime=timedelta(days=180))
    made = create_document(root, past_ms)

    async def write() -> None:
        async with FileSecretProvider(str(tmp_path / "keys")) as provider:
            await provider.create("root", encode_document(made))

    asyncio.run(write())
    return made


@pytest.mark.parametrize(
    "words",
    [["status"], ["doctor"], ["rotate", "--unsafe-without-nodes"], ["rotate", "--plan"]],
    ids=" ".join,
)
def test_each_command_that_meets_an_expired_root_names_the_command_that_replaces_it(
    goatherd: Goatherd, document: IdentityDocument, tmp_path: Path, words: list[str]
) -> None:
    done = goatherd(*words, "--provider", f"file://{tmp_path}/keys/root")
    assert COMMAND in done.out + done.err


@pytest.mark.slow
def test_doctor_names_the_cause_and_the_command_for_each_server(
    goatherd: Goatherd, document: IdentityDocument, serve: Callable[..., Serving], tmp_path: Path
) -> None:
    store = f"file://{tmp_path}/keys/root"
    url = serve("--provider", store, "--data", f"{tmp_path}/data").url
    checks = goatherd("doctor", "--provider", store, "--node", url, "--json").json["checks"]
    about = [one for one in checks if url in one["text"] and one["check"] in ("key exposure", "node")]
    assert {one["check"]: one["level"] for one in about} == {"key exposure": "skip", "node": "fail"}
    assert all(f"root {ROOT}" in one["text"] and "expired" in one["text"] for one in about)
    assert all(COMMAND in one["hint"] for one in about)


def test_the_log_of_a_server_names_it_too(document: IdentityDocument, caplog: pytest.LogCaptureFixture) -> None:
    ExpiryWatch("localhost", lambda: document, SystemClock()).check_expiry()
    assert [f"do='{COMMAND}'" in record.getMessage() for record in caplog.records] == [True]
    assert caplog.records[0].levelno == logging.ERROR


def test_the_command_that_is_named_replaces_it(goatherd: Goatherd, document: IdentityDocument, tmp_path: Path) -> None:
    store = f"file://{tmp_path}/keys/root"
    done = goatherd(*COMMAND.split()[1:], "--provider", store, "--unsafe-without-nodes", "--json")
    assert (done.code, done.json["expired"], done.json["complete"]) == (0, ROOT, True)
    again = goatherd(*COMMAND.split()[1:], "--provider", store, "--unsafe-without-nodes")
    assert "an earlier run has replaced" in again.out
    assert "again with --node URL" in again.out
    shown = goatherd("show", "--provider", store, "--json").json
    assert shown["current"]["id"] != ROOT
    assert shown["revoked"] == [], "an expired root was not stolen: what it has signed stays valid"
    assert {root["id"] for root in shown["roots"]} == {ROOT, shown["current"]["id"]}
    assert "expired" not in goatherd("rotate", "--plan", "--provider", store).out
