"""The address and the policy of a transit key."""

from __future__ import annotations

import pytest

from goatherd.errors import ConfigurationError
from goatherd.plugins import policy_text
from goatherd.providers.vault.auth import AppRoleAuth
from goatherd.signers.transit.address import parse_uri


def test_an_address_names_server_mount_key_and_version() -> None:
    address = parse_uri("transit://vault.example.org/transit/anchor?version=3&auth=approle&role-id=r", environment={})
    assert address.server.url == "https://vault.example.org:8200"
    assert isinstance(address.server.auth, AppRoleAuth)
    assert (address.server.mount, address.key, address.version) == ("transit", "anchor", 3)
    assert address.name == "transit/anchor version 3"


def test_the_environment_names_the_server_and_the_mount_may_have_slashes() -> None:
    address = parse_uri("transit:///anchor?mount=team/transit", environment={"BAO_ADDR": "http://127.0.0.1:8200"})
    assert (address.server.url, address.server.mount) == ("http://127.0.0.1:8200", "team/transit")
    assert (address.key, address.version) == ("anchor", 1)


@pytest.mark.parametrize(
    "uri",
    [
        "transit://host/",
        "transit://host/transit",
        "transit://host/transit/a/b",
        "transit://host/transit/a%22%0Apath",
        "transit://host/transit/..",
        "transit://host/tran%20sit/a",
        "transit://host/transit/{org}",
        "transit://host/transit/a?version=0",
        "transit://host/transit/a?version=latest",
        "transit://host/transit/a?token=x",
        "transit://host/transit/a?reads=active",
    ],
)
def test_an_address_that_is_not_one_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_uri(uri, environment={})


def test_the_policy_allows_signing_with_one_key_and_reading_its_public_half() -> None:
    assert policy_text("transit", "signer", "transit://vault.example.org/transit/anchor") == (
        "# Goatherd signer: signs with this key, and reads its public half; cannot change, export or delete it.\n"
        'path "transit/sign/anchor" {\n  capabilities = ["update"]\n}\n\n'
        'path "transit/keys/anchor" {\n  capabilities = ["read"]\n}\n'
    )
