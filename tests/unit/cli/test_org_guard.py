"""An organization whose name is not in the store's address: a mistyped --org must not reach another one's identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES

from .conftest import Goatherd

COMMANDS = {
    "show": ["show"],
    "status": ["status"],
    "versions": ["versions"],
    "rotate": ["rotate", "--unsafe-without-nodes"],
    "retire": ["retire", "--yes"],
    "init": ["init"],
    "doctor": ["doctor"],
    "serve": ["serve", "--create", "--data", "data", "--port", "0"],
    "fetch": ["fetch", "--create", "--data", "data"],
    "door": ["door", "--upstream", "http://127.0.0.1:1", "--port", "0"],
    "lease": ["lease", "--make"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_store_without_org_in_its_address_is_not_taken_for_any_organization(
    goatherd: Goatherd, store: str, tmp_path: Path, name: str
) -> None:
    if name != "init":
        assert goatherd("init", "--provider", store).code == 0
    keys = sorted(path.name for path in (tmp_path / "keys").rglob("*"))
    result = goatherd(*COMMANDS[name], "--provider", store, "--org", "acme")
    assert result.code == EXIT_CODES["configuration"], result.err
    assert f"the store's address {store} does not contain {{org}}" in result.err
    assert sorted(path.name for path in (tmp_path / "keys").rglob("*")) == keys
    assert not (tmp_path / "data" / "acme").exists()


def test_the_default_organization_needs_no_place_in_the_address(goatherd: Goatherd, store: str) -> None:
    assert goatherd("init", "--provider", store).code == 0
    assert goatherd("show", "--provider", store, "--org", "localhost").code == 0
