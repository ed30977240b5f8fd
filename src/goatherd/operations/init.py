"""Create the first identity of a cluster in a store that has none.

If the store already holds an identity, that is an error, and the identity is not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from goatherd.clock import SystemClock
from goatherd.errors import (
    ConfigurationError,
    GoatherdError,
    IdentityExistsError,
    SecretExistsError,
    SecretNotFoundError,
)
from goatherd.identity.anchor import AnchorWord
from goatherd.identity.document import IdentityDocument, encode_document
from goatherd.identity.session import OwnedSession
from goatherd.identity.transitions import create_document
from goatherd.ids import new_id
from goatherd.operations.anchor_key import create_anchor_key, mention_created_key
from goatherd.operations.identity_store import Store
from goatherd.providers.values import SecretBytes, SecretVersion
from goatherd.remote_keys import sign_aside
from goatherd.rotation.anchor_keys import AnchorKeys, SignerOpener, open_pinned_signer
from goatherd.rotation.policy import Policy, check_lifetime
from goatherd.stores import ReplicatedStore


async def init_identity(
    store: Store,
    policy: Policy,
    *,
    anchor: str | None = None,
    create_key: bool = False,
    direct: bool = False,
    open_signer: SignerOpener = open_pinned_signer,
    on_wait: Callable[[timedelta], None] | None = None,
) -> tuple[SecretVersion, IdentityDocument]:
    """Generate a root session and write the first identity document.

    Args:
        store: The open store.
        policy: The lifetime of the root, and the tolerance for clocks.
        anchor: URI of the signer (HSM or KMS) that holds the anchor's key; None for an identity without an anchor.
        create_key: Whether to create the anchor's key first; it must not exist yet.
        direct: Whether the anchor itself is the root that signs (direct mode), so that the HSM or KMS makes each
            signature. Otherwise a new root signs, which the anchor, if any, endorses.
        open_signer: Opens the signer by its URI.
        on_wait: Called once, with the longest duration of the wait, if the created key is not ready at once.

    Returns:
        The version that was written, and the identity in it.

    Raises:
        ConfigurationError: The lifetime is shorter than a rotation needs; or the policy needs a working root, but there
            is no anchor.
        WrongClockError: This machine's clock differs from the store's.
        IdentityExistsError: The store holds an identity. Nothing was changed.
        ProviderError: The store could not be written, or not be read before the anchor's key is created.
        IdentityError: `create_key` is given, and the store holds something else than an identity.
        SignerError: The anchor's signer refused or did not answer. Nothing was written.
    """
    if direct and anchor is None:
        raise ConfigurationError(
            "direct mode needs an anchor", hint="Give the URI of the signer that holds the anchor's key."
        )
    policy.check_new_root(has_anchor=anchor is not None)
    policy = policy.for_identity(has_anchor=anchor is not None)
    check_lifetime(policy)
    now_ms = SystemClock().now_ms()
    if await _holds_identity(store, must_be_certain=create_key):
        raise _exists_error(store)
    store.check_clock(policy.clock_tolerance)
    root = OwnedSession.generate(session_id=new_id(), owner="root", now_ms=now_ms, lifetime=policy.lifetime)
    word: AnchorWord | None = None
    if anchor is not None:
        if create_key:
            await create_anchor_key(anchor, open_signer, on_wait=on_wait)
        async with AnchorKeys(store.org, open_signer) as keys:
            key = await keys.open_new(anchor, session_id=new_id(), now_ms=now_ms)
            if direct:
                root = key.owned
                word = AnchorWord(anchor=key.record, session=key.session)
            else:
                endorsement = await key.introduce(root.session, now_ms)
                word = AnchorWord(anchor=key.record, session=key.session, endorsements=(endorsement,))
    document = await sign_aside(lambda: create_document(root, now_ms, word=word), root)
    try:
        with mention_created_key(was_created=create_key):
            version = await store.provider.create(store.secret_id, SecretBytes(encode_document(document)))
    except SecretExistsError as error:
        if isinstance(store.provider, ReplicatedStore):  # in the store of another region, which the hint names
            raise IdentityExistsError(f"{error}; nothing was changed", hint=error.hint) from error
        found = _exists_error(store)
        if create_key:  # which is the key of the other process's identity if that one has named it, too
            found.hint = (
                f"{found.hint} The command has created the key {anchor}: destroy it, unless it is the anchor of that"
                " identity."
            )
        raise found from error
    return version, document


async def _holds_identity(store: Store, *, must_be_certain: bool) -> bool:
    """Return whether a read of the store returns an identity.

    The answer to this read also carries the store's time, which `Store.check_clock` needs.

    Args:
        store: The open store.
        must_be_certain: Whether to raise the read's error, unless the store has no such secret. Otherwise `create`
            detects an identity that cannot be read.
    """
    try:
        await store.read()
    except SecretNotFoundError:
        return False
    except GoatherdError:
        if must_be_certain:
            raise  # a key would be created for an identity that then cannot be written
        return False
    return True


def _exists_error(store: Store) -> IdentityExistsError:
    return IdentityExistsError(
        f"{store.name} holds an identity already; nothing was changed",
        hint="`goatherd show` shows the identity; `goatherd rotate` replaces its root key.",
    )
