"""The background check of a started server's logs: damaged records are counted, withheld and fetched again."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from goatherd.clock import SystemClock
from goatherd.cluster.client import NodeClient
from goatherd.errors import StorageError
from goatherd.identity.session import OwnedSession
from goatherd.node import Server, ServerListener, data_check
from goatherd.node.data_check import BATCH, MOST_RESTS, REST, UNKNOWN_FOR
from goatherd.node.log_storage import FileLog
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import frame_records
from tests.deadlines import ANSWER, HANG
from tests.unit.node.nodes import (
    ORG,
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

NOTES = "/data/notes"


@pytest.fixture
def signer() -> OwnedSession:
    return root("signer")


@pytest.fixture
def user() -> OwnedSession:
    return OwnedSession.generate(session_id="user", owner=None, now_ms=now_ms())


def write(data: Path, path: str, lines: Sequence[Commit | bytes]) -> Path:
    file = data / ORG / f"{path.removeprefix('/')}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(frame_records([line if isinstance(line, bytes) else line.to_json()]) for line in lines))
    return file


def altered(commit: Commit) -> dict[str, Any]:
    """Return the commit after a bit has flipped in its contents."""
    return Commit.from_json(
        {**commit.to_json(), "c": {"r": {**(commit.record or {}), "d": {"title": "b title"}}}}, org=ORG
    ).to_json()


async def is_complete(server: Server) -> bool:
    status = server.database().data
    return status is not None and status.is_complete


def test_a_log_is_read_part_by_part_up_to_what_it_held_or_to_an_unfinished_line(
    tmp_path: Path, user: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_check, "PART_BYTES", 100)
    commits = [signed_commit(user) for _ in range(5)]
    file = write(tmp_path, NOTES, [commits[0], b"{damaged", *commits[1:4]])
    whole = file.read_bytes()
    log = FileLog(file)
    assert log.read_part(0, 100) == whole[: whole.index(b"\n", 100) + 1]

    expected = list(data_check.decode_lines(whole, ORG))
    found = data_check.decode_file(log, ORG)
    first = next(found)
    file.write_bytes(whole + frame_records([commits[4].to_json()]))
    assert [first, *found] == [(line.start, outcome) for line, outcome in expected]

    file.write_bytes(whole + b'\n{"id":')
    found = data_check.decode_file(log, ORG)
    read = [next(found) for _ in range(len(expected) + 1)]
    assert isinstance(read[-1][1], data_check.Unreadable)
    assert read[-1][1].kind is data_check.LineProblem.TORN
    file.write_bytes(whole + frame_records([commits[4].to_json()]))
    assert list(found) == []
    assert list(data_check.decode_file(FileLog(tmp_path / "none.jsonl"), ORG)) == []


@pytest.mark.parametrize("cut", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:700])])
@pytest.mark.parametrize("has_news", [True, False])
async def test_a_log_that_another_program_has_cut_off_is_written_again(
    tmp_path: Path,
    signer: OwnedSession,
    cut: Callable[[Path], object],
    has_news: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    commits = [signed_commit(signer) for _ in range(4)]
    file = write(tmp_path, NOTES, commits[:2])
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        database = server.database()
        await database.open_repository(NOTES)
        await database.store_commits(NOTES, [commits[2].to_json()])
        assert read_ids(file) == [commit.id for commit in commits[:3]]
        cut(file)
        if has_news:
            await database.store_commits(NOTES, [commits[3].to_json()])
            assert read_ids(file) == [commit.id for commit in commits]
    assert read_ids(file) == [commit.id for commit in commits[: 4 if has_news else 3]]
    assert [record.getMessage().split()[0] for record in caplog.records if "cut_off" in record.getMessage()] == [
        "data.cut_off"
    ]


async def test_a_log_with_damaged_records_is_not_written_again(tmp_path: Path, signer: OwnedSession) -> None:
    commits = [signed_commit(signer) for _ in range(2)]
    file = write(tmp_path, NOTES, [b"{damaged", commits[0]])
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        await server.database().open_repository(NOTES)
        file.write_bytes(frame_records([b"{damaged"]))
        await server.database().store_commits(NOTES, [commits[1].to_json()])
    assert file.read_bytes() == frame_records([b"{damaged"]) + frame_records([commits[1].to_json()])


def read_ids(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.read_bytes().split(b"\n") if line]


async def test_the_check_is_complete_only_when_every_log_could_be_read(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data_check, "AGAIN", timedelta(milliseconds=10))
    monkeypatch.setattr(data_check, "AGAIN_AT_MOST", timedelta(milliseconds=10))
    file = write(tmp_path, NOTES, [signed_commit(signer), b"{damaged"])
    read, failures, is_broken = FileLog.read_part, 0, True

    def read_unless_broken(log: FileLog, start: int, size: int) -> bytes:
        nonlocal failures
        if log.file == file and is_broken:
            failures += 1
            raise StorageError(f"cannot read {file}: Input/output error")
        return read(log, start, size)

    monkeypatch.setattr(FileLog, "read_part", read_unless_broken)
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:

        async def has_failed() -> bool:
            return failures > 2

        async def is_checked() -> bool:
            return await is_complete(server)

        await eventually(has_failed)
        assert not await is_complete(server)
        is_broken = False
        await eventually(is_checked)
        status = server.database().data
        assert status is not None
        assert (status.records, status.damaged) == (1, 1)
    assert caplog.text.count("Input/output error") == 1


async def test_damage_is_counted_said_once_for_each_file_and_withheld(
    tmp_path: Path, signer: OwnedSession, user: OwnedSession, caplog: pytest.LogCaptureFixture
) -> None:
    commits = [signed_commit(user) for _ in range(4)]
    stranger = signed_commit(OwnedSession.generate(session_id="stranger", owner=None, now_ms=now_ms()))
    wrong = Commit.from_json(altered(commits[1]), org=ORG)
    write(tmp_path, "/sys/sessions", [session_commit(signer, user.session), b"{damaged"])
    file = write(tmp_path, NOTES, [commits[0], wrong, b'{"id":"no-commit"}', b"\x00", commits[2], stranger, commits[3]])
    before = file.read_bytes()
    write(tmp_path, "/data/healthy", [signed_commit(user)])
    with caplog.at_level(logging.INFO, "goatherd.node"):
        async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
            database = server.database()
            await database.open_repository(NOTES)
            await eventually(lambda: is_complete(server))
            assert database.data is not None
            assert database.data.to_json() == {
                "complete": True,
                "records": 7,
                "damaged": 3,
                "unverifiable": 2,
                "unwritable": 0,
            }
            repository = database.engine.get_repository(NOTES)
            assert set(repository.ids) == {commits[0].id, commits[2].id, commits[3].id, stranger.id}
            assert repository.find_item(commits[1].key) is None
            async with ServerListener(server) as listener, NodeClient(listener.url, timeout=ANSWER) as client:
                served = {commit["id"] for commit in await client.pull(NOTES, user)}
                assert served == set(repository.ids), "an altered commit is not served"
    assert file.read_bytes() == before, "the log stays as it is"
    warnings = [record.getMessage() for record in caplog.records if "data.damaged" in record.getMessage()]
    assert len(warnings) == 2
    assert f"file={file} damaged=2 wrong_signature=1 unknown_signer=1 first_at_byte=" in warnings[1]
    assert f"goatherd doctor --data check {tmp_path / ORG}" in warnings[1]
    assert any("data.checked records=7 damaged=3 unverifiable=2" in record.getMessage() for record in caplog.records)


async def test_a_repository_that_is_opened_later_leaves_the_altered_commit_out_too(
    tmp_path: Path, signer: OwnedSession
) -> None:
    commit, other = signed_commit(signer), signed_commit(signer)
    write(tmp_path, NOTES, [Commit.from_json(altered(commit), org=ORG), other])
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        await eventually(lambda: is_complete(server))
        engine = await server.database().open_repository(NOTES)
        assert engine.get_repository(NOTES).ids == [other.id]


async def test_a_good_copy_in_the_same_log_takes_the_place_of_an_altered_one(
    tmp_path: Path, signer: OwnedSession
) -> None:
    """That is the state after the commit was fetched again and the server has restarted."""
    commit = signed_commit(signer)
    write(tmp_path, NOTES, [Commit.from_json(altered(commit), org=ORG), commit])
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        engine = await server.database().open_repository(NOTES)
        await eventually(lambda: is_complete(server))
        item = engine.get_repository(NOTES).find_item(commit.key)
        assert item is not None
        assert item.data["title"] == "a title"


@pytest.mark.parametrize("has_good_copy", [False, True])
async def test_damage_that_is_found_while_a_thread_reads_the_log_is_withheld_too(
    tmp_path: Path, signer: OwnedSession, has_good_copy: bool
) -> None:
    commit = signed_commit(signer)
    wrong = Commit.from_json(altered(commit), org=ORG)
    good = {commit.id: commit} if has_good_copy else {}
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        await eventually(lambda: is_complete(server))
        write(tmp_path, NOTES, [wrong, *good.values()])
        engine = server.database().engine
        opening = engine.open_in_steps(NOTES)
        read = next(opening).run()
        engine.withhold_damaged(NOTES, {commit.id: [wrong]}, good)
        with suppress(StopIteration):
            while True:
                read = opening.send(read).run()
        item = engine.get_repository(NOTES).find_item(commit.key)
        assert (item and item.data["title"]) == ("a title" if has_good_copy else None)


async def test_no_damaged_commit_is_sent_before_the_check_has_reached_it(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = [signed_commit(signer) for _ in range(3)]
    write(tmp_path / "0", NOTES, [commits[0], Commit.from_json(altered(commits[1]), org=ORG), commits[2]])

    async def never(_: data_check.DataCheck) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(data_check.DataCheck, "run", never)
    async with cluster(tmp_path, 1, [document_of(signer)], links=lambda _: []) as (node,):
        for _ in range(2):  # at the first request, and from what was verified then
            assert await node.holds(NOTES, signer) == {commits[0].id, commits[2].id}


async def test_what_is_damaged_is_fetched_again_from_a_peer(tmp_path: Path, signer: OwnedSession) -> None:
    commits = [signed_commit(signer) for _ in range(3)]
    spoilt = [commits[0], Commit.from_json(altered(commits[1]), org=ORG), b'{"id":' + b"\xff" * 9]
    write(tmp_path / "0", NOTES, spoilt)
    write(tmp_path / "1", NOTES, commits)
    async with cluster(tmp_path, 2, [document_of(signer)], links=lambda index: [1 - index]) as (damaged, whole):

        async def is_whole() -> bool:
            found = await damaged.client.pull(NOTES, signer)
            titles = {commit["id"]: commit["c"]["r"]["d"]["title"] for commit in found}
            return titles == {commit.id: "a title" for commit in commits}

        await eventually(is_whole)
        assert await whole.holds(NOTES, signer) == {commit.id for commit in commits}
    text = (tmp_path / "0" / ORG / "data" / "notes.jsonl").read_text(errors="replace")
    assert text.count(commits[1].id) == 2, "the altered line stays until it is set aside; the good one is behind it"


@pytest.mark.parametrize("becomes_known", [True, False])
async def test_an_unknown_signer_is_counted_while_it_is_unknown_and_reported_only_if_it_stays_so(
    tmp_path: Path, signer: OwnedSession, user: OwnedSession, becomes_known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    waiting, waited = asyncio.Event(), asyncio.Event()

    class Waiting(SystemClock):
        async def sleep(self, duration: timedelta) -> None:
            if duration == UNKNOWN_FOR:
                waiting.set()
                await waited.wait()
            else:
                await super().sleep(duration)

    write(tmp_path, "/data/healthy", [signed_commit(signer)])
    file = write(tmp_path, NOTES, [signed_commit(user)])
    settings = settings_of(await store_of(document_of(signer)))
    async with Server(tmp_path, settings, debug=True, clock=Waiting()) as server:
        await asyncio.wait_for(waiting.wait(), HANG)
        database = server.database()
        assert database.data is not None
        assert (database.data.is_complete, database.data.unverifiable) == (True, 1)
        if becomes_known:
            await database.store_commits("/sys/sessions", [session_commit(signer, user.session).to_json()])
            assert database.data.unverifiable == 0
        assert "data.damaged" not in caplog.text
        waited.set()
        for _ in range(10):  # the check waits for nothing else before it reports
            await asyncio.sleep(0)
    reports = [one.getMessage() for one in caplog.records if "data.damaged" in one.getMessage()]
    told = f"file={file} damaged=0 wrong_signature=0 unknown_signer=1 first_at_byte="
    assert [told in one for one in reports] == ([] if becomes_known else [True])


@pytest.mark.parametrize("is_busy", [False, True])
async def test_the_check_rests_longer_than_it_works_and_longer_still_while_the_server_is_busy(
    tmp_path: Path, signer: OwnedSession, is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[timedelta] = []
    cpu = itertools.count(0, 1_000_000 if is_busy else 0)
    monkeypatch.setattr(data_check, "process_time", lambda: next(cpu))

    class Ticking(SystemClock):
        """A clock that advances a second at each reading."""

        def __init__(self) -> None:
            self.time = 0.0

        def monotonic(self) -> float:
            self.time += 1.0
            return self.time

        async def sleep(self, duration: timedelta) -> None:
            task = asyncio.current_task()
            if task is not None and task.get_name().endswith("check the data"):
                rests.append(duration)
            else:
                await super().sleep(duration)

    write(tmp_path, NOTES, [b'{"id":"x"}'] * (2 * BATCH + 1))
    server = Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True, clock=Ticking())
    async with server:
        await eventually(lambda: is_complete(server))
    assert len(rests) == 2 * (MOST_RESTS if is_busy else 1), "not after the last batch"
    assert all(rest >= timedelta(seconds=REST) for rest in rests)


async def test_health_and_metrics_show_what_was_found(tmp_path: Path, signer: OwnedSession) -> None:
    write(tmp_path, NOTES, [b"{", signed_commit(signer)])
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        await eventually(lambda: is_complete(server))
        transport = httpx2.ASGITransport(server.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://node", verify=False) as http:
            health = (await http.get("/goatherd/v1/health")).json()
            assert (health["status"], health["data"]["damaged"]) == ("ok", 1)
            text = (await http.get("/goatherd/v1/metrics")).text
    assert 'goatherd_data_unusable_records{kind="damaged"} 1.0' in text
    assert 'goatherd_data_unusable_records{kind="unverifiable"} 0.0' in text
    assert "goatherd_data_checked 1.0" in text
    assert "goatherd_data_records 1.0" in text


async def test_a_check_that_fails_for_one_log_goes_on_with_the_others_and_tries_again(
    tmp_path: Path, signer: OwnedSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path, f"/data/{name}", [signed_commit(signer), b"{damaged"])
    decode, failures = data_check.decode_lines, [2]

    def fails(data: bytes, org: str) -> Any:
        yield from decode(data, org)
        if failures[0]:
            failures[0] -= 1
            raise MemoryError

    monkeypatch.setattr(data_check, "decode_lines", fails)
    monkeypatch.setattr(data_check, "AGAIN", timedelta(milliseconds=1))
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        await eventually(lambda: is_complete(server))
        status = server.database().data
        assert status is not None
        assert (status.records, status.damaged) == (3, 3)


@pytest.mark.slow
async def test_no_flipped_bit_of_a_record_is_served_once_the_check_is_complete(
    tmp_path: Path, signer: OwnedSession
) -> None:
    """Every third byte of a record, one bit of each: 218 of 350 such records were served as genuine before."""
    commit = signed_commit(signer, title="a title that is long enough")
    good = frame_records([commit.to_json()])
    flipped = 0
    lots = random.Random(3)
    for at in range(1, len(good) - 1, 3):
        file = tmp_path / ORG / "data" / f"n{at}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(good[:at] + bytes([good[at] ^ 1 << lots.randrange(8)]) + good[at + 1 :])
        flipped += 1
    async with Server(tmp_path, settings_of(await store_of(document_of(signer))), debug=True) as server:
        await eventually(lambda: is_complete(server))
        database, served = server.database(), 0
        for at in range(1, len(good) - 1, 3):
            engine = await database.open_repository(f"/data/n{at}")
            for held in engine.get_repository(f"/data/n{at}"):
                # Upper-case letters in a signature, and its own time, change nothing that it says.
                served += held.signed_object() != commit.signed_object()
        assert flipped > 150
        assert served == 0
