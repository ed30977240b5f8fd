"""Where exportable secrets rest. Providers speak bytes and know nothing of GoatDB.

- `base`: the algebra, `SecretProvider`, and the types that go in and out.
- `ledger`: versions and labels as immutable data, for the stores that we keep ourselves.
- `memory`, `file`: the embedded defaults, reached by ``goatherd.plugins.open_provider`` like any other.
"""

from goatherd.providers.base import (
    CURRENT,
    STABLE,
    Guarantees,
    Label,
    ReadConsistency,
    RetryPolicy,
    SecretBytes,
    SecretProvider,
    SecretValue,
    SecretVersion,
    VersionId,
    VersionState,
    WatchableSecretProvider,
    secret_id_for,
)

__all__ = [
    "CURRENT",
    "STABLE",
    "Guarantees",
    "Label",
    "ReadConsistency",
    "RetryPolicy",
    "SecretBytes",
    "SecretProvider",
    "SecretValue",
    "SecretVersion",
    "VersionId",
    "VersionState",
    "WatchableSecretProvider",
    "secret_id_for",
]
