"""Read the identity of one organization from an open store.

This module never creates an identity. A secret that does not exist and a secret that cannot be read are two different
errors, so that no caller takes an unreachable identity for a missing one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from goatherd.clock import SystemClock
from goatherd.errors import ConfigurationError, ProviderConfigurationError, SecretNotFoundError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, ORG_FIELD, Label, SecretVersion, VersionId
from goatherd.remote_keys import RootSigners
from goatherd.wire.paths import DEFAULT_ORG


def check_address_has_org(template: str, name: str, org: str, *, hint: str) -> None:
    """Check that the store's address names the organization, so that each organization has an identity of its own.

    Args:
        template: The secret's id, with ``{org}`` not yet replaced.
        name: Name of the store in messages.
        org: The organization. The default organization need not be named in the address.
        hint: The hint of the error: how the operator names another organization or address.

    Raises:
        ConfigurationError: The address is the same for every organization.
    """
    # SECURITY: a mistyped organization would otherwise change another organization's identity
    # (tests/unit/cli/test_org_guard.py, tests/unit/api/test_operations.py).
    if org != DEFAULT_ORG and ORG_FIELD not in template:
        raise ConfigurationError(
            f"the store's address {name} does not contain {ORG_FIELD}, so organization {org!r} would use the same"
            " identity as every other one",
            hint=hint,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An open store: the provider, and the secret in it that holds the identity of one organization.

    Attributes:
        provider: The open provider.
        secret_id: The secret.
        org: The organization.
        name: Name of the store in messages: the URI, or the scheme and the name of the secret. It contains no password.
        signers: The signers that this machine may call as anchors or roots of this identity.
    """

    provider: SecretProvider
    secret_id: str
    org: str
    name: str
    signers: RootSigners = field(default_factory=RootSigners)

    async def read(self, at: Label | VersionId | str = CURRENT) -> tuple[SecretVersion, IdentityDocument]:
        """Read one version of the store's secret; return the version and the identity document in it.

        Args:
            at: A label such as ``"stable"``, or the id of a version, such as ``VersionId("7")``.

        Raises:
            SecretNotFoundError: There is no such secret, label or version.
            IdentityError: The version holds no identity document.
        """
        try:
            found = await self.provider.read(self.secret_id, at)
        except SecretNotFoundError as error:
            # Of an address without {org}, another organization would read the same secret.
            if at == CURRENT and self.org in self.secret_id:
                error.hint = f"The organization is taken to be {self.org!r}: is --org right? {error.hint}"
            raise
        return found.version, decode_document(found.value.reveal(), self.signers.sign)

    def check_clock(self, tolerance: timedelta) -> None:
        """Compare this machine's clock with the date of the store's last answer. Call it before a write.

        Raises:
            WrongClockError: The clocks differ by more than `tolerance`.
        """
        # Imported here, since most commands do not need the rotation package.
        from goatherd.rotation.obstacles import check_own_clock

        check_own_clock(self.provider.store_clock.ahead_ms(SystemClock().now_ms()), {}, tolerance)

    def check_durable(self, operation: str) -> None:
        """Check that the store outlives this process. Call it before what must not be lost is written into the store.

        Args:
            operation: The operation that writes, for the error.

        Raises:
            ProviderConfigurationError: The store exists only in this process.
        """
        if not self.provider.guarantees.durable:
            raise ProviderConfigurationError(
                "the memory store is lost when the command ends, and everything written into it would be lost, too",
                provider=self.provider.scheme,
                secret_id=self.secret_id,
                operation=operation,
                hint="Give the address of a store that lasts, such as file:///srv/keys/root.",
            )

    async def versions(self) -> list[SecretVersion]:
        """Return all stored versions of the identity's secret, newest first."""
        return list(await self.provider.versions(self.secret_id))

    async def find(self, text: str) -> Label | VersionId:
        """Find a version by its id or its label, and return the id or label to pass to `read`.

        Raises:
            SecretNotFoundError: No version has this id or label.
        """
        known = await self.versions()
        if text in {version.id for version in known}:
            return VersionId(text)
        holder = next((version.id for version in known if text in version.labels), None)
        if holder is not None:
            return Label(text) if self.provider.takes_label(text) else holder
        raise SecretNotFoundError(
            f"no version has the id or the label {text!r}",
            provider=self.provider.scheme,
            secret_id=self.secret_id,
            operation="read",
            hint="`goatherd show --versions` lists the ids and labels of all versions.",
        )
