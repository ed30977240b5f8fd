"""Providers: plugins that read and write secrets in a secret store. They handle bytes and do not depend on GoatDB.

- `base`: `SecretProvider`, the interface of every store. `values`: its types for secret bytes, labels and versions.
- `capabilities`: optional abilities of a store. `call_metrics`: counts and durations of calls. `permissions`: the
  roles for which a policy can be printed.
- `addresses`: parses every URI and ``cloudConfig``. `versioned_record`: versions and labels for stores without them.
- `threads`: runs blocking libraries, also those of signers, in threads.
- `memory`, `file`: the built-in stores, opened by ``goatherd.plugins.open_provider`` like any other.
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
