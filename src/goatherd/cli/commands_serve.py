"""The commands that run servers: serve, demo."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from goatherd.cli.main import EXIT_FINDINGS, App, PathType, command
from goatherd.cli.process import log_level_option, log_to_stderr, run_fast
from goatherd.cli.store import place
from goatherd.config import Options
from goatherd.data_directory import check_data_directory
from goatherd.errors import ConfigurationError, MissingExtraError
from goatherd.providers.values import ORG_FIELD
from goatherd.serving.addresses import allow_open_files
from goatherd.serving.limits import CallerLimits, Rate

if TYPE_CHECKING:
    from goatherd.node.server import Server
    from goatherd.settings import CloudSecretSettings, FileSettings, LastKnownGood

SEEN_NAME = ".goatherd.seen.json"
"""In an organization's directory: which identity must not be gone back behind. Public keys only."""
SESSIONS_RENEWAL: Final = timedelta(minutes=25)
NODE_LIBRARIES = ("uvicorn", "httptools", "prometheus_client")


@command(
    example="goatherd serve --data /srv/goatdb --port 8080 --provider file:///srv/keys/root --peer http://10.0.0.2:8080\n"
    "goatherd serve --data /srv/goatdb --settings /srv/goatdb/localhost/settings.json"
)
@click.option(
    "--data", "serve_data", type=PathType(path_type=Path, file_okay=False), help="Data directory of the server."
)
@click.option("--create", is_flag=True, help="Create the data directory, or the organization's in it, if missing.")
@click.option("--host", "serve_host", metavar="ADDRESS", help="Address to listen on (default: 127.0.0.1).")
@click.option("--port", "serve_port", metavar="N", help="Port to listen on; 0 takes a free one (default: 8080).")
@click.option(
    "--peer",
    "serve_peers",
    multiple=True,
    metavar="URL",
    help="URL of another server of the cluster. Can be given more than once.",
)
@click.option(
    "--settings",
    "serve_settings",
    type=PathType(path_type=Path),
    help="A GoatDB settings.json to start from, in place of a store.",
)
@click.option(
    "--refresh-interval",
    "settings_refresh_interval",
    metavar="TIME",
    help="How often to read the store (default: 30s).",
)
@click.option(
    "--accept-identity",
    is_flag=True,
    help="Follow the store, once, to an identity that no trusted root has endorsed, or that goes back.",
)
@click.option(
    "--forwarded-by",
    "limits_forwarded_by",
    multiple=True,
    metavar="NETWORK",
    help="Network of a proxy in front of the server, whose X-Forwarded-For header is used. Can be given more than"
    " once.",
)
@log_level_option("info")
def serve(app: App, create: bool, accept_identity: bool, log_level: str) -> None:
    """Run a GoatDB server that takes its identity from a store.

    Writes one line once it answers requests. SIGTERM or Ctrl-C make it stop gracefully: it accepts no more, finishes
    what runs, flushes and closes; a second one hurries it. It never invents an identity, and it remembers in its data
    directory which one it had, so that a restart does not make it follow another.

    The data directory must exist and hold the organization's data, or be empty; --create makes a new one.
    """
    require_node_extra()
    from goatherd.node.server import serve as serve_forever

    options = app.options
    if options.serve_data is None:
        raise ConfigurationError("no data directory is named", hint="Give --data DIR, or set GOATHERD_SERVE_DATA.")
    # At INFO, libraries write a line for each request.
    log_to_stderr(log_level, others="warning" if log_level == "info" else log_level)
    server = make_server(options, accept_identity=accept_identity)
    check_data_directory(options.serve_data, [options.org], create=create)

    def started(url: str) -> None:
        database = server.database()
        signer = database.pool.current.id
        data = {"ready": True, "url": url, "org": options.org, "signer": signer}
        text = f"ready at {url}: organization {options.org}, root {signer} signs"
        app.out.line(json.dumps(data) if app.out.as_json else text)

    host, port, grace = options.serve_host, options.serve_port, options.serve_shutdown_timeout
    run_fast(serve_forever(server, host, port, started=started, grace=grace))


def require_node_extra() -> None:
    """Make sure that the libraries of the extra ``node`` are installed.

    Raises:
        MissingExtraError: They are not; the hint is the install command.
    """
    missing = [name for name in NODE_LIBRARIES if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"serving needs libraries that are not installed: {', '.join(missing)}",
            hint="Install them: pip install 'goatherd[node]'",
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def make_server(options: Options, *, accept_identity: bool = False) -> Server:
    """Return the server that the options describe, not started."""
    from goatherd.node.server import Server

    assert options.serve_data is not None
    settings = make_settings(options, accept_identity=accept_identity)
    return Server(
        options.serve_data,
        settings,
        org_id=options.org,
        peers=options.serve_peers,
        limits=CallerLimits(**caller_limits(options)),
        forwarded_by=options.limits_forwarded_by,
    )


def caller_limits(options: Options) -> dict[str, Any]:
    """Return what callers may take of a server or a door, as arguments of `CallerLimits`."""
    rate, sessions = options.limits_requests_per_second, options.limits_new_sessions
    of_a_session = options.limits_session_requests_per_second
    return {
        "connections": min(options.limits_connections, max(64, allow_open_files(options.limits_connections))),
        "connections_per_address": options.limits_connections_per_address,
        "requests": Rate(per_second=rate, burst=5 * rate),
        "new_sessions": Rate(per_second=sessions / SESSIONS_RENEWAL.total_seconds(), burst=sessions),
        "session_requests": Rate(per_second=of_a_session, burst=5 * of_a_session),
    }


def make_settings(options: Options, *, accept_identity: bool) -> CloudSecretSettings | FileSettings:
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
    provider, secret_id = place(options)
    seen = None if options.serve_data is None else options.serve_data / ORG_FIELD / SEEN_NAME
    copy = last_known_good(options, is_per_org=ORG_FIELD in secret_id)
    return CloudSecretSettings(
        provider,
        secret_id,
        refresh_interval=options.settings_refresh_interval,
        accept_identity=accept_identity,
        seen=seen,
        last_known_good=copy,
    )


def last_known_good(options: Options, *, is_per_org: bool) -> LastKnownGood | None:
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


@command(example="goatherd demo\ngoatherd demo --json")
def demo(app: App) -> int:
    """Three servers, one identity, two rotations under traffic.

    Everything happens in a temporary directory and on loopback addresses, in under a minute. Ends with 11 if a request
    was refused or a commit was lost.
    """
    require_node_extra()
    from goatherd.cli.demo import run_demo

    report = asyncio.run(run_demo(app.out))
    app.out.result(report.data(), report.lines(app.out))
    return 0 if report.passed else EXIT_FINDINGS
