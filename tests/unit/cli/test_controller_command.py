"""goatherd controller: --explain, --once, and a process that is stopped by a signal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.clock import SystemClock
from tests.deadlines import ANSWER, HANG
from tests.ports import free_ports

from .conftest import Goatherd, Result, Serving

DAY_MS = 86_400_000
DUE = ("--max-age", "30d")


@pytest.fixture
def old_store(goatherd: Goatherd, store: str) -> str:
    """A store whose identity was made forty days ago."""
    real = SystemClock.now_ms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemClock, "now_ms", lambda self: real(self) - 40 * DAY_MS)
        assert goatherd("init", "--provider", store).code == 0
    return store


def generation(goatherd: Goatherd, store: str) -> int:
    return int(goatherd("show", "--provider", store, "--json").json["generation"])


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    """Undo the logging configuration that the command sets for its process."""
    import logging

    root, ours = logging.getLogger(), logging.getLogger("goatherd")
    handlers, level = list(root.handlers), ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_says_what_it_would_do_when_and_why_and_writes_nothing(goatherd: Goatherd, old_store: str) -> None:
    shown = goatherd("controller", "--explain", "--provider", old_store, *DUE)
    assert shown.code == 0
    assert "next        rotate now" in shown.out
    assert "is to be replaced from" in shown.out
    data = goatherd("controller", "--explain", "--provider", old_store, *DUE, "--json").json
    assert (data["isDue"], data["next"]["act"], len(data["rotations"])) == (True, "rotate", 5)
    down = goatherd("controller", "--explain", "--provider", old_store, *DUE, "--node", "http://127.0.0.1:1")
    assert "obstacle    http://127.0.0.1:1 did not answer" in down.out
    assert generation(goatherd, old_store) == 1


def test_explain_shows_in_which_minutes_a_rotation_may_begin(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    options = ("--cron", "* 2-3 * * SUN", "--timezone", "Europe/Berlin", "--max-age", "6d")
    shown = goatherd("controller", "--explain", "--provider", store, *options)
    assert "keys older than 6d, in the minutes of `* 2-3 * * SUN` in Europe/Berlin" in shown.out
    data = goatherd("controller", "--explain", "--provider", store, *options, "--json").json
    assert data["isDue"] is False
    assert len(set(data["rotations"])) == 5
    assert all(begin[11:13] in ("00", "01") for begin in data["rotations"]), "02:00 in Berlin"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--cron", "0 3 * *"), "five fields"),
        (("--timezone", "Europe/Atlantis"), "is not a time zone"),
        (("--max-age", "30"), "not a duration with a unit"),
    ],
    ids=["cron", "zone", "age"],
)
def test_a_schedule_that_cannot_be_meant_is_refused_before_anything_is_done(
    goatherd: Goatherd, store: str, options: tuple[str, ...], told: str
) -> None:
    refused = goatherd("controller", "--once", "--provider", store, "--unsafe-without-nodes", *options)
    assert refused.code == EXIT_CODES["configuration"]
    assert told in refused.err


def test_the_schedule_can_stand_in_the_file_and_in_the_environment(
    goatherd: Goatherd, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goatherd("init", "--provider", store)
    (tmp_path / "goatherd.toml").write_text('[controller]\nmax_age = "60d"\ncron = "0 3 1 * *"\n')
    data = goatherd("controller", "--explain", "--provider", store, "--json").json["schedule"]
    assert data == {
        "controller": socket.gethostname(),
        "maxAge": "60d",
        "cron": "0 3 1 * *",
        "timezone": "UTC",
    }
    monkeypatch.setenv("GOATHERD_CONTROLLER_CRON", "* 22-23 * * SAT")
    data = goatherd("controller", "--explain", "--provider", store, "--json").json["schedule"]
    assert data["cron"] == "* 22-23 * * SAT"


# --- once -------------------------------------------------------------------------------------------------------------


def test_a_controller_that_would_wait_for_no_server_is_rejected(goatherd: Goatherd, old_store: str) -> None:
    refused = goatherd("controller", "--once", "--provider", old_store, *DUE)
    assert refused.code == EXIT_CODES["configuration"]
    assert "no server is listed" in refused.err
    assert generation(goatherd, old_store) == 1


def test_once_does_what_is_due_and_then_nothing(goatherd: Goatherd, old_store: str) -> None:
    options = ("--once", "--provider", old_store, "--unsafe-without-nodes", *DUE, "--log-level", "error")
    done = goatherd("controller", *options, "--json")
    assert (done.code, done.json["done"], done.json["report"]["outcome"]) == (0, "rotate", "rotated")
    again = goatherd("controller", *options)
    assert again.code == 0
    assert "nothing is due" in again.out
    assert "next        r" in again.out
    assert " at 20" in again.out


def test_once_ends_with_the_code_of_what_went_wrong_and_rings(
    goatherd: Goatherd, old_store: str, tmp_path: Path
) -> None:
    (tmp_path / "goatherd.toml").write_text('[rotation]\nadoption = "50ms"\n')
    failed = goatherd(
        "controller", "--once", "--provider", old_store, "--node", "http://127.0.0.1:1", *DUE,
        "--alert-command", f"cat > {tmp_path}/alert",
    )  # fmt: skip
    assert failed.code == EXIT_CODES["rotation"]
    assert json.loads((tmp_path / "alert").read_text())["kind"] == "rotation-failed"
    assert "http://127.0.0.1:1 did not answer" in failed.err
    assert generation(goatherd, old_store) == 1, "nothing was written, so the next run looks again"
    again = goatherd("controller", "--once", "--provider", old_store, "--node", "http://127.0.0.1:1", *DUE, "--json")
    assert again.code == EXIT_CODES["rotation"]


def test_a_trail_that_cannot_be_written_stops_it_before_it_begins(
    goatherd: Goatherd, old_store: str, tmp_path: Path
) -> None:
    options = ("--once", "--provider", old_store, "--unsafe-without-nodes", *DUE)
    refused = goatherd("controller", *options, "--audit-log", str(tmp_path / "nowhere/audit"))
    assert refused.code == EXIT_CODES["audit"]
    assert generation(goatherd, old_store) == 1


def test_metrics_of_one_run_are_left_in_a_file(goatherd: Goatherd, old_store: str, tmp_path: Path) -> None:
    file = tmp_path / "goatherd.prom"
    options = ("--once", "--provider", old_store, "--unsafe-without-nodes", *DUE, "--metrics-file", str(file))
    assert goatherd("controller", *options).code == 0
    assert "goatherd_root_expires_timestamp_seconds" in file.read_text()
    assert goatherd("controller", *options[1:]).code == 2, "a controller that runs on answers at --metrics"


# --- as a process -----------------------------------------------------------------------------------------------------


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts ``goatherd controller``; processes that still run at the end are killed."""
    started: list[subprocess.Popen[str]] = []
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GOATHERD_")}
    environ["GOATHERD_TIMEOUT"] = f"{ANSWER.total_seconds():g}s"

    def begin(*arguments: str) -> subprocess.Popen[str]:
        with (tmp_path / "controller.err").open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "goatherd", "controller", *arguments],
                stdout=subprocess.DEVNULL, stderr=file, text=True, env=environ, cwd=tmp_path,
            )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait(HANG)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], tmp_path: Path) -> Any:
    until = time.monotonic() + 4 * HANG
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        assert process.poll() is None, (tmp_path / "controller.err").read_text()
        time.sleep(0.05)
    raise AssertionError((tmp_path / "controller.err").read_text())


class Steadfast(BaseHTTPRequestHandler):
    """A GoatDB server that accepts every request, stores what is pushed, and never signs with another root."""

    kept: ClassVar[list[Any]] = []

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.path != "/batch-sync":
            self.send_error(404)
            return
        requests = json.loads(asked)
        self.kept.extend(commit for one in requests for commit in one["msg"]["c"])
        held = {"ver": 50595584, "f": {"__t": "E", "__v": {"d": "AA==", "s": [1, 2]}}, "s": 1, "c": self.kept}
        body = json.dumps([{"path": one["path"], "res": held} for one in requests]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def steadfast() -> Iterator[str]:
    Steadfast.kept.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Steadfast)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_controller_that_cannot_work_says_so_at_its_start_and_one_that_may_work_later_warns(
    goatherd: Goatherd, old_store: str, start: Start, tmp_path: Path
) -> None:
    options = ("--provider", old_store, "--max-age", "100d", "--node", "http://127.0.0.1:1")
    refused = goatherd("controller", *options, "--alert-command", "no-such-program now")
    assert refused.code == EXIT_CODES["configuration"]
    assert "controller.alert_command: /bin/sh does not find the program 'no-such-program'" in refused.err
    many = (*options, "--node", "http://127.0.0.1:2")
    (tmp_path / "goatherd.toml").write_text('[rotation]\nquorum = "3"\n')
    assert "the quorum is 3, but 2 servers are listed" in goatherd("controller", *many).err
    (tmp_path / "goatherd.toml").unlink()
    nowhere = goatherd("controller", "--provider", f"file://{tmp_path}/keys/none", *options[2:])
    assert nowhere.code == EXIT_CODES["provider"]
    trail = goatherd("controller", *options, "--audit-log", str(tmp_path / "nowhere/audit"))
    assert trail.code == EXIT_CODES["audit"]
    assert generation(goatherd, old_store) == 1

    process = start(*options)
    told = tmp_path / "controller.err"
    wait_for(lambda: "controller.planned act=rotate" in told.read_text(), process, tmp_path)
    assert "controller.start_problem reason='http://127.0.0.1:1 did not answer" in told.read_text()
    assert "is to be replaced from" in told.read_text(), "when the next rotation is due, and why"
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 0


@pytest.mark.slow
def test_a_controller_rotates_a_cluster_that_serves_and_ends_when_it_is_told(
    goatherd: Goatherd, old_store: str, start: Start, serve: Callable[..., Serving], tmp_path: Path
) -> None:
    nodes = [serve("--data", str(tmp_path / "data-0"), "--provider", old_store)]
    nodes.append(serve("--data", str(tmp_path / "data-1"), "--provider", old_store, "--peer", nodes[0].url))
    listed = [part for node in nodes for part in ("--node", node.url)]
    trail = tmp_path / "audit.jsonl"
    process = start("--provider", old_store, *listed, *DUE, "--audit-log", str(trail), "--metrics", "127.0.0.1:0")
    wait_for(lambda: "controller.done" in (tmp_path / "controller.err").read_text(), process, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 0
    told = (tmp_path / "controller.err").read_text()
    assert "controller.stopped leaves_rotation=false" in told
    shown: Result = goatherd("status", "--provider", old_store, *listed, "--json")
    assert shown.code == 0, "every node trusts the new root and signs with it"
    assert shown.json["identity"]["rotatedFrom"] is not None
    assert goatherd("audit", "verify", str(trail), "--provider", old_store).code == 0


@pytest.mark.slow
def test_told_to_stop_while_it_waits_for_a_node_it_leaves_the_rotation_and_another_carries_it_on(
    goatherd: Goatherd, old_store: str, start: Start, steadfast: str, tmp_path: Path
) -> None:
    trail = tmp_path / "audit.jsonl"
    options = ("--provider", old_store, *DUE, "--audit-log", str(trail))
    process = start(*options, "--node", steadfast)
    show = ("show", "--provider", old_store, "--json")
    wait_for(lambda: (goatherd(*show).json["rotation"] or {}).get("phase") == "activated", process, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 0
    assert "leaves_rotation=true" in (tmp_path / "controller.err").read_text()
    waits = goatherd("controller", "--once", *options, "--unsafe-without-nodes", "--json").json
    assert waits["done"] == "nothing"
    assert "another process drives it" in waits["why"]
    real = SystemClock.now_ms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemClock, "now_ms", lambda self: real(self) + 3_600_000)
        done = goatherd("controller", "--once", *options, "--unsafe-without-nodes", "--json").json
    assert (done["done"], done["report"]["outcome"]) == ("resume", "rotated")
    assert goatherd("audit", "verify", str(trail), "--provider", old_store).code == 0


@pytest.mark.slow
def test_killed_outright_it_leaves_what_the_next_one_carries_on_and_a_trail_that_is_whole(
    goatherd: Goatherd, old_store: str, start: Start, steadfast: str, tmp_path: Path
) -> None:
    trail = tmp_path / "audit.jsonl"
    options = ("--provider", old_store, *DUE, "--audit-log", str(trail))
    process = start(*options, "--node", steadfast)
    wait_for(lambda: trail.exists() and b'"prepared"' in trail.read_bytes(), process, tmp_path)
    process.kill()
    process.wait(HANG)
    real = SystemClock.now_ms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemClock, "now_ms", lambda self: real(self) + 3_600_000)
        done = goatherd("controller", "--once", *options, "--unsafe-without-nodes", "--json").json
    assert done["done"] == "resume"
    assert goatherd("audit", "verify", str(trail), "--provider", old_store).code == 0


@pytest.mark.slow
def test_its_metrics_are_answered_while_it_runs(goatherd: Goatherd, store: str, start: Start, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    (port,) = free_ports(1)
    options = ("--provider", store, "--unsafe-without-nodes", "--metrics", f"127.0.0.1:{port}")
    process = start(*options)

    def asked() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANG) as answer:
                text = answer.read().decode()
        except OSError:
            return ""
        return text if "goatherd_rotation_next" in text or "next_timestamp" in text else ""

    text = wait_for(asked, process, tmp_path)
    assert "goatherd_root_expires_timestamp_seconds" in text
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG) == 0
