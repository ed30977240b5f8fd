"""goatherd versions: list the stored versions and their labels, or move a label."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from goatherd.cli.auditing import audit_option, audited
from goatherd.cli.main import App, command
from goatherd.config.build import open_store
from goatherd.providers.values import shown_label, shown_labels
from goatherd.times import iso

if TYPE_CHECKING:
    from goatherd.operations.labels import LabelChange


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

    list, the default action, shows the newest version first. It reads no values.

    label adds LABEL to a version, or moves it there. VERSION is an id, or a label of the version. unlabel removes
    LABEL, whichever tool has set it. `retire` and `controller` never destroy a version with a label. Only rotations
    move the labels `current` and `stable`.
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
    asyncio.run(_versions(app))


async def _relabel(app: App, label: str, version: str | None) -> None:
    from goatherd.operations.labels import check_custom_label, check_removable_label, move_label, remove_label

    check_removable_label(label) if version is None else check_custom_label(label)
    async with open_store(app.options) as store:
        asked = {"action": "unlabel" if version is None else "label", "label": label, "version": version}
        async with audited(app, store, "versions", asked) as journal:
            if version is None:
                change = await remove_label(store.provider, store.secret_id, label)
            else:
                change = await move_label(store.provider, store.secret_id, label, version)
            if change.is_change:
                journal.note("label-moved", {"label": change.label, "from": change.before, "to": change.after})
    data = {
        "store": store.name,
        "label": change.label,
        "from": change.before,
        "to": change.after,
        "changed": change.is_change,
    }
    app.out.result(data, [_label_line(change)])


def _label_line(change: LabelChange) -> str:
    label = shown_label(change.label)
    if not change.is_change:
        where = "no version holds it" if change.after is None else f"version {change.after} holds it already"
        return f"label {label}: {where}; nothing was changed"
    if change.after is None:
        return f"label {label}: taken off version {change.before}"
    if change.before is None:
        return f"label {label}: put on version {change.after}"
    return f"label {label}: moved from version {change.before} to version {change.after}"


async def _versions(app: App) -> None:
    async with open_store(app.options) as store:
        found = await store.versions()
    data = {
        "store": store.name,
        "versions": [
            {
                "id": version.id,
                "created": iso(version.created_ms),
                "labels": sorted(version.labels),
                "state": version.state.value,
                "leftover": version.is_leftover,
            }
            for version in found
        ],
    }
    rows = [
        (version.id, iso(version.created_ms), version.state.value, shown_labels(version.labels)) for version in found
    ]
    lines = app.out.table(("VERSION", "CREATED", "STATE", "LABELS"), rows)
    if left := [version.id for version in found if version.is_leftover]:
        lines.append(
            f"left by an interrupted change: {' '.join(left)}; `goatherd retire` destroys them when their keys are due"
        )
    app.out.result(data, lines)
