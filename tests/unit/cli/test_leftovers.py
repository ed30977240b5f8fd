"""Values that an interrupted change left in the store: listed, not copied, not labelled, and destroyed by retire."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from .conftest import Goatherd


@pytest.fixture
def secret(goatherd: Goatherd, store: str) -> str:
    """Return the URI of a store after a rotation; a copy of its first version is stored as version 9, which no record
    names."""
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    folder = Path(store.removeprefix("file://"))
    shutil.copy2(folder / "1.value", folder / "9.value")
    return store


def test_versions_and_status_show_it_and_whose_key_it_holds(goatherd: Goatherd, secret: str):
    listed = goatherd("versions", "--provider", secret, "--json").json["versions"]
    assert [version["id"] for version in listed if version["leftover"]] == ["9"]
    assert "left by an interrupted change: 9;" in goatherd("versions", "--provider", secret).out
    shown = goatherd("status", "--versions", "--provider", secret)
    assert "9        (left over)" in shown.out
    keys = goatherd("status", "--provider", secret, "--json").json["privateKeys"]["versions"]
    first, left = (next(one for one in keys if one["id"] == version) for version in ("1", "9"))
    assert left["leftover"]
    assert left["privateKeysOf"] == first["privateKeysOf"] != []


def test_it_gets_no_label_and_the_error_says_why(goatherd: Goatherd, secret: str):
    refused = goatherd("versions", "label", "mine", "9", "--provider", secret)
    assert refused.code != 0
    assert "version 9 was left by an interrupted change and cannot have a label" in refused.err


def test_it_is_not_copied(goatherd: Goatherd, secret: str, tmp_path: Path):
    copied = goatherd("copy", secret, f"file://{tmp_path}/other/copied")
    assert copied.code == 0, copied.err
    assert "skipped version 9: left by an interrupted change" in copied.out
    assert not (tmp_path / "other/copied/9.value").exists()


@pytest.mark.slow
def test_retire_destroys_it_when_its_key_is_due(goatherd: Goatherd, secret: str, tmp_path: Path):
    (tmp_path / "goatherd.toml").write_text('[rotation]\ngrace = "0s"\n')
    tried = goatherd("retire", "--provider", secret, "--dry-run")
    assert re.search(
        r"would destroy version 9, of [^:]+:\S+: left over from an interrupted change; the private key of", tried.out
    )
    retired = goatherd("retire", "--provider", secret, "--yes", "--audit-log", str(tmp_path / "audit"))
    assert retired.code == 0, retired.err
    assert not Path(secret.removeprefix("file://"), "9.value").exists()
    listed = goatherd("versions", "--provider", secret, "--json").json["versions"]
    assert not any(version["leftover"] for version in listed)
    records = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    decided = [one["data"] for one in records if one.get("event") == "decided"]
    assert [one["isLeftover"] for one in decided if one["action"] == "destroy" and one["version"] == "9"] == [True]


@pytest.mark.slow
def test_retire_destroys_one_that_is_no_identity_and_says_before_that_it_would(
    goatherd: Goatherd, secret: str, tmp_path: Path
):
    (tmp_path / "goatherd.toml").write_text('[rotation]\ngrace = "0s"\n')
    left = Path(secret.removeprefix("file://"), "9.value")
    left.write_bytes(left.read_bytes()[:-40])
    tried = goatherd("retire", "--provider", secret, "--dry-run")
    assert "left over from an interrupted change; not an identity (identity.malformed)" in tried.out
    retired = goatherd("retire", "--provider", secret, "--yes", "--json")
    assert retired.code == 0, retired.err
    assert "9" in retired.json["destroyed"]
    assert not left.exists()
    assert all(root["recordedDestroyed"] for root in retired.json["privateKeys"]["roots"] if not root["versions"])


def test_revoke_destroys_it_without_waiting(goatherd: Goatherd, secret: str):
    folder = Path(secret.removeprefix("file://"))
    keys = goatherd("status", "--provider", secret, "--json").json["privateKeys"]["versions"]
    (stolen,) = next(one for one in keys if one["id"] == "1")["privateKeysOf"]
    revoked = goatherd(
        "revoke",
        stolen,
        "--reason",
        "x",
        "--yes",
        "--destroy",
        "--unsafe-without-nodes",
        "--provider",
        secret,
        "--json",
    )
    assert revoked.json["keysLeft"] == [], revoked.out
    assert not (folder / "9.value").exists()
    assert not (folder / "1.value").exists()


@pytest.mark.slow
def test_revoke_names_one_that_cannot_be_looked_into_and_destroys_it_too(goatherd: Goatherd, secret: str):
    left = Path(secret.removeprefix("file://"), "9.value")
    left.write_bytes(left.read_bytes()[:-40])
    keys = goatherd("status", "--provider", secret, "--json").json["privateKeys"]["versions"]
    (stolen,) = next(one for one in keys if one["id"] == "1")["privateKeysOf"]
    common = ("revoke", stolen, "--unsafe-without-nodes", "--provider", secret)
    plan = goatherd(*common, "--plan", "--json").json
    assert (plan["unknownLeft"], "9" in plan["keysLeft"]) == (["9"], False)
    assert (
        "stored versions that an interrupted change has left and that cannot be read: 9."
        in goatherd(*common, "--plan").out
    )
    assert left.exists()
    revoked = goatherd(*common, "--reason", "x", "--yes", "--destroy", "--json").json
    assert revoked["unknownLeft"] == []
    assert not left.exists()
