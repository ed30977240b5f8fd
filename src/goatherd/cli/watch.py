"""`goatherd run --watch`: keep settings.json up to date for a server that another program runs."""

from __future__ import annotations

from pathlib import Path

import click

from goatherd.cli.agent_options import change_options, directory_options, run_for_server
from goatherd.cli.main import App, PathType, command
from goatherd.cli.process import log_to_stderr
from goatherd.config.build_servers import (
    chosen_organizations,
)


@command(
    example="goatherd run --watch --data /srv/goatdb --memory /run/goatdb-keys --on-change signal --signal TERM"
    " --pid-file /run/goatdb.pid\n"
    'goatherd run --watch --data /srv/goatdb --on-change command --command "systemctl restart goatdb"',
    orgs=True,
)
@directory_options
@change_options(["signal", "command", "ignore"])
@click.option(
    "--pid-file", type=PathType(path_type=Path), help="File with the server's process id, for --on-change signal."
)
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

    Use it as a sidecar. The agent writes settings.json when it starts and when the identity changes; the agents of a
    cluster do so one at a time. After a change, the agent restarts the server with a signal or a command, and waits
    until the server signs with the new root. If the server does not, the agent writes the previous root again. The file
    stays when the agent exits, because the server may need it for its next start.
    """
    log_to_stderr(log_level)
    options, named = app.options, chosen_organizations(app.options, orgs)
    if "agent.on_change" not in options.origin or options.agent_on_change == "restart":
        raise click.UsageError("--on-change is missing: how to notify the server (signal, command or ignore)")
    if options.agent_on_change == "signal" and pid_file is None:
        raise click.UsageError("--on-change signal needs --pid-file FILE")
    return run_for_server(
        app,
        named,
        supervisor=None,
        pid_file=pid_file,
        create=create,
        plain_file=plain_file,
        accept_identity=accept_identity,
    )
