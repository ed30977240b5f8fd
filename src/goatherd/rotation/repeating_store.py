"""A store in which a single call that fails is made again at once, so that one failure does not cost a whole look.

What it is: `RepeatingStore`, which a run reads and writes through. What it is not: a wait for a store that is away
(`Policy.store_patience`, in `goatherd.rotation.rotator`), nor the retries inside one call (`goatherd.providers.base`),
all of which have failed before a call is made again here.

A look reads several times, and beside a server that is down it takes seconds. If it had to begin anew for every call
that fails, a store that fails one call every few seconds could stop a run for good.

Rules: a call is made `TRIES` times, with short pauses; what a change was decided on is then as good as it was, and
every change is a compare-and-swap, or does nothing the second time. If an earlier attempt had its effect and only the
answer was lost, the next one meets a conflict, which makes the run look again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from goatherd.clock import Clock
from goatherd.errors import ProviderError
from goatherd.providers.base import Guarantees, SecretProvider
from goatherd.providers.capabilities import reserve_room
from goatherd.providers.values import CURRENT, Label, SecretBytes, SecretValue, SecretVersion, VersionId
from goatherd.rotation.policy import Policy

TRIES: Final = 3

R = TypeVar("R")


class RepeatingStore:
    """See the module.

    Args:
        provider: The store.
        policy: How long to pause.
        clock: Tells the time and waits.
        troubled: Told of every call that failed and is made again.

    Attributes:
        failing_since: When a call failed first, by the clock's `monotonic`; None where one has succeeded since.
    """

    def __init__(
        self, provider: SecretProvider, *, policy: Policy, clock: Clock, troubled: Callable[[ProviderError], None]
    ) -> None:
        self.failing_since: float | None = None
        self._provider = provider
        self._policy = policy
        self._clock = clock
        self._troubled = troubled
        self._tries = 1

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Make calls again that fail, inside; outside, each is made once."""
        self.failing_since, self._tries = None, TRIES
        try:
            yield
        finally:
            self._tries = 1

    @property
    def guarantees(self) -> Guarantees:
        """What the store promises."""
        return self._provider.guarantees

    async def read(self, secret_id: str, at: Label | VersionId = CURRENT) -> SecretValue:
        """Read, as `SecretProvider.read`."""
        return await self._repeat(lambda: self._provider.read(secret_id, at))

    async def versions(self, secret_id: str) -> list[SecretVersion]:
        """List the versions, as `SecretProvider.versions`."""
        return await self._repeat(lambda: self._provider.versions(secret_id))

    async def write(
        self, secret_id: str, value: SecretBytes | bytes, *, label: str = CURRENT, expected: str | None
    ) -> SecretVersion:
        """Write, as `SecretProvider.write`."""
        return await self._repeat(lambda: self._provider.write(secret_id, value, label=label, expected=expected))

    async def label(self, secret_id: str, label: str, version: str, *, expected: str | None) -> None:
        """Move a label, as `SecretProvider.label`."""
        await self._repeat(lambda: self._provider.label(secret_id, label, version, expected=expected))

    async def destroy(self, secret_id: str, version: str) -> None:
        """Destroy a version, as `SecretProvider.destroy`."""
        await self._repeat(lambda: self._provider.destroy(secret_id, version))

    async def reserve_room(self, secret_id: str) -> None:
        """Reserve room, as `goatherd.providers.capabilities.reserve_room`."""
        await self._repeat(lambda: reserve_room(self._provider, secret_id))

    async def _repeat(self, call: Callable[[], Awaitable[R]]) -> R:
        pause = self._policy.poll_min
        for left in range(self._tries - 1, -1, -1):
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
