"""Write the commands that grant each role the IAM permissions that it needs for one secret, and nothing more.

The module takes a role and an address, and returns text to paste. It reads only GOOGLE_CLOUD_PROJECT, the project of a
``cloudConfig`` that names none. A role has only permissions that
`goatherd.providers.gcp.provider` uses in that role; tests/contract/gcp/test_policy.py runs the provider with exactly
these. Permissions: https://docs.cloud.google.com/secret-manager/docs/access-control
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from goatherd.providers.gcp.address import GCPAddress, check_name, parse_address
from goatherd.providers.policies import fill_policy
from goatherd.providers.values import ORG_FIELD, check_role

_PERMISSION: Final = re.compile(r"(?m)^- (\S+)$")
_READS: Final = frozenset({"secretmanager.versions.access"})
"""The permission of the role ``roles/secretmanager.secretAccessor``, which servers get."""


def permissions(role: str) -> frozenset[str]:
    """Return the names of the IAM permissions that a server, rotator or admin needs in Google Secret Manager.

    Raises:
        ConfigurationError: There is no such role.
    """
    check_role(role)
    return _READS if role == "server" else frozenset(_PERMISSION.findall(_fill_policy(role)))


def policy(role: str, uri: str | Mapping[str, object]) -> str:
    """Return the ``gcloud`` commands that grant a server, rotator or admin access to one secret.

    For a rotator and an admin, the commands create a custom role, whose YAML they contain.

    Args:
        role: ``server``, ``rotator`` or ``admin``.
        uri: The address, such as ``gcp://my-project/goatdb-root``, or a ``cloudConfig``; the scheme may be left out.
            ``{org}`` becomes the shell variable ``$ORG``, which the operator sets.

    Raises:
        ConfigurationError: There is no such role, or the address is invalid.
    """
    check_role(role)
    is_short = isinstance(uri, str) and "://" not in uri
    address, secret_id = parse_address(f"gcp://{uri}" if is_short else uri)
    # SECURITY: operators paste these commands into a shell, so every name in them is checked first
    # (tests/unit/providers/gcp/test_permissions.py::test_a_name_that_a_shell_would_read_is_refused).
    check_name(secret_id.replace(ORG_FIELD, "x"))
    many = "ORG=acme  # each organization has a secret of its own: repeat for each\n"
    return _fill_policy(
        role,
        domain=_account_domain(address),
        note=many if ORG_FIELD in secret_id else "",
        project=address.project,
        secret=secret_id.replace(ORG_FIELD, "${ORG}"),
        location="" if address.location is None else f" --location={address.location}",
    )


def _fill_policy(
    role: str, *, domain: str = "", note: str = "", project: str = "", secret: str = "", location: str = ""
) -> str:
    return fill_policy(
        __file__, f"{role}.sh", domain=domain, note=note, project=project, secret=secret, location=location
    )


def _account_domain(address: GCPAddress) -> str:
    """Return the domain of a Google project's service accounts, such as ``p.example.com…`` for ``example.com:p``."""
    domain, separator, name = address.project.partition(":")
    return f"{name}.{domain}.iam.gserviceaccount.com" if separator else f"{domain}.iam.gserviceaccount.com"
