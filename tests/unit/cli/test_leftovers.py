"""What an interrupted change left in the store: shown, not copied, not labelled, and destroyed by retire."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import Goatherd


@pytest.fixture
def secret(goatherd: Goatherd, store: str) -> str:
    """The URI of a store that has rotated; a copy of its first version stands there as version 9, which none names."""
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    folder = Path(store.removeprefix("file://"))
    shutil.copy2(folder / "1.value", folder / "9.value")
    return store


def test_versions_and_status_show_it_and_whose_key_it_holds(goatherd: Goatherd, secret: str):
    listed = goatherd("versions", "--provider", secret, "--json").json["versions"]
    assert [version["id"] for version in listed if version["leftover"]] == ["9"]
    assert "left by an interrupted change: 9;" in goatherd("versions", "--provider", secret).out
    shown = goatherd("status", "--provider", secret)
    assert "9        (left over)" in shown.out
    keys = goatherd("status", "--provider", secret, "--json").json["privateKeys"]["versions"]
    first, left = (next(one for one in keys if one["id"] == version) for version in ("1", "9"))
    assert left["leftover"]
    assert left["privateKeysOf"] == first["privateKeysOf"] != []


def test_it_gets_no_label_and_the_error_says_why(goatherd: Goatherd, secret: str):
    refused = goatherd("versions", "label", "mine", "9", "--provider", secret)
    assert refused.code != 0
    assert "version 9 is what an interrupted change left, and takes no label" in refused.err


def test_it_is_not_copied(goatherd: Goatherd, secret: str, tmp_path: Path):
    copied = goatherd("copy", secret, f"file://{tmp_path}/other/copied")
    assert copied.code == 0, copied.err
    assert "skipped version 9: left by an interrupted change" in copied.out
    assert not (tmp_path / "other/copied/9.value").exists()


def test_retire_destroys_it_when_its_key_is_due(goatherd: Goatherd, secret: str, tmp_path: Path):
    (tmp_path / "goatherd.toml").write_text('[rotation]\ngrace = "0s"\n')
    retired = goatherd("retire", "--provider", secret, "--yes")
    assert retired.code == 0, retired.err
    assert not Path(secret.removeprefix("file://"), "9.value").exists()
    listed = goatherd("versions", "--provider", secret, "--json").json["versions"]
    assert not any(version["leftover"] for version in listed)
