"""The file store: secrets as files. It is the default store, and needs no server and no account.

- `provider`: `FileSecretProvider`, its address, its asyncio code and its errors.
- `layout`: the layout of a secret's directory and the order of writes.
- `permissions`: `policy`, the owners and modes for a server, a rotator or an administrator.
"""
