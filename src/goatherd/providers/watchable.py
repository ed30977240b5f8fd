"""What a provider can do besides, where its store tells of changes by itself.

What it is not: the algebra (`goatherd.providers.base`). Rules: a watch carries no value; it does not retry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable


@runtime_checkable
class WatchableSecretProvider(Protocol):
    """What a `SecretProvider` is besides, where its store tells of changes by itself (`Guarantees.push`)."""

    def watch(self, secret_id: str) -> AsyncIterator[None]:
        """Yield once when the watch stands, then each time that the secret may have changed.

        A hint and no more: it carries nothing, may stand for several changes or for none, and whoever waits reads
        again. It ends when the store ends it, which it may at any time. It does not retry: whoever waits begins anew,
        and the first hint then stands for all that was missed.

        Raises:
            ProviderError: It cannot stand, or broke; as the methods of `SecretProvider`.
        """
        ...
