"""Where a server gets its settings: GoatDB's own file, or a secret store.

- `base`: `DBSettings`, `DBSettingsProvider`, and what every source shares.
- `cloud`: `CloudSecretSettings`, from a store, kept fresh.
- `file`: `FileSettings`, from ``settings.json``; `storage` is that file on the disk.
- `options`: settings by a server's options.
"""

from goatherd.settings.base import DBSettings, DBSettingsProvider, Refusal, SettingsStatus
from goatherd.settings.cloud import CloudSecretSettings
from goatherd.settings.file import FileSettings
from goatherd.settings.options import settings_from_options

__all__ = [
    "CloudSecretSettings",
    "DBSettings",
    "DBSettingsProvider",
    "FileSettings",
    "Refusal",
    "SettingsStatus",
    "settings_from_options",
]
