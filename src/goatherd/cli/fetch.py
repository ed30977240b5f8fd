"""`goatherd run --once`: write a GoatDB server's settings.json once, then exit."""

from __future__ import annotations

import asyncio

from goatherd.cli.agent_options import directory_options
from goatherd.cli.main import App, command
from goatherd.cli.process import log_to_stderr
from goatherd.config.build_servers import build_organizations, build_server_files, chosen_organizations


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

    Use it in an init container, or before another program starts the server. Stop the server first: a running server
    would overwrite the file. The file stays until you remove it or its tmpfs is unmounted.
    """
    from goatherd.operations.run_agent import fetch_settings

    log_to_stderr(log_level)
    named = chosen_organizations(app.options, orgs)
    files = build_server_files(app.options, named, creates=create, plain_file=plain_file)
    organizations, _ = build_organizations(app.options, files, accept_identity=accept_identity)
    written = asyncio.run(fetch_settings(files, organizations))
    data = {"organizations": [{"org": one.org, "file": str(one.file), "current": one.current_id} for one in written]}
    app.out.result(data, [f"wrote {one.file}: root {one.current_id}" for one in written])
