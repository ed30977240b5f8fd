"""``goatherd restore``: an earlier root signs again after a finished rotation; an error says why a root cannot be
restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES

from .conftest import Goatherd, Serving


@pytest.mark.slow
def test_the_previous_root_signs_again(goatherd: Goatherd, store: str) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    second = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--json").json["to"]
    done = goatherd("restore", "--provider", store, "--unsafe-without-nodes")
    assert done.code == 0, done.err
    assert f"restored: {first} signs again in place of {second}" in done.out
    assert f"the private key of {second} stays in the store for 30d" in done.out
    status = goatherd("status", "--provider", store)
    assert f"last change  restored {second[:8]} -> {first[:8]} " in status.out
    shown = goatherd("show", "--provider", store, "--json").json
    assert shown["current"]["id"] == first
    assert {root["id"] for root in shown["roots"]} == {first, second}
    again = goatherd("restore", second[:8], "--provider", store, "--unsafe-without-nodes", "--json").json
    assert (again["outcome"], again["event"], again["current"]) == ("restored", "restored", second)


@pytest.mark.slow
def test_a_restore_is_stopped_and_left_like_a_rotation(goatherd: Goatherd, store: str) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    second = goatherd("rotate", "--provider", store, "--unsafe-without-nodes", "--json").json["to"]
    goatherd("restore", "--to", "published", "--provider", store, "--unsafe-without-nodes")
    left = goatherd("rotate", "--cancel", "--provider", store)
    assert left.code == 0
    assert f"cancelled: {second} stays the current root; {first} has not signed, and stays trusted" in left.out
    goatherd("restore", "--to", "activated", "--provider", store, "--unsafe-without-nodes")
    left = goatherd("rotate", "--rollback", "--provider", store)
    assert f"rolled back: {second} signs again; {first} stays trusted" in left.out


@pytest.mark.slow
def test_what_cannot_be_restored_says_why_and_writes_nothing(goatherd: Goatherd, store: str) -> None:
    options = ("--provider", store, "--unsafe-without-nodes")
    goatherd("init", "--provider", store)
    none = goatherd("restore", *options)
    assert none.code == EXIT_CODES["rotation"]
    assert "rotation.not_restorable" in none.err
    assert "there is no previous root" in none.err
    goatherd("rotate", *options)
    assert goatherd("restore", "current", *options).code == EXIT_CODES["rotation"], "it signs already"
    assert "the id of the root is empty" in goatherd("restore", "", *options).err
    unknown = goatherd("restore", "nosuch", *options)
    assert "root nosuch is unknown: the identity document does not list it" in unknown.err
    goatherd("retire", "--yes", "--grace", "0s", "--provider", store)
    gone = goatherd("restore", *options)
    assert gone.code == EXIT_CODES["rotation"]
    assert "was destroyed; `retire` recorded it at 20" in gone.err
    assert "goatherd rotate" in gone.err


@pytest.mark.slow
def test_a_root_that_has_left_the_document_signs_again_when_a_server_proves_that_it_was_one(
    goatherd: Goatherd, store: str, tmp_path: Path, serve: Callable[..., Serving]
) -> None:
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    server = serve("--data", str(tmp_path / "data"), "--provider", store)
    options = ("--provider", store, "--node", server.url)
    for _ in range(4):
        assert goatherd("rotate", *options).code == 0
    assert first not in {root["id"] for root in goatherd("show", "--provider", store, "--json").json["roots"]}
    unproven = goatherd("restore", first, "--provider", store, "--unsafe-without-nodes")
    assert unproven.code == EXIT_CODES["rotation"]
    assert "no listed server holds an introduction of it" in unproven.err
    done = goatherd("restore", first, *options)
    assert done.code == 0, done.err
    assert goatherd("status", *options, "--json").json["nodes"][0]["signsWith"] == first


def test_a_restore_waits_for_listed_servers_like_a_rotation(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    refused = goatherd("restore", "--provider", store)
    assert refused.code == EXIT_CODES["configuration"]
    assert "no server is listed" in refused.err


def test_the_audit_trail_names_the_command_and_the_root(goatherd: Goatherd, store: str, tmp_path: Path) -> None:
    trail = tmp_path / "trail"
    first = goatherd("init", "--provider", store, "--json").json["current"]["id"]
    goatherd("rotate", "--provider", store, "--unsafe-without-nodes")
    goatherd("restore", first, "--provider", store, "--unsafe-without-nodes", "--audit-log", str(trail))
    written = trail.read_text()
    assert '"command":"restore"' in written.replace(" ", "")
    assert first in written
    verified = goatherd("audit", "verify", str(trail), "--provider", store)
    assert verified.code == 0, verified.err


def test_what_was_cancelled_before_publication_is_not_said_to_be_trusted(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    for phase, said in (
        ("prepared", "was not published, so no server knows or trusts it"),
        ("published", "was published, so it stays trusted; it has signed nothing"),
    ):
        goatherd("rotate", "--to", phase, "--provider", store, "--unsafe-without-nodes")
        left = goatherd("rotate", "--cancel", "--provider", store)
        assert said in left.out
        assert "both roots" not in left.out
        assert "destroyed the private key of " in left.out
