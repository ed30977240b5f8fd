"""`goatherd sign`: sign an identity whose signature is invalid, or undo the change."""

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
