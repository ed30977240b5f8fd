"""One organization of a server, without HTTP: its background tasks, and how they end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from goatherd.clock import SystemClock
from goatherd.errors import StorageError, UnknownSignerError
from goatherd.identity.document import encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.session_commits import earlier_introduction_id
from goatherd.identity.settings_json import to_settings
from goatherd.identity.transitions import prune_roots
from goatherd.ids import new_id
from goatherd.node import Server
from goatherd.node import database as database_module
from goatherd.node.database import PENDING_BATCH
from goatherd.node.engine import drive_inline
from goatherd.node.log_storage import FileLog, GroupCommit, LogDirectory
from goatherd.providers.values import CURRENT, VersionId
from goatherd.rotation.cross_signing import make_session_commit as session_of_root
from goatherd.serving.caller_limits import Rate
from goatherd.settings.file import FileSettings
from goatherd.trust import TrustPool, Verification
from goatherd.wire.paths import SESSIONS_PATH
from tests.unit.node.nodes import (
    ORG,
    SECRET,
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


async def test_every_session_is_verified_in_the_background_also_what_a_later_root_vouches_for(tmp_path: Path) -> None:
    signer, later, stranger = root("signer"), root("later"), root("stranger")
    one = OwnedSession.generate(session_id="one", owner=None, now_ms=now_ms()).session
    disputed = [replace(one, id=f"disputed{number}") for number in range(PENDING_BATCH + 1)]
    commits = [session_commit(by, session) for session in disputed for by in (stranger, signer)]
    commits += [session_commit(signer, one), session_commit(later, replace(one, id="waits"))]
    provider = await store_of(document_of(signer))
    log = tmp_path / ORG / "sys" / "sessions.jsonl"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"".join(b"\n" + json.dumps(commit.to_json()).encode() + b"\n" for commit in commits))
    async with Server(tmp_path, settings_of(provider), debug=True) as server:
        pool = server.database().pool

        async def known(count: int) -> bool:
            return pool.known_count == count

        await eventually(lambda: known(1 + len(disputed) + 1))
        assert (
            await server.database().store_commits(SESSIONS_PATH, [session_commit(signer, later.session).to_json()]) == 1
        )
        await eventually(lambda: known(1 + len(disputed) + 1 + 2))


async def test_a_commit_that_waits_for_its_session_is_kept_beside_what_is_no_commit(tmp_path: Path) -> None:
    """An unmodified server passes on whatever a client has written, valid or not."""
    signer = root("signer")
    waits = OwnedSession.generate(session_id="waits", owner=None, now_ms=now_ms())
    commit = signed_commit(waits, "k")
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        database = server.database()
        assert await database.store_commits("/data/notes", [{"id": ["x"]}, commit.to_json(), {"id": {}}]) == 0
        assert await database.store_commits(SESSIONS_PATH, [session_commit(signer, waits.session).to_json()]) == 1

        async def is_stored() -> bool:
            return commit.id in (await database.open_repository("/data/notes")).get_repository("/data/notes")

        await eventually(is_stored)


async def test_a_server_without_peers_follows_by_an_introduction_behind_a_damaged_line_of_its_own_log(
    tmp_path: Path,
) -> None:
    signer, earlier = root("signer"), root("earlier")
    document = document_of(signer, earlier.session)
    commit_id = earlier_introduction_id(earlier.id, signer.id)
    introduction = session_of_root(earlier.session, signer=signer, commit_id=commit_id, ts=now_ms(), org=ORG)
    line = json.dumps(introduction).encode()
    log = tmp_path / ORG / "sys" / "sessions.jsonl"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"\n" + line[:-9] + b"\n\n" + line + b"\n")
    provider = await store_of(document)
    settings = settings_of(provider)
    async with Server(tmp_path, settings, debug=True) as server:
        assert introduction["id"] in server.database().engine.get_repository(SESSIONS_PATH).ids
        pruned = encode_document(prune_roots(document, {earlier.id}, now_ms()))
        await provider.write(SECRET, pruned, label=CURRENT, expected=VersionId("1"))
        assert await settings.refresh(), settings.status.last_refusal
        assert settings.settings.document.find_root(earlier.id) is None


async def test_a_user_session_that_was_removed_from_settings_json_is_not_trusted_after_a_refresh(
    tmp_path: Path,
) -> None:
    users = [OwnedSession.generate(session_id=name, owner=None, now_ms=now_ms()).session for name in ("one", "two")]
    file = tmp_path / ORG / "settings.json"
    file.parent.mkdir()
    file.write_bytes(to_settings(document_of(root("signer")), users))
    settings = FileSettings(file)
    async with Server(tmp_path, settings, debug=True) as server:
        pool = server.database().pool
        assert [pool.get_session(user.id) for user in users] == users
        file.write_bytes(to_settings(settings.settings.document, users[1:]))
        assert await settings.refresh(), settings.status.last_refusal
        assert pool.get_session("two") == users[1]
        with pytest.raises(UnknownSignerError):
            pool.get_session("one")


async def test_sessions_are_verified_in_the_background_though_some_of_them_make_it_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = root("signer")
    one = OwnedSession.generate(session_id="one", owner=None, now_ms=now_ms()).session
    sessions = [replace(one, id=f"session{number}") for number in range(PENDING_BATCH + 2)]
    log = tmp_path / ORG / "sys" / "sessions.jsonl"
    log.parent.mkdir(parents=True)
    records = [session_commit(signer, session).to_json() for session in sessions]
    log.write_bytes(b"".join(b"\n" + json.dumps(record).encode() + b"\n" for record in records))
    run, left = Verification.run, [2]

    def fails(verification: Verification, executor: Any = None) -> None:
        if any(job.session_id == "session3" for job in verification._jobs) and left[0]:
            left[0] -= 1
            raise MemoryError
        run(verification, executor)

    monkeypatch.setattr(Verification, "run", fails)
    monkeypatch.setattr(database_module, "VERIFY_AGAIN", timedelta(milliseconds=1))
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        pool = server.database().pool

        async def all_known() -> bool:
            return pool.known_count == 1 + len(sessions)

        await eventually(all_known)
    assert left[0] == 0


class RestingClock(SystemClock):
    """A clock that a test moves; a task that sleeps after a read waits for the gate."""

    def __init__(self) -> None:
        self.time = 0.0
        self.rests: list[timedelta] = []
        self.gate = asyncio.Event()

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, duration: timedelta) -> None:
        task = asyncio.current_task()
        if task is not None and task.get_name().endswith("follow the trusted sessions"):
            self.rests.append(duration)
            await self.gate.wait()
        else:
            await super().sleep(duration)


async def test_what_cannot_be_believed_is_not_looked_at_anew_for_every_session_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, stranger, clock = root("signer"), root("stranger"), RestingClock()
    settings = settings_of(await store_of(document_of(signer)))
    async with Server(tmp_path, settings, debug=True, clock=clock) as server:
        database = server.database()
        take, looked = database.store_commits, list[str]()

        async def slow_take(path: str, commits: Sequence[Any]) -> int:
            looked.append(path)
            clock.time += 0.25
            return await take(path, commits)

        async def learn() -> None:
            session = OwnedSession.generate(session_id=new_id(), owner=None, now_ms=now_ms()).session
            await take(SESSIONS_PATH, [session_commit(signer, session).to_json()])

        async def rested(times: int) -> bool:
            return len(clock.rests) == times

        commit = signed_commit(stranger)
        await take("/data/x", [commit.to_json()])
        monkeypatch.setattr(database, "store_commits", slow_take)
        await learn()
        await eventually(lambda: rested(1))
        for _ in range(20):
            await learn()
        clock.gate.set()
        await eventually(lambda: rested(2))
        assert looked == ["/data/x"] * 2
        assert clock.rests == [timedelta(seconds=1)] * 2
        await take(SESSIONS_PATH, [session_commit(signer, stranger.session).to_json()])

        async def is_looked_at() -> bool:
            return bool(looked)

        async def is_believed() -> bool:
            return commit.id in (await database.open_repository("/data/x")).get_repository("/data/x")

        await eventually(is_believed)
        looked.clear()
        await take("/data/y", [signed_commit(root("stranger-2")).to_json()])
        await learn()
        await eventually(is_looked_at)
        assert looked == ["/data/y"], "what was accepted is not looked at again"


class BackoffClock(SystemClock):
    """A clock that records and shortens each pause of the task that follows the trusted sessions."""

    def __init__(self) -> None:
        self.rests: list[timedelta] = []

    async def sleep(self, duration: timedelta) -> None:
        task = asyncio.current_task()
        if task is not None and task.get_name().endswith(("follow the trusted sessions", "verify sessions")):
            self.rests.append(duration)
            duration = timedelta(milliseconds=1)
        await super().sleep(duration)


async def test_pending_commits_are_verified_again_after_a_verification_that_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signer, stranger, clock = root("signer"), root("stranger"), BackoffClock()
    settings = settings_of(await store_of(document_of(signer)))
    async with Server(tmp_path, settings, debug=True, clock=clock) as server:
        database = server.database()
        take, left = database.store_commits, 1

        async def fail_once(path: str, commits: Sequence[Any]) -> int:
            nonlocal left
            if left and path != SESSIONS_PATH:
                left -= 1
                raise MemoryError
            return await take(path, commits)

        commits = {path: signed_commit(stranger) for path in ("/data/x", "/data/y")}
        for path, commit in commits.items():
            await take(path, [commit.to_json()])
        monkeypatch.setattr(database, "store_commits", fail_once)
        await take(SESSIONS_PATH, [session_commit(signer, stranger.session).to_json()])

        async def are_stored() -> bool:
            return all(
                [one.id in (await database.open_repository(path)).get_repository(path) for path, one in commits.items()]
            )

        await eventually(are_stored)
        assert clock.rests == [database_module.VERIFY_AGAIN]
        assert "cannot verify pending commits of /data/x" in caplog.text
        assert not left


async def test_a_verification_that_always_raises_is_retried_at_growing_intervals_and_the_server_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, stranger, clock = root("signer"), root("stranger"), BackoffClock()
    settings = settings_of(await store_of(document_of(signer)))
    async with Server(tmp_path, settings, debug=True, clock=clock) as server:
        database = server.database()
        take = database.store_commits

        async def fail(path: str, commits: Sequence[Any]) -> int:
            raise MemoryError

        waits = signed_commit(stranger)
        await take("/data/x", [waits.to_json()])
        monkeypatch.setattr(database, "store_commits", fail)
        await take(SESSIONS_PATH, [session_commit(signer, stranger.session).to_json()])

        async def rested(times: int) -> bool:
            return len(clock.rests) >= times

        await eventually(lambda: rested(9))
        first, most = database_module.VERIFY_AGAIN, database_module.VERIFY_AGAIN_AT_MOST
        assert clock.rests[:9] == [min(2**number * first, most) for number in range(9)]
        accepted = await take("/data/z", [signed_commit(stranger).to_json()])
        assert accepted == 1
        monkeypatch.setattr(database, "store_commits", take)

        async def is_stored() -> bool:
            return waits.id in (await database.open_repository("/data/x")).get_repository("/data/x")

        await eventually(is_stored)


async def test_sessions_are_verified_after_the_choice_of_a_batch_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, clock = root("signer"), BackoffClock()
    one = OwnedSession.generate(session_id="one", owner=None, now_ms=now_ms()).session
    log = tmp_path / ORG / "sys" / "sessions.jsonl"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"\n" + json.dumps(session_commit(signer, one).to_json()).encode() + b"\n")
    prepare, left = TrustPool.prepare_pending, [1]

    def fail_once(pool: TrustPool, limit: int) -> Verification:
        if left[0]:
            left[0] -= 1
            raise MemoryError
        return prepare(pool, limit)

    monkeypatch.setattr(TrustPool, "prepare_pending", fail_once)
    settings = settings_of(await store_of(document_of(signer)))
    async with Server(tmp_path, settings, debug=True, clock=clock) as server:
        pool = server.database().pool

        async def is_known() -> bool:
            return pool.known_count == 2

        await eventually(is_known)
    assert left == [0]


class Shelf:
    """A log whose flush waits for a gate, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.gate = threading.Event()
        self.is_flushing = threading.Event()
        self.fails = fails
        self.unflushed = 1

    def append_record(self, record: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        self.is_flushing.set()
        self.gate.wait()
        if self.fails:
            raise StorageError("no space")
        self.unflushed = 0


async def test_no_answer_claims_durability_after_the_flush_of_another_request_failed() -> None:
    disk = GroupCommit()
    first, second, third = Shelf(), Shelf(fails=True), Shelf(fails=True)
    second.gate.set()
    third.gate.set()

    async def writes_twice() -> None:
        disk.mark_dirty(first, "/a/b")
        await disk.wait_until_durable(["/a/b"])
        disk.mark_dirty(third, "/e/f")
        await disk.wait_until_durable(["/e/f"])

    async def writes_meanwhile() -> None:
        disk.mark_dirty(second, "/c/d")
        await disk.wait_until_durable(["/c/d"])

    tasks = [asyncio.create_task(writes_twice())]
    while not first.is_flushing.is_set():
        await asyncio.sleep(0)
    tasks.append(asyncio.create_task(writes_meanwhile()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StorageError, StorageError]
    assert third.unflushed
    disk.close()


async def test_an_organization_that_cannot_be_closed_cleanly_does_not_keep_the_others_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(await store_of(document_of(root("signer"))))
    server = await Server(tmp_path, lambda _: settings, resolve_domain=lambda _: "", debug=True).__aenter__()
    for org in ("a", "b", "c"):
        engine = (await server.open_database(org)).engine
        drive_inline(engine.create_item_in_steps("/data/x", "k", "note/1", {"text": "x"}, now_ms()))
    monkeypatch.setattr(FileLog, "_append_bytes", _no_space)
    with pytest.raises(StorageError):
        await server.__aexit__(None, None, None)
    for org in ("a", "b", "c"):
        with LogDirectory(tmp_path / org):
            pass  # its lock has been given back


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


async def test_only_the_session_whose_requests_take_long_waits_for_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "WORK", Rate(per_second=0.001, burst=1))
    signer = root("signer")
    pauses: list[float] = []

    class Noting(SystemClock):
        async def sleep(self, duration: timedelta) -> None:
            if duration <= timedelta(seconds=database_module.LONGEST_PAUSE):
                pauses.append(duration.total_seconds())
            else:
                await super().sleep(duration)

    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        (heavy, _), (light, _) = await node.client.create_session(), await node.client.create_session()
        database = node.server.database()
        monkeypatch.setattr(database, "_clock", Noting())
        database._work.charge(heavy.id, database._clock.monotonic(), 1.5)
        pauses.clear()
        assert await node.client.answers(light)
        assert (pauses, database.paused_count) == ([], 0)
        assert await node.client.answers(heavy)
        assert max(pauses) == database_module.LONGEST_PAUSE
        assert database.paused_count > 0
        # What a request uses is charged by the thread's own time.
        monkeypatch.setattr(database_module, "FREE_WORK", 0.0)
        before = database._work.seconds_until(light.id, database._clock.monotonic(), 1)
        await node.client.push("/data/a", [signed_commit(light, f"k{number}") for number in range(50)], light)
        assert database._work.seconds_until(light.id, database._clock.monotonic(), 1) > before
