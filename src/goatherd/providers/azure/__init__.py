"""Azure Key Vault as a store, over Microsoft's own SDK. Needs the extra ``azure``.

- `provider`: `AzureSecretProvider`, which keeps the versions and labels of one secret in two secrets of the vault.
- `records`: the content of these two secrets, and the rule by which all readers agree which write came first.
- `client`: the SDK's client, the checks of its answers, and the translation of its errors.
- `credential`: tokens from Azure's default chain of credentials.
- `address`: ``azure://VAULT/SECRET?option=…``.
- `permissions`: `policy`, the role assignments for a server, a rotator or an administrator.
"""
