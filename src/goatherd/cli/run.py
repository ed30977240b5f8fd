"""`goatherd run`: run an unmodified GoatDB server with its identity from a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from goatherd.cli.agent_options import change_options, directory_options, run_for_server
from goatherd.cli.main import PORT, App, command
from goatherd.cli.process import log_to_stderr
from goatherd.config.build_servers import (
    build_child_environment,
    build_door,
    build_own_address,
    chosen_organizations,
)
from goatherd.operations.serve import require_node_extra
from goatherd.providers.values import ORG_FIELD

if TYPE_CHECKING:
    from goatherd.agent.agent import Front


@command(
    example="goatherd run --provider file:///srv/keys/root --data /srv/goatdb -- deno run -A server.ts\n"
    "goatherd run --provider vault://vault:8200/secret/{org} --data /srv/goatdb --org a --org b -- node server.js",
    orgs=True,
)
@directory_options
@change_options(["restart", "signal", "command", "ignore"])
@click.option(
    "--stop-signal",
    "agent_stop_signal",
    metavar="NAME",
    help="Signal that stops the server for a restart (default: TERM).",
)
@click.option(
    "--grace",
    "agent_grace",
    metavar="TIME",
    help="How long a server may take to stop before it is killed (default: 30s).",
)
@click.option(
    "--crashes",
    "agent_crashes",
    metavar="N",
    help="How many times in a row to restart a server that crashed (default: 5).",
)
@click.option(
    "--pass-env",
    "agent_pass_env",
    multiple=True,
    metavar="NAME",
    help="Environment variable with a store credential to pass to the server. Can be given more than once.",
)
@click.option(
    "--door",
    metavar="PORT",
    type=PORT,
    help="Port on which to start a door (a verifying proxy) in front of the server.",
)
@click.option(
    "--door-host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address on which the door listens."
)
@click.option("--public-url", metavar="URL", help="URL at which clients reach the door.")
@click.option(
    "--private",
    is_flag=True,
    help="Reject writes through the door to /sys/* unless by a root, and to /user/ID unless by a root or that user.",
)
@click.option(
    "--forwarded-by",
    "limits_forwarded_by",
    multiple=True,
    metavar="NETWORK",
    help="Network of a proxy in front, whose X-Forwarded-For header is used. Can be given more than once.",
)
@click.option(
    "--agent-port",
    metavar="PORT",
    type=PORT,
    help="Port on which the agent reports its state to `status --node`, if there is no door.",
)
@click.option(
    "--agent-host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address on which the agent listens with --agent-port.",
)
@click.argument("child", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    app: App,
    orgs: tuple[str, ...],
    child: tuple[str, ...],
    door: int | None,
    door_host: str,
    public_url: str | None,
    private: bool,
    agent_port: int | None,
    agent_host: str,
    create: bool,
    plain_file: bool,
    accept_identity: bool,
    log_level: str,
) -> int:
    """Run an unmodified GoatDB server with its identity from a store.

    This command is the server's agent: it writes settings.json to a tmpfs, links to it from the data directory, and
    starts COMMAND. When the identity changes, the agent restarts the server; the agents of a cluster do so one at a
    time. If the server is not ready with the new root, the agent restarts it with the previous root. After every start,
    the agent checks with an unauthenticated request whether the server exposes its private key, and stops the server if
    it does. After SIGTERM or Ctrl-C the exit code is 0 if the server stopped in time; otherwise it is the server's exit
    code, or 128 plus the number of the signal that ended the server.

    --door starts a verifying proxy in front of the server; see `goatherd door`.
    """
    from goatherd.agent import Supervisor
    from goatherd.agent.child_process import find_command

    log_to_stderr(log_level)
    find_command(child)
    options, named = app.options, chosen_organizations(app.options, orgs)
    supervisor = Supervisor(child, environ=build_child_environment(options), grace=options.agent_grace)
    url = options.agent_url.replace(ORG_FIELD, named[0])
    front: Front | None = None
    if agent_port is not None:
        if door is not None:
            raise click.UsageError("--agent-port does not go with --door: the door's address is the agent's, too")
        require_node_extra()
        front = build_own_address(url, host=agent_host, port=agent_port)
    if door is not None:
        require_node_extra()
        from goatherd.operations.run_door import door_of_agent

        setup = build_door(options, url, host=door_host, port=door, public_url=public_url, private=private)
        front = door_of_agent(setup)
    elif public_url is not None or private or options.origin.get("limits.forwarded_by") == "flag":
        raise click.UsageError("--public-url, --private and --forwarded-by need --door PORT")
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
