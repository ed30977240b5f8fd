"""HashiCorp Vault and OpenBao, key/value version 2.

`provider` is the algebra over two entries, `records` their content, `client` the HTTP, `auth` the token, `address` the
URI and the environment, `permissions` the text of the policies.
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
