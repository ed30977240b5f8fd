"""The command that signs an identity whose signature does not hold, or takes back what changed: sign."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from goatherd.cli.auditing import audit_option, audited
from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.rotate import distrust_option
from goatherd.clock import SystemClock
from goatherd.cluster.discovery import NodeDirectory
from goatherd.cluster.observer import Observer
from goatherd.config.build import build_policy, open_store
from goatherd.identity.document import IdentityDocument
from goatherd.operations.identity_store import Store
from goatherd.operations.signing import Examined, SignatureState, examine_signature, sign_current, sign_earlier
from goatherd.rotation.history_check import check_distrusted

_STATES = {
    SignatureState.VALID: "the current root has signed it",
    SignatureState.MISSING: "it has no signature",
    SignatureState.OUTDATED: "a tool that does not sign has written since it was signed",
    SignatureState.INVALID: "it is not what was signed: it was altered in the store",
}


@command(
    example="goatherd restore --signature --provider file:///srv/keys/root\n"
    "goatherd restore --signature --accept --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080",
    nodes=True,
)
@click.option("--accept", is_flag=True, help="Sign the identity that the store holds, and write it.")
@click.option("--take-back", is_flag=True, help="Write the last signed version again.")
@distrust_option()
@audit_option()
def sign(app: App, accept: bool, take_back: bool) -> int:
    """Sign an identity whose signature is invalid, or undo the change.

    Every command that writes the identity signs it. Servers that have seen a signed identity reject an unsigned one,
    and so do the commands that write. The signature is invalid after Goatherd 0.1.0 has written the identity, or after
    a writer without the root's key has changed it in the store.

    Without an option, the command writes nothing: it shows what changed since the last signed version, and exits with
    11 if the signature is invalid. Compare the changes with what your tools have done. --accept signs the changes.
    --take-back writes the last signed version again, as the next generation.

    The command writes nothing while a listed server has used a later or a different identity than the store holds: the
    store was then restored from a backup. Without listed servers, the command cannot check this.
    """
    if accept and take_back:
        raise click.UsageError("--accept and --take-back cannot be combined")
    return asyncio.run(_sign(app, "accept" if accept else "take-back" if take_back else None))


async def _sign(app: App, way: str | None) -> int:
    async with open_store(app.options) as store:
        examined = await examine_signature(store.provider, store.secret_id)
        written: IdentityDocument | None = None
        if way is not None and examined.state is not SignatureState.VALID:
            asked: dict[str, Any] = {"what": way, "version": examined.version, "changes": list(examined.changes)}
            if app.options.rotation_distrust:
                asked["distrust"] = list(app.options.rotation_distrust)
            addresses = tuple(dict.fromkeys((*app.options.nodes, *app.options.rotation_bare)))
            async with (
                audited(app, store, "sign", asked) as journal,
                NodeDirectory(addresses, timeout=app.options.timeout, org=app.options.org) as directory,
            ):
                policy, clock = build_policy(app.options), SystemClock()
                nodes = directory if directory.is_discovered else await directory()
                observer = Observer(nodes, clock=clock, timeout=policy.node_timeout, bare=policy.bare, org=store.org)
                check_distrusted(policy.distrust, () if observer.is_discovered else observer.nodes)
                write = sign_current if way == "accept" else sign_earlier
                written = await write(
                    store.provider, store.secret_id, examined, ask=observer.read_identities, policy=policy, clock=clock
                )
                journal.note("identity-signed", {"generation": written.generation, "current": written.current.id})
    app.out.result(_data(store, examined, written), _lines(store, examined, written))
    return 0 if written is not None or examined.state is SignatureState.VALID else EXIT_FINDINGS


def _data(store: Store, examined: Examined, written: IdentityDocument | None) -> dict[str, Any]:
    return {
        "store": store.name,
        "storeVersion": examined.version,
        "signature": str(examined.state),
        "current": examined.document.current.id,
        "generation": examined.document.generation,
        "signedVersion": examined.signed_version,
        "changes": list(examined.changes),
        "written": None if written is None else written.generation,
    }


def _lines(store: Store, examined: Examined, written: IdentityDocument | None) -> list[str]:
    document = examined.document
    lines = [f"version {examined.version} of {store.name}, generation {document.generation}: {_STATES[examined.state]}"]
    if examined.state is SignatureState.VALID:
        return lines
    if examined.signed is None:
        lines.append("no earlier version that can be read is signed")
    else:
        lines.append(f"changes since version {examined.signed_version}, generation {examined.signed.generation}:")
        lines += [f"  {change}" for change in examined.changes or ("none that a server uses",)]
    if written is not None:
        lines.append(f"wrote generation {written.generation}, signed by root {written.current.id}")
        return lines
    lines.append(
        "nothing was written. If your own tools have made these changes, run `goatherd restore --signature --accept`,"
        " and replace every Goatherd 0.1.0 that writes."
    )
    if examined.signed is not None:
        lines.append("If not, run `goatherd restore --signature --take-back`, and find out who can write to the store.")
    return lines
