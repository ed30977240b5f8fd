"""The roles for which each store's `permissions` module can print a policy."""

from __future__ import annotations

from typing import Literal, get_args

from goatherd.errors import ConfigurationError

Role = Literal["server", "rotator", "admin"]
"""``server`` reads the identity, ``rotator`` also changes it, ``admin`` also creates and deletes it."""


def check_role(role: str) -> None:
    """Check the name of a role.

    Raises:
        ConfigurationError: The role is unknown.
    """
    if role not in get_args(Role):
        raise ConfigurationError(f"no such role: {role!r}", hint=f"Roles: {', '.join(get_args(Role))}.")
