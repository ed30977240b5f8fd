"""What `goatherd policy sqlite` prints. It imports no more than it needs, so that it runs without the provider."""

from __future__ import annotations

import shlex

from goatherd.providers.addresses import path_of_uri
from goatherd.providers.values import check_role


def policy(role: str, address: str) -> str:
    """Return the shell commands by which a role gets access to the database's directory.

    Raises:
        ConfigurationError: The role is unknown, or the address is invalid.
    """
    check_role(role)
    database, _, _ = path_of_uri(address, example="Write sqlite:///path/to/database.db/secret.").rpartition("/")
    directory = shlex.quote(database.rpartition("/")[0] or "/")
    # SQLite writes beside the database, also to read it, so every role needs the directory.
    return f"install -d -m 0700 {directory}\nchown -R goatherd {directory}\n"
