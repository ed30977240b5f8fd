"""Start further processes of Goatherd itself, such as the one that serves the status page, and the demo's servers.

They do not inherit this process's secrets: of its environment they get only what a program needs to run.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
"""The environment variables that the process gets; those of the store's credentials are not among them."""
_LOADER: Final = "_PYI_"
"""The executable of one file sets such variables, so that a process of it finds the files that are already unpacked."""


def own_command(*arguments: str) -> list[str]:
    """Return the command line of one of Goatherd's own processes, such as ``page-process``; see `goatherd.__main__`."""
    # An embedded Python may not know its executable. Then the name is empty, and starting it raises an OSError.
    return [sys.executable or "", "-m", "goatherd", *arguments]


def own_environment() -> dict[str, str]:
    """Return the environment variables of such a process."""
    environment = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_LOADER)}
    # SECURITY: otherwise `-m` would import modules from the working directory, to which others may be able to write
    # (tests/unit/test_own_processes.py).
    environment["PYTHONSAFEPATH"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return environment
