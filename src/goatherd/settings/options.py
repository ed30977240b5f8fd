"""Which settings a server's options name, in the shape that GoatDB's options have."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from goatherd.clock import Clock
from goatherd.errors import ConfigurationError
from goatherd.plugins import provider_from_config
from goatherd.settings.cloud import REFRESH_INTERVAL, CloudSecretSettings
from goatherd.settings.file import FileSettings
from goatherd.settings.sealed import LastKnownGood


def settings_from_options(
    options: Mapping[str, object],
    *,
    path: Path | str | None = None,
    refresh_interval: timedelta = REFRESH_INTERVAL,
    seen: Path | str | None = None,
    last_known_good: LastKnownGood | None = None,
    clock: Clock | None = None,
) -> CloudSecretSettings | FileSettings:
    """Return the settings that a server's options name.

    Args:
        options: ``{"type": "cloud", "cloudConfig": {"provider", "secretId", "region"}}`` or
            ``{"type": "file", "path"?}``.
        path: The server's data directory, for ``file`` without a path.
        refresh_interval: For ``cloud``.
        seen: For ``cloud``: as for `CloudSecretSettings`.
        last_known_good: For ``cloud``: as for `CloudSecretSettings`.
        clock: The time.

    Raises:
        ConfigurationError: The options are of neither shape.
        PluginNotFoundError, MissingExtraError: As `goatherd.plugins.provider_from_config`.
    """
    kind = options.get("type")
    allowed = {"cloud": {"type", "cloudConfig"}, "file": {"type", "path"}}.get(kind if isinstance(kind, str) else "")
    if allowed is None:
        raise ConfigurationError('settings: type must be "cloud" or "file"')
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ConfigurationError(f"settings: {kind} has no option {unknown[0]!r}")
    if kind == "cloud":
        config = options.get("cloudConfig")
        if not isinstance(config, Mapping):
            raise ConfigurationError("settings: cloud needs a cloudConfig")
        provider, secret_id = provider_from_config(config)
        return CloudSecretSettings(
            provider,
            secret_id,
            refresh_interval=refresh_interval,
            clock=clock,
            seen=seen,
            last_known_good=last_known_good,
        )
    place = options.get("path", path)
    if not isinstance(place, str | Path) or not str(place):
        raise ConfigurationError("settings: file needs a path")
    return FileSettings(place, clock=clock)
