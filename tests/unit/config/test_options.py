"""Options: their sources, their syntax, and which values are rejected."""

from __future__ import annotations

import os
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goatherd.config import options as options_module
from goatherd.config import values
from goatherd.config.options import (
    Options,
    effective_settings,
    load_options,
    option_keys,
    parse_duration,
    suggest_keys,
)
from goatherd.errors import ConfigurationError
from goatherd.rotation.machine import Policy
from goatherd.rotation.policy import SHORTEST_LIFETIME
from goatherd.settings.store import REFRESH_INTERVAL
from goatherd.times import format_duration


def compared(options: Options) -> dict[str, object]:
    """Return the values of all options, without their sources."""
    return {one.name: getattr(options, one.name) for one in fields(options) if one.compare}


def load(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **flags: object) -> Options:
    if text:
        (tmp_path / "goatherd.toml").write_text(text)
    return load_options(flags, environ or {}, directory=tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("250ms", timedelta(milliseconds=250)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("1.5h", timedelta(minutes=90)),
        ("30d", timedelta(days=30)),
        ("2w", timedelta(days=14)),
        ("1h30m", timedelta(minutes=90)),
        (" 10 S ", timedelta(seconds=10)),
        ("0s", timedelta(0)),
    ],
)
def test_a_time_is_a_number_with_a_unit(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "value", ["30", 30, 30.0, "", "s", "-5s", "5 parsecs", "5s later", True, None, "1e3s", "9" * 20 + "w"]
)
def test_a_bare_number_or_nonsense_is_no_time(value: object) -> None:
    with pytest.raises(ConfigurationError):
        parse_duration(value)


@given(st.integers(min_value=0, max_value=10**12))
def test_a_time_written_is_read_back_exactly(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    text, environ = 'provider = "file:///in/file"', {"GOATHERD_PROVIDER": "file:///in/environment"}
    assert load(tmp_path, text).provider == "file:///in/file"
    assert load(tmp_path, text, environ).provider == "file:///in/environment"
    assert load(tmp_path, text, environ, provider="file:///in/flag").provider == "file:///in/flag"


def test_it_is_known_where_each_option_came_from(tmp_path: Path) -> None:
    options = load(tmp_path, 'org = "acme"', {"GOATHERD_TIMEOUT": "2s"}, nodes=("http://localhost:1",))
    place = f"{tmp_path / 'goatherd.toml'}:1"
    assert options.origin == {"org": place, "timeout": "GOATHERD_TIMEOUT", "nodes": "flag"}


def test_a_variable_may_end_with_a_line_feed(tmp_path: Path) -> None:
    assert load(tmp_path, environ={"GOATHERD_PROVIDER": "file:///srv/keys/root\n"}).provider == "file:///srv/keys/root"


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert load(tmp_path, '\ufeffprovider = "file:///srv/keys/root"').provider == "file:///srv/keys/root"


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert compared(load(tmp_path)) == compared(Options())


def test_every_form_is_read_from_a_file(tmp_path: Path) -> None:
    options = load(
        tmp_path,
        """
        type = "cloud"
        nodes = ["http://10.0.0.1:8080/", "https://node.example"]
        timeout = "2s"
        [cloudConfig]
        provider = "aws"
        secretId = "goatdb/{org}/root"
        region = "eu-west-1"
        [serve]
        data = "/srv/goatdb"
        port = 0
        peers = []
        [rotation]
        grace = "7d"
        """,
    )
    assert options.nodes == ("http://10.0.0.1:8080", "https://node.example")
    assert options.cloud_config == {"provider": "aws", "secretId": "goatdb/{org}/root", "region": "eu-west-1"}
    assert (options.serve_data, options.serve_port) == (Path("/srv/goatdb"), 0)
    assert options.rotation_grace == timedelta(days=7)


def test_lists_in_the_environment_are_split_at_commas_and_blanks(tmp_path: Path) -> None:
    options = load(tmp_path, environ={"GOATHERD_NODES": "http://a:1, http://b:2 http://c:3"})
    assert options.nodes == ("http://a:1", "http://b:2", "http://c:3")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('provder = "file:///x"', "'provider'"),
        ("[rotation]\ngrase = '1d'", "'rotation.grace'"),
        ("[serve]\nprot = 1", "'serve.port'"),
        ('grace = "1d"', "'rotation.grace'"),
        ("[serve]\ngrace = '1d'", "'rotation.grace'"),
        ("[serve]\nprovider = 'file:///x'", "'provider'"),
        ("zzz = 1", "Known keys"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown key") as caught:
        load(tmp_path, text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "timeout = 5",
        'timeout = "5"',
        "nodes = 'ftp://x'",
        'nodes = ["http://user:secret@host"]',
        'type = "sky"',
        "[cloudConfig]\nprovider = 'aws'",
        "[cloudConfig]\nprovider = 'aws'\nsecretId = 3",
        "[serve]\nport = 65536",
        "[serve]\nport = true",
        "org = ''",
        "org = 'acme/x'",
        "provider = 3",
        "serve = 3",
        "not toml",
    ],
)
def test_a_value_of_the_wrong_form_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        load(tmp_path, text)


def test_a_wrong_value_is_told_with_its_key_and_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="GOATHERD_TIMEOUT: 'soon' is not a duration"):
        load(tmp_path, environ={"GOATHERD_TIMEOUT": "soon"})


def test_a_file_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no"):
        load(tmp_path, environ={"GOATHERD_CONFIG": str(tmp_path / "other.toml")})
    with pytest.raises(ConfigurationError, match="there is no"):
        load_options({}, {}, directory=tmp_path, file=tmp_path / "other.toml")


def test_a_named_file_in_a_home_directory_that_is_not_known_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"GOATHERD_CONFIG: the home directory .* is not known"):
        load(tmp_path, environ={"GOATHERD_CONFIG": "~no-such-user/goatherd.toml"})


def test_a_uri_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="GOATHERD_SERVE_DATA: is a URI, and must be a path"):
        load(tmp_path, environ={"GOATHERD_SERVE_DATA": f"file://{tmp_path}/data"})


def test_a_named_file_is_read_in_place_of_the_one_here(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('org = "there"')
    (tmp_path / "goatherd.toml").write_text('org = "here"')
    assert load(tmp_path, environ={"GOATHERD_CONFIG": str(tmp_path / "other.toml")}).org == "there"


def test_a_file_that_cannot_be_read_is_an_error_not_an_absence(tmp_path: Path) -> None:
    (tmp_path / "goatherd.toml").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(("mode", "who"), [(0o646, "other users"), (0o666, "other users"), (0o664, "its group")])
def test_a_file_that_others_can_write_is_used_only_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, who: str
) -> None:
    path = tmp_path / "goatherd.toml"
    path.write_text('org = "theirs"')
    path.chmod(mode)
    monkeypatch.setattr(options_module, "_is_own_group", lambda _gid: False)
    with pytest.raises(ConfigurationError, match=f"can be written by {who}") as raised:
        load(tmp_path)
    assert f"--config {path}" in raised.value.hint
    assert load_options({}, {}, directory=tmp_path, file=path).org == "theirs"
    path.chmod(0o644)
    assert load(tmp_path).org == "theirs"


def test_a_file_of_another_user_is_used_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "goatherd.toml"
    path.write_text('org = "theirs"')
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        assert load(tmp_path).org == "theirs"
        os.chown(path, 12345, 0)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        load(tmp_path)
    assert load_options({}, {}, directory=tmp_path, file=path).org == "theirs"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a link of another user")
def test_a_link_that_another_user_has_made_is_refused(tmp_path: Path) -> None:
    """It may lead to a file of this user, such as the configuration of another cluster."""
    (tmp_path / "mine.toml").write_text('org = "mine"')
    (tmp_path / "goatherd.toml").symlink_to("mine.toml")
    assert load(tmp_path).org == "mine"
    os.lchown(tmp_path / "goatherd.toml", 12345, 0)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        load(tmp_path)


def test_a_file_that_is_replaced_while_it_is_checked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goatherd.toml").write_text('org = "mine"')
    (evil := tmp_path / "evil").write_text('org = "evil"')
    evil.chmod(0o666)
    opened = Path.open

    def open_replaced(self: Path, *given: Any, **named: Any) -> Any:
        evil.rename(self)
        return opened(self, *given, **named)

    monkeypatch.setattr(Path, "open", open_replaced)
    with pytest.raises(ConfigurationError, match="can be written by other users"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["a = " + "[" * 1600 + "]" * 1600, "a = " + "{a = " * 1600 + "1" + "}" * 1600])
def test_a_file_that_is_nested_without_end_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        load(tmp_path, text)


def test_a_number_of_too_many_digits_is_no_internal_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not TOML"):
        load(tmp_path, "[serve]\nport = " + "1" * 5000)


def test_a_line_without_end_is_named_and_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="line 2: longer than 10000 characters"):
        load(tmp_path, "org = 'a'\n" + "a." * 30_000 + "a = 1")


@pytest.mark.parametrize("key", [".".join("a" * 40), '"a"' + ".'a'" * 40, "[" + ".".join("a" * 40) + "]"])
def test_a_key_of_many_parts_is_refused_by_its_line(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigurationError, match="line 2: a key has more than 32 parts"):
        load(tmp_path, f"\n{key}{'' if key.startswith('[') else ' = 1'}\n")


def test_dots_in_values_and_comments_are_no_parts_of_a_key(tmp_path: Path) -> None:
    urls = [f"http://10.0.0.{number}:8080" for number in range(1, 41)]
    assert len(load(tmp_path, f"# {'.' * 80}\nnodes = {urls}  # {'.' * 80}\n").nodes) == 40


def test_a_pipe_that_lies_here_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "goatherd.toml")
    with pytest.raises(ConfigurationError, match="not a regular file"):
        load(tmp_path)
    with pytest.raises(ConfigurationError, match="no regular file"):
        load_options({}, {}, directory=tmp_path, file=tmp_path / "goatherd.toml")


def test_a_group_of_its_own_is_as_good_as_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "goatherd.toml"
    path.write_text('org = "mine"')
    path.chmod(0o664)
    monkeypatch.setattr(options_module, "_is_own_group", lambda _gid: True)
    assert load(tmp_path).org == "mine"


def test_variables_that_kubernetes_sets_for_a_service_named_goatherd_do_no_harm(tmp_path: Path) -> None:
    environ = {"GOATHERD_PORT": "tcp://10.0.0.1:80", "GOATHERD_SERVICE_HOST": "10.0.0.1"}
    assert compared(load(tmp_path, environ=environ)) == compared(Options())


def test_options_do_not_change() -> None:
    with pytest.raises(AttributeError):
        Options().org = "other"  # type: ignore[misc]


def test_the_defaults_are_those_of_the_rotation_and_of_the_settings() -> None:
    options, policy = Options(), Policy()
    assert options.rotation_adoption == policy.adoption
    assert options.rotation_lifetime == policy.lifetime
    assert values.SHORTEST_LIFETIME == SHORTEST_LIFETIME
    assert options.rotation_grace == policy.grace
    assert options.rotation_clock_tolerance == policy.clock_tolerance
    assert options.timeout == policy.node_timeout
    assert options.settings_refresh_interval == REFRESH_INTERVAL


def test_a_lifetime_below_an_hour_is_no_option_wherever_it_is_written(tmp_path: Path) -> None:
    for environ in ({}, {"GOATHERD_ROTATION_LIFETIME": "59m"}):
        text = "" if environ else '[rotation]\nlifetime = "59m"'
        with pytest.raises(ConfigurationError, match="too short a lifetime for a root: it must be at least 1h"):
            load(tmp_path, text, environ)
    assert load(tmp_path, '[rotation]\nlifetime = "1h"').rotation_lifetime == SHORTEST_LIFETIME


def test_every_default_has_a_text_that_reads_back() -> None:
    for key in option_keys():
        if key.default_text:
            assert key.parse(key.default_text) == key.default


def test_variables_are_the_keys_in_capitals() -> None:
    variables = {key.name: key.variable for key in option_keys()}
    assert variables["serve.port"] == "GOATHERD_SERVE_PORT"
    assert variables["cloudConfig"] == "GOATHERD_CLOUD_CONFIG"
    assert len(set(variables.values())) == len(variables)


def test_the_nearest_key_is_found_by_its_last_part_too() -> None:
    assert suggest_keys("interval.grace", ["provider", "rotation.grace"]) == "Did you mean 'rotation.grace'?"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[rotatoin]\ngrace = '1d'", "unknown section [rotatoin]", "Did you mean [rotation]?"),
        ("[cloud]\nprovider = 'aws'", "unknown section [cloud]", "[cloudConfig]"),
        ("[zzz]\nprovider = 'aws'", "unknown section [zzz]", "Sections: [settings], [serve]"),
        ("serve = 3", "'serve' is a section, not a key", "Write [serve]"),
    ],
)
def test_a_mistyped_section_gets_the_nearest_section_and_no_key_of_another(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert "." not in caught.value.hint.removesuffix(".")


def test_a_wrong_value_in_the_file_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"goatherd\.toml:4: rotation\.grace: 'soon' is not a duration"):
        load(tmp_path, 'org = "acme"\n\n[rotation]\ngrace = "soon"\n')


@pytest.mark.parametrize(
    "text",
    [
        "[controller]\ncron = 'daily'",
        "[controller]\ncron = '99 3 * * *'",
        "[controller]\ntimezone = 'Europe/Atlantis'",
        "[settings]\nlast_known_good_key = 'hunter2'",
        "[rotation]\nhealth_url = 'http://127.0.0.1:99999/'",
        "[agent]\ncommand = 'systemctl restart \"goatdb'",
        "[agent]\ncommand = \"''\"",
        "[serve]\ndata = '~no-such-user/goatdb'",
    ],
)
def test_a_value_that_only_one_command_uses_is_checked_by_all(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        load(tmp_path, text)


def test_the_home_directory_is_found_in_a_flag_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `--data=~/goatdb`, the shell does not expand the tilde."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for found in (load(tmp_path, serve_data=Path("~/db")), load(tmp_path, environ={"GOATHERD_SERVE_DATA": "~/db"})):
        assert found.serve_data == tmp_path / "db"


def test_a_wrong_value_in_the_file_is_an_error_also_where_a_flag_takes_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        load(tmp_path, 'timeout = "soon"', timeout="5s")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GOATHERD_NODE", "GOATHERD_NODES"),
        ("GOATHERD_PROVDER", "GOATHERD_PROVIDER"),
        ("GOATHERD_SERVE_PRT", "GOATHERD_SERVE_PORT"),
        ("GOATHERD_GRACE", "GOATHERD_AGENT_GRACE or GOATHERD_ROTATION_GRACE"),
        ("GOATHERD_CONFG", "GOATHERD_CONFIG"),
    ],
)
def test_a_mistyped_variable_is_an_error_that_names_the_right_one(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is not a variable") as caught:
        load(tmp_path, environ={name: "x"})
    assert f"Did you mean {meant}?" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "GOATHERD_SEAL_KEY",
        "GOATHERD_MYSTORE_TOKEN",
        "GOATHERD_ETCD",
        "GOATHERD_SERVE_SERVICE_HOST",
        "GOATHERD_SERVE_SERVICE_PORT_HTTP",
        "GOATHERD_SERVE_PORT_8080_TCP_ADDR",
        "_GOATHERD_COMPLETE",
    ],
)
def test_variables_of_others_are_left_alone(tmp_path: Path, name: str) -> None:
    assert compared(load(tmp_path, environ={name: "x"})) == compared(Options())


@pytest.mark.parametrize("service", ["GOATHERD", "GOATHERD_CONTROLLER", "GOATHERD_PAGE", "GOATHERD_AGENT"])
def test_the_variables_of_a_service_of_kubernetes_are_left_alone(tmp_path: Path, service: str) -> None:
    """A Service is often named after the workload: https://kubernetes.io/docs/concepts/services-networking/service/."""
    address = "tcp://10.0.0.7:9464"
    environ = {
        f"{service}_SERVICE_HOST": "10.0.0.7",
        f"{service}_SERVICE_PORT": "9464",
        f"{service}_SERVICE_PORT_METRICS": "9464",
        f"{service}_PORT": address,
        f"{service}_PORT_9464_TCP": address,
        f"{service}_PORT_9464_TCP_PROTO": "tcp",
        f"{service}_PORT_9464_TCP_PORT": "9464",
        f"{service}_PORT_9464_TCP_ADDR": "10.0.0.7",
    }
    assert compared(load(tmp_path, environ=environ)) == compared(Options())


def test_a_variable_that_a_secret_is_read_from_may_have_any_name(tmp_path: Path) -> None:
    environ = {"GOATHERD_SETTINGS_LAST_KNOWN_GOOD_KEY": "env:GOATHERD_LAST_KNOWN_GOOD_KEY"}
    assert load(tmp_path, environ={**environ, "GOATHERD_LAST_KNOWN_GOOD_KEY": "x"}).settings_last_known_good_key
    assert load(tmp_path, environ={"GOATHERD_TOKEN": "x"}, web_token="env:GOATHERD_TOKEN").web_token
    with pytest.raises(ConfigurationError, match="GOATHERD_TOKEN is not a variable"):
        load(tmp_path, environ={"GOATHERD_TOKEN": "x"}, web_token="env:GOATHERD_TOKEN_2")
    key = "[settings]\nlast_known_good_key = 'env:GOATHERD_KEY'\n"
    assert load(tmp_path, key, environ={"GOATHERD_KEY": "x"}).settings_last_known_good_key
    signers = "signers = ['local:/key?seal-key=env:GOATHERD_ORGS']"
    assert load(tmp_path, signers, environ={"GOATHERD_ORGS": "x"}).signers


def test_a_service_of_kubernetes_named_like_an_option_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="GOATHERD_SERVE_PORT") as caught:
        load(tmp_path, environ={"GOATHERD_SERVE_PORT": "tcp://10.0.0.7:8080"})
    assert "enableServiceLinks" in caught.value.hint


def test_a_table_in_a_variable_is_refused_and_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="GOATHERD_CLOUD_CONFIG: a table cannot"):
        load(tmp_path, environ={"GOATHERD_CLOUD_CONFIG": "{}"})


def test_the_effective_settings_name_value_and_source_of_every_option(tmp_path: Path) -> None:
    options = load(tmp_path, '[rotation]\ngrace = "7d"', {"GOATHERD_ORG": "acme"}, provider="file:///srv/keys/root")
    found = {each.key: (each.value, each.source) for each in effective_settings(options)}
    assert list(found) == [key.name for key in option_keys()]
    assert found["provider"] == ("file:///srv/keys/root", "flag")
    assert found["org"] == ("acme", "GOATHERD_ORG")
    assert found["rotation.grace"] == ("7d", f"{tmp_path / 'goatherd.toml'}:2")
    assert found["agent.signal"] == ("HUP", "default")
    assert found["audit.log"] == (None, "default")


def test_the_effective_settings_hide_whatever_may_be_a_secret(tmp_path: Path) -> None:
    text = """
    [cloudConfig]
    provider = "mystore"
    secretId = "goatdb/root"
    token = "hunter2"
    endpoint = "https://me:hunter2@10.0.0.9"
    [agent]
    command = "reload --token hunter2"
    [rotation]
    health_url = "http://probe:hunter2@10.0.0.9/healthy?key=hunter2"
    [controller]
    alert_command = "TOKEN=hunter2 page"
    """
    provider = "mystore://user:hunter2@host/root?access_token=hunter2&region=eu"
    options = load(tmp_path, text, {"GOATHERD_PROVIDER": provider})
    found = {each.key: each.value for each in effective_settings(options)}
    assert "hunter2" not in repr(found)
    assert found["provider"] == "mystore://<hidden>@host/root?access_token=<hidden>&region=eu"
    assert found["cloudConfig"] == (
        "endpoint=https://<hidden>@10.0.0.9, provider=mystore, secretId=goatdb/root, token=<hidden>"
    )
    assert found["rotation.health_url"] == "http://<hidden>@10.0.0.9/healthy?<hidden>"
    assert found["agent.command"] == "reload <hidden>"
    assert found["controller.alert_command"] == "<hidden>"
