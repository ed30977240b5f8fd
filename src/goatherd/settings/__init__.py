"""The settings of a server, from GoatDB's own file or from a secret store.

- `base`: `DBSettings`, `SettingsProvider`, and the base class of all sources.
- `store`: `CloudSecretSettings`, read from a store and refreshed; and `settings_from_options`, which makes a server's
  settings object from its configuration.
- `refresh`: decides when to read the store, with a circuit breaker.
- `last_known_good`: `LastKnownGood`, an encrypted copy of the identity to start from while the store is unreachable.
- `file`: `FileSettings`, read from ``settings.json``.
- `data_directory`: which organizations a GoatDB data directory holds, and whether this version can read their files.
"""
