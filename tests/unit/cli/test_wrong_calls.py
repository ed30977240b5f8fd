"""Wrong calls of the command line: the message and the exit code of each.

No message is a traceback or calls the error a bug, each has a hint, and none repeats a password.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Goatherd

USAGE, PLUGIN, PROVIDER, NODE, AGENT, AUDIT = 2, 3, 7, 9, 12, 13

CALLS: list[tuple[str, int, str]] = [
    # mistyped, missing, empty
    ("SHOW", USAGE, "No such command 'SHOW'. Did you mean 'show'?"),
    ("--provider {P} show", USAGE, "Options follow the command"),
    ("--json", USAGE, "no command is given"),
    ("show --provdier x", USAGE, "Did you mean"),  # what follows differs by click's version
    ("show --wrong x", USAGE, "`goatherd show --help` shows its arguments and options."),
    ("show", USAGE, "no store is named"),
    ("show --provider EMPTY", USAGE, "--provider: is empty"),
    ("show --provider keys", USAGE, "'keys' is not the URI of a store"),
    ("show --provider fil:///x/y", PLUGIN, "Did you mean 'file'?"),
    ("show --provider https://x/y", PLUGIN, "no provider for the scheme 'https'"),
    ("show --provider vault://me:hunter2@x/y", USAGE, "must not contain a user or a password"),
    ("show --provider {P} --at EMPTY", PROVIDER, "no version has the id or the label ''"),
    ("show --provider {P} --at ünïcode", PROVIDER, "no version has the id or the label 'ünïcode'"),
    ("show --provider {P} --config {D}", USAGE, "it is a directory"),
    ("show --provider {P} --config {BIN}", USAGE, "is not TOML: it is not UTF-8"),
    ("show --provider {P} --config nowhere.toml", USAGE, "there is no nowhere.toml"),
    ("status --node EMPTY --provider {P}", USAGE, "--node: the URL is empty"),
    ("status --node http://a,http://b --provider {P}", USAGE, "--node: the URL 'http://a,http://b' names several"),
    ("status --node http://127.0.0.1:99999 --provider {P}", USAGE, "has the port 99999; a port is 1 to 65535"),
    ("status --node http://me:hunter2@h --provider {P}", USAGE, "contains a user name or a password"),
    ("status --node http://h/goats --provider {P}", USAGE, "has a path"),
    ("migrate {D} --node https:/h --provider {P}", USAGE, "needs two slashes after the scheme"),
    ("export EMPTY --provider {P}", USAGE, "the path must not be empty"),
    ("serve --data EMPTY --provider {P}", USAGE, "the path must not be empty"),
    ("export file://{D}/settings.json --provider {P}", USAGE, "this is a URI, and a path"),
    ("fetch --create --data file://{D} --provider {P}", USAGE, "this is a URI, and a path"),
    ("rotate --audit-log file://{D}/trail --node http://h --provider {P}", USAGE, "this is a URI, and a path"),
    # times and numbers
    ("init --provider {P2} --lifetime 180", USAGE, "--lifetime: '180' is not a duration with a unit"),
    ("init --provider {P2} --lifetime -5d", USAGE, "--lifetime: '-5d' is not a duration with a unit"),
    ("init --provider {P2} --lifetime 999999w", USAGE, "--lifetime: '999999w' is too long"),
    ("init --provider {P2} --lifetime 99999999999999w", USAGE, "--lifetime: '99999999999999w' is too long"),
    ("status --timeout 0s --provider {P}", USAGE, "--timeout: must be longer than 0s"),
    ("serve --refresh-interval 0s --data {D} --provider {P}", USAGE, "--refresh-interval: must be longer than 0s"),
    ("serve --port 70000 --data {D} --provider {P}", USAGE, "--port: port 70000 is out of range"),
    ("serve --port -1 --data {D} --provider {P}", USAGE, "--port: port -1 is out of range"),
    ("serve --port 8080x --data {D} --provider {P}", USAGE, "--port: '8080x' is not a port number"),
    ("door --upstream http://h --port 70000 --provider {P}", USAGE, "port 70000 is out of range"),
    ("run --door x --data {D} --provider {P} -- true", USAGE, "'x' is not a port number"),
    ("run --crashes -1 --data {D} --provider {P} -- true", USAGE, "--crashes: '-1' is not a whole number from 0 to"),
    ("rotate --quorum 0 --node http://h --provider {P}", USAGE, "--quorum: '0' is not a quorum"),
    # options that exclude each other, or need another
    ("rotate --plan --cancel --provider {P}", USAGE, "cannot be combined"),
    ("rotate --resume --lifetime 90d --provider {P}", USAGE, "--lifetime cannot be combined with --resume"),
    ("audit verify {TEXT} --offline --last 3", USAGE, "--last is an option of `audit show`"),
    ("audit show {TEXT} --offline", USAGE, "are options of `audit verify`"),
    ("controller --metrics-file x.prom --node http://h --provider {P}", USAGE, "--metrics-file needs --once"),
    ("run --private --data {D} --provider {P} -- true", USAGE, "need --door PORT"),
    ("run --door-host 0.0.0.0 --data {D} --provider {P} -- true", USAGE, "need --door PORT"),
    ("run --agent-host 0.0.0.0 --data {D} --provider {P} -- true", USAGE, "--agent-host needs --agent-port PORT"),
    ("run --command reload --data {D} --provider {P} -- true", USAGE, "--command needs --on-change command"),
    ("run --on-change command --signal HUP --data {D} --provider {P} -- true", USAGE, "--signal needs --on-change sig"),
    ("watch --data {D} --on-change ignore --pid-file p --provider {P}", USAGE, "--pid-file needs --on-change signal"),
    ("watch --data {D} --provider {P}", USAGE, "--on-change is missing"),
    ("watch --data {D} --on-change command --provider {P}", USAGE, "--on-change command needs a command"),
    ("serve --data {D} --settings {TEXT} --provider {P}", USAGE, "--settings and --provider cannot be combined"),
    ("lease --lease none --provider {P}", USAGE, "there is no restart lease"),
    ("lease --lease x --provider {P}", USAGE, "--lease: must be the URI of a secret or `none`"),
    ("policy aws --role server", USAGE, "no secret is named"),
    ("rotate --provider {P}", USAGE, "no server is listed"),
    ("controller --provider {P}", USAGE, "no server is listed"),
    ("revoke x --reason r --yes --provider {P}", USAGE, "no server is listed"),
    ("controller --cron daily --node http://h --provider {P}", USAGE, "--cron: 'daily' is not a cron expression"),
    ("controller --timezone Mars --node http://h --provider {P}", USAGE, "--timezone: 'Mars'"),
    # wrong files, wrong places
    ("init --provider file://{TEXT}/root", PROVIDER, "on the way to {TEXT}/root"),
    ("init --provider file://{TEXT}", PROVIDER, "a file or a symbolic link is where a directory must be"),
    ("copy {P} {P}", PROVIDER, "source and destination are the same secret"),
    ("copy {P} memory:///a/b", PROVIDER, "the memory store is lost when the command ends"),
    ("audit verify {TEXT} --provider {P}", AUDIT, "is not an audit trail"),
    ("audit show {BIN}", AUDIT, "is not an audit trail"),
    ("audit verify nowhere --provider {P}", AUDIT, "No such file"),
    ("rotate --audit-log {TEXT} --node http://h --provider {P}", AUDIT, "is not an audit trail"),
    ("run --memory nowhere --data {D} --provider {P} -- true", AGENT, "nowhere cannot be read: No such file"),
    (
        "run --data {D} --provider {P} -- no-such-command-anywhere",
        USAGE,
        "the command 'no-such-command-anywhere' was not found",
    ),
    # addresses that cannot be had
    ("controller --metrics 127.0.0.1:{BUSY} --node http://h --provider {P}", NODE, "Address already in use"),
    ("controller --metrics 9464 --node http://h --provider {P}", USAGE, "--metrics: the address to listen on '9464'"),
    ("door --upstream http://h --port {BUSY} --provider {P}", NODE, "Address already in use"),
    ("serve --host localhost:80 --data {D} --provider {P}", USAGE, "--host: the address to listen on 'localhost:80'"),
    ("versions label current 1 --provider {P}", USAGE, "the label 'current' is protected"),
]


@pytest.fixture
def places(goatherd: Goatherd, store: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return what the calls name: a store with an identity, one without, a directory, files, a port that is in use."""
    assert goatherd("init", "--provider", store).code == 0
    (tmp_path / "d").mkdir()
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "noise").write_bytes(b"\xff\x00\xec")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield {
            "{P}": store,
            "{P2}": f"file://{tmp_path}/other/root",
            "{D}": str(tmp_path / "d"),
            "{TEXT}": str(tmp_path / "notes.txt"),
            "{BIN}": str(tmp_path / "noise"),
            "{BUSY}": str(taken.getsockname()[1]),
            "EMPTY": "",
        }


def filled(text: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        text = text.replace(name, value)
    return text


@pytest.mark.parametrize(("line", "code", "message"), CALLS, ids=[line for line, _, _ in CALLS])
def test_a_wrong_call_is_answered_with_what_is_wrong(
    goatherd: Goatherd, places: dict[str, str], line: str, code: int, message: str
) -> None:
    result = goatherd(*(filled(word, places) for word in line.split()))
    told = result.err + result.out
    assert filled(message, places) in told
    assert result.code == code
    assert "Traceback" not in told
    assert "bug of Goatherd" not in told
    assert "hunter2" not in told
    assert "hint" in told


def test_a_busy_metrics_port_gets_no_hint_at_an_option_that_the_command_has_not(
    goatherd: Goatherd, places: dict[str, str]
) -> None:
    address = f"127.0.0.1:{places['{BUSY}']}"
    result = goatherd("controller", "--metrics", address, "--node", "http://h", "--provider", places["{P}"])
    assert f"cannot listen on {address}" in result.err
    assert "--port" not in result.err


def test_no_hint_of_the_doctor_recommends_the_doctor(goatherd: Goatherd, places: dict[str, str]) -> None:
    for uri in (f"file://{places['{TEXT}']}/root", places["{P2}"], "vault://127.0.0.1:9/secret/root"):
        result = goatherd("doctor", "--provider", uri)
        assert " -> " in result.out, "there is a hint"
        assert "goatherd doctor" not in result.out + result.err


@pytest.mark.slow
def test_a_plain_port_behind_a_tls_url_is_named(goatherd: Goatherd, places: dict[str, str]) -> None:
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"https://127.0.0.1:{server.server_port}"
        result = goatherd("status", "--node", url, "--provider", places["{P}"])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert "the port does not speak TLS" in result.out
    assert "WRONG_VERSION" not in result.out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_init_without_the_right_to_write_names_the_directory_and_the_user(goatherd: Goatherd, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    result = goatherd("init", "--provider", f"file://{closed}/keys/root")
    assert result.code == PROVIDER
    assert f"in {closed}, where {closed}/keys would be made" in result.err
    assert f"User {os.geteuid()}" in result.err
