"""The address and the policy of a key in AWS KMS."""

from __future__ import annotations

import json

import pytest

from goatherd.errors import ConfigurationError
from goatherd.plugins import policy_text
from goatherd.signers.awskms.address import parse_uri

KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:eu-west-1:111122223333:key/{KEY}"


def test_an_address_names_region_and_key() -> None:
    address = parse_uri("awskms://eu-west-1/alias/goatdb-anchor?profile=prod")
    assert (address.service.region, address.service.profile) == ("eu-west-1", "prod")
    assert (address.key, address.alias) == ("alias/goatdb-anchor", "alias/goatdb-anchor")
    assert parse_uri(f"awskms:///{ARN}").service.region == "eu-west-1"
    assert parse_uri(f"awskms:///{KEY}").alias is None


@pytest.mark.parametrize(
    "uri",
    [
        "awskms://eu-west-1/",
        "awskms://eu-west-1/alias/*",
        "awskms://eu-west-1/*",
        "awskms://eu-west-1/alias/a$%7Bb%7D",
        f"awskms://us-east-1/{ARN}",
        "awskms:///arn:aws:kms:eu-west-1:111122223333:key/*",
        "awskms://somewhere/alias/a",
        "awskms://eu-west-1/alias/a?secret=x",
        "awskms://eu-west-1/alias/a?endpoint=http://kms.example.org",
    ],
)
def test_an_address_that_is_not_one_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_uri(uri)


def test_the_policy_of_a_key_allows_signing_and_reading_the_public_key() -> None:
    allowed = json.loads(policy_text("awskms", "signer", f"awskms:///{ARN}"))["Statement"]
    assert [each["Action"] for each in allowed] == [["kms:Sign"], ["kms:GetPublicKey"]]
    assert all(each["Resource"] == [ARN] and each["Effect"] == "Allow" for each in allowed)
    assert allowed[0]["Condition"] == {"StringEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_384"}}
    assert "Condition" not in allowed[1]


def test_the_policy_of_an_alias_holds_for_the_key_that_has_it() -> None:
    allowed = json.loads(policy_text("awskms", "signer", "awskms://eu-west-1/alias/anchor"))["Statement"]
    for each in allowed:
        assert each["Resource"] == ["arn:aws:kms:eu-west-1:*:key/*"]
        assert each["Condition"]["ForAnyValue:StringEquals"] == {"kms:ResourceAliases": ["alias/anchor"]}


def test_the_policy_names_the_partition_of_the_region() -> None:
    allowed = json.loads(policy_text("awskms", "signer", "awskms://eusc-de-east-1/alias/anchor"))["Statement"]
    assert allowed[0]["Resource"] == ["arn:aws-eusc:kms:eusc-de-east-1:*:key/*"]
