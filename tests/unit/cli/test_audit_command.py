"""goatherd audit, and the trail that rotate and retire write."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goatherd.audit.trail import AuditTrail
from goatherd.cli.main import EXIT_CODES, run
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.plugins import open_provider

from .conftest import Goatherd, Serving, secrets_in


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store and its trail, made once: a rotation, a cancelled rotation, and a retirement."""
    made = tmp_path_factory.mktemp("history")
    at = ("--provider", f"file://{made}/keys/root")
    common = (*at, "--audit-log", str(made / "audit.jsonl"))
    for command in (
        ("init", *at),
        ("rotate", *common, "--unsafe-without-nodes"),
        ("rotate", *common, "--unsafe-without-nodes", "--to", "published"),
        ("rotate", *common, "--cancel", "--reason", "wrong day"),
        ("retire", *common, "--yes", "--grace", "0s"),
    ):
        assert run(command) == 0
    return made


@pytest.fixture
def trail(history: Path, tmp_path: Path) -> Path:
    """A copy of the history's trail, beside a copy of its store at `store`."""
    shutil.copytree(history, tmp_path, dirs_exist_ok=True)
    return tmp_path / "audit.jsonl"


def records(goatherd: Goatherd, file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = goatherd("audit", "show", str(file), "--json").json["records"]
    return found


def test_every_run_is_in_the_trail_from_its_beginning_to_its_end(goatherd: Goatherd, trail: Path) -> None:
    found = records(goatherd, trail)
    runs = [(r["event"], r["data"].get("command")) for r in found if r["event"] in ("run-began", "run-over")]
    assert runs == [
        ("run-began", "rotate"), ("run-over", "rotate"), ("run-began", "rotate"), ("run-over", "rotate"),
        ("run-began", "rotate"), ("run-over", "rotate"), ("run-began", "retire"), ("run-over", "retire"),
    ]  # fmt: skip
    actions = [r["data"]["action"] for r in found if r["event"] == "decided"]
    assert {"prepare", "advance", "abandon", "destroy", "label-stable", "done"} <= set(actions)
    assert any(r["data"].get("reason") == "wrong day" for r in found if r["event"] == "run-began")


def test_a_whole_trail_is_verified_against_its_store(goatherd: Goatherd, store: str, trail: Path) -> None:
    good = goatherd("audit", "verify", str(trail), "--provider", store)
    assert good.code == 0
    assert "as they were written" in good.out
    assert "only a --checkpoint that is kept in another place shows whether records are missing at the end" in good.out
    data = goatherd("audit", "verify", str(trail), "--provider", store, "--json").json
    assert data["records"] == len(records(goatherd, trail))
    assert len(data["signers"]) == 2
    assert data["restsOn"] is None


def test_the_first_broken_record_is_named_and_the_exit_code_says_so(
    goatherd: Goatherd, store: str, trail: Path
) -> None:
    lines = trail.read_bytes().splitlines(keepends=True)
    trail.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    broken = goatherd("audit", "verify", str(trail), "--provider", store)
    assert broken.code == EXIT_CODES["audit"]
    assert "line 6 has record 7 instead of record 6" in broken.err
    told = goatherd("audit", "verify", str(trail), "--provider", store, "--json")
    assert told.json["error"]["code"] == "audit.broken"


def test_an_end_that_was_cut_off_is_found_with_a_checkpoint(goatherd: Goatherd, store: str, trail: Path) -> None:
    head = goatherd("audit", "verify", str(trail), "--provider", store, "--json").json["head"]
    lines = trail.read_bytes().splitlines(keepends=True)
    trail.write_bytes(b"".join(lines[:-3]))
    assert goatherd("audit", "verify", str(trail), "--provider", store).code == 0
    cut = goatherd("audit", "verify", str(trail), "--provider", store, "--checkpoint", head)
    assert cut.code == EXIT_CODES["audit"]
    assert "is missing" in cut.err
    assert goatherd("audit", "verify", str(trail), "--provider", store, "--checkpoint", "x").code == 2


def test_a_trail_of_another_identity_is_found(goatherd: Goatherd, trail: Path, tmp_path: Path) -> None:
    other = f"file://{tmp_path}/other/root"
    goatherd("init", "--provider", other)
    assert "line 1 is signed by" in goatherd("audit", "verify", str(trail), "--provider", other).err


def test_without_a_store_it_must_be_said_and_the_answer_says_what_it_rests_on(goatherd: Goatherd, trail: Path) -> None:
    refused = goatherd("audit", "verify", str(trail))
    assert refused.code == EXIT_CODES["configuration"]
    assert "--offline" in refused.err
    assert "no store has confirmed it" in goatherd("audit", "verify", str(trail), "--offline").out


def test_without_a_verb_a_trail_is_verified_and_a_pipe_is_no_trail(
    goatherd: Goatherd, trail: Path, store: str, tmp_path: Path
) -> None:
    by_name = goatherd("audit", "verify", str(trail), "--provider", store)
    assert goatherd("audit", str(trail), "--provider", store).out == by_name.out
    os.mkfifo(tmp_path / "pipe")
    piped = goatherd("audit", "verify", str(tmp_path / "pipe"), "--provider", store)
    assert (piped.code, "no regular file" in piped.err) == (EXIT_CODES["audit"], True)


def test_show_prints_a_line_for_each_record_and_can_print_the_last(goatherd: Goatherd, trail: Path) -> None:
    shown = goatherd("audit", "show", str(trail)).out.splitlines()
    assert not any("{'" in line or "['" in line or "=True" in line for line in shown), "values are JSON, not Python"
    assert len(shown) == len(records(goatherd, trail))
    assert goatherd("audit", "show", str(trail), "--last", "2").out.splitlines() == shown[-2:]


@pytest.mark.slow
def test_what_a_trail_says_cannot_steer_the_terminal(goatherd: Goatherd, trail: Path) -> None:
    raw = trail.read_bytes().replace(b'"actor":"', b'"actor":"\\u001b[31m', 1)
    trail.write_bytes(raw)
    shown = goatherd("audit", "show", str(trail)).out
    assert "[31m" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "options", [("show", "--offline"), ("show", "--checkpoint", "1:0"), ("verify", "--last", "3"), ("mend",)],
    ids=" ".join,
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(goatherd: Goatherd, trail: Path, options: tuple[str, ...]) -> None:
    assert goatherd("audit", options[0], str(trail), *options[1:]).code == 2


def test_a_missing_file_is_told(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    missing = goatherd("audit", "verify", str(tmp_path / "nothing"), "--provider", store)
    assert missing.code == EXIT_CODES["audit"]
    assert "No such file" in missing.err


def test_no_key_is_in_the_trail(trail: Path, tmp_path: Path) -> None:
    secrets = secrets_in(tmp_path / "keys")
    assert secrets
    assert not [secret for secret in secrets if secret in trail.read_text()]


def test_every_run_prints_the_head_that_a_later_check_takes_as_its_checkpoint(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    goatherd("init", "--provider", store)
    options = ("--provider", store, "--audit-log", str(file))
    done = goatherd("rotate", "--unsafe-without-nodes", *options)
    failed = goatherd("rotate", "--cancel", *options)
    assert failed.code == EXIT_CODES["rotation"]
    for ended in (done, failed):
        (line,) = [line for line in ended.err.splitlines() if line.startswith(f"audit trail {file}: head ")]
        head = line.rpartition(" ")[2]
        assert goatherd("audit", "verify", str(file), "--provider", store, "--checkpoint", head).code == 0
    assert goatherd("audit", "verify", str(file), "--provider", store, "--json").json["head"] == head


def test_a_run_that_fails_is_in_the_trail_with_its_reason(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    goatherd("init", "--provider", store)
    (tmp_path / "goatherd.toml").write_text(f'[rotation]\nadoption = "50ms"\n[audit]\nlog = "{file}"\n')
    assert goatherd("rotate", "--provider", store, "--node", "http://127.0.0.1:1").code == EXIT_CODES["rotation"]
    last = records(goatherd, file)[-1]
    assert (last["event"], last["data"]["code"]) == ("run-failed", "rotation.obstructed")
    assert "http://127.0.0.1:1" in last["data"]["reason"]


def test_a_trail_that_cannot_be_written_stops_a_rotation_before_it_begins(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store)
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n")
    options = ("--provider", store, "--unsafe-without-nodes", "--audit-log", str(other))
    refused = goatherd("rotate", *options)
    assert refused.code == EXIT_CODES["audit"]
    assert other.read_text() == "my notes\n"
    assert goatherd("show", "--provider", store, "--json").json["generation"] == 1


def test_records_that_could_not_be_written_once_it_had_begun_are_told_at_the_end(
    goatherd: Goatherd, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goatherd("init", "--provider", store)
    write, count = AuditTrail._append_records, iter(range(1000))

    def fails_later(self: AuditTrail, records: Any, at_ms: int) -> None:
        if 3 < next(count) < 6:
            raise OSError(28, "No space left on device")
        write(self, records, at_ms)

    monkeypatch.setattr(AuditTrail, "_append_records", fails_later)
    file = tmp_path / "audit.jsonl"
    done = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--audit-log", str(file), "--json")
    assert (done.code, done.json["outcome"]) == (0, "rotated")
    told = [json.loads(line) for line in done.err.splitlines()]
    assert [line["missing"] for line in told if line["event"] == "audit"] == [2]
    monkeypatch.undo()
    assert goatherd("audit", "verify", str(file), "--provider", store, "--json").json["lost"] == 2


def test_a_plan_leaves_no_trail(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    here = ("--provider", store, "--audit-log", str(tmp_path / "audit"))
    plan = goatherd("rotate", "--plan", *here)
    assert (plan.code, "no server is listed" in plan.out) == (0, True)
    assert not (tmp_path / "audit").exists()
    assert goatherd("rotate", "--unsafe-without-nodes", *here).code == 0
    assert (tmp_path / "audit").exists(), "a rotation with the same options leaves one"


# --- an emergency -----------------------------------------------------------------------------------------------------


async def identity_in(store: str) -> IdentityDocument:
    provider, secret_id = open_provider(store)
    async with provider:
        return decode_document((await provider.read(secret_id)).value.reveal())


@pytest.mark.slow
def test_once_a_root_is_revoked_its_successor_signs_the_trail(
    goatherd: Goatherd, store: str, serve: Callable[..., Serving], tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    goatherd("init", "--provider", store)
    stolen = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    node = serve("--data", str(tmp_path / "data"), "--provider", store)
    options = ("--provider", store, "--node", node.url, "--audit-log", str(file), "--reason", "stolen", "--yes")
    assert goatherd("revoke", stolen, *options).code == 0
    found = records(goatherd, file)
    steps = {r["data"]["step"]: r["by"] for r in found if r["event"] == "revocation-stepped"}
    successor = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    assert steps["revoked"] == successor
    assert found[0]["by"] == stolen
    assert found[-1]["by"] == successor
    checked = goatherd("audit", "verify", str(file), "--provider", store, "--json")
    assert checked.code == 0, checked.out + checked.err
    assert checked.json["signers"] == [stolen, successor]
    assert checked.json["byRevoked"] == 0, "the successor has sealed what the stolen root had signed"


def test_what_a_stolen_root_signs_into_the_trail_later_is_found(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    goatherd("init", "--provider", store)
    before = asyncio.run(identity_in(store))
    options = ("--provider", store, "--unsafe-without-nodes", "--audit-log", str(file))
    goatherd("revoke", before.current.id, *options, "--reason", "stolen", "--yes")
    assert goatherd("audit", "verify", str(file), "--provider", store).code == 0
    thief = AuditTrail(file, actor="thief@elsewhere:1")
    thief.use_identity(before)
    thief.record("run-over", {"command": "rotate"})
    number = len(file.read_bytes().splitlines()) - 1
    broken = goatherd("audit", "verify", str(file), "--provider", store)
    assert broken.code == EXIT_CODES["audit"]
    assert "after it was revoked" in broken.err
    assert goatherd("rotate", *options).code == 0
    sealed = goatherd("audit", "verify", str(file), "--provider", store)
    assert sealed.code == 0
    assert f"after it was revoked, from line {number} on" in sealed.out, "it is not concealed either"


def test_show_says_that_it_has_left_lines_out(goatherd: Goatherd, tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_text('{"v":1,"seq":1,torn\nnonsense\n')
    result = goatherd("audit", "show", "audit.jsonl")
    assert (result.code, result.out) == (0, "no records\n")
    assert "2 lines are no records" in result.err
    assert goatherd("audit", "show", "audit.jsonl", "--json").json == {"records": [], "unreadable": 2}


@pytest.mark.parametrize("content", ["nonsense\n", '{"a": 1}\n', "\n\n", "\x00\x01"])
@pytest.mark.parametrize("arguments", [["show"], ["verify", "--offline"]])
def test_what_is_no_trail_is_told_as_that_and_not_as_a_broken_line(
    goatherd: Goatherd, tmp_path: Path, arguments: list[str], content: str
) -> None:
    (tmp_path / "notes.txt").write_text(content)
    result = goatherd("audit", arguments[0], "notes.txt", *arguments[1:])
    assert result.code == EXIT_CODES["audit"]
    assert "notes.txt is not an audit trail" in result.err
    assert "Check the path" in result.err


@pytest.mark.slow
def test_on_a_machine_whose_region_lags_commands_read_the_primary_store(
    goatherd: Goatherd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    us, away = tmp_path / "us", tmp_path / "us.away"
    stores = [f'{{region = "{one}", provider = "file://{tmp_path}/{one}/root"' for one in ("eu", "us")]
    (tmp_path / "goatherd.toml").write_text(f"[stores]\nprimary = {stores[0]}}}\nfollowers = [{stores[1]}}}]\n")
    monkeypatch.chdir(tmp_path)
    assert goatherd("init").code == 0
    us.rename(away)
    us.touch()
    assert goatherd("rotate", "--unsafe-without-nodes", "--allow-lagging", "us", "--audit-log", "trail").code == 0
    us.unlink()
    away.rename(us)
    monkeypatch.setenv("GOATHERD_STORES_REGION", "us")
    assert goatherd("audit", "verify", "trail").code == 0
    assert goatherd("show", "--json").json["generation"] > 1
