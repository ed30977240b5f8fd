"""rotate, status and retire: what they reject, what they report, and which next step they name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.config.build import build_policy
from goatherd.config.options import Options
from goatherd.rotation.machine import Policy, Quorum
from goatherd.rotation.rotator import Rotator
from goatherd.times import format_utc, read_iso
from tests.fakes.health_page import serve_health

from .conftest import Goatherd

ALONE = "--unsafe-without-nodes"
ILL = "http://127.0.0.1:1/healthy"
"""A health check that always fails."""
FOUND = ("dns://herd.example:8080",)


@pytest.fixture
def first(goatherd: Goatherd, store: str, tmp_path: Path) -> str:
    """The first root's id, in a store that goatherd.toml names."""
    (tmp_path / "goatherd.toml").write_text(f'provider = "{store}"\n')
    created = goatherd("init", "--json").json
    return str(created["current"]["id"])


# --- meanings of their own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prepared", "published", "activated", "verified"])
def test_cancel_and_rollback_each_leave_the_phases_that_are_theirs_and_name_the_other(
    goatherd: Goatherd, first: str, phase: str
) -> None:
    right, wrong = ("--cancel", "--rollback") if phase in ("prepared", "published") else ("--rollback", "--cancel")
    goatherd("rotate", "--to", phase, ALONE)
    generation = goatherd("show", "--json").json["generation"]
    refused = goatherd("rotate", wrong)
    assert refused.code == EXIT_CODES["rotation"]
    assert f"`goatherd rotate {right}`" in refused.err
    assert goatherd("show", "--json").json["generation"] == generation, "nothing was written"
    done = goatherd("rotate", right, "--reason", "wrong day", "--json").json
    outcome = {"--cancel": "cancelled", "--rollback": "rolled-back"}[right]
    assert (done["outcome"], done["current"], done["reason"]) == (outcome, first, "wrong day")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plan", "--resume"],
        ["--cancel", "--rollback"],
        ["--cancel", "--to", "prepared"],
        ["--rollback", "--to", "verified"],
        ["--reason", "because"],
        ["--resume", "--reason", "because"],
        ["--to", "steady"],
    ],
    ids=" ".join,
)
def test_what_means_nothing_together_is_refused_before_anything_is_read(
    goatherd: Goatherd, arguments: list[str]
) -> None:
    assert goatherd("rotate", *arguments, "--provider", "nowhere:///x").code == 2


def test_a_run_does_not_go_past_the_phase_where_it_shall_stop(goatherd: Goatherd, first: str) -> None:
    goatherd("rotate", "--to", "activated", ALONE)
    refused = goatherd("rotate", "--resume", "--to", "published", ALONE)
    assert refused.code == EXIT_CODES["rotation"]
    assert "already in phase activated" in refused.err
    assert goatherd("show", "--json").json["phase"] == "activated"


# --- who else --------------------------------------------------------------------------------------------------------


def test_who_begins_another_is_told_whose_rotation_it_is_since_when_and_in_which_phase_since_when(
    goatherd: Goatherd, first: str
) -> None:
    goatherd("rotate", "--to", "published", ALONE)
    record = goatherd("show", "--json").json["rotation"]
    refused = goatherd("rotate", ALONE).err
    started, since = (format_utc(read_iso(record[name])) for name in ("startedAt", "phaseAt"))
    for told in (record["id"], record["startedBy"], f"begun at {started}", f"published since {since}"):
        assert told in refused
    assert "goatherd rotate --resume" in refused


@pytest.mark.parametrize("how", ["--resume", "--cancel"])
def test_who_takes_a_rotation_over_is_told_whose_it_was(goatherd: Goatherd, first: str, how: str) -> None:
    goatherd("rotate", "--to", "published", ALONE)
    record = goatherd("show", "--json").json["rotation"]
    arguments = ["rotate", how, *([ALONE] if how == "--resume" else [])]
    told = [json.loads(line) for line in goatherd(*arguments, "--json").err.splitlines()]
    taken = [one for one in told if one["event"] == "takenOver"]
    assert [(one["rotation"], one["startedBy"], one["startedAt"]) for one in taken] == [
        (record["id"], record["startedBy"], record["startedAt"])
    ]
    assert taken[0]["phaseSince"] == record["phaseAt"]


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_a_plan_says_to_whom_what_it_costs_and_risks_and_what_would_stop_it(goatherd: Goatherd, first: str) -> None:
    nodes = ("--node", "http://127.0.0.1:1", "--node", "http://127.0.0.1:2")
    text = goatherd("rotate", "--plan", *nodes, "--quorum", "1", "--unlisted", "38s", "--health-url", ILL).out
    assert "  http://127.0.0.1:1\n  http://127.0.0.1:2\n" in text
    assert "costs at least: store writes 1, store reads 2, requests to each server 6" in text
    assert "risk: little" in text
    assert "first: 38s since published, for servers that are not listed" in text.replace("38 s", "38s")
    assert "not waited for: up to 1 of 2 servers (quorum 1)" in text
    assert f"stopped by: GET {ILL}: 3 bad answers in a row" in text
    assert goatherd("show", "--json").json["generation"] == 1
    assert goatherd("status", "--json").json["labels"] == {"current": "1"}, "not even a label was moved"


def test_a_plan_that_stops_in_a_phase_shows_the_steps_up_to_there(goatherd: Goatherd, first: str) -> None:
    plan = goatherd("rotate", "--plan", "--to", "published", "--json").json
    assert [step["step"] for step in plan["steps"]] == ["prepare", "publish"]
    assert "then it stops in phase published" in goatherd("rotate", "--dry-run", "--to", "published").out


def test_a_plan_names_the_rotation_that_would_be_carried_on_and_who_began_it(goatherd: Goatherd, first: str) -> None:
    goatherd("rotate", "--to", "activated", ALONE)
    record = goatherd("show", "--json").json["rotation"]
    plan = goatherd("rotate", "--plan", "--json").json
    assert (plan["resumes"], plan["startedBy"]) == (record["id"], record["startedBy"])
    assert f"resumes rotation {record['id']}, started by {record['startedBy']}" in goatherd("rotate", "--plan").out


# --- health -----------------------------------------------------------------------------------------------------------


def test_a_rotation_that_is_not_well_from_the_start_is_not_begun(goatherd: Goatherd, first: str) -> None:
    refused = goatherd("rotate", ALONE, "--health-url", ILL)
    assert refused.code == EXIT_CODES["rotation"]
    assert "rotation.unhealthy" in refused.err
    assert goatherd("show", "--json").json["generation"] == 1


@pytest.mark.slow
def test_a_health_check_that_fails_once_b_signs_brings_the_earlier_root_back_and_status_says_why(
    goatherd: Goatherd, first: str
) -> None:
    # Healthy three times: before the beginning, activated, verified for the first time.
    with serve_health(lambda number: number <= 3) as page:
        result = goatherd("rotate", ALONE, "--health-url", page.url, "--json")
    assert result.code == EXIT_CODES["rotation"]
    assert result.json["error"]["code"] == "rotation.not_adopted"
    told = [json.loads(line) for line in result.err.splitlines()]
    assert [one["failures"] for one in told if one["event"] == "health"] == [0, 1, 2, 3]
    status = goatherd("status", "--json").json
    assert status["identity"]["current"]["id"] == first
    last = status["lastRotation"]
    assert (last["event"], last["reason"]) == (
        "rolled-back",
        f"not healthy, 3 times in a row: GET {page.url}: status 503",
    )
    text = goatherd("status").out
    assert f"last change  rolled-back {first[:8]} -> " in text
    assert f": not healthy, 3 times in a row: GET {page.url}: status 503" in text


# --- what is left -----------------------------------------------------------------------------------------------------


def test_the_operator_is_told_when_the_old_key_is_due_and_status_proves_where_it_is(
    goatherd: Goatherd, first: str
) -> None:
    done = goatherd("rotate", ALONE)
    said = f"the private key of {first} stays in the store for 30d: `goatherd retire` destroys it from "
    due = done.out.partition(said)[2].partition(" on\n")[0]
    assert due
    keys = goatherd("status", "--json").json["privateKeys"]
    assert keys["complete"] is True
    assert keys["copies"] is None
    held = {root["id"]: root["versions"] for root in keys["roots"]}
    assert held[first] == ["3", "2", "1"]
    assert keys["retireDue"] == []
    assert keys["retireNext"] is not None
    text = goatherd("status", "--versions").out
    assert f"`goatherd retire` has nothing to destroy before {due}\n" in text


@pytest.mark.slow
def test_when_the_grace_period_is_over_status_says_so_and_after_retire_that_the_key_is_nowhere(
    goatherd: Goatherd, first: str, tmp_path: Path
) -> None:
    goatherd("rotate", ALONE)
    (tmp_path / "goatherd.toml").write_text((tmp_path / "goatherd.toml").read_text() + '[rotation]\ngrace = "0s"\n')
    assert goatherd("status", "--json").json["privateKeys"]["retireDue"] == ["3", "2", "1"]
    assert "due: `goatherd retire` destroys 3 versions: 3 2 1" in goatherd("status", "--versions").out
    assert goatherd("retire", "--yes").code == 0
    keys = goatherd("status", "--json").json["privateKeys"]
    (old,) = [root for root in keys["roots"] if root["id"] == first]
    assert old == {"id": first, "versions": [], "recordedDestroyed": True, "inSigner": False}
    assert (
        f"the private key of {first} is in no version of this secret, and the identity records"
        in goatherd("status", "--versions").out
    )


@pytest.mark.slow
def test_the_next_retire_records_that_a_key_is_stored_nowhere(
    goatherd: Goatherd, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goatherd("rotate", ALONE)
    (tmp_path / "goatherd.toml").write_text((tmp_path / "goatherd.toml").read_text() + '[rotation]\ngrace = "0s"\n')

    async def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Rotator, "_write_identity", die)
        assert goatherd("retire", "--yes").code == 130
    keys = goatherd("status", "--json").json["privateKeys"]
    assert (keys["retireDue"], keys["recordDue"]) == ([], [first])
    told = f"due: `goatherd retire` records that no version holds the private key of {first}"
    assert told in goatherd("status", "--versions").out
    assert goatherd("retire", "--yes").code == 0
    keys = goatherd("status", "--json").json["privateKeys"]
    assert keys["recordDue"] == []
    assert {"id": first, "versions": [], "recordedDestroyed": True, "inSigner": False} in keys["roots"]


def test_what_cannot_be_looked_into_is_not_said_to_be_without_keys(
    goatherd: Goatherd, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goatherd.errors import ProviderAccessDeniedError
    from goatherd.providers.file.provider import FileSecretProvider

    plain = FileSecretProvider.read

    async def read(
        self: FileSecretProvider, secret_id: str, at: str = "current", *, attempts: int | None = None
    ) -> object:
        if at != "current":
            raise ProviderAccessDeniedError("no", provider="file", secret_id=secret_id, operation="read")
        return await plain(self, secret_id, at, attempts=attempts)  # type: ignore[arg-type]

    monkeypatch.setattr(FileSecretProvider, "read", read)
    keys = goatherd("status", "--json").json["privateKeys"]
    assert (keys["complete"], keys["problem"]) == (False, "provider.access_denied")
    assert "private keys: unknown" in goatherd("status", "--versions").out


def test_the_status_leaves_out_the_versions_that_the_credentials_may_not_list(
    goatherd: Goatherd, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from goatherd.errors import ProviderAccessDeniedError
    from goatherd.providers.base import Call
    from goatherd.providers.file.provider import FileSecretProvider

    async def refuse(self: FileSecretProvider, call: Call) -> object:
        raise call.error(ProviderAccessDeniedError, "no")

    monkeypatch.setattr(FileSecretProvider, "_versions", refuse)
    shown = goatherd("status", "--versions", "--html", "status.html")
    assert shown.code == 11, shown.err
    assert shown.out.startswith("unknown: "), "no server is listed"
    assert "others are unknown, since the credentials may not list the versions" in shown.out
    assert "private keys: unknown" in shown.out
    page = (tmp_path / "status.html").read_text()
    assert "its versions cannot be read (provider.access_denied)" in page
    assert "give <code>goatherd web</code> the option" in page, "`status --html` has none for the trail"
    found = goatherd("status", "--json").json
    assert (found["privateKeys"]["complete"], found["privateKeys"]["problem"]) == (False, "provider.access_denied")
    assert found["labels"] == {"current": found["storeVersion"]}


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_become_the_policy() -> None:
    policy = build_policy(Options(rotation_quorum="80%"))
    assert policy.quorum == Quorum(fraction=0.8)
    assert build_policy(Options()) == Policy()


def test_unlisted_servers_have_their_refresh_interval_where_nodes_are_discovered_unless_it_is_said_otherwise() -> None:
    minute = Options(settings_refresh_interval=timedelta(minutes=1))
    assert build_policy(minute).unlisted == timedelta(0)
    assert build_policy(replace(minute, nodes=FOUND)).unlisted == timedelta(seconds=74)
    told = Options(rotation_unlisted=timedelta(seconds=5))
    assert build_policy(told).unlisted == build_policy(replace(told, nodes=FOUND)).unlisted == timedelta(seconds=5)


@pytest.mark.slow
def test_a_rotation_lets_everything_else_on_its_machine_go_first(goatherd: Goatherd, store: str) -> None:
    before = os.nice(0)
    goatherd("init", "--provider", store)
    script = "import os, sys\nfrom goatherd.__main__ import main\ntry:\n    main()\nfinally:\n    print(os.nice(0))\n"
    command = [sys.executable, "-c", script, "rotate", "--provider", store, ALONE, "--to", "prepared"]
    # A command that is started with `nice` is not lowered twice.
    done = subprocess.run(["nice", "-n", "3", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(max(min(before + 3, 19), 10))
    assert goatherd("rotate", "--provider", store, ALONE, "--resume").code == 0
    assert os.nice(0) == before, "a program that calls the command line keeps its priority"
