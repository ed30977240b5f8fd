"""What a provider can do besides, where its store may run out of room: keep some for changes that have begun.

What it is not: the algebra (`goatherd.providers.base`). Rule: what is reserved holds no value, and no reader needs it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from goatherd.providers.base import SecretProvider


@runtime_checkable
class ReservingSecretProvider(Protocol):
    """What a `SecretProvider` is besides, where it can reserve room for writes that come later."""

    async def reserve(self, secret_id: str) -> None:
        """Make sure that the writes of a command have room, though the store runs full meanwhile.

        Reserving again, where the room is reserved already, changes nothing. A write that finds the store full uses
        the reserve up.

        Raises:
            SecretNotFoundError: No such secret.
            UnavailableError: There is no room. Nothing was changed.
        """
        ...


async def reserve_room(provider: SecretProvider, secret_id: str) -> None:
    """Reserve room for the writes that follow, where the store can: what has begun must not stop for it half-way.

    Raises:
        SecretNotFoundError, UnavailableError: As `ReservingSecretProvider.reserve`.
    """
    if isinstance(provider, ReservingSecretProvider):
        await provider.reserve(secret_id)
