"""``azure://VAULT/SECRET?option=…``: which vault, in which cloud, and as whom.

Pure. What it is: the address, from a URI or from GoatDB's ``cloudConfig``. What it is not: a connection. Rules: https
only; an option that nobody knows is refused, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from goatherd.errors import ConfigurationError
from goatherd.providers.values import ORG_FIELD

PUBLIC_SUFFIX: Final = "vault.azure.net"
AUTHORITIES: Final[Mapping[str, str]] = {
    PUBLIC_SUFFIX: "login.microsoftonline.com",
    "vault.azure.cn": "login.chinacloudapi.cn",
    "vault.usgovcloudapi.net": "login.microsoftonline.us",
}
OPTIONS: Final = frozenset({"suffix", "endpoint", "identity", "ca", "challenge"})
POINTER_SUFFIX: Final = "-pointer"
EARLIER_VIEW_SUFFIX: Final = "-current"
"""Of the secret that was the view in earlier builds. Today the view has the secret's own name."""

# learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates#vault-name-and-object-name
_VAULT = re.compile(r"[a-z](?:-?[a-z0-9]){2,23}")
_SECRET = re.compile(rf"[0-9a-z-]{{1,{127 - len(POINTER_SUFFIX)}}}")
_SUFFIX = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_ENDPOINT = re.compile(r"https://[a-z0-9.-]+(?::[0-9]{1,5})?/?")
_HINT: Final = "Write azure://vault-name/secret-name."


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureAddress:
    """Where and as whom.

    Attributes:
        vault: The vault's name, as the portal and ``az`` take it.
        url: Its address, such as ``https://name.vault.azure.net``.
        authority: The host that gives tokens in this cloud; None for what `AZURE_AUTHORITY_HOST` says.
        identity: The client id of a user-assigned managed identity; None for `AZURE_CLIENT_ID`, or the only one.
        ca: A file with the certificates to trust, where they are not the system's.
        check_challenge: Whether the address must lie in the domain for which the vault demands a token. SECURITY:
            without it, whoever answers at the address is sent one (the SDK's `verify_challenge_resource`).
    """

    vault: str
    url: str
    authority: str | None = None
    identity: str | None = None
    ca: str | None = None
    check_challenge: bool = True


def parse_uri(uri: str) -> tuple[AzureAddress, str]:
    """Return the address and the secret's name (maybe with ``{org}`` in it).

    Raises:
        ConfigurationError: It is not an address of a secret in a vault.
    """
    parts = urlsplit(uri)
    secret_id = unquote(parts.path).removeprefix("/")
    if parts.scheme != "azure" or parts.fragment or not secret_id:
        raise ConfigurationError(f"not an azure address: {uri!r}", hint=_HINT)
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        raise ConfigurationError(f"not an azure address: {uri!r}", hint="Options look like ?name=value&…") from None
    options = dict(pairs)
    if len(options) != len(pairs):
        raise ConfigurationError(f"not an azure address: {uri!r}", hint="Give each option once.")
    return address(parts.netloc, options), _secret(secret_id)


def from_options(config: Mapping[str, object]) -> tuple[AzureAddress, str]:
    """Return the same from ``{"provider": "azure", "vault": "my-vault", "secretId": "goatdb-root"}``.

    Without ``vault``, the secret id is ``my-vault/goatdb-root``. A region means nothing: the vault knows its own.

    Raises:
        ConfigurationError: An option is missing, of the wrong kind, or unknown.
    """
    for name, value in config.items():
        if name not in {"provider", "secretId", "region", "vault"} | OPTIONS:
            raise ConfigurationError(f"cloudConfig: provider 'azure' has no option {name!r}")
        if name != "region" and not isinstance(value, str):
            raise ConfigurationError(f"cloudConfig: {name} must be a text")
    texts = {name: value for name, value in config.items() if isinstance(value, str)}
    secret_id = texts.get("secretId", "")
    if not secret_id:
        raise ConfigurationError("cloudConfig: secretId must be a text")
    vault = texts.get("vault")
    if vault is None:
        vault, _, secret_id = secret_id.removeprefix("/").partition("/")
    return address(vault, {name: text for name, text in texts.items() if name in OPTIONS}), _secret(secret_id)


def address(vault: str, options: Mapping[str, str]) -> AzureAddress:
    """Return the address of a vault.

    Raises:
        ConfigurationError: The name is not one, or an option is unknown or wrong.
    """
    if unknown := sorted(set(options) - OPTIONS):
        raise ConfigurationError(
            f"an azure address has no option {unknown[0]!r}", hint=f"Options: {', '.join(sorted(OPTIONS))}."
        )
    vault = vault.lower()
    if not _VAULT.fullmatch(vault):
        raise ConfigurationError(f"not the name of a key vault: {vault!r}", hint=_HINT)
    suffix, endpoint = options.get("suffix", PUBLIC_SUFFIX), options.get("endpoint")
    if not _SUFFIX.fullmatch(suffix):
        raise ConfigurationError(f"not a domain: suffix={suffix!r}", hint=f"Such as {', '.join(AUTHORITIES)}.")
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        raise ConfigurationError(
            f"not an https address: endpoint={endpoint!r}", hint="Such as endpoint=https://name.vault.azure.net."
        )
    if (challenge := options.get("challenge", "checked")) not in ("checked", "unchecked"):
        raise ConfigurationError(f"challenge is checked or unchecked, not {challenge!r}")
    return AzureAddress(
        vault=vault,
        url=(endpoint or f"https://{vault}.{suffix}").rstrip("/"),
        # Left to the environment for the public cloud, where AZURE_AUTHORITY_HOST may name another one.
        authority=AUTHORITIES.get(suffix) if suffix != PUBLIC_SUFFIX else None,
        identity=options.get("identity"),
        ca=options.get("ca"),
        check_challenge=challenge == "checked",
    )


def check_name(name: str) -> None:
    """Check a secret's name.

    Raises:
        ConfigurationError: Key Vault does not take it, or takes it for the same as another one.
    """
    # SECURITY: names that differ in case only are one secret in Key Vault, so of two organizations `A` and `a`, one
    # would get the other's identity (tests/unit/providers/test_azure_address.py, `…_capital_letters…`).
    if not _SECRET.fullmatch(name):
        raise ConfigurationError(
            f"not a name that Goatherd gives a secret in a key vault: {name[:200]!r}",
            hint=f"Use up to {127 - len(POINTER_SUFFIX)} of a-z 0-9 and -; capital letters mean the same to Key Vault.",
        )
    for suffix in (POINTER_SUFFIX, EARLIER_VIEW_SUFFIX):
        if name.endswith(suffix):
            raise ConfigurationError(f"the azure store keeps names that end in {suffix!r} for itself")


def _secret(secret_id: str) -> str:
    check_name(secret_id.replace(ORG_FIELD, "org"))
    return secret_id
