"""Write the Kubernetes RBAC Roles that a server, a rotator and an administrator need for one secret, and nothing more.

Pure: the module takes a role and an address, and returns YAML. The provider's tests run with exactly these Roles.

Follows https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources: ``create`` cannot be
restricted by name, because the name is not known yet when the request is authorized; ``watch`` can, with a field
selector for the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from goatherd.errors import ConfigurationError
from goatherd.providers.addresses import uri_of_config
from goatherd.providers.kubernetes.address import parse_address, split_secret_id
from goatherd.providers.values import ORG_FIELD, check_role

_PURPOSE: Final = {
    "server": "reads the identity and watches it for changes; can change nothing",
    "rotator": "rotates the identity and destroys old versions; neither creates nor deletes the Secret",
    "admin": "does what the rotator does, and creates and deletes the Secret",
}
_VERBS: Final = {
    "server": ("get", "watch"),
    "rotator": ("get", "watch", "update"),
    "admin": ("get", "watch", "update", "delete"),
}

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
    title = f"goatherd-{role}-{name}"
    rules = [_rule_yaml(_VERBS[role], name)]
    warning = ""
    if role == "admin":
        rules.append(_rule_yaml(("create",), None))
        warning = (
            "# Kubernetes cannot restrict `create` to a name. An account that may create any Secret in a namespace\n"
            "# can obtain the token of each of its service accounts: give this to a person for the time of\n"
            "# `goatherd init`, not to a workload.\n"
        )
    return (
        f"# Goatherd {role}: {_PURPOSE[role]}.\n{warning}"
        f"apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n"
        f'  namespace: "{namespace}"\n  name: "{title}"\nrules:\n' + "".join(rules) + "---\n"
        f"apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata:\n"
        f'  namespace: "{namespace}"\n  name: "{title}"\nroleRef:\n'
        f'  apiGroup: rbac.authorization.k8s.io\n  kind: Role\n  name: "{title}"\nsubjects:\n'
        f'  - kind: ServiceAccount\n    namespace: "{namespace}"\n    name: goatherd-{role}\n'
    )


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
    return (
        f"# Goatherd server: reads the identity from a volume. The pod's service account needs no Role for it.\n"
        f"# Replace NAME with the name of the Secret. Add no items, and no subPath, which is never updated.\n"
        f"spec:\n  automountServiceAccountToken: false\n  securityContext:\n    fsGroup: 10001\n"
        f"  containers:\n    - name: goatherd\n      env:\n        - name: GOATHERD_PROVIDER\n"
        f'          value: "k8s-volume://{path}"\n'
        f"      volumeMounts:\n        - name: identity\n"
        f'          mountPath: "{path}"\n          readOnly: true\n'
        f"  volumes:\n    - name: identity\n      secret:\n        secretName: NAME\n        defaultMode: 0440\n"
    )


def _rule_yaml(verbs: tuple[str, ...], name: str | None) -> str:
    names = "" if name is None else f'    resourceNames: ["{name}"]\n'
    quoted = ", ".join(f'"{verb}"' for verb in verbs)
    return f'  - apiGroups: [""]\n    resources: ["secrets"]\n{names}    verbs: [{quoted}]\n'
