"""`goatherd history`: the events of the identity, as a table and as a timeline, with what the audit trail adds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import Goatherd


@pytest.mark.slow
def test_the_timeline_is_oldest_first_with_starts_and_reasons(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    here = ("--provider", store, "--audit-log", str(tmp_path / "audit.jsonl"))
    assert goatherd("init", "--provider", store).code == 0
    assert "no event is recorded" in goatherd("history", "--timeline", "--provider", store).out
    assert goatherd("rotate", "--unsafe-without-nodes", *here).code == 0
    assert goatherd("rotate", "--to", "activated", "--unsafe-without-nodes", *here).code == 0
    assert goatherd("rotate", "--rollback", *here).code == 0

    lines = goatherd("history", "--timeline", *here).out.splitlines()
    marks = [line.split()[2:4] for line in lines if line[0].isdigit()]
    assert marks == [["●", "rotated"], ["✕", "rolled-back"], ["▼", "now"]]
    assert ", started by " in lines[0]
    assert any("asked for by the operator" in line for line in lines)

    events = goatherd("history", *here, "--json").json["events"]
    assert [one["event"] for one in events] == ["rotated", "rolled-back"]
    assert all(one["startedAt"] is not None and one["startedBy"] for one in events)
    alone = goatherd("history", "--provider", store, "--json").json["events"]
    assert [one["startedBy"] for one in alone] == [one["startedBy"] for one in events], "the document keeps it"


def test_a_trail_that_begins_in_the_middle_of_a_rotation_knows_its_start(
    goatherd: Goatherd, store: str, tmp_path: Path
) -> None:
    assert goatherd("init", "--provider", store).code == 0
    assert goatherd("rotate", "--to", "prepared", "--unsafe-without-nodes", "--provider", store).code == 0
    started = goatherd("show", "--provider", store, "--json").json["rotation"]["startedAt"]
    here = ("--provider", store, "--audit-log", str(tmp_path / "audit.jsonl"))
    assert goatherd("rotate", "--resume", "--unsafe-without-nodes", *here).code == 0
    (event,) = goatherd("history", *here, "--json").json["events"]
    assert event["startedAt"] == started


def test_a_trail_knows_who_revoked_a_root(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    assert goatherd("init", "--provider", store).code == 0
    here = ("--provider", store, "--audit-log", str(tmp_path / "audit.jsonl"))
    root = goatherd("show", "--provider", store, "--json").json["current"]["id"]
    assert goatherd("revoke", root, "--reason", "stolen", "--yes", "--unsafe-without-nodes", *here).code == 11
    (event,) = goatherd("history", *here, "--json").json["events"]
    assert event["event"] == "revoked"
    assert event["startedBy"].endswith(f":{os.getpid()}")


@pytest.mark.slow
def test_rotations_that_only_the_trail_holds_are_counted(
    goatherd: Goatherd, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goatherd.identity.transitions.MAX_HISTORY_BYTES", 200)
    trail = tmp_path / "audit.jsonl"
    here = ("--provider", store, "--audit-log", str(trail))
    assert goatherd("init", "--provider", store).code == 0
    for earlier in (0, 1):
        assert goatherd("rotate", "--unsafe-without-nodes", *here).code == 0
        result = goatherd("history", *here)
        assert len(result.out.splitlines()) == 2, "a heading and the newest event"
        assert ("note: 1 earlier rotation only in the audit trail" in result.err) is bool(earlier)
    assert f"goatherd audit show {trail}" in result.err


def test_a_trail_that_was_changed_is_said_to_be_broken(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    trail = tmp_path / "audit.jsonl"
    assert goatherd("init", "--provider", store).code == 0
    assert goatherd("rotate", "--unsafe-without-nodes", "--audit-log", str(trail), "--provider", store).code == 0
    trail.write_bytes(trail.read_bytes().replace(b'"command":"rotate"', b'"command":"rotten"', 1))
    result = goatherd("history", "--audit-log", str(trail), "--provider", store)
    assert "the audit trail is broken: line " in result.err
    assert "rotated" in result.out
