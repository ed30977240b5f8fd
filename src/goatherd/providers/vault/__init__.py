"""HashiCorp Vault and OpenBao as a store, over the key/value engine, version 2.

- `provider`: keeps a secret in one entry of the engine. `client`: the HTTP requests. `auth`: the token.
- `permissions`: the policies as text.
- `address`: the URI, and the environment variables that complete it.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes
from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.permissions import policy

if TYPE_CHECKING:
    from goatherd.providers.vault.auth import AppRoleAuth, KubernetesAuth, TokenAuth
    from goatherd.providers.vault.provider import OpenBaoSecretProvider, VaultSecretProvider

__all__ = [
    "AppRoleAuth",
    "KubernetesAuth",
    "OpenBaoSecretProvider",
    "TokenAuth",
    "VaultAddress",
    "VaultSecretProvider",
    "policy",
]

# The policies and addresses are imported without an HTTP client.
__getattr__ = lazy_attributes(
    __name__,
    AppRoleAuth="auth",
    KubernetesAuth="auth",
    OpenBaoSecretProvider="provider",
    TokenAuth="auth",
    VaultSecretProvider="provider",
)
