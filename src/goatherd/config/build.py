"""Open the objects that the options describe: the store, the servers of the cluster, a rotation's policy, the schedule.

`goatherd.operations` uses these objects. Servers, agents and doors are built by `goatherd.config.build_servers`. Each
function itself imports the SDK or the rotation module that it needs, since most commands need none of these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from goatherd.clock import SystemClock
from goatherd.config.options import Options
from goatherd.errors import ConfigurationError, ProviderConfigurationError
from goatherd.operations.identity_store import Store, check_address_has_org
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import ORG_FIELD, secret_id_for
from goatherd.remote_keys import RootSigners

if TYPE_CHECKING:
    from goatherd.cluster.client import NodeClient
    from goatherd.cluster.discovery import NodeDirectory
    from goatherd.operations.data import OpenStore
    from goatherd.operations.migrate import MigrationTarget
    from goatherd.rotation.health_checks import HealthSignal
    from goatherd.rotation.machine import Policy
    from goatherd.schedule.due import Schedule
    from goatherd.stores import StoreMember

LARGE_ANSWER_TIMEOUT: Final = timedelta(minutes=2)
"""Timeout for one answer that holds about 50 000 sessions."""


def configured_provider(
    options: Options, orgs: Sequence[str] | None = None, *, is_writer: bool = False
) -> tuple[SecretProvider, str]:
    """Return the provider that the options name, not open yet, and the secret's id, with ``{org}`` not yet replaced.

    If the options name stores in several regions, the provider reads or writes all of them (`goatherd.stores`).

    Args:
        options: The options; they name the store.
        orgs: The organizations whose identity is read; None for the organization of the options.
        is_writer: Whether a command may write: it then uses the primary store, and checks the followers.

    Raises:
        ConfigurationError: No store is named, or its address is the same for every organization although an
            organization other than the default is given.
        PluginNotFoundError, MissingExtraError: The plugin cannot be loaded.
    """
    # `provider`, which a flag or variable can set, takes precedence over `[stores]` and `cloudConfig`.
    provider: SecretProvider
    if options.provider is not None:
        _check_one_source(options)
        provider, template = open_provider(options.provider)
    elif options.stores:
        provider, template = _open_stores(options, is_writer=is_writer)
    elif options.cloud_config is not None and options.type != "file":
        provider, template = provider_from_config(options.cloud_config)
    else:
        raise ConfigurationError(
            "no store is named",
            hint='Give --provider URI, set GOATHERD_PROVIDER, or write `provider = "URI"` into goatherd.toml. '
            "To try it out: --provider file:///srv/keys/root.",
        )
    for org in (options.org,) if orgs is None else orgs:
        hint = f"Is --org right? Write {ORG_FIELD} into the address, such as file:///srv/keys/{ORG_FIELD}/root."
        check_address_has_org(template, store_name(options), org, hint=hint)
    return provider, template


def _check_one_source(options: Options) -> None:
    places = {options.origin.get(name, "").rpartition(":")[0] for name in ("provider", "stores.primary")}
    if options.stores_primary is not None and len(places) == 1 and "" not in places:
        raise ConfigurationError(
            f"{options.origin['provider']}: both `provider` and [stores] name a store", hint="Remove one of them."
        )


def is_store_named(options: Options) -> bool:
    """Return whether the options name a store, or stores in several regions."""
    return any(one is not None for one in (options.provider, options.cloud_config, options.stores_primary))


def configured_addresses(options: Options, scheme: str) -> list[str | Mapping[str, object] | None]:
    """Return the address of the store that the options name: a URI, or a ``cloudConfig``; None if they name none.

    Of stores in several regions, these are the addresses with this scheme, that of the primary store first; if none has
    it, the address of the primary store. ``{org}`` is not yet replaced.
    """
    if options.provider is not None:
        return [options.provider]
    if options.stores:
        uris = [one.provider for one in options.stores]
        return [*(uri for uri in uris if uri.startswith(f"{scheme}:"))] or [uris[0]]
    return [None if options.type == "file" else options.cloud_config]


def store_members(options: Options) -> tuple[StoreMember, ...]:
    """Return the stores of the section ``[stores]``, not open yet: the primary store, then the followers.

    Raises:
        ConfigurationError: There is no primary store, or an address is invalid.
        PluginNotFoundError, MissingExtraError: A plugin cannot be loaded.
    """
    from goatherd.stores.members import StoreMember, check_members

    if not options.stores:
        raise ConfigurationError(
            "no stores are named",
            hint="Write [stores] with `primary` and `followers` into goatherd.toml, and give no --provider.",
        )
    members = []
    for number, entry in enumerate(options.stores):
        provider, template = open_provider(entry.provider)
        member = StoreMember(region=entry.region, provider=provider, template=template, is_primary=number == 0)
        members.append(member)
    check_members(members)
    return tuple(members)


def _open_stores(options: Options, *, is_writer: bool) -> tuple[SecretProvider, str]:
    from goatherd.stores.reader import make_reader
    from goatherd.stores.writer import ReplicatedStore

    members = store_members(options)
    template = members[0].template
    if is_writer:
        return ReplicatedStore(members, allowed=options.stores_allow_lagging), template
    reader = make_reader(members, region=options.stores_region, interval=options.settings_refresh_interval)
    return reader, template


def store_name(options: Options, org: str | None = None) -> str:
    """Return the store's name for messages, without a password: the URI, or scheme and name of the secret."""
    chosen = org or options.org
    if options.provider is not None:
        return options.provider.replace(ORG_FIELD, chosen)
    if options.stores:
        return options.stores[0].provider.replace(ORG_FIELD, chosen)
    config = options.cloud_config or {}
    return f"{config.get('provider', '?')}: {config.get('secretId', '?')}".replace(ORG_FIELD, chosen)


@asynccontextmanager
async def open_store(options: Options, *, org: str | None = None, is_reader: bool = False) -> AsyncIterator[Store]:
    """Open the secret store that the options name, for the identity of one organization.

    Args:
        options: The options; they name the store.
        org: The organization; None for the organization of the options.
        is_reader: Whether the command writes nothing. With stores in several regions, it then reads the next store if
            the primary store does not answer; other commands use the primary store only.
    """
    chosen = org or options.org
    if is_reader:
        # That of the own region may lag, and unlike a server, a command does not know the identity in use.
        options = replace(options, stores_region=None)
    provider, template = configured_provider(options, [chosen], is_writer=not is_reader)
    async with provider, RootSigners(options.signers) as signers:
        secret_id = secret_id_for(template, chosen)
        named = store_name(options, chosen)
        yield Store(provider=provider, secret_id=secret_id, org=chosen, name=named, signers=signers)


def listed_nodes(options: Options) -> tuple[str, ...]:
    """Return the addresses of the cluster's servers: those of --node, and the manual-restart servers."""
    return tuple(dict.fromkeys((*options.nodes, *options.rotation_bare)))


def open_nodes(options: Options, *, timeout: timedelta | None = None) -> NodeDirectory:
    """Return a directory of the cluster's servers, to be entered with ``async with``.

    Args:
        options: The organization, the servers and the timeout.
        timeout: Timeout of one request with a large answer; the longer of this and `options.timeout` is used.
    """
    from goatherd.cluster.discovery import NodeDirectory

    return NodeDirectory(
        listed_nodes(options),
        timeout=options.timeout if timeout is None else max(options.timeout, timeout),
        org=options.org,
    )


def build_store_opener(options: Options, *, offline: bool) -> OpenStore | None:
    """Return a function that opens the store of an organization; None if no store is named, or it must not be read."""
    if offline or not is_store_named(options):
        return None
    return lambda org: open_store(options, org=org, is_reader=True)


@asynccontextmanager
async def open_peers(options: Options, *, repairs: bool) -> AsyncIterator[list[NodeClient]]:
    """Open clients for the peers with which a data directory is compared; their timeout is at least two minutes.

    Args:
        options: The peers, and the timeout.
        repairs: Whether the directory is repaired. A check contacts only peers that the command line names; peers in
            the configuration file are for a repair and for `goatherd serve`.
    """
    from goatherd.cluster.client import NodeClient

    urls = options.serve_peers if repairs or options.origin.get("serve.peers") == "flag" else ()
    async with AsyncExitStack() as stack:
        timeout = max(options.timeout, LARGE_ANSWER_TIMEOUT)
        yield [await stack.enter_async_context(NodeClient(url, timeout=timeout)) for url in dict.fromkeys(urls)]


def build_migration_target(options: Options) -> MigrationTarget:
    """Return the stores that `goatherd migrate` writes to, and the servers with which it checks the migrated root."""
    from goatherd.operations.migrate import MigrationTarget

    return MigrationTarget(
        open_store=lambda org: open_store(options, org=org),
        secret_for=lambda orgs: configured_provider(options, orgs)[1],
        addresses=options.nodes,
        timeout=options.timeout,
        clock_tolerance=options.rotation_clock_tolerance,
        org=options.org if "org" in options.origin else None,
    )


@asynccontextmanager
async def open_two_stores(options: Options, source: str, destination: str) -> AsyncIterator[tuple[Store, Store]]:
    """Open the stores at two addresses.

    Raises:
        ProviderConfigurationError: Both addresses are the same.
    """
    if source == destination:
        raise ProviderConfigurationError(
            "source and destination are the same secret",
            provider=source.partition(":")[0],
            secret_id=source,
            operation="copy",
            hint="Give the address of another store, or of another secret in it.",
        )
    async with (
        open_store(replace(options, provider=source)) as first,
        open_store(replace(options, provider=destination)) as second,
    ):
        yield first, second


def lifetime_flags(options: Options) -> set[str]:
    """Return which of the flags --lifetime and --working-lifetime are given, not counting variables and the file."""
    flags = {"rotation.lifetime": "--lifetime", "rotation.working_lifetime": "--working-lifetime"}
    return {flag for key, flag in flags.items() if options.origin.get(key) == "flag"}


def build_policy(options: Options) -> Policy:
    """Return the rotation policy that the options describe.

    Discovery (``dns://``, ``k8s-service://``) may miss servers. If it is used, the default of `unlisted` gives those
    servers time to follow.
    """
    from goatherd.cluster.discovery import is_discovered
    from goatherd.rotation.machine import Policy, Quorum
    from goatherd.rotation.policy import unlisted_for

    unlisted = options.rotation_unlisted
    if unlisted is None:
        found = any(is_discovered(address) for address in options.nodes)
        unlisted = unlisted_for(options.settings_refresh_interval) if found else timedelta(0)
    working_lifetime = options.rotation_working_lifetime
    if lifetime_flags(options) == {"--lifetime"}:
        # It is the lifetime of the root that the command creates, also if an anchor endorses this root.
        working_lifetime = options.rotation_lifetime
    return Policy(
        adoption=options.rotation_adoption,
        clock_tolerance=options.rotation_clock_tolerance,
        node_timeout=options.timeout,
        lifetime=options.rotation_lifetime,
        working_lifetime=working_lifetime,
        needs_working_root="--working-lifetime" in lifetime_flags(options),
        grace=options.rotation_grace,
        quorum=Quorum.from_text(options.rotation_quorum),
        unlisted=unlisted,
        bare=frozenset(options.rotation_bare),
        distrust=frozenset(options.rotation_distrust),
        health_soak=options.rotation_health_soak,
    )


def build_health_signals(options: Options) -> list[HealthSignal]:
    """Return the health checks that the options name."""
    from goatherd.rotation.health_checks import HTTPProbe

    return [] if options.rotation_health_url is None else [HTTPProbe(options.rotation_health_url)]


def build_schedule(options: Options) -> Schedule:
    """Return the schedule that the options describe.

    Raises:
        ConfigurationError: The options of the schedule are invalid.
    """
    import socket

    from goatherd.operations.runs import current_actor
    from goatherd.schedule.due import Schedule, make_schedule, read_zone

    name = socket.gethostname()
    schedule = Schedule(
        controller=name,
        started_by=f"controller {name}, {current_actor()}",
        max_age=options.controller_max_age,
        cron=options.controller_cron,
        zone=read_zone(options.controller_timezone),
        retires=options.controller_retire,
        policy=build_policy(options),
    )
    return make_schedule(schedule, SystemClock().now_ms())
