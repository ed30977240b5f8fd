"""`goatherd scan`: search files, images and git histories for private keys."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import click

from goatherd.cli.main import ANY_PATH, EXIT_FINDINGS, EXIT_KEY_FOUND, App, command
from goatherd.cli.text.scan import sarif_document, scan_lines
from goatherd.config.build import is_store_named, listed_nodes, open_nodes, open_store
from goatherd.event_loop import run_reader
from goatherd.operations.scan import ScanReport, scan_paths


@command(
    example="goatherd scan .\n"
    "goatherd scan image.tar --provider file:///srv/keys/root --node http://10.0.0.1:8080\n"
    "goatherd scan --sarif . > goatherd.sarif",
    nodes=True,
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=ANY_PATH)
@click.option("--no-history", is_flag=True, help="Do not search the histories of git repositories.")
@click.option("--sarif", is_flag=True, help="Write the result as a SARIF document, for code scanning.")
def scan(app: App, paths: tuple[Path, ...], no_history: bool, sarif: bool) -> int:
    """Search files, images and git histories for private keys.

    PATH is a file, a pipe or a directory. Archives (tar, zip) and compressed files (gzip, bzip2, xz) are searched, too,
    so PATH can be an image: the file that `docker save` writes, an OCI layout, or a layer. If a directory is a git
    repository, every object of its history is searched, also those that no branch contains any more. A key is found in
    any file, as JSON or in base64, as in a Kubernetes Secret.

    The command reports whether servers accept what each key signs: the store and its older versions list roots, and
    each listed server is asked by a request signed with the key. A finding names a key by its root and the fingerprint
    of its public key. If others could read the key, deleting the file is not enough: revoke the root (`goatherd
    revoke`).

    The exit code is 15 if a key was found. Otherwise it is 11 if something could not be searched, such as a file that
    cannot be read or unpacked.
    """
    if sarif and app.out.as_json:
        raise click.UsageError("--sarif cannot be combined with --json")
    name = run_reader(lambda: _check_store(app))
    report = scan_paths(paths, with_history=not no_history)
    if report.findings:
        if listed_nodes(app.options):
            import asyncio  # a scan without servers needs no event loop

            asyncio.run(_judge_keys(app, report))
        else:
            run_reader(lambda: _judge_keys(app, report))
    if sarif:
        app.out.document(sarif_document(report))
    else:
        app.out.result({"store": name, **report.to_json()}, scan_lines(report))
    if report.findings:
        return EXIT_KEY_FOUND
    return EXIT_FINDINGS if report.unsearched else 0


async def _check_store(app: App) -> str | None:
    """Check, before the search, that the store can be read; return its name, or None if no store is named."""
    if not is_store_named(app.options):
        return None
    async with open_store(app.options, is_reader=True) as store:
        await store.read()
        return store.name


async def _judge_keys(app: App, report: ScanReport) -> None:
    """Find out which of the keys that were found are live."""
    from goatherd.operations.live_keys import ask_servers, compare_with_store  # most scans find no key

    async with AsyncExitStack() as stack:
        store = document = None
        if is_store_named(app.options):
            store = await stack.enter_async_context(open_store(app.options, is_reader=True))
            document = await compare_with_store(report, store)
        if listed_nodes(app.options):
            nodes = await stack.enter_async_context(open_nodes(app.options))
            await ask_servers(report, nodes, None if document is None else document.current)
