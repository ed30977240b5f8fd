"""Import the names of a package when they are first used (PEP 562), so that importing the package itself is fast."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def lazy_attributes(package: str, **homes: str) -> Callable[[str], object]:
    """Return a ``__getattr__`` for a package that imports a name of the package when the name is first used.

    Plugin packages use this function: their providers need an SDK, their policies do not.

    Args:
        package: The package's name.
        homes: For each name, the module in the package that defines the name.
    """

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found: object = getattr(import_module(f"{package}.{homes[name]}"), name)
        return found

    return find
