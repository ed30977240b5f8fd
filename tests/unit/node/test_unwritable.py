"""A log that cannot be written: reads work, writes get 507, and no restart is needed afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeError, StorageError
from goatherd.identity.session import OwnedSession
from goatherd.node import Server, ServerListener, database
from goatherd.node.log_storage import FileLog
from goatherd.wire.commit import Commit
from tests.deadlines import ANSWER, HANG
from tests.unit.node.nodes import (
    ORG,
    all_others,
    cluster,
    document_of,
    eventually,
    now_ms,
    root,
    session_commit,
    settings_of,
    signed_commit,
    store_of,
)

NOTES, OTHERS, SESSIONS = "/data/notes", "/data/others", "/sys/sessions"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WRITE_AGAIN", timedelta(milliseconds=10))


@pytest.fixture
def signer() -> OwnedSession:
    return root("signer")


def log_of(directory: Path, path: str) -> Path:
    return directory / ORG / f"{path.removeprefix('/')}.jsonl"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Make every write to a log fail with a full disk."""
    files: set[Path] = set()
    write = FileLog._append_bytes

    def fails(log: FileLog, data: bytes) -> None:
        if log.file in files:
            raise OSError(28, "No space left on device")
        write(log, data)

    monkeypatch.setattr(FileLog, "_append_bytes", fails)
    return files


@asynccontextmanager
async def serving(directory: Path, signer: OwnedSession) -> AsyncIterator[tuple[Server, NodeClient]]:
    # Each session enters `/sys/sessions` when it is created.
    server = Server(directory, settings_of(await store_of(document_of(signer))), debug=True, unused_sessions=0)
    async with server, ServerListener(server) as listener, NodeClient(listener.url, timeout=ANSWER) as client:
        yield server, client


async def status_of_push(client: NodeClient, path: str, commit: Commit, signer: OwnedSession) -> int:
    try:
        await client.push(path, [commit.to_json()], signer)
    except NodeError as error:
        return 507 if "507" in str(error) else 500
    return 200


async def ids(client: NodeClient, path: str, signer: OwnedSession) -> set[str]:
    return {each["id"] for each in await client.pull(path, signer)}


async def test_what_is_written_can_be_read_while_a_log_cannot_be_written(
    tmp_path: Path, signer: OwnedSession, full: set[Path], caplog: pytest.LogCaptureFixture
) -> None:
    user = OwnedSession.generate(session_id="user", owner=None, now_ms=now_ms())
    before, during, later, other = (signed_commit(user) for _ in range(4))
    async with serving(tmp_path, signer) as (server, client):
        await client.push(SESSIONS, [session_commit(signer, user.session).to_json()], signer)
        assert await status_of_push(client, NOTES, before, user) == 200
        file = log_of(tmp_path, NOTES)
        full.add(file)
        with caplog.at_level(logging.INFO, "goatherd.node"):
            assert await status_of_push(client, NOTES, during, user) == 507
            for _ in range(3):
                # When the commit is sent again, the server knows it already, but has still not written it.
                assert await status_of_push(client, NOTES, during, user) == 507
                assert await ids(client, NOTES, user) == {before.id}
            assert await status_of_push(client, OTHERS, other, user) == 200
            assert await ids(client, OTHERS, user) == {other.id}
            with pytest.raises(StorageError):
                await server.database().repository(NOTES).create("k", "note/1", {"title": "t"})
            async with httpx2.AsyncClient(timeout=HANG) as http:
                health = (await http.get(f"{client.base_url}/goatherd/v1/health")).json()
                metrics = (await http.get(f"{client.base_url}/goatherd/v1/metrics")).text
                identity = (await http.get(f"{client.base_url}/goatherd/v1/identity")).json()
            assert (health["status"], health["reason"], health["data"]["unwritable"]) == ("degraded", "storage", 1)
            assert "goatherd_data_unwritable_repositories 1.0" in metrics
            assert identity["data"]["unwritable"] == 1
            full.clear()

            async def is_stored() -> bool:
                return await ids(client, NOTES, user) == {before.id, during.id}

            await eventually(is_stored)
        assert await status_of_push(client, NOTES, later, user) == 200
        said = [each.getMessage() for each in caplog.records if "data." in each.getMessage()]
        assert [text.split()[0] for text in said] == ["data.unwritable", "data.writable"]
        assert "No space left on device" in said[0]
    stored = [json.loads(line)["id"] for line in log_of(tmp_path, NOTES).read_text().split("\n") if line]
    assert stored == [before.id, during.id, later.id]


async def test_a_request_that_only_reads_is_answered_when_the_write_of_another_one_fails(
    tmp_path: Path, signer: OwnedSession, full: set[Path]
) -> None:
    user = OwnedSession.generate(session_id="user", owner=None, now_ms=now_ms())
    before = signed_commit(user)
    async with serving(tmp_path, signer) as (_, client):
        await client.push(SESSIONS, [session_commit(signer, user.session).to_json()], signer)
        await client.push(NOTES, [before.to_json()], user)
        full.add(log_of(tmp_path, NOTES))
        pushes = [status_of_push(client, NOTES, signed_commit(user), user) for _ in range(8)]
        reads = [ids(client, NOTES, user) for _ in range(8)]
        mixed: list[Any] = [each for pair in zip(pushes, reads, strict=True) for each in pair]
        outcomes = await asyncio.gather(*mixed)
        assert outcomes[::2] == [507] * 8
        assert outcomes[1::2] == [{before.id}] * 8
        full.clear()


async def test_no_session_is_made_while_it_cannot_be_written_and_those_that_are_go_on(
    tmp_path: Path, signer: OwnedSession, full: set[Path]
) -> None:
    async with serving(tmp_path, signer) as (server, client):
        own, _ = await client.create_session()
        full.add(log_of(tmp_path, SESSIONS))
        for _ in range(3):
            with pytest.raises(NodeError, match="507"):
                await client.create_session()
        count = len(server.database().engine.get_repository(SESSIONS))
        with pytest.raises(NodeError, match="507"):
            await client.create_session()
        assert len(server.database().engine.get_repository(SESSIONS)) == count
        assert await status_of_push(client, NOTES, signed_commit(own), own) == 200
        full.clear()

        async def can_be_made() -> bool:
            try:
                await client.create_session()
            except NodeError:
                return False
            return True

        await eventually(can_be_made)


@pytest.mark.slow
async def test_a_peer_catches_up_when_its_disk_has_room_again(
    tmp_path: Path, signer: OwnedSession, full: set[Path]
) -> None:
    async with cluster(tmp_path, 2, [document_of(signer)], links=all_others(2)) as (first, second):
        full.add(log_of(second.directory, NOTES))
        commit = signed_commit(signer)
        await first.client.push(NOTES, [commit.to_json()], signer)

        async def has_failed() -> bool:
            status = second.server.database().data
            return status is not None and status.unwritable == 1

        async def is_there() -> bool:
            return commit.id in await second.holds(NOTES, signer)

        await eventually(has_failed)
        assert not await is_there()
        full.clear()
        await eventually(is_there)
