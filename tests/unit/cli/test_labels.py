"""versions label and unlabel: which labels they change, which they leave, and what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES, EXIT_USAGE

from .conftest import Goatherd


@pytest.fixture
def secret(goatherd: Goatherd, store: str) -> str:
    """Return the URI of a store with six versions of its secret: 1 is the identity's first, 6 is current and stable."""
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    return store


def labels(goatherd: Goatherd, secret: str) -> dict[str, str]:
    found = goatherd("versions", "--provider", secret, "--json").json["versions"]
    return {label: version["id"] for version in found for label in version["labels"]}


@pytest.mark.slow
def test_a_label_is_put_on_a_version_moved_and_taken_off_and_each_step_says_from_where(
    goatherd: Goatherd, secret: str
) -> None:
    def run(*arguments: str) -> str:
        result = goatherd("versions", *arguments, "--provider", secret)
        assert result.code == 0, result.err
        return result.out.strip()

    assert run("label", "before-upgrade", "1") == "label before-upgrade: added to version 1"
    assert labels(goatherd, secret)["before-upgrade"] == "1"
    assert run("label", "before-upgrade", "2") == "label before-upgrade: moved from version 1 to version 2"
    assert run("label", "before-upgrade", "2") == (
        "label before-upgrade: version 2 holds it already; nothing was changed"
    )
    assert run("label", "before-upgrade", "current") == "label before-upgrade: moved from version 2 to version 6"
    assert run("unlabel", "before-upgrade") == "label before-upgrade: removed from version 6"
    assert run("unlabel", "before-upgrade") == "label before-upgrade: no version holds it; nothing was changed"
    assert labels(goatherd, secret) == {"current": "6", "stable": "6"}


def test_programs_are_told_the_same(goatherd: Goatherd, secret: str) -> None:
    moved = goatherd("versions", "label", "mine", "1", "--provider", secret, "--json").json
    assert moved == {"store": secret, "label": "mine", "from": None, "to": "1", "changed": True}


@pytest.mark.parametrize("label", ["current", "stable"])
@pytest.mark.parametrize("arguments", [["label", "{}", "1"], ["unlabel", "{}"]])
def test_a_label_that_servers_or_rotations_rely_on_is_protected(
    goatherd: Goatherd, secret: str, arguments: list[str], label: str
) -> None:
    before = labels(goatherd, secret)
    refused = goatherd("versions", *(part.format(label) for part in arguments), "--provider", secret)
    assert refused.code == EXIT_CODES["configuration"]
    assert f"the label {label!r} is protected: only Goatherd moves it" in refused.err
    assert labels(goatherd, secret) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label"], "label needs a label and a version"),
        (["label", "mine"], "label needs a label and a version"),
        (["unlabel"], "unlabel needs one label"),
        (["unlabel", "mine", "1"], "unlabel needs one label"),
        (["list", "mine"], "list takes no argument"),
        (["lable", "mine", "1"], "'lable' is not one of"),
        (["label", "1st", "1"], "'1st' is not a valid label"),
        (["label", "latest", "1"], "'latest' is not a valid label"),
    ],
)
def test_a_wrong_call_says_what_is_missing(goatherd: Goatherd, secret: str, arguments: list[str], message: str) -> None:
    refused = goatherd("versions", *arguments, "--provider", secret)
    assert refused.code == EXIT_USAGE
    assert message in refused.err


def test_a_version_that_is_not_there_moves_nothing(goatherd: Goatherd, secret: str) -> None:
    refused = goatherd("versions", "label", "mine", "99", "--provider", secret)
    assert refused.code == EXIT_CODES["provider"]
    assert "no version has the id or the label '99'" in refused.err
    assert "mine" not in labels(goatherd, secret)


def test_the_audit_trail_names_both_versions(goatherd: Goatherd, secret: str, tmp_path: Path) -> None:
    trail = str(tmp_path / "audit.jsonl")
    goatherd("versions", "label", "mine", "1", "--provider", secret, "--audit-log", trail)
    goatherd("versions", "label", "mine", "2", "--provider", secret, "--audit-log", trail)
    goatherd("versions", "unlabel", "mine", "--provider", secret, "--audit-log", trail)
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    moved = [record["data"] for record in records if record["event"] == "label-moved"]
    assert moved == [
        {"label": "mine", "from": None, "to": "1"},
        {"label": "mine", "from": "1", "to": "2"},
        {"label": "mine", "from": "2", "to": None},
    ]
    assert goatherd("audit", "verify", trail, "--provider", secret).code == 0
