"""status, doctor, rotate, retire against real servers, and against one that leaks its key."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest

from goatherd.cli.main import EXIT_CODES, EXIT_FINDINGS
from goatherd.clock import SystemClock
from goatherd.errors import UnavailableError
from goatherd.identity.session import OwnedSession
from goatherd.identity.settings_json import to_settings
from goatherd.identity.transitions import create_document
from goatherd.providers.file.provider import FileSecretProvider
from goatherd.wire.commit import Commit
from tests.deadlines import ANSWER
from tests.fakes.health_page import serve_health
from tests.fakes.upstream_child import SESSIONS, UpstreamChild
from tests.unit.goats import introduction

from .conftest import Goatherd, Serving
from .upstream import upstream

Serve = Callable[..., Serving]

NOW_MS = 1_795_000_000_000


# --- the store alone ------------------------------------------------------------------------------------------------


def test_a_rotation_that_would_wait_for_no_server_is_rejected(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    for arguments in (["rotate"], ["rotate", "--resume"]):
        refused = goatherd(*arguments, "--provider", store)
        assert refused.code == EXIT_CODES["configuration"]
        assert "no server is listed" in refused.err
    assert goatherd("show", "--provider", store, "--json").json["generation"] == 1


def test_a_plan_lists_steps_gates_and_obstacles_and_writes_nothing(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    plan = goatherd("rotate", "--plan", "--provider", store, "--node", "http://127.0.0.1:1", "--json").json
    assert [step["step"] for step in plan["steps"]] == ["prepare", "publish", "activate", "verify", "finalize"]
    assert plan["nodes"] == ["http://127.0.0.1:1"]
    assert plan["obstacles"]
    assert goatherd("show", "--provider", store, "--json").json["generation"] == 1
    text = goatherd("rotate", "--plan", "--provider", store).out
    assert "1. prepare -> prepared" in text
    assert "waits 5m at most, else: roll back" in text


def test_a_rotation_stops_where_it_is_told_and_is_resumed(goatherd: Goatherd, store: str) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    without = ("--provider", store, "--unsafe-without-nodes", "--json")
    reached = goatherd("rotate", "--to", "activated", *without).json
    assert (reached["outcome"], reached["phase"], reached["from"]) == ("reached", "activated", first)
    done = goatherd("rotate", "--resume", *without).json
    assert (done["outcome"], done["phase"], done["current"]) == ("rotated", "steady", reached["to"])


def test_a_second_operator_is_told_who_when_and_which_phase(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--to", "published", "--provider", store, "--unsafe-without-nodes")
    busy = goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    assert busy.code == EXIT_CODES["rotation"]
    assert "rotation.busy" in busy.err
    assert "published" in busy.err
    assert "--resume" in busy.err


def test_cancel_works_before_the_next_root_signs_and_not_after(goatherd: Goatherd, store: str) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    goatherd("rotate", "--to", "published", "--provider", store, "--unsafe-without-nodes")
    cancelled = goatherd("rotate", "--cancel", "--reason", "wrong day", "--provider", store, "--json").json
    assert (cancelled["outcome"], cancelled["current"], cancelled["reason"]) == ("cancelled", first, "wrong day")
    goatherd("rotate", "--to", "activated", "--provider", store, "--unsafe-without-nodes")
    refused = goatherd("rotate", "--cancel", "--provider", store)
    assert refused.code == EXIT_CODES["rotation"]
    assert "--rollback" in refused.err


def test_roll_back_makes_the_earlier_root_sign_and_keeps_the_other_trusted(goatherd: Goatherd, store: str) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    other = goatherd("rotate", "--to", "activated", "--provider", store, "--unsafe-without-nodes", "--json").json["to"]
    back = goatherd("rotate", "--rollback", "--provider", store)
    assert back.code == 0
    shown = goatherd("show", "--provider", store, "--json").json
    assert shown["current"]["id"] == first
    assert {root["id"] for root in shown["roots"]} == {first, other}


def test_with_nothing_under_way_there_is_nothing_to_leave(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    for flag, verb in (("--rollback", "roll back"), ("--cancel", "cancel")):
        refused = goatherd("rotate", flag, "--provider", store)
        assert refused.code == EXIT_CODES["rotation"]
        assert f"no rotation is in progress, so there is nothing to {verb}" in refused.err
        assert "goatherd restore" in refused.err
    assert "nothing to do" in goatherd("rotate", "--resume", "--provider", store, "--unsafe-without-nodes").out


def test_progress_is_plain_lines_for_people_and_json_lines_for_programs(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    people = goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    assert [line.partition(":")[0] for line in people.err.splitlines()] == [
        "steady",
        "prepared",
        "published",
        "activated",
        "verified",
        "steady",
    ]
    assert "\x1b" not in people.err + people.out
    programs = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--json")
    assert [json.loads(line)["event"] for line in programs.err.splitlines()] == ["phase"] * 6
    assert programs.json["outcome"] == "rotated"


@pytest.mark.slow
def test_old_keys_are_destroyed_only_after_the_grace_period_and_only_when_meant(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    assert "nothing to destroy" in goatherd("retire", "--provider", store).out
    done = goatherd("retire", "--yes", "--grace", "0s", "--provider", store, "--json").json
    assert "1" in done["destroyed"]
    assert goatherd("show", "--at", "1", "--provider", store).code == EXIT_CODES["provider"]
    assert len(goatherd("show", "--provider", store, "--json").json["roots"]) == 2
    assert goatherd("retire", "--yes", "--grace", "0s", "--provider", store, "--json").json["destroyed"] == []


def damage_version(store: str, number: int) -> None:
    """Damage one version in the secret's file."""
    file = Path(store.removeprefix("file://"), "secret.json")
    file.write_text(json.dumps({**json.loads(file.read_bytes()), f"v{number}": "?"}))


@pytest.mark.slow
def test_retire_does_not_say_of_versions_that_were_not_read_that_they_hold_no_key(
    goatherd: Goatherd, store: str
) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    damage_version(store, 2)
    for words in (("--dry-run",), ("--yes",)):
        told = goatherd("retire", *words, "--provider", store).out.splitlines()
        assert told[:2] == [
            "nothing to destroy: no version that was read holds a private key that was replaced over 30d ago",
            "version 2 was not read (damaged (provider.unavailable)), so no root is recorded as retired",
        ]


def test_retire_asks_although_the_versions_that_are_due_cannot_be_listed(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    goatherd("init", "--provider", store)
    monkeypatch.setattr("goatherd.cli.output.Output.may_ask", True)

    async def fail(*_: object) -> None:
        error = UnavailableError("no answer", provider="file", secret_id="root", operation="versions")
        error.retryable = False
        raise error

    monkeypatch.setattr(FileSecretProvider, "_versions", fail)
    told = goatherd("retire", "--dry-run", "--provider", store).out
    assert told.startswith("not known what to destroy: the stored versions could not be read (provider.unavailable)\n")
    asked: list[str] = []

    def refuse(text: str, **_: object) -> None:
        asked.append(text)
        raise click.Abort

    monkeypatch.setattr("click.confirm", refuse)
    assert goatherd("retire", "--provider", store).code != 0
    assert asked == ["Permanently destroy all versions that are due and could not be listed (provider.unavailable)?"]


@pytest.mark.slow
def test_a_dry_run_of_retire_and_its_question_list_the_versions_and_destroy_nothing(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    here = ("--provider", store, "--grace", "0s")
    shown = goatherd("retire", "--dry-run", *here)
    assert shown.code == 0
    assert "would destroy version 1, of 20" in shown.out
    assert f"the private key of {first}" in shown.out
    assert "1" in goatherd("retire", "--dry-run", *here, "--json").json["wouldDestroy"]
    assert "nothing to destroy" in goatherd("retire", "--dry-run", "--provider", store).out
    monkeypatch.setattr("goatherd.cli.output.Output.may_ask", True)
    asked: list[str] = []
    monkeypatch.setattr("click.confirm", lambda text, **_: asked.append(text))
    assert "Permanently destroy" not in "".join(asked)
    done = goatherd("retire", *here)
    assert "version 1, of 20" in done.err
    (question,) = asked
    assert question == f"Permanently destroy {done.out.count('destroyed version')} versions?"


def checks(result: Any) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for check in result.json["checks"]:
        found.setdefault(check["check"], []).append((check["level"], check["text"]))
    return found


def test_doctor_passes_a_healthy_store_and_says_that_no_node_was_asked(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    result = goatherd("doctor", "--provider", store, "--json")
    assert result.code == 0
    assert result.json["healthy"] is True
    assert checks(result)["servers"][0][0] == "warn"
    assert "nodes" in [check["name"] for check in result.json["checks"]], "the former name"


def test_doctor_fails_where_others_can_read_the_store(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    (tmp_path / "keys/root").chmod(0o755)
    result = goatherd("doctor", "--provider", store, "--json")
    assert result.code == EXIT_FINDINGS
    assert checks(result)["store"][0][0] == "fail"


def test_doctor_fails_where_there_is_no_identity(goatherd: Goatherd, store: str) -> None:
    result = goatherd("doctor", "--provider", store)
    assert result.code == EXIT_FINDINGS
    assert "goatherd init" in result.out


def test_doctor_warns_of_a_root_that_soon_expires(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store, "--lifetime", "14d")
    result = goatherd("doctor", "--provider", store, "--json")
    assert result.code == 0
    assert ("warn", "expires in 14.0 days") in [
        (level, "expires in 14.0 days") for level, text in checks(result)["identity"] if "expires in 14.0 days" in text
    ]


def test_doctor_warns_of_a_rotation_that_no_process_drives(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--to", "published", "--provider", store, "--unsafe-without-nodes")
    (tmp_path / "goatherd.toml").write_text('[rotation]\nadoption = "0s"\n')
    result = goatherd("doctor", "--provider", store, "--json")
    assert checks(result)["rotation"][0][0] == "warn"


def test_doctor_warns_of_versions_that_should_have_been_retired(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    (tmp_path / "goatherd.toml").write_text('[rotation]\ngrace = "0s"\n')
    (found,) = checks(goatherd("doctor", "--provider", store, "--json"))["old versions"]
    assert found == ("warn", "3 versions with private keys whose grace period has ended")
    goatherd("retire", "--provider", store, "--yes")
    (found,) = checks(goatherd("doctor", "--provider", store, "--json"))["old versions"]
    assert found == ("ok", "7 versions, none overdue"), "what is left holds the current root's key only"
    damage_version(store, 5)
    (found,) = checks(goatherd("doctor", "--provider", store, "--json"))["old versions"]
    text = "7 versions, none overdue of those that were read; not read: 5 (damaged (provider.unavailable))"
    assert found == ("warn", text)


def test_status_shows_labels_and_ends_with_11_where_a_node_is_not_in_step(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    assert goatherd("status", "--provider", store, "--json").json["labels"] == {"current": "1"}
    result = goatherd("status", "--provider", store, "--node", "http://127.0.0.1:1")
    assert result.code == EXIT_FINDINGS
    assert "127.0.0.1:1" in result.out


# --- a server as GoatDB 0.5.1 is ------------------------------------------------------------------------------------


class Leaky(BaseHTTPRequestHandler):
    """Answers as an unmodified GoatDB server whose current session is one of its roots, with the private key."""

    root = OwnedSession.generate(session_id="r" * 24, owner="root", now_ms=NOW_MS)
    leaks = True
    date_offset = timedelta(0)
    report: Mapping[str, object] | None = None
    """The report of the agent in front of the server; None without an agent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or "{}")
        if self.path == "/batch-sync":
            self._answer(403, b"")
            return
        user = OwnedSession.generate(session_id="u" * 24, owner=None, now_ms=NOW_MS).session.to_json()
        user["publicKey"] = body["publicKey"]
        root = self.root.to_secret_json() if self.leaks else self.root.session.to_json()
        self._answer(200, json.dumps({"session": user, "roots": [root]}).encode())

    def do_GET(self) -> None:
        if self.report is not None and self.path.startswith("/goatherd/v1/identity"):
            self._answer(200, json.dumps(self.report).encode())
            return
        self._answer(200 if self.path == "/healthy" else 404, b"OK")

    def date_time_string(self, timestamp: float | None = None) -> str:
        import time

        return formatdate(time.time() + self.date_offset.total_seconds(), usegmt=True)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@pytest.fixture
def goatdb(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Leaky]]]:
    """Return the URL of an unmodified server, and the class whose attributes set its faults."""
    monkeypatch.setenv("GOATHERD_TIMEOUT", f"{ANSWER.total_seconds():g}s")

    class Handler(Leaky):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", Handler
        server.shutdown()
        thread.join()


def test_doctor_rings_the_bell_where_a_server_gives_its_private_key_away(
    goatherd: Goatherd, store: str, goatdb: tuple[str, type[Leaky]]
) -> None:
    url, handler = goatdb
    goatherd("init", "--provider", store)
    result = goatherd("doctor", "--provider", store, "--node", url)
    assert result.code == EXIT_FINDINGS
    assert f"{url} returned the private key of root {'r' * 24} to an unauthenticated request" in result.out
    assert "The key is exposed." in result.out
    assert handler.root.to_secret_json()["privateKey"]["d"] not in result.out + result.err


def test_manual_restart_servers_in_the_configuration_are_checked_by_doctor_and_named_by_status(
    goatherd: Goatherd, store: str, goatdb: tuple[str, type[Leaky]], tmp_path: Path
) -> None:
    """Such servers may expose their keys, too."""
    url, _ = goatdb
    goatherd("init", "--provider", store)
    (tmp_path / "goatherd.toml").write_text(f'[rotation]\nbare = ["{url}"]\n')
    found = checks(goatherd("doctor", "--provider", store, "--json"))
    assert [level for level, _ in found["key exposure"]] == ["fail"]
    assert "servers" not in found, "one is listed"
    assert f"not shown, because they are restarted by hand: {url} " in goatherd("status", "--provider", store).out


def test_an_agent_whose_server_rejects_the_root_may_have_been_asked_for_another_organization(
    goatherd: Goatherd, store: str, goatdb: tuple[str, type[Leaky]]
) -> None:
    """The application chooses the organization by the host name in the URL that --node gives."""
    url, handler = goatdb
    handler.leaks = False
    root = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    check = {"atMs": NOW_MS, "commit": "c" * 24}
    agent = {"state": "serving", "restarts": 0, "pending": [], "started": root, "leakCheck": check}
    handler.report = {"signer": root, "roots": [root], "generation": 1, "instance": "i" * 24, "agent": agent}
    advice = "If the application serves several organizations, give --node the host name of this organization."
    doctor = goatherd("doctor", "--provider", store, "--node", url)
    reason = f"{url} rejects a request signed by the current root {root}: with which root it signs is not known"
    assert reason in doctor.out
    rotate = goatherd("rotate", "--provider", store, "--node", url)
    assert reason in rotate.err
    assert advice in rotate.err
    assert advice in doctor.out


def test_doctor_tells_a_server_that_keeps_its_key_and_does_not_trust_this_store(
    goatherd: Goatherd, store: str, goatdb: tuple[str, type[Leaky]]
) -> None:
    url, handler = goatdb
    handler.leaks = False
    goatherd("init", "--provider", store)
    found = checks(goatherd("doctor", "--provider", store, "--node", url, "--json"))
    assert found["key exposure"][0][0] == "ok"
    assert found["node"][0][0] == "fail"
    assert "rejects a request signed by the current root" in found["node"][0][1]


@pytest.mark.parametrize(
    ("offset", "level", "direction"),
    [
        (timedelta(0), "ok", "right to the second"),
        (timedelta(minutes=1), "warn", "ahead of this machine's"),
        (timedelta(minutes=-1), "warn", "behind this machine's"),
        (timedelta(hours=1), "fail", "ahead of this machine's"),
    ],
)
def test_doctor_compares_the_clocks(
    goatherd: Goatherd, store: str, goatdb: tuple[str, type[Leaky]], offset: timedelta, level: str, direction: str
) -> None:
    url, handler = goatdb
    handler.date_offset = offset
    goatherd("init", "--provider", store)
    [found] = checks(goatherd("doctor", "--provider", store, "--node", url, "--json"))["clock"]
    assert found[0] == level
    assert direction in found[1]


def test_status_does_not_repeat_in_a_note_what_an_obstacle_states(
    goatherd: Goatherd, store: str, goatdb: tuple[str, type[Leaky]]
) -> None:
    url, handler = goatdb
    handler.date_offset = timedelta(minutes=4)
    goatherd("init", "--provider", store)
    shown = goatherd("status", "--provider", store, "--node", url).out
    assert shown.count("ahead of this machine's") == 1
    assert "finding: the clock of" in shown


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("between", [False, True], ids=["within a server", "between two servers"])
def test_doctor_names_a_session_whose_creations_end_goatdb(
    goatherd: Goatherd, store: str, tmp_path: Path, between: bool
) -> None:
    now_ms = SystemClock().now_ms()
    root = OwnedSession.generate(session_id="r" * 24, owner="root", now_ms=now_ms)
    user = OwnedSession.generate(session_id="u" * 24, owner=None, now_ms=now_ms)
    first = introduction(user, root, commit_id="first", ts=now_ms - 60_000)
    second = introduction(replace(user.session, owner="u7"), root, commit_id="second", ts=now_ms - 60_000)
    (tmp_path / "settings.json").write_bytes(to_settings(create_document(root, now_ms)))
    assert goatherd("migrate", str(tmp_path / "settings.json"), "--provider", store).code == 0

    def hold(*commits: Commit) -> Callable[[UpstreamChild], None]:
        def prepare(child: UpstreamChild) -> None:
            for commit in commits:
                child.create(SESSIONS, commit)

        return prepare

    with (
        upstream(root, hold(first) if between else hold(first, second)) as one,
        upstream(root, hold(second) if between else hold()) as other,
    ):
        words = ("doctor", "--provider", store, "--node", one.url, "--node", other.url, "--json")
        result = goatherd(*words)
        assert "did not reach" in checks(result)["rotation"][0][1]
        ((level, text),) = checks(result)["sessions"]
        assert (result.code, level) == (EXIT_FINDINGS, "fail")
        holders = " and ".join(sorted([one.url, other.url] if between else [one.url]))
        assert f"2 commits create session {user.id} with different contents (first, second), in {holders}" in text
        joining = introduction(user, root, commit_id="joining", parents=["first", "second"], ts=now_ms)
        one.create(SESSIONS, joining)
        other.create(SESSIONS, joining)
        ((level, text),) = checks(goatherd(*words))["sessions"]
        assert level == "ok"


# --- real servers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_is_seen_followed_through_a_rotation_and_found_healthy(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path
) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    server = serve("--provider", store, "--data", str(tmp_path / "data"))
    assert server.ready["signer"] == first
    here = ("--provider", store, "--node", server.url)
    status = goatherd("status", *here, "--json")
    assert status.code == 0
    (node,) = status.json["nodes"]
    assert (node["signsWith"], node["trustsCurrent"], node["generation"]) == (first, True, 1)
    assert goatherd("doctor", *here).code == 0
    rotated = goatherd("rotate", *here, "--json")
    assert rotated.code == 0, rotated.out
    after = goatherd("status", *here, "--json").json["nodes"][0]
    assert (after["signsWith"], after["generation"]) == (rotated.json["to"], 6)
    doctor = goatherd("doctor", *here)
    assert doctor.code == 0
    assert f"signs with root {rotated.json['to']}; it also trusts {first}" in doctor.out
    with serve_health(lambda _: False) as page:
        file = tmp_path / "named.toml"
        file.write_text(f'[rotation]\nhealth_url = "{page.url}"\n')
        doctor = goatherd("doctor", *here, "--config", str(file))
    assert doctor.code == EXIT_FINDINGS
    assert f"the health check fails: GET {page.url}: status 503" in doctor.out
    assert server.stop() == 0


@pytest.mark.slow
def test_a_server_with_a_settings_json_does_not_mean_that_the_store_went_back(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is not unmodified, and reports an identity of generation 1 that the store has never held."""
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    file = tmp_path / "settings.json"
    assert goatherd("export", str(file), "--provider", store).code == 0
    server = serve("--settings", str(file), "--data", str(tmp_path / "data"))
    here = ("--provider", store, "--node", server.url)
    for _ in range(2):
        status = goatherd("status", *here, "--json")
        (node,) = status.json["nodes"]
        assert (node["source"], node["generation"], node["signsWith"]) == ("file", None, first)
        assert status.json["obstacles"] == []
        shown = goatherd("status", *here).out
        assert "Goatherd server with a settings.json" in shown
        assert "WENT BACK" not in shown
        rotated = goatherd("rotate", *here, "--bare", server.url, "--json")
        assert rotated.code == 0, rotated.out
        assert rotated.json["behind"] == [server.url]
        doctor = goatherd("doctor", *here, "--json")
        assert "is from a settings.json: start it with --provider" in doctor.out
        monkeypatch.setenv("GOATHERD_ROTATION_BARE", server.url)
        doctor = goatherd("doctor", *here)
        assert doctor.code == 0, doctor.out
        assert "until you restart it" in doctor.out
        monkeypatch.delenv("GOATHERD_ROTATION_BARE")
        assert server.stop() == 0
        assert goatherd("export", str(file), "--provider", store, "--replace").code == 0
        server = serve("--settings", str(file), "--data", str(tmp_path / "data"))
        here, first = ("--provider", store, "--node", server.url), rotated.json["to"]
        doctor = goatherd("doctor", *here)
        assert doctor.code == 0, doctor.out
        assert "; its identity is from a settings.json" in doctor.out


@pytest.mark.slow
def test_a_rotation_in_front_of_a_node_that_is_down_ends_with_10_before_anything_is_written(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path
) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    server = serve("--provider", store, "--data", str(tmp_path / "data"))
    nodes = ("--node", server.url, "--node", "http://127.0.0.1:1")
    result = goatherd("rotate", "--provider", store, *nodes, "--adoption", "1s", "--json")
    assert result.code == EXIT_CODES["rotation"]
    assert result.json["error"]["code"] == "rotation.obstructed"
    assert "http://127.0.0.1:1 did not answer" in result.json["error"]["message"]
    assert goatherd("show", "--provider", store, "--json").json["generation"] == 1, "nothing was written"
    assert goatherd("show", "--provider", store, "--json").json["current"]["id"] == first


@pytest.mark.slow
def test_servers_that_were_not_told_of_each_other_and_of_another_identity_are_named_by_doctor_plan_and_status(
    goatherd: Goatherd, store: str, serve: Serve, tmp_path: Path
) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    alone = [serve("--provider", store, "--data", str(tmp_path / f"data-{number}")) for number in range(2)]
    nodes = [part for server in alone for part in ("--node", server.url)]
    told = f"they run each on its own: {alone[0].url}; {alone[1].url}"
    doctor = goatherd("doctor", "--provider", store, *nodes, "--json")
    assert doctor.code == EXIT_FINDINGS
    assert any(told in text for level, text in checks(doctor)["rotation"] if level == "fail")
    for arguments in (["rotate", "--plan"], ["status"]):
        (obstacle,) = goatherd(*arguments, "--provider", store, *nodes, "--json").json["obstacles"]
        assert told in obstacle
    refused = goatherd("rotate", "--provider", store, *nodes)
    assert refused.code == EXIT_CODES["rotation"]
    assert "--peer" in refused.err

    third = serve(
        "--provider", store, "--data", str(tmp_path / "data-2"), "--peer", alone[0].url, "--peer", alone[1].url
    )
    linked = (*nodes, "--node", third.url)
    found = goatherd("doctor", "--provider", store, *linked, "--json")
    assert ("ok", "no obstacle: a rotation can start now") in checks(found)["rotation"], found.out
    assert goatherd("rotate", "--provider", store, *linked).code == 0

    other = f"file://{tmp_path}/other/root"
    goatherd("init", "--provider", other)
    status = goatherd("status", "--provider", other, "--node", third.url)
    assert status.code == EXIT_FINDINGS
    assert f"belongs to another identity: it trusts {first}" in status.out
    doctor = goatherd("doctor", "--provider", other, "--node", third.url)
    assert f"{third.url} belongs to another identity: it signs with root" in doctor.out
    assert "belongs to another identity" in goatherd("rotate", "--provider", other, "--node", third.url).err
    assert goatherd("show", "--provider", other, "--json").json["generation"] == 1
    assert third.stop() == 0
    refused = goatherd("serve", "--provider", other, "--data", str(tmp_path / "data-2"), "--port", "0")
    assert refused.code == EXIT_CODES["identity"]
    assert "the store holds another identity (root " in refused.err
    assert "check --provider and --data" in refused.err


# --- the doctor on the store ------------------------------------------------------------------------------------------


def test_doctor_says_what_the_credentials_may_do_how_fast_the_store_is_and_where_labels_lead(
    goatherd: Goatherd, store: str
) -> None:
    goatherd("init", "--provider", store)
    found = checks(goatherd("doctor", "--provider", store, "--json"))
    for name in ("latency", "rights", "room", "label current", "label stable", "store clock"):
        assert found[name][0][0] == "ok", name
    assert "the longest of 5" in found["latency"][0][1]


@pytest.mark.parametrize(
    ("method", "answer", "name", "text"),
    [
        ("may_write", False, "rights", "the credentials may read, but not write"),
        ("free_bytes", 4096, "room", "4 KB free, which is too little for a rotation"),
    ],
    ids=["read only", "full disk"],
)
def test_what_would_make_the_next_rotation_fail_is_a_failure_and_comes_first(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch, method: str, answer: object, name: str, text: str
) -> None:
    goatherd("init", "--provider", store)
    monkeypatch.setattr(f"goatherd.files.System.{method}", lambda *_: answer)
    result = goatherd("doctor", "--provider", store)
    assert result.code == EXIT_FINDINGS
    assert result.out.startswith(f"FAIL  {name:<22}  {text}")
    assert "a rotation can start now" not in result.out


def test_credentials_that_may_only_read_are_enough_for_a_server(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    server = serve("--provider", store, "--data", str(tmp_path / "data"))
    monkeypatch.setattr("goatherd.files.System.may_write", lambda *_: False)
    here = ("--provider", store, "--node", server.url)
    operator = goatherd("doctor", *here)
    assert operator.code == EXIT_FINDINGS
    assert "To check a server's credentials: --as-server." in operator.out
    assert "rotation                the servers are no obstacle to a rotation" in operator.out
    result = goatherd("doctor", "--as-server", *here)
    assert result.code == 0, result.out
    assert "ok    rights                  the credentials may read, but not write: enough for a server" in result.out


def test_doctor_does_not_pass_what_it_cannot_check(goatherd: Goatherd) -> None:
    uri = "memory:///doctor-cannot-check/root"
    goatherd("init", "--provider", uri)
    result = goatherd("doctor", "--provider", uri, "--json")
    rights = next(check for check in result.json["checks"] if check["name"] == "rights")
    assert rights["level"] == "skip"
    assert "`goatherd policy memory --role rotator`" in rights["hint"]
    assert "1 not possible" in goatherd("doctor", "--provider", uri).out


def test_doctor_warns_of_a_version_from_the_future(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    real = SystemClock.now_ms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemClock, "now_ms", lambda self: real(self) - 3_600_000)
        found = checks(goatherd("doctor", "--provider", store, "--json"))
    assert found["store clock"][0][0] == "warn"


def test_doctor_names_a_store_that_stops_answering_while_it_looks(
    goatherd: Goatherd, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    goatherd("init", "--provider", store)
    read, calls = FileSecretProvider.read, []

    async def fails_later(self: FileSecretProvider, secret_id: str, *arguments: Any, **options: Any) -> Any:
        calls.append(secret_id)
        if 2 < len(calls) < 5:
            raise UnavailableError("the disk is away", provider="file", secret_id=secret_id, operation="read")
        return await read(self, secret_id, *arguments, **options)

    monkeypatch.setattr(FileSecretProvider, "read", fails_later)
    result = goatherd("doctor", "--provider", store, "--json")
    assert result.code == EXIT_FINDINGS
    level, text = checks(result)["latency"][0]
    assert level == "fail"
    assert text.startswith("read 1 of 5 times, then: file: read 'root': the disk is away")
