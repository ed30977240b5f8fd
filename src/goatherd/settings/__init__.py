"""The settings of a server, from GoatDB's own file or from a secret store.

- `base`: `DBSettings`, `SettingsProvider`, and the base class of all sources.
- `store`: `CloudSecretSettings`, read from a store and refreshed; and `settings_from_options`, which makes a server's
  settings object from its configuration.
- `refresh`: decides when to read the store, with a circuit breaker.
- `last_known_good`: `LastKnownGood`, an encrypted copy of the identity to start from while the store is unreachable.
- `file`: `FileSettings`, read from ``settings.json``.
"""

from typing import TYPE_CHECKING

from goatherd.lazy_imports import lazy_attributes

if TYPE_CHECKING:
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

__getattr__ = lazy_attributes(
    __name__,
    CloudSecretSettings="store",
    DBSettings="base",
    DBSettingsProvider="base",
    FileSettings="file",
    KeySource="last_known_good",
    LastKnownGood="last_known_good",
    Origin="base",
    Refusal="base",
    SettingsProvider="base",
    SettingsStatus="base",
    settings_from_options="store",
)
