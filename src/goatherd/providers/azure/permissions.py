"""Write the Azure role assignments that a server, a rotator and an administrator need for one secret, and nothing more.

The module returns text to paste; it sends nothing to Azure. A role has only the data actions that
`goatherd.providers.azure.provider` uses in that role; tests/contract/azure/test_policy.py runs the provider with
exactly these.
Data actions: learn.microsoft.com/azure/role-based-access-control/permissions/security#microsoftkeyvault
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from goatherd.providers.azure.address import POINTER_SUFFIX, parse_address
from goatherd.providers.values import ORG_FIELD, check_role

_PREFIX: Final = "Microsoft.KeyVault/vaults/secrets/"
_READ: Final = (f"{_PREFIX}getSecret/action", f"{_PREFIX}readMetadata/action")
# The built-in role that holds exactly these two; its id is 4633458b-17de-408a-b874-0445c86b69e6.
SERVER_ROLE: Final = "Key Vault Secrets User"
DATA_ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    "server": _READ,
    "rotator": (*_READ, f"{_PREFIX}setSecret/action"),
    "admin": (*_READ, f"{_PREFIX}setSecret/action", f"{_PREFIX}update/action", f"{_PREFIX}delete"),
}
_PURPOSE: Final = {
    "server": "reads the identity, and can change nothing",
    "rotator": "creates and rotates the identity; switches nothing off and deletes nothing",
    "admin": "does what the rotator does, switches versions off (goatherd retire) and deletes the secret",
}


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
        about = [
            "# Azure knows no patterns of names, so this holds for every secret of the vault: keep nothing else in it,",
            "# or print the commands for each organization.",
        ]
        scopes = ['"$VAULT"']
    else:
        about = ["# For two secrets: the current document, and the pointers with all versions."]
        names = (secret_id, secret_id + POINTER_SUFFIX)
        scopes = [f'"$VAULT/secrets/{name}"' for name in names]
    lines = [
        f"# Goatherd {role}: {_PURPOSE[role]}.",
        *about,
        "# PRINCIPAL is the object id of the managed identity, service principal or user.",
        f'VAULT="$(az keyvault show --name {address.vault} --query id --output tsv)"',
    ]
    if role == "server":
        name = f"'{SERVER_ROLE}'"
    else:
        name = f"'Goatherd {role} of {address.vault}'"
        lines += [
            'GROUP="${VAULT%/providers/*}"',
            f"az role definition create --role-definition '{_role_definition(role, address.vault)}'",
        ]
    lines += [f'az role assignment create --assignee "$PRINCIPAL" --role {name} --scope {scope}' for scope in scopes]
    return "\n".join(lines) + "\n"


def _role_definition(role: str, vault: str) -> str:
    """Return the JSON of an Azure custom role, for a shell command that puts it in single quotes.

    The quotes are closed around ``$GROUP``, so that the shell replaces this variable.
    """
    definition = {
        "Name": f"Goatherd {role} of {vault}",
        "Description": f"Goatherd: {_PURPOSE[role]}.",
        "Actions": [],
        "DataActions": list(DATA_ACTIONS[role]),
        "AssignableScopes": ["GROUP"],
    }
    return json.dumps(definition, indent=2).replace('"GROUP"', """"'"$GROUP"'\"""")
