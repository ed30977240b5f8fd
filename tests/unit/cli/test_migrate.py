"""migrate: from files that GoatDB 0.5.1 wrote into a store; nothing is lost or overwritten."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.cli.text.migration import outcome_lines
from goatherd.clock import SystemClock
from goatherd.identity.session import OwnedSession
from goatherd.identity.settings_json import from_settings
from goatherd.node.log_storage import LogDirectory
from goatherd.operations.migrate import MigratedServer
from goatherd.operations.migration_files import verified_sessions
from goatherd.settings.data_directory import read_commits
from goatherd.trust import TrustPool
from tests.fakes.goatdb_data import DESCRIPTION

from .conftest import Goatherd, read_documents

NOW_MS = 1_795_000_000_000
NAMED = {session["owner"]: session["id"] for session in DESCRIPTION["sessions"]}


def settings(data: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((data / "localhost/settings.json").read_text())
    return tree


def test_an_identity_that_goatdb_wrote_is_in_the_store_afterwards(goatherd: Goatherd, data: Path, store: str) -> None:
    result = goatherd("migrate", str(data), "--provider", store, "--json")
    assert result.code == 0
    (outcome,) = result.json["organizations"]
    assert (outcome["org"], outcome["migrated"], outcome["current"]) == ("localhost", True, NAMED["root"])
    shown = goatherd("show", "--provider", store, "--json").json
    assert shown["current"]["id"] == NAMED["root"]
    assert [root["id"] for root in shown["roots"]] == [NAMED["root"]]


def test_it_says_what_it_took_out_and_that_the_file_still_holds_the_key(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    result = goatherd("migrate", str(data), "--provider", store)
    assert "private key" in result.out
    assert "settings.json still holds the private key" in result.out
    assert settings(data) == json.loads(DESCRIPTION["settings_json"]), "settings.json itself is never changed"


def test_a_second_run_changes_nothing_and_is_no_error(goatherd: Goatherd, data: Path, store: str) -> None:
    goatherd("migrate", str(data), "--provider", store)
    logs = {path: path.read_bytes() for path in data.rglob("*.jsonl")}
    versions = goatherd("versions", "--provider", store, "--json").json
    again = goatherd("migrate", str(data), "--provider", store)
    assert again.code == 0
    assert "already migrated" in again.out
    assert {path: path.read_bytes() for path in data.rglob("*.jsonl")} == logs
    assert goatherd("versions", "--provider", store, "--json").json == versions


def test_a_second_run_after_a_rotation_is_no_error_either(goatherd: Goatherd, data: Path, store: str) -> None:
    settle(data)
    goatherd("migrate", str(data), "--provider", store)
    assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes").code == 0
    again = goatherd("migrate", str(data), "--provider", store, "--json")
    assert again.code == 0
    assert again.json["organizations"][0]["alreadyThere"] is True
    told = goatherd("migrate", str(data), "--provider", store).out
    assert f"it contains the root of {data}/localhost/settings.json" in told, "another root is the current one there"


def settle(data: Path) -> None:
    """Give the root of a data directory a late expiration, so that the test does not depend on today's date."""
    tree = settings(data)
    for session in [tree["currentSession"], *tree["roots"], *tree["trustedSessions"]]:
        session["expiration"] = 4_000_000_000
    (data / "localhost/settings.json").write_text(json.dumps(tree, indent=2))


def test_a_store_with_another_identity_keeps_it(goatherd: Goatherd, data: Path, store: str) -> None:
    mine = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    logs = {path: path.read_bytes() for path in data.rglob("*.jsonl")}
    refused = goatherd("migrate", str(data), "--provider", store)
    assert refused.code == EXIT_CODES["identity"]
    assert "another identity" in refused.err
    assert goatherd("show", "--provider", store, "--json").json["current"]["id"] == mine
    assert {path: path.read_bytes() for path in data.rglob("*.jsonl")} == logs


def test_trusted_sessions_that_the_log_knows_stay_where_they_are(goatherd: Goatherd, data: Path, store: str) -> None:
    (outcome,) = goatherd("migrate", str(data), "--provider", store, "--json").json["organizations"]
    assert outcome["sessionsWritten"] == []
    assert outcome["sessionsMissing"] == []
    users = [session for session in settings(data)["trustedSessions"] if session.get("owner") != "root"]
    assert outcome["sessionsInLog"] == len(users)


def stranger(data: Path) -> OwnedSession:
    """Add a session to trustedSessions that is not in the log, as GoatDB 0.5.1 can leave one."""
    owned = OwnedSession.generate(session_id="a" * 24, owner="u7", now_ms=NOW_MS)
    tree = settings(data)
    tree["trustedSessions"].append(owned.session.to_json())
    (data / "localhost/settings.json").write_text(json.dumps(tree, indent=2))
    return owned


def test_a_session_that_only_settings_json_knows_is_written_into_the_log(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    owned = stranger(data)
    log = data / "localhost/sys/sessions.jsonl"
    before = log.read_bytes()
    (outcome,) = goatherd("migrate", str(data), "--provider", store, "--json").json["organizations"]
    assert outcome["sessionsWritten"] == [owned.id]
    assert log.read_bytes().startswith(before), "the log is only appended to"
    document, _, _ = from_settings(DESCRIPTION["settings_json"], NOW_MS)
    pool = TrustPool(org="localhost", current=document.current, roots=document.roots)
    pool.offer_session_commits(read_commits(log, "localhost"))
    assert pool.get_session(owned.id) == owned.session
    assert pool.get_session(NAMED["u1"]).owner == "u1"
    again = goatherd("migrate", str(data), "--provider", store, "--json").json["organizations"][0]
    assert again["sessionsWritten"] == []
    assert again["sessionsInLog"] == outcome["sessionsInLog"] + 1


def test_it_can_be_told_not_to_write_and_then_reports_what_is_missing(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    owned = stranger(data)
    before = (data / "localhost/sys/sessions.jsonl").read_bytes()
    result = goatherd("migrate", str(data), "--provider", store, "--no-write-sessions", "--json")
    assert result.json["organizations"][0]["sessionsMissing"] == [owned.id]
    assert (data / "localhost/sys/sessions.jsonl").read_bytes() == before


def test_a_dry_run_changes_nothing(goatherd: Goatherd, data: Path, store: str, tmp_path: Path) -> None:
    stranger(data)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = goatherd("migrate", str(data), "--provider", store, "--dry-run")
    assert result.code == 0
    heads, row, *rest = result.out.splitlines()
    assert heads.split() == ["DIRECTORY", "HOLDS", "WHAT", "WILL", "HAPPEN"]
    assert row.startswith(f"{data}/localhost  root {NAMED['root']}, ")
    assert f"root {NAMED['root']} goes into {store}; 1 session that the log lacks is written into it" in row
    assert "was" not in "".join(rest[:-1]), "nothing has happened yet"
    assert rest[-1] == "this was a dry run: nothing was written"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_log_of_a_running_goatherd_server_is_not_touched(goatherd: Goatherd, data: Path, store: str) -> None:
    stranger(data)
    before = (data / "localhost/sys/sessions.jsonl").read_bytes()
    with LogDirectory(data / "localhost"):
        refused = goatherd("migrate", str(data), "--provider", store)
    assert refused.code == EXIT_CODES["node"]
    assert "in use" in refused.err
    assert (data / "localhost/sys/sessions.jsonl").read_bytes() == before
    assert goatherd("show", "--provider", store).code == EXIT_CODES["provider"], "nothing was put into the store"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files can be seen in /proc only")
def test_the_log_of_a_running_goatdb_server_is_not_touched(goatherd: Goatherd, data: Path, store: str) -> None:
    log = data / "localhost/sys/sessions.jsonl"
    script = "import sys; file = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        refused = goatherd("migrate", str(data), "--provider", store)
        process.communicate()
    assert refused.code == EXIT_CODES["node"]
    assert f"process {process.pid}" in refused.err


def test_several_organizations_need_a_secret_each(goatherd: Goatherd, data: Path, store: str, tmp_path: Path) -> None:
    shutil.copytree(data / "localhost", data / "acme")
    (data / "acme/sys/sessions.jsonl").unlink()  # it is signed for the other organization
    refused = goatherd("migrate", str(data), "--provider", store)
    assert refused.code == EXIT_CODES["configuration"]
    assert "{org}" in refused.err
    done = goatherd("migrate", str(data), "--provider", f"file://{tmp_path}/keys/{{org}}/root", "--json")
    assert [outcome["org"] for outcome in done.json["organizations"]] == ["acme", "localhost"]
    refused = goatherd("migrate", str(data), "--org", "acme", "--provider", store)
    assert "organization 'acme' would use the same identity" in refused.err


def test_an_organization_that_is_refused_stops_all_of_them_before_anything_is_written(
    goatherd: Goatherd, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "localhost", data / "acme")
    (data / "acme/sys/sessions.jsonl").unlink()  # it is signed for the other organization
    goatherd("init", "--provider", f"file://{tmp_path}/keys/localhost/root")
    refused = goatherd("migrate", str(data), "--provider", f"file://{tmp_path}/keys/{{org}}/root")
    assert refused.code == EXIT_CODES["identity"]
    assert not (tmp_path / "keys/acme").exists()


def test_one_organizations_directory_or_its_file_will_do(goatherd: Goatherd, data: Path, tmp_path: Path) -> None:
    for number, source in enumerate((data / "localhost", data / "localhost/settings.json")):
        result = goatherd("migrate", str(source), "--provider", f"file://{tmp_path}/keys{number}/root", "--json")
        (outcome,) = result.json["organizations"]
        assert outcome["org"] == "localhost"
        assert outcome["sessionsMissing"] == []


def test_the_organization_is_told_from_the_signatures_where_the_directory_has_another_name(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    moved = (data / "localhost").rename(data.parent / "database")
    (outcome,) = goatherd("migrate", str(moved), "--provider", store, "--json").json["organizations"]
    assert outcome["org"] == "localhost"
    assert outcome["sessionsMissing"] == outcome["sessionsWritten"] == []


@pytest.mark.parametrize("way", ["--org", "a directory with another name"])
def test_a_log_of_another_organization_is_not_migrated_and_the_right_one_is_named(
    goatherd: Goatherd, data: Path, tmp_path: Path, way: str
) -> None:
    stranger(data)
    source, more = data / "localhost", ["--org", "acme"]
    if way != "--org":
        source.rename(data / "acme")
        source, more = data, []
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command = ["migrate", str(source), *more, "--provider", f"file://{tmp_path}/keys/{{org}}/root"]
    for last in ([], ["--dry-run"]):
        refused = goatherd(*command, *last)
        assert refused.code == EXIT_CODES["configuration"]
        assert "as organization 'acme'" in refused.err
        assert "signed for organization 'localhost'" in refused.err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_log_that_the_root_of_the_file_has_never_signed_is_not_migrated(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    new = OwnedSession.generate(session_id="r" * 24, owner="root", now_ms=NOW_MS)
    tree = {"currentSession": new.to_secret_json(), "roots": [new.session.to_json()], "trustedSessions": []}
    (data / "localhost/settings.json").write_text(json.dumps(tree))
    refused = goatherd("migrate", str(data), "--provider", store)
    assert refused.code == EXIT_CODES["configuration"]
    assert "another root than the log" in refused.err
    assert goatherd("show", "--provider", store).code == EXIT_CODES["provider"]


def test_a_settings_json_alone_has_no_log_to_look_into(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path
) -> None:
    alone = shutil.copy(data / "localhost/settings.json", tmp_path / "settings.json")
    result = goatherd("migrate", str(alone), "--provider", store)
    assert result.code == 0
    assert "in no log" in result.out


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"currentSession": {}}'])
def test_a_file_that_cannot_be_believed_is_an_error_and_never_a_new_identity(
    goatherd: Goatherd, data: Path, store: str, text: str
) -> None:
    (data / "localhost/settings.json").write_text(text)
    assert goatherd("migrate", str(data), "--provider", store).code == EXIT_CODES["identity"]
    assert goatherd("show", "--provider", store).code == EXIT_CODES["provider"]


def test_a_private_key_that_is_not_the_public_ones_is_refused(goatherd: Goatherd, data: Path, store: str) -> None:
    tree = settings(data)
    other = OwnedSession.generate(session_id="x" * 24, owner="root", now_ms=NOW_MS).to_secret_json()
    tree["currentSession"]["privateKey"] = other["privateKey"]
    (data / "localhost/settings.json").write_text(json.dumps(tree))
    refused = goatherd("migrate", str(data), "--provider", store)
    assert "identity.key_mismatch" in refused.err
    assert other["privateKey"]["d"] not in refused.err


def test_of_several_files_the_broken_one_is_named(goatherd: Goatherd, data: Path, store: str) -> None:
    (data / "localhost/settings.json").write_text("{")
    assert (
        "localhost/settings.json: the identity is not JSON" in goatherd("migrate", str(data), "--provider", store).err
    )


def test_no_hint_recommends_to_rotate_an_expired_root(goatherd: Goatherd, data: Path, store: str) -> None:
    tree = settings(data)
    tree["currentSession"]["expiration"] = SystemClock().now_ms() / 1000 - 3600
    tree["roots"], tree["trustedSessions"] = [], []
    (data / "localhost/settings.json").write_text(json.dumps(tree))
    migrated = goatherd("migrate", str(data), "--provider", store)
    assert migrated.code == 0, migrated.err
    doctor = goatherd("doctor", "--provider", store, "--json").json["checks"]
    told = [next(check["hint"] for check in doctor if "expired" in check["text"]), migrated.out]
    told += [goatherd("export", "x.json", "--provider", store).err]
    told += [goatherd("rotate", "--unsafe-without-nodes", "--provider", store).err]
    for text in told:
        assert "goatherd rotate --replace-expired" in text
        assert "rotate it" not in text
        assert "Rotate first" not in text


def test_a_session_with_two_keys_stops_it(goatherd: Goatherd, data: Path, store: str) -> None:
    tree = settings(data)
    forged = OwnedSession.generate(session_id=NAMED["u1"], owner="u1", now_ms=NOW_MS).session.to_json()
    tree["trustedSessions"] = [
        forged if session["id"] == NAMED["u1"] else session for session in tree["trustedSessions"]
    ]
    (data / "localhost/settings.json").write_text(json.dumps(tree))
    refused = goatherd("migrate", str(data), "--provider", store)
    assert refused.code == EXIT_CODES["settings"]
    assert "forged" in refused.err
    assert goatherd("show", "--provider", store).code == EXIT_CODES["provider"]


def test_a_log_with_good_records_behind_a_broken_one_is_left_alone(goatherd: Goatherd, data: Path, store: str) -> None:
    log = data / "localhost/sys/sessions.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([*lines[:3], b"{broken", *lines[3:]]))
    refused = goatherd("migrate", str(data), "--provider", store)
    assert refused.code == EXIT_CODES["node"]
    assert "good records follow it" in refused.err


def test_a_path_without_settings_is_told(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "nowhere"):
        assert goatherd("migrate", str(source), "--provider", store).code == EXIT_CODES["configuration"]


def test_a_mistyped_organization_is_told_with_those_that_there_are(goatherd: Goatherd, data: Path, store: str) -> None:
    refused = goatherd("migrate", str(data), "--org", "locahost", "--provider", store)
    assert refused.code == EXIT_CODES["configuration"]
    assert "no data of organization 'locahost'; it holds the organizations localhost" in refused.err


def test_what_was_migrated_can_be_exported_with_the_sessions_of_the_log(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path
) -> None:
    settle(data)
    goatherd("migrate", str(data), "--provider", store)
    file = tmp_path / "exported.json"
    result = goatherd("export", str(file), "--provider", store, "--data", str(data / "localhost"))
    assert result.code == 0, result.err
    exported, before = json.loads(file.read_text()), settings(data)
    assert exported["currentSession"]["privateKey"] == before["currentSession"]["privateKey"]
    assert {session["id"] for session in exported["trustedSessions"]} == set(NAMED.values())
    document, _, _ = from_settings(file.read_bytes(), NOW_MS)
    assert {s.id for s in verified_sessions(data / "localhost", document, "localhost")} == set(NAMED.values()) - {
        NAMED["root"]
    }


def test_no_file_is_exported_for_the_data_of_another_identity(
    goatherd: Goatherd, data: Path, tmp_path: Path, store: str
) -> None:
    """A server that starts with such a file would reject its own sessions and what they have signed."""
    goatherd("init", "--provider", store)
    file = data / "localhost/settings.json"
    before = file.read_bytes()
    refused = goatherd("export", str(file), "--replace", "--provider", store, "--data", str(data / "localhost"))
    assert refused.code == EXIT_CODES["configuration"]
    assert "sys/sessions.jsonl verifies with the identity" in refused.err
    assert file.read_bytes() == before


def test_a_link_whose_file_in_memory_is_gone_is_told_and_can_be_replaced(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path
) -> None:
    """The file is lost after a power failure under `goatherd run`."""
    settle(data)
    goatherd("migrate", str(data), "--provider", store)
    file = data / "localhost/settings.json"
    file.unlink()
    file.symlink_to(tmp_path / "gone.json")
    refused = goatherd("export", str(file), "--provider", store)
    assert refused.code == EXIT_CODES["identity"]
    assert "already exists" in refused.err
    assert f"It is a link to {tmp_path / 'gone.json'}, such as `goatherd run` makes." in refused.err
    assert "private key in it" not in refused.err, "a link to nothing leads to no key"
    assert "--replace" in refused.err
    assert goatherd("export", str(file), "--provider", store, "--replace").code == 0
    assert settings(data)["currentSession"]["id"] == NAMED["root"]


def test_export_needs_a_log_where_a_data_directory_is_named(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    refused = goatherd("export", str(tmp_path / "x.json"), "--provider", store, "--data", str(tmp_path))
    assert refused.code == EXIT_CODES["configuration"]
    assert not (tmp_path / "x.json").exists()


def test_what_lies_in_the_store_is_a_checked_identity_document(goatherd: Goatherd, data: Path, store: str) -> None:
    goatherd("migrate", str(data), "--provider", store)
    assert [document.current.id for document in read_documents(store)] == [NAMED["root"]]


@pytest.mark.parametrize("listed", ["with the private key", "not at all", "with another expiration", "safely"])
def test_a_server_that_gives_its_key_away_is_named_and_a_revocation_asked_for(
    goatherd: Goatherd, data: Path, store: str, listed: str
) -> None:
    """After a rotation, servers would still trust the root whose key may have been stolen."""
    tree = settings(data)
    public = {name: value for name, value in tree["currentSession"].items() if name != "privateKey"}
    if listed == "not at all":
        tree["roots"] = []
    elif listed == "with another expiration":
        tree["roots"] = [{**public, "expiration": public["expiration"] - 86_400}]
    elif listed == "safely":
        tree["roots"] = [public]
    (data / "localhost/settings.json").write_text(json.dumps(tree))
    result = goatherd("migrate", str(data), "--provider", store, "--json")
    (outcome,) = result.json["organizations"]
    told = [note for note in outcome["notes"] if "to any caller" in note and f"goatherd revoke {NAMED['root']}" in note]
    assert len(told) == (0 if listed == "safely" else 1)


def test_on_the_first_day_the_doctor_notes_the_short_life_of_goatdbs_roots_without_a_failure(
    goatherd: Goatherd, data: Path, store: str
) -> None:
    tree = settings(data)
    tree["currentSession"]["expiration"] = SystemClock().now_ms() / 1000 + 29 * 86_400
    tree["roots"], tree["trustedSessions"] = [], []
    (data / "localhost/settings.json").write_text(json.dumps(tree))
    assert goatherd("migrate", str(data), "--provider", store).code == 0
    checks = goatherd("doctor", "--provider", store, "--json").json["checks"]
    (check,) = (one for one in checks if one["name"] == "expiration")
    assert check["text"] == "29 days left"
    assert "A root that a rotation makes is valid for 180d" in check["hint"]
    assert "overdue" not in check["hint"]


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")


def git(directory: Path, *words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, "-C", str(directory), *words], check=True, capture_output=True)


def told_to_revoke(goatherd: Goatherd, data: Path, store: str) -> list[str]:
    """Return the notes of a dry run that ask for a revocation because of a git repository."""
    result = goatherd("migrate", str(data), "--provider", store, "--dry-run", "--json")
    notes = result.json["organizations"][0]["notes"]
    return [note for note in notes if "git repository" in note and f"goatherd revoke {NAMED['root']}" in note]


@needs_git
def test_a_key_in_a_git_repository_or_its_history_must_be_revoked(goatherd: Goatherd, data: Path, store: str) -> None:
    git(data, "init")
    assert not told_to_revoke(goatherd, data, store)
    git(data, "add", "localhost/settings.json")
    assert told_to_revoke(goatherd, data, store)
    git(data, "commit", "-m", "x")
    git(data, "rm", "--cached", "localhost/settings.json")
    git(data, "commit", "-m", "y")
    assert told_to_revoke(goatherd, data, store), "the history still holds it"


@needs_git
@pytest.mark.parametrize("name", ["server/settings.json", "backup.json", "settings.json.bak", "old/Settings-prod.txt"])
def test_a_key_that_git_has_under_another_name_must_be_revoked_too(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path, name: str
) -> None:
    git(tmp_path, "init")
    (tmp_path / "note.json").write_text("{}")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes((data / "localhost/settings.json").read_bytes() + b"\n")
    git(tmp_path, "add", "note.json")
    git(tmp_path, "commit", "-m", "w")
    assert not told_to_revoke(goatherd, data, store)
    git(tmp_path, "add", name)
    assert told_to_revoke(goatherd, data, store), "staged"
    git(tmp_path, "commit", "-m", "x")
    git(tmp_path, "rm", name)
    git(tmp_path, "commit", "-m", "y")
    (note,) = told_to_revoke(goatherd, data, store)
    assert f"({name})" in note
    assert str(tmp_path) in note


@needs_git
def test_a_key_on_another_branch_is_found(goatherd: Goatherd, data: Path, store: str) -> None:
    git(data, "init", "-b", "main")
    git(data, "commit", "--allow-empty", "-m", "w")
    git(data, "checkout", "-b", "old")
    git(data, "add", "localhost/settings.json")
    git(data, "commit", "-m", "x")
    git(data, "rm", "--cached", "localhost/settings.json")
    git(data, "checkout", "-f", "main")
    (data / "localhost/settings.json").write_text(DESCRIPTION["settings_json"])
    assert told_to_revoke(goatherd, data, store)


@needs_git
def test_a_key_in_a_commit_that_was_amended_is_found(goatherd: Goatherd, data: Path, store: str) -> None:
    git(data, "init")
    (data / ".gitignore").write_text("localhost/\n")
    shutil.copy(data / "localhost/settings.json", data / "notes.txt")
    git(data, "add", ".gitignore", "notes.txt")
    git(data, "commit", "-m", "x")
    git(data, "rm", "notes.txt")
    git(data, "commit", "--amend", "-m", "y")
    (note,) = told_to_revoke(goatherd, data, store)
    assert "(notes.txt)" in note
    git(data, "reflog", "expire", "--expire=now", "--all")
    (note,) = told_to_revoke(goatherd, data, store)
    assert "(object " in note, "git keeps it for weeks, and no reflog leads to it"


@needs_git
def test_a_settings_json_that_git_has_without_the_key_is_no_leak(goatherd: Goatherd, data: Path, store: str) -> None:
    git(data, "init")
    (data / "localhost/settings.json").write_text("{}")
    git(data, "add", "localhost/settings.json")
    git(data, "commit", "-m", "template")
    (data / "localhost/settings.json").write_text(DESCRIPTION["settings_json"])
    assert not told_to_revoke(goatherd, data, store)
    git(data, "add", "localhost/settings.json")
    assert told_to_revoke(goatherd, data, store), "staged"


@needs_git
def test_a_part_of_a_history_is_not_called_clean(goatherd: Goatherd, data: Path, store: str, tmp_path: Path) -> None:
    git(tmp_path, "init", "origin")
    for message in ("x", "y"):
        git(tmp_path / "origin", "commit", "--allow-empty", "-m", message)
    git(tmp_path, "clone", "--depth", "1", f"file://{tmp_path}/origin", "clone")
    (data / "localhost").rename(tmp_path / "clone/localhost")
    (note,) = told_to_revoke(goatherd, tmp_path / "clone", store)
    assert "shallow clone" in note


@pytest.mark.parametrize("problem", ["no git", "refuses"])
def test_where_git_cannot_be_asked_the_repository_is_named(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    (data / ".git").mkdir()
    programs = tmp_path / "programs"
    programs.mkdir()
    if problem == "refuses":
        (programs / "git").write_text('#!/bin/sh\necho "fatal: detected dubious ownership" >&2; exit 128\n')
        (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    (note,) = told_to_revoke(goatherd, data, store)
    assert "could not be checked" in note
    assert ("no git command" if problem == "no git" else "dubious ownership") in note


@needs_git
def test_git_is_never_given_the_key_as_an_argument(
    goatherd: Goatherd, data: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(data, "init")
    git(data, "commit", "--allow-empty", "-m", "w")
    real, programs, seen = shutil.which("git"), tmp_path / "programs", tmp_path / "seen"
    programs.mkdir()
    (programs / "git").write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexec {real} "$@"\n')
    (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    assert not told_to_revoke(goatherd, data, store)
    assert settings(data)["currentSession"]["privateKey"]["d"] not in seen.read_text()
    assert "cat-file --batch" in seen.read_text()


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (
            1,
            [
                "1 trusted user session is in",
                "1 trusted user session was written into",
                "1 trusted user session is in no log: s0",
            ],
        ),
        (
            2,
            [
                "2 trusted user sessions are in",
                "2 trusted user sessions were written into",
                "2 trusted user sessions are in no log: s0 s1",
            ],
        ),
    ],
)
def test_one_session_is_told_as_one(tmp_path: Path, count: int, found: list[str]) -> None:
    ids = tuple(f"s{number}" for number in range(count))
    outcome = MigratedServer(
        org="localhost",
        settings=tmp_path,
        store="file root",
        current_id="a",
        own_root_id="a",
        is_new=True,
        in_log=count,
        written=ids,
        missing=ids,
        notes=(),
        dry_run=False,
        is_read_back=False,
    )
    told = "\n".join(outcome_lines(outcome))
    assert all(one in told for one in found)
