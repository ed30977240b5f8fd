"""Addresses of key vaults: which are accepted, and which are rejected before any request."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError
from goatherd.providers.azure.address import AzureAddress, check_name, parse_address, parse_vault


def test_a_plain_address_names_a_vault_of_the_public_cloud():
    assert parse_address("azure://my-vault/goatdb-root") == (
        AzureAddress(vault="my-vault", url="https://my-vault.vault.azure.net"),
        "goatdb-root",
    )


@pytest.mark.parametrize(
    ("suffix", "authority"),
    [
        ("vault.azure.cn", "login.chinacloudapi.cn"),
        ("vault.usgovcloudapi.net", "login.microsoftonline.us"),
        ("vault.local.example", None),
        ("vault.azure.net", None),
    ],
)
def test_another_cloud_has_its_own_domain_and_gives_its_own_tokens(suffix: str, authority: str | None):
    address, _ = parse_address(f"azure://my-vault/root?suffix={suffix}")
    assert address.url == f"https://my-vault.{suffix}"
    assert address.authority == authority


def test_every_option_is_taken():
    address, secret_id = parse_address(
        "azure://my-vault/{org}-root?endpoint=https://kv.example:8443/&identity=0a1b&ca=/etc/ca.pem&challenge=unchecked"
    )
    assert secret_id == "{org}-root"
    assert address == AzureAddress(
        vault="my-vault",
        url="https://kv.example:8443",
        identity="0a1b",
        ca="/etc/ca.pem",
        check_challenge=False,
    )


@pytest.mark.parametrize(
    "uri",
    [
        "azure://my-vault",
        "azure://my-vault/",
        "azure:///root",
        "azure://v/root",
        "azure://my--vault/root",
        "azure://1vault/root",
        "azure://my_vault/root",
        "azure://my-vault.vault.azure.net/root",
        "azure://my-vault:443/root",
        "azure://my-vault/a/b",
        "azure://my-vault/a_b",
        "azure://my-vault/a.b",
        "azure://my-vault/%2e%2e",
        "azure://my-vault/root#x",
        "azure://my-vault/root?colour=red",
        "azure://my-vault/root?suffix=",
        "azure://my-vault/root?suffix=evil.example/x",
        "azure://my-vault/root?suffix",
        "azure://my-vault/root?identity=a&identity=b",
        "azure://my-vault/root?endpoint=http://kv.example",
        "azure://my-vault/root?endpoint=https://user@kv.example",
        "azure://my-vault/root?endpoint=https://kv.example/path",
        "azure://my-vault/root?challenge=off",
        "aws://my-vault/root",
    ],
)
def test_what_is_no_address_of_a_secret_in_a_vault_is_refused(uri: str):
    with pytest.raises(ConfigurationError):
        parse_address(uri)


@pytest.mark.parametrize("name", ["Root", "rooT", "root-Ä", "x" * 120, "", "root_1", "root-pointer"])
def test_names_with_capital_letters_are_refused_because_they_are_the_same_to_key_vault(name: str):
    with pytest.raises(ConfigurationError):
        check_name(name)


def test_the_longest_name_leaves_room_for_the_pointers():
    check_name("x" * 119)


def test_goatdbs_configuration_shape_names_the_vault_apart_or_within_the_secret_id():
    apart = parse_address({"provider": "azure", "vault": "my-vault", "secretId": "goatdb-root", "region": "westeurope"})
    within = parse_address({"provider": "azure", "secretId": "my-vault/goatdb-root"})
    assert apart == within == parse_address("azure://my-vault/goatdb-root")


def test_goatdbs_configuration_shape_takes_the_options_too():
    address, _ = parse_address({"provider": "azure", "secretId": "my-vault/root", "suffix": "vault.azure.cn"})
    assert address.url == "https://my-vault.vault.azure.cn"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"provider": "azure"}, "secretId must be a string"),
        ({"provider": "azure", "secretId": "root", "region": "westeurope"}, 'needs a vault Add "vault": "my-vault".'),
        ({"provider": "azure", "secretId": 7}, "secretId must be a string"),
        ({"provider": "azure", "secretId": "my-vault/root", "colour": "red"}, "has no option 'colour' Known options: "),
        (
            {"provider": "azure", "secretId": "root", "vaultUrl": "my-vault"},
            "region, secretId, suffix, vault",
        ),
        ({"provider": "azure", "secretId": "root", "vault": 7}, "vault must be a string"),
    ],
)
def test_a_configuration_that_is_not_whole_is_refused(config: dict[str, object], told: str):
    with pytest.raises(ConfigurationError) as caught:
        parse_address(config)
    assert told in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://my-vault.vault.azure.net", "https://my-vault.vault.azure.net"),
        ("https://My-Vault.vault.azure.cn/", "https://my-vault.vault.azure.cn"),
        ("my-vault", "https://my-vault.vault.azure.net"),
    ],
)
def test_a_vault_is_named_by_its_url_or_its_name(given: str, url: str):
    assert parse_vault(given).url == url


@pytest.mark.parametrize("given", ["http://my-vault.vault.azure.net", "https://my-vault", "azure://my-vault/x", ""])
def test_what_is_not_a_vault_is_refused(given: str):
    with pytest.raises(ConfigurationError):
        parse_vault(given)
