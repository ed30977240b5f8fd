"""Where exportable secrets rest. Providers speak bytes and know nothing of GoatDB.

- `values`: what goes in and comes out: secret bytes, labels, versions. `base`: the algebra, `SecretProvider`.
- `capabilities`: what a store can do beyond it. `call_metrics`: how often it was called. `permissions`: the roles.
- `addresses`: reads every URI and ``cloudConfig``. `versioned_record`: versions and labels where a store has none.
- `memory`, `file`: the embedded defaults, reached by ``goatherd.plugins.open_provider`` like any other.
"""

from goatherd.providers.base import Guarantees, ReadConsistency, RetryPolicy, SecretProvider
from goatherd.providers.capabilities import WatchableSecretProvider
from goatherd.providers.values import (
    CURRENT,
    STABLE,
    Label,
    SecretBytes,
    SecretValue,
    SecretVersion,
    VersionId,
    VersionState,
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
