"""Write the commands that grant each role the IAM permissions that it needs for one secret, and nothing more.

The module takes a role and an address, and returns text to paste. It reads only GOOGLE_CLOUD_PROJECT, the project of a
``cloudConfig`` that names none. A role has only permissions that
`goatherd.providers.gcp.provider` uses in that role; tests/contract/gcp/test_policy.py runs the provider with exactly
these. Permissions: https://docs.cloud.google.com/secret-manager/docs/access-control
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from goatherd.providers.gcp.address import GCPAddress, check_name, parse_address
from goatherd.providers.values import ORG_FIELD, check_role

ACCESSOR: Final = "roles/secretmanager.secretAccessor"

_PURPOSE: Final = {
    "server": "reads the identity, and can change nothing",
    "rotator": "puts the identity into a secret that is there, rotates it, and destroys what is retired",
    "admin": "does what the rotator does, and creates and deletes the secret",
}
_ADMIN_WARNING: Final = (
    "# These rights hold for every secret of the project {project}: give them to a person for the time of\n"
    "# `goatherd init`, not to a workload. None are needed where the empty secret is made first\n"
    "# (gcloud secrets create): the rotator's then go far enough."
)
_READS: Final = frozenset({"secretmanager.versions.access"})
_ROTATES: Final = _READS | {
    "secretmanager.secrets.get",
    "secretmanager.secrets.update",
    "secretmanager.versions.add",
    "secretmanager.versions.destroy",
    "secretmanager.versions.get",
    "secretmanager.versions.list",
}
_ADMINISTERS: Final = _ROTATES | {"secretmanager.secrets.create", "secretmanager.secrets.delete"}


def permissions(role: str) -> frozenset[str]:
    """Return the names of the IAM permissions that a server, rotator or admin needs in Google Secret Manager.

    Raises:
        ConfigurationError: There is no such role.
    """
    check_role(role)
    return {"server": _READS, "rotator": _ROTATES, "admin": _ADMINISTERS}[role]


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
    wanted = permissions(role)
    is_short = isinstance(uri, str) and "://" not in uri
    address, secret_id = parse_address(f"gcp://{uri}" if is_short else uri)
    # SECURITY: operators paste these commands into a shell, so every name in them is checked first
    # (tests/unit/providers/gcp/test_permissions.py::test_a_name_that_a_shell_would_read_is_refused).
    check_name(secret_id.replace(ORG_FIELD, "x"))
    lines = [
        f"# Goatherd {role}: {_PURPOSE[role]}.",
        f"MEMBER=serviceAccount:goatherd-{role}@{_account_domain(address)}",
    ]
    if ORG_FIELD in secret_id:
        lines.append("ORG=acme  # each organization has a secret of its own: repeat for each")
    if role == "server":
        return "\n".join([*lines, *_binding_lines(address, secret_id, ACCESSOR)]) + "\n"
    name = f"goatherd{role.capitalize()}"
    lines += [
        f"cat > {name}.yaml <<'END'",
        f"title: Goatherd {role}",
        f"description: The {role} {_PURPOSE[role]}.",
        "stage: GA",
        "includedPermissions:",
        *(f"- {permission}" for permission in sorted(wanted)),
        "END",
        f"gcloud iam roles create {name} --project={address.project} --file={name}.yaml",
    ]
    full = f"projects/{address.project}/roles/{name}"
    if role == "admin":
        # A secret that does not exist yet cannot carry a grant.
        lines.insert(1, _ADMIN_WARNING.format(project=address.project))
        return "\n".join([*lines, *_binding_lines(address, None, full)]) + "\n"
    return "\n".join([*lines, *_binding_lines(address, secret_id, full)]) + "\n"


def _binding_lines(address: GCPAddress, secret_id: str | None, role: str) -> list[str]:
    if secret_id is None:
        target = f"gcloud projects add-iam-policy-binding {address.project}"
    else:
        target = f'gcloud secrets add-iam-policy-binding "{secret_id.replace(ORG_FIELD, "${ORG}")}"'
        target += f" --project={address.project}"
        target += "" if address.location is None else f" --location={address.location}"
    return [f"{target} \\", f'    --member="$MEMBER" --role={role} --condition=None']


def _account_domain(address: GCPAddress) -> str:
    """Return the domain of a Google project's service accounts, such as ``p.example.com…`` for ``example.com:p``."""
    domain, separator, name = address.project.partition(":")
    return f"{name}.{domain}.iam.gserviceaccount.com" if separator else f"{domain}.iam.gserviceaccount.com"
