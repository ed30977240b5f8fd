"""`goatherd show --versions`: list the stored versions and their labels, or move a label."""

from __future__ import annotations

import asyncio

import click

from goatherd.cli.main import App, command
from goatherd.cli.shared_options import audit_log, audit_option
from goatherd.cli.text.versions import label_line, versions_json, versions_lines
from goatherd.config.build import open_store
from goatherd.operations.labels import change_label


@command(
    example="goatherd show --versions --provider file:///srv/keys/root\n"
    "goatherd show --versions label before-upgrade current --provider file:///srv/keys/root\n"
    "goatherd show --versions unlabel before-upgrade --provider file:///srv/keys/root"
)
@click.argument("action", required=False, type=click.Choice(["list", "label", "unlabel"]), metavar="[list]")
@click.argument("label", required=False, metavar="| label LABEL VERSION")
@click.argument("version", required=False, metavar="| unlabel LABEL")
@audit_option()
def versions(app: App, action: str | None, label: str | None, version: str | None) -> None:
    """List the stored versions and their labels, or move a label.

    `list`, the default action, lists the versions, newest first, without reading their values.

    `label` adds LABEL to a version, or moves LABEL there from another version. VERSION is an id or another label
    of the version. `unlabel` removes LABEL from its version, even if another tool has set LABEL. `retire` and
    `controller` never destroy a version with such a label. Only rotations move the labels `current` and `stable`.
    """
    if action == "label":
        if label is None or version is None:
            raise click.UsageError("label needs a label and a version: goatherd show --versions label LABEL VERSION")
        asyncio.run(_relabel(app, label, version))
        return
    if action == "unlabel":
        if label is None or version is not None:
            raise click.UsageError("unlabel needs one label: goatherd show --versions unlabel LABEL")
        asyncio.run(_relabel(app, label, None))
        return
    if label is not None:
        raise click.UsageError(f"list takes no argument, but {label!r} was given")
    asyncio.run(_list(app))


async def _relabel(app: App, label: str, version: str | None) -> None:
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


async def _list(app: App) -> None:
    async with open_store(app.options) as store:
        found = await store.versions()
    app.out.result({"store": store.name, "versions": versions_json(found)}, versions_lines(found, app.out))
