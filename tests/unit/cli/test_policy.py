"""policy: prints the text of the provider's function unchanged, for every scheme, without an SDK."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from goatherd.cli.main import EXIT_CODES, EXIT_USAGE
from goatherd.errors import ConfigurationError
from goatherd.plugins import open_provider
from goatherd.providers.aws.permissions import policy as aws
from goatherd.providers.azure.permissions import policy as azure
from goatherd.providers.file.permissions import policy as file_policy
from goatherd.providers.gcp.permissions import policy as gcp
from goatherd.providers.kubernetes.permissions import policy as kubernetes
from goatherd.providers.kubernetes.permissions import volume_policy
from goatherd.providers.kubernetes.volume import KubernetesVolumeProvider
from goatherd.providers.memory import policy as memory_policy
from goatherd.providers.vault.permissions import policy as vault
from tests.unit.test_bare_install import bare

from .conftest import Goatherd

ADDRESSES = {
    "aws": (aws, "aws://eu-west-1/goatdb/prod/root"),
    "azure": (azure, "azure://my-vault/goatdb-root"),
    "file": (file_policy, "file:///srv/keys/root"),
    "gcp": (gcp, "gcp://my-project/goatdb-root"),
    "k8s": (kubernetes, "k8s://goatdb/root"),
    "vault": (vault, "vault://vault.example.org:8200/secret/goatdb/root"),
    "openbao": (vault, "openbao:///secret/goatdb/root"),
}


@pytest.mark.parametrize("role", ["server", "rotator", "admin"])
@pytest.mark.parametrize("scheme", list(ADDRESSES))
def test_the_command_prints_exactly_what_the_provider_says(goatherd: Goatherd, scheme: str, role: str) -> None:
    function, address = ADDRESSES[scheme]
    text = function(role, address)  # type: ignore[operator]
    result = goatherd("policy", scheme, "--role", role, address)
    assert result.code == 0
    assert result.out == text.removesuffix("\n") + "\n"
    assert result.err == ""
    assert goatherd("policy", scheme, "--role", role, address, "--json").json == {
        "provider": scheme,
        "role": role,
        "secret": address,
        "policy": text,
    }


def test_goatdb_s_name_for_kubernetes_works_too(goatherd: Goatherd) -> None:
    assert goatherd("policy", "kubernetes", "--role", "server", "goatdb/root").out.count("kind: Role\n") == 2


def test_without_an_address_the_configured_store_is_taken(goatherd: Goatherd) -> None:
    here = goatherd("policy", "file", "--role", "rotator", "--provider", "file:///srv/keys/root")
    assert here.out == file_policy("rotator", "file:///srv/keys/root")
    nowhere = goatherd("policy", "file", "--role", "rotator")
    assert nowhere.code == EXIT_USAGE
    assert "no secret is named" in nowhere.err


CONFIGS = {
    "aws": {"secretId": "goatdb/prod/root", "region": "eu-west-1"},
    "azure": {"secretId": "goatdb-root", "vault": "my-vault"},
    "file": {"secretId": "/srv/keys/root"},
    "gcp": {"secretId": "goatdb-root", "project": "my-project"},
    "k8s": {"secretId": "root", "namespace": "goatdb"},
    "vault": {"secretId": "secret/goatdb/root", "address": "https://vault.example.org:8200"},
    "openbao": {"secretId": "secret/goatdb/root"},
}


def write_config(folder: Path, provider: str, members: Mapping[str, str]) -> None:
    lines = [f'{name} = "{value}"' for name, value in {"provider": provider, **members}.items()]
    (folder / "goatherd.toml").write_text("\n".join(['type = "cloud"', "[cloudConfig]", *lines]))


@pytest.mark.parametrize("scheme", list(ADDRESSES))
def test_a_store_that_cloud_config_names_is_taken_as_its_address_would_be(
    goatherd: Goatherd, tmp_path: Path, scheme: str
) -> None:
    write_config(tmp_path, scheme, CONFIGS[scheme])
    result = goatherd("policy", scheme, "--role", "server", "--json")
    assert result.code == 0, result.err
    function, address = ADDRESSES[scheme]
    assert result.json["policy"] == function("server", address)  # type: ignore[operator]
    assert result.json["secret"] == f"{scheme}: {CONFIGS[scheme]['secretId']}"


def test_every_member_of_cloud_config_counts(goatherd: Goatherd, tmp_path: Path) -> None:
    write_config(tmp_path, "file", {"secretId": "root", "directory": "/srv/keys"})
    assert goatherd("policy", "file", "--role", "admin").out == file_policy("admin", "file:///srv/keys/root")
    write_config(tmp_path, "aws", {"secretId": "goatdb/{org}/root", "region": "eu-west-1", "kmsKeyId": "alias/a"})
    uri = "aws://eu-west-1/goatdb/{org}/root?kms_key_id=alias/a"
    assert goatherd("policy", "aws", "--role", "rotator").out.strip() == aws("rotator", uri).strip()
    write_config(tmp_path, "kubernetes", {"secretId": "goatdb/root"})
    assert goatherd("policy", "k8s", "--role", "server").out == kubernetes("server", "k8s://goatdb/root")
    write_config(tmp_path, "k8s-volume", {"secretId": "/var/run/keys"})
    assert goatherd("policy", "k8s-volume", "--role", "server").out == volume_policy("server", "/var/run/keys")


@pytest.mark.parametrize(
    ("provider", "members", "message"),
    [
        ("aws", {"secretId": "a", "region": "eu-west-1"}, "the configured store has the provider 'aws', not 'file'"),
        ("file", {"secretId": "/srv/keys/{ORG}"}, "not a known placeholder"),
        ("file", {"secretId": "/srv/keys/root", "colour": "red"}, "has no option 'colour'"),
    ],
)
def test_a_cloud_config_that_names_no_such_secret_is_refused(
    goatherd: Goatherd, tmp_path: Path, provider: str, members: dict[str, str], message: str
) -> None:
    write_config(tmp_path, provider, members)
    result = goatherd("policy", "file", "--role", "server")
    assert (result.code, message in result.err) == (EXIT_CODES["configuration"], True)
    (tmp_path / "goatherd.toml").write_text('type = "file"\n[cloudConfig]\nprovider = "file"\nsecretId = "/srv/a"\n')
    assert "no secret is named" in goatherd("policy", "file", "--role", "server").err


def test_of_stores_in_several_regions_those_with_the_scheme_are_meant(goatherd: Goatherd, tmp_path: Path) -> None:
    (tmp_path / "goatherd.toml").write_text(
        "[stores]\n"
        'primary = {region = "eu", provider = "aws://eu-west-1/goatdb/root"}\n'
        "followers = [\n"
        '    {region = "us", provider = "aws://us-east-1/goatdb/root"},\n'
        '    {region = "ap", provider = "vault://vault.ap:8200/kv/goatdb/root"},\n'
        "]\n"
    )
    first = goatherd("policy", "aws", "--role", "server")
    assert "eu-west-1" in first.out
    assert first.err == (
        "note: this is for aws://eu-west-1/goatdb/root; also run: goatherd policy aws --role server"
        " aws://us-east-1/goatdb/root\n"
    )
    assert (
        goatherd("policy", "vault", "--role", "rotator").out
        == goatherd("policy", "vault", "--role", "rotator", "vault://vault.ap:8200/kv/goatdb/root").out
    )
    assert "its scheme is 'aws', not 'gcp'" in goatherd("policy", "gcp", "--role", "server").err


def test_an_unknown_scheme_is_answered_with_the_known_ones(goatherd: Goatherd) -> None:
    result = goatherd("policy", "s3", "--role", "server", "s3://bucket/key")
    assert result.code == EXIT_CODES["plugin"]
    known = result.err.partition("known schemes: ")[2].partition(" [")[0].split(", ")
    assert known == sorted(known)
    assert {"aws", "azure", "file", "gcp", "k8s", "vault"} <= set(known)


def test_an_address_of_another_scheme_is_refused(goatherd: Goatherd) -> None:
    for scheme, (_, address) in ADDRESSES.items():
        other = "file:///srv/keys/root" if scheme != "file" else "gcp://project/root"
        assert goatherd("policy", scheme, "--role", "server", other).code == EXIT_CODES["configuration"], address


@pytest.mark.slow
def test_no_sdk_has_to_be_installed_for_it() -> None:
    script = (
        "from goatherd.cli.main import run\n"
        f"for scheme, address in {[(scheme, address) for scheme, (_, address) in ADDRESSES.items()]!r}:\n"
        "    assert run(['policy', scheme, '--role', 'server', address]) == 0, scheme\n"
        "heavy = [name for name in ('boto3', 'google.api_core', 'azure.core', 'aiohttp') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = bare(script)
    assert done.returncode == 0, done.stderr


def test_the_vault_policy_is_the_same_by_path_and_by_address() -> None:
    assert vault("server", "vault://anywhere:1/secret/goatdb/root") == vault("server", "secret/goatdb/root")
    by_option = vault("server", "vault:///goatdb/root?mount=kv/team")
    assert by_option == vault("server", "goatdb/root", mount="kv/team")


# --- the file store ---------------------------------------------------------------------------------------------------


def test_the_file_store_s_modes_are_those_that_the_store_wants() -> None:
    assert 'chmod 0700 "/srv/keys/root"' in file_policy("rotator", "/srv/keys/root")
    assert "ReadOnlyPaths=/srv/keys\n" in file_policy("server", "file:///srv/keys/{org}/root")
    assert 'install -d -o "$OWNER" -m 0755 "/srv/keys"' in file_policy("admin", "file:///srv/keys/{org}/root")
    assert 'chown -R "$OWNER" "/srv/keys/$ORG/root"' in file_policy("rotator", "file:///srv/keys/{org}/root")


@pytest.mark.parametrize(
    "secret",
    ["file:///srv/$(id)/root", "/srv/a b/root", '/srv/"/root', "/srv/../root", "srv/keys", "/root", "file://x"],
)
def test_a_name_that_a_shell_would_read_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="not a file address"):
        file_policy("server", secret)


def test_memory_has_no_rights_to_give() -> None:
    with pytest.raises(ConfigurationError, match="one process's memory"):
        memory_policy("server", "memory:///a/b")


@pytest.mark.parametrize("function", [file_policy, memory_policy, volume_policy])
def test_an_unknown_role_is_refused_with_the_known_ones(function: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        function("reader", "/srv/keys/root")  # type: ignore[operator]
    assert caught.value.hint == "Roles: server, rotator, admin."


# --- the mounted volume -----------------------------------------------------------------------------------------------


def test_the_volume_s_part_of_a_pod_mounts_the_whole_secret_read_only() -> None:
    text = volume_policy("server", "k8s-volume:///var/run/secrets/goatherd")
    spec = yaml.safe_load(text)["spec"]
    assert spec["containers"][0]["volumeMounts"] == [
        {"name": "identity", "mountPath": "/var/run/secrets/goatherd", "readOnly": True}
    ]
    assert spec["volumes"][0]["secret"] == {"secretName": "NAME", "defaultMode": 0o440}
    assert "# Replace NAME with the name of the Secret." in text


def test_the_volume_s_part_of_a_pod_names_the_mounted_directory_as_the_store(tmp_path: Path) -> None:
    (container,) = yaml.safe_load(volume_policy("server", str(tmp_path)))["spec"]["containers"]
    assert container["env"] == [{"name": "GOATHERD_PROVIDER", "value": f"k8s-volume://{tmp_path}"}]
    opened, _ = open_provider(container["env"][0]["value"])
    assert isinstance(opened, KubernetesVolumeProvider)


def test_a_volume_has_no_policy_for_a_rotator() -> None:
    with pytest.raises(ConfigurationError, match="read-only"):
        volume_policy("rotator", "/var/run/secrets/goatherd")


@pytest.mark.parametrize("path", ['/a"/b', "/a/../b", "relative", "/", "/a\nb"])
def test_a_path_that_would_change_the_yaml_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the address of a mounted Secret"):
        volume_policy("server", path)
