"""Parse the address of a key in the transit engine of Vault or OpenBao, and write the policy for signing with it.

The server and the way to log in are given as in the addresses of the provider ``vault``. The address names the version
of the key, because otherwise, when the key is rotated in Vault, Vault signs with its newest version.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from goatherd.providers.addresses import AddressForm, Option
from goatherd.providers.policies import fill_policy
from goatherd.providers.vault.address import OPTIONS, VaultAddress, parse_with_form
from goatherd.signers.base import check_role

FORM: Final = AddressForm(
    scheme="transit",
    example="Such as transit://vault.example.org:8200/transit/goatdb-anchor, the mount first.",
    options={**{name: each for name, each in OPTIONS.items() if name != "reads"}, "version": Option()},
    missing="it names no mount and key",
    subject="a key",
)
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_MOUNT = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitAddress:
    """The address of one version of a key in the transit engine of Vault or OpenBao.

    Attributes:
        server: The Vault server, the mount of the transit engine, and how to log in.
        key: The key's name.
        version: The key's version.
    """

    server: VaultAddress
    key: str
    version: int = 1

    @property
    def name(self) -> str:
        """The mount, the key and its version, for errors and reports."""
        return f"{self.server.mount}/{self.key} version {self.version}"


def parse_uri(uri: str, *, environment: Mapping[str, str] | None = None) -> TransitAddress:
    """Return the address of the key that `uri` names.

    Args:
        uri: ``transit://host:port/mount/key?version=1``; without a host, the environment names the server.
        environment: Used instead of the process's environment.

    Raises:
        ConfigurationError: The URI does not have this form.
    """
    server, key, options = parse_with_form(FORM, uri, environment=os.environ if environment is None else environment)
    # SECURITY: neither the mount nor the key has a character that could end a string of the policy, or lead to another
    # path of the API (tests/unit/signers/test_transit.py::test_an_address_that_is_not_one_is_refused).
    if not _NAME.fullmatch(key) or not _MOUNT.fullmatch(server.mount):
        raise FORM.error("the mount and the key must be names of A-Z a-z 0-9 . _ -")
    version = options.get("version", "1")
    if not _VERSION.fullmatch(version):
        raise FORM.error("version must be a number from 1")
    return TransitAddress(server=server, key=key, version=int(version))


def policy(role: str, uri: str) -> str:
    """Return the Vault policy, as HCL, that allows signing with one key and reading its public half."""
    check_role(role)
    # Which server it is makes no difference here, so none has to be known.
    address = parse_uri(uri, environment={"VAULT_ADDR": "https://anywhere"})
    return fill_policy(__file__, "signer.hcl", mount=address.server.mount, key=address.key)
