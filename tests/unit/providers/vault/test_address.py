"""What an address of a Vault server means, alone and with the environment."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import ReadConsistency
from goatherd.providers.vault.address import VaultAddress, parse_address
from goatherd.providers.vault.auth import AppRoleAuth, KubernetesAuth, TokenAuth
from goatherd.providers.vault.provider import OpenBaoSecretProvider, VaultSecretProvider


def parsed(uri: str, scheme: str = "vault", **environment: str) -> tuple[VaultAddress, str]:
    return parse_address(scheme, uri, environment=environment)


def test_host_port_mount_and_path():
    address, secret_id = parsed("vault://vault.example.org:8300/secret/goatdb/{org}/root")
    assert (address.url, address.mount, secret_id) == (
        "https://vault.example.org:8300",
        "secret",
        "goatdb/{org}/root",
    )
    assert parsed("vault://v/secret/root")[0].url == "https://v:8200"
    assert parsed("vault://[::1]/secret/root")[0].url == "https://[::1]:8200"
    assert parsed("vault://127.0.0.1:8200/secret/root?tls=off")[0].url == "http://127.0.0.1:8200"


def test_a_mount_with_a_slash_is_an_option():
    address, secret_id = parsed("vault://v/goatdb/root?mount=kv/team")
    assert (address.mount, secret_id) == ("kv/team", "goatdb/root")


def test_without_a_host_the_environment_says_where_and_its_other_variables_count():
    address, secret_id = parsed(
        "vault:///secret/root",
        VAULT_ADDR="https://v:8200/",
        VAULT_NAMESPACE="team",
        VAULT_CACERT="/ca.pem",
        VAULT_CLIENT_CERT="/c.pem",
        VAULT_CLIENT_KEY="/k.pem",
    )
    assert secret_id == "root"
    assert (address.url, address.namespace, address.ca) == ("https://v:8200", "team", "/ca.pem")
    assert (address.cert, address.key) == ("/c.pem", "/k.pem")
    assert parsed("vault:///secret/root?namespace=mine&ca=/mine", VAULT_ADDR="http://v", VAULT_NAMESPACE="team")[
        0
    ] == VaultAddress(
        url="http://v",
        auth=TokenAuth(variables=("VAULT_TOKEN", "BAO_TOKEN"), file="~/.vault-token"),
        namespace="mine",
        ca="/mine",
    )


def test_of_both_names_of_a_variable_the_scheme_chooses():
    both = {"VAULT_ADDR": "https://vault", "BAO_ADDR": "https://bao"}
    assert parsed("vault:///secret/root", **both)[0].url == "https://vault"
    assert parsed("openbao:///secret/root", "openbao", **both)[0].url == "https://bao"
    assert parsed("vault:///secret/root", BAO_ADDR="https://bao")[0].url == "https://bao"


def test_the_way_in_is_chosen_by_option_then_by_what_the_environment_holds():
    uri = "vault://v/secret/root"
    assert isinstance(parsed(uri)[0].auth, TokenAuth)
    assert isinstance(parsed(uri, VAULT_ROLE_ID="r")[0].auth, AppRoleAuth)
    assert isinstance(parsed(uri, VAULT_ROLE_ID="r", VAULT_TOKEN="t")[0].auth, TokenAuth)
    assert isinstance(parsed(f"{uri}?auth=approle", VAULT_TOKEN="t")[0].auth, AppRoleAuth)
    assert parsed(f"{uri}?role-id=r&secret-id-file=/s&auth-mount=roles")[0].auth == AppRoleAuth(
        role_id="r",
        role_id_variables=("VAULT_ROLE_ID", "BAO_ROLE_ID"),
        secret_id_file="/s",
        secret_id_variables=("VAULT_SECRET_ID", "BAO_SECRET_ID"),
        mount="roles",
    )
    assert parsed(f"{uri}?auth=kubernetes&role=goat")[0].auth == KubernetesAuth(role="goat")
    assert parsed(f"{uri}?token-file=/run/token", VAULT_TOKEN="t")[0].auth == TokenAuth(file="/run/token")


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("vault://v/secret", "no mount and path"),
        ("vault://v/", "no mount and path"),
        ("vault://v/{org}/root", "no mount and path"),
        ("vault:///secret/root", "needs the environment variable VAULT_ADDR or BAO_ADDR"),
        ("vault://v/secret/root#x", "fragment"),
        ("vault://v:port/secret/root", "a host and a port"),
        ("vault://v/secret/root?tls=maybe", "tls must be on or off"),
        ("vault://v/secret/root?namespace=", "namespace must be a string that is not empty"),
        ("vault://v/secret/root?tls=on&tls=off", "given twice"),
        ("vault://v/secret/root?verify=no", "unknown option 'verify'"),
        ("vault://v/secret/root?auth=kubernetes", "needs role"),
        ("vault://v/secret/root?role-id=r&role=x", "'?role'? cannot be combined with auth=approle"),
        ("vault://v/secret/root?auth=ldap", "auth must be token or approle or kubernetes"),
    ],
)
def test_what_is_of_no_use_is_refused(uri: str, match: str):
    with pytest.raises(ConfigurationError, match=match):
        parsed(uri)


@pytest.mark.parametrize(
    ("option", "hint"), [("tls=false", "Write tls=on or tls=off"), ("namespace=", "Write namespace=VALUE")]
)
def test_a_wrong_value_in_an_address_is_answered_with_what_to_write(option: str, hint: str):
    with pytest.raises(ConfigurationError) as caught:
        parsed(f"vault://v/secret/root?{option}")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("option", ["token", "secret-id", "password"])
def test_a_secret_in_an_address_is_refused_and_not_quoted(option: str):
    with pytest.raises(ConfigurationError, match="must not be part of it") as caught:
        parsed(f"vault://v/secret/root?{option}=hunter2")
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("url", ["unix:///run/vault.sock", "ftp://v", "https://user:x@v", "v:8200", "https://v?x=1"])
def test_an_address_in_the_environment_is_a_url_and_nothing_more(url: str):
    with pytest.raises(ConfigurationError, match="http or https URL without a path or query"):
        parsed("vault:///secret/root", VAULT_ADDR=url)


def test_the_plugins_are_found_by_scheme_and_declare_what_the_address_says():
    provider, secret_id = open_provider("vault://v:8200/secret/goatdb/root?reads=active")
    assert (type(provider), secret_id) == (VaultSecretProvider, "goatdb/root")
    assert provider.guarantees.read_consistency is ReadConsistency.STRONG
    other, _ = open_provider("openbao://v:8200/secret/goatdb/root")
    assert (type(other), other.scheme) == (OpenBaoSecretProvider, "openbao")
    assert other.guarantees.read_consistency is ReadConsistency.EVENTUAL


def test_cloud_config_names_the_same():
    config = {"provider": "vault", "secretId": "secret/goatdb/root", "address": "https://v:8200", "namespace": "team"}
    provider, secret_id = provider_from_config({**config, "region": "eu"})
    assert isinstance(provider, VaultSecretProvider)
    assert (provider.address.url, provider.address.mount, secret_id) == ("https://v:8200", "secret", "goatdb/root")
    assert provider.address.namespace == "team"
    for broken in ({"extra": "x"}, {"secretId": 1}, {"secretId": ""}, {"address": None}, {"token": "x"}):
        with pytest.raises(ConfigurationError):
            provider_from_config({**config, **broken})


def test_no_secret_shows_in_a_repr():
    for auth in (TokenAuth(token="hunter2"), AppRoleAuth(role_id="r", secret_id="hunter2")):
        assert "hunter2" not in repr(VaultAddress(url="https://v", auth=auth))
