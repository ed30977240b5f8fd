"""Commit logs on disk: format, repair, durability, locks."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goatherd.errors import PathError, StorageError
from goatherd.node.log_storage import LOCK_NAME, FileLog, LogDirectory
from goatherd.wire.commit_log import frame_records, read_lines
from tests.fakes.memory_log import MemoryLog


def ids(records: object) -> list[str]:
    return [record["id"] for record in records]  # type: ignore[attr-defined]


def filled(path: Path, count: int = 3) -> Path:
    with LogDirectory(path) as directory:
        log = directory.open_log("/data/x")
        for number in range(count):
            log.append_record({"id": f"c{number}"})
        log.flush()
    return path / "data/x.jsonl"


def test_the_bytes_are_goatdbs(tmp_path: Path) -> None:
    file = filled(tmp_path, 2)
    assert file.read_bytes() == b'\n{"id":"c0"}\n\n{"id":"c1"}\n'
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        log.append_record({"id": "ü"})
        log.flush()
    assert file.read_bytes() == '\n{"id":"c0"}\n\n{"id":"c1"}\n\n{"id":"ü"}\n'.encode()


def test_nothing_is_written_before_a_flush_and_nothing_by_an_empty_one(tmp_path: Path) -> None:
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        assert log.read_records() == []
        log.flush()
        log.append_record({"id": "c"})
        assert log.unflushed == 1
        assert not (tmp_path / "data").exists()
        log.flush()
        assert log.unflushed == 0
        assert (tmp_path / "data/x.jsonl").exists()


def test_stored_results_of_goatdbs_queries_are_deleted_before_the_log_is_written(tmp_path: Path) -> None:
    """GoatDB would use the old results, and would not find an item that was written since."""
    filled(tmp_path)
    cache, other = tmp_path / "data/x.cache.json", tmp_path / "data/y.cache.json"
    for file in (cache, other):
        file.write_text('{"version":1,"queries":{}}')
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        records = log.read_records()
        log.flush()
        assert cache.exists(), "nothing was written"
        log.append_record({"id": "c"})
        log.flush()
        assert not cache.exists()
        cache.write_text("{}")
        log.set_aside([line for line in read_lines(log.read_bytes()) if line.record == records[0]])
        assert not cache.exists()
    assert other.exists()


def test_stored_results_that_cannot_be_deleted_are_reported_once_and_stop_no_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data/x.cache.json").mkdir(parents=True)
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        for number in range(2):
            log.append_record({"id": str(number)})
            log.flush()
        assert len([*read_lines(log.read_bytes())]) == 2
    assert caplog.text.count("data.query_cache") == 1


def test_leaving_the_directory_flushes_what_is_open(tmp_path: Path) -> None:
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        log.append_record({"id": "c"})
    assert b'"c"' in (tmp_path / "data/x.jsonl").read_bytes()


def test_files_and_directories_are_the_owners_alone(tmp_path: Path) -> None:
    file = filled(tmp_path / "deep/org")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for directory in (file.parent, tmp_path / "deep/org", tmp_path / "deep"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_one_log_object_per_repository_while_it_is_held(tmp_path: Path) -> None:
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        assert directory.open_log("/data/x/") is log
        assert directory.repository_paths() == []
        log.append_record({"id": "c"})
        log.flush()
        (tmp_path / "settings.json").write_text("{}")
        (tmp_path / "data/Not A Repository.jsonl").write_text("")
        long = tmp_path / f"data/{'n' * 101}.jsonl"
        long.write_text("")
        assert directory.repository_paths() == ["/data/x"]
        with pytest.raises(PathError, match="at most 100 characters"):
            directory.repository_paths(is_whole=True)
        long.unlink()
        assert directory.repository_paths(is_whole=True) == ["/data/x"]


@pytest.mark.parametrize("tail", [b'\n{"id":"to', b"\n\0\0\0\0", b'{"id":"complete but not finished"}', b"\xff\xfe"])
def test_a_torn_tail_is_cut_off_and_the_next_record_is_read_back(tmp_path: Path, tail: bytes) -> None:
    file = filled(tmp_path)
    file.write_bytes(file.read_bytes() + tail)
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        assert ids(log.read_records()) == ["c0", "c1", "c2"]
        log.append_record({"id": "new"})
        log.flush()
        assert ids(log.read_records()) == ["c0", "c1", "c2", "new"]


def test_a_broken_line_in_the_middle_is_skipped_and_kept(tmp_path: Path) -> None:
    file = filled(tmp_path)
    broken = file.read_bytes().replace(b'{"id":"c1"}', b'{"id":"c1')
    file.write_bytes(broken + b"5\n")
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        assert ids(log.read_records()) == ["c0", "c2"]
        log.append_record({"id": "new"})
        log.flush()
    assert file.read_bytes().startswith(broken)
    with LogDirectory(tmp_path) as directory:
        assert ids(directory.open_log("/data/x").read_records()) == ["c0", "c2", "new"]


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_cutting_a_log_anywhere_loses_at_most_the_record_under_the_knife(
    numbers: list[int], data: st.DataObject
) -> None:
    whole = b"".join(frame_records([{"id": str(number), "n": number}]) for number in numbers)
    cut = data.draw(st.integers(0, len(whole)))
    complete = [str(number) for number in numbers][: whole[:cut].count(b"}\n")]
    with tempfile.TemporaryDirectory() as name:
        log = FileLog(Path(name) / "x.jsonl")
        log.file.write_bytes(whole[:cut])
        assert ids(log.read_records()) == complete
        log.file.write_bytes(log.file.read_bytes() + frame_records([{"id": "next"}]))
        assert ids(log.read_records()) == [*complete, "next"]


def test_a_write_that_fails_leaves_nothing_half_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        log.append_record({"id": "c0"})
        log.flush()
        before = (tmp_path / "data/x.jsonl").read_bytes()
        log.append_record({"id": "c1"})

        real_write = os.write

        def full_disk(descriptor: int, data: bytes) -> int:
            real_write(descriptor, bytes(data)[:5])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full_disk)
        with pytest.raises(StorageError, match="No space left"):
            log.flush()
        monkeypatch.undo()
        assert (tmp_path / "data/x.jsonl").read_bytes() == before
        assert log.unflushed == 1
        log.flush()
        assert ids(log.read_records()) == ["c0", "c1"]


def test_an_fsync_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/data/x")
        log.append_record({"id": "c0"})
        (tmp_path / "data").mkdir()

        def broken(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(StorageError, match="Input/output"):
            log.flush()
        monkeypatch.undo()
        assert log.unflushed == 1


def test_appends_and_flushes_from_many_threads_lose_nothing(tmp_path: Path) -> None:
    with LogDirectory(tmp_path) as directory, ThreadPoolExecutor(8) as threads:
        log = directory.open_log("/data/x")

        def work(number: int) -> None:
            log.append_record({"id": f"c{number}"})
            log.flush()

        list(threads.map(work, range(200)))
        assert log.unflushed == 0
        assert sorted(ids(log.read_records())) == sorted(f"c{number}" for number in range(200))


def test_many_logs_hold_no_descriptor(tmp_path: Path) -> None:
    with LogDirectory(tmp_path) as directory:
        logs = [directory.open_log(f"/data/r{number}") for number in range(50)]
        for log in logs:
            log.append_record({"id": "c"})
            log.flush()
        # Other tests' descriptors may come and go, so those of the directory are counted.
        opened = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
        assert [path for path in opened if tmp_path in path.parents] == [tmp_path / LOCK_NAME]


@pytest.mark.slow
def test_a_second_server_is_told_who_has_the_directory(tmp_path: Path) -> None:
    with LogDirectory(tmp_path):
        with pytest.raises(StorageError, match=f"in use by process {os.getpid()}"):
            LogDirectory(tmp_path).acquire()
        code = (
            "import sys; from pathlib import Path; from goatherd.node.log_storage import LogDirectory; "
            "LogDirectory(Path(sys.argv[1])).acquire()"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        assert f"in use by process {os.getpid()}" in done.stderr
    with LogDirectory(tmp_path):
        pass


def test_the_lock_counts_without_room_for_the_process_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with LogDirectory(tmp_path), pytest.raises(StorageError, match="in use by process unknown"):
        LogDirectory(tmp_path).acquire()


def test_a_directory_must_be_held_and_usable(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not open"):
        LogDirectory(tmp_path).open_log("/data/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        LogDirectory(tmp_path / "file").acquire()
    with LogDirectory(tmp_path) as directory:
        with pytest.raises(PathError):
            directory.open_log("/data/" + "n" * 101)
        (tmp_path / "data").mkdir()
        (tmp_path / "data/x.jsonl").mkdir()
        with pytest.raises(StorageError):
            directory.open_log("/data/x").read_records()


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(StorageError, match=f"cannot open {tmp_path / LOCK_NAME}: Is a directory"):
        LogDirectory(tmp_path).acquire()

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("goatherd.node.log_storage.open_or_create", refuse)
    with pytest.raises(StorageError, match=f"cannot open {tmp_path / LOCK_NAME}: Permission denied") as caught:
        LogDirectory(tmp_path).acquire()
    assert "chown" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_root_writes_belongs_to_the_owner_of_the_data(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12346)
    with LogDirectory(tmp_path) as directory:
        log = directory.open_log("/sys/sessions")
        log.append_record({"id": "c"})
        log.flush()
    found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in tmp_path.rglob("*")}
    names = [LOCK_NAME, "sys", "sessions.jsonl"]
    assert found == dict.fromkeys(names, (12345, 12346))


def test_a_memory_log_reads_back_what_it_was_given() -> None:
    log = MemoryLog([{"id": "a"}])
    log.append_record({"id": "b"})
    assert (ids(log.read_records()), log.unflushed) == (["a", "b"], 1)
    log.flush()
    assert log.unflushed == 0


def test_what_is_written_is_json_that_others_can_read(tmp_path: Path) -> None:
    file = filled(tmp_path)
    assert [json.loads(line)["id"] for line in file.read_text().splitlines() if line] == ["c0", "c1", "c2"]


@pytest.mark.parametrize("linked", ["data", "data/x.jsonl", "data/x.jsonl.damaged", LOCK_NAME])
def test_no_link_of_another_user_is_followed_by_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: str
) -> None:
    """An attacker with the server's user can replace files by links before root repairs the data."""
    (tmp_path / "etc").mkdir()
    for name in ("x.jsonl", "x.jsonl.damaged", "x.cache.json"):
        (tmp_path / "etc" / name).write_bytes(b"secret\n")
    (tmp_path / "etc").chmod(0o700)
    org = tmp_path / "org"
    if linked != "data":
        filled(org)
        (org / linked).unlink(missing_ok=True)
    else:
        org.mkdir()
    (org / linked).symlink_to(tmp_path / "etc" if linked == "data" else tmp_path / "etc/x.jsonl")
    if (user := os.geteuid()) == 0:
        os.lchown(org / linked, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)

    def statuses() -> dict[str, tuple[int, ...]]:
        found = {path.name: path.stat() for path in (tmp_path / "etc").iterdir()}
        return {name: (one.st_ino, one.st_size, one.st_mtime_ns, one.st_uid) for name, one in found.items()}

    before = statuses()
    with suppress(StorageError), LogDirectory(org) as directory:
        log = directory.open_log("/data/x")
        with suppress(StorageError):
            log.set_aside(read_lines(log.read_bytes()))
        with suppress(StorageError):
            log.append_record({"id": "c"})
        log.flush()
    assert statuses() == before, "nothing was written, and the owner and the mode are the same"


def test_the_directory_of_an_organization_may_be_a_link_of_the_administrator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volume").mkdir()
    org = tmp_path / "org"
    org.symlink_to(tmp_path / "volume")
    if (user := os.geteuid()) == 0:
        os.lchown(org, 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)

    with LogDirectory(org) as directory:
        unused = directory.open_unused()
        unused.append_record({"id": "a"})
        unused.flush()
        unused.rewrite_records(lambda: [{"id": "b"}])
        unused.flush()
        log = directory.open_log("/data/x")
        log.append_record({"id": "c"})
        log.flush()
        log.set_aside(list(read_lines(log.read_bytes())))
        assert (ids(unused.read_records()), ids(log.read_records())) == (["b"], [])
