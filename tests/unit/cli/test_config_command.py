"""config: every option, its value and its source; an error names the option as the user gave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.cli.main import EXIT_CODES
from goatherd.config.options import option_keys

from .conftest import Goatherd


def test_config_shows_where_each_value_comes_from(
    goatherd: Goatherd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goatherd.toml").write_text('# ours\n[rotation]\ngrace = "7d"\n')
    monkeypatch.setenv("GOATHERD_TIMEOUT", "2s")
    result = goatherd("config", "--provider", "file:///srv/keys/root")
    assert result.code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines()[2:]}
    assert rows["provider"] == ["file:///srv/keys/root", "flag"]
    assert rows["timeout"] == ["2s", "GOATHERD_TIMEOUT"]
    assert rows["rotation.grace"] == ["7d", f"{tmp_path / 'goatherd.toml'}:3"]
    assert rows["serve.port"] == ["8080", "default"]
    assert result.out.startswith(f"configuration file: {tmp_path / 'goatherd.toml'}\n")


def test_programs_get_every_option_with_its_variable(goatherd: Goatherd) -> None:
    found = goatherd("config", "--json").json
    assert found["file"] is None
    assert [option["key"] for option in found["options"]] == [key.name for key in option_keys()]
    assert {"key": "org", "value": "localhost", "source": "default", "variable": "GOATHERD_ORG"} in found["options"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--node", "http://h:99999"], "--node: the URL 'http://h:99999' has the port 99999"),
        (["status", "--node", ""], "--node: the URL is empty"),
        (
            ["status", "--node", "http://me:hunter2@h"],
            "--node: the URL 'http://…@h' contains a user name or a password",
        ),
        (["status", "--node", "dns://h:99999"], "--node: dns://h:99999: '99999' is not a port"),
        (["serve", "--data", "d", "--peer", "http://h/goats"], "--peer: the URL 'http://h/goats' has a path"),
        (["serve", "--data", "d", "--host", "127.0.0.1:80"], "--host: the address to listen on '127.0.0.1:80' has a"),
        (["serve", "--data", "d", "--port", "99999"], "--port: port 99999 is out of range"),
        (["serve", "--data", "d", "--port", "-1"], "--port: port -1 is out of range"),
        (["door", "--upstream", "h:80"], "--upstream: the URL 'h:80' has no scheme"),
        (["door", "--upstream", "http://h", "--public-url", "goats"], "--public-url: the URL 'goats' has no scheme"),
        (["door", "--upstream", "http://h", "--host", "[::1]:80"], "--host: the address to listen on"),
        (["controller", "--metrics", "9464"], "--metrics: the address to listen on '9464' is not ADDRESS:PORT"),
        (["run", "--data", "d", "--url", "http://h:x", "--", "true"], "--url: the URL 'http://h:x' has 'x' where"),
    ],
)
def test_a_wrong_address_names_the_option_that_was_typed(
    goatherd: Goatherd, arguments: list[str], message: str
) -> None:
    result = goatherd(*arguments, "--provider", "file:///nowhere/root")
    assert result.code == EXIT_CODES["configuration"]
    assert message in result.err
    assert "hunter2" not in result.err


def test_a_wrong_address_in_a_variable_or_the_file_names_its_place(
    goatherd: Goatherd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goatherd.toml").write_text('nodes = ["http://a:1",\n  "http://b:x"]\n')
    assert f"{tmp_path / 'goatherd.toml'}:1: nodes: the URL 'http://b:x'" in goatherd("status").err
    (tmp_path / "goatherd.toml").unlink()
    monkeypatch.setenv("GOATHERD_NODES", "http://a:1, b:2")
    assert "GOATHERD_NODES: the URL 'b:2' has no scheme" in goatherd("status").err
