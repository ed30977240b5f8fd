"""A log's index changes only how fast a server opens the log, whatever the log and the index contain."""

from __future__ import annotations

import json
import logging
import random
import stat
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.clock import SystemClock
from goatherd.errors import StorageError
from goatherd.identity.session import OwnedSession
from goatherd.node import Server, index_writer, log_index
from goatherd.node.index_writer import IndexWriter
from goatherd.node.log_storage import FileLog, LogDirectory
from goatherd.node.repository import Repository
from goatherd.wire.commit import Commit
from goatherd.wire.commit_log import frame_records
from goatherd.wire.schema import BUILTIN, Registry
from tests.unit.goats import ORG, commit_by, owned
from tests.unit.node.nodes import (
    document_of,
    eventually,
    now_ms,
    root,
    session_commit,
    settings_of,
    signed_commit,
    store_of,
)
from tests.unit.wire.test_compact_commits import NOTE, RECORDS

PATH = "/data/notes"
X = owned("anon-x")
FEW_LINES = 3


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_index, "BLOCK_LINES", FEW_LINES)


def opened(log: FileLog, registry: Registry = BUILTIN, org: str = ORG) -> Repository:
    found = Repository(PATH, log, org=org, connection="here", own_session=lambda: X.id, registry=registry)
    found.load_log()
    return found


def extend(repository: Repository) -> None:
    """Write the index as far as possible."""
    while repository.unindexed_count:
        before = repository.indexed
        after = repository.write_index_block()
        repository.note_indexed(before, after)
        if after is before:
            break


def index_of(log: FileLog) -> Path:
    assert log.index.file == log.file.with_name(f".{log.file.name}.index")
    return log.index.file


def state(repository: Repository) -> dict[str, Any]:
    """All that clients, peers and applications can see of a repository."""
    return {
        "ids": repository.ids,
        "shown": list(repository.shown_ids),
        "commits": list(repository),
        "bytes": [commit.encoded for commit in repository],
        "compact": [commit.is_compact for commit in repository],
        "keys": list(repository.item_keys()),
        "items": [repository.find_item(key) for key in repository.item_keys()],
        "leaves": [repository.find_leaves(key) for key in repository.item_keys()],
        "linked": [repository.is_linked(key) for key in repository.item_keys()],
        "history": [repository.commits_of(key) for key in repository.item_keys()],
        "weight": repository.weight,
        "undecodable": repository.undecodable,
    }


def without_index(log: FileLog, registry: Registry = BUILTIN, org: str = ORG) -> dict[str, Any]:
    """Return the state that a server reads from the log alone."""
    hidden = index_of(log).rename(log.file.with_name("hidden")) if index_of(log).exists() else None
    try:
        return state(opened(log, registry, org))
    finally:
        if hidden is not None:
            hidden.rename(index_of(log))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileLog]:
    with LogDirectory(tmp_path) as directory:
        yield directory.open_log(PATH)


def history(count: int, first: int = 0) -> list[Commit]:
    """Return commits of several items, each with its predecessor as parent."""
    ids = [f"c{number}" for number in range(first + count)]
    return [
        commit_by(
            X,
            f"item-{number % 4}",
            {"n": number},
            commit_id=ids[number],
            parents=[ids[number - 4]] if number >= 4 else [],
        )
        for number in range(first, first + count)
    ]


def append(log: FileLog, records: Sequence[Any]) -> None:
    for record in records:
        log.append_record(record.to_json() if isinstance(record, Commit) else record)
    log.flush()


LINES = st.lists(
    RECORDS
    | st.integers(0, 11).map(lambda number: history(12)[number].to_json())
    | st.sampled_from([b"not JSON", b"[]", b"{}", b" "]),
    max_size=14,
)


@pytest.mark.slow
@given(LINES, st.sampled_from([BUILTIN, Registry([NOTE])]), st.integers(0, 14))
def test_whatever_a_log_holds_a_server_reads_the_same_with_its_index(
    lines: list[Any], registry: Registry, late: int
) -> None:
    with tempfile.TemporaryDirectory() as name, LogDirectory(Path(name)) as directory:
        log = directory.open_log(PATH)
        append(log, lines[:late])
        extend(opened(log, registry, "o"))
        append(log, lines[late:])
        expected = without_index(log, registry, "o")
        for _ in range(2):
            found = opened(log, registry, "o")
            assert state(found) == expected
            extend(found)


def _repeated_texts(block: dict[str, Any]) -> list[str]:
    """Return the ids and keys that a column of a block repeats from an earlier row."""
    repeated = [key for row, key in enumerate(block["keys"]) if key in block["keys"][:row] and isinstance(key, str)]
    for row, (parents, base) in enumerate(zip(block["parents"], block["bases"], strict=True)):
        repeated += [one for one in (*(parents or ()), base) if one in block["ids"][:row] and isinstance(one, str)]
    return repeated


@pytest.mark.parametrize("lines", [FEW_LINES, 20])
def test_the_index_of_ordinary_commits_covers_all_of_them(
    log: FileLog, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_index, "BLOCK_LINES", lines)
    append(log, history(20))
    first = opened(log)
    assert first.unindexed_count == 20
    extend(first)
    again = opened(log)
    assert again.unindexed_count == 0
    assert state(again) == state(first)
    assert stat.S_IMODE(index_of(log).stat().st_mode) == 0o600
    blocks = [log_index.decode_line(line) for line in index_of(log).read_bytes().splitlines(keepends=True)]
    repeated = [commit for block in blocks if "ids" in block for commit in _repeated_texts(block)]
    assert repeated == [], "a string that occurred in an earlier row of its block is written as the row's number"


def test_lines_that_are_skipped_or_decoded_do_not_end_the_index(log: FileLog) -> None:
    commits = [commit.to_json() for commit in history(9)]
    reordered = dict(sorted(commits[4].items()))
    append(log, [*commits[:2], b"not JSON", commits[1], *commits[2:4], reordered, *commits[5:7], commits[0]])
    append(log, commits[7:])
    expected = without_index(log)
    extend(opened(log))
    again = opened(log)
    assert again.unindexed_count == 0
    assert state(again) == expected
    assert again.ids == [commit["id"] for commit in commits]
    assert again.undecodable == 1


def test_a_commit_that_was_skipped_for_its_cycle_does_not_hide_a_later_one_with_its_id(log: FileLog) -> None:
    commits = [commit.to_json() for commit in history(4)]
    edit = {"sc": "1", "dc": "2", "c": {}, "s": "note/1"}
    cyclic = [{**commits[0], "id": one, "c": {"b": other, "e": edit}} for one, other in (("a", "b"), ("b", "a"))]
    append(log, [*commits[:3], *cyclic, {**commits[0], "id": "b"}, commits[3]])
    expected = without_index(log)
    assert expected["ids"] == ["c0", "c1", "c2", "a", "b", "c3"]
    assert expected["commits"][4].base is None
    extend(opened(log))
    assert state(opened(log)) == expected


@pytest.mark.parametrize("member", ["id", "k", "s", "p"])
@pytest.mark.parametrize("text", ["\ud800", "é", "\u2028", '"'], ids=ascii)
def test_any_text_may_be_in_a_commit(log: FileLog, member: str, text: str) -> None:
    commits = [commit.to_json() for commit in history(6)]
    commits[4] = {**commits[4], member: [text] if member == "p" else text}
    append(log, commits)
    expected = without_index(log)
    extend(opened(log))
    again = opened(log)
    assert again.unindexed_count == 0
    assert state(again) == expected


def test_an_index_grows_with_its_log(log: FileLog) -> None:
    repository = opened(log)
    for first in range(0, 40, 8):
        for commit in history(8, first):
            repository.add_commit(commit)
        assert repository.unindexed_count == 8
        extend(repository)
        assert repository.unindexed_count == 8, "what is not in the log yet does not enter the index"
        log.flush()
        before = index_of(log).read_bytes() if first else b""
        extend(repository)
        assert repository.unindexed_count == 0
        assert index_of(log).read_bytes().startswith(before), "blocks are appended"
        assert state(opened(log)) == without_index(log)


@pytest.mark.parametrize("seed", range(40))
def test_a_changed_log_is_read_as_it_is_now(log: FileLog, seed: int) -> None:
    dice = random.Random(seed)
    append(log, history(20))
    extend(opened(log))
    data = bytearray(log.file.read_bytes())
    lines = data.split(b"\n")
    match seed % 4:
        case 0:  # another letter in a commit: the line stays JSON, or does not
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(7)
        case 1:  # as after a crash, or an older backup
            del data[dice.randrange(len(data)) :]
        case 2:  # a repair has removed a line
            at = dice.randrange(len(lines))
            data = bytearray(b"\n".join(lines[:at] + lines[at + 1 :]))
        case 3:  # lines have changed places
            dice.shuffle(lines)
            data = bytearray(b"\n".join(lines) + b"\n")
    log.file.write_bytes(data)
    expected = without_index(log)
    log.file.write_bytes(data)
    found = opened(log)
    assert state(found) == expected
    is_lacking = found.unindexed_count > 0
    extend(found)
    assert state(opened(log)) == expected
    if is_lacking:
        extended = index_of(log).read_bytes()
        index_of(log).unlink()
        extend(opened(log))
        assert index_of(log).read_bytes() == extended, "nothing of the old index is left"


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_index_is_not_used_and_is_mended(log: FileLog, seed: int) -> None:
    dice = random.Random(seed)
    append(log, history(20))
    extend(opened(log))
    whole = index_of(log).read_bytes()
    data = bytearray(whole)
    if seed % 2:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(7)
    else:
        del data[dice.randrange(len(data)) :]
    index_of(log).write_bytes(data)
    found = opened(log)
    assert found.unindexed_count > 0
    assert state(found) == without_index(log)
    extend(found)
    assert index_of(log).read_bytes() == whole


def test_an_index_for_other_schemas_or_another_organization_is_not_used(log: FileLog) -> None:
    append(log, history(20))
    extend(opened(log))
    assert opened(log).unindexed_count == 0
    for registry, org in ((Registry([NOTE]), ORG), (BUILTIN, "other")):
        found = opened(log, registry, org)
        assert found.unindexed_count == len(found.ids)
        assert state(found) == without_index(log, registry, org)


def forge(log: FileLog, **columns: Any) -> None:
    """Replace columns in the index's first block, and give the block a valid checksum."""
    header, first, *rest = index_of(log).read_bytes().splitlines(keepends=True)
    block = {**json.loads(first.partition(b" ")[2]), **columns}
    index_of(log).write_bytes(b"".join([header, log_index._encode_line(block), *rest]))


@pytest.mark.parametrize(
    "columns",
    [
        {"ids": ["c0", "c1"]},
        {"ids": None},
        {"session": [0, 1, 7]},
        {"parents": [[5], None, None]},
        {"keys": [2, "k", "k"]},
        {"skipped": [0]},
        {"size": 1},
        {"size": 10**9},
        {"size": -1},
    ],
    ids=str,
)
def test_a_block_that_does_not_fit_its_log_is_not_used(log: FileLog, columns: dict[str, Any]) -> None:
    append(log, history(20))
    extend(opened(log))
    forge(log, **columns)
    found = opened(log)
    assert found.unindexed_count == 20
    assert state(found) == without_index(log)


def test_a_log_that_does_not_hold_the_servers_commits_gets_no_index(log: FileLog) -> None:
    append(log, history(8))
    repository = opened(log)
    log.file.write_bytes(frame_records([commit.to_json() for commit in history(8)[2:]]))
    extend(repository)
    assert repository.indexed is None
    assert not index_of(log).exists()


def test_an_index_ends_where_damaged_commits_are_withheld(log: FileLog) -> None:
    append(log, history(20))
    repository = opened(log)
    before = repository.indexed
    after = repository.write_index_block()
    damaged = next(iter(repository))
    assert repository.withhold_damaged({damaged.id: [damaged]}, {})
    repository.note_indexed(before, after)
    assert repository.indexed is None
    assert repository.unindexed_count == 0
    assert state(opened(log)) == without_index(log)


class _Engine:
    def __init__(self, *repositories: Repository) -> None:
        self.repositories = {str(number): repository for number, repository in enumerate(repositories)}


async def test_an_index_that_cannot_be_written_is_reported_once(
    log: FileLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(index_writer, "LEAST", 1)
    append(log, history(8))
    index_of(log).mkdir()
    repository = opened(log)
    with ThreadPoolExecutor(1) as workers, caplog.at_level(logging.INFO, "goatherd.node"):
        writer = IndexWriter(engine=_Engine(repository), workers=workers, clock=SystemClock())  # type: ignore[arg-type]
        for _ in range(3):
            await writer.extend_index(repository)
    assert [record.message.split()[0] for record in caplog.records] == ["data.no_index"]
    with pytest.raises(StorageError, match=r"cannot write .*notes\.jsonl\.index: Is a directory"):
        log.index.write_block(b"", b"", 0)
    assert state(opened(log)) == state(repository)


async def test_a_server_writes_the_indexes_of_its_logs_and_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "LEAST", 1)
    monkeypatch.setattr(index_writer, "INTERVAL", timedelta(milliseconds=20))
    file = tmp_path / ORG / "data/notes.jsonl"
    file.parent.mkdir(parents=True)
    commits = history(20)
    file.write_bytes(frame_records([commit.to_json() for commit in commits]))
    provider = await store_of(document_of(root("signer")))
    for expected in (20, 0):
        async with Server(tmp_path, settings_of(provider), debug=True) as server:
            database = server.database()
            await database.open_repository(PATH)
            found = database.engine.repositories[PATH]
            assert found.unindexed_count == expected
            assert list(found) == commits

            async def is_indexed(found: Repository = found) -> bool:
                return found.unindexed_count == 0

            await eventually(is_indexed)


@pytest.mark.parametrize("path", [PATH, "/sys/sessions"])
async def test_a_commit_that_a_wrong_index_hides_is_found_by_the_check_of_the_logs(
    tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    signer = root("signer")
    users = [OwnedSession.generate(session_id=f"user-{number}", owner=None, now_ms=now_ms()) for number in range(4)]
    sessions = [session_commit(signer, user.session) for user in users]
    commits = sessions if path == "/sys/sessions" else [signed_commit(users[0], key) for key in "abcd"]
    with LogDirectory(tmp_path / ORG) as directory:
        append(directory.open_log("/sys/sessions"), sessions)
        log = directory.open_log(path)
        if path != "/sys/sessions":
            append(log, commits)
        repository = Repository(path, log, org=ORG, connection="here", own_session=lambda: X.id)
        repository.load_log()
        extend(repository)
        assert repository.unindexed_count == 0
        header, block, *rest = index_of(log).read_bytes().splitlines(keepends=True)
        columns = json.loads(block.partition(b" ")[2])
        for name in ("ids", "keys", "session", "ts", "parents", "schema", "bases"):
            del columns[name][1]
        index_of(log).write_bytes(b"".join([header, log_index._encode_line({**columns, "skipped": [1]}), *rest]))
    provider = await store_of(document_of(signer))
    with caplog.at_level(logging.WARNING, "goatherd.node"):
        async with Server(tmp_path, settings_of(provider), debug=True) as server:
            database = server.database()
            await database.open_repository(path)
            found = database.engine.repositories[path]
            assert database._data_check is not None
            await database._data_check.run()  # the first one may have come before the repository was opened
            assert set(found.ids) == {commit.id for commit in commits}
            assert database.engine.pool.get_session(users[1].id) == users[1].session

            async def is_removed() -> bool:
                return not index_of(log).exists()

            await eventually(is_removed)  # if it was the first check that found the fault, it may be removing it now
    warnings = [record.message for record in caplog.records if record.name == "goatherd.node"]
    assert warnings == [f"data.wrong_index file={index_of(log)} restored=1"]
