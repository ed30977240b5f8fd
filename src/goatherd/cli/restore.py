"""`goatherd restore`: make a previous root current again; with --signature, repair the identity's signature.

The signature is invalid if a tool that does not sign has changed the identity in the store.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from goatherd.cli.main import EXIT_FINDINGS, App, audit_log, audit_option, command, distrust_option
from goatherd.cli.process import lower_priority, run_interruptible
from goatherd.cli.rotate import run_rotation, to_option, waiting_options
from goatherd.config.build import build_policy, open_nodes, open_store
from goatherd.identity.document import IdentityDocument
from goatherd.operations.restore import restore as operation
from goatherd.operations.sign import SignatureExamination, SignatureState, examine_signature, repair_signature
from goatherd.rotation.machine import Phase


@command(
    example="goatherd restore --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080",
    nodes=True,
)
@to_option
@waiting_options
@click.argument("root", required=False)
def restore(
    app: App, root: str | None, to_phase: str | None, metrics_file: Path | None, unsafe_without_nodes: bool
) -> int:
    """Make a previous root the current root again.

    Use this command after a finished rotation; the cluster keeps serving. ROOT is the id of a previous root, or a
    unique beginning of it (default: `previous`). It can be restored until `goatherd retire` has destroyed its private
    key. The root that is replaced stays trusted, and the store keeps its private key for the grace period.

    A restore has the steps and checks of a rotation, and --resume, --cancel and --rollback of `goatherd rotate` apply.

    If a rotation is still in progress, use `goatherd rotate --rollback` instead. If the key of a root is exposed, use
    `goatherd revoke`.
    """
    lower_priority(app)
    stop_at = Phase(to_phase) if to_phase else None
    work = partial(operation, root_id=root, to_phase=stop_at, unsafe_without_nodes=unsafe_without_nodes)
    return run_interruptible(app, run_rotation(app, work, metrics_file), note="")


@command(
    example="goatherd restore --signature --provider file:///srv/keys/root\n"
    "goatherd restore --signature --accept --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080",
    nodes=True,
)
@click.option("--accept", is_flag=True, help="Accept the changes: sign the identity that the store holds.")
@click.option("--take-back", is_flag=True, help="Undo the changes: write the last signed version again.")
@distrust_option
@audit_option
def sign(app: App, accept: bool, take_back: bool) -> int:
    """Repair an invalid signature of the identity: sign the changes, or undo them.

    The signature becomes invalid if Goatherd 0.1.0 writes the identity, or if a writer without the root's key changes
    it in the store. Servers that have seen a signed identity, and commands that write, then reject it.

    Without an option, the command only shows what changed since the last signed version, and exits with 11 if the
    signature is invalid. --accept signs the changes. --take-back undoes them: it writes the last signed version again,
    with the next generation number.

    If a listed server has used a later or different identity than the one in the store, the store was probably restored
    from a backup, and the command writes nothing. Without listed servers, the command cannot check this.
    """
    if accept and take_back:
        raise click.UsageError("--accept and --take-back cannot be combined")
    return run_interruptible(app, _repair_signature(app, accept=accept, take_back=take_back), note="")


async def _repair_signature(app: App, *, accept: bool, take_back: bool) -> int:
    options, written = app.options, None
    async with open_store(options) as store, open_nodes(options) as nodes:
        examined = await examine_signature(store.provider, store.secret_id)
        is_valid = examined.state is SignatureState.VALID
        if (accept or take_back) and not is_valid:
            written = await repair_signature(
                store, nodes, build_policy(options), accept=accept, examined=examined, audit_log=audit_log(app)
            )
    app.out.result(signature_data(store.name, examined, written), signature_lines(store.name, examined, written))
    return 0 if is_valid or written is not None else EXIT_FINDINGS


_STATES = {
    SignatureState.VALID: "the current root has signed it",
    SignatureState.MISSING: "it has no signature",
    SignatureState.OUTDATED: "a tool that does not sign has written since it was signed",
    SignatureState.INVALID: "it is not what was signed: it was altered in the store",
}


def signature_data(store: str, examined: SignatureExamination, written: IdentityDocument | None) -> dict[str, Any]:
    """Return the state of the signature, and what was written, as data for ``--json``."""
    return {
        "store": store,
        "storeVersion": examined.version,
        "signature": str(examined.state),
        "current": examined.document.current.id,
        "generation": examined.document.generation,
        "signedVersion": examined.signed_version,
        "changes": list(examined.changes),
        "written": None if written is None else written.generation,
    }


def signature_lines(store: str, examined: SignatureExamination, written: IdentityDocument | None) -> list[str]:
    """Return the state of the signature, the changes, and what was written or is to be done, as lines."""
    document = examined.document
    lines = [f"version {examined.version} of {store}, generation {document.generation}: {_STATES[examined.state]}"]
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
