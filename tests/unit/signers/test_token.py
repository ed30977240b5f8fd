"""PKCS#11 URIs (RFC 7512): what they name; a PIN in one is rejected, and the error does not quote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from goatherd.errors import ConfigurationError
from goatherd.plugins import policy_text
from goatherd.signers.pkcs11.address import parse_uri


def test_a_uri_names_token_key_library_and_the_place_of_the_pin() -> None:
    uri = "pkcs11:token=The%20token;serial=07;slot-id=3;object=my%2Fkey;id=%01%fF;type=private"
    address = parse_uri(f"{uri}?module-path=/usr/lib/lib.so&pin-source=file:///run/pin", environment={})
    assert (address.token, address.serial, address.slot) == ("The token", "07", 3)
    assert (address.object, address.id) == ("my/key", b"\x01\xff")
    assert (address.module, str(address.pin)) == ("/usr/lib/lib.so", "file:/run/pin")
    assert address.name == "token=The%20token;serial=07;slot-id=3;object=my%2Fkey;id=%01%FF"


def test_the_environment_names_the_library_and_holds_the_pin_by_default() -> None:
    address = parse_uri("pkcs11:object=anchor", environment={"GOATHERD_PKCS11_MODULE": "/lib.so"})
    assert (address.module, str(address.pin)) == ("/lib.so", "env:GOATHERD_PKCS11_PIN")
    assert parse_uri("pkcs11:id=%01", environment={}).module is None


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:",
        "pkcs11://token=a;object=b",
        "pkcs11:token=a",
        "pkcs11:object=a;object=b",
        "pkcs11:object=",
        "pkcs11:object=a;type=public",
        "pkcs11:object=a;slot-id=one",
        "pkcs11:object=a;pin=4711-secret",
        "pkcs11:object=a?pin-value=4711-secret",
        "pkcs11:object=a?pin-source=4711-secret",
        "pkcs11:object=a?pin-source=|cat%204711-secret",
        "pkcs11:object=a?module-name=softhsm",
        "pkcs11:object=a?module-path=lib.so",
    ],
)
def test_a_uri_that_is_not_one_is_refused_and_a_pin_in_it_is_not_quoted(uri: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_uri(uri, environment={})
    assert "4711" not in f"{caught.value} {caught.value.hint}"


def test_the_policy_says_which_attributes_the_key_must_have(tmp_path: Path) -> None:
    text = policy_text("pkcs11", "signer", "pkcs11:token=goatdb;object=anchor?pin-source=file:/run/pin")
    assert "CKA_SENSITIVE true" in text
    assert "token=goatdb;object=anchor" in text
    assert "\nchown USER /run/pin && chmod 0600 /run/pin\n" in text
