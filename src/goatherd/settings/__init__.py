"""Where a server gets its settings: GoatDB's own file, or a secret store.

- `base`: `DBSettings`, `SettingsProvider`, and what every source shares.
- `cloud`: `CloudSecretSettings`, from a store, kept fresh.
- `keeper`: when the store is asked; `breaker` is its memory of failures.
- `sealed`: `LastKnownGood`, the copy to start from while the store cannot be reached.
- `file`: `FileSettings`, from ``settings.json``.
- `options`: settings by a server's options.
"""

from goatherd.settings.base import (
    DBSettings,
    DBSettingsProvider,
    Origin,
    Refusal,
    SettingsProvider,
    SettingsStatus,
)
from goatherd.settings.file import FileSettings
from goatherd.settings.last_known_good import KeySource, LastKnownGood
from goatherd.settings.store import CloudSecretSettings, settings_from_options

__all__ = [
    "CloudSecretSettings",
    "DBSettings",
    "DBSettingsProvider",
    "FileSettings",
    "KeySource",
    "LastKnownGood",
    "Origin",
    "Refusal",
    "SettingsProvider",
    "SettingsStatus",
    "settings_from_options",
]
