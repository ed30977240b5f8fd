"""Open what the options describe: the store, the policy of a rotation, the schedule, a server, a door.

What it is not: it does nothing with what it opens; `goatherd.operations` does. Rules: an SDK, the rotation and the
server are imported by the function that needs them, since most commands need none of them.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from goatherd.clock import SystemClock
from goatherd.config.options import Options
from goatherd.errors import ConfigurationError
from goatherd.operations.identity_store import DEFAULT_ORG, Store
from goatherd.plugins import open_provider, provider_from_config
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import ORG_FIELD, secret_id_for

if TYPE_CHECKING:
    from goatherd.agent import ManagedOrganization
    from goatherd.agent.agent import Front
    from goatherd.agent.own_api import OwnAPI
    from goatherd.cluster.discovery import NodeDirectory
    from goatherd.door import Door
    from goatherd.node.server import Server
    from goatherd.operations.migrate import Target
    from goatherd.rotation.health_checks import HealthSignal
    from goatherd.rotation.machine import Policy
    from goatherd.schedule.due import Schedule
    from goatherd.settings import CloudSecretSettings, FileSettings, LastKnownGood

SEEN_NAME: Final = ".goatherd.seen.json"
"""In an organization's directory: which identity must not be gone back behind. Public keys only."""
SESSIONS_RENEWAL: Final = timedelta(minutes=25)
SWITCH_INTERVAL: Final = timedelta(microseconds=200)


def configured_provider(options: Options, orgs: Sequence[str] | None = None) -> tuple[SecretProvider, str]:
    """Return the provider that the options name, not open yet, and the id of its secret, ``{org}`` still in it.

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
            f"the store's address {store_name(options)} does not contain {ORG_FIELD}, so organization {others[0]!r}"
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


def store_name(options: Options, org: str | None = None) -> str:
    """Return what messages call the store: the URI, or the scheme and the name of the secret. No password is in it."""
    chosen = org or options.org
    if options.provider is not None:
        return options.provider.replace(ORG_FIELD, chosen)
    config = options.cloud_config or {}
    return f"{config.get('provider', '?')}: {config.get('secretId', '?')}".replace(ORG_FIELD, chosen)


@asynccontextmanager
async def open_store(options: Options, *, org: str | None = None) -> AsyncIterator[Store]:
    """Open the store that the options name, for one organization."""
    chosen = org or options.org
    provider, template = configured_provider(options, [chosen])
    async with provider:
        secret_id = secret_id_for(template, chosen)
        named = store_name(options, chosen)
        yield Store(provider=provider, secret_id=secret_id, org=chosen, name=named)


def listed_nodes(options: Options) -> tuple[str, ...]:
    """Return the addresses of the cluster's servers: those of --node, and those that are restarted by hand."""
    return tuple(dict.fromkeys((*options.nodes, *options.rotation_bare)))


def open_nodes(
    options: Options, addresses: Sequence[str] | None = None, *, timeout: timedelta | None = None
) -> NodeDirectory:
    """Return the directory of the cluster's servers, to be entered with ``async with``.

    Args:
        options: The organization, the servers and the timeout.
        addresses: Servers, or where to discover them; `listed_nodes` by default.
        timeout: Timeout of one request, where the answers are large; the longer one of it and `options.timeout` counts.
    """
    from goatherd.cluster.discovery import NodeDirectory

    return NodeDirectory(
        listed_nodes(options) if addresses is None else addresses,
        timeout=options.timeout if timeout is None else max(options.timeout, timeout),
        org=options.org,
    )


def build_migration_target(options: Options) -> Target:
    """Return where `goatherd migrate` puts what it finds."""
    from goatherd.operations.migrate import Target

    return Target(
        open_store=lambda org: open_store(options, org=org),
        secret_for=lambda orgs: configured_provider(options, orgs)[1],
        addresses=options.nodes,
        timeout=options.timeout,
        clock_tolerance=options.rotation_clock_tolerance,
        org=options.org if "org" in options.origin else None,
    )


@asynccontextmanager
async def open_two_stores(options: Options, source: str, destination: str) -> AsyncIterator[tuple[Store, Store]]:
    """Open the stores at two addresses."""
    async with (
        open_store(replace(options, provider=source)) as first,
        open_store(replace(options, provider=destination)) as second,
    ):
        yield first, second


def build_policy(options: Options, *, is_discovered: bool = False) -> Policy:
    """Return the policy that the options describe.

    Args:
        options: The options.
        is_discovered: Whether nodes are found by asking, so that there may be some that were not found.
    """
    from goatherd.rotation.machine import Policy, Quorum
    from goatherd.rotation.policy import unlisted_for

    unlisted = options.rotation_unlisted
    if unlisted is None:
        unlisted = unlisted_for(options.settings_refresh_interval) if is_discovered else timedelta(0)
    return Policy(
        adoption=options.rotation_adoption,
        settle=options.rotation_settle,
        clock_tolerance=options.rotation_clock_tolerance,
        node_timeout=options.timeout,
        poll_max=options.rotation_poll,
        poll_min=min(Policy().poll_min, options.rotation_poll),
        lifetime=options.rotation_lifetime,
        grace=options.rotation_grace,
        quorum=Quorum.from_text(options.rotation_quorum),
        unlisted=unlisted,
        bare=frozenset(options.rotation_bare),
        distrust=frozenset(options.rotation_distrust),
        health_failures=options.rotation_health_failures,
        health_interval=options.rotation_health_interval,
        health_timeout=options.rotation_health_timeout,
        health_soak=options.rotation_health_soak,
    )


def build_health_signals(options: Options, *, runs_commands: bool = True) -> list[HealthSignal]:
    """Return the health signals that the options name; a command that is not to be run counts as well."""
    from goatherd.rotation.health_checks import HealthCommand, HTTPProbe

    signals: list[HealthSignal] = []
    if options.rotation_health_url is not None:
        signals.append(HTTPProbe(options.rotation_health_url, timeout=options.rotation_health_timeout))
    if options.rotation_health_command is not None:
        timeout = options.rotation_health_timeout
        signals.append(HealthCommand(options.rotation_health_command, timeout=timeout, is_run=runs_commands))
    return signals


def build_schedule(options: Options) -> Schedule:
    """Return the schedule that the options describe, checked.

    Raises:
        ConfigurationError: It cannot be meant.
    """
    from goatherd.operations.runs import current_actor
    from goatherd.schedule.due import Missed, Schedule, make_schedule, read_zone
    from goatherd.schedule.windows import Window

    name = options.controller_name or socket.gethostname()
    zone = read_zone(options.controller_timezone)
    if options.controller_stale <= options.rotation_adoption + options.rotation_health_soak:
        raise ConfigurationError(
            "controller.stale is not more than rotation.adoption and rotation.health_soak together",
            hint="Else a controller would take over rotations that only wait for their nodes.",
        )
    schedule = Schedule(
        controller=name,
        started_by=f"controller {name}, {current_actor()}",
        cron=options.controller_cron,
        max_age=options.controller_max_age,
        zone=zone,
        windows=tuple(Window.from_text(text) for text in options.controller_windows),
        missed=Missed(options.controller_missed),
        tolerance=options.controller_tolerance,
        jitter=options.controller_jitter,
        backoff=options.controller_backoff,
        backoff_max=options.controller_backoff_max,
        stale=options.controller_stale,
        retires=options.controller_retire,
        policy=build_policy(options),
    )
    return make_schedule(schedule, SystemClock().now_ms())


def build_server(options: Options, *, accept_identity: bool = False) -> Server:
    """Return the server that the options describe, not started."""
    from goatherd.node.server import Server
    from goatherd.serving.limits import CallerLimits

    assert options.serve_data is not None
    settings = build_settings(options, accept_identity=accept_identity)
    return Server(
        options.serve_data,
        settings,
        org_id=options.org,
        peers=options.serve_peers,
        limits=CallerLimits(**build_caller_limits(options)),
        forwarded_by=options.limits_forwarded_by,
        unused_sessions=options.serve_unused_sessions,
    )


def build_caller_limits(options: Options) -> dict[str, Any]:
    """Return what callers may take of a server or a door, as arguments of `CallerLimits`."""
    from goatherd.serving.addresses import allow_open_files
    from goatherd.serving.limits import Rate

    rate, sessions = options.limits_requests_per_second, options.limits_new_sessions
    of_a_session = options.limits_session_requests_per_second
    return {
        "connections": min(options.limits_connections, max(64, allow_open_files(options.limits_connections))),
        "connections_per_address": options.limits_connections_per_address,
        "requests": Rate(per_second=rate, burst=5 * rate),
        "new_sessions": Rate(per_second=sessions / SESSIONS_RENEWAL.total_seconds(), burst=sessions),
        "session_requests": Rate(per_second=of_a_session, burst=5 * of_a_session),
    }


def build_settings(options: Options, *, accept_identity: bool) -> CloudSecretSettings | FileSettings:
    """Return the settings provider that the options describe: a settings.json where one is named, else the store.

    Raises:
        ConfigurationError: Both are named on the command line, or neither anywhere.
    """
    from goatherd.settings import CloudSecretSettings, FileSettings

    if options.serve_settings is not None and options.origin.get("provider") == "flag":
        if options.origin.get("serve.settings") == "flag":
            raise ConfigurationError(
                "--settings and --provider cannot be combined",
                hint="--settings FILE serves from a file, --provider URI from a store. Give one of them.",
            )
    elif options.serve_settings is not None or (options.type == "file" and options.provider is None):
        path = options.serve_settings or options.serve_data
        assert path is not None
        return FileSettings(path)
    provider, secret_id = configured_provider(options)
    seen = None if options.serve_data is None else options.serve_data / ORG_FIELD / SEEN_NAME
    copy = build_last_known_good(options, is_per_org=ORG_FIELD in secret_id)
    return CloudSecretSettings(
        provider,
        secret_id,
        refresh_interval=options.settings_refresh_interval,
        accept_identity=accept_identity,
        seen=seen,
        last_known_good=copy,
    )


def build_last_known_good(options: Options, *, is_per_org: bool) -> LastKnownGood | None:
    """Return the sealed copy that the options describe; None where they name none.

    Args:
        options: The options.
        is_per_org: Each organization has an identity of its own.

    Raises:
        ConfigurationError: A copy without a key, a key without a copy, or one copy for many identities.
    """
    from goatherd.settings import KeySource, LastKnownGood

    path, key = options.settings_last_known_good, options.settings_last_known_good_key
    if path is None and key is None:
        return None
    if path is None or key is None:
        missing = "last_known_good" if path is None else "last_known_good_key"
        raise ConfigurationError(
            f"settings.{missing} is missing",
            hint="A last known good identity needs both: a path for the copy, and where the key is that seals it.",
        )
    if is_per_org and ORG_FIELD not in str(path):
        raise ConfigurationError(
            f"settings.last_known_good is one file, and there is an identity for each {ORG_FIELD}",
            hint=f"Write {ORG_FIELD} into the path, too.",
        )
    store = options.provider or json.dumps(dict(options.cloud_config or {}), sort_keys=True)
    max_age = options.settings_last_known_good_max_age
    return LastKnownGood(path, KeySource.from_text(key), max_age=max_age, store=store)


def build_door(options: Options, url: str, *, host: str, port: int, public_url: str | None, private: bool) -> Front:
    """Return what opens the door of `goatherd run`, whose agent has the identities already.

    Args:
        options: What callers may take, and the proxies in front of the door.
        url: Where the server answers.
        host: Where the door listens.
        port: Its port.
        public_url: How callers reach it.
        private: Whether it closes ``/sys/*`` and ``/user/<id>`` to writers.
    """
    from goatherd.door import Door, DoorLimits, TrustedSessions

    @asynccontextmanager
    async def opened(handovers: Sequence[ManagedOrganization], own: OwnAPI) -> AsyncIterator[Door]:
        trusts = []
        for handover in handovers:
            trust = TrustedSessions(org=handover.org, identity=handover.document)
            handover.follow(trust.swap)
            trusts.append(trust)
        made = Door(
            upstream=url,
            trust=trusts,
            host=host,
            port=port,
            public_url=public_url,
            private=private,
            limits=DoorLimits(**build_caller_limits(options)),
            forwarded_by=options.limits_forwarded_by,
            own=own.answer,
            guard=own.guard,
            is_restarting=lambda: own.is_down,
        )
        own.figures = lambda: made.status
        sys.setswitchinterval(SWITCH_INTERVAL.total_seconds())
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(made)
            yield made

    return opened
