"""The store of a command: the provider and the secret that the options name, and the identity in it.

What it is not: it decides nothing and creates nothing. Rules: "not found" is told apart from "cannot be read", and
never turned into a new identity.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from goatherd._plugins import open_provider, provider_from_config
from goatherd.config import Options
from goatherd.errors import ConfigurationError, SecretNotFoundError
from goatherd.identity.document import IdentityDocument, decode_document
from goatherd.providers.base import CURRENT, ORG_FIELD, Label, SecretProvider, SecretVersion, VersionId, secret_id_for


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
        found = await self.provider.read(self.secret_id, at)
        return found.version, decode_document(found.value.reveal())

    async def versions(self) -> list[SecretVersion]:
        """Return what the store lists, newest first."""
        return list(await self.provider.versions(self.secret_id))

    async def find(self, text: str) -> Label | VersionId:
        """Return `text` as a version's id where there is one, else as a label.

        Raises:
            SecretNotFoundError: It is neither.
        """
        known = await self.versions()
        if text in {version.id for version in known}:
            return VersionId(text)
        if any(text in version.labels for version in known):
            return Label(text)
        raise SecretNotFoundError(
            f"no version has the id or the label {text!r}",
            provider=self.provider.scheme,
            secret_id=self.secret_id,
            operation="read",
            hint="`goatherd versions` lists both.",
        )


def place(options: Options) -> tuple[SecretProvider, str]:
    """Return the provider and the secret id, ``{org}`` still in it.

    Raises:
        ConfigurationError: No store is named.
        PluginNotFoundError, MissingExtraError: The plugin cannot be had.
    """
    # A URI that is nearer than the file wins over the file's `cloudConfig`.
    if options.provider is not None:
        return open_provider(options.provider)
    if options.cloud_config is not None and options.type != "file":
        return provider_from_config(options.cloud_config)
    raise ConfigurationError(
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
    provider, template = place(options)
    chosen = org or options.org
    async with provider:
        secret_id = secret_id_for(template, chosen)
        named = name_of_store(options, chosen)
        yield Store(provider=provider, secret_id=secret_id, org=chosen, name=named)
