"""The steps before an agent runs: which data directory it may use, and which credentials its server gets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.agent import Rules, Supervisor
from goatherd.errors import AgentError, ConfigurationError, StorageError
from goatherd.operations.run_agent import ServerFiles, fetch_settings, hide_credentials, run_agent, signal_notifier
from tests.deadlines import HANG


def files_in(data: Path, *orgs: str, creates: bool = False) -> ServerFiles:
    return ServerFiles(data=data, orgs=orgs, memory=None, creates=creates)


async def test_an_organization_that_is_not_named_stops_the_agent_before_anything_is_written(tmp_path: Path) -> None:
    for org in ("a", "b"):
        (tmp_path / org).mkdir()
        (tmp_path / org / "settings.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match="b"):
        await run_agent(
            files_in(tmp_path, "a"),
            [],
            supervisor=None,
            lease_secret=None,
            rules=Rules(),
            grace=timedelta(seconds=1),
        )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files can be seen in /proc only")
async def test_a_server_that_runs_already_stops_the_agent_before_it_starts_another_one(tmp_path: Path) -> None:
    log = tmp_path / "localhost/sys/sessions.jsonl"
    log.parent.mkdir(parents=True)
    script = "import sys; file = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", script, str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # noqa: ASYNC220
        assert server.stdout is not None
        server.stdout.readline()
        with pytest.raises(StorageError, match=f"process {server.pid} holds"):
            await run_agent(
                files_in(tmp_path, "localhost"),
                [],
                supervisor=Supervisor(["true"], environ={}),
                lease_secret=None,
                rules=Rules(),
                grace=timedelta(seconds=1),
            )
        server.communicate()


async def test_a_missing_data_directory_is_created_only_where_that_is_asked_for(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with pytest.raises(ConfigurationError, match="does not exist"):
        await fetch_settings(files_in(data, "localhost"), [])
    assert not data.exists()
    assert await fetch_settings(files_in(data, "localhost", creates=True), []) == []
    assert data.is_dir()


def test_what_opens_the_store_and_the_sealed_copy_is_not_in_the_servers_environment() -> None:
    environ = {"VAULT_TOKEN": "t", "SEAL": "s", "PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "of another program"}
    hidden = hide_credentials(environ, stores=["vault:///secret/x"], sealing_key="env:SEAL", passed=())
    assert set(hidden) == {"PATH", "AWS_SECRET_ACCESS_KEY"}
    passed = hide_credentials(environ, stores=["vault:///secret/x"], sealing_key="file:/k", passed=("VAULT_TOKEN",))
    assert set(passed) == set(environ)


def test_a_signal_without_a_process_to_send_it_to_is_rejected_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match="process id"):
        signal_notifier(15, supervisor=None, pid_file=None)


async def test_a_pid_file_without_a_running_process_is_named(tmp_path: Path) -> None:
    notify = signal_notifier(15, supervisor=None, pid_file=tmp_path / "pid")
    with pytest.raises(AgentError, match="pid") as caught:
        await notify()
    assert "--pid-file" in caught.value.hint
    for ended in ("4194305", "9" * 30):
        (tmp_path / "pid").write_text(ended)
        with pytest.raises(AgentError, match="cannot signal the server") as caught:
            await notify()
        assert "may not" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
async def test_a_pid_file_names_no_process_that_its_owner_may_not_signal(tmp_path: Path) -> None:
    other = 65_534
    with ExitStack() as stack:
        ours = stack.enter_context(subprocess.Popen(["sleep", "600"]))  # noqa: ASYNC220
        theirs = stack.enter_context(subprocess.Popen(["sleep", "600"], user=other))  # noqa: ASYNC220
        stack.callback(theirs.kill)
        stack.callback(ours.kill)
        pid_file = tmp_path / "pid"
        notify = signal_notifier(signal.SIGTERM, supervisor=None, pid_file=pid_file)
        pid_file.write_text(str(ours.pid))
        os.chown(pid_file, other, -1)
        with pytest.raises(AgentError, match=f"no process {ours.pid} that the file's owner may"):
            await notify()
        pid_file.write_text(str(theirs.pid))
        await notify()
        assert await asyncio.to_thread(theirs.wait, HANG) == -signal.SIGTERM
        (tmp_path / "link").symlink_to(pid_file)
        pid_file.write_text(str(ours.pid))
        os.chown(pid_file, 0, -1)
        os.chown(tmp_path / "link", other, -1, follow_symlinks=False)
        with pytest.raises(AgentError):
            await signal_notifier(signal.SIGTERM, supervisor=None, pid_file=tmp_path / "link")()
        assert ours.poll() is None
        await notify()
        assert await asyncio.to_thread(ours.wait, HANG) == -signal.SIGTERM
