"""Parse and check the address of a secret in AWS Secrets Manager: ``aws://REGION/SECRET?option=…`` or ``cloudConfig``.

The module connects to nothing and does not import boto3. `goatherd.providers.addresses` parses what the addresses of
all stores have in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from goatherd.errors import ConfigurationError
from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm, Option, check_part

RECOVERY_DAYS: Final = range(7, 31)
DEFAULT_RECOVERY_DAYS: Final = 30

_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,576}", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9:/_-]{1,2048}")
_PROFILE = re.compile(r"[\w .@+=,-]{1,128}", re.ASCII)
# What the names of regions begin with outside of the partition `aws`, as in botocore's partitions.json.
_PARTITIONS: Final = {
    "cn-": "aws-cn",
    "eu-isoe-": "aws-iso-e",
    "eusc-": "aws-eusc",
    "us-gov-": "aws-us-gov",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "us-isof-": "aws-iso-f",
}
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
FORM: Final = AddressForm(
    scheme="aws",
    example="Write aws://eu-west-1/name/of/secret; without a region (aws:///name), the SDK's own is taken.",
    options={
        "profile": Option(),
        "endpoint": Option(),
        "role_arn": Option(config="roleArn"),
        "kms_key_id": Option(config="kmsKeyId"),
        "recovery_days": Option(config="recoveryDays", is_number=True),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AWSAddress:
    """How to reach AWS Secrets Manager. Where an attribute is None, the AWS SDK's standard chain decides.

    Attributes:
        region: The AWS region, such as ``eu-west-1``.
        profile: The name of a profile in ``~/.aws/config``.
        endpoint: The URL to use instead of the public one, such as that of a VPC endpoint.
        role_arn: The ARN of a role to assume with the credentials that the SDK finds; None to use these directly.
        kms_key_id: The KMS key that encrypts secrets that Goatherd creates; None for ``aws/secretsmanager``.
        recovery_days: How long a deleted secret can be restored: 7 to 30 days, or 0 to delete it permanently at once.
    """

    region: str | None = None
    profile: str | None = None
    endpoint: str | None = None
    role_arn: str | None = None
    kms_key_id: str | None = None
    recovery_days: int = DEFAULT_RECOVERY_DAYS

    def __post_init__(self) -> None:
        check_part(self.region, _REGION, "AWS region", "Such as eu-west-1.")
        check_part(self.profile, _PROFILE, "AWS profile", "The name of a profile in ~/.aws/config.")
        check_part(self.role_arn, _ROLE, "role_arn", "Such as arn:aws:iam::111122223333:role/goatherd.")
        check_part(self.kms_key_id, _KEY, "kms_key_id", "A key id, a key ARN, or alias/name.")
        if self.endpoint is not None:
            _check_endpoint(self.endpoint)
        if self.recovery_days != 0 and self.recovery_days not in RECOVERY_DAYS:
            raise ConfigurationError(
                "aws address: recovery_days must be 7 to 30, or 0",
                hint="With 0, a secret is deleted at once and cannot be restored.",
            )


def parse_address(given: str | Mapping[str, object]) -> tuple[AWSAddress, str]:
    """Parse the address of a secret into an `AWSAddress` and a secret id; the id may contain ``{org}``.

    Args:
        given: ``aws://REGION/SECRET``, or a ``cloudConfig`` like ``{"provider": "aws", "secretId": …, "region": …}``.

    Raises:
        ConfigurationError: The address has another form, or an option is unknown, repeated or invalid.
    """
    region, secret_id, options = addresses.parse_address(FORM, given)
    days = options.get("recovery_days", str(DEFAULT_RECOVERY_DAYS))
    address = AWSAddress(
        region=region or None,
        profile=options.get("profile"),
        endpoint=options.get("endpoint"),
        role_arn=options.get("role_arn"),
        kms_key_id=options.get("kms_key_id"),
        recovery_days=int(days) if re.fullmatch(r"[0-9]{1,2}", days) else -1,
    )
    return address, secret_id


def partition_of(region: str) -> str:
    """Return the partition of AWS that has a region, which is the second part of an ARN; ``aws`` if it is unknown."""
    return next((name for prefix, name in _PARTITIONS.items() if region.startswith(prefix)), "aws")


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError:
        raise ConfigurationError("aws address: the endpoint must be a URL", hint="Write https://host[:port].") from None
    # SECURITY: secrets must not be sent over a network unencrypted
    # (tests/unit/providers/aws/test_address.py::test_an_endpoint_without_tls_must_be_this_machine).
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ConfigurationError("aws address: the endpoint must be https (http only to this machine)")
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError("aws address: the endpoint must be https://host[:port], without user or query")
