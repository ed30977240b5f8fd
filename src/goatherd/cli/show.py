"""`goatherd show`: show the identity, without its keys, or with --versions the stored versions and their labels."""

from __future__ import annotations

import click

from goatherd.cli.main import App, audit_log, audit_option, command
from goatherd.cli.text.identity import identity_lines, label_line, versions_json, versions_lines
from goatherd.clock import SystemClock
from goatherd.config.build import open_store
from goatherd.event_loop import run_reader
from goatherd.identity.redaction import redact_document
from goatherd.providers.values import CURRENT


@command(example="goatherd show --provider file:///srv/keys/root\ngoatherd show --at stable --json")
@click.option("--at", metavar="LABEL|VERSION", help="Label or version to show (default: current).")
def show(app: App, at: str | None) -> None:
    """Show the identity, without its keys."""
    run_reader(lambda: _show_identity(app, at))


async def _show_identity(app: App, at: str | None) -> None:
    async with open_store(app.options, is_reader=True) as store:
        version, document = await store.read(CURRENT if at is None else await store.find(at))
    data = {
        "store": store.name,
        "storeVersion": version.id,
        "labels": sorted(version.labels),
        **redact_document(document),
    }
    app.out.result(data, identity_lines(app.out, store.name, version.id, document, SystemClock().now_ms()))


@command(
    example="goatherd show --versions --provider file:///srv/keys/root\n"
    "goatherd show --versions label before-upgrade current --provider file:///srv/keys/root\n"
    "goatherd show --versions unlabel before-upgrade --provider file:///srv/keys/root"
)
@click.argument("action", required=False, type=click.Choice(["list", "label", "unlabel"]), metavar="[list]")
@click.argument("label", required=False, metavar="| label LABEL VERSION")
@click.argument("version", required=False, metavar="| unlabel LABEL")
@audit_option
def versions(app: App, action: str | None, label: str | None, version: str | None) -> None:
    """List the stored versions and their labels, or move a label.

    `list`, the default action, lists the versions, newest first, without reading their values.

    `label` adds LABEL to a version, or moves LABEL there from another version. VERSION is an id or another label
    of the version. `unlabel` removes LABEL from its version, even if another tool has set LABEL. `retire` and
    `controller` never destroy a version with a label other than `current` and `stable`; only rotations move these.
    """
    # Imported here, because to show the identity of a file store needs no event loop.
    import asyncio

    from goatherd.cli.process import run_interruptible

    if action == "label":
        if label is None or version is None:
            raise click.UsageError("label needs a label and a version: goatherd show --versions label LABEL VERSION")
        run_interruptible(app, _move_label(app, label, version), note="")
        return
    if action == "unlabel":
        if label is None or version is not None:
            raise click.UsageError("unlabel needs one label: goatherd show --versions unlabel LABEL")
        run_interruptible(app, _move_label(app, label, None), note="")
        return
    if label is not None:
        raise click.UsageError(f"list takes no argument, but {label!r} was given")
    asyncio.run(_list_versions(app))


async def _move_label(app: App, label: str, version: str | None) -> None:
    from goatherd.operations.labels import change_label

    async with open_store(app.options) as store:
        change = await change_label(store, label, version, audit_log=audit_log(app))
    data = {
        "store": store.name,
        "label": change.label,
        "from": change.before,
        "to": change.after,
        "changed": change.is_change,
    }
    app.out.result(data, [label_line(change)])


async def _list_versions(app: App) -> None:
    async with open_store(app.options, is_reader=True) as store:
        found = await store.versions()
    app.out.result({"store": store.name, "versions": versions_json(found)}, versions_lines(found, app.out))
