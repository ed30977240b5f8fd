"""Write the commands that give a secret of the file store its owners and modes, for each role.

Pure: the module takes a role and an address, and returns commands to paste. `provider` checks the modes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from goatherd.errors import ConfigurationError
from goatherd.providers.addresses import AddressForm, parse_config, split_path
from goatherd.providers.values import ORG_FIELD, check_role

FORM: Final = AddressForm(scheme="file", host="directory")
_PURPOSE: Final = {
    "server": "reads the identity; needs no right to write, and the file system may be mounted read-only",
    "rotator": "rotates the identity; creates files in the secret's directory, and no directory",
    "admin": "the rotator's, and making and removing the secret's directory (goatherd init)",
}
_COMPONENT = re.compile(r"[A-Za-z0-9._-]{1,200}")


def policy(role: str, secret: str | Mapping[str, object]) -> str:
    """Return the shell commands that set owner and mode of a secret in the file store for a server, rotator or admin.

    All files of a secret must belong to one user, so a server that must not write gets a read-only mount.

    Args:
        role: ``server``, ``rotator`` or ``admin``.
        secret: The address, such as ``file:///srv/keys/root``, only the path, or a ``cloudConfig``.

    Raises:
        ConfigurationError: The role is unknown, or the address is invalid.
    """
    check_role(role)
    if not isinstance(secret, str):
        config = parse_config(FORM, secret)
        secret = f"{config.host.rstrip('/')}/{config.path}" if config.host else config.path
    parts = urlsplit(secret if "://" in secret else f"file://{secret}")
    path = unquote(parts.path)
    components = path.split("/")[1:]
    wrong = parts.scheme != "file" or parts.netloc not in ("", "localhost") or parts.query or parts.fragment
    # SECURITY: operators paste these commands into a shell, so every name in them is checked first
    # (tests/unit/cli/test_policy.py::test_a_name_that_a_shell_would_read_is_refused).
    checked = [component.replace(ORG_FIELD, "x") for component in components]
    if wrong or len(components) < 2 or not all(_COMPONENT.fullmatch(one) and one.strip(".") for one in checked):
        raise ConfigurationError(f"{secret[:200]!r} is not a file address", hint="Write file:///srv/keys/root.")
    base, _ = split_path(path, example="Write file:///srv/keys/root.")
    directory = path.replace(ORG_FIELD, "$ORG")
    lines = [
        f"# Goatherd {role}: {_PURPOSE[role]}.",
        "# OWNER is the user that the servers and `goatherd` run as: one user owns all of the secret.",
        "OWNER=goatherd",
    ]
    if ORG_FIELD in path:
        lines.append("ORG=acme  # each organization has a secret of its own: repeat for each")
    if role == "admin":
        lines += [
            "# Only the owner may write to the base directory; others may enter it.",
            f'install -d -o "$OWNER" -m 0755 "{base}"',
            "# `goatherd init`, run as OWNER, makes the secret's directory, 0700, and its files, 0600.",
        ]
        return "\n".join(lines) + "\n"
    lines += [
        f'chown -R "$OWNER" "{directory}"',
        f'chmod 0700 "{directory}"',
        f'find "{directory}" -type f -exec chmod 0600 {{}} +',
    ]
    if role == "server":
        lines += [
            "# So that a server cannot write: the same user, and a file system that is read-only for it. With systemd:",
            "#   [Service]",
            "#   User=goatherd",
            f"#   ReadOnlyPaths={base}",
        ]
    return "\n".join(lines) + "\n"
