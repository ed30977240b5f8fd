"""Azure Key Vault as a store, over Microsoft's own SDK. Needs the extra ``azure``.

- `provider`: `AzureSecretProvider`, the algebra of versions and labels over two secrets.
- `records`: the content of the two, and the rule by which all agree which write came first.
- `api`: the SDK's client, and what its errors and answers mean to us.
- `address`: ``azure://VAULT/SECRET?option=…``.
- `rbac`: `policy`, the role assignments for a server, a rotator or an administrator.
"""

from goatherd.providers.azure.address import AzureAddress
from goatherd.providers.azure.provider import AzureSecretProvider
from goatherd.providers.azure.rbac import policy

__all__ = ["AzureAddress", "AzureSecretProvider", "policy"]
