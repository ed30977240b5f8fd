"""`goatherd scan`: search files, images and git histories for private keys."""

from __future__ import annotations

from pathlib import Path

import click

from goatherd.cli.main import ANY_PATH, EXIT_FINDINGS, EXIT_KEY_FOUND, App, command
from goatherd.cli.text.scan import sarif_document, scan_lines
from goatherd.config.build import is_store_named, open_store
from goatherd.event_loop import run_reader
from goatherd.identity.document import IdentityDocument
from goatherd.operations.scan import compare_with_identity, scan_paths


@command(
    example="goatherd scan .\n"
    "goatherd scan image.tar --provider file:///srv/keys/root\n"
    "goatherd scan --sarif . > goatherd.sarif",
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

    If a store is named, the command reports whether servers accept what each key signs. A finding names a key by its
    root and the fingerprint of its public key. If others could read the key, deleting the file is not enough: revoke
    the root (`goatherd revoke`).

    The exit code is 15 if a key was found. Otherwise it is 11 if something could not be searched, such as a file that
    cannot be read or unpacked.
    """
    if sarif and app.out.as_json:
        raise click.UsageError("--sarif cannot be combined with --json")
    name, document = run_reader(lambda: _read_identity(app))
    report = scan_paths(paths, with_history=not no_history)
    if document is not None:
        compare_with_identity(report, document)
    if sarif:
        app.out.document(sarif_document(report))
    else:
        app.out.result({"store": name, **report.to_json()}, scan_lines(report))
    if report.findings:
        return EXIT_KEY_FOUND
    return EXIT_FINDINGS if report.unsearched else 0


async def _read_identity(app: App) -> tuple[str | None, IdentityDocument | None]:
    """Return the name of the store and the identity in it; None if no store is named."""
    if not is_store_named(app.options):
        return None, None
    async with open_store(app.options, is_reader=True) as store:
        _, document = await store.read()
        return store.name, document
