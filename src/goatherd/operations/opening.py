"""Open what the caller of an operation names: the store, the servers, and the signers of anchors.

A Python program gives the store and the servers as URLs; the operation then opens them, and closes them before it
returns, so that a synchronous program needs only ``asyncio.run`` of one call. The command line gives a store and
clients that are open already: the operation uses them as they are, and leaves them open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeGuard

from goatherd.cluster.discovery import NodeDirectory, is_discovered
from goatherd.cluster.node import Node, NodeSource
from goatherd.errors import ConfigurationError
from goatherd.identity.document import IdentityDocument
from goatherd.operations.identity_store import Store, check_address_has_org
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import CURRENT, ORG_FIELD, Label, VersionId, secret_id_for
from goatherd.remote_keys import RootSigners
from goatherd.rotation.anchor_keys import AnchorSigner, SignerOpener, open_anchor_signer
from goatherd.rotation.machine import Phase
from goatherd.rotation.policy import Policy, unlisted_for
from goatherd.settings.store import REFRESH_INTERVAL
from goatherd.wire.paths import DEFAULT_ORG

if TYPE_CHECKING:
    from goatherd.signers.verified import VerifiedSigner

StoreName = str | Mapping[str, object] | tuple[SecretProvider, str] | Store
"""What an operation takes as its store: the URI of a secret; a ``cloudConfig``; a provider and the id of a secret, as
`open_provider` returns them; or what `open_store` gives."""

Nodes = Sequence[Node] | NodeSource
"""Every server that holds the identity: a list, or a function that discovers them, such as a `NodeDirectory`."""

Servers = str | Iterable[str] | Nodes
"""What an operation takes as its servers: their URLs, or addresses at which they are discovered, such as ``dns://…``;
or clients that are open."""

_STORE_HINT: Final = (
    "Give the URI of a secret, such as file:///srv/keys/root, a cloudConfig, or what open_provider returns."
)
ORG_HINT: Final = f"Is org right? Write {ORG_FIELD} into the address, such as file:///srv/keys/{ORG_FIELD}/root."
_SIGNER_HINT: Final = (
    "Give the URI of a signer, such as transit://vault.internal/transit/goatdb, or what goatherd.open_signer returns."
)
_SERVERS_HINT: Final = (
    "Give the URL of every server, such as http://10.0.0.1:8080, or an address such as dns://name:port."
)


@asynccontextmanager
async def open_store(store: StoreName, *, org: str | None = None, signers: Iterable[str] = ()) -> AsyncIterator[Store]:
    """Open a store for several operations, which then share its connections.

    Args:
        store: The URI of a secret; a ``cloudConfig``, or the settings of a server that contain one; a provider (which
            is not closed) and the id of a secret; or a store that is already open.
        org: The organization, which replaces ``{org}`` in the secret's id.
        signers: URIs of the signers that may be called as the anchor or, in direct mode, as the root. An open store
            gets them in addition.

    Raises:
        ConfigurationError: `store` names no secret, or names the same secret for every organization although `org` is
            given.
        PluginNotFoundError, MissingExtraError: The plugin of the store cannot be loaded.
    """
    if isinstance(store, Store):
        if org not in (None, store.org):
            raise ConfigurationError(f"the store is open for organization {store.org!r}, not for {org!r}")
        for uri in signers:
            store.signers.add(uri)
        yield store
        return
    provider, template, name = name_store(store)
    chosen = DEFAULT_ORG if org is None else org
    check_address_has_org(template, name, chosen, hint=ORG_HINT)
    # The caller's own provider opens itself with its first call, and the caller may go on to use it.
    async with nullcontext() if isinstance(store, tuple) else provider, RootSigners(signers) as opened:
        yield Store(
            provider=provider,
            secret_id=secret_id_for(template, chosen),
            org=chosen,
            name=name.replace(ORG_FIELD, chosen),
            signers=opened,
        )


async def read_identity(
    store: StoreName, at: Label | VersionId | str = CURRENT, *, org: str | None = None
) -> IdentityDocument:
    """Return an identity as it is stored, with its private keys.

    Args:
        store: See `open_store`.
        at: A label such as ``"stable"``, or the id of a version.
        org: The organization.

    Raises:
        SecretNotFoundError: There is no such secret, label or version.
        ProviderError, IdentityError: The store cannot be read, or does not hold an identity.
    """
    async with open_store(store, org=org) as opened:
        if not isinstance(at, Label | VersionId):
            at = await opened.find(at)
        return (await opened.read(at))[1]


def name_store(store: StoreName) -> tuple[SecretProvider, str, str]:
    """Return the provider, the secret's id with ``{org}`` not yet replaced, and the store's name for messages."""
    if isinstance(store, str):
        return (*open_provider(store), store)
    if isinstance(store, Mapping):
        config = store.get("cloudConfig", store)
        if not isinstance(config, Mapping):
            raise ConfigurationError("cloudConfig must be a mapping", hint=_STORE_HINT)
        provider, secret_id = provider_from_config(config)
        return provider, secret_id, f"{config['provider']}: {secret_id}"
    if isinstance(store, tuple) and len(store) == 2 and isinstance(store[0], SecretProvider):
        return store[0], store[1], f"{store[0].scheme}: {store[1]}"
    hint = _STORE_HINT
    if isinstance(store, AbstractAsyncContextManager):
        hint = "Use `async with goatherd.open_store(…) as store`, or give (provider, secret_id)."
    raise ConfigurationError(f"a {type(store).__name__} cannot be used as a store", hint=hint)


def read_signer_uri(signer: str | VerifiedSigner | None) -> str | None:
    """Return the URI of a signer; None if there is no signer."""
    uri = signer if signer is None or isinstance(signer, str) else getattr(signer, "uri", None)
    if signer is not None and not isinstance(uri, str):
        raise ConfigurationError(f"a {type(signer).__name__} cannot be used as an anchor", hint=_SIGNER_HINT)
    return uri


def check_key_is_named(uri: str | None, *, create_key: bool) -> None:
    """Refuse to create a key if no signer is named."""
    if create_key and uri is None:
        raise ConfigurationError("create_key needs `anchor`, the signer in which to create the key", hint=_SIGNER_HINT)


def make_signer_opener(*signers: str | VerifiedSigner | None) -> SignerOpener:
    """Return a function that opens signers. Those that the caller has opened are used as they are, and stay open.

    Args:
        signers: The signers that the caller has named or opened, such as those of the present and of a new anchor.
    """
    lent = {read_signer_uri(one): one for one in signers if one is not None and not isinstance(one, str)}

    def open_or_lend(uri: str) -> AnchorSigner:
        given = lent.get(uri)
        return open_anchor_signer(uri) if given is None else given.lend()

    return open_or_lend


def are_open(nodes: Servers) -> TypeGuard[Nodes]:
    """Return whether servers are given as clients, or as a function that discovers them, and not as URLs.

    Raises:
        ConfigurationError: Some are clients, and some are not.
    """
    if callable(nodes) or not isinstance(nodes, Sequence):
        return callable(nodes)
    forms = {hasattr(one, "base_url") for one in nodes}
    if len(forms) == 2:
        raise ConfigurationError("some servers are given as clients, and some as URLs", hint=_SERVERS_HINT)
    return forms == {True}


def read_addresses(nodes: Servers) -> tuple[str, ...]:
    """Return the URLs by which servers are given.

    Raises:
        ConfigurationError: One of them is no string.
    """
    addresses: list[str] = []
    for one in (nodes,) if isinstance(nodes, str) or not isinstance(nodes, Iterable) else nodes:
        if not isinstance(one, str):
            raise ConfigurationError(f"a {type(one).__name__} cannot be used as a server", hint=_SERVERS_HINT)
        addresses.append(one)
    return tuple(addresses)


def choose_policy(policy: Policy | None, addresses: Iterable[str] = ()) -> Policy:
    """Return the given policy, or a default one if it is None.

    If servers are discovered at one of the addresses, the default policy allows time for servers that the discovery has
    missed.
    """
    if policy is not None:
        if not isinstance(policy, Policy):
            raise ConfigurationError(
                f"a {type(policy).__name__} is not a policy",
                hint="Write, for example, Policy(lifetime=timedelta(days=90)).",
            )
        return policy
    return (
        replace(Policy(), unlisted=unlisted_for(REFRESH_INTERVAL)) if any(map(is_discovered, addresses)) else Policy()
    )


@asynccontextmanager
async def open_cluster(
    store: StoreName,
    nodes: Servers,
    policy: Policy | None,
    org: str | None,
    *,
    signer: str | VerifiedSigner | None = None,
    least_timeout: timedelta = timedelta(0),
) -> AsyncIterator[tuple[Store, Nodes, Policy]]:
    """Open what an operation takes: the store, the servers and the policy.

    Args:
        store, nodes, policy, org, signer: As for `goatherd.operations.rotate.rotate`.
        least_timeout: The timeout of one request is at least this, whatever the policy says.
    """
    named = [uri] if (uri := read_signer_uri(signer)) is not None else []
    if are_open(nodes):
        policy = choose_policy(policy)
        async with open_store(store, org=org, signers=named) as opened:
            yield opened, nodes, policy
        return
    addresses = read_addresses(nodes)
    policy = choose_policy(policy, addresses)
    # A manual-restart server is a server of the cluster, too.
    every, timeout = dict.fromkeys((*addresses, *sorted(policy.bare))), max(policy.node_timeout, least_timeout)
    async with (
        open_store(store, org=org, signers=named) as opened,
        NodeDirectory(tuple(every), timeout=timeout, org=opened.org) as directory,
    ):
        yield opened, directory, policy


def parse_phase(text: Phase | str | None) -> Phase | None:
    """Return the phase of a rotation that has this name."""
    if text is None:
        return None
    try:
        return Phase(text)
    except ValueError:
        known = ", ".join(one.value for one in Phase)
        raise ConfigurationError(f"{text!r} is not a phase of a rotation", hint=f"Phases: {known}.") from None
