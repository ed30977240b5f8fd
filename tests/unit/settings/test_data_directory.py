"""The checks of a data directory before a start: files of a newer GoatDB, and paths that the operator did not mean."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from goatherd.errors import ConfigurationError, NewerFormatError, StorageError
from goatherd.settings import data_directory
from goatherd.settings.data_directory import (
    SEEN_NAME,
    check_data_directory,
    check_logs_whole,
    check_understood,
    organization_directories,
    prepare_logs,
    refuse_running,
)

# A key pair in GoatDB's next form, from RFC 8037 (appendix A.1).
PUBLIC = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
# One record as the next GoatDB frames it: its length, then G and the version.
RECORD = bytes.fromhex("000000b34701c100 0004c00d42777942") + bytes(171)


def newer_settings() -> dict[str, Any]:
    session = {"id": "root", "publicKey": PUBLIC, "owner": "root", "expiration": 4_000_000_000}
    return {"currentSession": session, "roots": [session], "trustedSessions": []}


def newer_session() -> bytes:
    data = {"id": "someone", "publicKey": json.dumps(PUBLIC), "expiration": 4_000_000_000}
    return json.dumps({"id": "c1", "k": "someone", "c": {"r": {"s": "sessions/1", "d": data}}}).encode()


@pytest.fixture
def org(tmp_path: Path) -> Path:
    """The directory of an organization, with an ordinary log."""
    directory = tmp_path / "data" / "localhost"
    (directory / "sys").mkdir(parents=True)
    (directory / "sys" / "sessions.jsonl").write_bytes(b'\n{"id":"c1"}\n')
    return directory


def test_a_directory_of_the_supported_version_is_understood(org: Path) -> None:
    (org / "sys" / "users.jsonl").write_bytes(b"")
    (org / "sys" / "users.jsonl.damaged").write_bytes(RECORD)
    (org / "data").mkdir()
    (org / "data" / "notes.jsonl").write_bytes(b"\x00\xff damaged in its first line\n")
    (org / "data" / "notes.cache.json").write_bytes(b"{}")
    (org / "settings.json").write_text('{"currentSession": {"publicKey": {"kty": "EC"}}')
    check_understood(org)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data/notes.goat", RECORD),
        ("data/notes.goat", b""),
        ("data/notes.jsonl", RECORD),
        ("data/notes.0", b"TAOG" + bytes(60)),
        ("data/notes/0.goat", RECORD),
        ("settings.json", json.dumps(newer_settings()).encode()),
        ("sys/sessions.jsonl", b'\n{"id":"c1"}\n\n' + newer_session() + b"\n"),
    ],
    ids=["binary log", "empty binary log", "binary log by another name", "shard", "below", "key", "session"],
)
def test_what_a_newer_goatdb_wrote_is_an_error_that_names_the_file(org: Path, name: str, content: bytes) -> None:
    path = org / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content)
    with pytest.raises(NewerFormatError, match=r"newer GoatDB.* GoatDB 0\.5\.1") as caught:
        check_understood(org)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [newer_session().replace(rb"\"OKP\"", rb"\u0022OKP\u0022"), newer_session().replace(b",", b",\r", 1)],
    ids=["escaped quotation marks", "a carriage return between members"],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_newer_session_is_found_however_its_json_is_written_and_wherever_it_lies(
    org: Path, line: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_directory, "_PART_BYTES", size)
    assert line != newer_session()
    before = b'\n{"id":"c1"}\n\n'
    (org / "sys" / "sessions.jsonl").write_bytes(before + line + b"\n")
    with pytest.raises(NewerFormatError, match=f"at byte {len(before)},"):
        check_understood(org)


def test_a_log_is_read_again_only_if_it_was_changed(org: Path) -> None:
    log, before = org / "sys" / "sessions.jsonl", data_directory._check_sessions.cache_info()
    for _ in range(3):
        check_understood(org)
    assert data_directory._check_sessions.cache_info().misses == before.misses + 1
    log.write_bytes(newer_session() + b"\n")
    for _ in range(2):
        with pytest.raises(NewerFormatError):
            check_understood(org)


def test_a_text_that_only_mentions_the_newer_key_type_is_no_newer_session(org: Path) -> None:
    (org / "sys" / "sessions.jsonl").write_bytes(b'\n{"id":"c1","c":{"r":{"d":{"owner":"OKP"}}}}\n\nOKP\n')
    check_understood(org)


@pytest.mark.parametrize("depth", [201, 1_100])
def test_a_line_that_is_nested_too_deeply_for_us_keeps_no_server_from_its_start(org: Path, depth: int) -> None:
    """Any client of an unmodified server can have such a line written, and GoatDB reads it."""
    log = org / "data" / "notes.jsonl"
    log.parent.mkdir(exist_ok=True)
    deep = b'{"id":"b","c":' + b"[" * depth + b"]" * depth + b"}"
    half_a_character = b'{"id":"c","t":"\\ud83d"}'
    log.write_bytes(b"\n".join([deep, half_a_character, b'{"id":"d"}', b""]))
    check_logs_whole(org)
    log.write_bytes(b"\n".join([deep, b"?", b'{"id":"d"}', b""]))
    with pytest.raises(StorageError, match="is not JSON, and 1 good records follow"):
        check_logs_whole(org)


@pytest.mark.parametrize(
    ("torn", "rest"),
    [
        (b'\n{"id":"c', b"\n"),
        (b'\n{"id":"c3"}', b"\n"),
        (b"\0" * 4096, b""),
        (b'\n{"id":"c\n', b"\n"),
    ],
    ids=["half a record", "a record without its newline", "zeros", "half a record and a newline"],
)
def test_what_a_crash_left_at_the_end_of_a_log_is_cut_off_before_a_goatdb_server_starts(
    org: Path, caplog: pytest.LogCaptureFixture, torn: bytes, rest: bytes
) -> None:
    """GoatDB would cut off one more byte for each record before it."""
    log, whole = org / "data" / "notes.jsonl", b'\n{"id":"c1"}\n\n{"id":"c2"}\n'
    log.parent.mkdir()
    log.write_bytes(whole + torn)
    before = (org / "sys" / "sessions.jsonl").stat()
    caplog.set_level(logging.INFO)
    prepare_logs(org)
    assert log.read_bytes() == whole + rest
    assert f"data.torn file={log} bytes={len(torn) - len(rest)}" in caplog.text
    prepare_logs(org)
    assert caplog.text.count("data.torn") == 1
    assert (org / "sys" / "sessions.jsonl").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("linked", ["a log", "its directory"])
def test_the_agent_cuts_off_no_file_to_which_another_user_has_made_a_link(
    org: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: str
) -> None:
    """An attacker with the server's user can replace files by links before an agent that runs as root starts."""
    (tmp_path / "etc").mkdir()
    (target := tmp_path / "etc" / "notes.jsonl").write_bytes(b"root:x:0:0\n")
    (link := org / "data" / "notes.jsonl" if linked == "a log" else org / "data").parent.mkdir(exist_ok=True)
    link.symlink_to(target if linked == "a log" else target.parent)
    if (user := os.geteuid()) == 0:
        os.lchown(link, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(StorageError, match="a link that another user has made"):
        prepare_logs(org)
    assert target.read_bytes() == b"root:x:0:0\n"
    monkeypatch.undo()
    os.lchown(link, user, -1)
    prepare_logs(org)
    assert target.read_bytes() == b""


def test_root_works_in_no_directory_to_which_another_user_has_made_a_link(
    org: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (link := tmp_path / "linked").symlink_to(org)
    if os.geteuid() == 0:
        check_understood(link)
        os.lchown(link, 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StorageError, match="is a link that another user has made"):
        check_understood(link)
    check_understood(org)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    check_understood(link)


def test_no_log_is_cut_while_good_records_follow_the_damage_in_one_of_them(org: Path) -> None:
    log, torn = org / "data" / "notes.jsonl", org / "data" / "a.jsonl"
    log.parent.mkdir()
    log.write_bytes(b'{"id":"c\n{"id":"c2"}\n')
    torn.write_bytes(b'{"id":"c')
    with pytest.raises(StorageError, match="1 good records follow"):
        prepare_logs(org)
    assert (log.read_bytes(), torn.read_bytes()) == (b'{"id":"c\n{"id":"c2"}\n', b'{"id":"c')


def test_an_organization_is_recognized_by_what_is_in_its_directory(org: Path) -> None:
    data = org.parent
    (data / "empty").mkdir()
    (data / "files").mkdir()
    (data / "files" / "notes.txt").touch()
    (data / "linked").mkdir()
    (data / "linked" / "settings.json").symlink_to("/nowhere/settings.json")
    assert [path.name for path in organization_directories(data)] == ["linked", "localhost"]


def test_a_missing_data_directory_is_an_error_unless_it_is_to_be_created(tmp_path: Path) -> None:
    missing = tmp_path / "dta"
    with pytest.raises(ConfigurationError, match="does not exist") as caught:
        check_data_directory(missing, ["localhost"], create=False)
    assert "--create" in caught.value.hint
    check_data_directory(missing, ["localhost"], create=True)
    assert not missing.exists()


def test_an_empty_directory_is_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".goatherd-agent.lock").touch()
    check_data_directory(tmp_path, ["localhost"], create=False)
    (tmp_path / "localhost").mkdir()
    check_data_directory(tmp_path, ["localhost"], create=False)


def test_a_directory_with_the_organization_is_a_data_directory(org: Path) -> None:
    check_data_directory(org.parent, ["localhost"], create=False)


def test_an_organization_that_the_data_directory_lacks_is_an_error_that_names_those_that_it_has(org: Path) -> None:
    with pytest.raises(ConfigurationError, match="'acme'; it holds the organizations localhost"):
        check_data_directory(org.parent, ["localhost", "acme"], create=False)
    check_data_directory(org.parent, ["localhost", "acme"], create=True)
    (org.parent / "acme").mkdir()
    check_data_directory(org.parent, ["localhost", "acme"], create=False)


def test_a_directory_with_other_files_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigurationError, match="it holds other files"):
        check_data_directory(tmp_path, ["localhost"], create=False)
    (tmp_path / "localhost").mkdir()
    (tmp_path / "localhost" / "index.html").touch()
    with pytest.raises(ConfigurationError, match="contains files, but no GoatDB data"):
        check_data_directory(tmp_path, ["localhost"], create=False)


def test_the_directory_of_one_organization_is_told_from_the_one_that_contains_it(org: Path) -> None:
    for create in (True, False):
        with pytest.raises(ConfigurationError, match="directory of one organization") as caught:
            check_data_directory(org, ["localhost"], create=create)
        assert f"--data {org.parent} --org localhost" in caught.value.hint


@pytest.mark.parametrize("name", [".goatherd.lock", SEEN_NAME, ".goatherd.unused-sessions"])
def test_the_directory_of_an_organization_without_a_log_is_told_by_the_files_of_its_server(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "localhost").mkdir()
    (tmp_path / "localhost" / name).touch()
    for create in (True, False):
        with pytest.raises(ConfigurationError, match="directory of one organization") as caught:
            check_data_directory(tmp_path / "localhost", ["localhost"], create=create)
        assert f"--data {tmp_path} --org localhost" in caught.value.hint
        check_data_directory(tmp_path, ["localhost"], create=create)


def test_the_parent_of_the_current_directory_is_named(org: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(org)
    with pytest.raises(ConfigurationError) as caught:
        check_data_directory(Path(), ["localhost"], create=False)
    assert f"--data {org.parent} --org localhost" in caught.value.hint


def test_a_process_that_only_reads_is_no_server(org: Path) -> None:
    script = "import sys; file = open(sys.argv[1], 'rb'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", script, str(org / "sys/sessions.jsonl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as backup:
        assert backup.stdout is not None
        backup.stdout.readline()
        refuse_running(org)
        backup.communicate()


def test_a_process_that_has_another_path_for_a_file_is_a_server_all_the_same(org: Path, tmp_path: Path) -> None:
    """A container that has the directory as a volume sees it at another path; here a link stands in for the volume."""
    log = org / "sys/sessions.jsonl"
    inside = tmp_path / "inside" / log.name
    inside.parent.mkdir()
    inside.hardlink_to(log)
    script = "import sys; file = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", script, str(inside)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with pytest.raises(StorageError, match=f"process {server.pid} holds {log} open"):
            refuse_running(org)
        server.communicate()
    refuse_running(org)


@pytest.mark.parametrize("is_elsewhere", [True, False])
def test_the_same_path_in_another_container_is_another_file(
    org: Path, monkeypatch: pytest.MonkeyPatch, is_elsewhere: bool
) -> None:
    entry = (org / "no such entry", str(org / "sys/sessions.jsonl"))
    is_there = os.getppid()
    monkeypatch.setattr(data_directory, "_list_written", lambda at: [entry] if at.name == str(is_there) else [])
    monkeypatch.setattr(
        data_directory, "_find_mounts", lambda at: at.name if is_elsewhere and at.name == str(is_there) else "ours"
    )
    with nullcontext() if is_elsewhere else pytest.raises(StorageError, match=f"process {is_there} holds"):
        refuse_running(org)


def test_a_directory_that_may_not_be_read_is_an_error_and_is_not_taken_for_an_empty_one(
    org: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (org / "data").mkdir()
    (org / "data" / "notes.jsonl").write_bytes(b"")
    deny(monkeypatch, org / "data")
    with pytest.raises(StorageError, match=f"{org}/data cannot be read: Permission denied"):
        check_understood(org)


def test_the_lost_and_found_of_a_volume_keeps_no_server_from_its_start(
    org: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (org / "lost+found").mkdir()
    deny(monkeypatch, org / "lost+found")
    check_understood(org)


def deny(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let every attempt to list a directory fail, as for a user without the right; the tests may run as root."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == directory:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
