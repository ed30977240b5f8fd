"""The store of a command: the provider and the secret that the options name, and the identity in it.

What it is not: it decides nothing and creates nothing. Rules: "not found" is told apart from "cannot be read", and
never turned into a new identity.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from goatherd.clock import SystemClock
from goatherd.config import Options
from goatherd.errors import ConfigurationError, SecretNotFoundError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, ORG_FIELD, Label, SecretVersion, VersionId, secret_id_for

DEFAULT_ORG: Final = "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An open provider and the secret in it."""

    provider: SecretProvider
    secret_id: str
    org: str
    name: str
    """What people are told: the URI, or the scheme and the secret's name. Neither holds a password."""

    async def read(self, at: Label | VersionId = CURRENT) -> tuple[SecretVersion, IdentityDocument]:
        """Return a version and the identity in it.

        Raises:
            SecretNotFoundError: No secret, no such label or version.
            IdentityError: What is there is no identity document.
        """
        try:
            found = await self.provider.read(self.secret_id, at)
        except SecretNotFoundError as error:
            if at == CURRENT:
                error.hint = f"The organization is taken to be {self.org!r}: is --org right? {error.hint}"
            raise
        return found.version, decode_document(found.value.reveal())

    def check_clock(self, tolerance: timedelta) -> None:
        """Check this machine's clock before something is written, by the date of the store's last answer.

        Raises:
            WrongClockError: It differs from the store's by more than `tolerance`.
        """
        # Here, since most commands need nothing of the rotation.
        from goatherd.rotation.clocks import check_own_clock

        check_own_clock(self.provider.store_clock.ahead_ms(SystemClock().now_ms()), (), tolerance)

    async def versions(self) -> list[SecretVersion]:
        """Return what the store lists, newest first."""
        return list(await self.provider.versions(self.secret_id))

    async def find(self, text: str) -> Label | VersionId:
        """Return `text` as a version's id where there is one, else as a label; the version of a label that is not read.

        Raises:
            SecretNotFoundError: It is neither.
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
            hint="`goatherd versions` lists both.",
        )


def place(options: Options, orgs: Sequence[str] | None = None) -> tuple[SecretProvider, str]:
    """Return the provider and the secret id, ``{org}`` still in it.

    Args:
        options: They name the store.
        orgs: The organizations whose identity is meant; the options' own by default.

    Raises:
        ConfigurationError: No store is named, or its address is the same for every organization and another one than
            the default is meant.
        PluginNotFoundError, MissingExtraError: The plugin cannot be had.
    """
    # A URI that is nearer than the file wins over the file's `cloudConfig`.
    if options.provider is not None:
        provider, template = open_provider(options.provider)
    elif options.cloud_config is not None and options.type != "file":
        provider, template = provider_from_config(options.cloud_config)
    else:
        raise _no_store()
    others = [org for org in ((options.org,) if orgs is None else orgs) if org != DEFAULT_ORG]
    if others and ORG_FIELD not in template and not options.any_org:
        # SECURITY: a mistyped --org would otherwise change another organization's identity
        # (tests/unit/cli/test_org_guard.py).
        raise ConfigurationError(
            f"the store's address {name_of_store(options)} does not contain {ORG_FIELD}, so organization {others[0]!r}"
            " would use the same identity as every other one",
            hint=f"Is --org right? Write {ORG_FIELD} into the address, such as file:///srv/keys/{ORG_FIELD}/root. If"
            f" this identity is meant for {others[0]!r}, set any_org = true, or GOATHERD_ANY_ORG=true.",
        )
    return provider, template


def _no_store() -> ConfigurationError:
    return ConfigurationError(
        "no store is named",
        hint='Give --provider URI, set GOATHERD_PROVIDER, or write `provider = "URI"` into goatherd.toml. '
        "A first one: --provider file:///srv/keys/root.",
    )


def name_of_store(options: Options, org: str | None = None) -> str:
    """Return what people are told of the store: the URI, or the scheme and the secret's name. No password is in it."""
    chosen = org or options.org
    if options.provider is not None:
        return options.provider.replace(ORG_FIELD, chosen)
    config = options.cloud_config or {}
    return f"{config.get('provider', '?')}: {config.get('secretId', '?')}".replace(ORG_FIELD, chosen)


@asynccontextmanager
async def open_store(options: Options, *, org: str | None = None) -> AsyncIterator[Store]:
    """Open the store that the options name, for one organization."""
    chosen = org or options.org
    provider, template = place(options, [chosen])
    async with provider:
        secret_id = secret_id_for(template, chosen)
        named = name_of_store(options, chosen)
        yield Store(provider=provider, secret_id=secret_id, org=chosen, name=named)
