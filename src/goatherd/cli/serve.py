"""`goatherd serve`: run a GoatDB server that takes its identity from a store."""

from __future__ import annotations

import click

from goatherd.cli.main import (
    ANY_PATH,
    DIRECTORY,
    App,
    accept_identity_option,
    command,
    config_flag,
    forwarded_by_option,
    idle_timeout_option,
    peers_option,
    refresh_interval_option,
    region_option,
)
from goatherd.cli.process import log_level_option, log_to_stderr, run_fast
from goatherd.config.build_servers import build_identity_opener, build_server, served_directory
from goatherd.operations.serve import ServerReady, require_node_extra, serve_organization


@command(
    example="goatherd serve --data /srv/goatdb --port 8080 --provider file:///srv/keys/root --peer http://10.0.0.2:8080\n"
    "goatherd serve --data /srv/goatdb --settings /srv/goatdb/localhost/settings.json"
)
@config_flag("--data", "serve_data", "Data directory of the server.", kind=DIRECTORY)
@click.option(
    "--create", is_flag=True, help="Create the data directory, and the organization's directory in it, if missing."
)
@config_flag("--host", "serve_host", metavar="ADDRESS")
@config_flag("--port", "serve_port")
@config_flag("--public-url", "serve_public_url")
@peers_option
@config_flag(
    "--root-signer",
    "signers",
    "URI of an HSM or KMS key with which the server may sign as the root, in direct mode.",
)
@config_flag("--settings", "serve_settings", kind=ANY_PATH)
@refresh_interval_option
@accept_identity_option
@forwarded_by_option
@idle_timeout_option
@region_option
@log_level_option
def serve(app: App, create: bool, accept_identity: bool, log_level: str) -> None:
    """Run a GoatDB server that takes its identity from a store.

    The server prints one line when it is ready. After SIGTERM or Ctrl-C it finishes the requests in progress and
    flushes its data; a second signal makes it stop sooner. It never creates an identity. After a restart it rejects an
    identity that is older than the one it used, or unrelated to it. Access rules that a GoatDB application registers do
    not apply: every session can read and write every repository except /sys/* and /user/ID.

    In direct mode the root's key is in an HSM or a KMS: name its signer with --root-signer.

    The data directory must exist, and be empty or hold the organization's data; --create creates what is missing. Data
    of a GoatDB server must belong to the identity in the store.
    """
    require_node_extra()
    options = app.options
    data = served_directory(options)
    # At INFO, libraries write a line for each request.
    log_to_stderr(log_level, others="warning" if log_level == "info" else log_level)

    def print_ready(ready: ServerReady) -> None:
        data = {"url": ready.url, "org": ready.org, "signer": ready.signer}
        app.out.ready(data, f"ready at {ready.url}: organization {ready.org}, root {ready.signer} signs")

    serving = serve_organization(
        build_server(options, accept_identity=accept_identity),
        data,
        options.org,
        creates=create,
        host=options.serve_host,
        port=options.serve_port,
        on_ready=print_ready,
        open_store=None if accept_identity else build_identity_opener(options),
    )
    run_fast(serving)
