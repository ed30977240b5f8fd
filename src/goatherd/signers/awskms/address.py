"""Parse the address of a key in AWS KMS, and write the IAM policy for signing with it. Does not import boto3.

Actions and condition keys: docs.aws.amazon.com/service-authorization/latest/reference/list_awskeymanagementservice.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm, Option
from goatherd.providers.aws.address import AWSAddress, partition_of
from goatherd.providers.policies import fill_policy
from goatherd.signers.base import check_role

ALGORITHM: Final = "ECDSA_SHA_384"
FORM: Final = AddressForm(
    scheme="awskms",
    example="Write awskms://eu-west-1/alias/goatdb-anchor, awskms://eu-west-1/KEY-ID or awskms:///ARN.",
    options={"profile": Option(), "endpoint": Option(), "role_arn": Option()},
    missing="it names no key",
    subject="a key",
)
_KEY = re.compile(r"alias/[A-Za-z0-9/_-]{1,250}|(mrk-)?[A-Fa-f0-9-]{8,64}")
_ARN = re.compile(r"arn:aws[a-z-]*:kms:([a-z0-9-]+):([0-9]{12}):(key/[A-Za-z0-9-]+|alias/[A-Za-z0-9/_-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class AWSKeyAddress:
    """A key of AWS KMS.

    Attributes:
        service: How to reach AWS KMS: the region, and optionally profile, endpoint and role.
        key: The id of the key, an alias (``alias/name``), or the ARN of one of them.
    """

    service: AWSAddress
    key: str

    @property
    def alias(self) -> str | None:
        """The key's alias, ``alias/name``, if the address names one."""
        name = self.key.rpartition(":")[2]
        return name if name.startswith("alias/") else None


def parse_uri(uri: str) -> AWSKeyAddress:
    """Return the address of the key that `uri` names.

    Raises:
        ConfigurationError: The URI is not ``awskms://REGION/KEY``, or an option is unknown, repeated or invalid.
    """
    parsed = addresses.parse_uri(FORM, uri)
    region, arn = parsed.host or None, _ARN.fullmatch(parsed.path)
    # SECURITY: a wildcard in the key's name would make the printed policy allow more keys
    # (tests/unit/signers/test_awskms.py::test_an_address_that_is_not_one_is_refused).
    if arn is None and not _KEY.fullmatch(parsed.path):
        raise FORM.error("the key must be a key id, alias/NAME or the ARN of one of them")
    if arn is not None:
        if region not in (None, arn[1]):
            raise FORM.error("the ARN is of another region")
        region = arn[1]
    service = AWSAddress(
        region=region,
        profile=parsed.options.get("profile"),
        endpoint=parsed.options.get("endpoint"),
        role_arn=parsed.options.get("role_arn"),
    )
    return AWSKeyAddress(service=service, key=parsed.path)


def policy(role: str, uri: str) -> str:
    """Return the IAM policy, as JSON, that allows signing with one key and reading its public half.

    If `uri` names an alias, the policy applies to the key that has the alias at the time, because IAM does not accept
    an alias as the resource of these actions.
    """
    check_role(role)
    address = parse_uri(uri)
    region = address.service.region or "*"
    partition = partition_of(region)
    if address.alias is not None:
        account = address.key.split(":")[4] if ":" in address.key else "*"
        resource = f"arn:{partition}:kms:{region}:{account}:key/*"
        return fill_policy(__file__, "alias.json", resource=resource, alias=address.alias)
    resource = address.key if ":" in address.key else f"arn:{partition}:kms:{region}:*:key/{address.key}"
    return fill_policy(__file__, "key.json", resource=resource)
