"""Optional abilities of a provider, beyond the interface in `goatherd.providers.base`.

A provider may diagnose a secret, watch it, or read Kubernetes Services. Each ability but the last is a protocol that a
`SecretProvider` also implements if its platform allows it; the Kubernetes provider makes the reader of Services by its
method `service_reader`.

- `DiagnosableSecretProvider`: report permissions, limits and coming problems. A diagnosis changes nothing: a permission
  that only a change could test is reported as "not checked". A finding never holds a secret's value.
- `WatchableSecretProvider`: notify of changes (`Guarantees.push`). A notification carries no value, and a watch does
  not retry.
- `CopiedSecretProvider`: list the versions of a secret in the stores of other regions that hold copies of it.
- `ServiceReader`: find the pods behind a Kubernetes Service, for `goatherd.cluster.discovery`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from goatherd.providers.base import Guarantees, StoreReader
from goatherd.providers.values import SecretVersion, VersionId


class Verdict(StrEnum):
    """The result of a check of a secret store or a signer."""

    FINE = "fine"
    CAUTION = "caution"
    """It works, and will not, or may not, later on."""
    WRONG = "wrong"
    NOT_CHECKED = "not checked"
    """The platform does not say. Not the same as fine."""


class Finding(NamedTuple):
    """One result of the diagnosis of a secret store, for an operator.

    Attributes:
        name: What was checked, in one or two words, such as ``rights``.
        verdict: The result.
        text: The finding in words.
        hint: What the operator should do, or empty.
        may_write: In the finding ``rights``, whether the credentials may write; None if not known, or in another
            finding.
    """

    name: str
    verdict: Verdict
    text: str
    hint: str = ""
    may_write: bool | None = None


@runtime_checkable
class DiagnosableSecretProvider(Protocol):
    """A `SecretProvider` that can report on one of its secrets, for example on permissions and limits."""

    async def diagnose(self, secret_id: str) -> list[Finding]:
        """Check one existing secret, such as the permissions for it, and return the findings. Changes nothing.

        Raises:
            ProviderError: The store cannot be read; the same errors as those of `SecretProvider.read`.
        """
        ...


def unreported_finding(scheme: str) -> Finding:
    """Return the finding about a store that cannot report the credentials' permissions, and that could be read."""
    return Finding(
        name="rights",
        verdict=Verdict.NOT_CHECKED,
        text=f"the credentials may read; {scheme} cannot report their other permissions without using them",
        hint=f"Permissions that a rotation needs: `goatherd policy {scheme} --role rotator`.",
    )


def rights_finding(scheme: str, *, may_write: bool, may_destroy: bool | None) -> Finding:
    """Return the finding about the credentials' permissions on a secret; that they can read it is already known.

    Args:
        scheme: The provider's URI scheme, for the command in the hint.
        may_write: Whether the credentials may write versions and move labels.
        may_destroy: Whether the credentials may destroy versions; None if the permission to write includes that.
    """
    if not may_write:
        return Finding(
            name="rights",
            verdict=Verdict.FINE,
            text="the credentials may read, but not write: enough for a server, too little to rotate",
            hint=f"To rotate from here: `goatherd policy {scheme} --role rotator`.",
            may_write=False,
        )
    if may_destroy is False:
        return Finding(
            name="rights",
            verdict=Verdict.FINE,
            text="the credentials may read and write, but not destroy: enough for a rotator, too little for `goatherd"
            " retire`",
            hint=f"`goatherd policy {scheme} --role admin` prints the permissions that `goatherd retire` needs.",
            may_write=True,
        )
    what = "read, write and destroy versions" if may_destroy else "read and write"
    return Finding(
        name="rights",
        verdict=Verdict.FINE,
        text=f"the credentials may {what}: more than a server needs",
        hint=f"`goatherd policy {scheme} --role server` prints the permissions of a server.",
        may_write=True,
    )


@runtime_checkable
class WatchableSecretProvider(Protocol):
    """A `SecretProvider` whose store reports changes (`Guarantees.push`)."""

    def watch(self, secret_id: str) -> AsyncIterator[None]:
        """Watch one secret: yield once when the watch is established, then each time that the secret may have changed.

        A yielded item carries no data and can stand for several changes or for none: the caller reads the secret again.
        The store may end the watch at any time, and the watch does not retry. The caller then starts a new watch, whose
        first item covers all changes that were missed.

        Raises:
            ProviderError: The watch cannot be established, or broke.
        """
        ...


BETWEEN: Final = ":"
"""Between the region and the id, in the id of a version in the store of another region: ``REGION:ID``."""


class CopiedVersions(NamedTuple):
    """The versions of a secret in the store of another region, which holds a copy of the secret.

    Attributes:
        region: The operator's name of the region.
        versions: The versions, newest first, with ids of the form ``REGION:ID``; empty if they could not be listed.
        problem: Code of the error for which they could not be listed; None if they were listed.
    """

    region: str
    versions: Sequence[SecretVersion] = ()
    problem: str | None = None


@runtime_checkable
class CopiedSecretProvider(Protocol):
    """A `SecretProvider` whose secrets are copied to stores of other regions, each with versions of its own."""

    async def copied_versions(self, secret_id: str) -> Sequence[CopiedVersions]:
        """List the versions of a secret in each store but the one that `SecretProvider.versions` lists.

        `SecretProvider.read` and `SecretProvider.destroy` accept their ids.
        """
        ...

    def guarantees_of(self, version: VersionId) -> Guarantees:
        """Return the guarantees of the store that has this version, without those of stores that have copies of it."""
        ...

    def own_guarantees(self) -> Sequence[Guarantees]:
        """Return the guarantees of each store."""
        ...


def list_guarantees(provider: StoreReader) -> Sequence[Guarantees]:
    """Return the guarantees of a store; of several stores, those of each."""
    return provider.own_guarantees() if isinstance(provider, CopiedSecretProvider) else [provider.guarantees]


def find_guarantees(provider: StoreReader, version: VersionId) -> Guarantees:
    """Return the guarantees of the store that has a version, which may be one of several stores."""
    return provider.guarantees_of(version) if isinstance(provider, CopiedSecretProvider) else provider.guarantees


async def list_copied_versions(provider: object, secret_id: str) -> Sequence[CopiedVersions]:
    """List the versions of a secret in the stores of other regions; empty if the provider has a single store."""
    return await provider.copied_versions(secret_id) if isinstance(provider, CopiedSecretProvider) else ()


class ServiceReader(Protocol):
    """Reads which pods are behind a Kubernetes Service."""

    async def endpoint_slices(self, namespace: str, service: str) -> list[dict[str, Any]]:
        """Return all EndpointSlices of a Kubernetes Service; an empty list if there is no such Service.

        Raises:
            GoatherdError: The API server cannot be reached, or gives no complete answer.
        """
        ...
