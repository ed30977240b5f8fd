"""Cloud-native key management for GoatDB server clusters.

The names below are the public API; each is imported when it is first asked for, so that ``import goatherd`` costs
nothing and a store needs no web server. Everything else may change with any version.

- Stores: `open_provider`, `SecretProvider`, `SecretVersion`, `SecretValue`, `SecretBytes`, `Label`, `VersionId`.
- Identity: `IdentityDocument`, `decode_document`, `encode_document`, `Session`, `OwnedSession`.
- Settings of a server: `DBSettings`, `DBSettingsProvider`, `FileSettings`, `CloudSecretSettings`,
  `settings_from_options`.
- Running things: `Server`, `Rotator`, `Policy`, `NodeClient`; `GoatherdError` is the base of every error.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from goatherd.cluster.client import NodeClient
    from goatherd.errors import GoatherdError
    from goatherd.identity.document import IdentityDocument, decode_document, encode_document
    from goatherd.identity.session import OwnedSession, Session
    from goatherd.node.server import Server
    from goatherd.plugins import open_provider
    from goatherd.providers.base import SecretProvider
    from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId
    from goatherd.rotation.machine import Policy
    from goatherd.rotation.rotator import Rotator
    from goatherd.settings import (
        CloudSecretSettings,
        DBSettings,
        DBSettingsProvider,
        FileSettings,
        settings_from_options,
    )

__version__ = "0.1.0"

__all__ = [
    "CloudSecretSettings",
    "DBSettings",
    "DBSettingsProvider",
    "FileSettings",
    "GoatherdError",
    "IdentityDocument",
    "Label",
    "NodeClient",
    "OwnedSession",
    "Policy",
    "Rotator",
    "SecretBytes",
    "SecretProvider",
    "SecretValue",
    "SecretVersion",
    "Server",
    "Session",
    "VersionId",
    "decode_document",
    "encode_document",
    "open_provider",
    "settings_from_options",
]

_HOMES = {
    "plugins": ("open_provider",),
    "cluster.client": ("NodeClient",),
    "errors": ("GoatherdError",),
    "identity.document": ("IdentityDocument", "decode_document", "encode_document"),
    "identity.session": ("OwnedSession", "Session"),
    "node.server": ("Server",),
    "providers.base": ("Label", "SecretBytes", "SecretProvider", "SecretValue", "SecretVersion", "VersionId"),
    "rotation.machine": ("Policy",),
    "rotation.rotator": ("Rotator",),
    "settings": ("CloudSecretSettings", "DBSettings", "DBSettingsProvider", "FileSettings", "settings_from_options"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (docs/adr/0001-layers.md)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
