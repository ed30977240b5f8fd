"""`goatherd run`: run an unmodified GoatDB server with its identity from a store.

With --once the command only writes the server's settings.json; with --watch it keeps the file up to date for a server
that another program runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from goatherd.cli.door import door_options
from goatherd.cli.main import (
    ANY_PATH,
    DIRECTORY,
    FC,
    PORT,
    App,
    accept_identity_option,
    add_options,
    command,
    config_flag,
    refresh_interval_option,
    region_option,
)
from goatherd.cli.process import log_level_option, log_to_stderr
from goatherd.config.build import build_store_opener
from goatherd.config.build_servers import (
    build_agent_rules,
    build_child_environment,
    build_door,
    build_notifier,
    build_organizations,
    build_own_address,
    build_server_files,
    chosen_organizations,
)
from goatherd.config.options import Options
from goatherd.operations.serve import require_node_extra
from goatherd.providers.values import ORG_FIELD

if TYPE_CHECKING:
    from goatherd.agent import Supervisor
    from goatherd.agent.agent import Front


LOOPBACK: Final = "127.0.0.1"

directory_options = add_options(
    config_flag("--data", "agent_data", "Data directory of the server.", kind=DIRECTORY),
    click.option(
        "--create", is_flag=True, help="Create the data directory, and each organization's directory in it, if missing."
    ),
    config_flag("--url", "agent_url"),
    config_flag("--memory", "agent_memory", kind=ANY_PATH),
    click.option(
        "--plain-file",
        is_flag=True,
        help="Write settings.json, including the private key, to the disk instead of a tmpfs.",
    ),
    accept_identity_option,
    region_option,
    log_level_option,
)
"""The options that say where the server's data directory is, and how its settings.json is written."""


def change_options(ways: Sequence[str], default: str) -> Callable[[FC], FC]:
    """Return the options that say how the server learns of a changed identity.

    Args:
        ways: The accepted values of --on-change.
        default: What the help says about its default.
    """
    return add_options(
        click.option(
            "--on-change",
            "agent_on_change",
            type=click.Choice(ways),
            help=f"How to notify the server when the identity changes ({default}).",
        ),
        config_flag("--signal", "agent_signal", "Signal to send to the server if --on-change is `signal`."),
        config_flag(
            "--command",
            "agent_command",
            "Command to run when the identity changes, if --on-change is `command`.",
            metavar="TEXT",
        ),
        config_flag(
            "--lease",
            "agent_lease",
            "URI of the secret for the restart lease; an agent restarts its server only while it holds this lease"
            " (default: `<secret>-lease`). `none`, for a single server, turns the lease off.",
        ),
        config_flag("--ready-timeout", "agent_ready_timeout"),
        refresh_interval_option,
    )


def _check_change_flags(options: Options) -> None:
    """Refuse --signal and --command if --on-change makes the agent do something else."""
    for way in ("signal", "command"):
        if options.origin.get(f"agent.{way}") == "flag" and options.agent_on_change != way:
            raise click.UsageError(f"--{way} needs --on-change {way}")


def run_for_server(
    app: App,
    orgs: Sequence[str],
    *,
    supervisor: Supervisor | None,
    pid_file: Path | None = None,
    front: Front | None = None,
    create: bool,
    plain_file: bool,
    accept_identity: bool,
) -> int:
    """Run an agent for a server, and return the exit code.

    Args:
        app: The context of the command.
        orgs: The organizations of the server.
        supervisor: Starts and stops the server; None if another program does.
        pid_file: File with the process id of a server that another program runs.
        front: Opens the agent's HTTP address: a door, or an address of its own; None for neither.
        create: Whether to create missing directories (--create).
        plain_file: Whether to write settings.json to the disk instead of a tmpfs (--plain-file).
        accept_identity: Whether to accept, once, an identity that no trusted root has endorsed (--accept-identity).
    """
    from goatherd.operations.run_agent import run_agent

    files = build_server_files(app.options, orgs, creates=create, plain_file=plain_file)
    organizations, lease_secret = build_organizations(app.options, files, accept_identity=accept_identity)
    running = run_agent(
        files,
        organizations,
        supervisor=supervisor,
        lease_secret=lease_secret,
        rules=build_agent_rules(app.options),
        notify=build_notifier(app.options, supervisor=supervisor, pid_file=pid_file),
        front=front,
        grace=app.options.agent_grace,
        open_store=None if accept_identity else build_store_opener(app.options, offline=False),
    )
    return asyncio.run(running)


@command(
    example="goatherd run --provider file:///srv/keys/root --data /srv/goatdb -- deno run -A server.ts\n"
    "goatherd run --provider vault://vault:8200/secret/{org} --data /srv/goatdb --org a --org b -- node server.js",
    orgs=True,
)
@directory_options
@change_options(["restart", "signal", "command", "ignore"], "default: restart")
@config_flag("--grace", "agent_grace")
@config_flag("--crashes", "agent_crashes")
@config_flag(
    "--pass-env",
    "agent_pass_env",
    "Name of an environment variable with a store credential to pass to the server.",
    metavar="NAME",
)
@click.option(
    "--door",
    metavar="PORT",
    type=PORT,
    help="Port on which to start a door (a verifying proxy) in front of the server.",
)
@click.option(
    "--door-host",
    metavar="ADDRESS",
    help="Address on which the door (Goatherd's reverse proxy) listens (default: 127.0.0.1).",
)
@door_options
@click.option(
    "--agent-port",
    metavar="PORT",
    type=PORT,
    help="Port on which the agent reports its state to `status --node`, if there is no door.",
)
@click.option(
    "--agent-host",
    metavar="ADDRESS",
    help="Address on which the agent listens with --agent-port (default: 127.0.0.1).",
)
@click.argument("child", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    app: App,
    orgs: tuple[str, ...],
    child: tuple[str, ...],
    door: int | None,
    door_host: str | None,
    public_url: str | None,
    private: bool,
    agent_port: int | None,
    agent_host: str | None,
    create: bool,
    plain_file: bool,
    accept_identity: bool,
    log_level: str,
) -> int:
    """Run an unmodified GoatDB server with its identity from a store.

    This command is the server's agent: it writes settings.json to a tmpfs, links to it from the data directory, and
    starts COMMAND. When the identity changes, the agents of a cluster restart their servers one at a time. If a server
    is not ready with the new root, its agent restarts it with the previous root. After every start, the agent checks
    whether the server exposes its private key, and stops the server if it does. After SIGTERM or Ctrl-C the exit code
    is 0 if the server stopped in time, else the server's exit code, or 128 plus the number of the signal that ended it.
    After a second signal, the server is killed if it still runs 5 seconds later.

    --door starts a verifying proxy in front of the server; see `goatherd door`.
    """
    from goatherd.agent import Supervisor
    from goatherd.agent.child_process import find_command

    log_to_stderr(log_level)
    find_command(child)
    options, named = app.options, chosen_organizations(app.options, orgs)
    supervisor = Supervisor(child, environ=build_child_environment(options), grace=options.agent_grace)
    url = options.agent_url.replace(ORG_FIELD, named[0])
    if agent_port is not None and door is not None:
        raise click.UsageError(
            "--agent-port cannot be combined with --door, because the agent then listens on the door's address"
        )
    has_limits = "flag" in (options.origin.get("limits.forwarded_by"), options.origin.get("limits.idle_timeout"))
    if door is None and (door_host is not None or public_url is not None or private or has_limits):
        names = "--door-host, --public-url, --private, --forwarded-by and --idle-timeout"
        raise click.UsageError(f"{names} need --door PORT")
    if agent_port is None and agent_host is not None:
        raise click.UsageError("--agent-host needs --agent-port PORT")
    _check_change_flags(options)
    front: Front | None = None
    if door is not None:
        require_node_extra()
        from goatherd.operations.run_door import door_of_agent

        make_door = build_door(
            options, url, host=door_host or LOOPBACK, port=door, public_url=public_url, private=private
        )
        front = door_of_agent(make_door)
    elif agent_port is not None:
        require_node_extra()
        front = build_own_address(url, agent_host or LOOPBACK, agent_port)
    return run_for_server(
        app,
        named,
        supervisor=supervisor,
        front=front,
        create=create,
        plain_file=plain_file,
        accept_identity=accept_identity,
    )


run.allow_interspersed_args = False  # what follows COMMAND are COMMAND's own arguments


@command(
    example="goatherd run --once --provider k8s://prod/goatdb-root --data /srv/goatdb --memory /run/goatdb-keys\n"
    "goatherd run --once --provider file:///srv/keys/{org}/root --data /srv/goatdb --org a --org b",
    orgs=True,
)
@directory_options
def fetch(
    app: App, orgs: tuple[str, ...], create: bool, plain_file: bool, accept_identity: bool, log_level: str
) -> None:
    """Write a GoatDB server's settings.json once, then exit.

    Use this command in an init container, or before another program starts the server. Stop the server first: a running
    server would overwrite the file. The file stays until you remove it or its tmpfs is unmounted.
    """
    from goatherd.operations.run_agent import fetch_settings

    log_to_stderr(log_level)
    named = chosen_organizations(app.options, orgs)
    files = build_server_files(app.options, named, creates=create, plain_file=plain_file)
    organizations, _ = build_organizations(app.options, files, accept_identity=accept_identity)
    opening = None if accept_identity else build_store_opener(app.options, offline=False)
    written = asyncio.run(fetch_settings(files, organizations, open_store=opening))
    data = {"organizations": [{"org": one.org, "file": str(one.file), "current": one.current_id} for one in written]}
    app.out.result(data, [f"wrote {one.file}: root {one.current_id}" for one in written])


@command(
    example="goatherd run --watch --data /srv/goatdb --memory /run/goatdb-keys --on-change signal --signal TERM"
    " --pid-file /run/goatdb.pid\n"
    'goatherd run --watch --data /srv/goatdb --on-change command --command "systemctl restart goatdb"',
    orgs=True,
)
@directory_options
@change_options(["signal", "command", "ignore"], "no default")
@click.option("--pid-file", type=ANY_PATH, help="File with the server's process id, for --on-change signal.")
def watch(
    app: App,
    orgs: tuple[str, ...],
    pid_file: Path | None,
    create: bool,
    plain_file: bool,
    accept_identity: bool,
    log_level: str,
) -> int:
    """Keep settings.json up to date for a server that another program runs.

    Run this command as a sidecar. The agent writes settings.json when it starts and when the identity changes; the
    agents of a cluster do so one at a time. After a change, the agent restarts the server with a signal or a command.
    If the server does not sign with the new root in time, the agent writes the previous root again. The file stays when
    the agent exits, because the server may need it for its next start.
    """
    log_to_stderr(log_level)
    options, named = app.options, chosen_organizations(app.options, orgs)
    if "agent.on_change" not in options.origin or options.agent_on_change == "restart":
        raise click.UsageError("--on-change is missing. It names how to notify the server: signal, command or ignore")
    if options.agent_on_change == "signal" and pid_file is None:
        raise click.UsageError("--on-change signal needs --pid-file FILE")
    if options.agent_on_change != "signal" and pid_file is not None:
        raise click.UsageError("--pid-file needs --on-change signal")
    _check_change_flags(options)
    return run_for_server(
        app,
        named,
        supervisor=None,
        pid_file=pid_file,
        create=create,
        plain_file=plain_file,
        accept_identity=accept_identity,
    )
