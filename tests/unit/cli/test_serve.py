"""serve and demo: start, the ready line, a graceful stop, and errors at the start."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from goatherd.cli.main import EXIT_CODES, EXIT_FINDINGS, EXIT_TERMINATED
from goatherd.cluster.client import NodeClient
from goatherd.errors import NodeError
from goatherd.operations.serve import NODE_LIBRARIES
from goatherd.serving.sockets import bind
from goatherd.telemetry import Event
from tests.deadlines import ANSWER, HANG
from tests.ports import free_ports

from .conftest import Goatherd, Serving
from .test_migrate import NAMED, settle

Serve = Callable[..., Serving]


def test_without_the_extra_node_the_install_command_is_told(
    goatherd: Goatherd, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in NODE_LIBRARIES else real(name))
    for name in ("serve", "demo"):
        result = goatherd(name, "--json")
        assert result.code == EXIT_CODES["plugin"]
        assert result.json["error"]["code"] == "plugin.missing_extra"
        assert "pip install 'goatherd[node]'" in result.json["error"]["hint"]


@pytest.mark.slow
def test_a_demo_that_gets_sigterm_leaves_no_server_and_no_directory(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "goatherd", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        while not process.stderr.readline().lstrip().startswith("load"):
            assert process.poll() is None
        process.terminate()  # as `timeout` does
        assert process.wait(HANG) == EXIT_TERMINATED
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_data_directory_must_be_named(goatherd: Goatherd, store: str) -> None:
    assert "--data" in goatherd("serve", "--provider", store).err


def test_a_server_does_not_start_without_an_identity_and_invents_none(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    result = goatherd("serve", "--provider", store, "--data", str(tmp_path / "data"), "--create", "--port", "0")
    assert result.code == EXIT_CODES["provider"]
    assert not (tmp_path / "keys").exists()


def test_a_settings_json_that_is_missing_or_broken_is_an_error(goatherd: Goatherd, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    start = ("serve", "--settings", str(file), "--data", str(tmp_path / "data"), "--create", "--port", "0")
    assert goatherd(*start).code == EXIT_CODES["settings"]
    file.write_text("{")
    assert goatherd(*start).code == EXIT_CODES["identity"]
    assert file.read_text() == "{"


def test_a_store_and_a_settings_json_exclude_one_another(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    result = goatherd(
        "serve", "--settings", "x.json", "--provider", store, "--data", str(tmp_path / "data"), "--create"
    )
    assert result.code == EXIT_CODES["configuration"]


def test_a_port_that_is_taken_is_told(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = goatherd("serve", "--provider", store, "--data", str(tmp_path / "data"), "--create", "--port", port)
    assert result.code == EXIT_CODES["node"]
    assert "0 selects a free port" in result.err


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files can be seen in /proc only")
def test_a_goatdb_server_that_runs_on_the_data_is_told(goatherd: Goatherd, store: str, goatdb: Path) -> None:
    assert goatherd("migrate", str(goatdb), "--provider", store).code == 0
    log = goatdb / "localhost/sys/sessions.jsonl"
    before = log.read_bytes()
    script = "import sys; file = open(sys.argv[1], 'r+b'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", script, str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with socket.create_server(("127.0.0.1", 0)) as taken:  # so that it ends, in any case
            port = str(taken.getsockname()[1])
            result = goatherd("serve", "--provider", store, "--data", str(goatdb), "--port", port)
        server.communicate()
    assert f"process {server.pid} holds {log} open" in result.err
    assert result.code == EXIT_CODES["node"]
    assert log.read_bytes() == before


def events_of(server: Serving) -> list[str]:
    """Return the names of the events that a server has logged, in order."""
    return re.findall(r"(?:INFO|WARNING|ERROR) goatherd\S*: (\S+)", server.stderr.read_text())


@pytest.mark.slow
def test_by_default_the_log_has_one_line_for_a_new_root_a_lost_and_a_found_peer(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path
) -> None:
    made = goatherd("init", "--provider", store, "--json").json
    (port,) = free_ports(1)
    peer = f"http://127.0.0.1:{port}"
    args = ("--provider", store, "--refresh-interval", "200ms")
    server = serve(*args, "--data", str(tmp_path / "one"), "--peer", peer)
    await_event(server, "node.peer_lost")
    other = serve(*args, "--data", str(tmp_path / "two"), "--port", str(port))
    await_event(server, "node.peer_found")
    assert goatherd("rotate", "--node", server.url, "--node", other.url, "--provider", store).code == 0
    await_event(server, "node.signer")
    assert server.stop() == other.stop() == 0
    events = events_of(server)
    for event in ("node.started", "node.signer", "node.peer_found", "node.stopped"):
        assert events.count(event) == 1, event
    assert f"before={made['current']['id']}" in server.stderr.read_text()


@pytest.mark.slow
def test_a_peer_that_trusts_the_root_must_be_listed_for_a_rotation(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path, apart: None
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    other = serve("--provider", store, "--data", str(tmp_path / "two"))
    server = serve("--provider", store, "--data", str(tmp_path / "one"), "--peer", other.url)
    cluster = ("--provider", store, "--node", server.url)
    text = f"{other.url}, a peer of {server.url}, trusts the same root and is not listed"
    until = time.monotonic() + HANG
    while text not in goatherd("status", *cluster).out:
        assert time.monotonic() < until, "the server has not reached its peer"
    refused = goatherd("rotate", *cluster)
    assert refused.code == EXIT_CODES["rotation"]
    assert text in refused.err
    assert f"--node {other.url}" in refused.err
    assert text in goatherd("doctor", *cluster).out
    assert goatherd("rotate", *cluster, "--node", other.url).code == 0
    assert text in goatherd("restore", *cluster).err
    # Servers that are not listed get time to read the store.
    assert goatherd("rotate", *cluster, "--unlisted", "1s").code == 0


def await_event(server: Serving, event: str) -> None:
    """Wait until a server has logged an event; the deadline only catches a hang."""
    until = time.monotonic() + 60
    while event not in events_of(server):
        assert time.monotonic() < until, server.stderr.read_text()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_says_that_it_is_ready_keeps_what_it_took_and_ends_gracefully(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path, number: int
) -> None:
    start = ("--provider", store, "--data", str(tmp_path / "data"))
    from asyncio import to_thread

    made = await to_thread(goatherd, "init", "--provider", store, "--json")
    server = await to_thread(serve, *start)
    assert server.ready == {
        "ready": True,
        "url": server.url,
        "org": "localhost",
        "signer": made.json["current"]["id"],
    }
    async with NodeClient(server.url, timeout=ANSWER) as client:
        owned, _ = await client.create_session()
    assert await to_thread(server.stop, number) == 0
    events = events_of(server)
    assert [event for event in events if event.startswith("node.")] == ["node.started", "node.stopped"]
    assert set(events) <= {"settings.loaded", "data.checked", "node.started", "node.stopped"}, "no line for a request"
    again = await to_thread(serve, *start)
    async with NodeClient(again.url, timeout=ANSWER) as client:
        assert await client.answers(owned), "a session that it gave out before its end is known after a restart"
    assert await to_thread(again.stop) == 0


@pytest.mark.slow
def test_a_second_server_on_the_same_data_is_refused(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    data = str(tmp_path / "data")
    server = serve("--provider", store, "--data", data)
    result = goatherd("serve", "--provider", store, "--data", data, "--port", "0")
    assert result.code == EXIT_CODES["node"]
    assert str(server.process.pid) in result.err
    assert server.stop() == 0


@pytest.mark.slow
def test_a_server_starts_from_a_settings_json_too(goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path) -> None:
    made: Any = goatherd("init", "--provider", store, "--json").json
    file = tmp_path / "settings.json"
    goatherd("export", str(file), "--provider", store)
    server = serve("--settings", str(file), "--data", str(tmp_path / "data"))
    assert server.ready["signer"] == made["current"]["id"]
    assert server.stop() == 0


def last_known_good(tmp_path: Path) -> None:
    """Write a goatherd.toml with a sealed copy, and its key."""
    (tmp_path / "seal").write_text(secrets.token_hex(32))
    (tmp_path / "seal").chmod(0o600)
    (tmp_path / "goatherd.toml").write_text(
        f'''[settings]
        refresh_interval = "30d"
        last_known_good = "{tmp_path}/copies/{{org}}.sealed"
        last_known_good_key = "file:{tmp_path}/seal"
        '''
    )


@pytest.mark.slow
def test_a_private_key_on_the_disk_of_a_server_with_a_store_is_reported_until_it_is_removed(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path, apart: None
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    arguments = ("--data", str(tmp_path / "data"), "--provider", store)
    running, settings = serve(*arguments), tmp_path / "data/localhost/settings.json"
    export = ("export", str(settings), "--provider", store)
    refused = goatherd(*export)
    assert "open; nothing was changed" in refused.err, "a directory in use"
    assert not settings.exists()
    running.stop()
    assert goatherd(*export).code == 0

    running = serve(*arguments)
    (line,) = [line for line in running.stderr.read_text().splitlines() if Event.NODE_KEY_ON_DISK.value in line]
    assert f"goatherd migrate {settings.parent} --remove-key" in line
    cluster = ("--provider", store, "--node", running.url)
    assert goatherd("status", *cluster, "--json").json["nodes"][0]["keyOnDisk"] is True
    assert "holds a private key in settings.json" in goatherd("status", *cluster).out
    checks = goatherd("doctor", *cluster, "--json").json["checks"]
    (check,) = [one for one in checks if one["name"] == "key on disk"]
    assert (check["level"], "--remove-key" in check["hint"]) == ("warn", True)

    running.stop()
    assert goatherd("migrate", str(settings.parent), "--provider", store, "--remove-key").code == 0
    running = serve(*arguments)
    assert Event.NODE_KEY_ON_DISK.value not in running.stderr.read_text()
    cluster = ("--provider", store, "--node", running.url)
    assert goatherd("status", *cluster, "--json").json["nodes"][0]["keyOnDisk"] is False


@pytest.mark.slow
def test_a_server_starts_from_its_last_known_good_identity_while_the_store_cannot_be_read(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path
) -> None:
    made: Any = goatherd("init", "--provider", store, "--json").json
    start = ("--provider", store, "--data", str(tmp_path / "data"))
    last_known_good(tmp_path)
    assert serve(*start).stop() == 0
    assert (tmp_path / "copies/localhost.sealed").exists()
    kept = tmp_path / "keys" / "root" / "secret.json"
    whole = kept.read_bytes()
    kept.write_bytes(b"damaged")
    server = serve(*start)
    assert server.ready["signer"] == made["current"]["id"]
    assert "settings.last_known_good" in server.stderr.read_text()
    kept.write_bytes(whole)
    shown = goatherd("status", "--provider", store, "--node", server.url)
    assert "cannot reach the store, and uses its last known good identity" in shown.out
    (node,) = goatherd("status", "--provider", store, "--node", server.url, "--json").json["nodes"]
    assert (node["source"], node["degraded"], node["problem"]) == ("last known good", True, None)
    checks = goatherd("doctor", "--provider", store, "--node", server.url, "--json").json["checks"]
    assert any(check["level"] == "warn" and "last known good" in check["text"] for check in checks)
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('last_known_good = "/x/copy"', "settings.last_known_good_key is missing"),
        ('last_known_good_key = "env:KEY"', "settings.last_known_good is missing"),
        ('last_known_good = "/x/{org}"\nlast_known_good_key = "hunter2"', "must be file:/PATH"),
        ('last_known_good = "/x/copy"\nlast_known_good_key = "env:KEY"', "must contain {org}"),
    ],
)
def test_half_a_last_known_good_identity_is_refused_at_the_start(
    goatherd: Goatherd, tmp_path: Path, line: str, told: str
) -> None:
    (tmp_path / "goatherd.toml").write_text(f"[settings]\n{line}\n")
    store = f"file://{tmp_path}/keys/{{org}}/root"
    result = goatherd("serve", "--provider", store, "--data", str(tmp_path / "data"), "--create", "--port", "0")
    assert result.code == EXIT_CODES["configuration"]
    assert told in result.err
    assert "hunter2" not in result.err


@pytest.mark.slow
def test_a_restarted_server_does_not_follow_a_store_to_a_stranger_unless_told(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path
) -> None:
    start = ("--provider", store, "--data", str(tmp_path / "data"))
    goatherd("init", "--provider", store)
    assert serve(*start).stop() == 0
    shutil.rmtree(tmp_path / "keys")
    stranger = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    refused = goatherd("serve", *start, "--port", "0")
    assert refused.code == EXIT_CODES["identity"]
    assert "--accept-identity" in refused.err
    told = serve(*start, "--accept-identity")
    assert told.ready["signer"] == stranger
    assert told.stop() == 0
    assert serve(*start).stop() == 0


def test_what_cannot_be_read_or_written_is_no_taken_port(
    goatherd: Goatherd, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/srv/goatdb/commits.jsonl")

    monkeypatch.setattr("goatherd.node.server.serve", refused)
    assert goatherd("init", "--provider", store).code == 0
    result = goatherd("serve", "--data", str(tmp_path / "data"), "--create", "--provider", store)
    assert "cannot listen" not in result.err
    assert "/srv/goatdb/commits.jsonl" in result.err


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EADDRINUSE, "0 selects a free port"), (errno.EACCES, "below 1024"), (errno.EADDRNOTAVAIL, "127.0.0.1")],
)
def test_an_address_that_cannot_be_had_gets_the_hint_that_fits(
    monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(socket, "socket", lambda *_: SimpleNamespace(setsockopt=refuse, close=lambda: None))
    with pytest.raises(NodeError, match=r"cannot listen on 127\.0\.0\.1:80: no") as caught:
        bind("127.0.0.1", 80)
    assert hint in caught.value.hint


@pytest.mark.slow
def test_data_of_another_identity_are_served_only_if_the_operator_says_so(
    goatherd: Goatherd, goatdb: Path, store: str, serve: Serve
) -> None:
    """This happens if the operator of a GoatDB server runs `init` in place of `migrate`."""
    goatherd("init", "--provider", store)
    start = ("--provider", store, "--data", str(goatdb))
    before = {path: path.read_bytes() for path in goatdb.rglob("*") if path.is_file()}
    with socket.socket() as taken:  # so that the server could not run
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = goatherd("serve", *start, "--port", str(taken.getsockname()[1]))
    assert refused.code == EXIT_CODES["identity"]
    assert "the data belong to another identity" in refused.err
    assert f"goatherd migrate {goatdb}/localhost" in refused.err
    assert {path: path.read_bytes() for path in goatdb.rglob("*") if path.is_file()} == before
    assert serve(*start, "--accept-identity").stop() == 0
    assert serve(*start).stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], ["rotate"], ["rotate", "revoke"]], ids=" ".join)
def test_data_that_were_migrated_are_served(
    goatherd: Goatherd, goatdb: Path, store: str, serve: Serve, changes: list[str]
) -> None:
    settle(goatdb)
    assert goatherd("migrate", str(goatdb), "--provider", store).code == 0
    if "rotate" in changes:
        assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
    if "revoke" in changes:
        words = ("revoke", NAMED["root"], "--reason", "stolen", "--yes", "--provider", store, "--unsafe-without-nodes")
        assert goatherd(*words).code in (0, EXIT_FINDINGS)
    assert serve("--provider", store, "--data", str(goatdb)).stop() == 0
