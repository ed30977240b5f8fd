"""HashiCorp Vault and OpenBao as a store, over the key/value engine, version 2.

- `provider`: keeps a secret in one entry of the engine. `client`: the HTTP requests. `auth`: the token.
- `permissions`: the policies as text.
- `address`: the URI, and the environment variables that complete it.
"""
