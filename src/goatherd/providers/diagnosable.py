"""What a provider can do besides, where its platform tells about itself: rights, limits, what will go wrong later.

What it is not: the algebra (`goatherd.providers.base`). Rules: a diagnosis changes nothing, so a right that cannot be
asked for without using it is reported as not checked; a finding holds names and numbers, never a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Verdict(StrEnum):
    """What a finding means."""

    FINE = "fine"
    CAUTION = "caution"
    """It works, and will not, or may not, later on."""
    WRONG = "wrong"
    NOT_CHECKED = "not checked"
    """The platform does not say. Not the same as fine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes:
        name: What was looked at, in a word or two, such as ``rights``.
        verdict: What it means.
        text: What was found.
        hint: What to do; empty where there is nothing to do.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""


@runtime_checkable
class DiagnosableSecretProvider(Protocol):
    """What a `SecretProvider` is besides, where its platform tells about itself."""

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Return what can be found out of one existing secret without changing anything.

        Raises:
            ProviderError: As the methods of `SecretProvider`.
        """
        ...


def rights(scheme: str, *, may_write: bool, may_destroy: bool | None) -> Finding:
    """Return the finding on what the credentials in use may do; they may read, or nobody would ask.

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
