"""Retry a failed call to a store after a short pause, so that one failure does not end an observation of the cluster.

A rotation reads and writes the store through `RepeatingStore`, which retries a call after the provider's own retries
(`goatherd.providers.base`) have all failed. If the store stays unreachable, `goatherd.rotation.rotator` waits for it
(`Policy.store_patience`).

Why: an observation reads the store several times, and takes seconds if a server is down. If the observation had to
begin again after every failed call, a store that fails one call every few seconds could block a run indefinitely.

A call is tried `TRIES` times, with short pauses. A retry is safe because every change is a compare-and-swap or is
idempotent. If an attempt succeeded and only its answer was lost, the retry gets a conflict, and the run reads the store
again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from goatherd.clock import Clock
from goatherd.errors import ProviderError
from goatherd.providers.base import Guarantees, SecretProvider
from goatherd.providers.capabilities import (
    CopiedVersions,
    find_guarantees,
    list_copied_versions,
    list_guarantees,
)
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.rotation.policy import Policy

TRIES: Final = 3

R = TypeVar("R")


class RepeatingStore:
    """A secret store whose failed calls are retried after a short pause, while the context manager `repeating` is open.

    Args:
        provider: The store to call.
        policy: The rotation's policy, which says how long to pause between two attempts.
        clock: Tells the time and waits.
        troubled: Called with the error of every call that is retried.

    Attributes:
        calls: How many calls were made, with those that were retried.
        failing_since: When the calls began to fail, by the clock's `monotonic`; None if a call has succeeded since.
    """

    def __init__(
        self, provider: SecretProvider, *, policy: Policy, clock: Clock, troubled: Callable[[ProviderError], None]
    ) -> None:
        self.calls = 0
        self.failing_since: float | None = None
        self._provider = provider
        self._policy = policy
        self._clock = clock
        self._troubled = troubled
        self._tries = 1

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Retry failed calls to the store within the ``with`` statement; outside, each call is made once."""
        self.failing_since, self._tries = None, TRIES
        try:
            yield
        finally:
            self._tries = 1

    @property
    def guarantees(self) -> Guarantees:
        """The store's guarantees, such as its read consistency."""
        return self._provider.guarantees

    async def read(self, secret_id: str, at: Label | VersionId = CURRENT) -> SecretValue:
        """Read a secret's value from the store, as `SecretProvider.read` does."""
        return await self._repeat_call(lambda: self._provider.read(secret_id, at))

    async def versions(self, secret_id: str) -> list[SecretVersion]:
        """List a secret's versions, as `SecretProvider.versions` does."""
        return await self._repeat_call(lambda: self._provider.versions(secret_id))

    async def copied_versions(self, secret_id: str) -> Sequence[CopiedVersions]:
        """List a secret's versions in the stores of other regions, as `list_copied_versions` does."""
        return await list_copied_versions(self._provider, secret_id)

    def guarantees_of(self, version: VersionId) -> Guarantees:
        """Return the guarantees of the store that has this version, as `find_guarantees` does."""
        return find_guarantees(self._provider, version)

    def own_guarantees(self) -> Sequence[Guarantees]:
        """Return the guarantees of each store that has versions of its own, as `list_guarantees` does."""
        return list_guarantees(self._provider)

    async def write(
        self, secret_id: str, value: SecretBytes | bytes, *, label: str = CURRENT, expected: str | None
    ) -> SecretVersion:
        """Write a secret's value to the store, as `SecretProvider.write` does."""
        return await self._repeat_call(lambda: self._provider.write(secret_id, value, label=label, expected=expected))

    async def label(self, secret_id: str, label: str, version: str, *, expected: str | None) -> None:
        """Move a label of a secret to another version, as `SecretProvider.label` does."""
        await self._repeat_call(lambda: self._provider.label(secret_id, label, version, expected=expected))

    async def destroy(self, secret_id: str, version: str) -> None:
        """Destroy a version of a secret, as `SecretProvider.destroy` does."""
        await self._repeat_call(lambda: self._provider.destroy(secret_id, version))

    async def _repeat_call(self, call: Callable[[], Awaitable[R]]) -> R:
        pause = self._policy.poll_min
        for left in range(self._tries - 1, -1, -1):
            self.calls += 1
            try:
                result = await call()
            except ProviderError as error:
                if not error.retryable:
                    raise
                if self.failing_since is None:
                    self.failing_since = self._clock.monotonic()
                if not left:
                    raise
                self._troubled(error)
                await self._clock.sleep(pause)
                pause *= 2
            else:
                self.failing_since = None
                return result
        raise AssertionError  # pragma: no cover - the last try returns or raises
