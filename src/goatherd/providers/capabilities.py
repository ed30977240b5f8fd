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
        text: The finding in words.
        hint: What the operator should do, or empty.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""


@runtime_checkable
class DiagnosableSecretProvider(Protocol):
    """A `SecretProvider` that can report on one of its secrets, for example on permissions and limits."""

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Return the findings about one existing secret. Changes nothing.

        Raises:
            ProviderError: As the methods of `SecretProvider`.
        """
        ...


def rights_finding(scheme: str, *, may_write: bool, may_destroy: bool | None) -> Finding:
    """Return the finding on the credentials' permissions; that they allow reading is already known.

    Args:
        scheme: The provider's URI scheme, for the command in the hint.
        may_write: Whether the credentials may write versions and move labels.
        may_destroy: Whether they may destroy versions; None if the same permission covers that.
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
        """Yield once when the watch is established, then each time that the secret may have changed.

        An item carries no data and can stand for several changes or for none: the caller reads the secret again. The
        store may end the watch at any time, and the watch does not retry. The caller then starts a new watch, whose
        first item covers all changes that were missed.

        Raises:
            ProviderError: The watch cannot be established, or broke; as for the methods of `SecretProvider`.
        """
        ...


@runtime_checkable
class ReservingSecretProvider(Protocol):
    """A `SecretProvider` that can reserve space for later writes."""

    async def reserve(self, secret_id: str) -> None:
        """Reserve space for the writes of one command, in case the store runs full meanwhile.

        If the space is reserved already, nothing changes. A write that finds the store full uses the reserve.

        Raises:
            SecretNotFoundError: No such secret.
            UnavailableError: There is not enough space. Nothing was changed.
        """
        ...


async def reserve_room(provider: SecretProvider, secret_id: str) -> None:
    """Reserve space for the writes that follow, if the store can, so that a change does not stop half-way.

    Raises:
        SecretNotFoundError, UnavailableError: As `ReservingSecretProvider.reserve`.
    """
    if isinstance(provider, ReservingSecretProvider):
        await provider.reserve(secret_id)
