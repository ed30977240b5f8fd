"""init, show, versions, export: what they write, what they do not overwrite, and what they never show."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.identity.settings_json import from_settings

from .conftest import Goatherd


def test_init_creates_an_identity_that_show_shows_without_its_key(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    made = goatherd("init", "--provider", store, "--json").json
    shown = goatherd("show", "--provider", store, "--json").json
    assert made["current"]["id"] == shown["current"]["id"]
    assert shown["generation"] == 1
    assert shown["labels"] == ["current"]
    assert "privateKey" not in json.dumps(shown)


def test_a_store_that_has_an_identity_keeps_it(goatherd: Goatherd, store: str) -> None:
    before = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    second = goatherd("init", "--provider", store)
    assert second.code == EXIT_CODES["identity"]
    assert "identity.exists" in second.err
    assert goatherd("show", "--provider", store, "--json").json["current"]["id"] == before


def test_a_store_that_cannot_be_read_is_not_an_empty_one(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    for path in (tmp_path / "keys").rglob("*"):
        if path.is_file() and path.stat().st_size > 500:
            path.write_bytes(b"{")
    assert goatherd("show", "--provider", store).code in (EXIT_CODES["identity"], EXIT_CODES["provider"])
    assert goatherd("init", "--provider", store).code == EXIT_CODES["provider"]


def test_the_lifetime_of_a_root_can_be_chosen(goatherd: Goatherd, store: str) -> None:
    assert "valid for 20d" in goatherd("init", "--provider", store, "--lifetime", "20d").out


@pytest.mark.parametrize(("lifetime", "is_warned"), [("12d", True), ("15d", True), ("30d", True), ("31d", False)])
def test_a_life_so_short_that_an_unmodified_server_would_give_the_key_away_is_warned_of(
    goatherd: Goatherd, store: str, lifetime: str, is_warned: bool
) -> None:
    for command in (["init"], ["rotate", "--unsafe-without-nodes"]):
        result = goatherd(*command, "--provider", store, "--lifetime", lifetime)
        assert result.code == 0
        assert ("exposes its private key" in result.err) is is_warned


def test_each_organization_has_its_own_identity(goatherd: Goatherd, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/keys/{{org}}/root"
    one = goatherd("init", "--provider", uri, "--org", "one", "--json").json
    two = goatherd("init", "--provider", uri, "--org", "two", "--json").json
    assert one["current"]["id"] != two["current"]["id"]
    assert goatherd("show", "--provider", uri, "--org", "one", "--json").json["current"]["id"] == one["current"]["id"]


def test_the_store_may_be_named_by_the_environment_or_the_file(
    goatherd: Goatherd, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goatherd("init", "--provider", store)
    (tmp_path / "goatherd.toml").write_text(f'provider = "{store}"\n')
    assert goatherd("show").code == 0
    (tmp_path / "goatherd.toml").write_text('provider = "file:///nowhere/at/all"\n')
    monkeypatch.setenv("GOATHERD_PROVIDER", store)
    assert goatherd("show").code == 0
    assert goatherd("show", "--provider", f"file://{tmp_path}/other/root").code == EXIT_CODES["provider"]


def test_the_longer_form_names_a_provider_too(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    secret = store.removeprefix("file://")
    text = f'type = "cloud"\n[cloudConfig]\nprovider = "file"\nsecretId = "{secret}"\n'
    (tmp_path / "goatherd.toml").write_text(text)
    assert goatherd("show").code == 0


def test_versions_lists_ids_and_labels_and_reads_no_value(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    found = goatherd("versions", "--provider", store, "--json").json["versions"]
    assert len(found) == 6
    assert found[0]["labels"] == ["current", "stable"]
    assert set(found[0]) == {"id", "created", "labels", "state", "leftover"}


def test_show_takes_a_label_or_a_version(goatherd: Goatherd, store: str) -> None:
    first = goatherd("init", "--provider", store, "--json").json
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    shown = goatherd("show", "--provider", store, "--at", first["storeVersion"], "--json").json
    assert shown["current"]["id"] == first["current"]["id"]
    stable = goatherd("show", "--provider", store, "--at", "stable", "--json").json
    assert stable["current"]["id"] != first["current"]["id"]
    assert goatherd("show", "--provider", store, "--at", "nosuch").code == EXIT_CODES["provider"]


def test_stores_shows_a_single_store_too(goatherd: Goatherd, store: str) -> None:
    missing = goatherd("stores", "status", "--provider", store, "--json")
    assert (missing.code, missing.json["stores"][0]["reachable"]) == (11, False)
    assert "store: " in goatherd("stores", "--provider", store).out
    goatherd("init", "--provider", store)
    shown = goatherd("stores", "status", "--provider", store, "--json")
    (one,) = shown.json["stores"]
    assert (shown.code, one["region"], one["role"], one["generation"], one["inStep"]) == (0, "-", "primary", 1, True)
    assert goatherd("stores", "sync", "--provider", store).code == EXIT_CODES["configuration"]


def test_export_writes_what_goatdb_reads_for_its_owner_only(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    made = goatherd("init", "--provider", store, "--json").json
    file = tmp_path / "settings.json"
    old = os.umask(0)
    try:
        assert goatherd("export", str(file), "--provider", store).code == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    tree = json.loads(file.read_text())
    assert set(tree) == {"currentSession", "roots", "trustedSessions"}
    assert all("privateKey" not in root for root in tree["roots"] + tree["trustedSessions"])
    document, _, _ = from_settings(file.read_bytes(), 0)
    assert document.current.id == made["current"]["id"]


def test_export_counts_the_roots_of_the_file_without_a_revoked_one(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    goatherd("revoke", first, "--provider", store, "--unsafe-without-nodes", "--reason", "a drill", "--yes")
    done = goatherd("export", str(tmp_path / "settings.json"), "--provider", store, "--json").json
    roots = json.loads((tmp_path / "settings.json").read_text())["roots"]
    assert first not in [root["id"] for root in roots]
    assert done["roots"] == len(roots) == 1


def test_export_never_writes_the_next_key(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--to", "prepared")
    goatherd("export", str(tmp_path / "settings.json"), "--provider", store)
    text = (tmp_path / "settings.json").read_text()
    assert text.count("privateKey") == 1
    assert "nextSession" not in text


def test_export_does_not_overwrite_another_file_unless_told(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    file = tmp_path / "settings.json"
    file.write_text("precious")
    refused = goatherd("export", str(file), "--provider", store)
    assert refused.code == EXIT_CODES["identity"]
    assert "--replace" in refused.err
    assert file.read_text() == "precious"
    assert goatherd("export", str(file), "--provider", store, "--replace").code == 0
    assert goatherd("export", str(file), "--provider", store).code == 0, "the same content again is no change"


def test_no_file_is_written_in_place_of_a_pipe(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for command in (["export", str(pipe), "--replace"], ["status", "--html", str(pipe)], ["export", str(pipe)]):
        result = goatherd(*command, "--provider", store)
        assert result.code == EXIT_CODES["settings"]
        assert f"{pipe} is not a regular file" in result.err
        assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_an_export_that_fails_leaves_nothing_half_written(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    goatherd("init", "--provider", store)
    target = tmp_path / "there"
    target.mkdir()
    (target / "settings.json").mkdir()
    assert goatherd("export", str(target / "settings.json"), "--provider", store).code != 0
    assert [path.name for path in target.iterdir()] == ["settings.json"]


def test_a_root_that_goatdb_would_extend_and_give_away_is_not_exported(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    goatherd("init", "--provider", store, "--lifetime", "14d")
    file = tmp_path / "settings.json"
    refused = goatherd("export", str(file), "--provider", store)
    assert refused.code == EXIT_CODES["identity"]
    assert "rotate" in refused.err
    assert not file.exists()
    assert goatherd("export", str(file), "--provider", store, "--unsafe-short-life").code == 0
