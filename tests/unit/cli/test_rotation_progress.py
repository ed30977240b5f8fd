"""What `goatherd status` says of a rotation in progress, and what `goatherd rotate` says of restarts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.cli.text.rotation import restart_lines
from goatherd.errors import ProviderAccessDeniedError
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.rotation.events import Report
from goatherd.rotation.machine import Outcome, Phase
from tests.deadlines import HANG
from tests.fakes.health_page import serve_health
from tests.ports import free_ports

from .conftest import Goatherd, Serving

pytestmark = pytest.mark.slow


def test_status_says_since_when_the_phase_lasts_until_when_it_may_and_for_whom_it_waits(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    options = ("--provider", store, "--node", server.url)
    before = json.loads(goatherd("status", *options, "--json").out)
    assert before["rotation"] is None
    assert goatherd("rotate", "--to", "published", *options).code == 0

    ready = goatherd("status", *options)
    assert ready.code == 0
    assert ready.out.startswith("rotating: Rotation from ")
    assert ": published, ready for the next step.\n" in ready.out
    assert re.search(r"^phase        published since .*UTC\), deadline in \d+ min$", ready.out, re.MULTILINE)
    assert re.search(
        r"^next: If \S+@\S+:\d+ has ended, run `goatherd rotate --resume`, or `goatherd rotate --cancel` to end",
        ready.out,
        re.MULTILINE,
    )

    server.process.kill()
    server.process.wait(60)
    late = json.loads(goatherd("status", *options, "--json").out)["rotation"]
    assert late["phase"] == "published"
    assert late["since"] < late["until"]
    assert any(
        f"{server.url} (did not answer): answers a request signed by the next root" in one for one in late["waitingFor"]
    )


def test_the_outcome_of_a_rotation_says_that_no_server_restarted(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    done = goatherd("rotate", "--provider", store, "--node", server.url)
    assert "restarts: none" in done.out
    again = goatherd("rotate", "--provider", store, "--node", server.url, "--json")
    assert json.loads(again.out)["restarts"] == [{"node": server.url, "count": 0}]


def test_a_server_that_restarts_while_a_rotation_runs_is_named_in_the_outcome(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    (port,) = free_ports(1)
    where = ("--data", str(tmp_path / "data"), "--provider", store, "--port", str(port))
    server = serve(*where)
    command = [sys.executable, "-m", "goatherd", "rotate", "--json", "--provider", store, "--node", server.url]
    with (tmp_path / "out").open("wb") as out:
        rotating = subprocess.Popen(
            [*command, "--adoption", "10m"], stdout=out, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    try:
        assert rotating.stderr is not None
        # The rotation is stopped after its first step, so that it cannot end before the server has restarted.
        while '"phase"' not in rotating.stderr.readline():
            assert rotating.poll() is None
        rotating.send_signal(signal.SIGSTOP)
        server.process.kill()
        server.process.wait(HANG)
        assert serve(*where).url == server.url
        rotating.send_signal(signal.SIGCONT)
        rotating.communicate(timeout=2 * HANG)
        assert rotating.returncode == 0
    finally:
        if rotating.poll() is None:
            rotating.kill()
            rotating.wait(HANG)
    outcome = json.loads((tmp_path / "out").read_text())
    assert outcome["outcome"] == "rotated"
    assert outcome["restarts"] == [{"node": server.url, "count": 1}]


def test_a_rotation_that_goes_back_says_which_servers_restarted(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    options = ("--provider", store, "--node", server.url, "--health-url")
    with serve_health(lambda number: number == 1) as page:
        done = goatherd("rotate", *options, page.url)
    assert done.code == EXIT_CODES["rotation"]
    assert "restarts: none" in done.err
    with serve_health(lambda number: number == 1) as page:
        events = [json.loads(line) for line in goatherd("rotate", *options, page.url, "--json").err.splitlines()]
    assert [one["restarts"] for one in events if one["event"] == "restarts"] == [[{"node": server.url, "count": 0}]]


def test_a_rotation_that_is_cancelled_automatically_says_where_the_next_key_still_is(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    current = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    options = ("--provider", store, "--node", server.url)
    following = goatherd("rotate", "--to", "published", *options, "--json").json["to"]
    server.stop()

    async def refuse(*_: object) -> None:
        raise ProviderAccessDeniedError("no right", provider="file", secret_id="root", operation="destroy")

    monkeypatch.setattr(FileSecretProvider, "_destroy", refuse)
    monkeypatch.setenv("GOATHERD_TIMEOUT", "1s")
    done = goatherd("rotate", "--resume", "--adoption", "1s", *options)
    assert done.code == EXIT_CODES["rotation"]
    assert f"cancelled: {current} stays the current root; {following} was published, so it stays trusted" in done.err
    for version in (2, 3):
        assert f"version {version} still holds the private key of {following} (provider.access_denied)" in done.err


def report(restarts: dict[str, int | None], outcome: Outcome = Outcome.ROTATED) -> Report:
    return Report(
        outcome=outcome,
        event=outcome.value,
        rotation_id="r",
        from_id="a",
        to_id="b",
        current_id="b",
        phase=Phase.STEADY,
        generation=6,
        restarts=restarts,
        began_ms=0,
        ended_ms=1,
    )


def test_a_server_that_restarted_more_often_than_a_rotation_needs_is_warned_of() -> None:
    lines = restart_lines(report({"http://a": 1, "http://b": 2, "http://c": None, "http://d": 0}))
    assert lines == [
        "restarts: http://a 1, http://b 2 (needed: at most 1 each)",
        "restarts not known, because the server did not show which process serves: http://c",
        "warning: http://b restarted 2 times; a rotation restarts a server at most once",
    ]
    assert restart_lines(report({"http://a": 2, "http://b": 3}, Outcome.ROLLED_BACK)) == [
        "restarts: http://a 2, http://b 3 (needed: at most 2 each)",
        "warning: http://b restarted 3 times; a rotation that is rolled back restarts a server at most twice",
    ]
    assert restart_lines(report({"http://a": 0})) == ["restarts: none"]
