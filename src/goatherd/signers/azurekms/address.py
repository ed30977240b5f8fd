"""Parse the address of a key in Azure Key Vault or Managed HSM, and write the role for signing with it.

The module opens no connection and imports no SDK. The vault, the cloud and the managed identity are given as in the
``azure://`` addresses of secret stores. A Managed HSM has roles of its own in place of those of Azure.
Data actions: learn.microsoft.com/azure/role-based-access-control/permissions/security#microsoftkeyvault
Those of Managed HSM: learn.microsoft.com/azure/key-vault/managed-hsm/built-in-roles and …/role-management
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm
from goatherd.providers.azure.address import FORM as STORE_FORM
from goatherd.providers.azure.address import AzureAddress, address
from goatherd.providers.policies import fill_policy
from goatherd.signers.base import check_role

FORM: Final = AddressForm(
    scheme="azurekms",
    example="Write azurekms://vault-name/key-name/VERSION.",
    options=STORE_FORM.options,
    missing="it names no key",
    subject="a key",
)
_HSM: Final = "managedhsm."
"""What the domain of Managed HSM begins with, in every cloud."""
_KEY = re.compile(r"[0-9a-zA-Z-]{1,127}")
_VERSION = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureKeyAddress:
    """The address of one key in Azure Key Vault or Managed HSM, or of one version of it.

    Attributes:
        vault: The vault or HSM, and the managed identity to use there.
        key: The key's name.
        version: The version of the key; None for the newest.
        options: The options of the URI, as they were given.
    """

    vault: AzureAddress
    key: str
    version: str | None = None
    options: Mapping[str, str]

    @property
    def name(self) -> str:
        """Names of vault, key and version, for errors and reports."""
        return f"{self.vault.vault}/{self.key}" + (f"/{self.version}" if self.version else "")

    @property
    def is_in_managed_hsm(self) -> bool:
        """Whether the key is in a Managed HSM, by the domain in the address."""
        domains = (self.options.get("suffix", ""), self.vault.url.partition(".")[2])
        return any(domain.startswith(_HSM) for domain in domains)


def parse_uri(uri: str) -> AzureKeyAddress:
    """Return the address of the key that `uri` names.

    Raises:
        ConfigurationError: The URI is not ``azurekms://VAULT/KEY`` with or without a version, or an option is invalid.
    """
    parsed = addresses.parse_uri(FORM, uri)
    key, slash, version = parsed.path.partition("/")
    # SECURITY: operators paste these names into a shell, so they are checked first
    # (tests/unit/signers/test_azurekms.py::test_an_address_that_is_not_one_is_refused).
    if not _KEY.fullmatch(key) or (slash and not _VERSION.fullmatch(version)):
        raise FORM.error("it must name a vault, a key of 0-9 a-z A-Z and -, and at most a version of 32 digits")
    vault = address(parsed.host, parsed.options, example=FORM.example)
    return AzureKeyAddress(vault=vault, key=key, version=version or None, options=parsed.options)


def policy(role: str, uri: str) -> str:
    """Return the ``az`` commands that grant signing with one key; a vault must use Azure RBAC."""
    check_role(role)
    it = parse_uri(uri)
    return fill_policy(__file__, "hsm.sh" if it.is_in_managed_hsm else "vault.sh", vault=it.vault.vault, key=it.key)
