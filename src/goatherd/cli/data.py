"""`goatherd doctor --data`: check a server's data directory, or repair it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from goatherd.cli.main import EXIT_FINDINGS, App, PathType, command
from goatherd.cli.text.data import check_lines, repair_lines
from goatherd.config.build import open_peers, open_store
from goatherd.operations.data import check_data, repair_data


@command(
    example="goatherd doctor --data check /srv/goatdb --provider file:///srv/keys/root\n"
    "goatherd doctor --data repair /srv/goatdb --provider file:///srv/keys/root --peer http://10.0.0.2:8080",
)
@click.argument("action", type=click.Choice(["check", "repair"]), metavar="check|repair")
@click.argument("directory", type=PathType(path_type=Path, file_okay=False))
@click.option(
    "--peer",
    "serve_peers",
    multiple=True,
    metavar="URL",
    help="URL of another server of the cluster. Can be given more than once.",
)
@click.option(
    "--offline",
    is_flag=True,
    help="Do not read the store; verify with the roots in the data directory. Without roots nothing is verified.",
)
@click.option("--timeout", metavar="TIME", help="Timeout of one request to a server; at least 2m.")
def data(app: App, action: str, directory: Path, offline: bool) -> int:
    """Check a server's data directory, or repair it.

    `check` reads every log and changes nothing. It lists, with file and offset, each record that is damaged, is no
    commit, or has a signature that cannot be verified. It also lists conflicts: sessions that two commits in
    /sys/sessions, here or on a --peer, create with different contents. GoatDB crashes when it merges such commits.

    `repair` moves damaged lines to a file beside the log, whose name ends in .damaged, and fetches the commits again
    from the peers. It resolves a conflict with a merge commit, which it writes to the log and to each --peer. It
    deletes nothing, and does not write to a log in which check finds nothing. An interrupted repair is completed by the
    next.

    DIRECTORY is the data directory of a server, or the directory of one organization in it; the server can be
    Goatherd's or an unmodified GoatDB server. Stop it first. Signatures are verified with the identity in the store. If
    no store is given, the roots in the server's own files are used; if there are none, no signature is verified, and
    the command says so.

    The exit code is 11 if `check` finds something, if `repair` leaves something, or if a peer does not answer.
    """
    return asyncio.run(_data(app, action, directory, offline=offline))


async def _data(app: App, action: str, directory: Path, *, offline: bool) -> int:
    options = app.options
    org = options.org if "org" in options.origin else None
    is_store_named = options.provider is not None or options.cloud_config is not None
    opening = None if offline or not is_store_named else lambda name: open_store(options, org=name)
    # `check` uses the network only if --peer is given; peers in the configuration file are for `repair` and `serve`.
    has_peers = action == "repair" or options.origin.get("serve.peers") == "flag"
    async with open_peers(options, options.serve_peers if has_peers else ()) as peers:
        if action == "check":
            reports = await check_data(directory, org=org, open_store=opening, peers=peers)
            app.out.result({"organizations": [one.to_json() for one in reports]}, check_lines(reports, directory))
            return 0 if all(one.is_clean for one in reports) else EXIT_FINDINGS
        repairs = await repair_data(directory, org=org, open_store=opening, peers=peers)
        app.out.result({"organizations": [one.to_json() for one in repairs]}, repair_lines(repairs))
        return 0 if all(one.is_complete for one in repairs) else EXIT_FINDINGS
