"""The life of a GoatDB 0.5.1 server's data: migrated, served, rotated, exported, and served by GoatDB again."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.cli.main import run as run_here
from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.identity.session import Session
from goatherd.node.server import Server, ServerListener
from goatherd.operations.workload import decode_commit, learn_sessions, unverifiable_commits
from goatherd.plugins import open_provider
from goatherd.rotation.machine import Policy
from goatherd.rotation.rotator import Rotator
from goatherd.settings.file import FileSettings
from goatherd.settings.store import CloudSecretSettings
from tests.deadlines import ADOPTION, ANSWER

VECTORS = Path(__file__).parent.parent / "vectors" / "jsonl"
DESCRIPTION = json.loads((VECTORS / "description.json").read_text())
SETTINGS = json.loads(DESCRIPTION["settings_json"])
A = SETTINGS["currentSession"]
REPOSITORIES = {repository["path"]: repository for repository in DESCRIPTION["repositories"]}
NOTES = "/data/notes"


def set_days_left(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Set the clock to the day on which the root in these files has this number of days left."""
    started, day_ms = time.monotonic_ns(), int(A["expiration"] * 1000) - days * 86_400_000
    monkeypatch.setattr(SystemClock, "now_ms", lambda _: day_ms + (time.monotonic_ns() - started) // 1_000_000)


@pytest.fixture
def then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock to the day on which GoatDB wrote these files."""
    set_days_left(monkeypatch, 29)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory as GoatDB 0.5.1 left it."""
    top = tmp_path / "data" / "localhost"
    for repository in DESCRIPTION["repositories"]:
        file = top / repository["path_in_data_dir"]
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(VECTORS.parent / repository["file"], file)
    (top / "settings.json").write_text(DESCRIPTION["settings_json"])
    return top


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(run_here, arguments)


async def look(url: str, path: str) -> list[dict[str, Any]]:
    async with NodeClient(url, timeout=ANSWER) as node:
        client, roots = await node.create_session()
        assert roots
        return await node.pull(path, client)


async def check_old_commits(url: str, anchors: Sequence[Session]) -> None:
    """Every commit that GoatDB wrote is there, and verifies for a client that knows nothing but `anchors`."""
    commits = await look(url, NOTES)
    assert {c["id"] for c in commits} >= {c["id"] for c in REPOSITORIES[NOTES]["commits"]}
    known = {session.id: session for session in anchors}
    learn_sessions(known, [decode_commit(commit) for commit in await look(url, "/sys/sessions")])
    assert unverifiable_commits(known, [decode_commit(commit) for commit in commits]) == set()


async def test_a_goatdb_server_is_migrated_served_rotated_and_exported_with_every_old_commit_verifying(
    then: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"file://{tmp_path}/keys/root"
    first = Session.from_json(A)

    assert await run("migrate", str(data), "--provider", uri) == 0
    assert await run("migrate", str(data), "--provider", uri) == 0, "twice is harmless"

    provider, secret_id = open_provider(uri)
    async with (
        Server(data.parent, CloudSecretSettings(provider, secret_id)) as server,
        ServerListener(server) as listener,
    ):
        assert server.database().pool.current.id == A["id"]
        items = {item["key"]: item["item"] for item in REPOSITORIES[NOTES]["items"]}
        for key in await server.database().repository(NOTES).keys():
            item = await server.database().repository(NOTES).get(key)
            assert item is not None
            assert key in items
        await check_old_commits(listener.url, [first])
        async with NodeClient(listener.url, timeout=ANSWER) as node, open_provider(uri)[0] as store:
            policy = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER)
            await Rotator(store, secret_id, [node], policy=policy, started_by="test").rotate()
        second = server.database().pool.current.session
        assert second.id != A["id"]
        # A new client that learns of B alone must be able to verify what was signed under A.
        await check_old_commits(listener.url, [second])

    settings = tmp_path / "settings.json"
    assert await run("export", str(settings), "--provider", uri, "--data", str(data)) == 0
    exported = json.loads(settings.read_text())
    assert exported["currentSession"]["id"] == second.id
    assert all("privateKey" not in root for root in [*exported["roots"], *exported["trustedSessions"]])
    assert {root["id"] for root in exported["roots"]} == {A["id"], second.id}
    assert A["privateKey"]["d"] not in settings.read_text()

    shutil.copy(settings, data / "settings.json")
    async with Server(data.parent, FileSettings(data.parent)) as server, ServerListener(server) as listener:
        assert server.database().pool.current.id == second.id
        await check_old_commits(listener.url, [second])
    printed = capsys.readouterr()
    assert A["privateKey"]["d"] not in printed.out + printed.err


async def test_an_only_server_whose_root_expires_soon_gets_a_new_one_before_an_agent_starts_it(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GoatDB server that has run for weeks has such a root."""
    set_days_left(monkeypatch, 10)
    uri = f"file://{tmp_path}/keys/root"
    agent = ("run", "--once", "--plain-file", "--provider", uri, "--data", str(data.parent))
    assert await run("migrate", str(data), "--provider", uri) == 0
    assert await run(*agent) == EXIT_CODES["identity"]
    assert "If none runs, let `goatherd serve` serve this data directory" in capsys.readouterr().err

    provider, secret_id = open_provider(uri)
    async with (
        Server(data.parent, CloudSecretSettings(provider, secret_id)) as server,
        ServerListener(server) as listener,
        NodeClient(listener.url, timeout=ANSWER) as node,
        open_provider(uri)[0] as store,
    ):
        policy = Policy(adoption=ADOPTION, settle=ADOPTION, node_timeout=ANSWER)
        await Rotator(store, secret_id, [node], policy=policy, started_by="test").rotate()
        second = server.database().pool.current.id
    assert await run(*agent) == 0
    assert json.loads((data / "settings.json").read_text())["currentSession"]["id"] == second
