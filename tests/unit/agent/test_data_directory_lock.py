"""The lock that allows one agent for each data directory, and what a killed agent leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from goatherd.agent.data_directory_lock import LOCK_NAME, RECORD_NAME, AgentState, DataDirectoryLock, Process
from goatherd.errors import AgentBusyError, AgentError, SettingsError


def test_a_second_agent_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with DataDirectoryLock(tmp_path), pytest.raises(AgentBusyError), DataDirectoryLock(tmp_path):
        pass
    with DataDirectoryLock(tmp_path):
        pass


def test_what_is_noted_is_there_for_the_next_one_and_a_clean_end_leaves_nothing(tmp_path: Path) -> None:
    child = Process(pid=7, started="boot 9", session=5)
    with DataDirectoryLock(tmp_path) as claim:
        assert claim.before == AgentState()
        claim.save(orgs=["a", "b"], memory=Path("/run/x"))
        claim.save(child=child)
    with DataDirectoryLock(tmp_path) as claim:
        assert claim.before == AgentState(
            orgs=frozenset({"a", "b"}), memory=Path("/run/x"), child=child, token=claim.token
        ), "it has the last one's token, and with it its lease"
        assert claim.before.child is not None
        assert claim.before.child.session == 5
        claim.clear()
        claim.clear()
    with DataDirectoryLock(tmp_path) as claim:
        assert claim.before == AgentState()
    assert (tmp_path / LOCK_NAME).stat().st_mode & 0o777 == 0o600


def test_an_agent_after_a_killed_one_writes_nothing_that_is_stored_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Process(pid=7, started="boot 9", session=5)
    with DataDirectoryLock(tmp_path) as claim:
        claim.save(orgs=["a"], memory=Path("/run/x"))
        claim.save(child=child)

    def refuse(*_: object) -> None:
        raise SettingsError("the disk is full")

    monkeypatch.setattr("goatherd.agent.data_directory_lock.replace_file", refuse)
    with DataDirectoryLock(tmp_path) as claim:
        claim.save(memory=Path("/run/x"))
        claim.save(orgs=["a"])
        with pytest.raises(SettingsError):
            claim.save(child=Process(pid=8, started="boot 10"))
    with DataDirectoryLock(tmp_path) as claim:
        assert claim.before.child == child, "the next agent stops what may be left of it"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"orgs": 3}',
        '{"orgs": [1]}',
        '{"child": {"pid": "x"}}',
        '{"child": {"pid": 1e999, "started": "x"}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_record_is_an_error_and_not_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(AgentError, match="cannot be read"), DataDirectoryLock(tmp_path):
        pass


def test_a_pipe_in_place_of_the_record_does_not_keep_the_agent_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORD_NAME)
    with pytest.raises(AgentError, match=r"cannot be read: .*it is not a regular file"), DataDirectoryLock(tmp_path):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(AgentError, match=f"cannot open {tmp_path / LOCK_NAME}"), DataDirectoryLock(tmp_path):
        pass


def test_a_lock_of_another_user_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("goatherd.agent.data_directory_lock.lock_file", refuse)
    with pytest.raises(AgentError, match=f"cannot open {tmp_path / LOCK_NAME}: Permission denied") as caught:
        DataDirectoryLock(tmp_path).__enter__()
    assert "chown" in caught.value.hint


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_a_process_is_told_from_a_later_one_with_the_same_number() -> None:
    me = Process.find_process(os.getpid())
    assert me is not None
    assert me.is_running()
    assert not Process(pid=me.pid, started="another boot 1").is_running()
    assert not Process(pid=me.pid, started="").is_running()


def test_a_process_that_has_ended_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    known = Process.find_process(child.pid)
    child.communicate()
    assert known is None or not known.is_running()
