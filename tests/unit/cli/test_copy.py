"""goatherd copy: copying an identity from one store to another, and which copies are rejected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.ids import new_id
from goatherd.plugins import open_provider

from .conftest import Goatherd, secrets_in


@pytest.fixture
def rotated(goatherd: Goatherd, store: str) -> Callable[..., None]:
    goatherd("init", "--provider", store)

    def rotate(*arguments: str) -> None:
        assert goatherd("rotate", "--provider", store, "--unsafe-without-nodes", *arguments).code == 0

    return rotate


@pytest.mark.slow
def test_a_rotated_identity_moves_and_the_new_store_can_be_rotated_and_rolled_on(
    goatherd: Goatherd, store: str, tmp_path: Any, rotated: Callable[..., None]
) -> None:
    rotated()
    other = f"file://{tmp_path}/other/root"
    dry = goatherd("copy", store, other, "--dry-run")
    assert dry.code == 0
    assert "nothing was written" in dry.out
    assert not (tmp_path / "other").exists()
    result = goatherd("copy", store, other, "--json")
    assert result.code == 0
    assert result.json["complete"] is True
    assert [each["from"] for each in result.json["versions"]] == [str(n) for n in range(1, 7)]
    assert result.json["versions"][-1]["labels"] == ["current", "stable"]
    assert (
        goatherd("show", "--provider", other, "--json").json["current"]
        == (goatherd("show", "--provider", store, "--json").json["current"])
    )
    assert not [secret for secret in secrets_in(tmp_path) if secret in result.out + result.err + dry.out + dry.err]
    assert goatherd("rotate", "--provider", other, "--unsafe-without-nodes").code == 0
    assert goatherd("doctor", "--provider", other).code == 0


def test_nothing_is_copied_while_a_rotation_is_under_way(
    goatherd: Goatherd, store: str, tmp_path: Any, rotated: Callable[..., None]
) -> None:
    rotated("--to", "published")
    result = goatherd("copy", store, f"file://{tmp_path}/other/root")
    assert result.code == EXIT_CODES["rotation"]
    assert "a rotation is in progress (published)" in result.err
    assert not (tmp_path / "other").exists()
    assert goatherd("rotate", "--provider", store, "--cancel").code == 0
    assert goatherd("copy", store, f"file://{tmp_path}/other/root").code == 0


def test_a_copy_onto_itself_is_refused(goatherd: Goatherd, store: str) -> None:
    assert goatherd("copy", store, store).code == EXIT_CODES["provider"]


def test_a_store_that_is_not_there_is_not_copied(goatherd: Goatherd, store: str, tmp_path: Any) -> None:
    result = goatherd("copy", store, f"file://{tmp_path}/other/root")
    assert result.code == EXIT_CODES["provider"]
    assert "no such secret" in result.err


def test_the_organization_is_filled_in_on_both_sides(goatherd: Goatherd, tmp_path: Any) -> None:
    uri = f"file://{tmp_path}/keys/{{org}}/root"
    other = f"file://{tmp_path}/other/{{org}}-root"
    goatherd("init", "--provider", uri, "--org", "acme")
    assert goatherd("copy", uri, other, "--org", "acme").code == 0
    assert open_provider(other)[1] == "{org}-root"
    assert (tmp_path / "other" / "acme-root").exists()


def test_nothing_is_said_to_be_copied_into_a_store_that_ends_with_the_command(goatherd: Goatherd, store: str) -> None:
    goatherd("init", "--provider", store)
    for dry in ((), ("--dry-run",)):
        result = goatherd("copy", store, f"memory:///{new_id()}/root", *dry)
        assert result.code == EXIT_CODES["provider"]
        assert "the memory store is lost when the command ends" in result.err
