"""Cloud-native key management for GoatDB server clusters.

The names below are the public API; everything else may change with any version. docs/reference/python.md describes each
name with an example. A name is imported when it is first used, so ``import goatherd`` is fast.

- Operations: `init`, `migrate`, `status`, `rotate`, `resume`, `cancel`, `roll_back`, `plan_rotation`, `restore`,
  `retire`, `revoke`, `drop_lost_anchor`, `read_identity`, `open_store`, `Store`, `Policy`, `Quorum`. From synchronous
  code: ``asyncio.run(goatherd.rotate(…))``.
- A server and its settings: `Server`, `serve`, `AccessRule`, `Access`, `SettingsProvider`, `CloudSecretSettings`,
  `FileSettings`, `DBSettings`, `settings_from_options`.
- Stores: `open_provider`, `CloudSecretProvider`, `AWSSecretProvider`, `GCPSecretProvider`, `AzureSecretProvider`,
  `FileSecretProvider`, `MemorySecretProvider`, `SecretVersion`, `SecretValue`, `SecretBytes`, `Label`, `VersionId`.
- `open_signer` opens a key in an HSM or a KMS, for `init`, `rotate` and `revoke`.
- Sessions and identities: `generate_session`, `create_session_commit`, `encode_session`, `decode_session`, `Session`,
  `OwnedSession`, `create_identity`, `encode_document`, `decode_document`, `IdentityDocument`, `TrustPool`.
- `NodeClient` sends requests to a server, `Rotator` rotates a root, and `GoatherdError` is the base of every error.

`SecretProvider` and `DBSettingsProvider` are other names of `CloudSecretProvider` and `SettingsProvider`.
"""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # not from `typing`, which takes longer to import than all of `goatherd --help`
if TYPE_CHECKING:
    from goatherd.admission.access import Access, AccessRule
    from goatherd.cluster.client import NodeClient
    from goatherd.errors import GoatherdError
    from goatherd.identity.document import IdentityDocument, decode_document, encode_document
    from goatherd.identity.session import OwnedSession, Session
    from goatherd.node.server import Server, serve
    from goatherd.operations.identity_store import Store
    from goatherd.operations.init import init
    from goatherd.operations.migrate import migrate
    from goatherd.operations.opening import open_store, read_identity
    from goatherd.operations.restore import restore
    from goatherd.operations.retire import retire
    from goatherd.operations.revoke import revoke
    from goatherd.operations.rotate import cancel, drop_lost_anchor, plan_rotation, resume, roll_back, rotate
    from goatherd.operations.sessions import (
        create_identity,
        create_session_commit,
        decode_session,
        encode_session,
        generate_session,
    )
    from goatherd.operations.status import status
    from goatherd.plugins import open_provider
    from goatherd.providers.aws.provider import AWSSecretProvider
    from goatherd.providers.azure.provider import AzureSecretProvider
    from goatherd.providers.base import CloudSecretProvider, SecretProvider
    from goatherd.providers.file.provider import FileSecretProvider
    from goatherd.providers.gcp.provider import GCPSecretProvider
    from goatherd.providers.memory import MemorySecretProvider
    from goatherd.providers.values import Label, SecretBytes, SecretValue, SecretVersion, VersionId
    from goatherd.rotation.policy import Policy, Quorum
    from goatherd.rotation.rotator import Rotator
    from goatherd.settings.base import DBSettings, DBSettingsProvider, SettingsProvider
    from goatherd.settings.file import FileSettings
    from goatherd.settings.store import CloudSecretSettings, settings_from_options
    from goatherd.signers.verified import open_signer
    from goatherd.trust import TrustPool

__version__ = "0.1.0"

__all__ = [
    "AWSSecretProvider",
    "Access",
    "AccessRule",
    "AzureSecretProvider",
    "CloudSecretProvider",
    "CloudSecretSettings",
    "DBSettings",
    "DBSettingsProvider",
    "FileSecretProvider",
    "FileSettings",
    "GCPSecretProvider",
    "GoatherdError",
    "IdentityDocument",
    "Label",
    "MemorySecretProvider",
    "NodeClient",
    "OwnedSession",
    "Policy",
    "Quorum",
    "Rotator",
    "SecretBytes",
    "SecretProvider",
    "SecretValue",
    "SecretVersion",
    "Server",
    "Session",
    "SettingsProvider",
    "Store",
    "TrustPool",
    "VersionId",
    "cancel",
    "create_identity",
    "create_session_commit",
    "decode_document",
    "decode_session",
    "drop_lost_anchor",
    "encode_document",
    "encode_session",
    "generate_session",
    "init",
    "migrate",
    "open_provider",
    "open_signer",
    "open_store",
    "plan_rotation",
    "read_identity",
    "restore",
    "resume",
    "retire",
    "revoke",
    "roll_back",
    "rotate",
    "serve",
    "settings_from_options",
    "status",
]

_HOMES = {
    "admission.access": ("Access", "AccessRule"),
    "cluster.client": ("NodeClient",),
    "errors": ("GoatherdError",),
    "identity.document": ("IdentityDocument", "decode_document", "encode_document"),
    "identity.session": ("OwnedSession", "Session"),
    "node.server": ("Server", "serve"),
    "operations.identity_store": ("Store",),
    "operations.init": ("init",),
    "operations.migrate": ("migrate",),
    "operations.opening": (
        "open_store",
        "read_identity",
    ),
    "operations.restore": ("restore",),
    "operations.retire": ("retire",),
    "operations.revoke": ("revoke",),
    "operations.rotate": (
        "cancel",
        "drop_lost_anchor",
        "plan_rotation",
        "resume",
        "roll_back",
        "rotate",
    ),
    "operations.sessions": (
        "create_identity",
        "create_session_commit",
        "decode_session",
        "encode_session",
        "generate_session",
    ),
    "operations.status": ("status",),
    "plugins": ("open_provider",),
    "providers.aws.provider": ("AWSSecretProvider",),
    "providers.azure.provider": ("AzureSecretProvider",),
    "providers.base": ("CloudSecretProvider", "SecretProvider"),
    "providers.file.provider": ("FileSecretProvider",),
    "providers.gcp.provider": ("GCPSecretProvider",),
    "providers.memory": ("MemorySecretProvider",),
    "providers.values": ("Label", "SecretBytes", "SecretValue", "SecretVersion", "VersionId"),
    "rotation.policy": ("Policy", "Quorum"),
    "rotation.rotator": ("Rotator",),
    "settings.base": ("DBSettings", "DBSettingsProvider", "SettingsProvider"),
    "settings.file": ("FileSettings",),
    "settings.store": ("CloudSecretSettings", "settings_from_options"),
    "signers.verified": ("open_signer",),
    "trust": ("TrustPool",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_EXTRAS = {
    "AWSSecretProvider": "aws",
    "AzureSecretProvider": "azure",
    "GCPSecretProvider": "gcp",
    "Server": "node",
    "serve": "node",
}
"""The extra that brings the libraries of a name."""
_LIBRARIES = {
    "AWSSecretProvider": "boto3",
    "AzureSecretProvider": "azure.keyvault.secrets",
    "GCPSecretProvider": "google.cloud.secretmanager_v1",
}
"""The library without which a name cannot be imported."""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (docs/adr/0001-layers.md).

    Raises:
        MissingExtraError: The name needs libraries that are not installed; the hint is the install command.
    """
    if name not in _HOME_OF:
        # With the object, the interpreter suggests a name that was meant.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    try:
        value: object = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    except ModuleNotFoundError as error:
        if name not in _EXTRAS or (error.name or "").partition(".")[0] == __name__:
            raise
        from goatherd.errors import MissingExtraError

        raise MissingExtraError(
            f"goatherd.{name} needs a library that is not installed: {error.name}",
            hint=f"Install it: pip install 'goatherd[{_EXTRAS[name]}]'",
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names, except those whose libraries are not installed: `help` imports every name that is listed."""
    from importlib.util import find_spec

    def is_missing(library: str) -> bool:
        try:
            return find_spec(library) is None
        except ModuleNotFoundError:  # a package that would hold it
            return True

    missing = {name for name, library in _LIBRARIES.items() if is_missing(library)}
    return sorted({*globals(), *__all__} - missing)
