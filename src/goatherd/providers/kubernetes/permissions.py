"""Write the Kubernetes RBAC Roles that a server, a rotator and an administrator need for one secret, and nothing more.

Pure: the module takes a role and an address, and returns YAML. The provider's tests run with exactly these Roles.

Follows https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources: ``create`` cannot be
restricted by name, because the name is not known yet when the request is authorized; ``watch`` can, with a field
selector for the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from goatherd.errors import ConfigurationError
from goatherd.providers.addresses import uri_of_config
from goatherd.providers.kubernetes.address import parse_address, split_secret_id
from goatherd.providers.policies import fill_policy
from goatherd.providers.values import ORG_FIELD, check_role

_PATH = re.compile(r"(?:/[A-Za-z0-9._-]+)+")


def policy(role: str, uri: str | Mapping[str, object]) -> str:
    """Return an RBAC Role and RoleBinding for a server, rotator or admin of one secret, as YAML for ``kubectl apply``.

    The binding names a service account ``goatherd-server`` (or rotator, admin) in the Secret's namespace.

    Args:
        role: ``server``, ``rotator`` or ``admin``.
        uri: The address, such as ``k8s://goatdb/root``, only ``goatdb/root``, or a ``cloudConfig``.

    Raises:
        ConfigurationError: The role is unknown, or no Role can be written for the address.
    """
    check_role(role)
    # SECURITY: both names in the YAML have only the characters a-z, 0-9, "-" and ".", so no name can grant more rights
    # (tests/unit/providers/kubernetes/test_permissions.py::test_a_name_that_would_change_the_policy_is_refused).
    is_short = isinstance(uri, str) and "://" not in uri
    _, secret_id = parse_address(f"k8s://{uri}" if is_short else uri)
    if ORG_FIELD in secret_id:
        raise ConfigurationError(
            f"a Role names each Secret, but {secret_id} stands for many",
            hint="Print one Role for each organization, with its id in the address.",
        )
    namespace, name = split_secret_id(secret_id)
    return fill_policy(__file__, f"{role}.yaml", namespace=namespace, name=name)


def volume_policy(role: str, uri: str | Mapping[str, object]) -> str:
    """Return the part of a pod's YAML with which a server can read a mounted Secret. It grants no right to write.

    Args:
        role: The role, which must be ``server``.
        uri: The directory of the mounted volume, ``k8s-volume:///var/run/secrets/goatherd``, only the path, or a
            ``cloudConfig``.

    Raises:
        ConfigurationError: The role is not ``server``, or no YAML can be written for the address.
    """
    check_role(role)
    if role != "server":
        raise ConfigurationError(
            f"a mounted Secret is read-only, so there is no policy for the role {role}",
            hint=f"`goatherd policy k8s --role {role} k8s://NAMESPACE/NAME` prints the policy for the Secret itself.",
        )
    path = (uri if isinstance(uri, str) else uri_of_config("k8s-volume", uri)).removeprefix("k8s-volume://")
    # SECURITY: a path with special characters could change the policy's YAML, so it is rejected
    # (tests/unit/cli/test_policy.py).
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ConfigurationError(
            f"{uri!r} is not the address of a mounted Secret",
            hint="Write, for example, k8s-volume:///var/run/secrets/goatherd.",
        )
    return fill_policy(__file__, "volume.yaml", path=path)
