"""The commands run, fetch and watch: what they reject, which files they leave, and what they pass to the server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goatherd.agent.data_directory_lock import DataDirectoryLock
from goatherd.agent.memory_directory import directory_for
from goatherd.cli.main import EXIT_CODES, EXIT_USAGE
from goatherd.errors import SettingsError
from goatherd.identity.settings_json import to_settings
from goatherd.providers.values import VersionId
from tests.unit.cli.conftest import Goatherd, Result
from tests.unit.identity.make import first

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no /dev/shm here")


@pytest.fixture
def goatherd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Goatherd:
    from tests.unit.cli import conftest

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GOATHERD_")]:
        monkeypatch.delenv(name)
    capsys: pytest.CaptureFixture[str] = request.getfixturevalue("capsys")

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = conftest.run(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def store(goatherd: Goatherd, tmp_path: Path) -> str:
    uri = f"file://{tmp_path}/keys/root"
    assert goatherd("init", "--provider", uri).code == 0
    return uri


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    return directory


def settings(data: Path, org: str = "localhost") -> Path:
    return data / org / "settings.json"


def forget(data: Path, org: str = "localhost") -> None:
    """Remove what fetch leaves in memory."""
    where = settings(data, org).readlink()
    where.unlink()
    where.parent.rmdir()


# --- fetch ----------------------------------------------------------------------------------------------------------


def test_fetch_writes_the_file_in_memory_with_a_link_and_leaves_it(goatherd: Goatherd, store: str, data: Path) -> None:
    done = goatherd("fetch", "--provider", store, "--data", str(data), "--json")
    assert done.code == 0
    (one,) = done.json["organizations"]
    assert one["file"] == str(settings(data))
    assert json.loads(settings(data).read_bytes())["currentSession"]["id"] == one["current"]
    assert settings(data).is_symlink()
    assert str(settings(data).readlink()).startswith("/dev/shm/goatherd-")
    again = goatherd("fetch", "--provider", store, "--data", str(data))
    assert again.code == 0, "a pod that starts again"
    forget(data)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="goatherd-test-") as name:
        yield Path(name)


def test_the_key_does_not_stay_where_an_earlier_fetch_has_put_it(
    goatherd: Goatherd, store: str, data: Path, elsewhere: Path
) -> None:
    words = ["fetch", "--provider", store, "--data", str(data)]
    assert goatherd(*words).code == 0
    before = settings(data).readlink()
    assert goatherd(*words, "--memory", str(elsewhere)).code == 0
    assert settings(data).readlink().is_relative_to(elsewhere)
    assert not before.parent.exists()
    before = settings(data).readlink()
    assert goatherd(*words, "--plain-file").code == 0
    assert not settings(data).is_symlink()
    assert not before.parent.exists()


def test_a_relative_memory_directory_is_found_from_the_data_directory(
    goatherd: Goatherd, store: str, data: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(elsewhere.parent)
    done = goatherd("fetch", "--provider", store, "--data", str(data), "--memory", elsewhere.name, "--json")
    assert done.code == 0, done.err
    assert json.loads(settings(data).read_bytes())["currentSession"]["id"] == done.json["organizations"][0]["current"]
    assert settings(data).readlink().is_relative_to(elsewhere)


@pytest.mark.slow
def test_the_key_does_not_stay_where_an_earlier_watch_has_put_it(
    goatherd: Goatherd, store: str, data: Path, elsewhere: Path
) -> None:
    """The server may run meanwhile, because the file's content stays the same."""
    words = ["--provider", store, "--data", str(data)]
    assert goatherd("fetch", *words).code == 0
    before, text = settings(data).readlink(), settings(data).read_bytes()
    command = [sys.executable, "-m", "goatherd", "watch", *words, "--memory", str(elsewhere), "--on-change", "ignore"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while before.parent.exists() and time.monotonic() < end:
        assert watching.poll() is None, watching.communicate()
        time.sleep(0.02)
    watching.terminate()
    watching.communicate(timeout=120)
    assert not before.parent.exists()
    assert settings(data).readlink().is_relative_to(elsewhere)
    assert settings(data).read_bytes() == text


@pytest.mark.parametrize("command", ["fetch", "watch --on-change ignore"])
def test_no_file_is_written_for_a_server_that_has_exposed_the_key_of_this_root(
    goatherd: Goatherd, store: str, data: Path, command: str
) -> None:
    root = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    with DataDirectoryLock(data) as claim:
        claim.save(exposed=[root])
        claim.clear()
    done = goatherd(*command.split(), "--provider", store, "--data", str(data), "--plain-file")
    assert done.code == EXIT_CODES["agent"]
    assert f"the private key of root {root}" in done.err
    assert not settings(data).exists()


def test_fetch_writes_a_plain_file_only_when_told_so(goatherd: Goatherd, store: str, data: Path) -> None:
    assert goatherd("fetch", "--provider", store, "--data", str(data), "--plain-file").code == 0
    assert not settings(data).is_symlink()
    assert settings(data).stat().st_mode & 0o777 == 0o600
    disk = goatherd("fetch", "--provider", store, "--data", str(data), "--memory", str(Path(__file__).parent))
    assert disk.code == EXIT_CODES["agent"]
    assert "not in memory" in disk.err
    assert "--plain-file" in disk.err


def test_fetch_writes_no_key_before_a_later_agent_can_know_of_it(
    goatherd: Goatherd, store: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SettingsError("No space left on device")

    words = ["fetch", "--provider", store, "--data", str(data), "--plain-file"]
    with monkeypatch.context() as full:
        full.setattr("goatherd.agent.data_directory_lock.replace_file", refuse)
        assert goatherd(*words).code == EXIT_CODES["settings"]
    assert not settings(data).exists()
    assert goatherd(*words).code == 0
    settings(data).write_bytes(b'{"currentSess')  # as a server that dies while it writes leaves it
    assert goatherd(*words).code == 0
    assert json.loads(settings(data).read_bytes())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_root_writes_for_a_server_belongs_to_the_owner_of_the_data(
    goatherd: Goatherd, store: str, data: Path
) -> None:
    os.chown(data, 12345, 12346)
    done = goatherd("run", "--once", "--provider", store, "--data", str(data), "--plain-file", "--create")
    assert done.code == 0
    assert settings(data) in data.rglob("*")
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in data.rglob("*")} == {(12345, 12346)}
    assert settings(data).stat().st_mode & 0o777 == 0o600
    exported = data / "localhost" / "exported.json"
    assert goatherd("export", str(exported), "--provider", store).code == 0
    assert exported.stat().st_uid == 12345


def test_each_organization_gets_its_own_identity(goatherd: Goatherd, tmp_path: Path, data: Path) -> None:
    uri = f"file://{tmp_path}/keys/{{org}}/root"
    roots = {}
    for org in ("one", "two"):
        roots[org] = goatherd("init", "--provider", uri, "--org", org, "--json").json["current"]["id"]
    words = ["fetch", "--provider", uri, "--data", str(data), "--plain-file", "--org", "one", "--org", "two"]
    assert goatherd(*words).code == 0
    for org, root in roots.items():
        assert json.loads(settings(data, org).read_bytes())["currentSession"]["id"] == root


def test_several_organizations_do_not_share_an_identity(goatherd: Goatherd, store: str, data: Path) -> None:
    result = goatherd("fetch", "--provider", store, "--data", str(data), "--org", "one", "--org", "two")
    assert result.code == EXIT_CODES["configuration"]
    assert "{org}" in result.err


def test_an_organization_cannot_lead_out_of_the_data_directory(goatherd: Goatherd, store: str, data: Path) -> None:
    for org in ("../x", "..", "a/b", ""):
        result = goatherd("fetch", "--provider", store, "--data", str(data), "--plain-file", "--org", org)
        assert result.code == EXIT_CODES["configuration"], org


def test_a_settings_json_of_another_identity_is_kept(
    goatherd: Goatherd, store: str, data: Path, tmp_path: Path
) -> None:
    other = f"file://{tmp_path}/other/root"
    goatherd("init", "--provider", other)
    assert goatherd("fetch", "--provider", other, "--data", str(data), "--plain-file").code == 0
    (data / ".goatherd-agent.json").unlink()
    (data / "localhost" / ".goatherd.seen.json").unlink()
    before = settings(data).read_bytes()
    result = goatherd("fetch", "--provider", store, "--data", str(data))
    assert not directory_for(Path("/dev/shm"), data).exists(), "nothing was written, so nothing is left in memory"
    assert result.code == EXIT_CODES["identity"]
    assert "migrate" in result.err
    assert settings(data).read_bytes() == before


def test_data_of_another_identity_get_a_settings_json_only_if_the_operator_says_so(
    goatherd: Goatherd, store: str, goatdb: Path
) -> None:
    """This happens if the operator of a GoatDB server runs `init` in place of `migrate`, and moves settings.json
    away."""
    settings(goatdb).unlink()
    words = ("--provider", store, "--data", str(goatdb))
    for line in (("fetch", *words), ("run", *words, "--", "true")):
        refused = goatherd(*line)
        assert refused.code == EXIT_CODES["identity"]
        assert "the data belong to another identity" in refused.err
        assert f"goatherd migrate {goatdb}/localhost" in refused.err
        assert not settings(goatdb).is_symlink()
    assert goatherd("fetch", *words, "--accept-identity").code == 0
    assert goatherd("fetch", *words).code == 0
    forget(goatdb)


def test_without_an_identity_in_the_store_nothing_is_written_and_none_is_invented(
    goatherd: Goatherd, tmp_path: Path, data: Path
) -> None:
    nowhere = f"file://{tmp_path}/nothing/root"
    for words in (["fetch"], ["run", "--", "true"]):
        head, *rest = words
        result = goatherd(head, "--provider", nowhere, "--data", str(data), *rest)
        assert result.code == EXIT_CODES["provider"]
        assert not os.path.lexists(settings(data))
    assert not (tmp_path / "nothing").exists()


def test_an_organization_that_is_not_named_keeps_the_server_from_being_started(
    goatherd: Goatherd, store: str, data: Path
) -> None:
    (data / "localhost/sys").mkdir(parents=True)
    (data / "localhost/sys/sessions.jsonl").touch()
    (data / "acme/sys").mkdir(parents=True)
    (data / "acme/sys/sessions.jsonl").touch()
    result = goatherd("run", "--provider", store, "--data", str(data), "--", "sh", "-c", f"touch {data}/started")
    assert result.code == EXIT_CODES["configuration"]
    assert "--org localhost --org acme" in result.err
    assert not (data / "started").exists()
    assert not os.path.lexists(settings(data))


def test_what_a_start_with_the_wrong_organization_left_does_not_keep_the_server_from_being_started(
    goatherd: Goatherd, store: str, data: Path
) -> None:
    (data / "acme").mkdir()
    (data / "acme/.goatherd.seen.json").write_text("{}")
    goatherd("run", "--provider", store, "--data", str(data), "--create", "--", "sh", "-c", f"touch {data}/started")
    assert (data / "started").exists()


def test_a_secret_that_is_not_found_names_the_organization(goatherd: Goatherd, tmp_path: Path, data: Path) -> None:
    nowhere = f"file://{tmp_path}/nothing/{{org}}/root"
    for words in (["fetch", "--data", str(data)], ["show"]):
        result = goatherd(*words, "--provider", nowhere)
        assert result.code == EXIT_CODES["provider"]
        assert "'localhost'" in result.err
        assert "--org" in result.err


def test_a_root_that_was_invented_after_a_migration_is_not_to_be_migrated(
    goatherd: Goatherd, store: str, data: Path
) -> None:
    settings(data).parent.mkdir()
    settings(data).write_bytes(to_settings(first(), ()))
    note = {"store": "vault secret goatdb/root", "current": {"id": "the-migrated-root"}}
    settings(data).with_name("settings.json.migrated").write_text(json.dumps(note))
    result = goatherd("fetch", "--provider", store, "--data", str(data))
    assert result.code == EXIT_CODES["identity"]
    assert "was migrated to vault secret goatdb/root" in result.err.replace("\n", " ")
    assert "goatherd migrate`" not in result.err
    assert settings(data).read_bytes() == to_settings(first(), ())


@pytest.mark.slow
@pytest.mark.parametrize("file", ["settings.json", "sys/sessions.jsonl"])
def test_a_server_that_makes_a_root_for_another_organization_is_stopped_at_once(
    store: str, data: Path, file: str
) -> None:
    """GoatDB writes the log first, and settings.json only when it ends or gets a client."""
    invent = 'mkdir -p "$1/sys" && cat > "$1/$2" && exec sleep 300'
    process = start(store, data, "--ready-timeout", "5m", "--", "sh", "-c", invent, "sh", str(data / "acme"), file)
    _, err = process.communicate(to_settings(first(), ()).decode(), timeout=120)
    assert process.returncode == EXIT_CODES["agent"]
    assert "--org acme" in err
    assert not os.path.lexists(settings(data))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--provider", "memory:///a/x", "--", "true"], "--data"),
        (["run", "--provider", "memory:///a/x", "--data", "d"], "COMMAND"),
        (["run", "--data", "d", "--create", "--", "true"], "no store"),
        (["run", "--provider", "memory:///a/x", "--data", "d", "--", "no-such-command-anywhere"], "was not found"),
        (["run", "--provider", "memory:///a/x", "--data", ".", "--on-change", "command", "--", "true"], "--command"),
        (
            ["run", "--provider", "memory:///a/x", "--data", "d", "--signal", "NOPE", "--", "true"],
            "is not the name of a signal",
        ),
        (
            ["run", "--provider", "memory:///a/x", "--data", "d", "--crashes", "many", "--", "true"],
            "not a whole number",
        ),
        (["run", "--provider", "memory:///a/x", "--data", "d", "--private", "--", "true"], "--door PORT"),
        (["watch", "--provider", "memory:///a/x", "--data", "d"], "--on-change"),
        (["watch", "--provider", "memory:///a/x", "--data", "d", "--on-change", "signal"], "--pid-file"),
        (["watch", "--provider", "memory:///a/x", "--data", "d", "--on-change", "restart"], "restart"),
    ],
    ids=lambda value: " ".join(value[:1]) + value[-1] if isinstance(value, list) else value,
)
def test_what_cannot_work_is_told_before_anything_starts(goatherd: Goatherd, words: list[str], told: str) -> None:
    result = goatherd(*words)
    assert result.code in (EXIT_USAGE, EXIT_CODES["configuration"], EXIT_CODES["provider"])
    assert told in result.err
    assert not list(Path("d").glob("*/settings.json"))


# --- run, as a process ----------------------------------------------------------------------------------------------


def start(store: str, data: Path, *words: str, **more: Any) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GOATHERD_")}
    command = [sys.executable, "-m", "goatherd", "run", "--provider", store, "--data", str(data), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environ, **more
    )


@pytest.mark.slow
@pytest.mark.parametrize(("end", "code"), [("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 137)])
def test_run_passes_the_exit_code_on_and_leaves_output_and_input_alone(
    store: str, data: Path, end: str, code: int
) -> None:
    script = f'read line; echo "out $line"; echo "err $line" >&2; {end}'
    process = start(store, data, "--crashes", "0", "--log-level", "error", "--", "sh", "-c", script)
    out, err = process.communicate("hello\n", timeout=120)
    assert (process.returncode, out, err) == (code, "out hello\n", "err hello\n")
    assert not os.path.lexists(settings(data))
    assert not (data / ".goatherd-agent.json").exists()


@pytest.mark.slow
def test_a_door_whose_port_is_taken_is_told_and_no_server_started(store: str, data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(store, data, "--door", str(taken.getsockname()[1]), "--", "echo", "started")
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (EXIT_CODES["node"], "")
    assert "cannot listen on 127.0.0.1:" in err
    assert not os.path.lexists(settings(data))


@pytest.mark.slow
def test_a_root_that_the_server_has_invented_is_not_lost_at_the_end(store: str, data: Path) -> None:
    """The file is the only copy of that root, which may have signed; the next agent reports it and starts no server."""
    other = to_settings(first(), ()).decode()
    process = start(store, data, "--", "sh", "-c", 'cat > "$1"', "sh", str(settings(data)))
    _, err = process.communicate(other, timeout=120)
    assert process.returncode == 0
    assert "the file was not removed" in err
    assert settings(data).read_text() == other
    again = start(store, data, "--", "true")
    _, err = again.communicate(timeout=120)
    assert again.returncode == EXIT_CODES["identity"]
    assert "holds another identity" in err
    assert settings(data).read_text() == other
    forget(data)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_run_passes_signals_on(store: str, data: Path, tmp_path: Path, number: int) -> None:
    name = signal.Signals(number).name.removeprefix("SIG")
    ready = tmp_path / "ready"
    script = f"trap 'echo got {name}; exit 5' {name}; touch {ready}; while :; do sleep 0.05; done"
    process = start(
        store,
        data,
        *("--crashes", "0", "--log-level", "error", "--", "sh", "-c", script),
        preexec_fn=lambda: signal.signal(
            number, signal.SIG_DFL
        ),  # under `nohup`, SIGHUP would be ignored from the start
    )
    wait_for(ready, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (5, f"got {name}\n")


@pytest.mark.slow
def test_a_hangup_ends_nothing_where_run_was_started_under_nohup(store: str, data: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = start(
        store,
        data,
        *("--log-level", "error", "--", "sh", "-c", f"touch {ready}; read line; echo got $line"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(ready, process)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate("hello\n", timeout=120)
    assert (process.returncode, out) == (0, "got hello\n")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_second_agent_on_the_same_data_is_refused_and_the_first_one_goes_on(
    goatherd: Goatherd, store: str, data: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    process = start(store, data, "--", "sh", "-c", f"touch {ready}; exec sleep 600")
    wait_for(ready, process)
    try:
        for words in (["fetch"], ["run", "--", "true"]):
            head, *rest = words
            result = goatherd(head, "--provider", store, "--data", str(data), *rest)
            assert result.code == EXIT_CODES["agent"]
            assert "agent.busy" in result.err
        assert settings(data).exists()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 0, "a clean stop"


@pytest.mark.slow
def test_an_identity_that_is_damaged_in_the_store_starts_no_server(store: str, data: Path, tmp_path: Path) -> None:
    import asyncio

    from goatherd.plugins import open_provider

    async def damage() -> None:
        provider, secret_id = open_provider(store)
        async with provider:
            found = await provider.read(secret_id)
            text = found.value.reveal().replace(b'"generation": 1', b'"generation": "one"')
            await provider.write(secret_id, text, expected=VersionId(found.version.id))

    asyncio.run(damage())
    started = tmp_path / "started"
    process = start(store, data, "--", "touch", str(started))
    _, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODES["identity"]
    assert "identity.malformed" in err
    assert not started.exists()
    assert not os.path.lexists(settings(data))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "code"), [((), 137), (("sh", "-c", '"$@"; exit $?', "sh"), 143)], ids=["bare", "behind a script"]
)
def test_an_agent_that_was_killed_is_taken_over_from_with_its_server_gone_and_its_files_replaced(
    store: str, data: Path, tmp_path: Path, wrapper: tuple[str, ...], code: int
) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({str(tmp_path / "pid")!r} + ".new", "w").write(str(os.getpid()))
        os.rename({str(tmp_path / "pid")!r} + ".new", {str(tmp_path / "pid")!r})
        time.sleep(600)
        """
    )
    words = ["--grace", "1s", "--log-level", "warning", "--", *wrapper, sys.executable, "-S", "-c", script]
    first = start(store, data, *words)
    wait_for(tmp_path / "pid", first)
    orphan = int((tmp_path / "pid").read_text())
    first.kill()
    first.wait(120)
    assert settings(data).exists(), "no process was left to remove it"
    (tmp_path / "pid").unlink()
    second = start(store, data, *words)
    wait_for(tmp_path / "pid", second)
    assert not Path(f"/proc/{orphan}").exists() or "Z" in Path(f"/proc/{orphan}/stat").read_text().split(")")[1][:3]
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate(timeout=120)
    first.communicate(timeout=120)  # its output ends with the last process that had it
    assert second.returncode == code
    assert "agent.leftover" in err
    assert "agent.killed" in err
    assert not os.path.lexists(settings(data))


@pytest.mark.slow
def test_the_key_of_an_agent_that_was_killed_is_cleared_also_where_the_next_one_puts_it_elsewhere(
    store: str, data: Path, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    killed = start(store, data, "--", "sh", "-c", f"touch {started}; exec sleep 600")
    wait_for(started, killed)
    where = settings(data).readlink()
    killed.kill()
    killed.communicate(timeout=120)
    assert where.exists(), "no process was left to remove it"
    where.with_name("another-organization.json").touch()
    script = 'test ! -e "$1" && test -f "$2" && test ! -L "$2"'
    following = start(store, data, "--plain-file", "--", "sh", "-c", script, "sh", str(where), str(settings(data)))
    _, err = following.communicate(timeout=120)
    assert following.returncode == 0, err
    assert not where.parent.exists()
    assert not os.path.lexists(settings(data))


@pytest.mark.slow
def test_a_root_that_the_server_has_invented_is_not_lost_when_its_agent_was_killed(
    store: str, data: Path, tmp_path: Path
) -> None:
    started, other = tmp_path / "started", to_settings(first(), ()).decode()
    (tmp_path / "other").write_text(other)
    script = f'cat {tmp_path / "other"} > "$1"; touch {started}; exec sleep 600'
    killed = start(store, data, "--", "sh", "-c", script, "sh", str(settings(data)))
    wait_for(started, killed)
    killed.kill()
    killed.communicate(timeout=120)
    for provider, family in ((f"file://{tmp_path}/nowhere/root", "provider"), (store, "identity"), (store, "identity")):
        following = start(provider, data, "--", "true")
        _, err = following.communicate(timeout=120)
        assert following.returncode == EXIT_CODES[family], err
        assert settings(data).read_text() == other
    assert "created that root" in err
    forget(data)


# --- lease ----------------------------------------------------------------------------------------------------------


def test_the_lease_can_be_made_beforehand_and_looked_at(goatherd: Goatherd, store: str) -> None:
    assert goatherd("lease", "--provider", store).code == EXIT_CODES["provider"]
    assert goatherd("lease", "--provider", store, "--make", "--json").json == {
        "lease": "root-lease",
        "made": True,
        "holder": None,
        "until": None,
    }
    assert goatherd("lease", "--provider", store).out == "root-lease is free\n"
    assert goatherd("lease", "--provider", store, "--lease", "none").code == EXIT_CODES["configuration"]
