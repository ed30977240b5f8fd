"""`goatherd door`: run a verifying proxy in front of an unmodified GoatDB server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from goatherd.cli.main import (
    PORT,
    App,
    add_options,
    checked,
    command,
    forwarded_by_option,
    idle_timeout_option,
    region_option,
)
from goatherd.cli.process import log_level_option, log_to_stderr, run_fast
from goatherd.config.build_servers import build_door, build_store_settings
from goatherd.operations.serve import require_node_extra
from goatherd.serving.server_url import parse_listen_host, parse_server_url

if TYPE_CHECKING:
    from goatherd.door.door import Door


door_options = add_options(
    click.option(
        "--public-url",
        metavar="URL",
        callback=checked(parse_server_url),
        help="Public URL, at which clients reach the door. The door writes it into answers in place of the server's own"
        " address.",
    ),
    click.option(
        "--private",
        is_flag=True,
        help="Accept writes to /sys/* only from roots, and writes to /user/ID only from roots and that user.",
    ),
    forwarded_by_option,
    idle_timeout_option,
)
"""The options that `goatherd door` and `goatherd run --door` have in common."""


@command(
    example="goatherd door --upstream http://127.0.0.1:8081 --provider file:///srv/keys/root --port 8080\n"
    "goatherd door --upstream http://127.0.0.1:8081 --port 8080 --public-url https://goats.example --private"
)
@click.option(
    "--upstream",
    metavar="URL",
    required=True,
    callback=checked(parse_server_url),
    help="URL of the GoatDB server behind the door. Make sure that clients and other doors cannot reach this URL.",
)
@click.option(
    "--host",
    "door_host",
    metavar="ADDRESS",
    default="127.0.0.1",
    callback=checked(parse_listen_host),
    help="Address to listen on (default: 127.0.0.1).",
)
@click.option(
    "--port",
    "door_port",
    metavar="N",
    type=PORT,
    default=8080,
    help="Port to listen on; 0 takes a free one (default: 8080).",
)
@door_options
@region_option
@log_level_option
def door(
    app: App,
    *,
    upstream: str,
    door_host: str,
    door_port: int,
    public_url: str | None,
    private: bool,
    log_level: str,
) -> None:
    """Run a verifying proxy in front of an unmodified GoatDB server.

    The door removes private keys from the server's answers, rejects requests that the server would wrongly accept or
    that would crash it, limits sizes and rates, and forwards everything else. It prints one line when it accepts
    connections; the server need not run yet. A second SIGTERM or Ctrl-C makes it stop at once. `goatherd run --door
    PORT` starts a server and its door together.
    """
    require_node_extra()
    log_to_stderr(log_level, others="warning" if log_level == "info" else log_level)

    from goatherd.operations.run_door import run_door

    def print_ready(opened: Door) -> None:
        data = {"url": opened.url, "upstream": upstream, "org": app.options.org}
        app.out.ready(data, f"ready at {opened.url}: a door in front of {upstream}, organization {app.options.org}")

    make_door = build_door(
        app.options, upstream, host=door_host, port=door_port, public_url=public_url, private=private
    )
    run_fast(run_door(make_door, build_store_settings(app.options), app.options.org, on_ready=print_ready))
