"""goatherd fetch: write a GoatDB server's settings.json once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from goatherd.cli.agent_options import directory_options
from goatherd.cli.agent_parts import AgentPlan, fetch_settings
from goatherd.cli.main import App, command
from goatherd.cli.process import log_to_stderr

if TYPE_CHECKING:
    pass


@command(
    example="goatherd fetch --provider k8s://prod/goatdb-root --data /srv/goatdb --memory /run/goatdb-keys\n"
    "goatherd fetch --provider file:///srv/keys/{org}/root --data /srv/goatdb --org a --org b",
    orgs=True,
)
@directory_options
def fetch(
    app: App, orgs: tuple[str, ...], create: bool, plain_file: bool, accept_identity: bool, log_level: str
) -> None:
    """Write a GoatDB server's settings.json once, then exit.

    For an init container, or before another program starts the server. The server must not run: it would overwrite the
    file. The file stays until you remove it or its tmpfs is unmounted.
    """
    log_to_stderr(log_level)
    plan = AgentPlan(app.options, orgs, create=create, plain_file=plain_file, accept_identity=accept_identity)
    written = asyncio.run(fetch_settings(plan))
    data = {"organizations": [{"org": org, "file": file, "current": current} for org, file, current in written]}
    app.out.result(data, [f"wrote {file}: root {current}" for _, file, current in written])
