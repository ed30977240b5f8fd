"""Write the Azure role assignments that a server, a rotator and an administrator need for one secret, and nothing more.

The module returns text to paste; it sends nothing to Azure. A role has only the data actions that
`goatherd.providers.azure.provider` uses in that role; tests/contract/azure/test_policy.py runs the provider with
exactly these.
Data actions: learn.microsoft.com/azure/role-based-access-control/permissions/security#microsoftkeyvault
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from goatherd.providers.azure.address import POINTER_SUFFIX, parse_address
from goatherd.providers.policies import fill_policy
from goatherd.providers.values import ORG_FIELD, check_role

# The built-in role that holds exactly the rights to read values and metadata; its id is
# 4633458b-17de-408a-b874-0445c86b69e6.
SERVER_ROLE: Final = "Key Vault Secrets User"


def policy(role: str, uri: str | Mapping[str, object]) -> str:
    """Return the ``az`` commands that grant a server, rotator or admin access to one secret in a vault with Azure RBAC.

    Args:
        role: ``server``, ``rotator`` or ``admin``.
        uri: The address, such as ``azure://my-vault/goatdb-root``, or a ``cloudConfig``; the scheme may be left out. If
            it contains ``{org}``, the roles are granted for the whole vault, because Azure has no patterns for names.

    Raises:
        ConfigurationError: The address is invalid, or the role is not one of the three.
    """
    check_role(role)
    is_short = isinstance(uri, str) and "://" not in uri
    address, secret_id = parse_address(f"azure://{uri}" if is_short else uri)
    if ORG_FIELD in secret_id:
        about = (
            "# Azure knows no patterns of names, so this holds for every secret of the vault: keep nothing else in it,"
            "\n# or print the commands for each organization."
        )
        scopes = ["$VAULT"]
    else:
        about = "# For two secrets: the current document, and the pointers with all versions."
        scopes = [f"$VAULT/secrets/{name}" for name in (secret_id, secret_id + POINTER_SUFFIX)]
    name = SERVER_ROLE if role == "server" else f"Goatherd {role} of {address.vault}"
    assign = f"az role assignment create --assignee \"$PRINCIPAL\" --role '{name}' --scope"
    assignments = "\n".join(f'{assign} "{scope}"' for scope in scopes)
    return fill_policy(__file__, f"{role}.sh", about=about, vault=address.vault, assignments=assignments)
