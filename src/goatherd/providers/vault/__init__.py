"""HashiCorp Vault and OpenBao, key/value version 2.

`provider` is the algebra over two entries, `records` their content, `client` the HTTP, `auth` the token, `address` the
URI and the environment, `policy` the text of the policies.
"""

from goatherd.providers.vault.address import VaultAddress
from goatherd.providers.vault.auth import AppRoleAuth, KubernetesAuth, TokenAuth
from goatherd.providers.vault.policy import policy
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
