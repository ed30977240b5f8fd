"""The commands that touch the store only, or only its address: init, migrate, export, show, versions, policy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from goatherd.cli.auditing import audit_option, audited
from goatherd.cli.main import EXIT_FINDINGS, App, PathType, command
from goatherd.cli.output import Output
from goatherd.clock import SystemClock
from goatherd.config.build import build_migration_target, build_policy, open_store
from goatherd.errors import IdentityExistsError
from goatherd.files import create_file, read_file, replace_file
from goatherd.identity.document import IdentityDocument
from goatherd.identity.redaction import redacted
from goatherd.identity.session import Session
from goatherd.identity.settings_json import to_settings
from goatherd.operations.identity_store import Store
from goatherd.plugins import policy_text
from goatherd.providers.values import CURRENT, shown_label, shown_labels
from goatherd.times import format_duration, iso

if TYPE_CHECKING:
    from goatherd.operations.labels import LabelChange


@command(example="goatherd init --provider file:///srv/keys/root")
@click.option("--lifetime", "rotation_lifetime", metavar="TIME", help="How long the root is valid (default: 180d).")
def init(app: App) -> None:
    """Create an identity in a store that has none.

    The command creates a root session with a new key and writes the first identity document. If the store already holds
    an identity, the command fails and changes nothing.
    """
    asyncio.run(_init(app))


async def _init(app: App) -> None:
    # Here, since the package of the rotation is more than the other commands of this module need.
    from goatherd.cli.text.rotation import warn_of_short_life
    from goatherd.operations.init import init_identity
    from goatherd.rotation.policy import check_lifetime

    policy = build_policy(app.options)
    check_lifetime(policy)
    warn_of_short_life(app.out, policy.lifetime)
    async with open_store(app.options) as store:
        version, document = await init_identity(store, policy)
    data = {"store": store.name, "storeVersion": version.id, "created": True, **redacted(document)}
    app.out.result(
        data,
        [
            f"created root {document.current.id} in {store.name} (version {version.id})",
            f"valid for {format_duration(policy.lifetime)}, until {iso(document.current.session.expiration_ms)}",
        ],
    )


@command(
    example="goatherd migrate /srv/goatdb --provider file:///srv/keys/{org}/root --dry-run\n"
    "goatherd migrate /srv/goatdb --provider file:///srv/keys/{org}/root --node http://10.0.0.2:8080 --remove-key",
    nodes=True,
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=PathType(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
@click.option(
    "--write-sessions/--no-write-sessions",
    default=True,
    show_default=True,
    help="Write sessions that only settings.json knows into the server's /sys/sessions log.",
)
@click.option(
    "--only-server",
    is_flag=True,
    help="State that no other server of the cluster was migrated before or may hold the same sessions.",
)
@click.option(
    "--root",
    "root_id",
    metavar="ID",
    help="Root that becomes the current root if the servers have different ones. The others stay trusted.",
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
    remove_key: bool | None,
) -> int | None:
    """Bring a GoatDB cluster's identity into a store.

    SOURCE is a settings.json, the data directory of one organization, or a data directory with one subdirectory for
    each organization. Several are several servers of one cluster. Where they have different roots, nothing is written
    unless --root names the one that signs from now on. The key pair is checked, private keys are taken out of the
    roots, and every trusted user session is looked for in that server's /sys/sessions log, where it belongs. Stop the
    server first. Afterwards the store is read back, and every --node that runs is asked whether it takes the key for
    its root, and which sessions it holds. Running it again is harmless: an identity that is there already is left as it
    is, another one is an error.

    A session that only settings.json knows is written into the log by the same commit on every server. When servers are
    migrated one at a time, name those that were migrated before, by --node or by their directories: such a session is
    copied from there. Without them the command refuses to write it.
    """
    if root_id is not None and not write_sessions:
        raise click.UsageError("--root writes into the logs; it does not go with --no-write-sessions")
    going = _migrate(
        app,
        sources,
        dry_run=dry_run,
        write_sessions=write_sessions,
        is_only_server=only_server,
        root_id=root_id,
        remove=remove_key,
    )
    return asyncio.run(going)


async def _migrate(
    app: App,
    sources: tuple[Path, ...],
    *,
    dry_run: bool,
    write_sessions: bool,
    is_only_server: bool,
    root_id: str | None,
    remove: bool | None,
) -> int | None:
    from goatherd.cli.text.migration import outcome_lines, proof_line
    from goatherd.operations.migrate import migrate_all, remove_keys, servers_rejecting_root

    target = build_migration_target(app.options)
    done = await migrate_all(
        target,
        sources,
        dry_run=dry_run,
        write_sessions=write_sessions,
        is_only_server=is_only_server,
        root_id=root_id,
        tell=lambda line: app.out.event("roots", {"message": line}, line),
    )
    lines = [line for outcome in done.outcomes for line in outcome_lines(outcome)]
    lines += [proof_line(proof) for proof in done.proofs]
    refused = servers_rejecting_root(done.proofs)
    removed: list[str] = []
    if remove is None and done.removable and app.out.may_ask:
        app.out.result({}, lines)
        lines = []
        files = ", ".join(str(source.settings) for source, _ in done.removable)
        remove = click.confirm(f"Remove {files} from the disk now? The key is in the store.", default=False)
    if remove and not dry_run:
        removed = await remove_keys(target, done)
        lines += removed or ["nothing was removed, since a server does not know this key"]
    kept = [] if dry_run else [str(outcome.settings) for outcome in done.outcomes if outcome.settings.exists()]
    lines += [f"{file} still holds the private key: remove it once the server starts from the store" for file in kept]
    data = {
        "dryRun": dry_run,
        "organizations": [outcome.to_json() for outcome in done.outcomes],
        "nodes": [proof.to_json() for proof in done.proofs],
        "removed": removed,
        "stillOnDisk": kept,
    }
    app.out.result(data, lines)
    return EXIT_FINDINGS if refused else None


@command(example="goatherd export settings.json --provider file:///srv/keys/root --data /srv/goatdb/localhost")
@click.argument("file", type=PathType(path_type=Path, dir_okay=False))
@click.option(
    "--data",
    type=PathType(path_type=Path, file_okay=False),
    help="Data directory of the server; sessions of its /sys/sessions log become `trustedSessions`.",
)
@click.option("--replace", is_flag=True, help="Overwrite FILE, including the private key in it.")
@click.option("--unsafe-short-life", is_flag=True, help="Allow a root with less than 15 days left.")
def export(app: App, file: Path, data: Path | None, replace: bool, unsafe_short_life: bool) -> None:
    """Write the identity as a GoatDB settings.json.

    The command writes FILE atomically, readable by its owner only. FILE holds only what a GoatDB server reads, and
    never the key of the next root. The command rejects a root with less than 15 days left, because a GoatDB server
    would extend it automatically and then expose its private key to unauthenticated requests.
    """
    asyncio.run(_export(app, file, data, replace=replace, unsafe_short_life=unsafe_short_life))


async def _export(app: App, file: Path, data: Path | None, *, replace: bool, unsafe_short_life: bool) -> None:
    async with open_store(app.options) as store:
        version, document = await store.read()
    sessions: tuple[Session, ...] = ()
    if data is not None:
        from goatherd.operations.migrate import verified_sessions

        sessions = verified_sessions(data, document, store.org)
    text = to_settings(document, sessions, now_ms=None if unsafe_short_life else SystemClock().now_ms())
    write_settings(file, text, replace=replace)
    shape = {
        "file": str(file),
        "version": version.id,
        "current": document.current.id,
        "roots": len(document.roots),
        "trustedSessions": len(sessions),
    }
    app.out.result(
        shape,
        [f"wrote {file}: root {document.current.id}, {len(document.roots)} roots, {len(sessions)} user sessions"],
    )


def write_settings(file: Path, text: bytes, *, replace: bool) -> None:
    """Write a file that holds a key: mode 0600, whole or not at all. The same content again is no change.

    Raises:
        IdentityExistsError: There is another file, and `replace` is False.
    """
    if replace:
        replace_file(file, text)
        return
    try:
        create_file(file, text)
    except IdentityExistsError as error:
        if read_file(file) == text:
            return
        error.hint = "It was not touched. --replace overwrites it, and the key in it."
        raise


@command(example="goatherd show --provider file:///srv/keys/root\ngoatherd show --at stable --json")
@click.option("--at", metavar="LABEL|VERSION", help="Label or version to show (default: current).")
def show(app: App, at: str | None) -> None:
    """Show the identity, without its keys."""
    asyncio.run(_show(app, at))


async def _show(app: App, at: str | None) -> None:
    async with open_store(app.options) as store:
        version, document = await store.read(CURRENT if at is None else await store.find(at))
    data = {"store": store.name, "storeVersion": version.id, "labels": sorted(version.labels), **redacted(document)}
    app.out.result(data, describe(app.out, store, version.id, document))


def _signature_text(document: IdentityDocument) -> str:
    if document.is_signed:
        return "by the current root"
    if document.signature is None:
        return "none: the next write signs the document, unless a signed one was seen before"
    return "does not hold: `goatherd sign` shows what changed since"


def describe(out: Output, store: Store, version: str, document: IdentityDocument) -> list[str]:
    """Return what people are shown of an identity: ids, fingerprints and times."""
    shown = redacted(document)
    lines = [
        f"store       {store.name}, version {version}",
        f"generation  {document.generation}, last written {shown['lastUpdated'] or 'at an unknown time'}",
        f"phase       {shown['phase']}",
        f"signature   {_signature_text(document)}",
    ]
    if document.rotation is not None:
        record = document.rotation
        lines.append(f"rotation    {record.id}: {record.from_id} -> {record.to_id}")
        lines.append(f"            started {iso(record.started_at)} by {record.started_by}")
    if document.rotated_from is not None:
        lines.append(f"replaced    {document.rotated_from} at {shown['rotatedAt']}")
    rows = []
    for root in shown["roots"]:
        state = "signs" if root["id"] == document.current.id else "trusted"
        if document.next is not None and root["id"] == document.next.id:
            state = "next"
        if root["revoked"]:
            state = "REVOKED"
        rows.append((root["id"], state, root["fingerprint"], root["expiration"]))
    lines += ["", *out.table(("ROOT", "STATE", "FINGERPRINT", "EXPIRES"), rows)]
    if document.pruned:
        noun = "root is" if document.pruned == 1 else "roots are"
        lines.append(f"{document.pruned} earlier {noun} kept in /sys/sessions, and trusted by introductions there")
    return lines


@command(
    example="goatherd versions --provider file:///srv/keys/root\n"
    "goatherd versions label before-upgrade current --provider file:///srv/keys/root\n"
    "goatherd versions unlabel before-upgrade --provider file:///srv/keys/root"
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
            raise click.UsageError("label needs a label and a version: goatherd versions label LABEL VERSION")
        asyncio.run(_relabel(app, label, version))
        return
    if action == "unlabel":
        if label is None or version is not None:
            raise click.UsageError("unlabel needs one label: goatherd versions unlabel LABEL")
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


@command(
    example="goatherd policy aws --role server aws://eu-west-1/goatdb/prod/root\n"
    "goatherd policy vault --role rotator secret/goatdb/root | vault policy write goatherd-rotator -"
)
@click.argument("platform", metavar="PROVIDER")
@click.argument("secret", required=False)
@click.option(
    "--role",
    type=click.Choice(["server", "rotator", "admin"]),
    required=True,
    help="Role to print rights for: a server reads, a rotator rotates, an admin also creates and deletes.",
)
def policy(app: App, platform: str, secret: str | None, role: str) -> None:
    """Print the store permissions that a server or a rotator needs.

    PROVIDER is a URI's scheme, such as aws, gcp, azure, vault, k8s or file. SECRET is the secret's address; without
    one, the configured store. The command prints exactly the permissions that the role needs. It contacts no store,
    changes nothing and needs no SDK.
    """
    address = secret or app.options.provider
    if not address:
        raise click.UsageError("no secret is named; give its address, such as aws://eu-west-1/goatdb/prod/root")
    text = policy_text(platform, role, address)
    app.out.result(
        {"provider": platform, "role": role, "secret": address, "policy": text}, text.removesuffix("\n").split("\n")
    )
