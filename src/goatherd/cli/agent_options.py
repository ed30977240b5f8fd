"""Options of `goatherd run`, also with `--once` or `--watch`, and the function that starts an agent from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from goatherd.cli.main import App, PathType
from goatherd.cli.process import log_level_option
from goatherd.config.build_servers import (
    build_agent_rules,
    build_notifier,
    build_organizations,
    build_server_files,
)

if TYPE_CHECKING:
    from goatherd.agent import Supervisor
    from goatherd.agent.agent import Front

Decorator = Callable[[Callable[..., int | None]], Callable[..., int | None]]


def directory_options(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options about the data directory and the settings.json in it."""
    for option in reversed(
        [
            click.option(
                "--data",
                "agent_data",
                type=PathType(path_type=Path, file_okay=False),
                help="Data directory of the server.",
            ),
            click.option(
                "--create",
                is_flag=True,
                help="Create the data directory, and each organization's directory in it, if missing.",
            ),
            click.option(
                "--url",
                "agent_url",
                metavar="URL",
                help="URL at which the server answers (default: http://127.0.0.1:8080).",
            ),
            click.option(
                "--memory",
                "agent_memory",
                type=PathType(path_type=Path),
                help="Directory on a tmpfs for settings.json (default: found automatically).",
            ),
            click.option(
                "--plain-file",
                is_flag=True,
                help="Write settings.json, including the private key, to the disk instead of a tmpfs.",
            ),
            click.option(
                "--accept-identity",
                is_flag=True,
                help="Accept, a single time, an identity from the store that no trusted root has endorsed, or that is"
                " older than the one in use.",
            ),
            log_level_option("info"),
        ]
    ):
        function = option(function)
    return function


def change_options(ways: Sequence[str]) -> Decorator:
    """Return the options that say how the server learns of a changed identity.

    Args:
        ways: The accepted values of --on-change.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., int | None]:
        for option in reversed(
            [
                click.option(
                    "--on-change",
                    "agent_on_change",
                    type=click.Choice(ways),
                    help="How to notify the server when the identity changes.",
                ),
                click.option(
                    "--signal",
                    "agent_signal",
                    metavar="NAME",
                    help="Signal to send to the server if --on-change is `signal` (default: HUP).",
                ),
                click.option(
                    "--command",
                    "agent_command",
                    metavar="TEXT",
                    help="Command to run when the identity changes, if --on-change is `command`.",
                ),
                click.option(
                    "--lease",
                    "agent_lease",
                    metavar="URI",
                    help="URI of the secret that holds the restart lease (default: beside the identity); `none` for a"
                    " single server.",
                ),
                click.option(
                    "--ready-timeout",
                    "agent_ready_timeout",
                    metavar="TIME",
                    help="Timeout for a started server to become ready (default: 1m).",
                ),
                click.option(
                    "--refresh-interval",
                    "settings_refresh_interval",
                    metavar="TIME",
                    help="How often to read the store (default: 30s).",
                ),
            ]
        ):
            function = option(function)
        return function

    return decorate


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
        front: Opens the door, or the agent's own address; None for neither.
        create: The flag --create.
        plain_file: The flag --plain-file.
        accept_identity: The flag --accept-identity.
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
    )
    return asyncio.run(running)
