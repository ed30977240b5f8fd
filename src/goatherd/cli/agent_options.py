"""Options that `goatherd run`, `fetch` and `watch` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from goatherd.cli.main import PathType
from goatherd.cli.process import log_level_option

if TYPE_CHECKING:
    pass


Decorator = Callable[[Callable[..., int | None]], Callable[..., int | None]]


def directory_options(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options that say where the file goes and where it comes from."""
    for option in reversed(
        [
            click.option(
                "--data",
                "agent_data",
                type=PathType(path_type=Path, file_okay=False),
                help="Data directory of the server.",
            ),
            click.option(
                "--create", is_flag=True, help="Create the data directory, or an organization's in it, if missing."
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
                help="Follow the store, once, to an identity that no trusted root has endorsed, or that goes back.",
            ),
            log_level_option("info"),
        ]
    ):
        function = option(function)
    return function


def change_options(ways: Sequence[str]) -> Decorator:
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
                    help="Signal to send with --on-change signal (default: HUP).",
                ),
                click.option(
                    "--command", "agent_command", metavar="TEXT", help="Command to run with --on-change command."
                ),
                click.option(
                    "--lease",
                    "agent_lease",
                    metavar="URI",
                    help="Secret that holds the restart lease (default: beside the identity); `none` for one server.",
                ),
                click.option(
                    "--ready-timeout",
                    "agent_ready_timeout",
                    metavar="TIME",
                    help="How long a started server may take until it is ready (default: 1m).",
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
