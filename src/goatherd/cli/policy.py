"""`goatherd policy`: print the store permissions that a server or a rotator needs."""

from __future__ import annotations

import click

from goatherd.cli.main import App, command
from goatherd.config.build import configured_addresses, store_name
from goatherd.plugins import policy_text


@command(
    example="goatherd policy aws --role server aws://eu-west-1/goatdb/prod/root\n"
    "goatherd policy vault --role rotator secret/goatdb/root | vault policy write goatherd-rotator -\n"
    "goatherd policy awskms --role signer awskms://eu-west-1/alias/goatdb-anchor"
)
@click.argument("platform", metavar="PROVIDER")
@click.argument("secret", required=False)
@click.option(
    "--role",
    type=click.Choice(["server", "rotator", "admin", "signer"]),
    required=True,
    help="Role to print rights for: a server reads, a rotator rotates, an admin also creates and deletes; "
    "a signer signs with one key.",
)
def policy(app: App, platform: str, secret: str | None, role: str) -> None:
    """Print the store permissions that a server or a rotator needs.

    PROVIDER is the scheme of a store's URI, such as aws, gcp, azure, vault, k8s or file. SECRET is the address of the
    secret (default: the configured store; of several, the first one with this scheme). With --role signer, PROVIDER is
    the scheme of a signer, such as awskms, pkcs11 or transit, and SECRET is the signer's URI. The command contacts no
    store and needs no SDK.
    """
    address, *others = [secret] if secret else configured_addresses(app.options, platform)
    if not address:
        raise click.UsageError("no secret is named; give its address, such as aws://eu-west-1/goatdb/prod/root")
    text = policy_text(platform, role, address)
    shown = address if isinstance(address, str) else store_name(app.options)
    for other in others:
        app.out.write_note(f"note: this is for {shown}; also run: goatherd policy {platform} --role {role} {other}")
    app.out.result(
        {"provider": platform, "role": role, "secret": shown, "policy": text}, text.removesuffix("\n").split("\n")
    )
