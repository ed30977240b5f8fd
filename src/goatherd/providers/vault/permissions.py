"""Write the Vault and OpenBao policies that a server, a rotator and an administrator need, and nothing more.

Pure: the module takes a role and an address, and returns HCL. The provider's tests run with exactly these policies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from goatherd.errors import ConfigurationError
from goatherd.providers.values import ORG_FIELD, check_role
from goatherd.providers.vault.address import FORMS, parse_address

_PURPOSE: Final = {
    "server": "reads the identity, and can change nothing",
    "rotator": "creates and rotates the identity; destroys nothing",
    "admin": "the rotator's, and destroying versions (goatherd retire) and deleting the secret",
}
_COMPONENT = re.compile(r"[A-Za-z0-9._-]+")


def policy(role: str, secret: str | Mapping[str, object], *, mount: str | None = None) -> str:
    """Return the Vault policy that a server, rotator or admin needs for one secret, as HCL.

    Args:
        role: ``server``, ``rotator`` or ``admin``.
        secret: The path, such as ``secret/goatdb/root``, which begins with the mount; or the whole address,
            ``vault://host:port/secret/goatdb/root``, or a ``cloudConfig``. A component may be ``{org}``, which stands
            for any one component.
        mount: The mount, if its name contains a slash; `secret` is then the path below it.

    Raises:
        ConfigurationError: The role is unknown, or no policy can be written for the path.
    """
    check_role(role)
    # Which server it is makes no difference here, so none has to be known.
    anywhere = {"VAULT_ADDR": "https://anywhere"}
    if not isinstance(secret, str) or "://" in secret:
        scheme = secret.partition("://")[0] if isinstance(secret, str) else str(secret.get("provider"))
        if scheme not in FORMS:
            raise ConfigurationError(f"{secret!r} is not a vault address")
        address, secret_id = parse_address(scheme, secret, environment=anywhere)
        mount = address.mount
    else:
        secret_id = secret
    if mount is None:
        mount, _, secret_id = secret_id.partition("/")
    components = [*mount.split("/"), *(component.replace(ORG_FIELD, "x") for component in secret_id.split("/"))]
    # SECURITY: no character of the path can end the string in HCL and so grant more
    # (tests/unit/providers/vault/test_permissions.py::test_a_path_that_would_change_the_policy_is_refused).
    if not secret_id or not all(_COMPONENT.fullmatch(each) and each.strip(".") for each in components):
        raise ConfigurationError(
            f"{mount}/{secret_id} must be a mount and a path", hint="Write the mount first, as in secret/goatdb/root."
        )
    path = _path_pattern(secret_id)
    rules = [("data", ["read"] if role == "server" else ["create", "read", "update"])]
    if role == "admin":
        rules += [("metadata", ["delete", "read"]), ("destroy", ["update"])]
    blocks = []
    for kind, capabilities in rules:
        listed = ", ".join(f'"{capability}"' for capability in capabilities)
        blocks.append(f'path "{mount}/{kind}/{path}" {{\n  capabilities = [{listed}]\n}}\n')
    return f"# Goatherd {role}: {_PURPOSE[role]}.\n" + "\n".join(blocks)


def _path_pattern(secret_id: str) -> str:
    components = []
    for component in secret_id.split("/"):
        if ORG_FIELD not in component:
            components.append(component)
        elif component == ORG_FIELD:
            components.append("+")
        else:
            raise ConfigurationError(
                f"a policy cannot match {component!r}: {ORG_FIELD} must be a whole component",
                hint="Put the organization into a component of its own, or print a policy for each organization.",
            )
    return "/".join(components)
