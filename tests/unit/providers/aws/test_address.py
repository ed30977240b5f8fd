"""Addresses of AWS secrets, and what is made of labels and values without asking AWS."""

from __future__ import annotations

import subprocess
import sys

import pytest

from goatherd.errors import ConfigurationError
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.aws.address import AWSAddress, parse_address
from goatherd.providers.aws.provider import AWSSecretProvider, version_id_for
from goatherd.providers.base import ReadConsistency
from goatherd.providers.values import SecretBytes

ROLE = "arn:aws:iam::111122223333:role/goatherd"


def test_the_address_names_region_and_secret():
    provider, secret_id = open_provider("aws://eu-west-1/goatdb/prod/{org}")
    assert isinstance(provider, AWSSecretProvider)
    assert secret_id == "goatdb/prod/{org}"
    assert provider.address == AWSAddress(region="eu-west-1")


def test_without_a_region_the_standard_chain_says_which():
    assert parse_address("aws:///root") == (AWSAddress(), "root")


def test_every_option_is_taken():
    address, secret_id = parse_address(
        "aws://us-gov-west-1/r?profile=my%20herd&endpoint=https://vpce-1.example:8443/x"
        f"&role_arn={ROLE}&kms_key_id=alias/herd&recovery_days=7"
    )
    assert secret_id == "r"
    assert address == AWSAddress(
        region="us-gov-west-1",
        profile="my herd",
        endpoint="https://vpce-1.example:8443/x",
        role_arn=ROLE,
        kms_key_id="alias/herd",
        recovery_days=7,
    )


@pytest.mark.parametrize(
    "rest",
    [
        "eu-west-1",
        "eu-west-1/",
        "Europe/root",
        "eu-west-1:443/root",
        "eu-west-1/root#x",
        "eu-west-1/root?unknown=1",
        "eu-west-1/root?profile=",
        "eu-west-1/root?profile=a&profile=b",
        "eu-west-1/root?profile=a/b",
        "eu-west-1/root?role_arn=goatherd",
        "eu-west-1/root?kms_key_id=a*",
        "eu-west-1/root?recovery_days=6",
        "eu-west-1/root?recovery_days=31",
        "eu-west-1/root?recovery_days=-7",
        "eu-west-1/root?recovery_days=seven",
    ],
)
def test_what_is_no_address_is_refused(rest: str):
    with pytest.raises(ConfigurationError):
        open_provider(f"aws://{rest}")


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://vpce.example",
        "ftp://127.0.0.1",
        "http://127.0.0.1.example",
        "https://u:p@vpce.example",
        "https://",
        "https://[x",
        "x",
    ],
)
def test_an_endpoint_without_tls_must_be_this_machine(endpoint: str):
    with pytest.raises(ConfigurationError, match="endpoint"):
        AWSAddress(endpoint=endpoint)
    for here in ("http://127.0.0.1:5000", "http://localhost:1", "http://[::1]:1"):
        assert AWSAddress(endpoint=here).endpoint == here


def test_the_cloud_configuration_of_goatdb_is_taken():
    provider, secret_id = provider_from_config(
        {"provider": "aws", "region": "eu-west-1", "secretId": "goatdb/root", "roleArn": ROLE, "recoveryDays": 7}
    )
    assert isinstance(provider, AWSSecretProvider)
    assert secret_id == "goatdb/root"
    assert provider.address == AWSAddress(region="eu-west-1", role_arn=ROLE, recovery_days=7)


@pytest.mark.parametrize(
    "wrong", [{"secretId": ""}, {"region": 5}, {"profile": True}, {"kmsKeyId": ["x"]}, {"vault": "x"}, {"region": "x"}]
)
def test_a_wrong_cloud_configuration_is_refused(wrong: dict[str, object]):
    with pytest.raises(ConfigurationError):
        provider_from_config({"provider": "aws", "secretId": "root", **wrong})


def test_what_is_promised_follows_the_address():
    promised = AWSSecretProvider(AWSAddress()).guarantees
    assert promised.cas
    assert promised.read_consistency is ReadConsistency.EVENTUAL
    assert promised.recoverable
    assert not AWSSecretProvider(AWSAddress(recovery_days=0)).guarantees.recoverable


def test_the_id_of_a_version_is_that_of_its_request_and_value():
    request, value = "0123456789abcdef" * 2, SecretBytes(b"value")
    name = version_id_for(request, value)
    assert name == version_id_for(request, value)
    assert name.startswith("01234567-89ab-cdef-0123-456789abcdef-g")
    assert 32 <= len(name) <= 64
    assert version_id_for(request, SecretBytes(b"other")) != name


@pytest.mark.slow
def test_no_sdk_is_imported_before_a_store_of_aws_is_opened():
    code = (
        "import sys, goatherd.plugins as p, goatherd.cli.main; p.open_provider('memory:///a/b'); "
        "assert 'botocore' not in sys.modules; p.open_provider('aws://eu-west-1/x'); assert 'botocore' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
