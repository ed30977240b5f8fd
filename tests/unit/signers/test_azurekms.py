"""The address and the role of a key in Azure Key Vault."""

from __future__ import annotations

import json
import re

import pytest

from goatherd.errors import ConfigurationError
from goatherd.plugins import policy_text
from goatherd.signers.azurekms.address import parse_uri

VERSION = "0123456789abcdef0123456789abcdef"


def test_an_address_names_vault_key_and_version() -> None:
    address = parse_uri(f"azurekms://my-vault/anchor/{VERSION}?identity=client")
    assert (address.vault.url, address.key, address.version) == ("https://my-vault.vault.azure.net", "anchor", VERSION)
    assert address.name == f"my-vault/anchor/{VERSION}"
    hsm = parse_uri("azurekms://my-hsm/anchor?suffix=managedhsm.azure.net")
    assert (hsm.vault.url, hsm.version) == ("https://my-hsm.managedhsm.azure.net", None)


@pytest.mark.parametrize(
    ("options", "authority"),
    [
        ("suffix=managedhsm.azure.net", None),
        ("suffix=managedhsm.azure.cn", "login.chinacloudapi.cn"),
        ("suffix=managedhsm.usgovcloudapi.net", "login.microsoftonline.us"),
        ("endpoint=https://my-hsm.managedhsm.usgovcloudapi.net", "login.microsoftonline.us"),
    ],
)
def test_a_managed_hsm_of_another_cloud_takes_tokens_of_that_cloud(options: str, authority: str | None) -> None:
    assert parse_uri(f"azurekms://my-hsm/anchor?{options}").vault.authority == authority


@pytest.mark.parametrize(
    "uri",
    [
        "azurekms://my-vault/",
        "azurekms://my-vault/a/latest",
        f"azurekms://my-vault/a/{VERSION}/sign",
        "azurekms://my-vault/a'b",
        "azurekms://my-vault/a_b",
        "azurekms://m/anchor",
        "azurekms://my-vault/anchor?secret=x",
        "azurekms://my-vault/anchor?endpoint=http://localhost",
    ],
)
def test_an_address_that_is_not_one_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_uri(uri)
    assert "azure://" not in caught.value.hint


def test_the_role_signs_and_reads_and_is_assigned_for_one_key() -> None:
    text = policy_text("azurekms", "signer", "azurekms://my-vault/anchor")
    definition = re.search(r"--role-definition '(.*?)'\n", text.replace("""'"$GROUP"'""", "/group"), re.DOTALL)
    assert definition is not None
    assert json.loads(definition[1])["DataActions"] == [
        "Microsoft.KeyVault/vaults/keys/read",
        "Microsoft.KeyVault/vaults/keys/sign/action",
    ]
    assert '--scope "$VAULT/keys/anchor"\n' in text


@pytest.mark.parametrize("options", ["suffix=managedhsm.azure.net", "endpoint=https://my-hsm.managedhsm.azure.net"])
def test_the_role_of_a_managed_hsm_is_one_of_its_own_for_one_key(options: str) -> None:
    text = policy_text("azurekms", "signer", f"azurekms://my-hsm/anchor?{options}")
    created, assigned = re.findall(r"^az keyvault role .*?(?=^az|\Z)", text, re.DOTALL | re.MULTILINE)
    definition = re.fullmatch(
        r"az keyvault role definition create --hsm-name my-hsm --role-definition '(.*)'\n", created, re.DOTALL
    )
    assert definition is not None
    role = json.loads(definition[1])
    assert role["dataActions"] == [
        "Microsoft.KeyVault/managedHsm/keys/read/action",
        "Microsoft.KeyVault/managedHsm/keys/sign/action",
    ]
    assert assigned == (
        'az keyvault role assignment create --hsm-name my-hsm --assignee "$PRINCIPAL"'
        f" --role '{role['roleName']}' --scope /keys/anchor\n"
    )
    assert "az keyvault show" not in text
