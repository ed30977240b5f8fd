"""Optional abilities of a provider, beyond the interface in `goatherd.providers.base`: diagnose, watch, reserve.

Each is a protocol that a `SecretProvider` also implements where its platform allows it.

- `DiagnosableSecretProvider`: report permissions, limits, and problems to come. A diagnosis changes nothing, so a
  permission that can only be checked by using it is reported as not checked. A finding never holds a value.
- `WatchableSecretProvider`: notify of changes (`Guarantees.push`). A notification carries no value, and a watch does
  not retry.
- `ReservingSecretProvider`: reserve space for the writes of a change before it begins, in a store that can run full.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from goatherd.providers.base import SecretProvider


class Verdict(StrEnum):
    """The result of a check."""

    FINE = "fine"
    CAUTION = "caution"
    """It works, and will not, or may not, later on."""
    WRONG = "wrong"
    NOT_CHECKED = "not checked"
    """The platform does not say. Not the same as fine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of a diagnosis.

    Attributes:
        name: What was checked, in one or two words, such as ``rights``.
        verdict: The result.
        text: What was found.
        hint: What to do, or empty.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""


@runtime_checkable
class DiagnosableSecretProvider(Protocol):
    """A `SecretProvider` that can report on one of its secrets, such as rights and limits."""

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Return what can be found out of one existing secret without changing anything.

        Raises:
            ProviderError: As the methods of `SecretProvider`.
        """
        ...


def rights_finding(scheme: str, *, may_write: bool, may_destroy: bool | None) -> Finding:
    """Return the finding on what the credentials in use may do; that they may read is known.

    Args:
        scheme: The provider's, for the command in the hint.
        may_write: Whether they may write versions and move labels.
        may_destroy: Whether they may destroy versions; None where that is the same right.
    """
    if not may_write:
        return Finding(
            name="rights",
            verdict=Verdict.FINE,
            text="may read and not write: right for a server, too little to rotate",
            hint=f"To rotate from here: `goatherd policy {scheme} --role rotator`.",
        )
    if may_destroy is False:
        return Finding(
            name="rights",
            verdict=Verdict.FINE,
            text="may read and write, and not destroy: right for a rotator, too little for `goatherd retire`",
            hint=f"To retire from here: `goatherd policy {scheme} --role admin`.",
        )
    more = " and destroy versions" if may_destroy else ""
    return Finding(
        name="rights",
        verdict=Verdict.FINE,
        text=f"may read, write{more}: more than a server needs",
        hint=f"For servers: `goatherd policy {scheme} --role server`.",
    )


@runtime_checkable
class WatchableSecretProvider(Protocol):
    """A `SecretProvider` whose store reports changes (`Guarantees.push`)."""

    def watch(self, secret_id: str) -> AsyncIterator[None]:
        """Yield once when the watch stands, then each time that the secret may have changed.

        A hint and no more: it carries nothing, may stand for several changes or for none, and the caller reads
        again. It ends when the store ends it, which it may at any time. It does not retry: the caller watches again,
        and the first hint then stands for all that was missed.

        Raises:
            ProviderError: It cannot stand, or broke; as the methods of `SecretProvider`.
        """
        ...


@runtime_checkable
class ReservingSecretProvider(Protocol):
    """A `SecretProvider` that can reserve room for later writes."""

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
