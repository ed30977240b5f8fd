"""Import the names of a package when they are first used (PEP 562), so that importing the package itself is fast."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def lazy_attributes(package: str, **homes: str) -> Callable[[str], object]:
    """Return a module's ``__getattr__`` that imports a name when it is first asked for.

    For a plugin's package whose provider needs an SDK and whose policies do not.

    Args:
        package: The package's name.
        homes: For each name, the module of the package that has it.
    """

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found: object = getattr(import_module(f"{package}.{homes[name]}"), name)
        return found

    return find
