"""Parse the address of a secret in Azure Key Vault, ``azure://VAULT/SECRET?option=…`` or GoatDB's ``cloudConfig``.

The address names the vault, the Azure cloud, and the managed identity to log in with. Pure: opens no connection.
Only https is allowed, and an unknown option is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from goatherd.errors import ConfigurationError
from goatherd.providers import addresses
from goatherd.providers.addresses import AddressForm, Option, check_options, check_part
from goatherd.providers.values import ORG_FIELD

PUBLIC_SUFFIX: Final = "vault.azure.net"
AUTHORITIES: Final[Mapping[str, str]] = {
    "azure.cn": "login.chinacloudapi.cn",
    "usgovcloudapi.net": "login.microsoftonline.us",
}
"""For each cloud but the public one, the host that issues its tokens, by the domain of its key vaults and HSMs."""
FORM: Final = AddressForm(
    scheme="azure",
    example="Write azure://vault-name/secret-name.",
    options={
        "suffix": Option(),
        "endpoint": Option(),
        "identity": Option(),
        "ca": Option(),
        "challenge": Option(choices=("checked", "unchecked")),
    },
    host="vault",
)
POINTER_SUFFIX: Final = "-pointer"

# learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates#vault-name-and-object-name
_VAULT = re.compile(r"[a-z](?:-?[a-z0-9]){2,23}")
_SECRET = re.compile(rf"[0-9a-z-]{{1,{127 - len(POINTER_SUFFIX)}}}")
_SUFFIX = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_ENDPOINT = re.compile(r"https://[a-z0-9.-]+(?::[0-9]{1,5})?/?")


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureAddress:
    """An Azure key vault, and the identity that Goatherd uses there.

    Attributes:
        vault: The vault's name, as in the Azure portal and in ``az`` commands.
        url: The vault's URL, such as ``https://name.vault.azure.net``.
        authority: The host that issues tokens in this cloud; None for the value of `AZURE_AUTHORITY_HOST`.
        identity: The client id of a user-assigned managed identity; None for the one in `AZURE_CLIENT_ID`, or the
            machine's only one.
        ca: A file with the CA certificates to trust instead of the system's.
        check_challenge: Whether the URL must be in the domain for which the vault demands a token. SECURITY: without
            this check, any server that answers at the URL is sent a token (the SDK's `verify_challenge_resource`;
            tests/contract/azure/test_faults.py).
    """

    vault: str
    url: str
    authority: str | None = None
    identity: str | None = None
    ca: str | None = None
    check_challenge: bool = True


def parse_address(given: str | Mapping[str, object]) -> tuple[AzureAddress, str]:
    """Parse the address of a secret into its vault's address and the secret's name, which may contain ``{org}``.

    Args:
        given: ``azure://VAULT/SECRET``, or a ``cloudConfig`` like ``{"provider": "azure", "vault": …, "secretId": …}``.
            Without the member ``vault``, the secret id must begin with the vault's name: ``v/goatdb-root``. A region
            is ignored, because a vault has a fixed one.

    Raises:
        ConfigurationError: The address has another form, or a member or option is unknown or invalid.
    """
    vault, secret_id, options = addresses.parse_address(FORM, given)
    if not vault and not isinstance(given, str):
        vault, _, secret_id = secret_id.removeprefix("/").partition("/")
        if not secret_id:
            raise ConfigurationError("cloudConfig: provider 'azure' needs a vault", hint='Add "vault": "my-vault".')
    at = address(vault, options)
    check_name(secret_id.replace(ORG_FIELD, "org"))
    return at, secret_id


def address(vault: str, options: Mapping[str, str], *, example: str = FORM.example) -> AzureAddress:
    """Build the address of an Azure key vault from its name and options; `example` is the hint if the name is invalid.

    Raises:
        ConfigurationError: The vault's name is invalid, or an option is unknown or invalid.
    """
    check_options(FORM, options)
    vault = vault.lower()
    check_part(vault, _VAULT, "name for a key vault", example)
    suffix, endpoint = options.get("suffix", PUBLIC_SUFFIX), options.get("endpoint")
    check_part(suffix, _SUFFIX, "domain of key vaults", "Such as vault.azure.cn.")
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        raise ConfigurationError(
            f"azure address: endpoint={endpoint!r} is not an https address",
            hint="Write, for example, endpoint=https://name.vault.azure.net.",
        )
    url = (endpoint or f"https://{vault}.{suffix}").rstrip("/")
    hosts = (suffix, urlsplit(url).hostname or "")
    return AzureAddress(
        vault=vault,
        url=url,
        # Left to the environment for the public cloud, where AZURE_AUTHORITY_HOST may name another one.
        authority=next(
            (issuer for cloud, issuer in AUTHORITIES.items() if any(host.endswith(f".{cloud}") for host in hosts)), None
        ),
        identity=options.get("identity"),
        ca=options.get("ca"),
        check_challenge=options.get("challenge", "checked") == "checked",
    )


def parse_vault(vault_url: str) -> AzureAddress:
    """Build the address of an Azure key vault from its URL, such as ``https://my-vault.vault.azure.net``, or its name.

    Raises:
        ConfigurationError: `vault_url` is neither a vault's URL nor a valid name.
    """
    host = vault_url.removeprefix("https://").rstrip("/").lower()
    vault, _, suffix = host.partition(".")
    if vault_url.startswith("https://") and not suffix:
        raise ConfigurationError(
            f"{vault_url[:200]!r} is not the URL of a key vault",
            hint="Write, for example, https://name.vault.azure.net.",
        )
    return address(vault, {"suffix": suffix} if suffix else {})


def check_name(name: str) -> None:
    """Check that a name is allowed for a secret in Key Vault.

    Raises:
        ConfigurationError: Key Vault does not allow the name, or treats it as equal to another name.
    """
    # SECURITY: names that differ in case only are one secret in Key Vault, so of two organizations `A` and `a`, one
    # would get the other's identity (tests/unit/providers/azure/test_address.py, `…_capital_letters…`).
    if not _SECRET.fullmatch(name):
        raise ConfigurationError(
            f"{name[:200]!r} is not a name that Goatherd accepts for a secret in a key vault",
            hint=f"Use at most {127 - len(POINTER_SUFFIX)} of a-z 0-9 and -. Capital letters are not accepted, because"
            " Key Vault ignores case.",
        )
    if name.endswith(POINTER_SUFFIX):
        raise ConfigurationError(f"the azure store reserves names that end in {POINTER_SUFFIX!r} for its own use")
