"""`goatherd migrate`: bring a GoatDB cluster's identity into a store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from goatherd.cli.main import ANY_PATH, EXIT_FINDINGS, App, command
from goatherd.config.build import build_migration_target
from goatherd.errors import UnconfirmedError


@command(
    example="goatherd migrate /srv/goatdb --provider file:///srv/keys/{org}/root --dry-run\n"
    "goatherd migrate /srv/goatdb --provider file:///srv/keys/{org}/root --node http://10.0.0.2:8080 --remove-key",
    nodes=True,
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=ANY_PATH)
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@click.option(
    "--write-sessions/--no-write-sessions",
    default=True,
    help="Write sessions that are only in settings.json into the server's /sys/sessions log (default: yes).",
)
@click.option(
    "--only-server",
    is_flag=True,
    help="Confirm that no other server of the cluster was migrated before. The command then writes sessions without"
    " asking other servers for them.",
)
@click.option(
    "--root",
    "root_id",
    metavar="ID",
    help="Root that becomes the current root if the servers have different ones. The others stay trusted.",
)
@click.option(
    "--accept-roots",
    is_flag=True,
    help="Also trust roots that not every SOURCE lists, or that an only SOURCE lists beside its own (default: ask on a"
    " terminal).",
)
@click.option(
    "--remove-key/--keep-key",
    default=None,
    help="Remove settings.json after the identity was read back from the store (default: ask on a terminal).",
)
def migrate(
    app: App,
    sources: tuple[Path, ...],
    dry_run: bool,
    write_sessions: bool,
    only_server: bool,
    root_id: str | None,
    accept_roots: bool,
    remove_key: bool | None,
) -> int | None:
    """Bring a GoatDB cluster's identity into a store.

    SOURCE is a settings.json, the data directory of one organization, or a data directory with one subdirectory for
    each organization. Several SOURCEs are servers of one cluster. If these have different roots, nothing is written
    unless --root names the root that signs from now on. Stop each server whose SOURCE you give; the others can keep
    running.

    The command checks the key pair, removes private keys from the list of roots, looks for every trusted user session
    in the server's /sys/sessions log, reads the identity back from the store, and checks whether each --node accepts a
    request signed by its root. You can run it again: an identity that the store holds stays unchanged, except for a
    later expiration that a GoatDB server has given the root. If the store holds another identity, the command fails.

    A session that is only in settings.json is written into the logs of all servers as the same commit, since two
    different commits of one session crash GoatDB. If you migrate servers one at a time, name those that you migrated
    before, by --node or as SOURCE. If one of them cannot be asked, the command writes nothing. Give --only-server if
    there is no other server, or --no-write-sessions to leave these sessions out.

    An attacker who has broken into a server can add a root to its settings.json. So the command writes nothing if a
    SOURCE lists a root that the others do not list, until you confirm it with --accept-roots.
    """
    if root_id is not None and not write_sessions:
        raise click.UsageError("--root writes into the logs, so it cannot be combined with --no-write-sessions")
    from goatherd.cli.text.migration import kept_lines, migration_json, migration_lines, plan_lines
    from goatherd.operations.migrate import Migration, migrate_all, remove_keys, servers_rejecting_root

    target = build_migration_target(app.options)

    def run(*, accepts_roots: bool) -> Migration:
        return asyncio.run(
            migrate_all(
                target,
                sources,
                dry_run=dry_run,
                write_sessions=write_sessions,
                is_only_server=only_server,
                root_id=root_id,
                accepts_roots=accepts_roots,
                tell=lambda line: app.out.event("roots", {"message": line}, line),
            )
        )

    try:
        done = run(accepts_roots=accept_roots)
    except UnconfirmedError as error:
        if not app.out.may_ask:
            raise
        click.echo(f"{error}\n{error.hint}", err=True)
        # Not in the event loop, in which the first Ctrl-C would not end the question.
        click.confirm("Trust these roots?", abort=True, err=True)
        done = run(accepts_roots=True)
    lines = plan_lines(done, app.out) if done.is_dry else migration_lines(done)
    removed: list[str] = []
    if remove_key is None and done.removable and app.out.may_ask:
        app.out.result({}, lines)
        lines = []
        files = ", ".join(str(source.settings) for source, _ in done.removable)
        remove_key = click.confirm(f"Remove {files} from the disk now? The key is in the store.", err=True)
    if remove_key and not dry_run:
        removed = asyncio.run(remove_keys(target, done, confirmed=True))
        if servers_rejecting_root(done.proofs):
            lines.append("no file was removed, since a server rejects the root")
        lines += removed
    kept = done.find_kept_settings()
    app.out.result(migration_json(done, removed, kept), [*lines, *kept_lines(kept)])
    return EXIT_FINDINGS if servers_rejecting_root(done.proofs) else None
