"""`goatherd restore --signature`: sign an identity whose signature is invalid, or undo its changes."""

from __future__ import annotations

import asyncio

import click

from goatherd.cli.main import EXIT_FINDINGS, App, command
from goatherd.cli.shared_options import audit_log, audit_option, distrust_option
from goatherd.cli.text.signature import signature_data, signature_lines
from goatherd.config.build import build_policy, open_nodes, open_store
from goatherd.operations.sign import SignatureState, accept_changes, examine_signature, take_back_changes


@command(
    example="goatherd restore --signature --provider file:///srv/keys/root\n"
    "goatherd restore --signature --accept --provider file:///srv/keys/root --node http://10.0.0.1:8080 --node http://10.0.0.2:8080",
    nodes=True,
)
@click.option("--accept", is_flag=True, help="Accept the changes: sign the identity that the store holds.")
@click.option("--take-back", is_flag=True, help="Undo the changes: write the last signed version again.")
@distrust_option()
@audit_option()
def sign(app: App, accept: bool, take_back: bool) -> int:
    """Repair an invalid signature of the identity: sign the changes, or undo them.

    Every command that writes the identity signs it. The signature becomes invalid if Goatherd 0.1.0 writes the
    identity, or if a writer without the root's key changes it in the store. Servers that have seen a signed identity
    reject one whose signature is missing or invalid, and so do the commands that write.

    Without an option, the command only shows what changed since the last signed version, and exits with 11 if the
    signature is invalid. Compare these changes with what your tools have done. --accept signs the changes. --take-back
    undoes them: it writes the last signed version again, with the next generation number.

    If a listed server has used a later or different identity than the one in the store, the store was probably restored
    from a backup, and the command writes nothing. Without listed servers, the command cannot check this.
    """
    if accept and take_back:
        raise click.UsageError("--accept and --take-back cannot be combined")
    return asyncio.run(_sign(app, accept=accept, take_back=take_back))


async def _sign(app: App, *, accept: bool, take_back: bool) -> int:
    options, written = app.options, None
    async with open_store(options) as store, open_nodes(options) as nodes:
        examined = await examine_signature(store.provider, store.secret_id)
        is_valid = examined.state is SignatureState.VALID
        if (accept or take_back) and not is_valid:
            write = accept_changes if accept else take_back_changes
            written = await write(store, nodes, build_policy(options), examined=examined, audit_log=audit_log(app))
    app.out.result(signature_data(store.name, examined, written), signature_lines(store.name, examined, written))
    return 0 if is_valid or written is not None else EXIT_FINDINGS
