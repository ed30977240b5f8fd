"""Write the IAM policies that a server, a rotator and an administrator need for one secret, and nothing more.

The module returns text to paste; it sends nothing to AWS. A statement names only actions that
`goatherd.providers.aws.provider` calls in that role. Conditions use a set operator only for multi-valued keys, because
on a single-valued key it permits too much. tests/contract/aws/test_policy.py checks that the policies allow each
request that the provider sends.
Actions and condition keys: docs.aws.amazon.com/service-authorization/latest/reference/list_awssecretsmanager.html
Set operators: docs.aws.amazon.com/IAM/latest/UserGuide/, "Single-valued vs. multivalued context keys"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from goatherd.errors import ConfigurationError
from goatherd.providers.aws.address import AWSAddress, parse_address, partition_of
from goatherd.providers.policies import fill_policy
from goatherd.providers.values import ORG_FIELD, Role, check_role

_NAME = re.compile(r"[A-Za-z0-9/._-]{1,512}")
# ARNs end in a hyphen and six characters of AWS's; `?` for each, so that `…/root` does not cover `…/root-of-others`.
_SUFFIX: Final = "-??????"


def policy(role: Role, secret: str | Mapping[str, object], *, account: str = "*") -> str:
    """Return the IAM policy that a server, rotator or admin needs for one secret, as JSON text.

    Args:
        role: ``server`` may read the versions with the labels `current` and `stable`. ``rotator`` may also write and
            list versions and move labels. ``admin`` may do the same, create and delete the secret.
        secret: The address, such as ``aws://eu-west-1/goatdb/prod/root``, or a ``cloudConfig``. The name alone, such as
            ``goatdb/prod/root``, stands for the secret of that name in any region. If the address has ``kms_key_id``,
            the rights to that key are added. With the placeholder ``{org}`` in the name, the policy covers the secrets
            of all organizations.
        account: The twelve digits of the AWS account, or ``*`` for the account in which the policy is used.

    Raises:
        ConfigurationError: The address is invalid, the role is unknown, or the name has a wildcard, which would match
            more than one secret.
    """
    is_short = isinstance(secret, str) and "://" not in secret
    address, secret_id = parse_address(f"aws:///{secret}" if is_short else secret)
    check_role(role)
    # SECURITY: `*`, `?` and `$` are special characters in the resource of a policy, so a name with one of them would
    # grant more than that secret
    # (tests/unit/providers/aws/test_permissions.py::test_a_name_that_would_grant_more_is_refused).
    if not _NAME.fullmatch(secret_id.replace(ORG_FIELD, "x")):
        raise ConfigurationError(f"{secret_id[:80]!r} is not a valid name for an AWS secret")
    if account != "*" and not (len(account) == 12 and account.isascii() and account.isdigit()):
        raise ConfigurationError("an AWS account must be twelve digits")
    region = address.region or "*"
    partition = partition_of(region)
    name = secret_id.replace(ORG_FIELD, "*")
    resource = f"arn:{partition}:secretsmanager:{region}:{account}:secret:{name}{_SUFFIX}"
    key = "" if address.kms_key_id is None else _key_statement(address, address.kms_key_id, role, partition, account)
    return fill_policy(__file__, f"{role}.json", resource=resource, key=key)


def _key_statement(address: AWSAddress, key: str, role: Role, partition: str, account: str) -> str:
    """Return the statement about the secret's key, with the comma that separates it from the one before."""
    region = address.region or "*"
    file, alias = "key.json", ""
    scope, _, name = key.rpartition(":")
    if not scope:  # no ARN: a key of the region and the account of the secret
        scope, name = f"arn:{partition}:kms:{region}:{account}", key if key.startswith("alias/") else f"key/{key}"
    if name.startswith("alias/"):
        # An alias is no resource of these actions; the key behind it is found by this condition.
        file, alias = "key-alias.json", name
        name = "key/*"
    actions = ["kms:Decrypt"] if role == "server" else ["kms:Decrypt", "kms:GenerateDataKey"]
    # In every partition it ends in amazonaws.com: docs.aws.amazon.com/kms/latest/developerguide/conditions-kms.html
    return ",\n    " + fill_policy(
        __file__,
        file,
        actions=",\n        ".join(f'"{action}"' for action in actions),
        resource=f"{scope}:{name}",
        operator="StringLike" if region == "*" else "StringEquals",
        region=region,
        alias=alias,
    )
