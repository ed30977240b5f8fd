"""Build the server, the agent or the door (reverse proxy) that the options describe, and its settings.

`goatherd.operations` starts what is built here. Each function itself imports the heavy modules that it needs.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from goatherd.clock import SystemClock
from goatherd.config.build import build_store_opener, configured_provider
from goatherd.config.options import Options
from goatherd.config.values import parse_organization
from goatherd.errors import ConfigurationError
from goatherd.plugins import open_provider
from goatherd.providers.base import SecretProvider
from goatherd.providers.values import ORG_FIELD, secret_id_for

if TYPE_CHECKING:
    from goatherd.agent import ManagedOrganization, Rules, Supervisor
    from goatherd.agent.agent import Front, Notify
    from goatherd.door.door import Door
    from goatherd.node.server import Server
    from goatherd.operations.data import OpenStore
    from goatherd.operations.run_agent import ServerFiles
    from goatherd.settings.file import FileSettings
    from goatherd.settings.last_known_good import LastKnownGood
    from goatherd.settings.store import CloudSecretSettings

SESSIONS_RENEWAL: Final = timedelta(minutes=25)
SESSIONS_SHARE: Final = 0.6
"""How many new sessions an address may request in a burst, over its requests per second."""
SESSION_SHARE: Final = 0.06
"""How many requests per second one session may send, over those of an address."""
NO_LEASE: Final = "none"


def build_server(options: Options, *, accept_identity: bool = False) -> Server:
    """Return the server that the options describe, not started yet.

    Raises:
        ConfigurationError: The options name no data directory, or no source of the identity.
    """
    from goatherd.node.server import Server
    from goatherd.serving.caller_limits import CallerLimits

    settings = build_settings(options, accept_identity=accept_identity)
    return Server(
        served_directory(options),
        settings,
        org_id=options.org,
        base_url=options.serve_public_url,
        peers=options.serve_peers,
        limits=CallerLimits(**build_caller_limits(options)),
        forwarded_by=options.limits_forwarded_by,
        unused_sessions=options.serve_unused_sessions,
        root_signers=options.signers,
    )


def build_caller_limits(options: Options) -> dict[str, Any]:
    """Return the limits of each caller of a server or a door, as arguments of `CallerLimits`."""
    from goatherd.serving.caller_limits import Rate
    from goatherd.serving.sockets import allow_open_files

    rate = options.limits_requests_per_second
    connections = options.limits_connections
    sessions, of_a_session = max(1, int(SESSIONS_SHARE * rate)), max(1, int(SESSION_SHARE * rate))
    return {
        "connections": min(connections, max(64, allow_open_files(connections))),
        "connections_per_address": max(1, connections // 4),
        "idle_timeout": options.limits_idle_timeout,
        "requests": Rate(per_second=rate, burst=5 * rate),
        "new_sessions": Rate(per_second=sessions / SESSIONS_RENEWAL.total_seconds(), burst=sessions),
        "session_requests": Rate(per_second=of_a_session, burst=5 * of_a_session),
    }


def build_settings(options: Options, *, accept_identity: bool) -> CloudSecretSettings | FileSettings:
    """Return the settings provider that the options describe: a settings.json if one is named, else the store.

    Raises:
        ConfigurationError: The command line names both a file and a store, or no option names either.
    """
    from goatherd.settings.data_directory import SEEN_NAME
    from goatherd.settings.file import FileSettings
    from goatherd.settings.store import CloudSecretSettings

    if options.serve_settings is not None and options.origin.get("provider") == "flag":
        if options.origin.get("serve.settings") == "flag":
            raise ConfigurationError(
                "--settings and --provider cannot be combined",
                hint="--settings FILE serves from a file, --provider URI from a store. Give one of them.",
            )
    elif _is_file_named(options):
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


def _is_file_named(options: Options) -> bool:
    """Return whether a server reads its identity from a settings.json. A store on the command line takes precedence."""
    if options.serve_settings is not None:
        return options.origin.get("provider") != "flag"
    return options.type == "file" and options.provider is None


def build_identity_opener(options: Options) -> OpenStore | None:
    """Return a function that opens the store from which a server reads its identity; None if it reads a file."""
    return None if _is_file_named(options) else build_store_opener(options, offline=False)


def build_store_settings(options: Options) -> CloudSecretSettings:
    """Return the settings provider of a door: the identity from the store, without a local record or copy of it."""
    from goatherd.settings.store import CloudSecretSettings

    provider, template = configured_provider(options)
    return CloudSecretSettings(
        provider, template, refresh_interval=options.settings_refresh_interval, allows_direct=False
    )


def build_last_known_good(options: Options, *, is_per_org: bool) -> LastKnownGood | None:
    """Return the encrypted local copy of the identity that the options describe; None if they name none.

    Args:
        options: The options.
        is_per_org: Whether each organization has an identity of its own.

    Raises:
        ConfigurationError: The options name a copy without a key, a key without a copy, or one copy for several
            identities.
    """
    from goatherd.settings.last_known_good import KeySource, LastKnownGood

    path, key = options.settings_last_known_good, options.settings_last_known_good_key
    if path is None and key is None:
        return None
    if path is None or key is None:
        missing = "last_known_good" if path is None else "last_known_good_key"
        raise ConfigurationError(
            f"settings.{missing} is missing",
            hint="A last known good identity needs both settings.last_known_good and settings.last_known_good_key.",
        )
    if is_per_org and ORG_FIELD not in str(path):
        raise ConfigurationError(
            f"settings.last_known_good must contain {ORG_FIELD}, because each organization has its own identity",
            hint=f"Write {ORG_FIELD} into the path.",
        )
    if options.stores:
        # Sorted, so that a promotion does not make the copy unusable.
        store = json.dumps(sorted(entry.provider for entry in options.stores))
    else:
        store = options.provider or json.dumps(dict(options.cloud_config or {}), sort_keys=True)
    return LastKnownGood(path, KeySource.from_text(key), store=store)


def served_directory(options: Options) -> Path:
    """Return the data directory of `goatherd serve`.

    Raises:
        ConfigurationError: The options name no data directory.
    """
    if options.serve_data is None:
        raise ConfigurationError("no data directory is named", hint="Give --data DIR, or set GOATHERD_SERVE_DATA.")
    return options.serve_data


def build_door(
    options: Options, upstream: str, *, host: str, port: int, public_url: str | None, private: bool
) -> partial[Door]:
    """Return a function that makes the door that the options describe, for the identity that it is called with.

    Args:
        options: The limits of callers, and the proxies in front of the door.
        upstream: URL of the server behind the door.
        host: Address to listen on.
        port: Port to listen on.
        public_url: URL at which clients reach the door.
        private: Whether only roots and owners may write to ``/sys/*`` and ``/user/<id>``.
    """
    from goatherd.door.door import Door
    from goatherd.door.limits import DoorLimits

    return partial(
        Door,
        upstream=upstream,
        host=host,
        port=port,
        public_url=public_url,
        private=private,
        limits=DoorLimits(**build_caller_limits(options)),
        forwarded_by=options.limits_forwarded_by,
    )


def build_own_address(url: str, host: str, port: int) -> Front:
    """Return a function that opens the HTTP address at which an agent without a door reports its state.

    Args:
        url: URL of the server.
        host, port: Address and port to listen on.
    """
    from goatherd.agent.own_address import OwnAddress

    return lambda _, own: OwnAddress(upstream=url, answer=own.answer_request, guard=own.guard, host=host, port=port)


def chosen_organizations(options: Options, given: Sequence[str]) -> tuple[str, ...]:
    """Return the organizations of a server: those given by --org, or else the one of the options."""
    return tuple(dict.fromkeys(map(parse_organization, given))) or (options.org,)


def build_server_files(options: Options, orgs: Sequence[str], *, creates: bool, plain_file: bool) -> ServerFiles:
    """Return the data directory of an unmodified GoatDB server, and the places of its settings.json files.

    Args:
        options: The data directory, and the directory on a tmpfs.
        orgs: The organizations of the server.
        creates: Whether to create missing directories.
        plain_file: Whether to write settings.json to the disk instead of a tmpfs.

    Raises:
        ConfigurationError: The options name no data directory.
        AgentError: There is no tmpfs.
    """
    from goatherd.agent.memory_directory import directory_for, find_memory
    from goatherd.operations.run_agent import ServerFiles

    if options.agent_data is None:
        raise ConfigurationError("no data directory is named", hint="Give --data DIR, or set GOATHERD_AGENT_DATA.")
    data = options.agent_data.resolve()
    memory = None if plain_file else directory_for(find_memory(options.agent_memory, os.environ), data)
    return ServerFiles(data=data, orgs=tuple(orgs), memory=memory, creates=creates)


def build_organizations(
    options: Options, files: ServerFiles, *, accept_identity: bool
) -> tuple[list[ManagedOrganization], tuple[SecretProvider, str] | None]:
    """Return the organizations of an agent's server, with their identities, and the restart lease's secret.

    Nothing is read from the store yet.

    Args:
        options: The store, the server's URL, and its peers.
        files: The server's data directory.
        accept_identity: Whether to accept the first identity from the store even if no trusted root has endorsed it.

    Raises:
        ConfigurationError: No store is named, or its address is the same for several organizations.
    """
    from goatherd.agent import ManagedOrganization
    from goatherd.cluster.client import NodeClient
    from goatherd.cluster.discovery import NodeDirectory, Place
    from goatherd.cluster.first_identity import rejection_source
    from goatherd.cluster.introductions import introduction_source
    from goatherd.settings.data_directory import SEEN_NAME, SESSIONS_LOG, read_records
    from goatherd.settings.store import CloudSecretSettings

    provider, template = configured_provider(options, files.orgs)
    copy = build_last_known_good(options, is_per_org=ORG_FIELD in template)
    organizations = []
    places: dict[str, Place] = {}

    def connect_place(place: Place) -> NodeClient:
        client = NodeClient(place.url, timeout=options.timeout, server_name=place.server_name)
        places[client.base_url] = place
        return client

    async def list_peers() -> Sequence[str]:
        addresses = tuple(dict.fromkeys((*options.nodes, *options.serve_peers)))
        async with NodeDirectory(addresses, timeout=options.timeout, connect=connect_place) as directory:
            return [client.base_url for client in await directory()]

    def connect(url: str) -> NodeClient:
        return connect_place(places[url])

    for org in files.orgs:
        directory = files.directory_of(org)
        settings = CloudSecretSettings(
            provider,
            secret_id_for(template, org),
            refresh_interval=options.settings_refresh_interval,
            accept_identity=accept_identity,
            seen=directory / SEEN_NAME,
            last_known_good=None if copy is None else copy.for_org(org),
            allows_direct=False,
        )
        settings.introductions = introduction_source(
            org=org,
            read_own=partial(read_records, directory / SESSIONS_LOG),
            peers=list_peers,
            connect=connect,
            clock=SystemClock(),
        )
        settings.rejections = rejection_source(peers=list_peers, connect=connect, clock=SystemClock())
        organizations.append(
            ManagedOrganization(
                org=org,
                settings=settings,
                directory=directory,
                file=files.settings_file_of(org),
                client=NodeClient(options.agent_url.replace(ORG_FIELD, org), timeout=options.timeout),
                clock=SystemClock(),
            )
        )
    # One process serves all organizations, so it restarts for all of them: the lease is beside the first one's secret.
    return organizations, _locate_lease(options, (provider, template), files.orgs[0])


def build_lease_secret(options: Options) -> tuple[SecretProvider, str]:
    """Return the provider, not opened yet, and the id of the secret that holds the restart lease.

    Raises:
        ConfigurationError: The options name no store, or turn the lease off.
    """
    found = _locate_lease(options, None, options.org)
    if found is None:
        raise ConfigurationError("there is no restart lease, because agent.lease is `none`", hint="Give --lease URI.")
    return found


def _locate_lease(
    options: Options, identity: tuple[SecretProvider, str] | None, org: str
) -> tuple[SecretProvider, str] | None:
    """Return the restart lease's secret: the named one, or one beside the identity; None without a lease."""
    from goatherd.agent.restart_lease import lease_id_for

    if options.agent_lease == NO_LEASE:
        return None
    if options.agent_lease is not None:
        return open_provider(options.agent_lease)
    if options.stores:
        # One lease for the whole cluster: it is in the primary store only.
        provider, template = open_provider(options.stores[0].provider)
    else:
        provider, template = identity or configured_provider(options)
    return provider, lease_id_for(secret_id_for(template, org))


def build_agent_rules(options: Options) -> Rules:
    """Return the rules for the agent's behaviour that the options describe."""
    from goatherd.agent import OnChange, Rules

    return Rules(
        on_change=OnChange(options.agent_on_change),
        ready_timeout=options.agent_ready_timeout,
        crashes=options.agent_crashes,
    )


def build_notifier(options: Options, *, supervisor: Supervisor | None, pid_file: Path | None) -> Notify | None:
    """Return a function that makes the server read a new settings.json; None if the server is restarted or left alone.

    Raises:
        ConfigurationError: The options ask for a command but name none.
    """
    from goatherd.agent.agent import run_command
    from goatherd.operations.run_agent import signal_notifier

    if options.agent_on_change == "command":
        if not options.agent_command:
            raise ConfigurationError("--on-change command needs a command", hint="Give --command TEXT.")
        words, environ = shlex.split(options.agent_command), build_child_environment(options)
        return lambda: run_command(words, options.agent_ready_timeout, SystemClock(), environ)
    if options.agent_on_change == "signal":
        return signal_notifier(options.agent_signal, supervisor=supervisor, pid_file=pid_file)
    return None


def build_child_environment(options: Options) -> dict[str, str]:
    """Return the environment of the agent's server: the agent's own, without the credentials of the store."""
    from goatherd.operations.run_agent import hide_credentials

    return hide_credentials(
        os.environ,
        stores=_store_names(options),
        sealing_key=options.settings_last_known_good_key,
        passed=options.agent_pass_env,
    )


def _store_names(options: Options) -> tuple[str, ...]:
    """Return the URI or scheme of every store that the options name."""
    if options.stores:
        return tuple(entry.provider for entry in options.stores)
    named = options.provider or (options.cloud_config or {}).get("provider", "")
    return (named,) if named else ()
