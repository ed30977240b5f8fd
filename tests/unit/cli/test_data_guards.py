"""A command that starts on a data directory rejects one of another organization or identity, and files of a newer
GoatDB."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from tests.unit.settings.test_data_directory import RECORD, newer_settings

from .conftest import Goatherd

STARTS = {
    "serve": (["serve", "--port", "0"], []),
    "run": (["run"], ["--", "true"]),
    "watch": (["watch", "--on-change", "ignore"], []),
    "fetch": (["fetch"], []),
    "fetch --plain-file": (["fetch", "--plain-file"], []),
}


@pytest.fixture
def identity(goatherd: Goatherd, store: str) -> str:
    assert goatherd("init", "--provider", store).code == 0
    return store


@pytest.mark.parametrize("name", STARTS)
def test_a_mistyped_data_directory_is_an_error_and_nothing_is_created(
    goatherd: Goatherd, identity: str, tmp_path: Path, name: str
) -> None:
    command, more = STARTS[name]
    missing = tmp_path / "dta"
    result = goatherd(*command, "--provider", identity, "--data", str(missing), *more)
    assert result.code == EXIT_CODES["configuration"]
    assert f"the data directory {missing} does not exist" in result.err
    assert "--create" in result.err
    assert not missing.exists()


@pytest.mark.parametrize("name", STARTS)
def test_a_directory_of_other_files_is_an_error_and_stays_as_it_is(
    goatherd: Goatherd, identity: str, tmp_path: Path, name: str
) -> None:
    command, more = STARTS[name]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").touch()
    result = goatherd(*command, "--provider", identity, "--data", str(other), *more)
    assert result.code == EXIT_CODES["configuration"]
    assert "holds no data of organization 'localhost'" in result.err
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", STARTS)
def test_a_log_of_a_newer_goatdb_is_not_served_as_an_empty_database(
    goatherd: Goatherd, identity: str, tmp_path: Path, name: str
) -> None:
    command, more = STARTS[name]
    log = tmp_path / "data" / "localhost" / "data" / "notes.goat"
    log.parent.mkdir(parents=True)
    log.write_bytes(RECORD)
    result = goatherd(*command, "--provider", identity, "--data", str(tmp_path / "data"), *more)
    assert result.code == EXIT_CODES["node"]
    assert f"{log} is a log of a newer GoatDB" in result.err
    assert "[node.newer_format]" in result.err
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == ["data", "localhost", "notes.goat"]


@pytest.mark.parametrize("name", STARTS)
def test_a_settings_json_with_a_newer_key_is_named_and_kept(
    goatherd: Goatherd, identity: str, tmp_path: Path, name: str
) -> None:
    command, more = STARTS[name]
    file = tmp_path / "data" / "localhost" / "settings.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(newer_settings()))
    result = goatherd(*command, "--provider", identity, "--data", str(tmp_path / "data"), *more)
    assert result.code == EXIT_CODES["node"]
    assert f"{file} holds an Ed25519 key, which is a newer GoatDB's key" in result.err
    assert "0.5.1" in result.err
    assert json.loads(file.read_text()) == newer_settings()


def test_migrate_refuses_a_newer_key_and_a_newer_log_without_a_misleading_hint(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    directory = tmp_path / "data" / "localhost"
    directory.mkdir(parents=True)
    (directory / "settings.json").write_text(json.dumps(newer_settings()))
    for path in (tmp_path / "data", directory, directory / "settings.json"):
        result = goatherd("migrate", str(path), "--provider", store)
        assert result.code in (EXIT_CODES["node"], EXIT_CODES["identity"]), path
        assert "a newer GoatDB's key" in result.err
        assert "0.5.1" in result.err
        assert "backup or an earlier version" not in result.err
    (directory / "sys").mkdir()
    (directory / "sys" / "sessions.goat").write_bytes(RECORD)
    (directory / "settings.json").write_text("{}")
    assert "sessions.goat is a log of a newer GoatDB" in goatherd("migrate", str(directory), "--provider", store).err
    assert not (tmp_path / "keys").exists()


def test_serve_from_a_settings_json_with_a_newer_key_says_so(goatherd: Goatherd, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(newer_settings()))
    (tmp_path / "data").mkdir()
    result = goatherd("serve", "--settings", str(file), "--data", str(tmp_path / "data"), "--port", "0")
    assert result.code == EXIT_CODES["identity"]
    assert "[identity.newer_key]" in result.err
    assert "backup" not in result.err


def test_fetch_creates_a_data_directory_when_it_is_told_to(goatherd: Goatherd, identity: str, tmp_path: Path) -> None:
    words = ["fetch", "--plain-file", "--provider", identity, "--data", str(tmp_path / "new")]
    assert goatherd(*words, "--create").code == 0
    assert (tmp_path / "new" / "localhost" / "settings.json").exists()
    assert goatherd(*words).code == 0, "from then on it is a data directory"


@pytest.mark.parametrize("name", ["run", "fetch"])
def test_a_goatdb_server_is_not_started_on_a_log_that_it_would_cut_off(
    goatherd: Goatherd, identity: str, tmp_path: Path, name: str
) -> None:
    command, more = STARTS[name]
    log = tmp_path / "data" / "localhost" / "data" / "notes.jsonl"
    log.parent.mkdir(parents=True)
    log.write_bytes(b'\n{"id":"a"}\n\n{"id":b"}\n\n{"id":"c"}\n')
    before = log.read_bytes()
    result = goatherd(*command, "--provider", identity, "--data", str(tmp_path / "data"), *more)
    assert result.code == EXIT_CODES["node"]
    assert f"{log}: the line at byte 13 is not JSON, and 1 good records follow it" in result.err
    assert f"goatherd doctor --data repair {tmp_path / 'data' / 'localhost'}" in result.err
    assert log.read_bytes() == before
    log.write_bytes(b'\n{"id":"a"}\n\n{"id":"c"}\n\n{"id":')
    assert goatherd("fetch", "--plain-file", "--provider", identity, "--data", str(tmp_path / "data")).code == 0, (
        "a torn last line is no reason"
    )
    assert log.read_bytes() == b'\n{"id":"a"}\n\n{"id":"c"}\n\n'
