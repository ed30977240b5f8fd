"""`goatherd init`: create an identity in a store that has none."""

from __future__ import annotations

import click

from goatherd.cli.main import (
    App,
    command,
    create_key_option,
    direct_option,
    lifetime_option,
    working_lifetime_option,
)
from goatherd.config.build import build_policy, lifetime_flags, open_store
from goatherd.identity.redaction import redact_document
from goatherd.times import format_duration, format_utc


@command(example="goatherd init --provider file:///srv/keys/root")
@lifetime_option
@working_lifetime_option
@click.option(
    "--anchor",
    metavar="URI",
    help="URI of the HSM or KMS key that becomes the anchor, such as transit://vault.internal/transit/goatdb.",
)
@create_key_option(before="creating the identity")
@direct_option
async def init(app: App, anchor: str | None, create_key: bool, direct: bool) -> None:
    """Create an identity in a store that has none.

    The command creates a root session with a new key and writes the first identity document. If the store already holds
    an identity, the command fails and changes nothing.

    With --anchor, a key in an HSM or a KMS is the anchor of the identity: it endorses each root that signs, and cannot
    be copied. The root in the store is then a working root with a short life.

    With --direct, the anchor is also the root that signs, so the store holds no private key. Each signature of a server
    is then a request to the HSM or the KMS; start each server with --root-signer URI.
    """
    if direct and anchor is None:
        raise click.UsageError("--direct needs --anchor URI")
    if create_key and anchor is None:
        raise click.UsageError("--create-key needs --anchor URI")
    lifetimes = lifetime_flags(app.options)
    if "--working-lifetime" in lifetimes and anchor is None:
        raise click.UsageError("--working-lifetime needs --anchor URI; --lifetime is for a root without an anchor")
    if lifetimes and direct:
        raise click.UsageError(f"--direct cannot be combined with {min(lifetimes)}: such a root is valid for ten years")
    # Imported here, because importing the rotation package takes long.
    from goatherd.cli.text.rotation import note_of_signer, note_of_wait, warn_of_short_life
    from goatherd.operations.init import init_identity
    from goatherd.rotation.policy import check_lifetime

    policy = build_policy(app.options)
    new = policy.for_identity(has_anchor=anchor is not None)
    check_lifetime(new)
    if anchor is None:
        warn_of_short_life(app.out, policy.lifetime)
    async with open_store(app.options) as store:
        version, document = await init_identity(
            store, policy, anchor=anchor, create_key=create_key, direct=direct, on_wait=note_of_wait(app.out)
        )
    data = {"store": store.name, "storeVersion": version.id, "created": True, **redact_document(document)}
    kind = "root" if document.anchor is None or direct else "working root"
    expires = format_utc(document.current.session.expiration_ms)
    lines = [
        f"created {kind} {document.current.id} in {store.name} (version {version.id})",
        f"valid until {expires}" if direct else f"valid for {format_duration(new.lifetime)}, until {expires}",
    ]
    if document.is_direct and document.anchor is not None:
        lines.append(f"its key is in {anchor}, which makes each signature of the root (direct mode)")
    elif document.anchor is not None:
        lines.append(f"endorsed by the anchor {document.anchor}, whose key is in {anchor}")
    if anchor is not None and anchor not in app.options.signers:
        lines.append(note_of_signer(anchor))
    app.out.result(data, lines)
