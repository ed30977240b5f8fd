"""Rules of GoatDB that Goatherd itself does not need, and that GoatDB's vectors cover."""

from __future__ import annotations

import math

from goatherd.errors import EncodeError
from goatherd.wire.items import normalize_data
from goatherd.wire.schema import Data, Registry, Schema

_SYNC_DURATION_MS = 1000
_MIN_SYNC_MS = 300
_MAX_CYCLES = 3


def cycles_for(measured_ms: float) -> int:
    """Return in how many rounds two peers must converge (1 to 3), given the measured time between two rounds."""
    return min(_MAX_CYCLES, max(1, math.floor(_SYNC_DURATION_MS / max(measured_ms, _MIN_SYNC_MS))))


def upgrade_data(data: Data, schema: Schema, target: Schema, registry: Registry) -> tuple[Data, Schema]:
    """Upgrade an item's data to a later version of its schema as GoatDB does, and normalize the data.

    The result is the new data and their schema. A target with a lower version changes nothing but this normalization.

    Raises:
        EncodeError: A version in between is not registered, or the result cannot be normalized.
    """
    upgraded = dict(data)
    version = schema.version
    while version < target.version:
        version += 1
        step = registry.get(target.ns, version)
        if step is None:
            raise EncodeError(f"the schema {target.ns}/{version} is not registered, so the data cannot be upgraded")
        if step.upgrade is not None:
            upgraded = step.upgrade(upgraded)
        schema = step
    return normalize_data(upgraded, schema), schema
