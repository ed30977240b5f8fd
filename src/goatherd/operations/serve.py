"""Run a GoatDB server of our own."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from goatherd.errors import MissingExtraError

if TYPE_CHECKING:
    pass


NODE_LIBRARIES = ("uvicorn", "httptools", "prometheus_client")


def require_node_extra() -> None:
    """Make sure that the libraries of the extra ``node`` are installed.

    Raises:
        MissingExtraError: They are not; the hint is the install command.
    """
    missing = [name for name in NODE_LIBRARIES if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"serving needs libraries that are not installed: {', '.join(missing)}",
            hint="Install them: pip install 'goatherd[node]'",
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
